//! Cancel requests: the right query, never another client's, also while its client waits for a backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pgtenant::cli::demo::certificates::DevCa;
use secrecy::ExposeSecret;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::eventually;
use crate::harness::certs;
use crate::harness::frontend::{self, V3_0, V3_2, bind, execute, parse, query, sync};
use crate::harness::stage::Stage;
use crate::harness::wire::{Wire, cancel, sqlstates, tags};

const SLEEP: &str = "SELECT pg_sleep(60)";

/// Waits until so many of the tenant's backends run a sleep.
async fn sleeping(stage: &Stage, count: &str) {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'PgSleep'";
    eventually!(stage.sql(query).await[0][0].as_deref() == Some(count));
}

#[tokio::test]
async fn the_right_query_is_cancelled() {
    let stage = Stage::new(&[("pool.max_backends", 3.into())]).await;
    let mut clients = [stage.client().await, stage.client().await, stage.client().await];
    for client in &mut clients {
        client.send(&query(SLEEP)).await.unwrap();
    }
    sleeping(&stage, "3").await;
    cancel(stage.proxy.address(), clients[1].key.as_ref().unwrap()).await.unwrap();
    assert_eq!(sqlstates(&clients[1].read_until_ready().await.unwrap()), ["57014"]);
    sleeping(&stage, "2").await;
    assert_eq!(clients[1].value("SELECT 1").await, "1");
    // In a transaction, by the extended protocol.
    clients[1].query("BEGIN; SELECT 1").await.unwrap();
    clients[1].send(&[parse("", SLEEP), bind("", "", &[]), execute("", 0), sync()].concat()).await.unwrap();
    sleeping(&stage, "3").await;
    cancel(stage.proxy.address(), clients[1].key.as_ref().unwrap()).await.unwrap();
    let messages = clients[1].read_until_ready().await.unwrap();
    assert_eq!((sqlstates(&messages), messages.last().unwrap().status()), (vec!["57014".to_owned()], 'E'));
    clients[1].query("ROLLBACK").await.unwrap();
    for client in [0, 2] {
        cancel(stage.proxy.address(), clients[client].key.as_ref().unwrap()).await.unwrap();
        assert_eq!(sqlstates(&clients[client].read_until_ready().await.unwrap()), ["57014"]);
    }
    assert_eq!(stage.proxy.metric("pgtenant_cancel_requests_total{result=\"forwarded\"}").await, 4.0);
    // The keys are ours, not the instance's.
    let pids = stage.sql("SELECT pid FROM pg_stat_activity").await.concat();
    for client in &clients {
        assert!(!pids.contains(&client.key.as_ref().map(|(pid, _)| pid.to_string())));
    }
}

#[tokio::test]
async fn a_driver_cancels() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let driver = Arc::new(stage.driver().await);
    let token = driver.cancel_token();
    let asked = tokio::spawn({
        let driver = Arc::clone(&driver);
        async move { driver.query_one(SLEEP, &[]).await }
    });
    sleeping(&stage, "1").await;
    token.cancel_query(NoTls).await.unwrap();
    assert_eq!(asked.await.unwrap().unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    assert_eq!(driver.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
}

#[tokio::test]
async fn a_cancel_ends_the_wait_for_a_backend() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let (mut holder, mut waiter) = (stage.client().await, stage.client().await);
    holder.query("BEGIN; SELECT 1").await.unwrap();
    for extended in [false, true] {
        let request = [parse("", "SELECT 1"), bind("", "", &[]), execute("", 0), sync()].concat();
        waiter.send(&if extended { request } else { query("SELECT 1") }).await.unwrap();
        stage.waiting(1.0).await;
        let begin = Instant::now();
        cancel(stage.proxy.address(), waiter.key.as_ref().unwrap()).await.unwrap();
        let messages = waiter.read_until_ready().await.unwrap();
        assert_eq!((tags(&messages).as_str(), sqlstates(&messages)), ("EZ", vec!["57014".to_owned()]));
        assert_eq!(messages[0].error().severity(), "ERROR");
        assert!(begin.elapsed() < Duration::from_secs(5));
        stage.waiting(0.0).await;
    }
    // The holder was not meant.
    assert_eq!(holder.value("SELECT 1").await, "1");
    holder.query("COMMIT").await.unwrap();
    assert_eq!(waiter.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn wrong_keys_and_idle_sessions_are_let_alone() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    let (pid, secret) = wire.key.clone().unwrap();
    wire.send(&query(SLEEP)).await.unwrap();
    sleeping(&stage, "1").await;
    let mut wrong = secret.clone();
    wrong[0] ^= 1;
    let keys = [
        (pid, wrong),
        (pid, vec![0; 4]),
        (pid, [&secret[..], &[0; 28]].concat()),
        (pid, secret[..3].to_vec()),
        (pid, Vec::new()),
        (pid ^ 1, secret.clone()),
        (0, secret.clone()),
        // Another client's key.
        (other.key.as_ref().unwrap().0, secret.clone()),
    ];
    for (pid, secret) in keys {
        let mut stranger = Wire::tcp(stage.proxy.address()).await.unwrap();
        stranger.send(&frontend::cancel_request(pid, &secret)).await.unwrap();
        // A malformed one may get an error; then the connection ends all the same.
        while stranger.read().await.is_ok() {}
    }
    // The backend's own key does nothing at our door.
    let own: u32 = stage.sql("SELECT pid FROM pg_stat_activity WHERE usename = 'app'").await[0][0]
        .as_deref()
        .unwrap()
        .parse()
        .unwrap();
    cancel(stage.proxy.address(), &(own, secret.clone())).await.unwrap();
    sleeping(&stage, "1").await;
    cancel(stage.proxy.address(), &(pid, secret.clone())).await.unwrap();
    assert_eq!(sqlstates(&wire.read_until_ready().await.unwrap()), ["57014"]);
    // Nothing runs: nothing happens, now or later.
    for _ in 0..20 {
        cancel(stage.proxy.address(), &(pid, secret.clone())).await.unwrap();
        assert_eq!(other.value("SELECT 1").await, "1");
        assert_eq!(wire.value("SELECT 1").await, "1");
    }
    // A session that is gone.
    drop(wire);
    eventually!(stage.proxy.metric("pgtenant_clients ").await == 1.0);
    cancel(stage.proxy.address(), &(pid, secret)).await.unwrap();
    assert_eq!(other.value("SELECT 1").await, "1");
    assert!(stage.proxy.metric("pgtenant_cancel_requests_total{result=\"unknown_key\"}").await >= 4.0);
    // One that comes at once may find the session still about to give its backend back.
    assert!(stage.proxy.metric("pgtenant_cancel_requests_total{result=\"idle\"}").await >= 5.0);
}

#[tokio::test]
async fn protocol_3_2_has_longer_keys() {
    let stage = Stage::new(&[("pool.max_backends", 2.into())]).await;
    let password = stage.tenant.password.expose_secret();
    let parameters = [("user", "app.acme"), ("database", "app")];
    let (mut old, mut new) =
        (Wire::tcp(stage.proxy.address()).await.unwrap(), Wire::tcp(stage.proxy.address()).await.unwrap());
    old.login_with(V3_0, &parameters, password).await.unwrap();
    new.login_with(V3_2, &parameters, password).await.unwrap();
    assert_eq!(new.negotiated, None);
    let (pid, secret) = new.key.clone().unwrap();
    assert_eq!((old.key.as_ref().unwrap().1.len(), secret.len()), (4, 32));
    new.send(&query(SLEEP)).await.unwrap();
    sleeping(&stage, "1").await;
    cancel(stage.proxy.address(), &(pid, secret[..4].to_vec())).await.unwrap();
    let mut wrong = secret.clone();
    wrong[31] ^= 1;
    cancel(stage.proxy.address(), &(pid, wrong)).await.unwrap();
    sleeping(&stage, "1").await;
    cancel(stage.proxy.address(), &(pid, secret)).await.unwrap();
    assert_eq!(sqlstates(&new.read_until_ready().await.unwrap()), ["57014"]);
    assert_eq!(new.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn cancels_come_over_tls_as_well() {
    let ca = DevCa::new().unwrap();
    let stage = Stage::with(|files| files.certificate(&ca, &["db.localhost"]), &[]).await;
    let tls = || Wire::tls(stage.proxy.address(), Arc::new(certs::client(&ca)), "db.localhost");
    let mut wire = tls().await.unwrap();
    wire.login("app.acme", "app", stage.tenant.password.expose_secret()).await.unwrap();
    let (pid, secret) = wire.key.clone().unwrap();
    wire.send(&query(SLEEP)).await.unwrap();
    sleeping(&stage, "1").await;
    let mut canceller = tls().await.unwrap();
    canceller.send(&frontend::cancel_request(pid, &secret)).await.unwrap();
    assert!(canceller.is_closed().await);
    assert_eq!(sqlstates(&wire.read_until_ready().await.unwrap()), ["57014"]);
    // And in the clear, as libpq before version 17 sends them whatever the session does.
    wire.send(&query(SLEEP)).await.unwrap();
    sleeping(&stage, "1").await;
    cancel(stage.proxy.address(), &(pid, secret)).await.unwrap();
    assert_eq!(sqlstates(&wire.read_until_ready().await.unwrap()), ["57014"]);
}

/// Clients on one backend cancel their own queries at random moments, mostly when they are over. Whoever never cancels
/// must never see 57014, and a query that was not cancelled must not either.
#[tokio::test]
async fn a_late_cancel_never_hits_another_client() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let address = stage.proxy.address();
    let over = Arc::new(AtomicBool::new(false));
    let (cancelled, fired) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let mut tasks = Vec::new();
    for number in 0..4_u64 {
        let mut wire = stage.client().await;
        let (over, cancelled, fired) = (Arc::clone(&over), Arc::clone(&cancelled), Arc::clone(&fired));
        tasks.push(tokio::spawn(async move {
            let key = wire.key.clone().unwrap();
            let mut round = number * 7;
            while !over.load(Ordering::Relaxed) {
                round += 1;
                wire.send(&query("SELECT pg_sleep(0.001)")).await.unwrap();
                let key = key.clone();
                let late = Duration::from_micros(round * 937 % 6000);
                let firing = tokio::spawn(async move {
                    tokio::time::sleep(late).await;
                    cancel(address, &key).await.unwrap();
                });
                let errors = sqlstates(&wire.read_until_ready().await.unwrap());
                assert!(errors.is_empty() || errors == ["57014"], "{errors:?}");
                cancelled.fetch_add(errors.len() as u32, Ordering::Relaxed);
                fired.fetch_add(1, Ordering::Relaxed);
                // It has arrived, early or late: the next query is not what it is for.
                firing.await.unwrap();
                assert_eq!(wire.value("SELECT 1").await, "1");
            }
        }));
    }
    for _ in 0..4 {
        let mut bystander = stage.client().await;
        let over = Arc::clone(&over);
        tasks.push(tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(bystander.value("SELECT 1 FROM pg_sleep(0.001)").await, "1");
            }
        }));
    }
    let end = Instant::now() + Duration::from_secs(20);
    eventually!(within Duration::from_secs(21), fired.load(Ordering::Relaxed) > 400
        || tasks.iter().any(tokio::task::JoinHandle::is_finished)
        || Instant::now() > end);
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let (cancelled, fired) = (cancelled.load(Ordering::Relaxed), fired.load(Ordering::Relaxed));
    assert!(cancelled > 0 && cancelled < fired, "{cancelled} of {fired} cancelled: the moments were not random enough");
}
