//! LISTEN for many clients on one backend: everybody hears everything, in order and between transactions, and a client
//! that only listens keeps no backend.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::{StreamExt, poll_fn};
use secrecy::ExposeSecret;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::eventually;
use crate::harness::frontend::{bind, describe_portal, describe_statement, execute, parse, query, sync};
use crate::harness::stage::{Census, Stage, backends};
use crate::harness::wire::{Message, Wire, cancel, tags};

pub const QUIET: Duration = Duration::from_millis(150);
pub const PINNED: &str = "pgtenant_pins{instance_name=\"one\",reason=\"listen\"}";
pub const LISTENERS: &str = "pgtenant_listeners{instance_name=\"one\"}";
pub const SHARED: &str = "pgtenant_listen_backends{instance_name=\"one\"}";
const SHARED_BACKEND: &str = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgtenant listen'";

pub async fn stage(max_backends: i64) -> Stage {
    Stage::new(&[("pool.max_backends", max_backends.into()), ("pool.queue_timeout", "500ms".into())]).await
}

pub async fn listening(stage: &Stage, channel: &str) -> Wire {
    let mut wire = stage.client().await;
    wire.query(&format!("LISTEN {channel}")).await.unwrap();
    wire
}

/// The notifying backend, the channel and the payload.
pub fn notification(message: &Message) -> (u32, String, String) {
    assert_eq!(message.tag, b'A', "a NotificationResponse, not {message:?}");
    let (pid, texts) = message.payload.split_first_chunk().unwrap();
    let mut texts = texts.split(|&byte| byte == 0).map(|text| String::from_utf8(text.to_vec()).unwrap());
    (u32::from_be_bytes(*pid), texts.next().unwrap(), texts.next().unwrap())
}

pub async fn hears(wire: &mut Wire) -> String {
    let (_, channel, payload) = notification(&wire.read().await.unwrap());
    format!("{channel} {payload}")
}

/// Sends it from a backend that has nothing to do with the proxy, which is done when this returns.
pub async fn notify(stage: &Stage, channel: &str, payload: &str) {
    stage.sql(&format!("SELECT pg_notify('{channel}', '{payload}')")).await;
}

async fn shared_backends(stage: &Stage) -> usize {
    stage.postgres.sql("postgres", SHARED_BACKEND).await.unwrap().len()
}

/// Nothing is left of a shared backend.
pub async fn nobody_listens(stage: &Stage) {
    eventually!(stage.proxy.metric(LISTENERS).await == 0.0);
    eventually!(stage.proxy.metric(SHARED).await == 0.0);
    assert_eq!(shared_backends(stage).await, 0);
    let mut wire = stage.client().await;
    assert_eq!(wire.value("SELECT count(*) FROM pg_listening_channels()").await, "0");
    eventually!(stage.proxy.metric(PINNED).await == 0.0);
}

#[tokio::test]
async fn many_clients_listen_on_one_backend() {
    let stage = stage(2).await;
    let census = Census::begin(&stage.postgres, "datname = 'app'").await;
    let mut listeners = join_all((0..200).map(|_| listening(&stage, "news"))).await;
    assert_eq!((stage.proxy.metric(LISTENERS).await, stage.proxy.metric(SHARED).await), (200.0, 1.0));
    assert_eq!((stage.proxy.metric(PINNED).await, shared_backends(&stage).await), (0.0, 1));
    // The other backend serves everybody, the listeners as well.
    let mut working = Vec::new();
    for _ in 0..4 {
        let mut wire = stage.client().await;
        working.push(tokio::spawn(async move {
            for _ in 0..50 {
                wire.query("BEGIN").await.unwrap();
                wire.query("SELECT 1").await.unwrap();
                wire.query("COMMIT").await.unwrap();
            }
        }));
    }
    for listener in &mut listeners[..20] {
        assert_eq!(listener.value("SELECT 1").await, "1");
    }
    let mut notifier = stage.client().await;
    for round in ["one", "two"] {
        let text = format!("BEGIN; NOTIFY news, '{round}'; SELECT pg_backend_pid(); COMMIT");
        let pid: u32 = notifier.value(&text).await.parse().unwrap();
        let heard = join_all(listeners.iter_mut().map(Wire::read)).await;
        for message in heard {
            assert_eq!(notification(&message.unwrap()), (pid, "news".into(), round.into()));
        }
    }
    join_all(working).await.into_iter().for_each(|work| work.unwrap());
    assert!(census.most() <= 2, "{} backends", census.most());
    drop(listeners);
    nobody_listens(&stage).await;
}

#[tokio::test]
async fn notifications_keep_their_order_and_wait_for_the_transactions_end() {
    let stage = stage(3).await;
    let mut wire = listening(&stage, "news").await;
    stage.sql("SELECT pg_notify('news', n::text) FROM generate_series(1, 5000) n").await;
    for number in 1..=5000 {
        assert_eq!(hears(&mut wire).await, format!("news {number}"));
    }
    for begin in ["BEGIN; SELECT 1", "BEGIN"] {
        wire.query(begin).await.unwrap();
        notify(&stage, "news", "meanwhile").await;
        assert!(wire.is_silent(QUIET).await, "after {begin}");
        assert_eq!(tags(&wire.exchange(&[query("SELECT 1")]).await), "TDCZ");
        assert_eq!(wire.failure("SELECT 1/0").await, "22012");
        notify(&stage, "news", "failed").await;
        assert!(wire.is_silent(QUIET).await);
        assert_eq!(tags(&wire.exchange(&[query("ROLLBACK")]).await), "CZ");
        assert_eq!((hears(&mut wire).await, hears(&mut wire).await), ("news meanwhile".into(), "news failed".into()));
    }
    // Its own, and one of another client in the middle of a query.
    wire.query("NOTIFY news, 'mine'").await.unwrap();
    assert_eq!(hears(&mut wire).await, "news mine");
    wire.send(&query("SELECT pg_sleep(0.3)")).await.unwrap();
    eventually!(stage.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'").await.len() == 1);
    notify(&stage, "news", "asleep").await;
    assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "TDCZ");
    assert_eq!(hears(&mut wire).await, "news asleep");
}

#[tokio::test]
async fn a_client_hears_nothing_from_before_its_listen() {
    let stage = stage(3).await;
    let mut first = listening(&stage, "news").await;
    let mut wire = stage.client().await;
    for round in 0..30 {
        wire.query(&format!("NOTIFY news, 'before {round}'")).await.unwrap();
        wire.query("LISTEN news").await.unwrap();
        wire.query(&format!("NOTIFY news, 'after {round}'")).await.unwrap();
        assert_eq!(hears(&mut wire).await, format!("news after {round}"));
        wire.query("UNLISTEN news").await.unwrap();
        assert_eq!(hears(&mut first).await, format!("news before {round}"));
        assert_eq!(hears(&mut first).await, format!("news after {round}"));
    }
    assert_eq!(shared_backends(&stage).await, 1);
}

#[tokio::test]
async fn channels_are_the_ones_that_postgresql_means() {
    let stage = stage(4).await;
    let mut wire = stage.client().await;
    let long = "l".repeat(70);
    for channel in ["Folded", "\"Mixed\"", "\"with \"\"quotes\"\" and 'blanks'\"", "\"ünïcode\"", "listen", &long] {
        wire.query(&format!("LISTEN {channel}")).await.unwrap();
    }
    let cut = "l".repeat(63);
    for (name, heard) in [
        ("folded", true),
        ("Folded", false),
        ("Mixed", true),
        ("mixed", false),
        ("with \"quotes\" and ''blanks''", true),
        ("ünïcode", true),
        ("listen", true),
        (cut.as_str(), true),
    ] {
        notify(&stage, name, "x").await;
        match heard {
            true => assert_eq!(hears(&mut wire).await, format!("{} x", name.replace("''", "'"))),
            false => assert!(wire.is_silent(QUIET).await, "{name}"),
        }
    }
    // The long one has pinned it: PostgreSQL tells how it is cut off.
    eventually!(stage.proxy.metric(PINNED).await == 1.0);
    assert_eq!(tags(&stage.client().await.exchange(&[query(&format!("LISTEN {long}"))]).await), "NCZ");
    wire.query("UNLISTEN *").await.unwrap();
    nobody_listens(&stage).await;
}

#[tokio::test]
async fn unlisten_ends_one_channel_or_all() {
    let stage = stage(3).await;
    let mut wire = stage.client().await;
    for channel in ["one", "two", "three", "two"] {
        assert_eq!(tags(&wire.exchange(&[query(&format!("LISTEN {channel}"))]).await), "CZ");
    }
    wire.query("UNLISTEN one").await.unwrap();
    wire.query("UNLISTEN never").await.unwrap();
    for channel in ["one", "two", "three"] {
        notify(&stage, channel, "x").await;
    }
    assert_eq!((hears(&mut wire).await, hears(&mut wire).await), ("two x".into(), "three x".into()));
    assert_eq!(stage.proxy.metric(LISTENERS).await, 1.0);
    wire.query("UNLISTEN *").await.unwrap();
    notify(&stage, "two", "x").await;
    assert!(wire.is_silent(QUIET).await);
    nobody_listens(&stage).await;
    // And again, while the last shared backend may still be on its way home.
    for _ in 0..20 {
        wire.query("LISTEN two").await.unwrap();
        notify(&stage, "two", "y").await;
        assert_eq!(hears(&mut wire).await, "two y");
        wire.query("UNLISTEN two").await.unwrap();
    }
    nobody_listens(&stage).await;
}

#[tokio::test]
async fn every_protocol_listens() {
    let stage = stage(3).await;
    let mut wire = stage.client().await;
    let portal = [parse("", "LISTEN a"), bind("", "", &[]), describe_portal(""), execute("", 0), sync()];
    assert_eq!(tags(&wire.exchange(&portal).await), "12nCZ");
    let statement = [parse("", "LISTEN b"), describe_statement(""), bind("", "", &[]), execute("", 1), sync()];
    assert_eq!(tags(&wire.exchange(&statement).await), "1tn2CZ");
    // Prepared before: unnamed, where nothing but the session knows it, and named.
    let again = [bind("", "", &[]), execute("", 0), sync()];
    assert_eq!(tags(&wire.exchange(&again).await), "2CZ");
    assert_eq!(tags(&wire.exchange(&[parse("c", "LISTEN c"), describe_statement("c"), sync()]).await), "1tnZ");
    assert_eq!(tags(&wire.exchange(&[bind("", "c", &[]), execute("", 0), sync()]).await), "2CZ");
    assert_eq!((stage.proxy.metric(LISTENERS).await, stage.proxy.metric(PINNED).await), (1.0, 0.0));
    for channel in ["a", "b", "c"] {
        notify(&stage, channel, "x").await;
        assert_eq!(hears(&mut wire).await, format!("{channel} x"));
    }
    // The unnamed statement is there for a backend too.
    let with_more = [bind("", "", &[]), execute("", 0), parse("", "SELECT 1"), sync()];
    assert_eq!(tags(&wire.exchange(&with_more).await), "2C1Z");
    // Two requests at once.
    wire.send(&[query("LISTEN d"), query("SELECT 1"), query("UNLISTEN *")].concat()).await.unwrap();
    assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "CZ");
    assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "TDCZ");
    assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "CZ");
    nobody_listens(&stage).await;
}

#[tokio::test]
async fn a_driver_hears_notifications() {
    let stage = stage(2).await;
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(stage.proxy.address().port()).user("app.acme").dbname("app");
    config.password(stage.tenant.password.expose_secret());
    let (client, mut connection) = config.connect(NoTls).await.unwrap();
    let (sender, mut messages) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut stream = poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = stream.next().await {
            let _ = sender.send(message);
        }
    });
    client.batch_execute("LISTEN simple").await.unwrap();
    client.execute("LISTEN \"Extended\"", &[]).await.unwrap();
    assert_eq!((stage.proxy.metric(LISTENERS).await, stage.proxy.metric(PINNED).await), (1.0, 0.0));
    for channel in ["simple", "Extended"] {
        client.execute("SELECT pg_notify($1, 'x')", &[&channel]).await.unwrap();
        let Some(AsyncMessage::Notification(heard)) = messages.recv().await else { panic!("a notification") };
        assert_eq!((heard.channel(), heard.payload()), (channel, "x"));
    }
    drop(client);
    nobody_listens(&stage).await;
}

/// More than may wait for one client.
const FLOOD: &str = "SELECT pg_notify('news', repeat('x', 7900) || n) FROM generate_series(1, 4000) n";

#[tokio::test]
async fn a_client_that_does_not_take_its_notifications_is_ended() {
    let stage = stage(4).await;
    let mut reading = listening(&stage, "news").await;
    let mut busy = listening(&stage, "news").await;
    let deaf = listening(&stage, "news").await;
    busy.query("BEGIN; SELECT 1").await.unwrap();
    let reader = tokio::spawn(async move {
        for number in 1..=4000 {
            assert!(hears(&mut reading).await.ends_with(&format!("x{number}")));
        }
        reading
    });
    stage.sql(FLOOD).await;
    let mut reading = reader.await.unwrap();
    assert_eq!(tags(&busy.exchange(&[query("COMMIT")]).await), "CZ");
    let error = busy.expect_error("53400").await;
    assert_eq!(error.severity(), "FATAL");
    assert!(error.message().contains("notifications"), "{error:?}");
    assert!(busy.is_closed().await);
    eventually!(stage.proxy.metric(LISTENERS).await == 1.0);
    drop(deaf);
    notify(&stage, "news", "on").await;
    assert_eq!(hears(&mut reading).await, "news on");
}

#[tokio::test]
async fn sessions_end_when_their_shared_backend_does() {
    let stage = stage(3).await;
    let mut wires = join_all((0..5).map(|_| listening(&stage, "news"))).await;
    let mut other = stage.client().await;
    other.query("SELECT 1").await.unwrap();
    wires[0].query("BEGIN; SELECT 1").await.unwrap();
    stage
        .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgtenant listen'")
        .await;
    for wire in &mut wires[1..] {
        let error = wire.expect_error("57P01").await;
        assert_eq!(error.severity(), "FATAL");
        assert!(error.fields[&'H'].contains("missed"), "{error:?}");
        assert!(wire.is_closed().await);
    }
    // A transaction comes to its end first.
    assert_eq!(tags(&wires[0].exchange(&[query("COMMIT")]).await), "CZ");
    wires[0].expect_error("57P01").await;
    assert_eq!(other.value("SELECT 1").await, "1");
    other.query("LISTEN news").await.unwrap();
    stage.postgres.restart().await.unwrap();
    assert_eq!(other.expect_error("57P01").await.severity(), "FATAL");
    nobody_listens(&stage).await;
}

#[tokio::test]
async fn without_a_backend_to_share_it_is_an_error_and_the_session_stays() {
    let stage = stage(2).await;
    let (mut one, mut two, mut wire) = (stage.client().await, stage.client().await, stage.client().await);
    for wire in [&mut one, &mut two] {
        wire.query("BEGIN; SELECT 1").await.unwrap();
    }
    assert_eq!(wire.failure("LISTEN news").await, "53300");
    let batch = [parse("", "LISTEN news"), bind("", "", &[]), execute("", 0), sync()];
    assert_eq!(tags(&wire.exchange(&batch).await), "EZ");
    // A cancel ends the wait.
    let begin = Instant::now();
    wire.send(&query("LISTEN news")).await.unwrap();
    eventually!(stage.proxy.metric(SHARED).await == 1.0);
    cancel(stage.proxy.address(), wire.key.as_ref().unwrap()).await.unwrap();
    wire.expect_error("57014").await;
    assert!(begin.elapsed() < Duration::from_millis(400));
    assert_eq!(wire.read_until_ready().await.unwrap().len(), 1);
    eventually!(stage.proxy.metric(SHARED).await == 0.0);
    one.query("COMMIT").await.unwrap();
    wire.query("LISTEN news").await.unwrap();
    notify(&stage, "news", "x").await;
    assert_eq!(hears(&mut wire).await, "news x");
    // One that leaves while it waits.
    drop(wire);
    nobody_is_shared(&stage).await;
    one.query("BEGIN; SELECT 1").await.unwrap();
    let mut wire = stage.client().await;
    wire.send(&query("LISTEN news")).await.unwrap();
    eventually!(stage.proxy.metric(SHARED).await == 1.0);
    drop((wire, one, two));
    nobody_listens(&stage).await;
}

async fn nobody_is_shared(stage: &Stage) {
    eventually!(stage.proxy.metric(SHARED).await == 0.0);
}

#[tokio::test]
async fn the_only_backend_is_not_shared_away() {
    let stage = stage(1).await;
    let mut wire = listening(&stage, "news").await;
    eventually!(stage.proxy.metric(PINNED).await == 1.0);
    assert_eq!((stage.proxy.metric(SHARED).await, wire.value("SELECT 1").await), (0.0, "1".into()));
    notify(&stage, "news", "x").await;
    assert_eq!(hears(&mut wire).await, "news x");
    wire.query("UNLISTEN *").await.unwrap();
    nobody_listens(&stage).await;
}

#[tokio::test]
async fn a_client_with_another_encoding_listens_for_itself() {
    let stage = stage(4).await;
    let mut latin = stage.client_with(&[("client_encoding", "LATIN1")]).await;
    let mut utf = listening(&stage, "news").await;
    latin.query("LISTEN news").await.unwrap();
    eventually!(stage.proxy.metric(PINNED).await == 1.0);
    assert_eq!(stage.proxy.metric(LISTENERS).await, 1.0);
    notify(&stage, "news", "ä").await;
    assert_eq!(hears(&mut utf).await, "news ä");
    assert_eq!(latin.read().await.unwrap().payload[4..], *b"news\0\xe4\0");
}

#[tokio::test]
async fn a_refusal_reaches_the_client_and_nobody_else() {
    let stage = stage(3).await;
    stage.sql("ALTER ROLE app CONNECTION LIMIT 1").await;
    let mut busy = stage.client().await;
    busy.query("BEGIN; SELECT 1").await.unwrap();
    let mut wire = stage.client().await;
    assert_eq!(wire.failure("LISTEN news").await, "53300");
    stage.sql("ALTER ROLE app CONNECTION LIMIT -1").await;
    eventually!(wire.query("LISTEN news").await.is_ok());
    notify(&stage, "news", "x").await;
    assert_eq!(hears(&mut wire).await, "news x");
}

#[tokio::test]
async fn a_drain_ends_who_listens_and_closes_the_shared_backend() {
    let stage = stage(3).await;
    let mut wires = join_all((0..3).map(|_| listening(&stage, "news"))).await;
    wires[0].query("BEGIN; SELECT 1").await.unwrap();
    let Stage { proxy, postgres, tenant } = stage;
    let drained = tokio::spawn(proxy.drain(std::future::pending()));
    for wire in &mut wires[1..] {
        wire.expect_error("57P01").await;
    }
    wires[0].query("COMMIT").await.unwrap();
    wires[0].expect_error("57P01").await;
    drained.await.unwrap();
    eventually!(backends(&postgres, &tenant).await == 0);
}

#[tokio::test]
async fn a_retired_tenants_listeners_go() {
    let stage = stage(3).await;
    let mut wire = listening(&stage, "news").await;
    stage.proxy.files.rewrite_tenant(&stage.tenant, &[("pool.mode", "session".into()), ("state", "suspended".into())]);
    stage.proxy.reload().unwrap();
    wire.expect_error("57P01").await;
    eventually!(stage.backends().await == 0);
    eventually!(stage.proxy.metric(LISTENERS).await == 0.0);
}
