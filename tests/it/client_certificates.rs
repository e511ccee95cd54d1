//! Client certificates with a CA per tenant: required, optional, instead of a password, and as the hint that routes.

use std::sync::Arc;

use pgtenant::cli::demo::certificates::DevCa;
use pgtenant::cli::demo::tenant::Onboarded;
use rustls::ClientConfig;
use toml::Value;

use crate::eventually;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::scene::{Scene, log_in, log_in_as, marker, password, path_value, secret, tenant, value};
use crate::harness::wire::Wire;
use crate::harness::{certs, frontend};

/// acme and globex with a client CA each; the server's certificate names `acme.localhost`, `globex.localhost` and
/// `localhost`.
struct Town {
    scene: Scene,
    globex: Onboarded,
    server: DevCa,
    acme_ca: DevCa,
    globex_ca: DevCa,
}

impl Town {
    async fn new() -> Town {
        let scene = Scene::new().await;
        let globex = tenant(&scene.postgres, "globex").await;
        let [server, acme_ca, globex_ca] = [DevCa::new().unwrap(), DevCa::new().unwrap(), DevCa::new().unwrap()];
        Town { scene, globex, server, acme_ca, globex_ca }
    }

    /// acme's record gets further keys.
    async fn proxy(&self, changes: &[(&str, Value)], set: impl FnOnce(ProxyFiles) -> ProxyFiles) -> Proxy {
        let files =
            self.scene.instance().certificate(&self.server, &["localhost", "acme.localhost", "globex.localhost"]);
        let files = set(files.set("routing.sni_domains", vec!["localhost"]));
        let ca = |ca: &DevCa, dir: &str| path_value(ca.write(&files.dir().join(dir)).unwrap());
        let globex = [("client_ca", ca(&self.globex_ca, "globex"))];
        let acme = [&[("client_ca", ca(&self.acme_ca, "acme"))], changes].concat();
        Proxy::start(files.tenant_with(&self.scene.acme, &acme).tenant_with(&self.globex, &globex)).await
    }

    fn without(&self) -> Arc<ClientConfig> {
        Arc::new(certs::client(&self.server))
    }

    fn with(&self, ca: &DevCa, common_name: &str) -> Arc<ClientConfig> {
        Arc::new(certs::client_with(&self.server, &ca.client(common_name).unwrap()))
    }
}

async fn tls(proxy: &Proxy, config: Arc<ClientConfig>, sni: &str) -> Wire {
    Wire::tls(proxy.address(), config, sni).await.unwrap()
}

#[tokio::test]
async fn a_required_certificate_is_needed_beside_the_password() {
    let town = Town::new().await;
    let acme = &town.scene.acme;
    let proxy = town.proxy(&[("client_certificate_required", true.into())], |files| files).await;

    let mut client = tls(&proxy, town.with(&town.acme_ca, "anyone"), "acme.localhost").await;
    log_in(&mut client, acme).await.unwrap();
    assert_eq!((marker(&mut client).await.as_str(), client.mechanism), ("acme", Some("SCRAM-SHA-256-PLUS")));
    let mut client = tls(&proxy, town.with(&town.acme_ca, "anyone"), "acme.localhost").await;
    assert_eq!(log_in_as(&mut client, "acme", "acme", "wrong").await.unwrap_err().sqlstate(), "28P01");

    // By SNI the handshake itself asks for it: none, and one of another tenant's CA, end there.
    for config in [town.without(), town.with(&town.globex_ca, "anyone")] {
        if let Ok(mut client) = Wire::tls(proxy.address(), config, "acme.localhost").await {
            let _ = client.send(&frontend::startup(frontend::V3_0, &[("user", "acme")])).await;
            assert!(client.is_closed().await);
        }
    }
    // By a later hint it is missed at the login, which fails as any other.
    let mut client = tls(&proxy, town.without(), "localhost").await;
    let error = log_in(&mut client, acme).await.unwrap_err();
    assert_eq!((error.sqlstate(), error.message()), ("28P01", "password authentication failed for user \"acme\""));
    // Another tenant asks for none.
    let mut client = tls(&proxy, town.without(), "globex.localhost").await;
    log_in(&mut client, &town.globex).await.unwrap();
    assert_eq!(marker(&mut client).await, "globex");
}

#[tokio::test]
async fn an_optional_certificate_names_the_tenant() {
    let town = Town::new().await;
    let proxy = town.proxy(&[], |files| files).await;
    let mut client = tls(&proxy, town.without(), "acme.localhost").await;
    log_in(&mut client, &town.scene.acme).await.unwrap();

    // No SNI of a tenant, no option, no suffix: the certificate says it.
    for (ca, tenant) in [(&town.acme_ca, &town.scene.acme), (&town.globex_ca, &town.globex)] {
        let mut client = tls(&proxy, town.with(ca, "anyone"), "localhost").await;
        client.login(&tenant.role, &tenant.database, password(tenant)).await.unwrap();
        assert_eq!(marker(&mut client).await, tenant.tenant);
    }
    // It has to agree with the other hints.
    let mut client = tls(&proxy, town.with(&town.globex_ca, "anyone"), "localhost").await;
    let error = log_in(&mut client, &town.scene.acme).await.unwrap_err();
    assert_eq!(error.sqlstate(), "28000");
    assert!(error.message().contains("client certificate names \"globex\""), "{error:?}");
    drop(proxy);

    let proxy = town.proxy(&[], |files| files.set("routing.client_certificate", false)).await;
    let mut client = tls(&proxy, town.with(&town.acme_ca, "anyone"), "localhost").await;
    let error = client.login("acme", "acme", password(&town.scene.acme)).await.unwrap_err();
    assert_eq!((error.sqlstate(), error.message()), ("28000", "the connection names no tenant"));
    // It says nothing then, so it contradicts nothing either.
    let mut client = tls(&proxy, town.with(&town.globex_ca, "anyone"), "localhost").await;
    log_in(&mut client, &town.scene.acme).await.unwrap();
}

#[tokio::test]
async fn a_certificate_logs_a_role_in_without_a_password() {
    let town = Town::new().await;
    let sql = "CREATE ROLE acme_service LOGIN PASSWORD 'of the service';
               GRANT CONNECT ON DATABASE acme TO acme_service; GRANT SELECT ON marker TO acme_service";
    town.scene.sql(sql).await;
    let folder = ProxyFiles::new();
    let service = secret(&folder, "service.password", "of the service");
    let changes = [
        ("roles.acme.certificate_cn", Value::from("app.acme.example.com")),
        ("service.user", "acme_service".into()),
        ("service.password.file", path_value(service)),
    ];
    let proxy = town.proxy(&changes, |files| files).await;

    let right = town.with(&town.acme_ca, "app.acme.example.com");
    let mut client = tls(&proxy, right.clone(), "acme.localhost").await;
    client.login("acme", "acme", "never asked for").await.unwrap();
    assert_eq!(client.mechanism, None);
    assert_eq!(value(&mut client, "SELECT session_user").await, "acme_service");
    assert_eq!(marker(&mut client).await, "acme");
    assert_eq!(proxy.metric("pgtenant_auth_total{method=\"certificate\",result=\"ok\"}").await, 1.0);

    // Another name, another tenant's CA with the right name, no certificate: a password is asked for.
    let wrong_name = town.with(&town.acme_ca, "other.acme.example.com");
    for config in [wrong_name, town.without()] {
        let mut client = tls(&proxy, config.clone(), "acme.localhost").await;
        assert_eq!(client.login("acme", "acme", "wrong").await.unwrap_err().sqlstate(), "28P01");
        let mut client = tls(&proxy, config, "acme.localhost").await;
        client.login("acme", "acme", password(&town.scene.acme)).await.unwrap();
    }
    let mut client = tls(&proxy, town.with(&town.globex_ca, "app.acme.example.com"), "localhost").await;
    assert_eq!(log_in_as(&mut client, "acme", "acme", "wrong").await.unwrap_err().sqlstate(), "28000");
    // The certificate is the role's, not the tenant's.
    let mut client = tls(&proxy, right, "acme.localhost").await;
    assert_eq!(client.login("postgres", "acme", "").await.unwrap_err().sqlstate(), "28P01");
}

#[tokio::test]
async fn a_login_by_certificate_leaves_the_keys_of_one_by_password_in_force() {
    let town = Town::new().await;
    let proxy = town.proxy(&[("roles.acme.certificate_cn", "app".into())], |files| files).await;
    let mut by_password = tls(&proxy, town.without(), "acme.localhost").await;
    log_in(&mut by_password, &town.scene.acme).await.unwrap();
    let mut by_certificate = tls(&proxy, town.with(&town.acme_ca, "app"), "acme.localhost").await;
    by_certificate.login("acme", "acme", "never asked for").await.unwrap();
    assert_eq!(by_certificate.mechanism, None);
    let backends = "FROM pg_stat_activity WHERE usename = 'acme'";
    town.scene.postgres.sql("postgres", &format!("SELECT pg_terminate_backend(pid) {backends}")).await.unwrap();
    eventually!(town.scene.sql(&format!("SELECT 1 {backends}")).await.is_empty());
    // Both get new backends.
    for client in [&mut by_password, &mut by_certificate] {
        eventually!(client.query("SELECT 1").await.is_ok());
        assert_eq!(marker(client).await, "acme");
    }
}
