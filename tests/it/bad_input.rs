//! What a hostile or broken client sends: an error in the protocol's own form or a closed socket, within its deadline
//! and with flat memory, and other clients notice nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgtenant::cli::demo::certificates::DevCa;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::eventually;
use crate::harness::proxy::{Proxy, http_get};
use crate::harness::scene::{Scene, connect, failure, log_in, marker, password};
use crate::harness::serve::Served;
use crate::harness::wire::{Wire, cancel};
use crate::harness::{certs, frontend};

const LOGINS: &str = "pgtenant_logins_in_progress";

fn startup() -> Vec<u8> {
    frontend::startup(frontend::V3_0, &[("user", "acme"), ("options", "-c tenant=acme")])
}

/// Packets that are wrong from their first bytes on.
fn wrong_packets() -> Vec<(&'static str, Vec<u8>)> {
    let length = |length: i32| length.to_be_bytes().to_vec();
    let body = |body: &[u8]| frontend::untagged(frontend::V3_0, body);
    vec![
        ("zero length", length(0)),
        ("length of itself alone", length(4)),
        ("shorter than a code", length(7)),
        ("negative", length(-1)),
        ("most negative", length(i32::MIN)),
        ("longest", length(i32::MAX)),
        ("one more than allowed", [length(10_001), vec![b'x'; 9_997]].concat()),
        ("a parameter without a value", body(b"user\0")),
        ("no terminator", body(b"user\0acme\0")),
        ("rubbish behind the terminator", body(b"user\0acme\0\0rubbish\0")),
        ("nothing", body(b"\0")),
        ("no user", body(b"database\0acme\0\0")),
        ("a web browser", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("a short cancel request", frontend::untagged(80_877_102, &[1, 2])),
        ("a long cancel request", frontend::untagged(80_877_102, &[7; 300])),
        ("an SSLRequest with a body", frontend::untagged(80_877_103, &[0; 8])),
    ]
}

/// Sends bytes on a new connection, ends our direction if told so, and reads to the end of the answer.
async fn exchange(address: SocketAddr, bytes: &[u8], then_close: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    let talk = async {
        // The other side may have closed it in the middle.
        let _ = stream.write_all(bytes).await;
        if then_close {
            let _ = stream.shutdown().await;
        }
        let _ = stream.read_to_end(&mut answer).await;
    };
    tokio::time::timeout(Duration::from_secs(10), talk).await.expect("an end within the deadline");
    answer
}

#[tokio::test]
async fn wrong_startup_packets() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files().set("auth.login_timeout", "2s")).await;
    let mut bystander = connect(&proxy, &scene.acme).await;
    bystander.query("BEGIN; SELECT 1").await.unwrap();
    for (name, packet) in wrong_packets() {
        let begun = Instant::now();
        let answer = exchange(proxy.address(), &packet, false).await;
        assert!(begun.elapsed() < Duration::from_secs(4), "{name}");
        // An SSLRequest that is longer than it should be may also be answered as one.
        if name != "an SSLRequest with a body" {
            assert_eq!(answer.first(), Some(&b'E'), "{name}: {answer:?}");
            assert!(answer.windows(6).any(|bytes| bytes == b"C08P01"), "{name}: {answer:?}");
        }
        // The same cut off at every place, or at some for the long ones.
        for end in (0..packet.len()).step_by(1 + packet.len() / 16) {
            let answer = exchange(proxy.address(), &packet[..end], true).await;
            assert!(answer.first().is_none_or(|tag| *tag == b'E' || *tag == b'N'), "{name}: {answer:?}");
        }
    }
    for end in 0..startup().len() {
        let answer = exchange(proxy.address(), &startup()[..end], true).await;
        assert!(answer.first().is_none_or(|tag| *tag == b'E'), "cut off at {end}: {answer:?}");
    }
    eventually!(proxy.metric(LOGINS).await == 0.0);
    bystander.query("COMMIT").await.unwrap();
    assert_eq!(marker(&mut bystander).await, "acme");
}

#[tokio::test]
async fn random_bytes() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let files = scene.files().certificate(&ca, &["localhost"]).set("tls.mode", "preferred");
    let proxy = Proxy::start(files.set("auth.login_timeout", "1s")).await;
    let mut bystander = connect(&proxy, &scene.acme).await;
    for round in 0..300usize {
        let mut bytes = vec![0; round];
        getrandom::fill(&mut bytes).unwrap();
        // Also behind what looks like the beginning of a StartupMessage, a TLS record, a ClientHello.
        let beginnings: [&[u8]; 4] =
            [&[], &[0, 0, 1, 0, 0, 3, 0, 0], &[0x16, 3, 1, 0, 200], &[0x16, 3, 1, 0, 200, 1, 0]];
        let answer = exchange(proxy.address(), &[beginnings[round % 4], &bytes].concat(), true).await;
        // A TLS alert (21) is the protocol's own form there.
        assert!(answer.first().is_none_or(|tag| [b'E', b'S', b'N', 21].contains(tag)), "{bytes:?}: {answer:?}");
    }
    eventually!(proxy.metric(LOGINS).await == 0.0);
    assert_eq!(marker(&mut bystander).await, "acme");
}

#[tokio::test]
async fn the_login_deadline_ends_clients_that_are_slow_or_silent() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let files = scene.files().certificate(&ca, &["localhost"]).set("tls.mode", "preferred");
    let proxy = Proxy::start(files.set("auth.login_timeout", "1s")).await;
    let address = proxy.address();
    let tls = Arc::new(certs::client(&ca));
    let slowly = async |mut client: Wire, bytes: &[u8]| {
        let begun = Instant::now();
        for byte in bytes {
            // Much slower than the deadline allows.
            if client.send(&[*byte]).await.is_err() || !client.is_silent(Duration::from_millis(200)).await {
                break;
            }
        }
        client.is_closed().await;
        begun.elapsed()
    };
    let in_time = |elapsed: Duration| elapsed < Duration::from_millis(2500);
    // In the StartupMessage, in the ClientHello, in the StartupMessage under TLS, in the answer to SASL, and not at all.
    let packet = startup();
    let hello = [&frontend::ssl_request()[..], &[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3], &[0; 50]].concat();
    let mut authenticating = Wire::tcp(address).await.unwrap();
    authenticating.send(&packet).await.unwrap();
    assert_eq!(authenticating.read().await.unwrap().tag, b'R');
    let answer = frontend::sasl_initial("SCRAM-SHA-256", &[b'n'; 100]);
    let elapsed = tokio::join!(
        slowly(Wire::tcp(address).await.unwrap(), &packet),
        slowly(Wire::tcp(address).await.unwrap(), &hello),
        slowly(Wire::tls(address, tls, "localhost").await.unwrap(), &packet),
        slowly(authenticating, &answer),
        slowly(Wire::tcp(address).await.unwrap(), &[]),
    );
    let elapsed = [elapsed.0, elapsed.1, elapsed.2, elapsed.3, elapsed.4];
    assert!(elapsed.iter().copied().all(in_time), "{elapsed:?}");
    eventually!(proxy.metric(LOGINS).await == 0.0);
    eventually!(proxy.metric("pgtenant_auth_total{method=\"none\",result=\"timeout\"}").await == 5.0);
    assert_eq!(marker(&mut connect(&proxy, &scene.acme).await).await, "acme");
}

#[tokio::test]
async fn a_client_that_sends_its_query_byte_by_byte_holds_no_backend() {
    let scene = Scene::new().await;
    let files = scene.instance().tenant_with(&scene.acme, &[("pool.max_backends", 1.into())]);
    let proxy = Proxy::start(files).await;
    let (mut slow, mut other) = (connect(&proxy, &scene.acme).await, connect(&proxy, &scene.acme).await);
    for byte in frontend::query("SELECT 1") {
        slow.send(&[byte]).await.unwrap();
        assert_eq!(marker(&mut other).await, "acme");
    }
    let messages = slow.read_until_ready().await.unwrap();
    assert_eq!(messages[1].row(), [Some("1".to_owned())]);
}

#[tokio::test]
async fn wrong_messages_of_a_session() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files().set("limits.max_message", "64KiB")).await;
    let mut bystander = connect(&proxy, &scene.acme).await;
    bystander.query("BEGIN; SELECT 1").await.unwrap();
    let header = |tag: u8, length: i32| [&[tag][..], &length.to_be_bytes()].concat();
    let wrong = [
        ("unknown type", frontend::message(b'y', b"x")),
        ("type zero", frontend::message(0, b"")),
        ("a backend message", frontend::message(b'Z', b"I")),
        ("a password after the login", frontend::password("x")),
        ("zero length", header(b'Q', 0)),
        ("shorter than its length", header(b'Q', 3)),
        ("negative length", header(b'Q', -1)),
        ("longer than allowed", header(b'Q', 64 * 1024 + 5)),
        ("longest", header(b'd', i32::MAX)),
    ];
    // At rest, in a transaction, within an extended request, while COPY wants data.
    let before =
        [vec![], frontend::query("BEGIN"), frontend::parse("", "SELECT 1"), frontend::query("COPY t FROM STDIN")];
    scene.sql("CREATE TABLE t (x text); GRANT ALL ON t TO acme").await;
    for (name, message) in &wrong {
        for before in &before {
            let mut client = connect(&proxy, &scene.acme).await;
            if !before.is_empty() {
                client.send(before).await.unwrap();
                if before[0] == b'Q' {
                    // BEGIN ends with ReadyForQuery, COPY with CopyInResponse.
                    while ![b'Z', b'G'].contains(&client.read().await.unwrap().tag) {}
                }
            }
            client.send(message).await.unwrap();
            let error = loop {
                match client.read().await {
                    Ok(message) if message.tag == b'E' => break Some(message.error()),
                    Ok(_) => {}
                    Err(_) => break None,
                }
            };
            let error = error.unwrap_or_else(|| panic!("{name} after {before:?}: closed without a word"));
            assert_eq!((error.sqlstate(), error.severity()), ("08P01", "FATAL"), "{name} after {before:?}: {error:?}");
            assert!(client.is_closed().await, "{name} after {before:?}");
        }
    }
    // Exactly as long as allowed is fine.
    let mut client = connect(&proxy, &scene.acme).await;
    let sql = format!("SELECT length('{}')", "x".repeat(64 * 1024 - 20));
    assert_eq!(frontend::query(&sql).len(), 64 * 1024 + 5 - 1 - 1);
    assert_eq!(client.query(&sql).await.unwrap(), [[Some((64 * 1024 - 20).to_string())]]);
    bystander.query("COMMIT").await.unwrap();
    assert_eq!(marker(&mut bystander).await, "acme");
    // No backend is left in a transaction, and none has gone missing.
    let left = "SELECT 1 FROM pg_stat_activity WHERE usename = 'acme' AND state <> 'idle'";
    eventually!(scene.sql(left).await.is_empty());
    eventually!(proxy.metric("pgtenant_clients").await == 2.0);
}

#[tokio::test]
async fn wrong_answers_during_the_login() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files()).await;
    let wrong = [
        ("a query instead", frontend::query("SELECT 1")),
        ("too long", [&[b'p'][..], &10_000i32.to_be_bytes()].concat()),
        ("negative", [&[b'p'][..], &(-1i32).to_be_bytes()].concat()),
        ("empty", frontend::message(b'p', b"")),
        ("no length of the data", frontend::message(b'p', b"SCRAM-SHA-256\0")),
        ("another length", frontend::message(b'p', b"SCRAM-SHA-256\0\0\0\0\x0cn,,n=,r=x")),
        ("another mechanism", frontend::sasl_initial("PLAIN", b"x")),
        ("PLUS without TLS", frontend::sasl_initial("SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abc")),
        ("not SCRAM", frontend::sasl_initial("SCRAM-SHA-256", b"\xff\0\xfe")),
        ("no nonce", frontend::sasl_initial("SCRAM-SHA-256", b"n,,n=,r=")),
        ("with an extension", frontend::sasl_initial("SCRAM-SHA-256", b"n,,m=x,n=,r=abc")),
    ];
    for (name, message) in wrong {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        client.send(&startup()).await.unwrap();
        client.read().await.unwrap();
        client.send(&message).await.unwrap();
        let error = client.read().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(error.tag, b'E', "{name}: {error:?}");
        assert_eq!(error.error().severity(), "FATAL", "{name}");
        assert!(client.is_closed().await, "{name}");
    }
    assert_eq!(marker(&mut connect(&proxy, &scene.acme).await).await, "acme");
}

#[tokio::test]
async fn a_refused_client_gets_its_error_even_when_it_has_sent_more() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let proxy = Proxy::start(scene.files().certificate(&ca, &["localhost"])).await;
    let no_tenant = frontend::startup(frontend::V3_0, &[("user", "acme")]);
    let more = vec![0; 100_000];
    let mut client = Wire::tls(proxy.address(), Arc::new(certs::client(&ca)), "localhost").await.unwrap();
    client.send(&[no_tenant, more].concat()).await.unwrap();
    let error = client.expect_error("28000").await;
    assert_eq!(error.message(), "the connection names no tenant");
    // TLS ends in its own form: nobody has cut the answer off.
    let end = client.read().await.unwrap_err();
    assert!(!end.to_string().contains("close_notify"), "{end}");

    // The same in a session, with the whole of a message that is too long on its way.
    let proxy = Proxy::start(scene.files().set("limits.max_message", "64KiB")).await;
    let mut client = connect(&proxy, &scene.acme).await;
    client.send(&frontend::message(b'Q', &vec![b' '; 300_000])).await.unwrap();
    client.expect_error("08P01").await;
    assert!(client.is_closed().await);
    // And of a cancel request under TLS, whose own end of TLS comes behind it.
    let proxy = Proxy::start(scene.files().certificate(&ca, &["localhost"])).await;
    let mut client = Wire::tls(proxy.address(), Arc::new(certs::client(&ca)), "localhost").await.unwrap();
    client.send(&[frontend::cancel_request(7, &[7; 4]), vec![0; 100]].concat()).await.unwrap();
    let end = client.read().await.unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof);
    assert!(!end.to_string().contains("close_notify"), "{end}");
}

#[tokio::test]
async fn clients_past_the_cap_are_told_and_the_others_notice_nothing() {
    const CAP: usize = 5;
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files().set("limits.max_clients", 5).set("auth.login_timeout", "3s")).await;
    let mut clients = Vec::new();
    for _ in 0..CAP {
        clients.push(connect(&proxy, &scene.acme).await);
    }
    let too_many = async || {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        let error = log_in(&mut client, &scene.acme).await.unwrap_err();
        assert_eq!((error.sqlstate(), error.severity()), ("53300", "FATAL"));
        assert_eq!(error.message(), "sorry, too many clients already");
        assert!(client.is_closed().await);
    };
    too_many().await;
    // Cancel requests need no place.
    clients[0].send(&frontend::query("SELECT pg_sleep(60)")).await.unwrap();
    eventually!(!scene.sql("SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'").await.is_empty());
    cancel(proxy.address(), clients[0].key.as_ref().unwrap()).await.unwrap();
    assert_eq!(failure(&mut clients[0]).await.sqlstate(), "57014");

    // Hundreds that want in at once, and hundreds that say nothing: each is told, or closed.
    let mut flood = JoinSet::new();
    let address = proxy.address();
    for number in 0..600 {
        flood.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if number % 2 == 0 {
                let _ = stream.write_all(&startup()).await;
            }
            let mut answer = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
            assert!(read.is_ok(), "an end within the deadline");
            answer
        });
    }
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        for client in &mut clients {
            assert_eq!(marker(client).await, "acme");
        }
    }
    for answer in flood.join_all().await {
        let told = answer.windows(6).any(|bytes| bytes == b"C53300");
        assert!(answer.is_empty() || told, "{}", String::from_utf8_lossy(&answer));
    }
    assert!(proxy.metric("pgtenant_connections_refused_total{reason=\"cap\"}").await >= 300.0);
    // One leaves, one comes.
    too_many().await;
    clients.pop().unwrap().send(&frontend::terminate()).await.unwrap();
    eventually!({
        let mut client = Wire::tcp(address).await.unwrap();
        log_in(&mut client, &scene.acme).await.is_ok() && marker(&mut client).await == "acme"
    });
}

/// What thousands of bad connections make the proxy hold, in bytes: allocators keep some of what was freed.
const SLACK: u64 = 6 << 20;

#[tokio::test]
async fn memory_stays_flat() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let files = scene.files().certificate(&ca, &["localhost"]).set("tls.mode", "preferred");
    let files = files.set("auth.login_timeout", "2s").set("auth.free_attempts", 1_000_000);
    // Not a line per connection.
    let files = files.set("log.filter", "warn,pgtenant::cli=info");
    let served = Served::start(files).await;
    let address = served.address;
    let mut bystander = Wire::tcp(address).await.unwrap();
    log_in(&mut bystander, &scene.acme).await.unwrap();

    // As many as will ever be at a time, so that what they need at once is there before it is measured.
    bad_connections(address, 1000, &ca).await;
    let before = served.resident_memory();
    bad_connections(address, 4000, &ca).await;
    let after = served.resident_memory();
    println!("resident: {before} bytes, after 4,000 bad connections {after} bytes");
    assert!(after < before + SLACK, "from {before} bytes to {after} bytes");
    // A message that claims to be long is not waited for in memory.
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = Wire::tcp(address).await.unwrap();
        log_in(&mut client, &scene.acme).await.unwrap();
        client.send(&[&[b'Q'][..], &0x3fff_ff00i32.to_be_bytes(), b"SELECT"].concat()).await.unwrap();
        clients.push(client);
    }
    assert_eq!(marker(&mut bystander).await, "acme");
    let after = served.resident_memory();
    println!("with 50 clients that announce a message of 1 GiB: {after} bytes");
    assert!(after < before + SLACK, "from {before} bytes to {after} bytes");
    let (status, _) = http_get(served.http, "/readyz").await;
    assert_eq!(status, 200);
}

/// Wrong packets, rubbish, half ClientHellos and wrong passwords, 50 at a time.
async fn bad_connections(address: SocketAddr, count: usize, ca: &DevCa) {
    let packets = Arc::new(wrong_packets());
    let tls = Arc::new(certs::client(ca));
    let mut connections = JoinSet::new();
    for number in 0..count {
        if connections.len() >= 50 {
            connections.join_next().await.unwrap().unwrap();
        }
        let (packets, tls) = (packets.clone(), tls.clone());
        connections.spawn(async move {
            match number % 50 {
                0 => {
                    let mut client = Wire::tls(address, tls, "localhost").await.unwrap();
                    let parameters = [("user", "acme"), ("options", "-c tenant=acme")];
                    client.login_with(frontend::V3_0, &parameters, "wrong").await.unwrap_err();
                }
                1 => drop(exchange(address, &[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3], true).await),
                other => drop(exchange(address, &packets[other % packets.len()].1, true).await),
            }
        });
    }
    while let Some(done) = connections.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_hello_without_a_name_is_no_reason_to_refuse() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let files = scene.files().certificate(&ca, &["localhost"]).set("routing.sni_domains", vec!["localhost"]);
    let proxy = Proxy::start(files).await;
    let mut config = certs::client(&ca);
    config.enable_sni = false;
    let mut client = Wire::tls(proxy.address(), Arc::new(config), "localhost").await.unwrap();
    client.login("acme.acme", "acme", password(&scene.acme)).await.unwrap();
    assert_eq!(marker(&mut client).await, "acme");
}
