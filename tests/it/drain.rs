//! The orderly end: transactions finish, everybody is told, nothing is left behind.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::eventually;
use crate::harness::frontend::query;
use crate::harness::postgres;
use crate::harness::proxy::{ProxyFiles, http_get};
use crate::harness::serve::Served;
use crate::harness::stage::{Stage, backends, client, instance};
use crate::harness::wire::{Wire, sqlstates, tags};

async fn told_to_go(wire: &mut Wire) {
    let error = wire.expect_error("57P01").await;
    assert_eq!(error.severity(), "FATAL");
    assert!(wire.is_closed().await);
}

#[tokio::test]
async fn sigterm_lets_transactions_finish() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let files = ProxyFiles::new().set("listen.unix_socket_dir", "run").instance("one", &postgres);
    let files = files.tenant_with(&tenant, &[("pool.max_backends", 2.into())]);
    let run = files.dir().join("run");
    std::fs::create_dir(&run).unwrap();
    let mut served = Served::start(files).await;
    let socket = run.join(format!(".s.PGSQL.{}", served.address.port()));
    assert!(socket.exists());
    assert_eq!(http_get(served.http, "/readyz").await.0, 200);
    let (mut idle, mut open) = (client(served.address, &tenant).await, client(served.address, &tenant).await);
    let (mut asking, mut waiting) = (client(served.address, &tenant).await, client(served.address, &tenant).await);
    open.query("BEGIN; SELECT 1").await.unwrap();
    asking.send(&query("SELECT pg_sleep(1)")).await.unwrap();
    let asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    eventually!(postgres.sql("app", asleep).await.unwrap().len() == 1);
    waiting.send(&query("SELECT 'served'")).await.unwrap();
    eventually!(served.metric("pgtenant_tenant_clients_waiting{tenant=\"acme\"").await == 1.0);

    let begin = Instant::now();
    served.signal(libc::SIGTERM);
    told_to_go(&mut idle).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "idle sessions go at once");
    eventually!(Wire::tcp(served.address).await.is_err());
    assert!(Wire::unix(&socket).await.is_err());
    let (status, why) = http_get(served.http, "/readyz").await;
    assert!(status == 503 && why.contains("draining"), "{status} {why}");
    assert_eq!(http_get(served.http, "/healthz").await.0, 200);
    assert_eq!(served.metric("pgtenant_draining").await, 1.0);
    // A query that runs, a client that waits for its turn, and a transaction with several requests to come.
    assert_eq!(tags(&asking.read_until_ready().await.unwrap()), "TDCZ");
    told_to_go(&mut asking).await;
    assert_eq!(tags(&waiting.read_until_ready().await.unwrap()), "TDCZ");
    told_to_go(&mut waiting).await;
    for _ in 0..3 {
        assert_eq!(open.value("SELECT 1").await, "1");
    }
    assert!(!served.has_ended());
    open.query("COMMIT").await.unwrap();
    told_to_go(&mut open).await;
    assert_eq!(served.ended().await.code(), Some(0));
    assert!(!socket.exists());
    eventually!(backends(&postgres, &tenant).await == 0);
    assert!(served.log().contains("ended"), "{}", served.log());
}

#[tokio::test]
async fn the_deadline_ends_what_does_not_finish() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let files = ProxyFiles::new().set("drain.timeout", "1s").instance("one", &postgres).tenant(&tenant);
    let mut served = Served::start(files).await;
    let (mut open, mut asking) = (client(served.address, &tenant).await, client(served.address, &tenant).await);
    open.query("BEGIN; CREATE TABLE never (x int)").await.unwrap();
    asking.send(&query("SELECT pg_sleep(60)")).await.unwrap();
    let asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    eventually!(postgres.sql("app", asleep).await.unwrap().len() == 1);
    let begin = Instant::now();
    served.signal(libc::SIGTERM);
    told_to_go(&mut open).await;
    assert!(begin.elapsed() >= Duration::from_millis(900));
    let mut states = Vec::new();
    while let Ok(message) = asking.read().await {
        states.extend(sqlstates(&[message]));
    }
    assert_eq!(states.last().map(String::as_str), Some("57P01"), "{states:?}");
    assert_eq!(served.ended().await.code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(6));
    // Nothing goes on at the instance.
    eventually!(backends(&postgres, &tenant).await == 0);
    assert_eq!(postgres.sql("app", "SELECT to_regclass('never')").await.unwrap(), [[None]]);
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    for signals in [[libc::SIGTERM, libc::SIGTERM], [libc::SIGINT, libc::SIGTERM], [libc::SIGTERM, libc::SIGINT]] {
        let (postgres, tenant) = instance(postgres::options()).await;
        let files = ProxyFiles::new().set("drain.timeout", "1min").instance("one", &postgres).tenant(&tenant);
        let mut served = Served::start(files).await;
        let (mut idle, mut open) = (client(served.address, &tenant).await, client(served.address, &tenant).await);
        open.query("BEGIN; SELECT 1").await.unwrap();
        served.signal(signals[0]);
        told_to_go(&mut idle).await;
        // A reload in between does not count.
        served.signal(libc::SIGHUP);
        assert_eq!(open.value("SELECT 1").await, "1");
        let begin = Instant::now();
        served.signal(signals[1]);
        told_to_go(&mut open).await;
        assert_eq!(served.ended().await.code(), Some(0));
        assert!(begin.elapsed() < Duration::from_secs(4));
        eventually!(backends(&postgres, &tenant).await == 0);
    }
}

#[tokio::test]
async fn sessions_that_keep_their_backend_end_between_transactions() {
    let stage = Stage::new(&[("pool.mode", "session".into())]).await;
    let (mut idle, mut open) = (stage.client().await, stage.client().await);
    idle.query("SET work_mem = '7MB'").await.unwrap();
    open.query("BEGIN; SELECT 1").await.unwrap();
    // A session that has never asked for anything.
    let mut silent = stage.client().await;
    let Stage { proxy, postgres, tenant } = stage;
    let (_hurry, never) = oneshot::channel::<()>();
    let drained = tokio::spawn(proxy.drain(async move { never.await.unwrap_or_default() }));
    told_to_go(&mut idle).await;
    told_to_go(&mut silent).await;
    assert_eq!(open.value("SELECT 1").await, "1");
    assert!(!drained.is_finished());
    open.query("COMMIT").await.unwrap();
    told_to_go(&mut open).await;
    drained.await.unwrap();
    eventually!(backends(&postgres, &tenant).await == 0);
}

#[tokio::test]
async fn a_client_that_never_stops_asking_is_told_as_well() {
    let stage = Stage::new(&[("pool.max_backends", 2.into())]).await;
    let mut drivers = Vec::new();
    for _ in 0..6 {
        let driver = stage.driver().await;
        drivers.push(tokio::spawn(async move {
            loop {
                let answer = driver.query_one("SELECT pg_sleep(0.001)", &[]).await;
                if let Err(error) = answer {
                    return error;
                }
            }
        }));
    }
    eventually!(stage.proxy.metric("pgtenant_tenant_queries_total{tenant=\"acme\"").await > 50.0);
    let Stage { proxy, postgres, tenant } = stage;
    let begin = Instant::now();
    proxy.drain(std::future::pending()).await;
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    for driver in drivers {
        let error = driver.await.unwrap();
        assert!(error.is_closed() || error.code().is_some_and(|code| code.code() == "57P01"), "{error:?}");
    }
    eventually!(backends(&postgres, &tenant).await == 0);
}
