//! LISTEN and UNLISTEN on a backend of the client's own, beside the one that it shares: each notification is heard once, and
//! none is after UNLISTEN.

use crate::eventually;
use crate::harness::frontend::{bind, execute, parse, query, sync};
use crate::harness::wire::{Wire, tags};
use crate::listen::{LISTENERS, PINNED, QUIET, SHARED, hears, listening, nobody_listens, notification, notify, stage};

/// Sends queries at once; gives what is heard until so many notifications have come, wherever they stand among the answers.
async fn hears_with(wire: &mut Wire, sqls: &[&str], notifications: usize) -> Vec<String> {
    wire.send(&sqls.iter().map(|sql| query(sql)).collect::<Vec<_>>().concat()).await.unwrap();
    let (mut heard, mut ready) = (Vec::new(), 0);
    while ready < sqls.len() || heard.len() < notifications {
        let message = wire.read().await.unwrap();
        match message.tag {
            b'A' => heard.push(notification(&message)),
            b'E' => panic!("{:?}", message.error()),
            tag => ready += usize::from(tag == b'Z'),
        }
    }
    heard.into_iter().map(|(_, channel, payload)| format!("{channel} {payload}")).collect()
}

#[tokio::test]
async fn listening_within_a_transaction_pins() {
    let stage = stage(4).await;
    let mut wire = stage.client().await;
    wire.query("BEGIN").await.unwrap();
    wire.query("LISTEN news").await.unwrap();
    assert_eq!(stage.proxy.metric(PINNED).await, 0.0);
    wire.query("ROLLBACK").await.unwrap();
    notify(&stage, "news", "nobody").await;
    wire.query("BEGIN; LISTEN news; COMMIT").await.unwrap();
    eventually!(stage.proxy.metric(PINNED).await == 1.0);
    assert_eq!(stage.proxy.metric(LISTENERS).await, 0.0);
    notify(&stage, "news", "x").await;
    assert_eq!(hears(&mut wire).await, "news x");
    // More of it stays there.
    wire.query("LISTEN more").await.unwrap();
    notify(&stage, "more", "y").await;
    assert_eq!(hears(&mut wire).await, "more y");
    eventually!((stage.proxy.metric(SHARED).await, stage.proxy.metric(PINNED).await) == (0.0, 1.0));
    wire.query("UNLISTEN *").await.unwrap();
    nobody_listens(&stage).await;
}

#[tokio::test]
async fn what_a_backend_of_its_own_does_to_channels_counts() {
    let stage = stage(4).await;
    // Texts as connection pools send them, and a transaction that names one of two.
    for (reset, left) in [
        ("DISCARD ALL", ""),
        ("SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;", ""),
        ("ROLLBACK; UNLISTEN *", ""),
        ("BEGIN; UNLISTEN one; COMMIT", "two"),
        ("BEGIN; UNLISTEN one; ROLLBACK", "one two"),
        ("UNLISTEN one; SELECT 1/0", "one two"),
        ("UNLISTEN one; UNLISTEN three", "two"),
    ] {
        let mut wire = stage.client().await;
        for channel in ["one", "two"] {
            wire.query(&format!("LISTEN {channel}")).await.unwrap();
        }
        let _ = wire.query(reset).await;
        stage.sql("NOTIFY one; NOTIFY two").await;
        for channel in left.split_whitespace() {
            assert_eq!(hears(&mut wire).await, format!("{channel} "), "after {reset}");
        }
        assert!(wire.is_silent(QUIET).await, "after {reset}");
    }
    nobody_listens(&stage).await;
}

#[tokio::test]
async fn a_client_that_is_pinned_hears_each_notification_once() {
    let stage = stage(4).await;
    let mut wire = listening(&stage, "shared").await;
    wire.query("SELECT pg_advisory_lock(1)").await.unwrap();
    notify(&stage, "shared", "idle").await;
    assert_eq!(hears(&mut wire).await, "shared idle");
    // On its own backend the same channel, and another one.
    wire.query("LISTEN shared").await.unwrap();
    wire.query("LISTEN own").await.unwrap();
    notify(&stage, "shared", "once").await;
    assert_eq!(hears(&mut wire).await, "shared once");
    notify(&stage, "own", "once").await;
    assert_eq!(hears(&mut wire).await, "own once");
    // Also what is under way while it begins to.
    for number in 0..20 {
        let notify = format!("SELECT pg_notify('shared', '{number}')");
        let heard = hears_with(&mut wire, &[&notify, "LISTEN shared"], 1).await;
        assert_eq!(heard, [format!("shared {number}")]);
    }
    assert!(wire.is_silent(QUIET).await);
    wire.query("SELECT pg_advisory_unlock(1)").await.unwrap();
    eventually!(stage.proxy.metric(PINNED).await == 1.0);
    wire.query("UNLISTEN *").await.unwrap();
    nobody_listens(&stage).await;
    wire.query("LISTEN shared").await.unwrap();
    wire.query("BEGIN; SELECT 1; SELECT pg_advisory_lock(1); COMMIT").await.unwrap();
    wire.query("UNLISTEN shared").await.unwrap();
    notify(&stage, "shared", "never").await;
    assert!(wire.is_silent(QUIET).await);
    // Out of sight.
    wire.query("LISTEN news").await.unwrap();
    wire.query("DO $$ BEGIN EXECUTE 'LISTEN news'; END $$").await.unwrap();
    notify(&stage, "news", "once").await;
    assert_eq!(hears(&mut wire).await, "news once");
    assert!(wire.is_silent(QUIET).await);
}

#[tokio::test]
async fn what_is_notified_before_unlisten_is_heard() {
    let stage = stage(4).await;
    let mut wire = stage.client().await;
    for pins in [false, true] {
        for number in 0..20 {
            let notify = format!("NOTIFY news, '{number}'");
            wire.query("LISTEN news").await.unwrap();
            if pins {
                wire.query("SELECT pg_advisory_lock(1)").await.unwrap();
            }
            let sqls = [&notify, "UNLISTEN news", "NOTIFY news, 'never'", "SELECT pg_advisory_unlock_all()"];
            assert_eq!(hears_with(&mut wire, &sqls, 1).await, [format!("news {number}")]);
        }
        assert!(wire.is_silent(QUIET).await);
    }
    // By a portal with a name, which needs a backend of its own.
    wire.query("LISTEN news").await.unwrap();
    let batch = [parse("", "UNLISTEN *"), bind("c", "", &[]), execute("c", 0), sync()].concat();
    wire.send(&[batch, query("NOTIFY news, 'never'"), query("SELECT 1")].concat()).await.unwrap();
    for expected in ["12CZ", "CZ", "TDCZ"] {
        assert_eq!(tags(&wire.read_until_ready().await.unwrap()), expected);
    }
    assert!(wire.is_silent(QUIET).await);
    // Behind a batch that fails.
    wire.query("LISTEN news").await.unwrap();
    let unlisten = [parse("", "UNLISTEN *"), bind("", "", &[]), execute("", 0), sync()].concat();
    wire.send(&[execute("nowhere", 0), sync(), unlisten, query("NOTIFY news, 'never'")].concat()).await.unwrap();
    for expected in ["EZ", "12CZ", "CZ"] {
        assert_eq!(tags(&wire.read_until_ready().await.unwrap()), expected);
    }
    assert!(wire.is_silent(QUIET).await);
    // Not what came during the transaction that ends it.
    let wire = &mut wire;
    let sqls = ["LISTEN news", "BEGIN", "SELECT 1", "NOTIFY news, 'never'", "UNLISTEN news", "COMMIT"];
    assert!(hears_with(wire, &sqls, 0).await.is_empty());
    assert!(hears_with(wire, &["LISTEN news", "BEGIN", "SELECT 1"], 0).await.is_empty());
    notify(&stage, "news", "never").await;
    assert!(wire.is_silent(QUIET).await);
    assert!(hears_with(wire, &["UNLISTEN news", "COMMIT"], 0).await.is_empty());
    assert!(wire.is_silent(QUIET).await);
    // What is listened to again by the same transaction goes on.
    wire.query("LISTEN news").await.unwrap();
    let sqls = ["BEGIN", "UNLISTEN *", "LISTEN news", "COMMIT", "NOTIFY news, 'once'"];
    assert_eq!(hears_with(wire, &sqls, 1).await, ["news once"]);
    assert!(wire.is_silent(QUIET).await);
}
