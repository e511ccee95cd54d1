//! Quotas on counts, rates and sizes: each hit once, with the error as it is on the wire, and the session used again.

use std::time::{Duration, Instant};

use secrecy::ExposeSecret;
use toml::Value;

use crate::eventually;
use crate::harness::frontend::{bind, describe_portal, execute, parse, query, sync};
use crate::harness::stage::{Changes, Stage};
use crate::harness::wire::{ErrorResponse, Message, Wire, cancel, sqlstates, tags};

fn field(error: &ErrorResponse, field: char) -> &str {
    error.fields.get(&field).map_or("", String::as_str)
}

fn reload(stage: &Stage, changes: Changes<'_>) {
    stage.proxy.files.rewrite_tenant(&stage.tenant, changes);
    stage.proxy.reload().unwrap();
}

async fn try_client(stage: &Stage, password: &str) -> Result<Wire, ErrorResponse> {
    let mut wire = Wire::tcp(stage.proxy.address()).await.unwrap();
    let user = format!("{}.{}", stage.tenant.role, stage.tenant.tenant);
    wire.login(&user, &stage.tenant.database, password).await.map(|()| wire)
}

/// A statement in the extended protocol, with something behind it that has to be passed over after an error.
async fn extended(wire: &mut Wire, sql: &str) -> Vec<Message> {
    let messages = [parse("", sql), bind("", "", &[]), describe_portal(""), execute("", 0), sync()];
    wire.exchange(&messages).await
}

/// The error of a statement that is refused with `quota`, in either protocol; the session is ready again.
async fn refused(wire: &mut Wire, quota: &str) -> ErrorResponse {
    let answer = extended(wire, "SELECT 1").await;
    assert_eq!(tags(&answer), "EZ", "{answer:?}");
    assert_eq!(answer[1].status(), 'I');
    wire.send(&query("SELECT 1")).await.unwrap();
    let answer = wire.read_until_ready().await.unwrap();
    assert_eq!((tags(&answer).as_str(), answer[1].status()), ("EZ", 'I'));
    let error = answer[0].error();
    assert_eq!((error.severity(), error.sqlstate()), ("ERROR", "53400"));
    assert_eq!(error.message(), format!("tenant quota exceeded: {quota}"));
    assert!(field(&error, 'D').contains("of tenant \"acme\": limit "), "{error:?}");
    assert!(field(&error, 'H').starts_with("Try again "), "{error:?}");
    error
}

fn changes<'a>(pairs: &[(&'a str, Value)]) -> Vec<(&'a str, Value)> {
    [&[("quota.delay_max", "0s".into())], pairs].concat()
}

#[tokio::test]
async fn max_clients_is_told_only_to_who_has_proved_itself() {
    let stage = Stage::new(&[("quota.max_clients", 1.into())]).await;
    let password = stage.tenant.password.expose_secret().to_owned();
    let mut first = stage.client().await;
    let error = try_client(&stage, &password).await.map(drop).unwrap_err();
    assert_eq!((error.severity(), error.sqlstate()), ("FATAL", "53300"));
    assert_eq!(field(&error, 'D'), "Quota max_clients of tenant \"acme\": limit 1, in use 1.");
    assert_eq!(try_client(&stage, "wrong").await.map(drop).unwrap_err().sqlstate(), "28P01");
    assert_eq!(first.value("SELECT 1").await, "1");
    reload(&stage, &[("quota.max_clients", 2.into())]);
    let second = try_client(&stage, &password).await.unwrap();
    assert!(try_client(&stage, &password).await.is_err());
    // Below what there is: who is in stays.
    reload(&stage, &[("quota.max_clients", 1.into())]);
    drop(second);
    eventually!(stage.proxy.metric("pgtenant_tenant_clients{").await == 1.0);
    assert!(try_client(&stage, &password).await.is_err());
    assert_eq!(first.value("SELECT 1").await, "1");
    drop(first);
    eventually!(try_client(&stage, &password).await.is_ok());
}

#[tokio::test]
async fn transactions_at_a_time() {
    let stage = Stage::new(&changes(&[("quota.max_transactions", 1.into())])).await;
    let (mut one, mut other) = (stage.client().await, stage.client().await);
    one.query("BEGIN").await.unwrap();
    let error = refused(&mut other, "max_transactions").await;
    assert!(field(&error, 'D').ends_with("limit 1, in use 1."), "{error:?}");
    // At its BEGIN, and never within a transaction.
    assert_eq!(other.failure("BEGIN").await, "53400");
    one.query("SELECT 1").await.unwrap();
    one.query("COMMIT").await.unwrap();
    assert_eq!(other.value("SELECT 1").await, "1");
    // With a delay, whoever waits comes next.
    reload(&stage, &[("quota.max_transactions", 1.into()), ("quota.delay_max", "10s".into())]);
    one.query("BEGIN; SELECT 1").await.unwrap();
    other.send(&query("SELECT 2")).await.unwrap();
    assert!(other.is_silent(Duration::from_millis(200)).await);
    one.query("COMMIT").await.unwrap();
    assert_eq!(tags(&other.read_until_ready().await.unwrap()), "TDCZ");
    // The wait can be cancelled.
    one.query("BEGIN; SELECT 1").await.unwrap();
    other.send(&query("SELECT 3")).await.unwrap();
    assert!(other.is_silent(Duration::from_millis(100)).await);
    cancel(stage.proxy.address(), other.key.as_ref().unwrap()).await.unwrap();
    assert_eq!(sqlstates(&other.read_until_ready().await.unwrap()), ["57014"]);
    // No limit any more, for clients that are here already.
    reload(&stage, &[]);
    assert_eq!(other.value("SELECT 4").await, "4");
    one.query("COMMIT").await.unwrap();
}

#[tokio::test]
async fn transactions_per_second_are_delayed_and_then_refused() {
    let limit = [("quota.transactions_per_second", 2.into()), ("quota.transactions_burst", 2.into())];
    let stage = Stage::new(&changes(&limit)).await;
    let mut wire = stage.client().await;
    wire.query("BEGIN; SELECT 1").await.unwrap();
    wire.query("SELECT 2").await.unwrap();
    wire.query("COMMIT").await.unwrap();
    wire.query("SELECT 3").await.unwrap();
    let error = wire.query("SELECT 4").await.unwrap_err();
    assert_eq!((error.sqlstate(), error.message()), ("53400", "tenant quota exceeded: transactions_per_second"));
    assert!(field(&error, 'H').starts_with("Try again in ") && field(&error, 'H').ends_with(" s."), "{error:?}");
    reload(&stage, &[&limit[..], &[("quota.delay_max", "5s".into())]].concat());
    let begun = Instant::now();
    for _ in 0..4 {
        wire.query("SELECT 4").await.unwrap();
    }
    assert!(begun.elapsed() > Duration::from_millis(1000), "four take two seconds less a burst: {:?}", begun.elapsed());
    // Several in one message count as what they are.
    let pipelined = query("SELECT 5").repeat(20);
    wire.send(&pipelined).await.unwrap();
    for _ in 0..20 {
        wire.read_until_ready().await.unwrap();
    }
    reload(&stage, &changes(&limit));
    refused(&mut wire, "transactions_per_second").await;
    reload(&stage, &[]);
    assert_eq!(wire.value("SELECT 6").await, "6");
}

#[tokio::test]
async fn bytes_and_backend_time_are_paid_for_afterwards() {
    let bytes = changes(&[("quota.bytes_per_second", "10KiB".into())]);
    let stage = Stage::new(&bytes).await;
    let mut wire = stage.client().await;
    wire.query("BEGIN").await.unwrap();
    for _ in 0..2 {
        wire.query("SELECT repeat('x', 100000)").await.unwrap();
    }
    wire.query("COMMIT").await.unwrap();
    refused(&mut wire, "bytes_per_second").await;
    reload(&stage, &changes(&[("quota.backend_seconds_per_minute", 1.into())]));
    wire.query("SELECT pg_sleep(1.2)").await.unwrap();
    refused(&mut wire, "backend_seconds_per_minute").await;
    reload(&stage, &[("quota.backend_seconds_per_minute", 60.into()), ("quota.delay_max", "5s".into())]);
    assert_eq!(wire.value("SELECT 1").await, "1");
}

const MANY: &str = "SELECT repeat('x', 1000) FROM generate_series(1, 100000)";

/// What the answer to something too large has to be.
fn cut(answer: &[Message], begins: &str, status: char) {
    let all = tags(answer);
    let rows = all.matches(['D', 'd']).count();
    assert!(
        all.starts_with(begins) && all.ends_with("EZ") && all.matches(['E', 'C']).count() == 1,
        "{begins}: {rows} rows"
    );
    assert!(rows < 100, "{rows} rows of a kilobyte are beyond 64 KiB");
    let error = answer[answer.len() - 2].error();
    assert_eq!((error.severity(), error.sqlstate()), ("ERROR", "53400"));
    assert_eq!(error.message(), "tenant quota exceeded: max_result");
    assert_eq!(answer.last().unwrap().status(), status);
}

async fn simple(wire: &mut Wire, sql: &str) -> Vec<Message> {
    wire.send(&query(sql)).await.unwrap();
    wire.read_until_ready().await.unwrap()
}

#[tokio::test]
async fn results_have_a_bound() {
    let stage = Stage::new(&[("quota.max_result", "64KiB".into())]).await;
    let mut wire = stage.client().await;
    cut(&simple(&mut wire, MANY).await, "TDDD", 'I');
    assert_eq!(wire.value("SELECT 1").await, "1");
    cut(&extended(&mut wire, MANY).await, "12TDDD", 'I');
    cut(&simple(&mut wire, &format!("COPY ({MANY}) TO STDOUT")).await, "Hddd", 'I');
    assert_eq!(wire.value("SELECT 2").await, "2");
    // Those that are over before a cancel request can hit them.
    let few = MANY.replace("100000", "70");
    for _ in 0..20 {
        cut(&simple(&mut wire, &few).await, "TDDD", 'I');
        cut(&extended(&mut wire, &few).await, "12TDDD", 'I');
        assert_eq!(wire.value("SELECT 3").await, "3", "no cancel request comes too late");
    }
    // An open transaction fails, as it would by PostgreSQL's own error.
    for sql in [MANY, &few] {
        wire.query("BEGIN; CREATE TEMP TABLE t (x int) ON COMMIT DROP").await.unwrap();
        cut(&simple(&mut wire, sql).await, "TDDD", 'E');
        assert_eq!(wire.failure("SELECT 1").await, "25P02");
        assert_eq!(tags(&simple(&mut wire, "COMMIT").await), "CZ");
        assert_eq!(wire.value("SELECT to_regclass('t') IS NULL").await, "t");
    }
    // Each answer has its own size: by portions, everything can be had.
    wire.query(&format!("BEGIN; DECLARE c CURSOR FOR {few}")).await.unwrap();
    for _ in 0..7 {
        assert_eq!(wire.query("FETCH 10 FROM c").await.unwrap().len(), 10);
    }
    wire.query("COMMIT").await.unwrap();
    assert!(stage.proxy.metric("pgtenant_tenant_queries_total{").await > 0.0);
    reload(&stage, &[]);
    assert_eq!(wire.query(&few).await.unwrap().len(), 70);
}

#[tokio::test]
async fn session_mode_has_the_same_quotas_between_transactions() {
    let limit = [("quota.bytes_per_second", "1KiB".into())];
    let session = [("pool.mode", "session".into()), ("quota.delay_max", "0s".into())];
    let stage = Stage::new(&[&session[..], &limit].concat()).await;
    let mut wire = stage.client().await;
    wire.query("CREATE TEMP TABLE mine AS SELECT 7 AS x").await.unwrap();
    wire.query("BEGIN").await.unwrap();
    for _ in 0..5 {
        wire.query("SELECT repeat('x', 20000)").await.unwrap();
    }
    wire.query("COMMIT").await.unwrap();
    refused(&mut wire, "bytes_per_second").await;
    reload(&stage, &[&session[..], &[("quota.max_result", "64KiB".into())]].concat());
    assert_eq!(wire.value("SELECT x FROM mine").await, "7", "still its own backend");
    cut(&simple(&mut wire, MANY).await, "TDDD", 'I');
    cut(&simple(&mut wire, &MANY.replace("100000", "70")).await, "TDDD", 'I');
    // Places are given back between transactions.
    reload(&stage, &[&session[..], &[("quota.max_transactions", 1.into())]].concat());
    let mut other = stage.client().await;
    wire.query("BEGIN; SELECT 1").await.unwrap();
    refused(&mut other, "max_transactions").await;
    wire.query("COMMIT").await.unwrap();
    eventually!(other.query("SELECT 1").await.is_ok());
    eventually!(wire.query("SELECT 1").await.is_ok());
}

#[tokio::test]
async fn pinned_sessions_have_the_same_quotas_between_transactions() {
    let stage = Stage::new(&changes(&[])).await;
    let mut wire = stage.client().await;
    wire.query("CREATE TEMP TABLE mine AS SELECT 7 AS x").await.unwrap();
    reload(&stage, &changes(&[("quota.bytes_per_second", "1KiB".into())]));
    wire.query("BEGIN; SELECT repeat('x', 100000)").await.unwrap();
    assert_eq!(wire.value("SELECT x FROM mine").await, "7");
    wire.query("COMMIT").await.unwrap();
    refused(&mut wire, "bytes_per_second").await;
    reload(&stage, &[]);
    assert_eq!(wire.value("SELECT x FROM mine").await, "7");
}

#[tokio::test]
async fn a_client_that_waits_is_told_once() {
    let stage = Stage::new(&[("pool.max_backends", 1.into()), ("quota.notice_after", "200ms".into())]).await;
    let (mut one, mut other) = (stage.client().await, stage.client().await);
    one.query("BEGIN; SELECT 1").await.unwrap();
    other.send(&query("SELECT 2")).await.unwrap();
    let notice = other.read().await.unwrap();
    assert_eq!(notice.tag, b'N');
    let notice = notice.error();
    assert_eq!((notice.severity(), notice.message()), ("NOTICE", "still waiting for a backend connection"));
    assert_eq!(field(&notice, 'D'), "The tenant may have 1 backends; 0 other clients of it wait.");
    one.query("COMMIT").await.unwrap();
    assert_eq!(tags(&other.read_until_ready().await.unwrap()), "TDCZ");
    assert_eq!(tags(&simple(&mut other, "SELECT 3").await), "TDCZ");
}
