//! Each quota hit once through psycopg and JDBC: the error as the driver shows it, and the connection used again.

use std::path::{Path, PathBuf};

use secrecy::ExposeSecret;
use tokio::process::Command;
use toml::Value;

use crate::harness::postgres;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::scene::tenant;

/// What every quota is set to; each has a tenant of its own.
fn quotas() -> Vec<(&'static str, Value)> {
    vec![
        ("max_clients", 1.into()),
        ("max_transactions", 1.into()),
        ("transactions_per_second", 1.into()),
        ("bytes_per_second", "1MiB".into()),
        ("backend_seconds_per_minute", 1.into()),
        ("max_result", "64KiB".into()),
        ("query_timeout", "300ms".into()),
        ("transaction_timeout", "300ms".into()),
        ("idle_in_transaction_timeout", "300ms".into()),
        ("idle_session_timeout", "300ms".into()),
    ]
}

/// Runs a program of tests/drivers; skipped where `tests/drivers/setup.sh` has not prepared its driver.
async fn run(driver: &str, program: impl FnOnce(&Path, &Path) -> Command) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers");
    let folder = std::env::var_os("PGT_DRIVERS_DIR").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/drivers"));
    if !folder.join(format!("{driver}.ready")).exists() {
        assert!(std::env::var_os("PGT_NO_SKIP").is_none_or(|value| value != "1"), "{driver} is not set up");
        eprintln!("skipped: {driver} is not set up");
        return;
    }
    let instance = postgres::start().await;
    let (mut files, mut lines) = (ProxyFiles::new().instance("one", &instance), Vec::new());
    // Some drivers have statements of their own when they connect.
    let further = [("quota.delay_max", Value::from("0s")), ("quota.transactions_burst", 5.into())];
    for (quota, limit) in quotas() {
        let acme = tenant(&instance, &quota.replace('_', "-")).await;
        let key = format!("quota.{quota}");
        files = files.tenant_with(&acme, &[&[(key.as_str(), limit)], &further[..]].concat());
        let password = acme.password.expose_secret();
        lines.push(format!("{quota} {}.{} {password} {}", acme.role, acme.tenant, acme.database));
    }
    let proxy = Proxy::start(files).await;
    let mut command = program(&tests, &folder);
    command.env("PGT_PORT", proxy.address().port().to_string()).env("PGT_QUOTAS", lines.join("\n"));
    command.env("PYTHONDONTWRITEBYTECODE", "1").kill_on_drop(true);
    let output = command.output().await.expect("the driver was set up");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for (quota, _) in quotas() {
        assert!(said.lines().any(|line| line == format!("ok {quota}")), "{quota}:\n{said}");
    }
}

#[tokio::test]
async fn psycopg() {
    run("psycopg", |tests, folder| {
        let mut command = Command::new(folder.join("venv/bin/python"));
        command.arg(tests.join("python/psycopg_quotas.py"));
        command
    })
    .await;
}

#[tokio::test]
async fn jdbc() {
    run("jdbc", |tests, folder| {
        let mut command = Command::new("java");
        let options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"];
        command.args(options).arg(folder.join("java/postgresql.jar")).arg(tests.join("java/Quotas.java"));
        command
    })
    .await;
}
