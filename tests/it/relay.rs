//! The relay: simple and extended protocol, pipelines, portals, errors anywhere, notifications, large messages.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pgtenant::cli::demo::certificates::DevCa;
use secrecy::ExposeSecret;

use crate::eventually;
use crate::harness::frontend::{
    bind, close_portal, close_statement, describe_portal, describe_statement, execute, flush, function_call, message,
    parse, query, sync,
};
use crate::harness::proxy::ProxyFiles;
use crate::harness::serve::Served;
use crate::harness::stage::{Stage, client, instance};
use crate::harness::wire::{Wire, sqlstates, tags, values};
use crate::harness::{certs, frontend, postgres};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn simple_queries_of_every_shape() {
    let stage = Stage::new(&[]).await;
    let mut wire = stage.client().await;
    let cases = [
        ("SELECT 1", "TDCZ"),
        ("", "IZ"),
        (";", "IZ"),
        ("SELECT 1; SELECT 2 WHERE false; CREATE TABLE t (x int)", "TDCTCCZ"),
        ("SELECT 1; SELECT 1/0; SELECT 2", "TDCEZ"),
        ("SELECT syntax error", "EZ"),
        ("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$", "NNCZ"),
        ("INSERT INTO t VALUES (1), (2) RETURNING x", "TDDCZ"),
        ("SELECT", "TDCZ"),
        ("BEGIN; SELECT 1; COMMIT", "CTDCCZ"),
        // Inside a transaction block that the message itself opens.
        ("BEGIN; SELECT 1/0", "CEZ"),
        ("SELECT 1", "EZ"),
        ("COMMIT", "CZ"),
        ("SET application_name = 'x'", "CSZ"),
        ("SELECT 1", "TDCZ"),
    ];
    for (sql, expected) in cases {
        let messages = wire.exchange(&[query(sql)]).await;
        // The order of ParameterStatus and CommandComplete is PostgreSQL's business.
        let found = tags(&messages).replace("SCZ", "CSZ");
        assert_eq!(found, expected, "{sql}: {messages:?}");
    }
    assert_eq!(wire.parameters["application_name"], "x");
    assert_eq!(stage.backends().await, 1);
}

#[tokio::test]
async fn an_error_in_a_transaction_stays_until_it_is_rolled_back() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let (mut wire, driver) = (stage.client().await, stage.driver().await);
    wire.query("CREATE TABLE t (x int)").await.unwrap();
    assert_eq!(wire.exchange(&[query("BEGIN")]).await[1].status(), 'T');
    wire.query("INSERT INTO t VALUES (1)").await.unwrap();
    let messages = wire.exchange(&[query("SELECT 1/0")]).await;
    assert_eq!((sqlstates(&messages), messages.last().unwrap().status()), (vec!["22012".to_owned()], 'E'));
    assert_eq!(wire.failure("SELECT 1").await, "25P02");
    let batch = [parse("", "SELECT 1"), bind("", "", &[]), execute("", 0), sync()];
    let messages = wire.exchange(&batch).await;
    assert_eq!((sqlstates(&messages), messages.last().unwrap().status()), (vec!["25P02".to_owned()], 'E'));
    let messages = wire.exchange(&[query("COMMIT")]).await;
    assert_eq!((&messages[0].payload[..], messages[1].status()), (&b"ROLLBACK\0"[..], 'I'));
    let rows = driver.query("SELECT x FROM t", &[]).await.unwrap();
    assert!(rows.is_empty());
}

#[tokio::test]
async fn the_extended_protocol_with_flush_and_without_sync() {
    let changes = [("pool.max_backends", 1.into()), ("pool.queue_timeout", "100ms".into())];
    let stage = Stage::new(&changes).await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    let steps = [
        (parse("s", "SELECT $1::int"), "1"),
        (describe_statement("s"), "tT"),
        (bind("p", "s", &[Some("7")]), "2"),
        (describe_portal("p"), "T"),
        (execute("p", 0), "DC"),
        (close_portal("p"), "3"),
        (close_statement("s"), "3"),
    ];
    for (step, expected) in steps {
        wire.send(&[step, flush()].concat()).await.unwrap();
        for tag in expected.chars() {
            assert_eq!(char::from(wire.read().await.unwrap().tag), tag);
        }
        // Without its Sync the transaction is open.
        assert_eq!(other.failure("SELECT 1").await, "53300");
    }
    assert_eq!(tags(&wire.exchange(&[sync()]).await), "Z");
    assert_eq!(other.value("SELECT 1").await, "1");
    // Sync alone, Flush alone, and an empty query in the extended protocol.
    assert_eq!(tags(&wire.exchange(&[flush(), sync()]).await), "Z");
    assert_eq!(tags(&wire.exchange(&[parse("", ""), bind("", "", &[]), execute("", 0), sync()]).await), "12IZ");
    // A simple query ends a batch without a Sync.
    let messages = wire.exchange(&[parse("", "SELECT 1"), query("SELECT 2")]).await;
    assert_eq!(tags(&messages), "1TDCZ");
    assert_eq!(other.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn messages_in_pieces_of_any_size() {
    let stage = Stage::new(&[]).await;
    let mut wire = stage.client().await;
    let batch = [
        parse("statement", "SELECT $1::text, repeat('x', 100)"),
        bind("", "statement", &[Some("seven")]),
        describe_portal(""),
        execute("", 0),
        close_statement("statement"),
        sync(),
        query("SELECT 1"),
    ]
    .concat();
    for size in [1, 2, 3, 7, 20, 61] {
        for piece in batch.chunks(size) {
            wire.send(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "12TDC3Z", "pieces of {size}");
        assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "TDCZ", "pieces of {size}");
    }
}

#[tokio::test]
async fn portals_go_on_across_executes() {
    let stage = Stage::new(&[("pool.max_backends", 2.into())]).await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    wire.query("BEGIN; SELECT 1").await.unwrap();
    let open = [parse("", "SELECT generate_series(1, 7)"), bind("p", "", &[]), execute("p", 2), sync()];
    let messages = wire.exchange(&open).await;
    assert_eq!((tags(&messages), values(&messages)), ("12DDsZ".to_owned(), vec!["1".to_owned(), "2".to_owned()]));
    other.query("SELECT 1").await.unwrap();
    let messages = wire.exchange(&[execute("p", 3), sync()]).await;
    assert_eq!((tags(&messages), values(&messages).concat()), ("DDDsZ".to_owned(), "345".to_owned()));
    let messages = wire.exchange(&[execute("p", 0), close_portal("p"), sync()]).await;
    assert_eq!((tags(&messages), values(&messages).concat()), ("DDC3Z".to_owned(), "67".to_owned()));
    wire.query("COMMIT").await.unwrap();
    // Within one implicit transaction; the portal ends with it.
    let series = parse("", "SELECT generate_series(1, 3)");
    let messages = wire.exchange(&[series, bind("p", "", &[]), execute("p", 1), execute("p", 1), sync()]).await;
    assert_eq!(tags(&messages), "12DsDsZ");
    assert_eq!(sqlstates(&wire.exchange(&[execute("p", 1), sync()]).await), ["34000"]);

    // A driver's way to the same.
    let mut driver = stage.driver().await;
    let transaction = driver.transaction().await.unwrap();
    let portal = transaction.bind("SELECT generate_series(1, 5)", &[]).await.unwrap();
    for expected in [2, 2, 1, 0] {
        assert_eq!(transaction.query_portal(&portal, 2).await.unwrap().len(), expected);
    }
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn several_batches_in_flight() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let mut wire = stage.client().await;
    let batch = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
    let pipeline = [
        batch("SELECT 1"),
        batch("SELECT 1/0"),
        batch("SELECT wrong"),
        batch("BEGIN"),
        batch("SELECT 1/0"),
        batch("SELECT 1"),
        batch("ROLLBACK"),
        query("SELECT 1; SELECT 1/0"),
        batch("SELECT 3"),
        function_call(1258, &["a", "b"]),
        query(""),
    ];
    wire.send(&pipeline.concat()).await.unwrap();
    let mut found = Vec::new();
    for _ in 0..pipeline.len() {
        let messages = wire.read_until_ready().await.unwrap();
        found.push(format!("{} {}", tags(&messages), messages.last().unwrap().status()));
    }
    let expected =
        ["12DCZ I", "1EZ I", "EZ I", "12CZ T", "1EZ E", "EZ E", "12CZ I", "TDCEZ I", "12DCZ I", "VZ I", "IZ I"];
    assert_eq!(found, expected);
    assert!(wire.is_silent(Duration::from_millis(50)).await);
}

#[tokio::test]
async fn a_thousand_queries_are_written_before_anything_is_read() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    let simple: Vec<u8> = (0..1000).flat_map(|number| query(&format!("SELECT {number}, repeat('x', 500)"))).collect();
    wire.send(&simple).await.unwrap();
    for number in 0..1000 {
        let messages = wire.read_until_ready().await.unwrap();
        assert_eq!(values(&messages), [number.to_string()]);
    }
    assert_eq!(other.value("SELECT 1").await, "1");
    wire.exchange(&[parse("s", "SELECT $1::int, repeat('x', 500)"), sync()]).await;
    let batch = |number: u32| [bind("", "s", &[Some(&number.to_string())]), execute("", 0), sync()].concat();
    let extended: Vec<u8> = (0..1000).flat_map(batch).collect();
    wire.send(&extended).await.unwrap();
    for number in 0..1000 {
        let messages = wire.read_until_ready().await.unwrap();
        assert_eq!(values(&messages), [number.to_string()]);
    }
    // The same from a driver that pipelines.
    let driver = stage.driver().await;
    let statement = driver.prepare("SELECT $1::int4").await.unwrap();
    let numbers: Vec<i32> = (0..1000).collect();
    let asked: Vec<_> = numbers
        .iter()
        .map(|number| {
            let (driver, statement) = (&driver, &statement);
            async move { driver.query_one(statement, &[number]).await.unwrap().get::<_, i32>(0) }
        })
        .collect();
    assert_eq!(join_all(asked).await, numbers);
    assert_eq!(other.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn more_requests_than_may_be_under_way_are_all_answered() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let mut wire = stage.client().await;
    // A batch without its Sync for long: the backend gives its answers only when it is asked to.
    let parses = [parse("s", "SELECT 1"), close_statement("s")].concat().repeat(140_000);
    wire.send(&[parses, sync()].concat()).await.unwrap();
    for _ in 0..140_000 {
        assert_eq!(wire.read().await.unwrap().tag, b'1');
        assert_eq!(wire.read().await.unwrap().tag, b'3');
    }
    assert_eq!(wire.read().await.unwrap().status(), 'I');
    assert_eq!(stage.client().await.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn an_error_skips_the_rest_of_its_batch_and_nothing_else() {
    let stage = Stage::new(&[]).await;
    let mut wire = stage.client().await;
    wire.query("CREATE TABLE t (x int)").await.unwrap();
    // Everything after the failing Execute is passed over: the insert, a Parse, a Close.
    let batch = [
        parse("kept", "SELECT 1"),
        parse("bad", "SELECT 1 / (SELECT count(*) FROM t)"),
        bind("", "bad", &[]),
        execute("", 0),
        parse("never", "SELECT 2"),
        close_statement("kept"),
        parse("", "INSERT INTO t VALUES (1)"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ];
    assert_eq!(tags(&wire.exchange(&batch).await), "112EZ");
    assert_eq!(wire.value("SELECT count(*) FROM t").await, "0");
    assert_eq!(tags(&wire.exchange(&[bind("", "kept", &[]), execute("", 0), sync()]).await), "2DCZ");
    assert_eq!(sqlstates(&wire.exchange(&[bind("", "never", &[]), sync()]).await), ["26000"]);
    assert_eq!(tags(&wire.exchange(&[parse("never", "SELECT 3"), sync()]).await), "1Z");
    // A batch that fails at its first message, with the rest still to come.
    wire.send(&[bind("", "nowhere", &[]), flush()].concat()).await.unwrap();
    wire.expect_error("26000").await;
    wire.send(&[execute("", 0), parse("later", "SELECT 4"), flush()].concat()).await.unwrap();
    assert_eq!(tags(&wire.exchange(&[sync()]).await), "Z");
    assert_eq!(sqlstates(&wire.exchange(&[bind("", "later", &[]), sync()]).await), ["26000"]);
    assert_eq!(tags(&wire.exchange(&[bind("", "never", &[]), execute("", 0), sync()]).await), "2DCZ");
}

#[tokio::test]
async fn function_calls() {
    let stage = Stage::new(&[]).await;
    let mut wire = stage.client().await;
    let messages = wire.exchange(&[function_call(1258, &["a", "bc"])]).await;
    assert_eq!(tags(&messages), "VZ");
    assert!(messages[0].payload.ends_with(b"abc"));
    assert_eq!(tags(&wire.exchange(&[function_call(1, &[])]).await), "EZ");
    assert_eq!(wire.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn notifications_reach_a_listener_that_holds_its_backend() {
    let stage = Stage::new(&[("pool.mode", "session".into())]).await;
    let (mut listener, mut other) = (stage.client().await, stage.client().await);
    listener.query("LISTEN news").await.unwrap();
    other.query("NOTIFY news, 'while idle'").await.unwrap();
    let notification = listener.read().await.unwrap();
    assert!(notification.tag == b'A' && notification.payload.ends_with(b"news\0while idle\0"), "{notification:?}");
    listener.query("BEGIN; SELECT 1").await.unwrap();
    other.query("NOTIFY news, 'in a transaction'").await.unwrap();
    assert!(listener.is_silent(Duration::from_millis(50)).await);
    let messages = listener.exchange(&[query("COMMIT")]).await;
    assert!(tags(&messages).contains('A') || listener.read().await.unwrap().tag == b'A');
}

#[tokio::test]
async fn a_transaction_hears_its_own_notification() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    let messages = wire.exchange(&[query("BEGIN; LISTEN news; NOTIFY news, 'x'; COMMIT")]).await;
    assert_eq!(tags(&messages).matches('A').count(), 1, "{messages:?}");
    wire.query("UNLISTEN *").await.unwrap();
    // Nobody else listens on the backend that is handed on.
    assert_eq!(other.value("SELECT count(*) FROM pg_listening_channels()").await, "0");
}

#[tokio::test]
async fn a_terminate_behind_queries_lets_them_finish() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let mut wire = stage.client().await;
    wire.query("CREATE TABLE t (x int)").await.unwrap();
    wire.send(&[query("INSERT INTO t SELECT 1 FROM pg_sleep(0.1)"), frontend::terminate()].concat()).await.unwrap();
    assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "CZ");
    assert!(wire.is_closed().await);
    assert_eq!(stage.client().await.value("SELECT count(*) FROM t").await, "1");
}

#[tokio::test]
async fn a_terminate_in_the_middle_of_a_batch_frees_the_backend() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let mut other = stage.client().await;
    other.query("CREATE TABLE t (x int)").await.unwrap();
    let insert = [parse("", "INSERT INTO t VALUES (1)"), bind("", "", &[]), execute("", 0)].concat();
    for batch in [[insert.clone(), flush()].concat(), insert, parse("", "SELECT 1"), flush(), query("BEGIN")] {
        let mut wire = stage.client().await;
        wire.send(&[batch, frontend::terminate()].concat()).await.unwrap();
        while wire.read().await.is_ok() {}
        assert_eq!(other.value("SELECT count(*) FROM t").await, "0");
    }
}

#[tokio::test]
async fn sixty_four_mebibytes_each_way_in_bounded_memory() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let mut served = Served::start(ProxyFiles::new().instance("one", &postgres).tenant(&tenant)).await;
    let mut wire = client(served.address, &tenant).await;
    wire.deadline = Duration::from_secs(60);
    wire.query("SELECT 1").await.unwrap();
    let before = served.peak_memory();
    let text = "x".repeat(64 << 20);

    assert_eq!(wire.value(&format!("SELECT length('{text}')")).await, text.len().to_string());
    assert_eq!(wire.value("SELECT repeat('x', 64 << 20)").await.len(), text.len());
    let batch = [parse("", "SELECT length($1), $1"), bind("", "", &[Some(&text)]), execute("", 0), sync()];
    let messages = wire.exchange(&batch).await;
    assert_eq!(messages[2].row()[1].as_deref().map(str::len), Some(text.len()));
    // A statement too long to be remembered, under a name, on the backend that its client keeps.
    let long = format!("SELECT length('{text}')");
    assert_eq!(tags(&wire.exchange(&[parse("long", &long), sync()]).await), "1Z");
    let messages = wire.exchange(&[bind("", "long", &[]), execute("", 0), close_statement("long"), sync()]).await;
    assert_eq!(values(&messages), [text.len().to_string()]);

    let grown = served.peak_memory() - before;
    assert!(grown < 16 * MIB, "{} MiB more than before", grown / MIB);
    assert!(!served.has_ended());
}

#[tokio::test]
async fn the_same_over_tls() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let ca = DevCa::new().unwrap();
    let files = ProxyFiles::new().instance("one", &postgres).certificate(&ca, &["db.localhost"]);
    let served = Served::start(files.tenant_with(&tenant, &[("pool.max_backends", 1.into())])).await;
    let connect = async || {
        let mut wire = Wire::tls(served.address, Arc::new(certs::client(&ca)), "db.localhost").await.unwrap();
        wire.deadline = Duration::from_secs(60);
        wire.login("app.acme", "app", tenant.password.expose_secret()).await.unwrap();
        wire
    };
    let (mut wire, mut slow) = (connect().await, connect().await);
    let before = served.peak_memory();
    let text = "x".repeat(16 << 20);
    assert_eq!(wire.value(&format!("SELECT length('{text}')")).await, text.len().to_string());
    assert_eq!(wire.value("SELECT repeat('x', 16 << 20)").await.len(), text.len());
    let pipeline: Vec<u8> = (0..1000).flat_map(|number| query(&format!("SELECT {number}, repeat('x', 500)"))).collect();
    wire.send(&pipeline).await.unwrap();
    for number in 0..1000 {
        assert_eq!(values(&wire.read_until_ready().await.unwrap()), [number.to_string()]);
    }
    slow.send(&query("SELECT repeat('x', 10000) FROM generate_series(1, 100000)")).await.unwrap();
    let blocked = "SELECT 1 FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'ClientWrite'";
    eventually!(within Duration::from_secs(30), postgres.sql("postgres", blocked).await.unwrap().len() == 1);
    let grown = served.peak_memory() - before;
    assert!(grown < 16 * MIB, "{} MiB more than before", grown / MIB);
    drop(slow);
    assert_eq!(wire.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_fill_our_memory() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let files = ProxyFiles::new().instance("one", &postgres).tenant_with(&tenant, &[("pool.max_backends", 1.into())]);
    let served = Served::start(files).await;
    let mut slow = client(served.address, &tenant).await;
    slow.query("SELECT 1").await.unwrap();
    let before = served.peak_memory();
    slow.send(&query("SELECT repeat('x', 10000) FROM generate_series(1, 100000)")).await.unwrap();
    // The instance itself has to wait for the client.
    let blocked = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'ClientWrite'";
    eventually!(within Duration::from_secs(30), postgres.sql("postgres", blocked).await.unwrap()[0][0].as_deref() == Some("1"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(postgres.sql("postgres", blocked).await.unwrap()[0][0].as_deref(), Some("1"));
    let grown = served.peak_memory() - before;
    assert!(grown < 8 * MIB, "{} MiB more than before", grown / MIB);
    // It goes away with its result half sent: the query ends, the slot returns.
    drop(slow);
    let mut next = client(served.address, &tenant).await;
    assert_eq!(next.value("SELECT 1").await, "1");
    eventually!(postgres.sql("postgres", blocked).await.unwrap()[0][0].as_deref() == Some("0"));
}

#[tokio::test]
async fn a_slow_backend_holds_its_client_back() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let served = Served::start(ProxyFiles::new().instance("one", &postgres).tenant(&tenant)).await;
    let mut wire = client(served.address, &tenant).await;
    // The first row takes as long as somebody holds the lock.
    wire.query("CREATE TABLE t (x text)").await.unwrap();
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;
                CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slow()";
    wire.query(slow).await.unwrap();
    let holder = postgres.connect("app").await.unwrap();
    holder.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
    assert_eq!(wire.value("SELECT 1").await, "1");
    let before = served.peak_memory();
    wire.send(&query("COPY t FROM STDIN")).await.unwrap();
    assert_eq!(wire.read().await.unwrap().tag, b'G');
    let row = frontend::copy_data(format!("{}\n", "x".repeat(1 << 20)).as_bytes());
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_secs(1), wire.send(&row)).await.is_ok() {
        sent += 1;
        assert!(sent < 64, "nobody holds the client back");
    }
    let grown = served.peak_memory() - before;
    assert!(grown < 8 * MIB, "{} MiB more than before", grown / MIB);
    drop(holder);
    drop(wire);
    eventually!(crate::harness::stage::backends(&postgres, &tenant).await == 0);
}

#[tokio::test]
async fn a_client_that_only_asks_does_not_fill_our_memory() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let files = ProxyFiles::new().instance("one", &postgres).tenant_with(&tenant, &[("pool.max_backends", 1.into())]);
    let served = Served::start(files).await;
    let known = [parse("s", "SELECT 1"), close_statement("s")].concat();
    let floods = [
        sync(),
        describe_portal(""),
        close_portal(""),
        [parse("", ""), sync()].concat(),
        known.clone(),
        // This one needs no backend: the pool knows the statement.
        [known, sync()].concat(),
        query(""),
    ];
    for flood in floods {
        let mut wire = client(served.address, &tenant).await;
        let before = served.peak_memory();
        let many = flood.repeat(100_000);
        let mut sent = 0_u64;
        while sent < 48 * MIB && tokio::time::timeout(Duration::from_millis(500), wire.send(&many)).await.is_ok() {
            sent += many.len() as u64;
        }
        let grown = served.peak_memory() - before;
        // Of these, a worker's buffers for receiving and what a slow reader may keep of them are two.
        assert!(grown < 28 * MIB, "{} MiB more than before, for {} MiB sent", grown / MIB, sent / MIB);
        // Behind the error of the one that names no portal everything is passed over, and answered by nobody.
        assert!(sent < 48 * MIB || flood == describe_portal(""), "nobody holds the client back");
        drop(wire);
        assert_eq!(client(served.address, &tenant).await.value("SELECT 1").await, "1");
    }
}

#[tokio::test]
async fn an_unknown_message_ends_the_session_and_not_the_backends_cleanliness() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    wire.query("CREATE TABLE t (x int)").await.unwrap();
    wire.send(&[query("BEGIN; INSERT INTO t VALUES (1)"), message(b'!', b"what")].concat()).await.unwrap();
    let mut states = Vec::new();
    while let Ok(message) = wire.read().await {
        states.extend(sqlstates(&[message]));
    }
    assert_eq!(states, ["08P01"]);
    assert_eq!(other.value("SELECT count(*) FROM t").await, "0");
}
