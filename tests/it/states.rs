//! Tenants' states: what clients notice that are connected, and those that come.

use std::time::{Duration, Instant};

use secrecy::ExposeSecret;
use tokio::process::Command;

use crate::eventually;
use crate::harness::frontend::{bind, execute, parse, query, sync};
use crate::harness::stage::{Changes, Stage, add_role, client_as};
use crate::harness::wire::{ErrorResponse, Wire, tags};

fn reload(stage: &Stage, changes: Changes<'_>) {
    stage.proxy.files.rewrite_tenant(&stage.tenant, changes);
    stage.proxy.reload().unwrap();
}

async fn log_in(stage: &Stage) -> Result<Wire, ErrorResponse> {
    let mut wire = Wire::tcp(stage.proxy.address()).await.unwrap();
    let user = format!("{}.{}", stage.tenant.role, stage.tenant.tenant);
    let password = stage.tenant.password.expose_secret();
    wire.login(&user, &stage.tenant.database, password).await.map(|()| wire)
}

#[tokio::test]
async fn clients_of_a_paused_tenant_wait_between_transactions() {
    for mode in ["transaction", "session"] {
        let mode = ("pool.mode", mode.into());
        let stage = Stage::new(std::slice::from_ref(&mode)).await;
        let (mut idle, mut open, mut pinned) = (stage.client().await, stage.client().await, stage.client().await);
        pinned.query("CREATE TEMP TABLE mine AS SELECT 7 AS x").await.unwrap();
        idle.query("SELECT 1").await.unwrap();
        open.query("BEGIN; SELECT 1").await.unwrap();
        let paused = [("state", "paused".into()), ("quota.notice_after", "200ms".into()), mode.clone()];
        reload(&stage, &paused);
        assert_eq!(open.value("SELECT 1").await, "1", "a transaction goes on");
        open.query("COMMIT").await.unwrap();
        for wire in [&mut idle, &mut open, &mut pinned] {
            wire.send(&query("SELECT 2")).await.unwrap();
            let notice = wire.read().await.unwrap();
            assert_eq!((notice.tag, notice.error().message()), (b'N', "still waiting: the tenant is paused"));
        }
        let login = log_in(&stage);
        tokio::pin!(login);
        assert!(tokio::time::timeout(Duration::from_millis(300), &mut login).await.is_err(), "new ones wait as well");
        reload(&stage, &[mode]);
        for wire in [&mut idle, &mut open, &mut pinned] {
            assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "TDCZ");
        }
        assert_eq!(login.await.unwrap().value("SELECT 3").await, "3");
        assert_eq!(pinned.value("SELECT x FROM mine").await, "7");
    }
}

#[tokio::test]
async fn nobody_waits_longer_than_the_hold_limit() {
    let stage = Stage::new(&[]).await;
    let mut wire = stage.client().await;
    let reason = ("state_reason", "moving house".into());
    reload(&stage, &[("state", "paused".into()), ("quota.pause_max", "300ms".into()), reason]);
    wire.send(&query("SELECT 1")).await.unwrap();
    let error = wire.expect_error("57P03").await;
    assert_eq!((error.severity(), error.message()), ("FATAL", "tenant \"acme\" is paused"));
    assert_eq!(error.fields[&'D'], "moving house");
    assert!(wire.is_closed().await);
    let error = log_in(&stage).await.map(drop).unwrap_err();
    assert_eq!((error.severity(), error.sqlstate()), ("FATAL", "57P03"));
}

#[tokio::test]
async fn a_suspended_tenants_clients_are_told_why() {
    let stage = Stage::new(&[]).await;
    let (mut idle, mut open) = (stage.client().await, stage.client().await);
    open.query("BEGIN; SELECT 1").await.unwrap();
    reload(&stage, &[("state", "suspended".into()), ("state_reason", "payment is due".into())]);
    let told = |error: ErrorResponse| {
        assert_eq!((error.severity(), error.sqlstate()), ("FATAL", "57P03"));
        assert_eq!(error.message(), "tenant \"acme\" is suspended");
        assert_eq!(error.fields[&'D'], "payment is due");
    };
    told(idle.expect_error("57P03").await);
    assert_eq!(open.value("SELECT 1").await, "1");
    open.query("COMMIT").await.unwrap();
    told(open.expect_error("57P03").await);
    told(log_in(&stage).await.map(drop).unwrap_err());
    let mut wrong = Wire::tcp(stage.proxy.address()).await.unwrap();
    let error = wrong.login("app.acme", "app", "wrong").await.unwrap_err();
    assert_eq!(error.sqlstate(), "28P01", "only who has proved itself is told");
    eventually!(stage.backends().await == 0);
}

#[tokio::test]
async fn chosen_roles_work_during_maintenance() {
    let stage = Stage::new(&[]).await;
    let verifier = add_role(&stage.postgres, &stage.tenant, "batch", "").await;
    let role = ("roles.batch.verifier", verifier.into());
    reload(&stage, std::slice::from_ref(&role));
    let address = stage.proxy.address();
    let (mut app, mut batch) = (stage.client().await, client_as(address, &stage.tenant, "batch").await);
    let chosen = ("maintenance_roles", vec!["batch"].into());
    reload(&stage, &[("state", "maintenance".into()), chosen, role]);
    assert_eq!(app.expect_error("57P03").await.message(), "tenant \"acme\" is under maintenance");
    assert!(log_in(&stage).await.is_err());
    assert_eq!(batch.value("SELECT 1").await, "1");
    assert_eq!(client_as(address, &stage.tenant, "batch").await.value("SELECT 2").await, "2");
}

/// What would take a session out of read-only mode, each followed by what would write.
const WAYS_OUT: &[&[&str]] = &[
    &["INSERT INTO t VALUES (1)"],
    &["SET default_transaction_read_only = off", "INSERT INTO t VALUES (1)"],
    &["SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE", "INSERT INTO t VALUES (1)"],
    &["BEGIN READ WRITE", "INSERT INTO t VALUES (1)", "COMMIT"],
    &["BEGIN", "SET TRANSACTION READ WRITE", "INSERT INTO t VALUES (1)", "COMMIT"],
    &["BEGIN", "SET transaction_read_only = off", "INSERT INTO t VALUES (1)", "COMMIT"],
    &["SELECT set_config('default_transaction_read_only', 'off', false)", "INSERT INTO t VALUES (1)"],
    &["SELECT free_me()", "INSERT INTO t VALUES (1)"],
    &["SELECT 1; COMMIT; INSERT INTO t VALUES (1)"],
    &["BEGIN; SELECT 1; COMMIT", "INSERT INTO t VALUES (1)"],
    &["RESET ALL", "INSERT INTO t VALUES (1)"],
    &["DISCARD ALL", "INSERT INTO t VALUES (1)"],
    &["CALL free_and_write()"],
    &["DO $$BEGIN EXECUTE 'CA' || 'LL free_and_write()'; END$$"],
];

/// The same, sent at once: nobody waits for an answer.
const WAYS_OUT_AT_ONCE: &[&[&str]] = &[
    &["RESET ALL", "INSERT INTO t VALUES (1)"],
    &["DISCARD ALL", "INSERT INTO t VALUES (1)"],
    &["SELECT free_me()", "INSERT INTO t VALUES (1)"],
    &["BEGIN", "SELECT free_me()", "COMMIT", "INSERT INTO t VALUES (1)"],
];

async fn count(stage: &Stage) -> String {
    stage.sql("SELECT count(*) FROM t").await[0][0].clone().unwrap()
}

#[tokio::test]
async fn a_read_only_tenant_reads() {
    for mode in ["transaction", "session"] {
        let mode = ("pool.mode", mode.into());
        let stage = Stage::new(std::slice::from_ref(&mode)).await;
        let (mut wire, mut open, mut pinned) = (stage.client().await, stage.client().await, stage.client().await);
        stage
            .sql(
                "CREATE TABLE t (x int); GRANT ALL ON t TO PUBLIC; CREATE FUNCTION free_me() RETURNS text LANGUAGE sql AS \
                 $$SELECT set_config('default_transaction_' || 'read_only', 'off', false)$$; \
                 CREATE PROCEDURE free_and_write() LANGUAGE plpgsql AS \
                 $$BEGIN PERFORM free_me(); COMMIT; INSERT INTO t VALUES (1); END$$",
            )
            .await;
        pinned.query("CREATE TEMP TABLE mine (x int)").await.unwrap();
        open.query("BEGIN; INSERT INTO t VALUES (0)").await.unwrap();
        wire.exchange(&[parse("begin", "BEGIN READ WRITE"), sync()]).await;
        reload(&stage, &[("state", "read-only".into()), ("state_reason", "the disk is full".into()), mode.clone()]);
        // What has begun may end.
        open.query("INSERT INTO t VALUES (0)").await.unwrap();
        open.query("COMMIT").await.unwrap();
        // In session mode the proxy has not seen what was prepared before.
        if mode.1.as_str() == Some("transaction") {
            let answer = wire.exchange(&[bind("", "begin", &[]), execute("", 0), sync()]).await;
            let error = answer.iter().find(|message| message.tag == b'E').unwrap().error();
            assert_eq!((error.sqlstate(), tags(&answer).contains('2')), ("25006", false));
        }
        for wire in [&mut wire, &mut open, &mut pinned] {
            assert_eq!(wire.value("SELECT 1").await, "1");
            let error = wire.query("INSERT INTO t VALUES (1)").await.unwrap_err();
            assert_eq!((error.severity(), error.sqlstate()), ("ERROR", "25006"));
            assert_eq!(error.fields[&'D'], "The tenant \"acme\" is read-only: the disk is full.");
            for texts in WAYS_OUT {
                for text in *texts {
                    let _ = wire.query(text).await;
                }
                let _ = wire.query("ROLLBACK").await;
                let prepared = texts.iter().filter(|text| !text.contains(';'));
                for text in prepared {
                    wire.exchange(&[parse("", text), bind("", "", &[]), execute("", 0), sync()]).await;
                }
                let _ = wire.query("ROLLBACK").await;
                assert_eq!(count(&stage).await, "2", "{texts:?}");
            }
            assert_eq!(wire.failure("SET default_transaction_read_only = off").await, "25006");
            let answer =
                wire.exchange(&[parse("", "BEGIN READ WRITE"), bind("", "", &[]), execute("", 0), sync()]).await;
            assert_eq!((tags(&answer).as_str(), answer[0].error().sqlstate()), ("EZ", "25006"));
        }
        for wire in [&mut wire, &mut pinned] {
            for texts in WAYS_OUT_AT_ONCE {
                let simple = texts.iter().map(|text| query(text)).collect::<Vec<_>>();
                let runs = |text: &&str| [parse("", text), bind("", "", &[]), execute("", 0)].concat();
                let extended = texts.iter().map(|text| [runs(text), sync()].concat()).collect::<Vec<_>>();
                for messages in [simple, extended] {
                    wire.send(&messages.concat()).await.unwrap();
                    for _ in texts.iter() {
                        wire.read_until_ready().await.unwrap();
                    }
                    assert_eq!(count(&stage).await, "2", "{texts:?}");
                }
                let batch = texts.iter().map(runs).collect::<Vec<_>>().concat();
                wire.exchange(&[batch, sync()]).await;
                let _ = wire.query("ROLLBACK").await;
                assert_eq!(count(&stage).await, "2", "{texts:?} in one batch");
            }
            let padded = format!("SET default_transaction_read_only = off --{}", "x".repeat(200_000));
            assert_eq!(wire.failure(&padded).await, "25006");
            assert_eq!(wire.failure(&format!("SELECT 1 --{}", "x".repeat(2_000_000))).await, "25006");
            assert_eq!(wire.value(&format!("SELECT 1 --{}", "x".repeat(500_000))).await, "1");
            assert_eq!(wire.failure("BEGIN; CALL free_and_write(); COMMIT").await, "2D000", "cannot commit there");
            let _ = wire.query("ROLLBACK").await;
            assert_eq!(count(&stage).await, "2");
        }
        reload(&stage, &[mode]);
        for wire in [&mut wire, &mut open, &mut pinned] {
            wire.query("INSERT INTO t VALUES (3)").await.unwrap();
            assert_eq!(wire.value("SHOW default_transaction_read_only").await, "off");
            wire.query("RESET ALL").await.unwrap();
            wire.query("INSERT INTO t VALUES (3)").await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_command_sets_the_state_of_a_running_proxys_tenant() {
    let stage = Stage::new(&[]).await;
    let mut wire = stage.client().await;
    let config = stage.proxy.files.dir().join("proxy.toml");
    let tenant = async |action: &str, further: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
        command.args(["tenant", action, "acme", "--config"]).arg(&config).args(further);
        let output = command.output().await.unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (done, said) = tenant("suspend", &["--reason", "a test"]).await;
    let begun = Instant::now();
    assert!(done && said.starts_with("tenant acme: suspended ("), "{said}");
    let error = wire.expect_error("57P03").await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(error.fields[&'D'], "a test");
    assert!(tenant("activate", &[]).await.0);
    eventually!(log_in(&stage).await.is_ok());
    let record = std::fs::read_to_string(stage.proxy.files.tenants_dir().join("acme.toml")).unwrap();
    assert!(record.contains("state = \"active\"") && !record.contains("state_reason"), "{record}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
    command.args(["tenant", "pause", "nobody", "--config"]).arg(&config);
    let output = command.output().await.unwrap();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("there is no tenant"));
}
