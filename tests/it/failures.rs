//! Clients, backends and instances that die or fall silent: the other side is told, the slot returns, others notice nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pgtenant::cli::demo::tenant::{Onboarded, Order, onboard};
use tokio::task::JoinHandle;

use crate::eventually;
use crate::harness::faulty_link::{Fault, FaultyLink};
use crate::harness::frontend::{bind, copy_data, execute, flush, message, parse, query, terminate};
use crate::harness::postgres;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::stage::{Census, Stage, client, driver, instance, try_driver};
use crate::harness::wire::{Wire, sqlstates, tags};

/// What a client is told when its database went away under it, or cannot be reached.
fn is_proper(sqlstate: &str) -> bool {
    ["08006", "57P01", "57P02", "57P03"].contains(&sqlstate)
}

/// Reads to the end of the connection; gives the severity and SQLSTATE of every error.
async fn last_words(wire: &mut Wire) -> Vec<(String, String)> {
    let mut errors = Vec::new();
    while let Ok(message) = wire.read().await {
        if message.tag == b'E' {
            let error = message.error();
            errors.push((error.severity().to_owned(), error.sqlstate().to_owned()));
        }
    }
    errors
}

#[tokio::test]
async fn a_client_that_dies_leaves_no_transaction_no_lock_and_no_query() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let mut other = stage.client().await;
    other.query("CREATE TABLE t (x int); INSERT INTO t VALUES (0)").await.unwrap();
    let census = Census::begin(&stage.postgres, "usename = 'app'").await;
    let half_a_message = &query("UPDATE t SET x = 2; COMMIT")[..20];
    let halfway = [parse("", "UPDATE t SET x = 2"), bind("", "", &[]), execute("", 0), flush()].concat();
    let deaths: [(&str, Vec<Vec<u8>>); 7] = [
        ("in a transaction", vec![query("BEGIN; UPDATE t SET x = 1")]),
        ("in a failed transaction", vec![query("BEGIN; UPDATE t SET x = 1"), query("SELECT 1/0")]),
        ("with a goodbye in a transaction", vec![query("BEGIN; UPDATE t SET x = 1"), terminate()]),
        ("in a query", vec![query("BEGIN; UPDATE t SET x = 1"), query("SELECT pg_sleep(60)")]),
        ("in a message", vec![query("BEGIN; UPDATE t SET x = 1"), half_a_message.to_vec()]),
        ("before its Sync", vec![halfway]),
        ("in a COPY", vec![query("BEGIN; UPDATE t SET x = 1"), query("COPY t FROM STDIN"), copy_data(b"3\n")]),
    ];
    for (when, sent) in deaths {
        let mut wire = stage.client().await;
        for message in sent {
            wire.send(&message).await.unwrap();
        }
        // It has reached the instance; a goodbye is over by then.
        let at_work = "SELECT 1 FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'";
        eventually!(when.contains("goodbye") || !stage.sql(at_work).await.is_empty(), "{when}");
        let begin = Instant::now();
        drop(wire);
        assert_eq!(other.value("SELECT x FROM t FOR UPDATE").await, "0", "died {when}");
        assert!(begin.elapsed() < Duration::from_secs(5), "died {when}");
    }
    assert_eq!((stage.backends().await, census.most()), (1, 1));
    assert_eq!(
        stage.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid'").await[0][0].as_deref(),
        Some("0")
    );
}

#[tokio::test]
async fn a_client_that_resets_its_connection_in_a_large_result_frees_its_backend() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let link = FaultyLink::start(stage.proxy.address()).await.unwrap();
    let mut other = stage.client().await;
    for _ in 0..3 {
        link.set(Fault::CutAfter(1_000_000)).await;
        let mut wire = client(link.address(), &stage.tenant).await;
        wire.send(&query("SELECT repeat('x', 1000) FROM generate_series(1, 1000000)")).await.unwrap();
        while wire.read().await.is_ok() {}
        let begin = Instant::now();
        assert_eq!(other.value("SELECT 1").await, "1");
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
    assert_eq!(stage.backends().await, 1);
}

#[tokio::test]
async fn a_backend_that_dies_is_told_in_the_instances_own_words() {
    let stage = Stage::new(&[("pool.max_backends", 2.into())]).await;
    let mut other = stage.client().await;
    let kill = |condition: &str| {
        let sql =
            format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app' AND {condition}");
        let stage = &stage;
        async move { eventually!(stage.sql(&sql).await.len() == 1) }
    };
    // In a transaction, idle: the client hears of it without asking, as it would from PostgreSQL itself.
    let mut wire = stage.client().await;
    wire.query("BEGIN; SELECT 1").await.unwrap();
    kill("state = 'idle in transaction'").await;
    assert_eq!(last_words(&mut wire).await, [("FATAL".to_owned(), "57P01".to_owned())]);
    assert_eq!(other.value("SELECT 1").await, "1");
    // In a query.
    let mut wire = stage.client().await;
    wire.send(&query("SELECT pg_sleep(60)")).await.unwrap();
    kill("wait_event = 'PgSleep'").await;
    assert_eq!(last_words(&mut wire).await, [("FATAL".to_owned(), "57P01".to_owned())]);
    // In the middle of a result.
    let mut wire = stage.client().await;
    wire.send(&query("SELECT repeat('x', 1000), pg_sleep(0.001) FROM generate_series(1, 1000000)")).await.unwrap();
    assert_eq!(wire.read().await.unwrap().tag, b'T');
    assert_eq!(wire.read().await.unwrap().tag, b'D');
    kill("state = 'active'").await;
    assert_eq!(last_words(&mut wire).await, [("FATAL".to_owned(), "57P01".to_owned())]);
    // The driver hears the same.
    let driver = stage.driver().await;
    driver.batch_execute("BEGIN; SELECT 1").await.unwrap();
    kill("state = 'idle in transaction'").await;
    let error = driver.batch_execute("SELECT 1").await.unwrap_err();
    assert!(error.is_closed() || error.code().is_some_and(|code| code.code() == "57P01"), "{error:?}");
    for _ in 0..10 {
        assert_eq!(other.value("SELECT 1").await, "1");
    }
    assert!(stage.backends().await <= 2);
}

#[tokio::test]
async fn a_connection_to_the_instance_that_breaks_is_told_in_ours() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let link = FaultyLink::start(postgres.address()).await.unwrap();
    let proxy = Proxy::start(ProxyFiles::new().instance_at("one", link.address()).tenant(&tenant)).await;
    let mut idle = client(proxy.address(), &tenant).await;
    for request in ["BEGIN; SELECT 1", "SELECT pg_sleep(60)"] {
        let mut wire = client(proxy.address(), &tenant).await;
        wire.send(&query(request)).await.unwrap();
        eventually!(
            postgres
                .sql(
                    "app",
                    "SELECT 1 FROM pg_stat_activity WHERE usename = 'app' AND
            (state = 'idle in transaction' OR wait_event = 'PgSleep')"
                )
                .await
                .unwrap()
                .len()
                == 1
        );
        if request.starts_with("BEGIN") {
            wire.read_until_ready().await.unwrap();
        }
        link.close();
        assert_eq!(last_words(&mut wire).await, [("FATAL".to_owned(), "08006".to_owned())], "{request}");
        assert_eq!(idle.value("SELECT 1").await, "1");
    }
    // In the middle of a row nothing can be told: the connection ends, and no broken message is completed.
    link.set(Fault::CutAfter(100_000)).await;
    flush_idle_backend(&link, idle).await;
    let mut wire = client(proxy.address(), &tenant).await;
    wire.send(&query("SELECT repeat('x', 1000000)")).await.unwrap();
    assert_eq!(wire.read().await.unwrap().tag, b'T');
    assert!(wire.read().await.is_err());
    link.set(Fault::None).await;
    assert_eq!(client(proxy.address(), &tenant).await.value("SELECT 1").await, "1");
}

/// Breaks the connections to the instance and spends a client on the idle backend: the break may be noticed at once, or
/// when the request was sent already.
async fn flush_idle_backend(link: &FaultyLink, mut client: Wire) {
    link.close();
    client.send(&query("SELECT 1")).await.unwrap();
    while client.read().await.is_ok_and(|message| message.tag != b'Z') {}
}

#[tokio::test]
async fn a_backend_that_breaks_the_protocol_is_closed() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let rubbish: [&[u8]; 5] =
        [b"D\0\0\0\x03", b"D\xff\xff\xff\xff....", b"1\0\0\0\x04", b"Z\0\0\0\x05I", b"Z\0\0\0\x05?"];
    for bytes in rubbish {
        let liar = Liar::start(postgres.system_identifier().unwrap(), bytes).await;
        let proxy = Proxy::start(ProxyFiles::new().instance_at("one", liar.address).tenant(&tenant)).await;
        let mut wire = client(proxy.address(), &tenant).await;
        wire.send(&query("SELECT 1")).await.unwrap();
        assert_eq!(last_words(&mut wire).await, [("FATAL".to_owned(), "08006".to_owned())], "{bytes:?}");
        let mut wire = client(proxy.address(), &tenant).await;
        wire.send(&query("SELECT 1")).await.unwrap();
        assert_eq!(last_words(&mut wire).await, [("FATAL".to_owned(), "08006".to_owned())], "{bytes:?}");
    }
}

/// An instance that lets everybody in, proves its identity, and answers the first request with a proper ReadyForQuery and
/// with bytes that no request asked for.
struct Liar {
    address: std::net::SocketAddr,
    accepting: JoinHandle<()>,
}

impl Liar {
    async fn start(system_identifier: u64, bytes: &'static [u8]) -> Liar {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(Liar::lie(stream, system_identifier, bytes));
            }
        });
        Liar { address, accepting }
    }

    async fn lie(mut stream: tokio::net::TcpStream, system_identifier: u64, bytes: &[u8]) -> std::io::Result<()> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let ready = message(b'Z', b"I");
        let mut buffer = [0; 1024];
        let _ = stream.read(&mut buffer).await?;
        let key = message(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]);
        stream.write_all(&[message(b'R', &[0; 4]), key, ready.clone()].concat()).await?;
        let _ = stream.read(&mut buffer).await?;
        let column = |text: &str| [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
        let row = [&[0, 2][..], &column(&system_identifier.to_string()), &column("app")].concat();
        stream.write_all(&[message(b'D', &row), message(b'C', b"SELECT 1\0"), ready.clone()].concat()).await?;
        let _ = stream.read(&mut buffer).await?;
        stream.write_all(&[bytes, &ready].concat()).await?;
        while stream.read(&mut buffer).await? > 0 {}
        Ok(())
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Clients of one tenant that run transactions until they are told to stop. A client whose connection ended connects
/// again.
struct Load {
    over: Arc<AtomicBool>,
    finished: Arc<AtomicU32>,
    failed: Arc<AtomicU32>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn begin(proxy: &Proxy, tenant: &Onboarded, clients: usize) -> Load {
        let (over, finished, failed) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::default());
        let clients = (0..clients).map(|_| {
            let (address, tenant) = (proxy.address(), tenant.clone());
            let (over, finished, failed) = (Arc::clone(&over), Arc::clone(&finished), Arc::clone(&failed));
            tokio::spawn(run_load(address, tenant, over, finished, failed))
        });
        let clients = clients.collect();
        Load { over, finished, failed, clients }
    }

    fn finished(&self) -> u32 {
        self.finished.load(Ordering::Relaxed)
    }

    fn failed(&self) -> u32 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Ends it; gives every SQLSTATE that was seen, `closed` for a connection that ended without one.
    async fn end(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        let mut errors = Vec::new();
        for client in self.clients {
            errors.extend(client.await.unwrap());
        }
        errors
    }
}

async fn run_load(
    address: std::net::SocketAddr,
    tenant: Onboarded,
    over: Arc<AtomicBool>,
    finished: Arc<AtomicU32>,
    failed: Arc<AtomicU32>,
) -> Vec<String> {
    let mut errors = Vec::new();
    let mut connected = None;
    while !over.load(Ordering::Relaxed) {
        let answered = tokio::time::timeout(Duration::from_secs(20), async {
            let driver = match connected.take() {
                Some(driver) => driver,
                None => try_driver(address, &tenant).await?,
            };
            driver.batch_execute("BEGIN; SELECT pg_sleep(0.002), tenant FROM marker; COMMIT").await?;
            let row = driver.query_one("SELECT tenant FROM marker", &[]).await?;
            assert_eq!(row.get::<_, String>(0), tenant.tenant);
            connected = Some(driver);
            Ok::<_, tokio_postgres::Error>(())
        });
        match answered.await.expect("no request hangs") {
            Ok(()) => {
                finished.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                failed.fetch_add(1, Ordering::Relaxed);
                errors.push(error.code().map_or("closed".to_owned(), |code| code.code().to_owned()));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    errors
}

#[tokio::test]
async fn a_killed_instance_hurts_its_own_tenants_only_and_comes_back() {
    let (one, two) = tokio::join!(postgres::start(), postgres::start());
    let victim = onboard(&one, &Order::alone("acme", "one")).await.unwrap();
    let bystander = onboard(&two, &Order::alone("globex", "two")).await.unwrap();
    let files = ProxyFiles::new().set("pool.retry_max", "500ms").instance("one", &one).instance("two", &two);
    let proxy = Proxy::start(files.tenant(&victim).tenant(&bystander)).await;
    let (hit, spared) = (Load::begin(&proxy, &victim, 10), Load::begin(&proxy, &bystander, 10));
    eventually!(within Duration::from_secs(30), hit.finished() > 50 && spared.finished() > 50);
    for _ in 0..2 {
        one.kill().await;
        let (failed, finished) = (hit.failed(), spared.finished());
        eventually!(within Duration::from_secs(30), hit.failed() > failed + 20 && spared.finished() > finished + 50);
        one.restart().await.unwrap();
        let finished = hit.finished();
        eventually!(within Duration::from_secs(30), hit.finished() > finished + 50);
    }
    assert!(
        one.sql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE datname = 'app'").await.unwrap()[0][0]
            .as_deref()
            .unwrap()
            .parse::<u32>()
            .unwrap()
            <= 5
    );
    let (errors, spared_errors) = (hit.end().await, spared.end().await);
    assert_eq!(spared_errors, Vec::<String>::new());
    let improper: Vec<&String> = errors.iter().filter(|code| !is_proper(code) && *code != "closed").collect();
    assert!(improper.is_empty(), "{improper:?}");
    let wordless = errors.iter().filter(|code| *code == "closed").count();
    assert!(wordless * 2 < errors.len(), "{wordless} of {} without a word", errors.len());
}

#[tokio::test]
async fn an_instance_that_refuses_fails_fast_and_recovers() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let link = FaultyLink::start(postgres.address()).await.unwrap();
    let files = ProxyFiles::new().instance_at("one", link.address()).set("pool.retry_max", "200ms");
    let proxy = Proxy::start(files.tenant(&tenant)).await;
    let (mut wire, spent) = (client(proxy.address(), &tenant).await, client(proxy.address(), &tenant).await);
    link.set(Fault::Refuse).await;
    flush_idle_backend(&link, spent).await;
    let begin = Instant::now();
    for _ in 0..20 {
        let error = wire.query("SELECT 1").await.unwrap_err();
        assert_eq!((error.severity(), error.sqlstate()), ("ERROR", "08006"));
        assert!(!error.message().contains("127.0.0.1"), "an address is not the client's business: {error:?}");
    }
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert!(proxy.metric("pgtenant_backend_connects_total{instance_name=\"one\",result=\"unreachable\"").await >= 1.0);
    link.set(Fault::None).await;
    eventually!(within Duration::from_secs(2), wire.query("SELECT 1").await.is_ok());
}

#[tokio::test]
async fn an_instance_behind_a_black_hole_costs_a_timeout_once_and_recovers() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let link = FaultyLink::start(postgres.address()).await.unwrap();
    let files = ProxyFiles::new().instance_at("one", link.address());
    let files = files.set("pool.connect_timeout", "500ms").set("pool.retry", "2s").set("pool.retry_max", "2s");
    let proxy = Proxy::start(files.tenant(&tenant)).await;
    let (mut wire, spent) = (client(proxy.address(), &tenant).await, client(proxy.address(), &tenant).await);
    link.set(Fault::Refuse).await;
    flush_idle_backend(&link, spent).await;
    link.set(Fault::BlackHole).await;
    // At first the refusal from before the black hole holds.
    let mut took = Duration::ZERO;
    while took < Duration::from_millis(400) {
        let begin = Instant::now();
        let error = wire.query("SELECT 1").await.unwrap_err();
        assert_eq!((error.severity(), error.sqlstate()), ("ERROR", "08006"));
        took = begin.elapsed();
    }
    assert!(took < Duration::from_secs(5), "{took:?}");
    let begin = Instant::now();
    for _ in 0..5 {
        assert_eq!(wire.failure("SELECT 1").await, "08006");
    }
    assert!(begin.elapsed() < Duration::from_millis(400), "in between it fails fast");
    assert!(proxy.metric("pgtenant_backend_connects_total{instance_name=\"one\",result=\"timeout\"").await >= 1.0);
    link.set(Fault::None).await;
    eventually!(wire.query("SELECT 1").await.is_ok());
    // A black hole under a transaction: the client waits as it would without us, and goes on when it is lifted.
    wire.query("BEGIN; SELECT 1").await.unwrap();
    link.set(Fault::BlackHole).await;
    wire.send(&query("SELECT 1")).await.unwrap();
    assert!(wire.is_silent(Duration::from_millis(100)).await);
    link.set(Fault::None).await;
    assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "TDCZ");
    wire.query("COMMIT").await.unwrap();
}

#[tokio::test]
async fn a_stopped_instance_is_another_tenants_business() {
    let (one, two) = tokio::join!(postgres::start(), postgres::start());
    let gone = onboard(&one, &Order::alone("acme", "one")).await.unwrap();
    let here = onboard(&two, &Order::alone("globex", "two")).await.unwrap();
    one.stop().await;
    let files = ProxyFiles::new().instance("one", &one).instance("two", &two).tenant(&gone).tenant(&here);
    let proxy = Proxy::start(files).await;
    // The proxy starts without it; a login is refused with what is known of the database, not with a wrong password.
    let error = try_driver(proxy.address(), &gone).await.map(drop).unwrap_err();
    assert_eq!(error.code().map(|code| code.code()), Some("08006"), "{error:?}");
    let driver = driver(proxy.address(), &here).await;
    assert_eq!(driver.query_one("SELECT tenant FROM marker", &[]).await.unwrap().get::<_, String>(0), "globex");
    one.restart().await.unwrap();
    eventually!(try_driver(proxy.address(), &gone).await.is_ok());
}

#[tokio::test]
async fn a_fast_shutdown_of_the_instance_is_told() {
    let stage = Stage::new(&[]).await;
    let (mut idle, mut busy, mut open) = (stage.client().await, stage.client().await, stage.client().await);
    busy.send(&query("SELECT pg_sleep(60)")).await.unwrap();
    open.query("BEGIN; SELECT 1").await.unwrap();
    eventually!(stage.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'").await.len() == 1);
    stage.postgres.stop().await;
    for wire in [&mut busy, &mut open] {
        assert_eq!(last_words(wire).await, [("FATAL".to_owned(), "57P01".to_owned())]);
    }
    assert_eq!(idle.failure("SELECT 1").await, "08006");
    stage.postgres.restart().await.unwrap();
    eventually!(idle.query("SELECT 1").await.is_ok());
    let messages = idle.exchange(&[query("SELECT 1/0")]).await;
    assert_eq!(sqlstates(&messages), ["22012"]);
}
