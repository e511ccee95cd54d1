//! The driver programs of tests/drivers against the proxy, by every route, in transaction mode.

use std::path::{Path, PathBuf};

use pgtenant::cli::demo::certificates::DevCa;
use tokio::process::Command;

use crate::harness::proxy::Proxy;
use crate::harness::scene::{Scene, password};

/// Runs one driver's program; skipped, with the reason, where `tests/drivers/setup.sh` has not prepared it.
async fn run(driver: &str) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers");
    let folder = std::env::var_os("PGT_DRIVERS_DIR").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/drivers"));
    let required = std::env::var("PGT_NO_SKIP").is_ok_and(|value| value == "1");
    if !required && !folder.join(format!("{driver}.ready")).exists() {
        let reason = std::fs::read_to_string(folder.join(format!("{driver}.skipped")));
        eprintln!("skipped: {}", reason.unwrap_or_else(|_| "not set up: run tests/drivers/setup.sh".to_owned()).trim());
        return;
    }
    let (scene, ca) = (Scene::new().await, DevCa::new().expect("a CA"));
    let files = scene.files().certificate(&ca, &["acme.localhost", "localhost"]);
    let proxy = Proxy::start(files.set("routing.sni_domains", vec!["localhost"])).await;
    let ca_file = ca.write(proxy.files.dir()).expect("a file in the test's folder");
    let output = Command::new(tests.join("run.sh"))
        .arg(driver)
        .env("PGT_DRIVERS_DIR", &folder)
        .env("PGT_HOST", "acme.localhost")
        .env("PGT_PORT", proxy.address().port().to_string())
        .env("PGT_CA", ca_file)
        .env("PGT_USER", &scene.acme.role)
        .env("PGT_PASSWORD", password(&scene.acme))
        .env("PGT_DATABASE", &scene.acme.database)
        .env("PGT_TENANT", &scene.acme.tenant)
        .kill_on_drop(true)
        .output()
        .await
        .expect("bash is there");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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
