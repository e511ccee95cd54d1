//! Step 3 of a session: each rule that names a tenant, switched on and off, and hints that disagree.

use std::sync::Arc;

use pgtenant::cli::demo::certificates::DevCa;
use pgtenant::cli::demo::tenant::Onboarded;
use toml::Value;

use crate::eventually;
use crate::harness::certs;
use crate::harness::frontend::V3_0;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::scene::{Scene, marker, password, tenant, value};
use crate::harness::wire::{ErrorResponse, Wire};

/// acme and globex behind a proxy with TLS, where `globex_prod` is globex's by the map of databases.
struct Town {
    scene: Scene,
    globex: Onboarded,
    ca: DevCa,
}

const NAMES: [&str; 5] =
    ["localhost", "acme.localhost", "globex.localhost", "nosuch.localhost", "acme.other.localhost"];

/// What a client says of its tenant; the user is `acme` unless told.
#[derive(Clone, Copy, Default)]
struct Said<'a> {
    sni: Option<&'a str>,
    options: Option<&'a str>,
    user: Option<&'a str>,
    database: Option<&'a str>,
}

impl Town {
    async fn new() -> Town {
        let scene = Scene::new().await;
        let globex = tenant(&scene.postgres, "globex").await;
        Town { scene, globex, ca: DevCa::new().unwrap() }
    }

    fn files(&self) -> ProxyFiles {
        self.scene
            .files()
            .tenant(&self.globex)
            .certificate(&self.ca, &NAMES)
            .set("routing.sni_domains", vec!["localhost", "other.localhost"])
            .set("routing.databases.acme_prod", "acme")
            .set("routing.databases.globex_prod", "globex")
    }

    /// Logs in with acme's password.
    async fn log_in(&self, proxy: &Proxy, said: Said<'_>) -> Result<Wire, ErrorResponse> {
        let config = Arc::new(certs::client(&self.ca));
        let mut client = Wire::tls(proxy.address(), config, said.sni.unwrap_or("localhost")).await.unwrap();
        let mut parameters = vec![("user", said.user.unwrap_or("acme"))];
        parameters.extend(said.options.map(|options| ("options", options)));
        parameters.extend(said.database.map(|database| ("database", database)));
        client.login_with(V3_0, &parameters, password(&self.scene.acme)).await.map(|()| client)
    }

    async fn reaches_acme(&self, proxy: &Proxy, said: Said<'_>) {
        let mut client = self.log_in(proxy, said).await.unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(marker(&mut client).await, "acme");
        assert_eq!(value(&mut client, "SELECT current_user").await, "acme");
        assert_eq!(value(&mut client, "SELECT current_database()").await, "acme");
    }

    async fn is_refused(&self, proxy: &Proxy, said: Said<'_>, sqlstate: &str) -> ErrorResponse {
        let error = self.log_in(proxy, said).await.map(drop).unwrap_err();
        assert_eq!((error.sqlstate(), error.severity()), (sqlstate, "FATAL"), "{error:?}");
        error
    }
}

const BY_SNI: Said<'_> = Said { sni: Some("acme.localhost"), options: None, user: None, database: None };
const BY_OPTIONS: Said<'_> = Said { sni: None, options: Some("-c tenant=acme"), user: None, database: None };
const BY_SUFFIX: Said<'_> = Said { sni: None, options: None, user: Some("acme.acme"), database: None };
const BY_DATABASE: Said<'_> = Said { sni: None, options: None, user: None, database: Some("acme_prod") };

#[tokio::test]
async fn each_rule_leads_to_the_tenant() {
    let town = Town::new().await;
    let proxy = Proxy::start(town.files()).await;
    for said in [BY_SNI, BY_OPTIONS, BY_SUFFIX, BY_DATABASE] {
        town.reaches_acme(&proxy, said).await;
    }
    // Names are compared without case, further domains count, and hints that agree are one.
    town.reaches_acme(&proxy, Said { sni: Some("ACME.localhost"), ..Said::default() }).await;
    town.reaches_acme(&proxy, Said { sni: Some("acme.other.localhost"), ..Said::default() }).await;
    town.reaches_acme(&proxy, Said { options: Some("-c Tenant=ACME"), ..Said::default() }).await;
    let all = Said { options: BY_OPTIONS.options, user: BY_SUFFIX.user, database: BY_DATABASE.database, ..BY_SNI };
    town.reaches_acme(&proxy, all).await;
    // The database may also be the tenant's own, or be named like the user with its suffix, as libpq does by default.
    town.reaches_acme(&proxy, Said { database: Some("acme"), ..BY_SNI }).await;
    town.reaches_acme(&proxy, Said { database: Some("acme.acme"), ..BY_SUFFIX }).await;

    let error = town.is_refused(&proxy, Said::default(), "28000").await;
    assert_eq!(error.message(), "the connection names no tenant");
    for way in ["<tenant>.localhost", "-c tenant=<tenant>", "<role>.<tenant>"] {
        assert!(error.fields[&'H'].contains(way), "{error:?}");
    }
}

#[tokio::test]
async fn each_rule_can_be_switched_off() {
    let town = Town::new().await;
    let none: Value = Vec::<String>::new().into();
    let rules = [
        (BY_SNI, "routing.sni_domains", none),
        (BY_OPTIONS, "routing.options", false.into()),
        (BY_SUFFIX, "routing.user_suffix", false.into()),
        (BY_DATABASE, "routing.databases", toml::Table::new().into()),
    ];
    for (off, (said, key, value)) in rules.iter().enumerate() {
        let proxy = Proxy::start(town.files().set(key, value.clone())).await;
        let error = town.is_refused(&proxy, *said, "28000").await;
        assert_eq!(error.message(), "the connection names no tenant", "{key}");
        for (_, (said, ..)) in rules.iter().enumerate().filter(|(rule, _)| *rule != off) {
            town.reaches_acme(&proxy, *said).await;
        }
        // What names nobody contradicts nobody. PostgreSQL does not get to see the option all the same.
        match off {
            0 => town.reaches_acme(&proxy, Said { sni: Some("globex.localhost"), ..BY_OPTIONS }).await,
            1 => town.reaches_acme(&proxy, Said { options: Some("-c tenant=globex"), ..BY_SNI }).await,
            _ => {}
        }
    }
    let proxy = Proxy::start(town.files().set("routing.user_suffix", "@")).await;
    town.reaches_acme(&proxy, Said { user: Some("acme@acme"), ..Said::default() }).await;
    town.is_refused(&proxy, BY_SUFFIX, "28000").await;
}

#[tokio::test]
async fn hints_that_disagree_are_refused() {
    let town = Town::new().await;
    let proxy = Proxy::start(town.files()).await;
    let globex = Some("globex.localhost");
    let error = town.is_refused(&proxy, Said { sni: globex, ..BY_OPTIONS }, "28000").await;
    let text = "the hints disagree: SNI names tenant \"globex\", options names \"acme\"";
    assert_eq!(error.message(), text);
    town.is_refused(&proxy, Said { sni: globex, ..BY_DATABASE }, "28000").await;
    town.is_refused(&proxy, Said { database: Some("globex_prod"), ..BY_OPTIONS }, "28000").await;
    // Also with a tenant that does not exist: the answer does not tell.
    town.is_refused(&proxy, Said { sni: Some("nosuch.localhost"), ..BY_OPTIONS }, "28000").await;
    // A suffix is a hint only where there is such a tenant, so this must look like a wrong password.
    for user in ["acme.globex", "acme.nosuch"] {
        let error = town.is_refused(&proxy, Said { user: Some(user), ..BY_SNI }, "28P01").await;
        assert_eq!(error.message(), format!("password authentication failed for user \"{user}\""));
    }
    eventually!(proxy.metric("pgtenant_auth_total{method=\"none\",result=\"disagreement\"}").await == 4.0);
}

#[tokio::test]
async fn roles_may_have_dots() {
    let town = Town::new().await;
    let password = password(&town.scene.acme);
    let sql = format!(
        "CREATE ROLE \"jane.doe\" LOGIN PASSWORD '{password}'; GRANT CONNECT ON DATABASE acme TO \"jane.doe\";
         GRANT SELECT ON marker TO \"jane.doe\""
    );
    town.scene.sql(&sql).await;
    let rows = town.scene.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'jane.doe'").await;
    let files = town.files();
    let mut roles = town.scene.acme.record()["roles"].as_table().unwrap().clone();
    let verifier = rows[0][0].clone().unwrap();
    roles.insert("jane.doe".to_owned(), toml::Table::from_iter([("verifier".to_owned(), verifier.into())]).into());
    files.rewrite_tenant(&town.scene.acme, &[("roles", roles.into())]);
    let proxy = Proxy::start(files).await;
    let (by_itself, with_suffix) = (Some("jane.doe"), Some("jane.doe.acme"));
    let ways = [
        Said { user: by_itself, ..BY_OPTIONS },
        Said { user: by_itself, ..BY_SNI },
        Said { user: with_suffix, ..BY_SUFFIX },
        Said { user: with_suffix, ..BY_SNI },
    ];
    for said in ways {
        let mut client = town.log_in(&proxy, said).await.unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(value(&mut client, "SELECT current_user").await, "jane.doe");
        assert_eq!(marker(&mut client).await, "acme");
    }
    // Alone, the last dot separates a tenant that there is not.
    town.is_refused(&proxy, Said { user: by_itself, ..Said::default() }, "28P01").await;
}
