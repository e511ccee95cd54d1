//! Tenants made, given new passwords and erased through the HTTP API: the commands' acts, carried out by the proxy.

use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::eventually;
use crate::harness::frontend;
use crate::harness::ground::Ground;
use crate::harness::postgres::{self, Postgres};
use crate::harness::proxy::{ProxyFiles, http_ask};
use crate::harness::scene::{path_value, secret};
use crate::harness::serve::Served;
use crate::harness::wire::Wire;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const CREATE: &str = "/api/v1/tenants";
const OPERATIONS: &str = "/api/v1/operations";

/// Somebody with the token, or with a wrong one.
struct Caller {
    http: SocketAddr,
    authorization: String,
}

impl Caller {
    fn new(http: SocketAddr) -> Caller {
        Caller { http, authorization: format!("Bearer {TOKEN}") }
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.ask_with(method, path, "application/json", &body).await
    }

    async fn ask_with(&self, method: &str, path: &str, content: &str, body: &str) -> (u16, Value) {
        let stream = TcpStream::connect(self.http).await.unwrap();
        let headers = [("Authorization", self.authorization.as_str()), ("Content-Type", content)];
        let (status, text) = http_ask(stream, method, path, &headers, body).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// An order that is taken: the operation's path.
    async fn order(&self, method: &str, path: &str, body: &Value) -> String {
        let (status, told) = self.ask(method, path, body).await;
        assert_eq!(status, 202, "{path}: {told}");
        format!("{OPERATIONS}/{}", told["id"].as_str().unwrap())
    }

    /// Its end, by the list, which takes no passwords.
    async fn ended(&self, operation: &str) -> Value {
        let look = async || {
            let listed = self.ask("GET", OPERATIONS, &Value::Null).await.1;
            let mut all = listed["operations"].as_array().unwrap().iter();
            let ours = all.find(|it| operation.ends_with(it["id"].as_str().unwrap()));
            ours.unwrap_or_else(|| panic!("{operation} in {listed}")).clone()
        };
        let has_ended = |seen: &Value| seen["state"] == "done" || seen["state"] == "failed";
        eventually!(within Duration::from_secs(60), has_ended(&look().await), "{}", look().await);
        let found = look().await;
        assert!(found["result"]["passwords"].is_null(), "the list has no passwords: {found}");
        found
    }

    /// Polls like a program: what the first answer after the end says.
    async fn finished(&self, method: &str, path: &str, body: &Value) -> Value {
        let operation = self.order(method, path, body).await;
        self.ended(&operation).await;
        self.ask("GET", &operation, &Value::Null).await.1
    }

    /// The same for what has to be done.
    async fn done(&self, method: &str, path: &str, body: &Value) -> Value {
        let told = self.finished(method, path, body).await;
        assert_eq!((&told["state"], &told["exit_status"]), (&"done".into(), &0.into()), "{told}");
        told
    }
}

/// A ground whose API takes the token, and the folder with it.
async fn guarded(changes: &[(&str, toml::Value)]) -> (Ground, Caller, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http.token");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
    std::io::Write::write_all(&mut file, TOKEN.as_bytes()).unwrap();
    let token = [("http.token.file", path_value(path))];
    let ground = Ground::with_admin("SUPERUSER", &[&token, changes].concat()).await;
    let caller = Caller::new(ground.proxy.http_address());
    (ground, caller, dir)
}

/// Until this one commits, nobody makes or changes roles there.
async fn hold_roles(postgres: &Postgres) -> tokio_postgres::Client {
    let holder = postgres.connect("postgres").await.unwrap();
    holder.batch_execute("BEGIN; LOCK TABLE pg_authid IN SHARE MODE").await.unwrap();
    holder
}

/// A run is at work, or was.
fn has_begun(journal: &Path) -> bool {
    std::fs::metadata(journal).is_ok_and(|file| file.len() > 0)
}

/// What was removed and what remains, without names and times.
fn kinds(receipt: &Value) -> (Vec<&Value>, Vec<&Value>) {
    let of = |key: &str| receipt[key].as_array().unwrap().iter().map(|it| &it["what"]).collect();
    (of("removed"), of("remains"))
}

fn password(told: &Value, role: &str) -> String {
    let password = told["result"]["passwords"][role].as_str();
    password.unwrap_or_else(|| panic!("a password of {role} in {told}")).to_owned()
}

#[tokio::test]
async fn a_tenant_is_made_used_given_new_passwords_and_erased() {
    let (ground, caller, _dir) = guarded(&[]).await;
    let order = json!({ "id": "acme", "region": "eu", "tier": "gold", "settings": { "statement_timeout": "30s" },
                        "record": { "quota": { "max_clients": 7 } } });
    let foreseen = caller.done("POST", &format!("{CREATE}?dry_run=true"), &order).await;
    assert_eq!((&foreseen["result"]["order"]["instance"], &foreseen["dry_run"]), (&"one".into(), &true.into()));
    assert_eq!((ground.left().await, ground.files_left()), (vec![], vec![]));

    let operation = caller.order("POST", CREATE, &order).await;
    let (status, twice) = caller.ask("POST", CREATE, &order).await;
    assert_eq!(status, 409, "{twice}");
    assert!(operation.ends_with(twice["operation"].as_str().unwrap()), "{twice}");
    let ended = caller.ended(&operation).await;
    assert_eq!((&ended["state"], &ended["by"]), (&"done".into(), &"api (127.0.0.1)".into()), "{ended}");
    assert_eq!(ended["steps"].as_array().unwrap().len(), 10, "{ended}");
    assert!(ended["result"]["smoke"].as_str().unwrap().starts_with("logged in through"), "{ended}");
    // Nobody has read the passwords yet, and a HEAD is no reading.
    assert_eq!(caller.ask("HEAD", &operation, &Value::Null).await.0, 200);
    let erase = format!("{CREATE}/acme?confirm=acme");
    let (status, why) = caller.ask("DELETE", &erase, &Value::Null).await;
    assert!(status == 409 && why["error"].as_str().unwrap().contains("nobody has read"), "{why}");
    let told = caller.ask("GET", &operation, &Value::Null).await.1;
    let first = password(&told, "acme_app");
    let again = caller.ask("GET", &operation, &Value::Null).await.1;
    assert!(again["state"] == "done" && again["result"]["passwords"].is_null(), "{again}");
    assert_eq!(ground.files_left(), ["acme.toml"], "the journal is gone");
    let mut app = ground.log_in("acme", "acme_app", &first).await;
    assert_eq!(app.query("SHOW statement_timeout").await.unwrap()[0][0].as_deref(), Some("30s"));
    assert_eq!(caller.ask("POST", CREATE, &order).await.0, 409, "it exists");

    let rotate = format!("{CREATE}/acme/rotate-credentials");
    let roles = caller.done("POST", &format!("{rotate}?dry_run=true"), &Value::Null).await;
    assert_eq!(roles["result"]["roles"], json!(["acme_app", "acme_ro"]));
    let second = password(&caller.done("POST", &rotate, &Value::Null).await, "acme_app");
    assert_ne!(first, second);
    ground.proxy.reload().unwrap();
    ground.log_in("acme", "acme_app", &first).await;
    ground.log_in("acme", "acme_app", &second).await;
    caller.done("POST", &format!("{rotate}?finish=true"), &Value::Null).await;
    ground.proxy.reload().unwrap();
    ground.try_log_in("acme", "acme_app", &first).await.map(drop).unwrap_err();
    ground.log_in("acme", "acme_app", &second).await;

    let mut open = ground.log_in("acme", "acme_app", &second).await;
    let would = caller.done("DELETE", &format!("{CREATE}/acme?dry_run=true"), &Value::Null).await;
    assert_eq!(would["result"]["would_erase"]["databases"], json!(["acme"]));
    assert_eq!(ground.files_left(), ["acme.toml"]);
    let erased = caller.done("DELETE", &erase, &Value::Null).await;
    assert_eq!(erased["steps"], json!(["route", "database", "roles", "credentials", "copies", "receipt"]), "{erased}");
    assert_eq!((ground.left().await, ground.files_left()), (vec![], vec!["receipts".to_owned()]));
    let file = Path::new(erased["result"]["file"].as_str().unwrap());
    let receipt: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!((&receipt, &receipt["who"]), (&erased["result"]["receipt"], &"api (127.0.0.1)".into()));
    assert_eq!(open.expect_error("57P01").await.severity(), "FATAL", "sessions are ended");
    assert!(open.is_closed().await && ground.try_log_in("acme", "acme_app", &second).await.is_err());

    let audit = std::fs::read_to_string(ground.proxy.files.dir().join("audit.jsonl")).unwrap();
    assert!(audit.lines().all(|line| line.contains(r#""who":"api (127.0.0.1)""#)), "{audit}");
    assert!(!audit.contains(&first) && !audit.contains(&second), "a password in the audit log");
    assert!(ground.done(&["audit", "verify"]).await.starts_with("ok "));

    ground.done(&["tenant", "create", "globex", "--region", "eu", "--tier", "gold"]).await;
    let file = ground.proxy.files.dir().join("r.json");
    ground.done(&["tenant", "erase", "globex", "--confirm", "globex", "--receipt", file.to_str().unwrap()]).await;
    let of_command: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(kinds(&receipt), kinds(&of_command), "the command's receipt");
}

#[tokio::test]
async fn an_order_and_a_command_keep_out_of_each_others_way() {
    let (ground, caller, _dir) = guarded(&[]).await;
    let journal = ground.proxy.files.dir().join("lifecycle.d/acme.jsonl");
    let busy = "another run is at work on it; wait until it has ended";
    let holder = hold_roles(&ground.postgres).await;
    let operation = caller.order("POST", CREATE, &json!({ "id": "acme" })).await;
    eventually!(has_begun(&journal));
    let (status, why) = ground.refused(&["tenant", "create", "acme"]).await;
    assert!(status == 4 && why.contains(busy), "{why}");
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(caller.ended(&operation).await["state"], "done");
    // Nor does a command take the unread passwords' place.
    let (status, why) = ground.refused(&["tenant", "rotate-credentials", "acme"]).await;
    assert!(status == 4 && why.contains(busy), "{why}");
    password(&caller.ask("GET", &operation, &Value::Null).await.1, "acme_app");

    holder.batch_execute("BEGIN; LOCK TABLE pg_authid IN SHARE MODE").await.unwrap();
    let command = ground.command(&["tenant", "rotate-credentials", "acme"]).spawn().unwrap();
    eventually!(has_begun(&journal));
    let erase = format!("{CREATE}/acme?confirm=acme");
    for (method, path) in [("DELETE", &erase), ("POST", &format!("{CREATE}/acme/rotate-credentials"))] {
        let told = caller.finished(method, path, &Value::Null).await;
        assert_eq!((&told["state"], &told["exit_status"]), (&"failed".into(), &4.into()), "{told}");
        assert!(told["error"].as_str().unwrap().contains(busy), "{told}");
    }
    holder.batch_execute("COMMIT").await.unwrap();
    assert!(command.wait_with_output().await.unwrap().status.success());
    caller.done("DELETE", &erase, &Value::Null).await;
    assert_eq!((ground.left().await, ground.files_left()), (vec![], vec!["receipts".to_owned()]));
}

#[tokio::test]
async fn who_may_not_or_misspells_changes_nothing() {
    let (ground, caller, _dir) = guarded(&[]).await;
    let order = json!({ "id": "acme" });
    for authorization in ["", "Bearer wrong"] {
        let stranger = Caller { authorization: authorization.to_owned(), ..Caller::new(caller.http) };
        for (method, path) in [("POST", CREATE), ("DELETE", "/api/v1/tenants/acme?confirm=acme"), ("GET", OPERATIONS)] {
            assert_eq!(stranger.ask(method, path, &order).await.0, 401, "{method} {path}");
        }
    }
    let with = |key: &str, value: Value| {
        let mut order = order.clone();
        order[key] = value;
        order
    };
    for (method, path, body, expected, names) in [
        ("POST", "/api/v1/tenants?dryrun=true", order.clone(), 400, "unknown field `dryrun`"),
        ("POST", "/api/v1/tenants?confirm=acme", order.clone(), 400, "confirm"),
        ("POST", CREATE, json!({}), 422, "id: the tenant's id is missing"),
        ("POST", CREATE, json!({ "id": 7 }), 422, "id: the tenant's id is a string, not 7"),
        ("POST", CREATE, json!({ "id": "../acme" }), 422, "id: \"../acme\""),
        ("POST", CREATE, with("colour", "red".into()), 422, "unknown field `colour`, expected one of `instance`"),
        ("POST", CREATE, with("migrations", "/etc".into()), 422, "unknown field `migrations`"),
        ("POST", CREATE, with("tags", "ssd".into()), 422, "tags: invalid type: string"),
        ("POST", CREATE, with("settings", json!({ "work_mem": 4 })), 422, "settings.work_mem: invalid type: integer"),
        ("POST", CREATE, json!(["acme"]), 422, "expected a map"),
        ("DELETE", "/api/v1/tenants/globex?confirm=globex", Value::Null, 404, "no tenant \"globex\""),
        ("DELETE", "/api/v1/tenants/..%2Facme?confirm=..%2Facme", Value::Null, 404, "no tenant \"../acme\""),
        ("DELETE", "/api/v1/tenants/globex?finish=true", Value::Null, 400, "finish"),
        ("POST", "/api/v1/tenants/globex/rotate-credentials", Value::Null, 404, "no tenant \"globex\""),
        ("GET", "/api/v1/operations/0123456789abcdef", Value::Null, 404, "no operation \"0123456789abcdef\""),
    ] {
        let (status, told) = caller.ask(method, path, &body).await;
        assert_eq!(status, expected, "{method} {path} {body}: {told}");
        assert!(told["error"].as_str().unwrap().contains(names), "{method} {path} {body}: {told}");
    }
    assert_eq!(caller.ask("POST", OPERATIONS, &Value::Null).await.0, 405);
    let (status, told) = caller.ask_with("POST", CREATE, "application/json", "{\"id\": \"acme\"").await;
    assert!(status == 400 && told["error"].as_str().unwrap().contains("line 1 column 13"), "{told}");
    let (status, told) = caller.ask_with("POST", CREATE, "text/plain", "{\"id\": \"acme\"}").await;
    assert!(status == 415 && told["error"].as_str().unwrap().contains("application/json"), "{told}");
    let long = format!("{{\"id\": \"{}\"}}", "a".repeat(1 << 20));
    assert_eq!(caller.ask_with("POST", CREATE, "application/json", &long).await.0, 413);
    assert_eq!(ground.files_left(), Vec::<String>::new());
    ground.done(&["tenant", "create", "acme"]).await;
    eventually!(caller.ask("GET", "/api/v1/tenants/acme", &Value::Null).await.0 == 200);
    for query in ["", "?confirm=globex", "?dry_run=false"] {
        let (status, told) = caller.ask("DELETE", &format!("{CREATE}/acme{query}"), &Value::Null).await;
        let why = told["error"].as_str().unwrap();
        assert!(status == 400 && why.contains("nothing was changed; to erase tenant acme say confirm=acme"), "{told}");
    }
    let (status, told) = caller.ask("POST", CREATE, &order).await;
    let why = told["error"].as_str().unwrap();
    assert!(status == 409 && why.contains("id: tenant acme exists already; nothing was changed"), "{told}");
    assert_eq!(ground.files_left(), ["acme.toml"]);
}

/// Looks and states are open to this machine without any; these acts are not.
#[tokio::test]
async fn without_a_credential_to_ask_for_nobody_acts() {
    let ground = Ground::new().await;
    let caller = Caller::new(ground.proxy.http_address());
    let (status, told) = caller.ask("POST", CREATE, &json!({ "id": "acme" })).await;
    assert!(status == 403 && told["error"].as_str().unwrap().contains("http.token"), "{told}");
    assert_eq!(caller.ask("GET", OPERATIONS, &Value::Null).await.0, 403);
    assert_eq!(caller.ask("GET", CREATE, &Value::Null).await.0, 200);
}

#[tokio::test]
async fn an_act_that_fails_says_why_and_what_to_do() {
    let hook = [("lifecycle.credentials_hook.program", "hook".into())];
    let (ground, caller, _dir) = guarded(&hook).await;
    let dir = ground.proxy.files.dir();
    let told = caller.finished("POST", CREATE, &json!({ "id": "acme", "template": "nowhere" })).await;
    let why = told["error"].as_str().unwrap();
    assert_eq!((&told["state"], &told["exit_status"]), (&"failed".into(), &2.into()), "{told}");
    assert!(why.contains("no database \"nowhere\" on instance one to be the template"), "{why}");
    assert_eq!((ground.left().await, ground.files_left()), (vec![], vec![]));

    // All but the hook; the same order goes on.
    let told = caller.finished("POST", CREATE, &json!({ "id": "acme" })).await;
    let why = told["error"].as_str().unwrap();
    assert!(told["exit_status"] == 5 && why.contains("give the same command again"), "{told}");
    std::fs::write(dir.join("hook"), format!("#!/bin/sh\ncat > {}/given\n", dir.display())).unwrap();
    std::fs::set_permissions(dir.join("hook"), PermissionsExt::from_mode(0o755)).unwrap();
    let told = caller.done("POST", CREATE, &json!({ "id": "acme" })).await;
    let result = &told["result"];
    assert_eq!((&result["given_to_hook"], &result["resumed"]), (&true.into(), &true.into()), "{told}");
    assert!(result["passwords"].is_null(), "{told}");
    let given: Value = serde_json::from_str(&std::fs::read_to_string(dir.join("given")).unwrap()).unwrap();
    ground.log_in("acme", "acme_app", given["roles"]["acme_app"]["password"].as_str().unwrap()).await;
    assert_eq!(ground.files_left(), ["acme.toml"]);
}

/// An instance with an admin, and the files of a proxy over it whose API takes the token.
async fn kept() -> (Postgres, ProxyFiles) {
    let postgres = postgres::start().await;
    postgres.sql("postgres", "CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 'k'").await.unwrap();
    let files = ProxyFiles::new().instance("one", &postgres);
    let (keeper, token) = (secret(&files, "keeper.password", "k"), secret(&files, "http.token", TOKEN));
    let files = files
        .set("instances.one.admin.user", "keeper")
        .set("instances.one.admin.password.file", path_value(keeper))
        .set("http.token.file", path_value(token));
    (postgres, files)
}

/// Logs in as acme's application.
async fn log_in(address: SocketAddr, password: &str) {
    let mut client = Wire::tcp(address).await.unwrap();
    let parameters = [("user", "acme_app"), ("options", "-c tenant=acme")];
    client.login_with(frontend::V3_0, &parameters, password).await.unwrap();
}

#[tokio::test]
async fn a_proxy_that_reloads_and_ends_meanwhile_leaves_the_act_to_the_next_one() {
    let (postgres, files) = kept().await;
    let journal = files.dir().join("lifecycle.d/acme.jsonl");
    let mut served = Served::start(files).await;
    let holder = hold_roles(&postgres).await;
    let create = json!({ "id": "acme" });
    let caller = Caller::new(served.http);
    let operation = caller.order("POST", CREATE, &create).await;
    eventually!(has_begun(&journal));
    let reloads = async || served.metric("pgtenant_reload_total").await;
    let before = reloads().await;
    served.signal(libc::SIGHUP);
    eventually!(reloads().await > before);
    assert_eq!(caller.ask("GET", &operation, &Value::Null).await.1["state"], "running", "a reload ends no act");
    served.signal(libc::SIGTERM);
    assert!(served.ended().await.success(), "nor does an act hold up the end");
    holder.batch_execute("COMMIT").await.unwrap();
    let gone = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'keeper'";
    eventually!(postgres.sql("postgres", gone).await.unwrap()[0][0].as_deref() == Some("0"));

    let served = Served::start(served.files).await;
    let told = Caller::new(served.http).done("POST", CREATE, &create).await;
    assert_eq!(told["result"]["resumed"], true, "{told}");
    let password = password(&told, "acme_app");
    log_in(served.address, &password).await;
    assert!(!journal.exists() && served.log().contains("act done") && !served.log().contains(&password));
}

#[tokio::test]
async fn the_same_order_goes_on_behind_a_proxy_that_was_killed() {
    let (postgres, files) = kept().await;
    let journal = files.dir().join("lifecycle.d/acme.jsonl");
    let mut served = Served::struck(files, "create:database").await;
    let create = json!({ "id": "acme" });
    Caller::new(served.http).order("POST", CREATE, &create).await;
    assert_eq!(served.ended().await.signal(), Some(libc::SIGKILL));
    assert!(journal.exists());

    // Done, and killed before anybody has read the passwords: new ones are made.
    let mut served = Served::start(served.files).await;
    let caller = Caller::new(served.http);
    let operation = caller.order("POST", CREATE, &create).await;
    assert_eq!(caller.ended(&operation).await["state"], "done");
    served.signal(libc::SIGKILL);
    served.ended().await;
    assert!(journal.exists());
    let served_again = Served::struck(served.files, "erase:database").await;
    let caller = Caller::new(served_again.http);
    let told = caller.done("POST", CREATE, &create).await;
    assert_eq!(told["result"]["resumed"], true, "{told}");
    log_in(served_again.address, &password(&told, "acme_app")).await;
    assert!(!journal.exists());

    // And out of the way again, killed when the record is gone.
    let erase = "/api/v1/tenants/acme?confirm=acme";
    caller.order("DELETE", erase, &Value::Null).await;
    let mut served = served_again;
    assert_eq!(served.ended().await.signal(), Some(libc::SIGKILL));
    let served = Served::start(served.files).await;
    let told = Caller::new(served.http).done("DELETE", erase, &Value::Null).await;
    assert_eq!(told["result"]["receipt"]["tenant"], "acme");
    let left = "SELECT count(*) FROM pg_roles WHERE rolname ~ '^acme'";
    assert_eq!(postgres.sql("postgres", left).await.unwrap()[0][0].as_deref(), Some("0"));
    assert!(!journal.exists() && !served.log().contains("SCRAM"));
}
