//! The commands beside `serve`: what they print, and their exit status.

use std::process::{Output, Stdio};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use toml::Value;

use crate::harness::postgres;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::scene::{Scene, log_in_as, path_value, secret};
use crate::harness::serve::Served;
use crate::harness::wire::Wire;

/// A command with its standard input, run to its end.
async fn run(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("the program was built with the tests");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A command that reads nothing may have ended already.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    child.wait_with_output().await.expect("an output")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a success, standard error of a failure.
fn outcome(output: &Output) -> Result<String, String> {
    match output.status.code() {
        Some(0) => Ok(text(&output.stdout)),
        Some(1) => Err(text(&output.stderr)),
        other => panic!("exit status {other:?}: {}", text(&output.stderr)),
    }
}

#[tokio::test]
async fn route_says_where_a_connection_goes_and_why() {
    let files = ProxyFiles::new()
        .instance_at("one", "127.0.0.1:5439".parse().unwrap())
        .set("routing.sni_domains", vec!["db.example.com"])
        .set("routing.databases.shop", "acme")
        .set("tenants.acme.instance", "one")
        .set("tenants.acme.database", "acme_db")
        .set("tenants.acme.auth_query.user", "reader")
        .set("tenants.acme.pool.max_backends", 7);
    let config = files.write().display().to_string();
    let route =
        async |arguments: &[&str]| outcome(&run(&[&["route", "--config", &config], arguments].concat(), "").await);
    let pool = "pool      database acme_db, role app, transaction mode, at most 7 of the tenant's 7 backends";
    for (arguments, rule) in [
        (&["--sni", "acme.db.example.com", "--user", "app"][..], "SNI"),
        (&["--options", "-c tenant=acme -c work_mem=5MB", "--user", "app"], "options"),
        (&["--user", "app.acme"], "user suffix"),
        (&["--user", "app", "--database", "shop"], "database"),
        (&["--user", "app", "--certificate", "acme"], "client certificate"),
    ] {
        let expected =
            format!("tenant    acme\nrule      {rule}\nrole      app\n{pool}\ninstance  one at 127.0.0.1:5439\n");
        assert_eq!(route(arguments).await, Ok(expected));
    }
    for (arguments, reason) in [
        (&["--user", "app"][..], "no tenant named"),
        (&["--user", "app.nosuch"], "there is no such tenant"),
        (&["--user", "app", "--options", "-c tenant=acme", "--sni", "x.db.example.com"], "the hints disagree"),
        (&["--user", "app", "--options", "-e -c tenant=acme"], "write -c name=value"),
        (&["--user", "app.acme", "--set", "routing.user_suffix=false"], "no tenant named"),
    ] {
        let message = route(arguments).await.unwrap_err();
        assert!(message.contains(reason), "{message}");
    }
}

#[tokio::test]
async fn check_reaches_every_instance_and_logs_in_where_it_can() {
    let scene = Scene::new().await;
    let files = scene.instance();
    scene.sql("CREATE ROLE reader LOGIN PASSWORD 'r'; GRANT CONNECT ON DATABASE acme TO reader; GRANT SELECT ON pg_authid TO reader").await;
    let password = path_value(secret(&files, "reader.password", "r"));
    let changes = [
        ("auth_query.user", Value::from("reader")),
        ("auth_query.password.file", password.clone()),
        ("service.user", "reader".into()),
        ("service.password.file", password),
    ];
    let files = files.tenant_with(&scene.acme, &changes);
    let check = async |files: &ProxyFiles| {
        let output = run(&["check", "--config", files.write().to_str().unwrap()], "").await;
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (status, printed, _) = check(&files).await;
    assert_eq!(status, Some(0), "{printed}");
    assert!(printed.contains("ok    configuration: instances 1, tenants 1"), "{printed}");
    assert!(printed.contains(&format!("ok    instance one: {} reached in ", scene.postgres.address())), "{printed}");
    assert!(
        printed.contains("ok    tenant acme: auth_query answers, role reader logged in to acme on one"),
        "{printed}"
    );

    // A wrong secret, an instance that is another one, one that does not answer.
    secret(&files, "reader.password", "wrong");
    let (status, printed, message) = check(&files).await;
    assert!(status == Some(1) && message.contains("1 of the checks failed"), "{message}");
    assert!(printed.contains("FAIL  tenant acme: tenant acme: auth_query: "), "{printed}");
    assert!(printed.contains("password authentication failed for user \"reader\""), "{printed}");
    secret(&files, "reader.password", "r");
    let files = files.set("instances.one.system_identifier", "1");
    let (status, printed, _) = check(&files).await;
    assert!(status == Some(1) && printed.contains("system_identifier"), "{printed}");
    scene.postgres.stop().await;
    let (status, printed, _) = check(&files).await;
    assert!(status == Some(1) && printed.contains("FAIL  instance one: "), "{printed}");

    // What is wrong in a file is named with its key, and the nearest one that there is.
    let files = files.set("pool.max_backend", 5);
    let (status, _, message) = check(&files).await;
    assert_eq!(status, Some(1));
    assert!(
        message.contains("proxy.toml") && message.contains("pool.max_backend") && message.contains("max_backends"),
        "{message}"
    );
}

#[tokio::test]
async fn a_verifier_made_by_us_is_good_for_postgresql_and_for_us() {
    let scene = Scene::new().await;
    let verifier = outcome(&run(&["verifier"], "päss wörd\n").await).unwrap();
    let verifier = verifier.trim();
    assert!(verifier.starts_with("SCRAM-SHA-256$4096:"), "{verifier}");
    scene.sql(&format!("ALTER ROLE acme PASSWORD '{verifier}'")).await;
    let proxy =
        Proxy::start(scene.instance().tenant_with(&scene.acme, &[("roles.acme.verifier", verifier.into())])).await;
    log_in_as(&mut Wire::tcp(proxy.address()).await.unwrap(), "acme", "acme", "päss wörd").await.unwrap();
    let mut direct = Wire::tcp(scene.postgres.address()).await.unwrap();
    direct.login("acme", "acme", "päss wörd").await.unwrap();
    assert_ne!(outcome(&run(&["verifier"], "päss wörd").await).unwrap().trim(), verifier);
    let message = outcome(&run(&["verifier"], "\n").await).unwrap_err();
    assert!(message.contains("no password on standard input"), "{message}");
}

#[tokio::test]
async fn health_tells_a_ready_proxy_from_none() {
    let served = Served::start(ProxyFiles::new()).await;
    let address = served.http.to_string();
    assert_eq!(outcome(&run(&["health", "--address", &address], "").await), Ok(String::new()));
    drop(served);
    let message = outcome(&run(&["health", "--address", &address], "").await).unwrap_err();
    assert!(message.contains("no answer from"), "{message}");
    // PostgreSQL listens, but does not speak HTTP.
    let postgres = postgres::start().await;
    let message = outcome(&run(&["health", "--address", &postgres.address().to_string()], "").await).unwrap_err();
    assert!(message.starts_with("pgtenant: "), "{message}");
}

/// What `pgtenant completions` prints is loaded by the shell itself, and completes; a shell that is not here is left out.
#[tokio::test]
async fn completions_are_loaded_by_their_shells() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for (shell, file, load) in [
        (
            "bash",
            "pgtenant.bash",
            "set -e; . \"$0\"; complete -p pgtenant >/dev/null; COMP_WORDS=(pgtenant tenant cr); COMP_CWORD=2; \
             _pgtenant pgtenant cr tenant; echo \"${COMPREPLY[@]}\"",
        ),
        (
            "zsh",
            "_pgtenant",
            "fpath=(${0:h} $fpath); autoload -Uz compinit && compinit -u -D && (( $+functions[_pgtenant] )) && \
             autoload +X _pgtenant && [[ $_comps[pgtenant] == _pgtenant && $functions[_pgtenant] == *create* ]] && echo create",
        ),
        ("fish", "pgtenant.fish", "source $argv[1]; complete -C 'pgtenant tenant cr'"),
    ] {
        let script = outcome(&run(&["completions", shell], "").await).unwrap();
        std::fs::write(path(file), script).unwrap();
        let mut command = Command::new(shell);
        command.args(["-c", load, &path(file)]).env("HOME", dir.path()).env("ZDOTDIR", dir.path()).stdin(Stdio::null());
        let Ok(output) = command.output().await else {
            eprintln!("SKIPPED: there is no {shell}");
            continue;
        };
        let (printed, why) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && printed.starts_with("create") && why.is_empty(), "{shell}: {printed}{why}");
    }
}

/// Every command has a help text with examples, which fits a terminal, and says what its exit statuses are or where they are.
#[tokio::test]
async fn every_command_says_how_it_is_used() {
    let mut open = vec![Vec::<String>::new()];
    let mut commands = 0;
    while let Some(command) = open.pop() {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let told = outcome(&run(&arguments, "").await).unwrap();
        let below = told.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        let below: Vec<&str> = below
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        for name in below.iter().filter(|name| **name != "help") {
            open.push(command.iter().cloned().chain([(*name).to_owned()]).collect());
        }
        if below.is_empty() {
            commands += 1;
            assert!(told.contains("Example") && told.contains("xit status"), "pgtenant {}: {told}", command.join(" "));
        }
    }
    assert!(commands > 35, "{commands}");
}
