//! The blocks that demo and tests stand on, tested without a proxy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgtenant::cli::demo::certificates::{DevCa, write_pair};
use pgtenant::cli::demo::tenant::{Order, onboard};
use secrecy::ExposeSecret;

use crate::eventually;
use crate::harness::faulty_link::{Fault, FaultyLink};
use crate::harness::postgres::{Options, Postgres, options, start, start_with, start_with_tls};
use crate::harness::proxy::ProxyFiles;
use crate::harness::wire::{Wire, cancel};
use crate::harness::{certs, frontend};

#[tokio::test]
async fn an_instance_leaves_nothing_behind() {
    let postgres = start().await;
    let (folder, pid) = (postgres.socket_dir().to_owned(), postgres.pid().unwrap());
    let rows = postgres.sql("postgres", "SELECT system_identifier FROM pg_control_system()").await.unwrap();
    assert_eq!(rows, [[Some(postgres.system_identifier().unwrap().to_string())]]);
    drop(postgres);
    assert!(!folder.exists());
    assert!(!process_exists(pid));
}

#[tokio::test]
async fn copies_of_one_template_differ_in_identity() {
    let (one, two) = tokio::join!(start(), start());
    assert_ne!(one.system_identifier().unwrap(), two.system_identifier().unwrap());
    assert_ne!(one.port(), two.port());
    // What is written after the change of identity survives a clean restart and a crash.
    one.sql("postgres", "CREATE TABLE kept (x int); INSERT INTO kept VALUES (1)").await.unwrap();
    one.restart().await.unwrap();
    one.kill().await;
    one.restart().await.unwrap();
    assert_eq!(one.sql("postgres", "SELECT x FROM kept").await.unwrap(), [[Some("1".to_owned())]]);
}

#[tokio::test]
async fn a_kill_takes_every_process_and_the_restart_keeps_the_port() {
    let postgres = start().await;
    let client = postgres.connect("postgres").await.unwrap();
    let backend: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let (port, busy) =
        (postgres.port(), tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(60)").await }));
    postgres.kill().await;
    assert!(!process_exists(backend.unsigned_abs()));
    assert!(busy.await.unwrap().is_err());
    assert_eq!(postgres.pid(), None);
    assert!(Wire::tcp(postgres.address()).await.is_err());
    postgres.restart().await.unwrap();
    assert_eq!(postgres.port(), port);
    postgres.sql("postgres", "SELECT 1").await.unwrap();
    postgres.stop().await;
    assert_eq!(postgres.pid(), None);
    assert!(postgres.log().contains("database system is shut down"));
}

/// Started again by [`a_killed_process_takes_its_instance_along`] as the process that gets killed.
#[tokio::test]
#[ignore = "the other half of a_killed_process_takes_its_instance_along"]
async fn hold_an_instance_until_killed() {
    // From a task on another thread, which ends: the instance must not.
    let start = || tokio::runtime::Runtime::new().unwrap().block_on(start());
    let postgres = std::thread::spawn(start).join().unwrap();
    println!("pid={} folder={}", postgres.pid().unwrap(), postgres.socket_dir().display());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_process_takes_its_instance_along() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", "building_blocks::hold_an_instance_until_killed"]);
    let mut holder = command.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let line = loop {
        let line = lines.next_line().await.unwrap().expect("the holder tells its instance");
        // The test runner may print something of its own before it on the same line.
        if let Some(at) = line.find("pid=") {
            break line[at..].to_owned();
        }
    };
    let (pid, folder) = line.trim_start_matches("pid=").split_once(" folder=").unwrap();
    let (pid, folder): (u32, PathBuf) = (pid.parse().unwrap(), folder.into());
    // The thread that started it is gone by now; the instance serves on.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(process_exists(pid));
    holder.kill().await.unwrap();
    eventually!(!process_exists(pid), "postmaster {pid} has outlived its parent");
    // Its folder goes when the next instance starts, here or in another test's process.
    drop(start().await);
    eventually!(!folder.exists());
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let missing = Options { bin_dir: Some("/nonexistent/bin".into()), ..options() };
    let error = Postgres::start(missing).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/bin"), "{error}");
    let wrong = Options { settings: vec![("no_such_setting".into(), "1".into())], ..options() };
    let error = Postgres::start(wrong).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("no_such_setting"), "{error}");
}

#[tokio::test]
async fn every_way_to_log_in() {
    let hba = ["md5_role md5", "clear_role password"].map(|rule| {
        let (role, method) = rule.split_once(' ').unwrap();
        format!("host all {role} 127.0.0.1/32 {method}")
    });
    let postgres = start_with(Options { hba: hba.to_vec(), ..options() }).await;
    let roles = "CREATE ROLE scram_role LOGIN PASSWORD 'one'; CREATE ROLE clear_role LOGIN PASSWORD 'three';
                 SET password_encryption = 'md5'; CREATE ROLE md5_role LOGIN PASSWORD 'two'";
    postgres.sql("postgres", roles).await.unwrap();
    for (role, password) in [("scram_role", "one"), ("md5_role", "two"), ("clear_role", "three")] {
        let mut wire = Wire::tcp(postgres.address()).await.unwrap();
        wire.login(role, "postgres", password).await.unwrap();
        assert_eq!(wire.query("SELECT current_user").await.unwrap(), [[Some(role.to_owned())]]);
        let mut wire = Wire::tcp(postgres.address()).await.unwrap();
        assert_eq!(wire.login(role, "postgres", "wrong").await.unwrap_err().sqlstate(), "28P01");
        assert!(wire.is_closed().await);
    }
    let mut wire = Wire::unix(&postgres.socket_dir().join(format!(".s.PGSQL.{}", postgres.port()))).await.unwrap();
    wire.login("postgres", "postgres", "").await.unwrap();
    assert!(wire.parameters.contains_key("server_version") && wire.key.is_some());
}

#[tokio::test]
async fn tls_with_channel_binding() {
    let ca = DevCa::new().unwrap();
    let Some(postgres) = start_with_tls(&ca, &["db.localhost", "127.0.0.1"]).await else { return };
    postgres.sql("postgres", "CREATE ROLE app LOGIN PASSWORD 'secret'").await.unwrap();
    let mut wire = Wire::tls(postgres.address(), Arc::new(certs::client(&ca)), "db.localhost").await.unwrap();
    wire.login("app", "postgres", "secret").await.unwrap();
    assert_eq!(wire.mechanism, Some("SCRAM-SHA-256-PLUS"));
    let with_certificate = certs::client_with(&ca, &ca.client("app").unwrap());
    let mut wire = Wire::tls(postgres.address(), Arc::new(with_certificate), "db.localhost").await.unwrap();
    wire.login("app", "postgres", "secret").await.unwrap();
    let error = Wire::tls(postgres.address(), Arc::new(certs::client(&ca)), "other.localhost").await.map(drop);
    assert!(error.unwrap_err().to_string().contains("other.localhost"));
    // Direct TLS is for PostgreSQL 17 and newer: an older one closes the connection.
    let direct = Wire::direct_tls(postgres.address(), certs::direct(certs::client(&ca)), "db.localhost").await;
    let rows = postgres.sql("postgres", "SHOW server_version_num").await.unwrap();
    let version: u32 = rows[0][0].as_deref().unwrap().parse().unwrap();
    assert_eq!(direct.is_ok(), version >= 170_000);
}

#[tokio::test]
async fn the_wire_client_speaks_the_extended_protocol() {
    let postgres = start().await;
    let mut wire = superuser(&postgres).await;
    let pipeline = [
        frontend::parse("s", "SELECT $1::text, $2::text"),
        frontend::describe_statement("s"),
        frontend::bind("p", "s", &[Some("x"), None]),
        frontend::describe_portal("p"),
        frontend::execute("p", 0),
        frontend::close_portal("p"),
        frontend::close_statement("s"),
        frontend::flush(),
        frontend::sync(),
    ];
    wire.send(&pipeline.concat()).await.unwrap();
    let messages = wire.read_until_ready().await.unwrap();
    let tags: String = messages.iter().map(|message| char::from(message.tag)).collect();
    assert_eq!(tags, "1tT2TDC33Z");
    assert_eq!(messages[5].row(), [Some("x".to_owned()), None]);
    assert_eq!(messages[9].status(), 'I');

    wire.query("BEGIN; SELECT 1").await.unwrap();
    wire.send(&frontend::query("SELECT 1/0")).await.unwrap();
    let error = wire.expect_error("22012").await;
    assert_eq!((error.severity(), error.message()), ("ERROR", "division by zero"));
    assert_eq!(wire.read().await.unwrap().status(), 'E');
    wire.query("ROLLBACK").await.unwrap();

    // textcat, by its OID in pg_proc.
    wire.send(&frontend::function_call(1258, &["a", "bc"])).await.unwrap();
    let messages = wire.read_until_ready().await.unwrap();
    assert!(messages[0].tag == b'V' && messages[0].payload.ends_with(b"abc"));

    wire.send(&frontend::terminate()).await.unwrap();
    assert!(wire.is_closed().await);
}

#[tokio::test]
async fn the_wire_client_copies() {
    let postgres = start().await;
    let mut wire = superuser(&postgres).await;
    wire.query("CREATE TEMPORARY TABLE t (x int)").await.unwrap();
    wire.send(&frontend::query("COPY t FROM STDIN")).await.unwrap();
    assert_eq!(wire.read().await.unwrap().tag, b'G');
    wire.send(&[frontend::copy_data(b"1\n2\n"), frontend::copy_done()].concat()).await.unwrap();
    wire.read_until_ready().await.unwrap();
    wire.send(&frontend::query("COPY t FROM STDIN")).await.unwrap();
    assert_eq!(wire.read().await.unwrap().tag, b'G');
    wire.send(&frontend::copy_fail("no more")).await.unwrap();
    wire.expect_error("57014").await;
    wire.read_until_ready().await.unwrap();
    wire.send(&frontend::query("COPY t TO STDOUT")).await.unwrap();
    let messages = wire.read_until_ready().await.unwrap();
    let data: Vec<u8> = messages.into_iter().filter(|m| m.tag == b'd').flat_map(|m| m.payload).collect();
    assert_eq!(data, b"1\n2\n");
}

#[tokio::test]
async fn the_wire_client_cancels_and_negotiates() {
    let postgres = start().await;
    let mut wire = superuser(&postgres).await;
    wire.send(&frontend::query("SELECT pg_sleep(60)")).await.unwrap();
    assert!(wire.is_silent(Duration::from_millis(50)).await);
    cancel(postgres.address(), wire.key.as_ref().unwrap()).await.unwrap();
    let messages = wire.read_until_ready().await.unwrap();
    assert!(messages.iter().any(|m| m.tag == b'E' && m.error().sqlstate() == "57014"), "{messages:?}");

    let mut wire = Wire::tcp(postgres.address()).await.unwrap();
    wire.send(&frontend::ssl_request()).await.unwrap();
    assert_eq!(wire.byte().await.unwrap(), b'N');
    let parameters = [("user", "probe"), ("database", "postgres"), ("_pq_.unknown", "1")];
    wire.login_with(frontend::V3_2, &parameters, "probe").await.unwrap();
    assert_eq!(wire.negotiated.unwrap().1, ["_pq_.unknown"]);
}

#[tokio::test]
async fn a_link_with_every_fault() {
    let postgres = start().await;
    let link = FaultyLink::start(postgres.address()).await.unwrap();
    let mut wire = superuser_at(&postgres, link.address()).await;

    link.set(Fault::Latency(Duration::from_millis(50))).await;
    let begin = Instant::now();
    wire.query("SELECT 1").await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(100));

    link.set(Fault::BlackHole).await;
    let mut late = Wire::tcp(link.address()).await.unwrap();
    late.send(&frontend::ssl_request()).await.unwrap();
    wire.send(&frontend::query("SELECT 2")).await.unwrap();
    assert!(wire.is_silent(Duration::from_millis(100)).await);
    link.set(Fault::None).await;
    assert_eq!(late.byte().await.unwrap(), b'N');
    let messages = wire.read_until_ready().await.unwrap();
    assert_eq!(messages[1].row(), [Some("2".to_owned())]);

    link.set(Fault::Refuse).await;
    let refused = Wire::tcp(link.address()).await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    wire.query("SELECT 3").await.unwrap();
    link.set(Fault::None).await;
    superuser_at(&postgres, link.address()).await;

    link.close();
    assert!(wire.is_closed().await);

    // 20 bytes of StartupMessage; the answer, 24 bytes of AuthenticationSASL, does not come whole.
    link.set(Fault::CutAfter(40)).await;
    let mut wire = Wire::tcp(link.address()).await.unwrap();
    wire.send(&frontend::startup(frontend::V3_0, &[("user", "probe")])).await.unwrap();
    let cut = wire.read().await.unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn tenants_share_an_instance_and_reach_only_their_own() {
    let postgres = start().await;
    let mut tenants = Vec::new();
    for name in ["acme", "globex"] {
        tenants.push(onboard(&postgres, &Order::shared(name, "one")).await.unwrap());
    }
    for tenant in &tenants {
        let password = tenant.password.expose_secret();
        let mut wire = Wire::tcp(postgres.address()).await.unwrap();
        wire.login(&tenant.role, &tenant.database, password).await.unwrap();
        assert_eq!(wire.query("SELECT tenant FROM marker").await.unwrap(), [[Some(tenant.tenant.clone())]]);
        wire.query("CREATE TABLE own (x int); DROP TABLE own").await.unwrap();
        assert_eq!(wire.query("DELETE FROM marker").await.unwrap_err().sqlstate(), "42501");
    }
    let password = tenants[0].password.expose_secret();
    let mut wire = Wire::tcp(postgres.address()).await.unwrap();
    assert_eq!(wire.login("acme", "globex", password).await.unwrap_err().sqlstate(), "42501");
}

#[tokio::test]
async fn the_proxys_files() {
    let postgres = start().await;
    let ca = DevCa::new().unwrap();
    let tenant = onboard(&postgres, &Order::alone("acme", "one")).await.unwrap();
    let files = ProxyFiles::new()
        .set("pool.queue_timeout", "2s")
        .instance("one", &postgres)
        .certificate(&ca, &["*.db.localhost"])
        .tenant(&tenant);
    write_pair(&files.dir().join("client"), "app", &ca.client("app").unwrap()).unwrap();
    let proxy: toml::Table = std::fs::read_to_string(files.write()).unwrap().parse().unwrap();
    assert_eq!(proxy["pool"]["queue_timeout"].as_str(), Some("2s"));
    assert_eq!(proxy["instances"]["one"]["port"].as_integer(), Some(postgres.port().into()));
    assert_eq!(proxy["tls"]["mode"].as_str(), Some("required"));
    assert!(files.dir().join("certs/_wildcard.db.localhost.crt").exists());
    let pool_mode = || {
        let text = std::fs::read_to_string(files.tenants_dir().join("acme.toml")).unwrap();
        text.parse::<toml::Table>().unwrap()["pool"].get("mode").cloned()
    };
    assert_eq!(pool_mode(), None);
    files.rewrite_tenant(&tenant, &[("pool.mode", "session".into())]);
    assert_eq!(pool_mode(), Some("session".into()));
}

/// A superuser's session over TCP, where a password is asked for.
async fn superuser(postgres: &Postgres) -> Wire {
    superuser_at(postgres, postgres.address()).await
}

async fn superuser_at(postgres: &Postgres, address: std::net::SocketAddr) -> Wire {
    let role = "DO $$ BEGIN CREATE ROLE probe SUPERUSER LOGIN PASSWORD 'probe';
                EXCEPTION WHEN duplicate_object THEN NULL; END $$";
    postgres.sql("postgres", role).await.unwrap();
    let mut wire = Wire::tcp(address).await.unwrap();
    wire.login("probe", "postgres", "probe").await.unwrap();
    wire
}

fn process_exists(pid: u32) -> bool {
    // A zombie, which nobody may ever reap in a container, has ended.
    std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')))
}
