//! Quotas on time: statements, transactions, and doing nothing.

use std::time::Duration;

use crate::harness::frontend::{bind, execute, parse, query, sync};
use crate::harness::stage::{Changes, Stage};
use crate::harness::wire::{Wire, tags};

fn reload(stage: &Stage, changes: Changes<'_>) {
    stage.proxy.files.rewrite_tenant(&stage.tenant, changes);
    stage.proxy.reload().unwrap();
}

async fn ended(wire: &mut Wire, sqlstate: &str, quota: &str) {
    let error = wire.expect_error(sqlstate).await;
    assert_eq!(error.severity(), "FATAL");
    assert_eq!(error.message(), format!("terminating connection due to the tenant's {quota}"));
    assert!(error.fields[&'D'].starts_with(&format!("Quota {quota}: limit 0.")), "{error:?}");
    assert!(wire.is_closed().await);
}

async fn a_statement_is_cancelled(stage: &Stage) {
    let mut wire = stage.client().await;
    for _ in 0..2 {
        let error = wire.query("SELECT pg_sleep(30)").await.unwrap_err();
        assert_eq!((error.severity(), error.sqlstate()), ("ERROR", "57014"));
        assert_eq!(error.message(), "canceling statement due to the tenant's query_timeout");
        assert_eq!(error.fields[&'D'], "Quota query_timeout: limit 0.3 s.");
        assert_eq!(wire.value("SELECT 1").await, "1");
    }
    let messages = [parse("", "SELECT pg_sleep(30)"), bind("", "", &[]), execute("", 0), sync()];
    let answer = wire.exchange(&messages).await;
    assert_eq!((tags(&answer).as_str(), answer[3].status()), ("12EZ", 'I'));
    // A transaction fails, and can be ended.
    wire.query("BEGIN; SELECT 1").await.unwrap();
    assert_eq!(wire.failure("SELECT pg_sleep(30)").await, "57014");
    assert_eq!(wire.failure("SELECT 1").await, "25P02");
    wire.query("ROLLBACK").await.unwrap();
    // Several short ones in a row are no long one; in one text they are, since PostgreSQL answers them together.
    let short = "SELECT pg_sleep(0.12)";
    assert_eq!(wire.failure(&[short; 4].join(";")).await, "57014");
    wire.send(&query(short).repeat(4)).await.unwrap();
    for _ in 0..4 {
        assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "TDCZ");
    }
}

#[tokio::test]
async fn a_long_statement_is_cancelled_in_every_pool_mode() {
    for mode in ["transaction", "session", "statement"] {
        let stage = Stage::new(&[("quota.query_timeout", "300ms".into()), ("pool.mode", mode.into())]).await;
        if mode != "statement" {
            a_statement_is_cancelled(&stage).await;
        } else {
            assert_eq!(stage.client().await.failure("SELECT pg_sleep(30)").await, "57014");
        }
    }
}

#[tokio::test]
async fn a_long_transaction_ends_its_session() {
    let stage = Stage::new(&[("quota.transaction_timeout", "400ms".into())]).await;
    let mut wire = stage.client().await;
    // A running statement, an idle transaction, one that is never idle for long.
    wire.send(&query("SELECT pg_sleep(30)")).await.unwrap();
    ended(&mut wire, "25P04", "transaction_timeout").await;
    let mut wire = stage.client().await;
    wire.query("BEGIN; SELECT 1").await.unwrap();
    ended(&mut wire, "25P04", "transaction_timeout").await;
    let mut wire = stage.client().await;
    wire.query("BEGIN").await.unwrap();
    wire.send(&query("SELECT pg_sleep(0.15)").repeat(6)).await.unwrap();
    let mut answers = String::new();
    loop {
        let message = wire.read().await.unwrap();
        answers.push(char::from(message.tag));
        if message.tag == b'E' {
            assert_eq!(message.error().sqlstate(), "25P04");
            break;
        }
    }
    assert!(answers.starts_with("TDCZTDCZ"), "{answers}");
    // Many short ones are fine.
    let mut wire = stage.client().await;
    for _ in 0..5 {
        wire.query("SELECT pg_sleep(0.12)").await.unwrap();
    }
    crate::eventually!(stage.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'").await.is_empty());
}

#[tokio::test]
async fn doing_nothing_in_a_transaction_ends_the_session() {
    for mode in ["transaction", "session"] {
        let limit = ("quota.idle_in_transaction_timeout", "300ms".into());
        let stage = Stage::new(&[limit, ("pool.mode", mode.into())]).await;
        for begin in ["BEGIN", "BEGIN; SELECT 1"] {
            let mut wire = stage.client().await;
            wire.query(begin).await.unwrap();
            wire.query("SELECT pg_sleep(0.5)").await.unwrap();
            ended(&mut wire, "25P03", "idle_in_transaction_timeout").await;
            let mut wire = stage.client().await;
            wire.query(begin).await.unwrap();
            ended(&mut wire, "25P03", "idle_in_transaction_timeout").await;
        }
        // Between transactions there is time.
        let mut wire = stage.client().await;
        wire.query("SELECT 1").await.unwrap();
        assert!(wire.is_silent(Duration::from_millis(500)).await);
    }
}

#[tokio::test]
async fn an_idle_session_ends_unless_it_listens_or_waits() {
    let limit = ("quota.idle_session_timeout", "400ms".into());
    let one = ("pool.max_backends", 2.into());
    let stage = Stage::new(&[limit, one]).await;
    let (mut idle, mut listening, mut open, mut waiting) =
        (stage.client().await, stage.client().await, stage.client().await, stage.client().await);
    listening.query("LISTEN news").await.unwrap();
    open.query("BEGIN; SELECT 1").await.unwrap();
    waiting.send(&query("SELECT 2")).await.unwrap();
    ended(&mut idle, "57P05", "idle_session_timeout").await;
    assert!(listening.is_silent(Duration::from_millis(600)).await);
    assert_eq!(open.value("SELECT 1").await, "1");
    open.query("COMMIT").await.unwrap();
    assert_eq!(tags(&waiting.read_until_ready().await.unwrap()), "TDCZ");
    ended(&mut waiting, "57P05", "idle_session_timeout").await;
}

#[tokio::test]
async fn limits_reach_sessions_that_are_idle_already() {
    for mode in ["transaction", "session"] {
        let mode = ("pool.mode", mode.into());
        let stage = Stage::new(std::slice::from_ref(&mode)).await;
        let (mut idle, mut open) = (stage.client().await, stage.client().await);
        idle.query("SELECT 1").await.unwrap();
        open.query("BEGIN; SELECT 1").await.unwrap();
        let limits = [
            ("quota.idle_session_timeout", "300ms".into()),
            ("quota.idle_in_transaction_timeout", "500ms".into()),
            mode,
        ];
        reload(&stage, &limits);
        ended(&mut idle, "57P05", "idle_session_timeout").await;
        ended(&mut open, "25P03", "idle_in_transaction_timeout").await;
    }
}
