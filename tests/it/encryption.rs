//! Step 1 of a session: SSLRequest, GSSENCRequest, direct TLS, certificates by name, Unix sockets.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pgtenant::cli::demo::certificates::{DevCa, write_pair};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::eventually;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::scene::{Scene, connect, failure, log_in, log_in_as, marker, password};
use crate::harness::wire::{Wire, cancel};
use crate::harness::{certs, frontend};

const SNI: &str = "acme.localhost";

/// The scene with a certificate for [`SNI`] and `localhost`; TLS is required.
fn files(scene: &Scene, ca: &DevCa) -> ProxyFiles {
    scene.files().certificate(ca, &[SNI, "localhost"]).set("routing.sni_domains", vec!["localhost"])
}

fn trusting(ca: &DevCa) -> Arc<ClientConfig> {
    Arc::new(certs::client(ca))
}

fn without_sni(ca: &DevCa) -> Arc<ClientConfig> {
    let mut config = certs::client(ca);
    config.enable_sni = false;
    Arc::new(config)
}

#[tokio::test]
async fn gssencrequest_is_declined_and_sslrequest_still_works() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let proxy = Proxy::start(files(&scene, &ca)).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    stream.write_all(&frontend::gss_request()).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'N');
    stream.write_all(&frontend::ssl_request()).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'S');
    let mut client = Wire::handshake(stream, trusting(&ca), SNI).await.unwrap();
    client.login("acme", "acme", password(&scene.acme)).await.unwrap();
    assert_eq!(client.mechanism, Some("SCRAM-SHA-256-PLUS"));
    assert_eq!(marker(&mut client).await, "acme");
}

#[tokio::test]
async fn both_requests_are_declined_without_tls_in_either_order() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files()).await;
    let (ssl, gss) = (frontend::ssl_request(), frontend::gss_request());
    for order in [[&ssl, &gss], [&gss, &ssl]] {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        for request in order {
            client.send(request).await.unwrap();
            assert_eq!(client.byte().await.unwrap(), b'N');
        }
        log_in(&mut client, &scene.acme).await.unwrap();
        assert_eq!(marker(&mut client).await, "acme");
    }
    // Asking for the same once more leads nowhere, as at PostgreSQL.
    for request in [ssl, gss] {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        client.send(&request).await.unwrap();
        assert_eq!(client.byte().await.unwrap(), b'N');
        client.send(&request).await.unwrap();
        client.expect_error("08P01").await;
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn direct_tls_needs_the_application_protocol() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let proxy = Proxy::start(files(&scene, &ca)).await;
    let mut client = Wire::direct_tls(proxy.address(), certs::direct(certs::client(&ca)), SNI).await.unwrap();
    client.login("acme", "acme", password(&scene.acme)).await.unwrap();
    assert_eq!(client.mechanism, Some("SCRAM-SHA-256-PLUS"));
    assert_eq!(marker(&mut client).await, "acme");

    let mut other = certs::client(&ca);
    other.alpn_protocols = vec![b"h2".to_vec()];
    for config in [certs::client(&ca), other] {
        assert!(refuses_startup(Wire::direct_tls(proxy.address(), Arc::new(config), SNI).await).await);
    }
    let violations = "pgtenant_protocol_violations_total{kind=\"alpn\"}";
    eventually!(proxy.metric(violations).await >= 1.0);
}

/// Whether a connection ended in its handshake, or ends at a StartupMessage without an answer.
async fn refuses_startup(client: io::Result<Wire>) -> bool {
    let Ok(mut client) = client else { return true };
    let startup = frontend::startup(frontend::V3_0, &[("user", "acme"), ("options", "-c tenant=acme")]);
    client.send(&startup).await.is_err() || client.is_closed().await
}

#[tokio::test]
async fn the_certificate_follows_the_name() {
    let scene = Scene::new().await;
    let [wildcard, exact, default] = [DevCa::new().unwrap(), DevCa::new().unwrap(), DevCa::new().unwrap()];
    let files = scene
        .files()
        .certificate(&wildcard, &["*.db.localhost"])
        .certificate(&exact, &["acme.db.localhost"])
        .certificate(&default, &["zz.localhost", "a.b.db.localhost"])
        .set("tls.default_certificate", "zz.localhost");
    let proxy = Proxy::start(files).await;
    let served = async |ca: &DevCa, name: &str| Wire::tls(proxy.address(), trusting(ca), name).await.is_ok();
    assert!(served(&exact, "acme.db.localhost").await);
    assert!(served(&wildcard, "globex.db.localhost").await);
    assert!(!served(&wildcard, "acme.db.localhost").await);
    // A wildcard stands for one label: this name is found among those of the default.
    assert!(served(&default, "a.b.db.localhost").await);
    assert!(served(&default, "zz.localhost").await);
    // No name at all.
    let mut client = Wire::tls(proxy.address(), without_sni(&default), "zz.localhost").await.unwrap();
    log_in(&mut client, &scene.acme).await.unwrap();
    assert_eq!(client.mechanism, Some("SCRAM-SHA-256-PLUS"));
    assert_eq!(marker(&mut client).await, "acme");
}

#[tokio::test]
async fn new_certificates_are_served_and_bad_ones_are_not() {
    let (scene, old, new) = (Scene::new().await, DevCa::new().unwrap(), DevCa::new().unwrap());
    let proxy = Proxy::start(files(&scene, &old)).await;
    let certificates = proxy.files.dir().join("certs");
    let mut before = Wire::tls(proxy.address(), trusting(&old), SNI).await.unwrap();
    log_in(&mut before, &scene.acme).await.unwrap();
    before.query("BEGIN; SELECT 1").await.unwrap();

    // The folder is watched: nobody tells the proxy.
    write_pair(&certificates, SNI, &new.server(&[SNI, "localhost"]).unwrap()).unwrap();
    eventually!(Wire::tls(proxy.address(), trusting(&new), SNI).await.is_ok());
    assert!(Wire::tls(proxy.address(), trusting(&old), SNI).await.is_err());
    let mut after = Wire::tls(proxy.address(), trusting(&new), SNI).await.unwrap();
    log_in(&mut after, &scene.acme).await.unwrap();
    assert_eq!(after.mechanism, Some("SCRAM-SHA-256-PLUS"));
    before.query("COMMIT").await.unwrap();
    assert_eq!(marker(&mut before).await, "acme");
    let last_reload = "pgtenant_config_last_reload_successful";
    eventually!(proxy.metric(last_reload).await == 1.0);

    std::fs::write(certificates.join(format!("{SNI}.key")), "not a key").unwrap();
    eventually!(proxy.metric(last_reload).await == 0.0);
    let error = proxy.reload().unwrap_err().to_string();
    assert!(error.contains("acme.localhost.key"), "{error}");
    assert!(Wire::tls(proxy.address(), trusting(&new), SNI).await.is_ok());
    assert_eq!(marker(&mut after).await, "acme");
    assert_eq!(marker(&mut before).await, "acme");
}

#[tokio::test]
async fn tls_required_preferred_and_off() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());

    let proxy = Proxy::start(files(&scene, &ca)).await;
    let mut plain = Wire::tcp(proxy.address()).await.unwrap();
    let error = log_in(&mut plain, &scene.acme).await.unwrap_err();
    assert_eq!((error.sqlstate(), error.severity()), ("28000", "FATAL"));
    assert!(error.fields[&'H'].contains("sslmode=require"), "{error:?}");
    assert!(plain.is_closed().await);
    eventually!(proxy.metric("pgtenant_connections_refused_total{reason=\"tls_required\"}").await == 1.0);
    drop(proxy);

    let proxy = Proxy::start(files(&scene, &ca).set("tls.mode", "preferred")).await;
    let mut plain = connect(&proxy, &scene.acme).await;
    assert_eq!((marker(&mut plain).await.as_str(), plain.mechanism), ("acme", Some("SCRAM-SHA-256")));
    let mut tls = Wire::tls(proxy.address(), trusting(&ca), SNI).await.unwrap();
    log_in(&mut tls, &scene.acme).await.unwrap();
    assert_eq!(marker(&mut tls).await, "acme");
    drop(proxy);

    let proxy = Proxy::start(files(&scene, &ca).set("tls.mode", "off")).await;
    assert_eq!(marker(&mut connect(&proxy, &scene.acme).await).await, "acme");
    let refused = Wire::tls(proxy.address(), trusting(&ca), SNI).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("'N'"), "{refused}");
    // A ClientHello is no StartupMessage.
    assert!(Wire::direct_tls(proxy.address(), certs::direct(certs::client(&ca)), SNI).await.is_err());
}

#[tokio::test]
async fn a_plain_cancel_request_is_carried_out_where_tls_is_required() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let proxy = Proxy::start(files(&scene, &ca)).await;
    let mut client = Wire::tls(proxy.address(), trusting(&ca), SNI).await.unwrap();
    log_in(&mut client, &scene.acme).await.unwrap();
    client.send(&frontend::query("SELECT pg_sleep(60)")).await.unwrap();
    eventually!(!scene.sql("SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'").await.is_empty());
    cancel(proxy.address(), client.key.as_ref().unwrap()).await.unwrap();
    assert_eq!(failure(&mut client).await.sqlstate(), "57014");
    assert_eq!(marker(&mut client).await, "acme");
}

#[tokio::test]
async fn bytes_in_the_clear_never_get_into_the_session() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let proxy = Proxy::start(files(&scene, &ca)).await;
    let startup = frontend::startup(frontend::V3_0, &[("user", "acme"), ("options", "-c tenant=acme")]);
    for smuggled in [startup, frontend::query("SELECT 1"), vec![0; 5]] {
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        stream.write_all(&[frontend::ssl_request(), smuggled].concat()).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'S');
        // The victim's own handshake comes behind them, and fails.
        let handshake = tokio::time::timeout(Duration::from_secs(10), Wire::handshake(stream, trusting(&ca), SNI));
        assert!(refuses_startup(handshake.await.expect("an end within the deadline")).await);
    }
    let violations = "pgtenant_protocol_violations_total{kind=\"bytes_before_tls\"}";
    eventually!(proxy.metric(violations).await == 3.0);
    assert_eq!(proxy.metric("pgtenant_auth_total").await, 0.0);
}

#[tokio::test]
async fn a_unix_socket_needs_no_tls() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let files = files(&scene, &ca).set("listen.unix_socket_dir", "run").set("listen.unix_socket_mode", "0700");
    std::fs::create_dir(files.dir().join("run")).unwrap();
    let proxy = Proxy::start(files).await;
    let path = proxy.files.dir().join(format!("run/.s.PGSQL.{}", proxy.address().port()));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    // libpq asks for neither here; one that does is told no.
    let mut client = Wire::unix(&path).await.unwrap();
    client.send(&frontend::ssl_request()).await.unwrap();
    assert_eq!(client.byte().await.unwrap(), b'N');
    log_in(&mut client, &scene.acme).await.unwrap();
    assert_eq!(marker(&mut client).await, "acme");
    let mut client = Wire::unix(&path).await.unwrap();
    let error = log_in_as(&mut client, "acme", "acme", "wrong").await.unwrap_err();
    assert_eq!(error.sqlstate(), "28P01");
    proxy.drain(std::future::pending()).await;
    assert!(!path.exists());
}
