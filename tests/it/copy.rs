//! COPY in, out and both ways, by both protocols, with errors in the middle.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncReadExt;

use crate::eventually;
use crate::harness::frontend::{V3_0, bind, copy_data, copy_done, copy_fail, execute, flush, parse, query, sync};
use crate::harness::postgres::{Options, options};
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::stage::{Stage, add_role, client_as, instance};
use crate::harness::wire::{Message, Wire, sqlstates, tags};

/// One backend and a table, so that whatever a COPY leaves behind hits the next client.
async fn stage() -> (Stage, Wire, Wire) {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let (mut wire, other) = (stage.client().await, stage.client().await);
    wire.query("CREATE TABLE t (x int)").await.unwrap();
    (stage, wire, other)
}

/// The start of a COPY FROM STDIN by the extended protocol, as drivers send it: with a Sync that PostgreSQL ignores.
fn copy_in_extended() -> Vec<u8> {
    [parse("", "COPY t FROM STDIN"), bind("", "", &[]), execute("", 0), sync()].concat()
}

async fn expect_tags(wire: &mut Wire, expected: &str) {
    for tag in expected.chars() {
        let message = wire.read().await.unwrap();
        assert_eq!(char::from(message.tag), tag, "{message:?}");
    }
}

fn data(messages: &[Message]) -> Vec<u8> {
    messages.iter().filter(|message| message.tag == b'd').flat_map(|message| message.payload.clone()).collect()
}

#[tokio::test]
async fn in_and_out_by_both_protocols() {
    let (_stage, mut wire, mut other) = stage().await;
    wire.send(&query("COPY t FROM STDIN")).await.unwrap();
    expect_tags(&mut wire, "G").await;
    for chunk in [&b"1\n2"[..], b"\n3\n", b""] {
        wire.send(&copy_data(chunk)).await.unwrap();
    }
    assert_eq!(tags(&wire.exchange(&[copy_done()]).await), "CZ");
    wire.send(&copy_in_extended()).await.unwrap();
    expect_tags(&mut wire, "12G").await;
    assert_eq!(tags(&wire.exchange(&[copy_data(b"4\n"), copy_done(), sync()]).await), "CZ");
    // With Flush in place of the first Sync, and in a pipeline that waits for nothing.
    let begin = [parse("", "COPY t FROM STDIN"), bind("", "", &[]), execute("", 0), flush()].concat();
    wire.send(&begin).await.unwrap();
    expect_tags(&mut wire, "12G").await;
    assert_eq!(tags(&wire.exchange(&[copy_data(b"5\n"), flush(), copy_done(), sync()]).await), "CZ");
    let pipeline = [copy_in_extended(), copy_data(b"6\n"), copy_done(), sync(), query("SELECT 1")];
    assert_eq!(tags(&wire.exchange(&pipeline).await), "12GCZ");
    assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "TDCZ");
    let pipeline = [query("COPY t FROM STDIN"), copy_data(b"7\n"), copy_done(), query("SELECT 1")];
    assert_eq!(tags(&wire.exchange(&pipeline).await), "GCZ");
    assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "TDCZ");

    let messages = other.exchange(&[query("COPY (SELECT * FROM t ORDER BY x) TO STDOUT")]).await;
    assert_eq!((tags(&messages).as_str(), &data(&messages)[..]), ("HdddddddcCZ", &b"1\n2\n3\n4\n5\n6\n7\n"[..]));
    let out = [parse("", "COPY (SELECT 1) TO STDOUT"), bind("", "", &[]), execute("", 0), sync()];
    assert_eq!(tags(&other.exchange(&out).await), "12HdcCZ");
    // Several in one message, each way.
    let messages = wire.exchange(&[query("COPY t TO STDOUT; COPY (SELECT 8) TO STDOUT; SELECT 9")]).await;
    assert_eq!(tags(&messages), "HdddddddcCHdcCTDCZ");
    wire.send(&query("COPY t FROM STDIN; COPY t FROM STDIN; SELECT 1")).await.unwrap();
    expect_tags(&mut wire, "G").await;
    wire.send(&[copy_data(b"8\n"), copy_done()].concat()).await.unwrap();
    expect_tags(&mut wire, "CG").await;
    assert_eq!(tags(&wire.exchange(&[copy_data(b"9\n"), copy_done()]).await), "CTDCZ");
    assert_eq!(other.value("SELECT sum(x) FROM t").await, "45");
}

#[tokio::test]
async fn a_driver_copies_both_ways() {
    let stage = Stage::new(&[("pool.max_backends", 2.into())]).await;
    let driver = stage.driver().await;
    driver.batch_execute("CREATE TABLE t (x int, y text)").await.unwrap();
    let mut other = stage.client().await;
    for round in 0..5 {
        let mut sink = Box::pin(driver.copy_in("COPY t FROM STDIN").await.unwrap());
        for row in 0..1000 {
            let line = format!("{}\t{}\n", round * 1000 + row, "y".repeat(500));
            sink.send(Bytes::from(line)).await.unwrap();
        }
        assert_eq!(sink.as_mut().finish().await.unwrap(), 1000);
        other.query("SELECT 1").await.unwrap();
    }
    let mut stream = Box::pin(driver.copy_out("COPY t TO STDOUT").await.unwrap());
    let mut bytes = 0;
    while let Some(chunk) = stream.next().await {
        bytes += chunk.unwrap().len();
    }
    assert_eq!(bytes, (0..5000).map(|x: u32| x.to_string().len() + 502).sum::<usize>());
    assert_eq!(driver.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0), 5000);
}

#[tokio::test]
async fn copies_that_fail_leave_the_session_and_the_backend_clean() {
    let (_stage, mut wire, mut other) = stage().await;
    let fails = [
        // By the client's wish.
        (copy_fail("no more"), "57014"),
        // A row that does not parse, at once or at the end, and what the client sent behind it without knowing.
        ([copy_data(b"one\n"), copy_data(b"2\n"), copy_data(b"3\n"), copy_done()].concat(), "22P02"),
        ([copy_data(b"1\n"), copy_data(b"two"), copy_done()].concat(), "22P02"),
        ([copy_data(b"1\t2\n"), copy_fail("too late")].concat(), "22P04"),
    ];
    for (rest, sqlstate) in &fails {
        wire.send(&query("COPY t FROM STDIN")).await.unwrap();
        expect_tags(&mut wire, "G").await;
        assert_eq!(sqlstates(&wire.exchange(std::slice::from_ref(rest)).await), [*sqlstate]);
        assert_eq!(other.value("SELECT count(*) FROM t").await, "0");
        assert_eq!(wire.value("SELECT 1").await, "1");

        wire.send(&copy_in_extended()).await.unwrap();
        expect_tags(&mut wire, "12G").await;
        assert_eq!(sqlstates(&wire.exchange(&[rest.clone(), sync()]).await), [*sqlstate]);
        assert_eq!(other.value("SELECT count(*) FROM t").await, "0");
        assert_eq!(wire.value("SELECT 1").await, "1");

        // In a transaction, all in one write, and followed by more.
        let pipeline = [query("BEGIN"), query("COPY t FROM STDIN"), rest.clone(), query("SELECT 1"), query("ROLLBACK")];
        wire.send(&pipeline.concat()).await.unwrap();
        let mut found = Vec::new();
        for _ in 0..4 {
            found.push(sqlstates(&wire.read_until_ready().await.unwrap()).concat());
        }
        assert_eq!(found, ["", sqlstate, "25P02", ""]);
        let pipeline = [copy_in_extended(), rest.clone(), sync(), query("SELECT 1")];
        assert_eq!(sqlstates(&wire.exchange(&pipeline).await), [*sqlstate]);
        assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "TDCZ");
        assert!(wire.is_silent(Duration::from_millis(20)).await);
    }
    // A COPY that is refused before it begins; the data goes nowhere.
    let refused = [query("COPY nowhere FROM STDIN"), copy_data(b"1\n"), copy_done()];
    assert_eq!(tags(&wire.exchange(&refused).await), "EZ");
    let refused =
        [parse("", "COPY nowhere FROM STDIN"), bind("", "", &[]), execute("", 0), copy_data(b"1\n"), copy_done()];
    assert_eq!(tags(&wire.exchange(&[refused.concat(), sync()]).await), "12EZ");
    assert_eq!(other.value("SELECT count(*) FROM t").await, "0");
    // One out that fails in the middle.
    let messages = wire.exchange(&[query("COPY (SELECT 1 / (3 - x) FROM generate_series(1, 5) x) TO STDOUT")]).await;
    assert_eq!((tags(&messages).as_str(), sqlstates(&messages)), ("HddEZ", vec!["22012".to_owned()]));
}

#[tokio::test]
async fn data_that_nobody_asked_for_is_passed_over() {
    let (_stage, mut wire, mut other) = stage().await;
    // Much of it, behind a COPY that has failed already, and with another client on the backend in between.
    wire.send(&query("COPY t FROM STDIN")).await.unwrap();
    expect_tags(&mut wire, "G").await;
    wire.send(&copy_data(b"one\n")).await.unwrap();
    expect_tags(&mut wire, "EZ").await;
    assert_eq!(other.value("SELECT 1").await, "1");
    for _ in 0..100 {
        wire.send(&copy_data(&[b'x'; 10_000])).await.unwrap();
        assert_eq!(other.value("SELECT 1").await, "1");
    }
    wire.send(&copy_done()).await.unwrap();
    assert_eq!(other.value("SELECT 1").await, "1");
    assert_eq!(wire.value("SELECT count(*) FROM t").await, "0");
    // Without any COPY.
    assert_eq!(
        tags(&wire.exchange(&[copy_data(b"1\n"), copy_done(), copy_fail("x"), query("SELECT 1")]).await),
        "TDCZ"
    );
    assert_eq!(tags(&wire.exchange(&[copy_data(b"1\n"), copy_done(), sync()]).await), "Z");
}

#[tokio::test]
async fn another_request_in_the_middle_of_a_copy_ends_the_session() {
    // PostgreSQL says that protocol synchronization was lost, and ends the backend.
    let (stage, _, mut other) = stage().await;
    let begin = [parse("", "COPY t FROM STDIN"), bind("", "", &[]), execute("", 0)].concat();
    let pipelines = [
        [query("COPY t FROM STDIN"), copy_data(b"1\n"), query("SELECT 1")],
        [query("COPY t FROM STDIN"), query("SELECT 1"), sync()],
        [begin.clone(), parse("", "SELECT 1"), sync()],
        [begin, sync(), query("SELECT 1")],
    ];
    for pipeline in pipelines {
        let mut wire = stage.client().await;
        wire.send(&pipeline.concat()).await.unwrap();
        let mut errors = Vec::new();
        while let Ok(message) = wire.read().await {
            errors.extend(sqlstates(&[message]));
        }
        assert_eq!(errors, ["08P01", "08P01"]);
        assert_eq!(other.value("SELECT count(*) FROM t").await, "0");
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_has_copied_nothing() {
    let (stage, mut wire, mut other) = stage().await;
    for goodbye in [true, false] {
        wire.send(&[query("COPY t FROM STDIN"), copy_data(b"1\n")].concat()).await.unwrap();
        expect_tags(&mut wire, "G").await;
        if goodbye {
            wire.send(&crate::harness::frontend::terminate()).await.unwrap();
        }
        drop(wire);
        assert_eq!(other.value("SELECT count(*) FROM t").await, "0");
        wire = stage.client().await;
    }
    // And one that leaves in the middle of a large result.
    wire.send(&query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 1000000)) TO STDOUT")).await.unwrap();
    expect_tags(&mut wire, "Hdd").await;
    drop(wire);
    assert_eq!(other.value("SELECT count(*) FROM t").await, "0");
    assert_eq!(stage.backends().await, 1);
}

#[tokio::test]
async fn replication_streams_both_ways() {
    let settings = vec![("wal_level".to_owned(), "logical".to_owned())];
    let (postgres, tenant) = instance(Options { settings, ..options() }).await;
    let verifier = add_role(&postgres, &tenant, "replica", "REPLICATION").await;
    let sql = "CREATE TABLE t (x int); CREATE PUBLICATION p FOR TABLE t; GRANT ALL ON t TO PUBLIC";
    postgres.sql("app", sql).await.unwrap();
    let files = ProxyFiles::new().instance("one", &postgres);
    let files =
        files.tenant_with(&tenant, &[("roles.replica.verifier", verifier.into()), ("pool.max_backends", 2.into())]);
    let proxy = Proxy::start(files).await;
    let mut replica = Wire::tcp(proxy.address()).await.unwrap();
    let parameters = [
        ("user", "replica.acme"),
        ("database", "app"),
        ("replication", "database"),
        ("application_name", "it"),
        ("options", "-c DateStyle=German"),
    ];
    replica.login_with(V3_0, &parameters, "secret").await.unwrap();
    assert_eq!(replica.parameters["application_name"], "it");
    assert_eq!(replica.value("SHOW DateStyle").await, "German, DMY");
    let row = replica.query("IDENTIFY_SYSTEM").await.unwrap().remove(0);
    assert_eq!(row[0], Some(postgres.system_identifier().unwrap().to_string()));
    replica.query("CREATE_REPLICATION_SLOT s TEMPORARY LOGICAL pgoutput").await.unwrap();
    let start = "START_REPLICATION SLOT s LOGICAL 0/0 (proto_version '1', publication_names 'p')";
    replica.send(&query(start)).await.unwrap();
    expect_tags(&mut replica, "W").await;

    postgres.sql("app", "INSERT INTO t VALUES (42)").await.unwrap();
    // XLogData with a pgoutput Insert, among keepalives; a status update goes the other way in between.
    let insert = loop {
        let message = replica.read().await.unwrap();
        assert_eq!(message.tag, b'd', "{message:?}");
        replica.send(&copy_data(&[&b"r"[..], &[0; 33]].concat())).await.unwrap();
        if message.payload[0] == b'w' && message.payload[25] == b'I' {
            break message;
        }
    };
    assert!(insert.payload.ends_with(b"\0\0\0\x0242"), "{insert:?}");
    // The stream ends, the connection goes on.
    replica.send(&copy_done()).await.unwrap();
    while replica.read().await.unwrap().tag != b'c' {}
    let rest = tags(&replica.read_until_ready().await.unwrap());
    assert!(rest.ends_with("CZ"), "{rest}");
    assert_eq!(replica.value("SELECT count(*) FROM t").await, "1");
    // Its backend ends with it: a walsender is nobody else's.
    drop(replica);
    let senders = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
    eventually!(postgres.sql("app", senders).await.unwrap()[0][0].as_deref() == Some("0"));
    let mut plain = client_as(proxy.address(), &tenant, "replica").await;
    assert_eq!(plain.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn postgresqls_own_programs_replicate_through_the_proxy() {
    let settings = vec![("wal_level".to_owned(), "logical".to_owned())];
    let hba = vec!["host replication replica 127.0.0.1/32 scram-sha-256".to_owned()];
    let (postgres, tenant) = instance(Options { settings, hba, ..options() }).await;
    let verifier = add_role(&postgres, &tenant, "replica", "REPLICATION").await;
    let files = ProxyFiles::new().instance("one", &postgres);
    let proxy = Proxy::start(files.tenant_with(&tenant, &[("roles.replica.verifier", verifier.into())])).await;
    let dir = tempfile::tempdir().unwrap();
    let program = |name: &str| {
        let mut command = tokio::process::Command::new(postgres.bin_dir().join(name));
        command.env("PGPASSWORD", "secret").env("PGHOST", "127.0.0.1").env("PGUSER", "replica.acme");
        command.env("PGPORT", proxy.address().port().to_string()).kill_on_drop(true).current_dir(dir.path());
        command
    };
    let slot = ["-d", "app", "--slot", "s", "--create-slot", "--start", "--no-loop", "-P", "test_decoding", "-f", "-"];
    let mut receiver = program("pg_recvlogical");
    let mut receiver = receiver.args(slot).stdout(std::process::Stdio::piped()).spawn().unwrap();
    eventually!(
        postgres.sql("app", "SELECT 1 FROM pg_replication_slots WHERE active").await.unwrap().len() == 1,
        "pg_recvlogical does not start"
    );
    postgres.sql("app", "CREATE TABLE t AS SELECT 42 AS x").await.unwrap();
    let mut received = String::new();
    let mut stdout = receiver.stdout.take().unwrap();
    while !received.contains("x[integer]:42") {
        let mut piece = [0; 1024];
        let read = tokio::time::timeout(Duration::from_secs(10), stdout.read(&mut piece)).await.unwrap().unwrap();
        assert!(read > 0, "pg_recvlogical ended: {received}");
        received += &String::from_utf8_lossy(&piece[..read]);
    }
    receiver.kill().await.unwrap();

    let output = program("pg_basebackup").args(["-D", "copy", "-X", "stream", "-c", "fast"]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(dir.path().join("copy/PG_VERSION").exists());
}
