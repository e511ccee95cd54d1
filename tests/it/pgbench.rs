//! pgbench through the proxy, by every protocol: many clients on few backends, no errors, never too many backends.

use std::process::Output;

use secrecy::ExposeSecret;
use tokio::process::Command;

use crate::harness::stage::{Census, Stage};

const CLIENTS: &str = "60";
const SECONDS: &str = "5";

fn pgbench(stage: &Stage) -> Command {
    let mut command = Command::new(stage.postgres.bin_dir().join("pgbench"));
    command.env("PGPASSWORD", stage.tenant.password.expose_secret());
    command.args(["-h", "127.0.0.1", "-U", "app.acme"]);
    command.args(["-p", &stage.proxy.address().port().to_string()]);
    command.kill_on_drop(true);
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

async fn run(protocol: &str, script: &[&str]) {
    let stage = Stage::new(&[("pool.max_backends", 5.into())]).await;
    let filled = pgbench(&stage).args(["-i", "-s", "1", "-q", "app"]).output().await.unwrap();
    assert!(filled.status.success(), "{}", text(&filled));
    let census = Census::begin(&stage.postgres, "usename = 'app'").await;
    let mut command = pgbench(&stage);
    command.args(["-n", "-c", CLIENTS, "-j", "2", "-T", SECONDS, "-M", protocol]).args(script).arg("app");
    let output = command.output().await.unwrap();
    let report = text(&output);
    assert!(output.status.success(), "{report}");
    assert!(report.contains("number of failed transactions: 0 (0.000%)"), "{report}");
    assert!(!report.contains("error") && !report.contains("aborted"), "{report}");
    assert_eq!(census.most(), 5);
    assert_eq!(stage.proxy.metric("pgtenant_errors_total").await, 0.0);
    // Every account's change is in the history: nothing was lost or done twice.
    let sums =
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";
    assert_eq!(stage.sql(sums).await[0][0].as_deref(), Some("t"));
}

#[tokio::test]
async fn simple() {
    run("simple", &[]).await;
}

#[tokio::test]
async fn extended() {
    run("extended", &[]).await;
}

#[tokio::test]
async fn prepared() {
    run("prepared", &[]).await;
}

#[tokio::test]
async fn prepared_without_transaction_blocks() {
    run("prepared", &["-S"]).await;
}
