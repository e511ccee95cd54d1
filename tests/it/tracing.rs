//! Spans at a small collector, and the lines in the log for what was slow.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use pgtenant::cli::demo::certificates::DevCa;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::eventually;
use crate::harness::certs;
use crate::harness::frontend::{bind, execute, parse, query, sync};
use crate::harness::postgres;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::scene::{Scene, connect};
use crate::harness::serve::Served;
use crate::harness::stage::{client, instance};
use crate::harness::wire::Wire;

const CALLER: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Takes OTLP over HTTP and keeps the spans.
struct Collector {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    spans: Arc<Mutex<Vec<Value>>>,
    task: JoinHandle<()>,
}

impl Collector {
    async fn start() -> Collector {
        Self::start_with(None).await
    }

    /// With TLS, where it is told how. Connections whose handshake fails are passed over.
    async fn start_with(tls: Option<TlsAcceptor>) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let spans: Arc<Mutex<Vec<Value>>> = Arc::default();
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let (kept, seen) = (spans.clone(), heads.clone());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream: Box<dyn Duplex> = match &tls {
                    None => Box::new(stream),
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => Box::new(stream),
                        Err(_) => continue,
                    },
                };
                let mut request = Vec::new();
                let body = loop {
                    stream.read_buf(&mut request).await.unwrap();
                    let text = String::from_utf8_lossy(&request).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
                    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
                    if body.len() >= length.parse().unwrap() {
                        seen.lock().unwrap().push(head.to_owned());
                        break body.to_owned();
                    }
                };
                let document: Value = serde_json::from_str(&body).unwrap();
                let spans = document["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
                kept.lock().unwrap().extend(spans.iter().cloned());
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
            }
        });
        Collector { address, heads, spans, task }
    }

    fn named(&self, name: &str) -> Vec<Value> {
        self.spans.lock().unwrap().iter().filter(|span| span["name"] == name).cloned().collect()
    }

    fn children(&self, of: &Value) -> Vec<String> {
        let spans = self.spans.lock().unwrap();
        let children = spans.iter().filter(|span| span["parentSpanId"] == of["spanId"]);
        children.map(|span| span["name"].as_str().unwrap().to_owned()).collect()
    }

    fn files(&self, scene: &Scene, sample: f64) -> ProxyFiles {
        let files = scene.files().set("tracing.endpoint", format!("http://{}", self.address));
        files.set("tracing.sample", sample).set("tracing.slow", "150ms")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn attribute(span: &Value, key: &str) -> Option<String> {
    let all = span["attributes"].as_array().unwrap();
    let found = all.iter().find(|attribute| attribute["key"] == key)?;
    Some(found["value"]["stringValue"].as_str().unwrap().to_owned())
}

fn traced(sql: &str, flags: &str) -> String {
    format!("{sql} /*traceparent='00-{CALLER}-00f067aa0ba902b7-{flags}'*/")
}

#[tokio::test]
async fn a_transaction_is_part_of_its_callers_trace() {
    let (collector, scene) = (Collector::start().await, Scene::new().await);
    let proxy = Proxy::start(collector.files(&scene, 1.0)).await;
    let mut wire = connect(&proxy, &scene.acme).await;
    wire.query(&traced("SELECT 1", "01")).await.unwrap();
    let extended = [parse("", &traced("SELECT 2", "01")), bind("", "", &[]), execute("", 0), sync()].concat();
    wire.send(&extended).await.unwrap();
    wire.read_until_ready().await.unwrap();
    wire.query("SELECT 3").await.unwrap();
    eventually!(collector.named("transaction").len() == 3);
    let spans = collector.named("transaction");
    let of_caller: Vec<_> = spans.iter().filter(|span| span["traceId"] == CALLER).collect();
    assert_eq!(of_caller.len(), 2, "{spans:?}");
    for span in of_caller {
        assert_eq!(span["parentSpanId"], "00f067aa0ba902b7");
        assert_eq!(collector.children(span), ["queue", "backend"]);
        assert_eq!(attribute(span, "pgtenant.tenant").as_deref(), Some("acme"));
        assert_eq!(attribute(span, "pgtenant.role"), Some(scene.acme.role.clone()));
        assert_eq!(attribute(span, "db.query.text"), None, "nobody asked for the text");
        assert!(span["status"].is_null());
        let nanos = |key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
        assert!(nanos("endTimeUnixNano") > nanos("startTimeUnixNano"));
    }
    eventually!(collector.named("login").len() == 1);
    let login = &collector.named("login")[0];
    assert_eq!(collector.children(login), ["accept", "tls", "route", "auth", "welcome"]);
    assert!(proxy.metric("pgtenant_spans_total{result=\"exported\"}").await >= 15.0);
}

#[tokio::test]
async fn the_slow_and_the_failed_are_kept_and_what_a_caller_records() {
    let (collector, scene) = (Collector::start().await, Scene::new().await);
    let proxy = Proxy::start(collector.files(&scene, 0.0).set("log.sql", true)).await;
    let mut wire = connect(&proxy, &scene.acme).await;
    for _ in 0..20 {
        wire.query("SELECT 'quick'").await.unwrap();
    }
    wire.query(&traced("SELECT 'unrecorded'", "00")).await.unwrap();
    wire.query(&traced("SELECT 'recorded'", "01")).await.unwrap();
    wire.failure("SELECT 1/0").await;
    wire.query("SELECT 'slow', pg_sleep(0.2)").await.unwrap();
    let mut stranger = Wire::tcp(proxy.address()).await.unwrap();
    stranger.login(&format!("{}.acme", scene.acme.role), "", "wrong").await.unwrap_err();
    // A wrong password. On a busy machine the good login may have been slow, and is kept as well.
    let has_failed = |span: &Value| span["status"]["code"] == 2;
    eventually!(collector.named("transaction").len() >= 3 && collector.named("login").iter().any(has_failed));
    let spans = collector.named("transaction");
    let texts: Vec<String> = spans.iter().filter_map(|span| attribute(span, "db.query.text")).collect();
    let [recorded, failed, slow] = &texts[..] else { panic!("{texts:?}") };
    assert!(recorded.contains("'recorded'") && failed.contains("1/0") && slow.contains("'slow'"), "{texts:?}");
    assert!(has_failed(&spans[1]));
}

#[tokio::test]
async fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    let (collector, scene) = (Collector::start().await, Scene::new().await);
    let files = collector.files(&scene, 1.0);
    let address = collector.address;
    drop(collector);
    eventually!(TcpListener::bind(address).await.is_ok());
    let proxy = Proxy::start(files).await;
    let mut wire = connect(&proxy, &scene.acme).await;
    wire.query("SELECT 1").await.unwrap();
    eventually!(proxy.metric("pgtenant_spans_total{result=\"failed\"}").await >= 3.0);
    wire.query("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn slow_transactions_and_waits_are_logged_without_their_text() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let files = ProxyFiles::new()
        .set("log.format", "json")
        .set("log.slow_transaction", "150ms")
        .set("log.slow_wait", "100ms")
        .instance("one", &postgres)
        .tenant_with(&tenant, &[("pool.max_backends", 1.into())]);
    let served = Served::start(files).await;
    let (mut one, mut two) = (client(served.address, &tenant).await, client(served.address, &tenant).await);
    one.query("SELECT 'quick'").await.unwrap();
    one.send(&query("SELECT 'private', pg_sleep(0.3)")).await.unwrap();
    eventually!(
        served.metric("pgtenant_tenant_backends{tenant=\"acme\",instance_name=\"one\",state=\"active\"}").await == 1.0
    );
    two.query("SELECT 'waited'").await.unwrap();
    one.read_until_ready().await.unwrap();
    let lines = |message: &str| {
        let events = served.events();
        events.into_iter().filter(|event| event["message"] == message).collect::<Vec<_>>()
    };
    eventually!(lines("slow transaction").len() == 2 && lines("slow wait for a backend").len() == 1);
    let wait = &lines("slow wait for a backend")[0];
    assert_eq!((&wait["tenant"], &wait["role"], &wait["instance"]), (&"acme".into(), &"app".into(), &"one".into()));
    assert!(wait["wait_seconds"].as_f64().unwrap() >= 0.1, "{wait}");
    assert!(!served.log().contains("private"), "{}", served.log());
}

#[tokio::test]
async fn a_collector_with_tls_has_to_be_vouched_for() {
    let (ours, others, scene) = (DevCa::new().unwrap(), DevCa::new().unwrap(), Scene::new().await);
    let folder = tempfile::tempdir().unwrap();
    let collector = Collector::start_with(Some(certs::server(&ours, &["localhost"]))).await;
    let files = |host: &str, ca: &DevCa| {
        let (path, token) = (folder.path().join("ca.crt"), folder.path().join("token"));
        std::fs::write(&path, ca.certificate()).unwrap();
        std::fs::write(&token, "sesame-0123456789\n").unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
        let files = scene.files().set("tracing.endpoint", format!("https://{host}:{}", collector.address.port()));
        let files = files.set("tracing.ca", path.to_str().unwrap()).set("tracing.sample", 1.0);
        files.set("tracing.token.file", token.to_str().unwrap())
    };
    let proxy = Proxy::start(files("localhost", &ours)).await;
    connect(&proxy, &scene.acme).await.query("SELECT 1").await.unwrap();
    eventually!(collector.named("transaction").len() == 1);
    let head = collector.heads.lock().unwrap()[0].clone();
    assert!(head.contains("\r\nAuthorization: Bearer sesame-0123456789\r\n"), "{head}");
    drop(proxy);
    for (host, ca) in [("localhost", &others), ("127.0.0.1", &ours)] {
        let proxy = Proxy::start(files(host, ca)).await;
        connect(&proxy, &scene.acme).await.query("SELECT 1").await.unwrap();
        eventually!(proxy.metric("pgtenant_spans_total{result=\"failed\"}").await >= 3.0);
    }
    assert_eq!(collector.named("transaction").len(), 1);
}

/// Clients that keep their backend: in session mode, and in transaction mode because of a temporary table.
#[tokio::test]
async fn each_transaction_of_a_client_with_a_backend_of_its_own_is_a_trace() {
    for mode in ["session", "transaction"] {
        let collector = Collector::start().await;
        let (postgres, tenant) = instance(postgres::options()).await;
        let files = ProxyFiles::new()
            .set("tracing.endpoint", format!("http://{}", collector.address))
            .set("tracing.sample", 1.0)
            .set("log.format", "json")
            .set("log.sql", true)
            .set("log.slow_transaction", "500ms")
            .instance("one", &postgres)
            .tenant_with(&tenant, &[("pool.mode", mode.into())]);
        let served = Served::start(files).await;
        let mut wire = client(served.address, &tenant).await;
        wire.query("CREATE TEMP TABLE mine (x int)").await.unwrap();
        // What the client does not ask for costs no transaction time.
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        wire.query(&traced("INSERT INTO mine VALUES (1)", "01")).await.unwrap();
        wire.query("BEGIN").await.unwrap();
        wire.query("SELECT 'second'").await.unwrap();
        wire.query("COMMIT").await.unwrap();
        wire.failure("SELECT 1/0").await;
        let extended = [parse("", "SELECT pg_sleep(0.6)"), bind("", "", &[]), execute("", 0), sync()].concat();
        wire.send(&extended).await.unwrap();
        wire.read_until_ready().await.unwrap();
        eventually!(collector.named("transaction").len() == 5, "{mode}: {:#?}", collector.named("transaction"));
        let spans = collector.named("transaction");
        let texts: Vec<String> = spans.iter().filter_map(|span| attribute(span, "db.query.text")).collect();
        let starts = ["CREATE TEMP", "INSERT", "BEGIN", "SELECT 1/0", "SELECT pg_sleep"];
        assert!(texts.iter().zip(starts).all(|(text, start)| text.starts_with(start)), "{mode}: {texts:?}");
        assert!(spans[1]["traceId"] == CALLER && spans[1]["parentSpanId"] == "00f067aa0ba902b7", "{:?}", spans[1]);
        assert_eq!(collector.children(&spans[2]), ["queue", "backend"]);
        let failed: Vec<bool> = spans.iter().map(|span| span["status"]["code"] == 2).collect();
        assert_eq!(failed, [false, false, false, true, false], "{mode}");
        let slow: Vec<Value> =
            served.events().into_iter().filter(|event| event["message"] == "slow transaction").collect();
        let [slow] = &slow[..] else { panic!("{mode}: {slow:?}") };
        assert!(slow["sql"] == "SELECT pg_sleep(0.6)" && slow["seconds"].as_f64().unwrap() >= 0.6, "{slow}");
        let sum = served.metric("pgtenant_transaction_seconds_sum{instance_name=\"one\",tier=\"none\"}").await;
        assert!((0.6..1.1).contains(&sum), "{mode}: {sum}");
    }
}

#[tokio::test]
async fn a_slow_wait_at_a_login_in_session_mode_is_logged() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let files = ProxyFiles::new().set("log.format", "json").set("log.slow_wait", "100ms").instance("one", &postgres);
    let files = files.tenant_with(&tenant, &[("pool.mode", "session".into()), ("pool.max_backends", 1.into())]);
    let served = Served::start(files).await;
    let first = client(served.address, &tenant).await;
    let second = tokio::spawn({
        let (address, tenant) = (served.address, tenant.clone());
        async move { client(address, &tenant).await }
    });
    eventually!(served.metric("pgtenant_tenant_clients_waiting{tenant=\"acme\",instance_name=\"one\"}").await == 1.0);
    tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    drop(first);
    second.await.unwrap();
    eventually!(served.events().iter().any(|event| event["message"] == "slow wait for a backend"
        && event["tenant"] == "acme"
        && event["wait_seconds"].as_f64().unwrap() >= 0.15));
}
