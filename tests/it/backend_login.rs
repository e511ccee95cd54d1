//! How backends log in and prove what they are: keys, passwords, a service role, TLS, the instance's identity.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use pgtenant::cli::demo::certificates::{DevCa, write_pair};
use pgtenant::cli::demo::tenant::{Order, onboard};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use toml::Value;

use crate::eventually;
use crate::harness::faulty_link::FaultyLink;
use crate::harness::postgres::{self, start_with_tls};
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::scene::{Scene, connect, log_in, marker, password, path_value, secret, value};
use crate::harness::wire::{ErrorResponse, Wire};
use crate::harness::{certs, frontend};

async fn refused(proxy: &Proxy, scene: &Scene) -> ErrorResponse {
    let mut client = Wire::tcp(proxy.address()).await.unwrap();
    let error = log_in(&mut client, &scene.acme).await.unwrap_err();
    assert!(client.is_closed().await);
    error
}

#[tokio::test]
async fn a_service_role_logs_in_for_all() {
    let scene = Scene::new().await;
    let sql = "CREATE ROLE acme_service LOGIN PASSWORD 'of the service';
               GRANT CONNECT ON DATABASE acme TO acme_service; GRANT SELECT ON marker TO acme_service";
    scene.sql(sql).await;
    let files = scene.instance();
    let file = path_value(secret(&files, "service.password", "of the service\n"));
    let changes = [("service.user", Value::from("acme_service")), ("service.password.file", file)];
    let proxy = Proxy::start(files.tenant_with(&scene.acme, &changes)).await;
    let mut client = connect(&proxy, &scene.acme).await;
    assert_eq!(value(&mut client, "SELECT session_user").await, "acme_service");
    assert_eq!(marker(&mut client).await, "acme");
    // What the client was told stays true: a wrong secret is no business of its own.
    secret(&proxy.files, "service.password", "wrong");
    proxy.reload().unwrap();
    let error = refused(&proxy, &scene).await;
    assert_eq!((error.sqlstate(), error.message()), ("08006", "could not log in to the tenant's database"));
    assert!(!error.message().contains("acme_service"));
}

#[tokio::test]
async fn a_password_by_reference_serves_both_sides() {
    let scene = Scene::new().await;
    let files = scene.instance();
    let file = path_value(secret(&files, "acme.password", password(&scene.acme)));
    let roles = toml::toml! { [acme.password] };
    let changes = [("roles", roles.into()), ("roles.acme.password.file", file)];
    let proxy = Proxy::start(files.tenant_with(&scene.acme, &changes)).await;
    let mut client = connect(&proxy, &scene.acme).await;
    assert_eq!(client.mechanism, Some("SCRAM-SHA-256"));
    assert_eq!(marker(&mut client).await, "acme");
    let mut client = Wire::tcp(proxy.address()).await.unwrap();
    let wrong = client.login("acme.acme", "acme", "wrong").await.unwrap_err();
    assert_eq!(wrong.sqlstate(), "28P01");
}

#[tokio::test]
async fn a_record_that_names_another_cluster_is_refused() {
    let scene = Scene::new().await;
    let right = scene.postgres.system_identifier().unwrap();
    let files = scene.files().set("instances.one.system_identifier", (right + 1).to_string());
    let proxy = Proxy::start(files).await;
    let error = refused(&proxy, &scene).await;
    assert_eq!((error.sqlstate(), error.message()), ("08006", "the tenant's database is not where it should be"));
    assert!(proxy.metric("pgtenant_backend_identity_mismatch_total{instance_name=\"one\"}").await >= 1.0);
    drop(proxy);
    let files = scene.files().set("instances.one.system_identifier", right.to_string());
    let proxy = Proxy::start(files).await;
    assert_eq!(marker(&mut connect(&proxy, &scene.acme).await).await, "acme");
    assert_eq!(proxy.metric("pgtenant_backend_identity_mismatch_total").await, 0.0);
}

#[tokio::test]
async fn another_cluster_at_the_same_address_is_refused() {
    let scene = Scene::new().await;
    // Looks the same in everything but its identity: same role, same password, same database.
    let impostor = postgres::start().await;
    onboard(&impostor, &Order::shared("acme", "one")).await.unwrap();
    impostor.sql("acme", "UPDATE marker SET tenant = 'impostor'").await.unwrap();
    let verifier = scene.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'acme'").await[0][0].clone().unwrap();
    impostor.sql("acme", &format!("ALTER ROLE acme PASSWORD '{verifier}'")).await.unwrap();
    let link = FaultyLink::start(scene.postgres.address()).await.unwrap();
    let proxy = Proxy::start(ProxyFiles::new().instance_at("one", link.address()).tenant(&scene.acme)).await;
    let mut client = connect(&proxy, &scene.acme).await;
    assert_eq!(marker(&mut client).await, "acme");

    link.redirect(impostor.address());
    let mismatches = "pgtenant_backend_identity_mismatch_total{instance_name=\"one\"}";
    eventually!({
        assert_eq!(reached(&proxy, &scene).await, None);
        proxy.metric(mismatches).await >= 1.0
    });
    link.redirect(scene.postgres.address());
    eventually!(reached(&proxy, &scene).await.as_deref() == Some("acme"));
}

/// The marker that a new client reads; none where it gets an error or its connection ends.
async fn reached(proxy: &Proxy, scene: &Scene) -> Option<String> {
    let mut client = Wire::tcp(proxy.address()).await.unwrap();
    log_in(&mut client, &scene.acme).await.ok()?;
    client.send(&frontend::query("SELECT tenant FROM marker")).await.ok()?;
    let messages = client.read_until_ready().await.ok()?;
    let row = messages.iter().find(|message| message.tag == b'D')?;
    row.row().remove(0)
}

#[tokio::test]
async fn tls_to_the_instance_in_every_mode() {
    let [ca, other] = [DevCa::new().unwrap(), DevCa::new().unwrap()];
    let Some(postgres) = start_with_tls(&ca, &["pg.internal", "localhost"]).await else { return };
    let scene = Scene::on(postgres).await;
    let proxy = async |keys: &[(&str, &str)]| {
        let mut files = scene.files();
        for (name, ca) in [("right", &ca), ("wrong", &other)] {
            ca.write(&files.dir().join(name)).unwrap();
        }
        for (key, value) in keys {
            files = files.set(&format!("instances.one.{key}"), *value);
        }
        Proxy::start(files).await
    };
    const ENCRYPTED: &str = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let right = ("tls_ca", "right/ca.crt");
    for (keys, encrypted) in [
        (&[("tls", "off")][..], "false"),
        (&[("tls", "require")], "true"),
        // The address is no name of the certificate: only verify-full minds.
        (&[("tls", "verify-ca"), right], "true"),
        (&[("tls", "verify-full"), right, ("tls_server_name", "pg.internal")], "true"),
        (&[("tls", "verify-full"), right, ("host", "localhost")], "true"),
        // The default where there is a CA.
        (&[right, ("tls_server_name", "pg.internal")], "true"),
    ] {
        let proxy = proxy(keys).await;
        let mut client = connect(&proxy, &scene.acme).await;
        assert_eq!(value(&mut client, ENCRYPTED).await, encrypted, "{keys:?}");
        assert_eq!(marker(&mut client).await, "acme");
        // A cancel request takes the same way.
        let key = client.key.clone().unwrap();
        client.send(&frontend::query("SELECT pg_sleep(60)")).await.unwrap();
        eventually!(
            !scene
                .sql("SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'")
                .await
                .is_empty()
        );
        crate::harness::wire::cancel(proxy.address(), &key).await.unwrap();
        assert_eq!(crate::harness::scene::failure(&mut client).await.sqlstate(), "57014");
    }
    for keys in [
        &[("tls", "verify-ca"), ("tls_ca", "wrong/ca.crt")][..],
        &[("tls", "verify-full"), ("tls_ca", "wrong/ca.crt"), ("tls_server_name", "pg.internal")],
        &[("tls", "verify-full"), right],
        &[("tls", "verify-full"), right, ("tls_server_name", "other.internal")],
    ] {
        let proxy = proxy(keys).await;
        let error = refused(&proxy, &scene).await;
        assert_eq!((error.sqlstate(), error.message()), ("08006", "could not connect to the tenant's database"));
    }
}

#[tokio::test]
async fn an_instance_without_tls_is_not_spoken_to_where_tls_is_wanted() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files().set("instances.one.tls", "require")).await;
    assert_eq!(refused(&proxy, &scene).await.sqlstate(), "08006");
    assert!(!scene.postgres.log().contains("acme"), "the StartupMessage was sent in the clear");
}

#[tokio::test]
async fn channel_binding_exposes_somebody_between_proxy_and_instance() {
    let ca = DevCa::new().unwrap();
    let Some(postgres) = start_with_tls(&ca, &["localhost"]).await else { return };
    let scene = Scene::on(postgres).await;
    // `require` checks no certificate, so the TLS handshake with the stranger works; the SCRAM proof does not.
    let files = |address| ProxyFiles::new().instance_at("one", address).set("instances.one.tls", "require");
    let stranger = stand_between(&ca, scene.postgres.address()).await;
    let proxy = Proxy::start(files(stranger).tenant(&scene.acme)).await;
    let error = refused(&proxy, &scene).await;
    assert_eq!((error.sqlstate(), error.message()), ("08006", "could not log in to the tenant's database"));
    eventually!(scene.postgres.log().contains("SCRAM channel binding check failed"));
    let proxy = Proxy::start(files(scene.postgres.address()).tenant(&scene.acme)).await;
    assert_eq!(marker(&mut connect(&proxy, &scene.acme).await).await, "acme");
}

/// Ends TLS with a certificate of its own and begins it again towards `target`. Ends with the test's runtime.
async fn stand_between(ca: &DevCa, target: SocketAddr) -> SocketAddr {
    let (certificate, key) = DevCa::new().unwrap().server(&["localhost"]).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let acceptor = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let (acceptor, connector) =
        (TlsAcceptor::from(Arc::new(acceptor)), TlsConnector::from(Arc::new(certs::client(ca))));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut request = [0; 8];
            client.read_exact(&mut request).await.unwrap();
            client.write_all(b"S").await.unwrap();
            let mut client = acceptor.accept(client).await.unwrap();
            let mut backend = TcpStream::connect(target).await.unwrap();
            backend.write_all(&request).await.unwrap();
            assert_eq!(backend.read_u8().await.unwrap(), b'S');
            let name = ServerName::try_from("localhost").unwrap();
            let mut backend = connector.connect(name, backend).await.unwrap();
            // Either side may end it in any way.
            let _ = copy_bidirectional(&mut client, &mut backend).await;
        }
    });
    address
}

#[tokio::test]
async fn verifiers_are_asked_for_over_tls_too() {
    let ca = DevCa::new().unwrap();
    let Some(postgres) = start_with_tls(&ca, &["pg.internal"]).await else { return };
    let scene = Scene::on(postgres).await;
    scene.sql("CREATE ROLE reader LOGIN PASSWORD 'r'; GRANT CONNECT ON DATABASE acme TO reader; GRANT SELECT ON pg_authid TO reader").await;
    let files =
        scene.instance().set("instances.one.tls_ca", "ca.crt").set("instances.one.tls_server_name", "pg.internal");
    ca.write(files.dir()).unwrap();
    write_pair(&files.dir().join("unused"), "x", &ca.client("x").unwrap()).unwrap();
    let file = path_value(secret(&files, "reader.password", "r"));
    let changes = [
        ("roles", Value::from(toml::Table::new())),
        ("auth_query.user", "reader".into()),
        ("auth_query.password.file", file),
    ];
    let proxy = Proxy::start(files.tenant_with(&scene.acme, &changes)).await;
    assert_eq!(marker(&mut connect(&proxy, &scene.acme).await).await, "acme");
    let unencrypted =
        "SELECT 1 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'reader' AND NOT ssl";
    assert!(scene.sql(unencrypted).await.is_empty());
}
