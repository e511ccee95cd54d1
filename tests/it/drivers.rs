//! The driver programs of tests/drivers against the proxy, by every route, in transaction mode; operators' tools against
//! its admin console.

use std::path::{Path, PathBuf};

use pgtenant::cli::demo::certificates::DevCa;
use tokio::process::Command;

use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::scene::{Scene, connect, password, secret};

/// The command that runs a program; none, with the reason told, where `tests/drivers/setup.sh` has not prepared it.
fn program(name: &str) -> Option<Command> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers");
    let folder = std::env::var_os("PGT_DRIVERS_DIR").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/drivers"));
    let required = std::env::var("PGT_NO_SKIP").is_ok_and(|value| value == "1");
    if !required && !folder.join(format!("{name}.ready")).exists() {
        let reason = std::fs::read_to_string(folder.join(format!("{name}.skipped")));
        eprintln!("skipped: {}", reason.unwrap_or_else(|_| "not set up: run tests/drivers/setup.sh".to_owned()).trim());
        return None;
    }
    let mut command = Command::new(tests.join("run.sh"));
    command.arg(name).env("PGT_DRIVERS_DIR", &folder).kill_on_drop(true);
    Some(command)
}

/// The proxy, for a command that is told where it is.
async fn proxy(files: ProxyFiles, tls: &str, command: &mut Command) -> Proxy {
    let ca = DevCa::new().expect("a CA");
    let files = files.certificate(&ca, &["acme.localhost", "localhost"]).set("tls.mode", tls);
    let proxy = Proxy::start(files).await;
    let ca_file = ca.write(proxy.files.dir()).expect("a file in the test's folder");
    command.env("PGT_PORT", proxy.address().port().to_string()).env("PGT_CA", ca_file);
    proxy
}

async fn succeeds(command: &mut Command) {
    let output = command.output().await.expect("bash is there");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn run(driver: &str) {
    let Some(mut command) = program(driver) else { return };
    let scene = Scene::new().await;
    let files = scene.files().set("routing.sni_domains", vec!["localhost"]);
    let _proxy = proxy(files, "required", &mut command).await;
    command
        .env("PGT_HOST", "acme.localhost")
        .env("PGT_USER", &scene.acme.role)
        .env("PGT_PASSWORD", password(&scene.acme))
        .env("PGT_DATABASE", &scene.acme.database)
        .env("PGT_TENANT", &scene.acme.tenant);
    succeeds(&mut command).await;
}

/// With a client of a tenant's connected, so that there is something to show.
async fn run_at_console(tool: &str) {
    let Some(mut command) = program(tool) else { return };
    let scene = Scene::new().await;
    let files = scene.files();
    secret(&files, "console.password", "s3cret");
    let files = files.set("admin.roles.watcher.password.file", "console.password");
    let proxy = proxy(files, "preferred", &mut command).await;
    let _client = connect(&proxy, &scene.acme).await;
    command.env("PGT_USER", "watcher").env("PGT_PASSWORD", "s3cret");
    succeeds(&mut command).await;
}

#[tokio::test]
async fn psycopg() {
    run("psycopg").await;
}

#[tokio::test]
async fn asyncpg() {
    run("asyncpg").await;
}

#[tokio::test]
async fn node_postgres() {
    run("node").await;
}

#[tokio::test]
async fn jdbc() {
    run("jdbc").await;
}

#[tokio::test]
async fn lib_pq() {
    run("libpq").await;
}

#[tokio::test]
async fn pgx() {
    run("pgx").await;
}

#[tokio::test]
async fn prometheus_exporter() {
    run_at_console("exporter").await;
}

#[tokio::test]
async fn datadog_check() {
    run_at_console("datadog").await;
}
