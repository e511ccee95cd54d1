//! Verifiers by a query in the tenant's own database: asked for, kept, asked for again.

use pgtenant::cli::demo::tenant::Onboarded;
use toml::Value;

use crate::eventually;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::scene::{Scene, connect, log_in, log_in_as, marker, password, path_value, secret, value};
use crate::harness::wire::Wire;

/// A role that may read `pg_authid` in acme's database, and one that may only call a function which does.
const READERS: &str = "
    CREATE ROLE reader LOGIN PASSWORD 'of the reader'; CREATE ROLE caller LOGIN PASSWORD 'of the caller';
    GRANT CONNECT ON DATABASE acme TO reader, caller;
    GRANT SELECT ON pg_authid TO reader;
    CREATE FUNCTION verifier_of(wanted text) RETURNS TABLE (role text, verifier text, until timestamptz)
        LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog
        AS 'SELECT rolname::text, rolpassword, rolvaliduntil FROM pg_authid WHERE rolname = wanted AND rolcanlogin';
    REVOKE ALL ON FUNCTION verifier_of FROM PUBLIC; GRANT EXECUTE ON FUNCTION verifier_of TO caller";

/// acme's record with an `auth_query` and no roles.
fn write_record(files: &ProxyFiles, acme: &Onboarded, user: &str, query: Option<&str>) {
    let password = path_value(secret(files, &format!("{user}.password"), &format!("of the {user}")));
    let mut changes = vec![
        ("roles", Value::from(toml::Table::new())),
        ("auth_query.user", user.into()),
        ("auth_query.password.file", password),
    ];
    changes.extend(query.map(|query| ("auth_query.query", query.into())));
    files.rewrite_tenant(acme, &changes);
}

async fn attempt(proxy: &Proxy, user: &str, password: &str) -> Result<Wire, String> {
    let mut client = Wire::tcp(proxy.address()).await.unwrap();
    let result = log_in_as(&mut client, user, "acme", password).await;
    result.map(|()| client).map_err(|error| error.sqlstate().to_owned())
}

#[tokio::test]
async fn by_reading_pg_authid_or_by_a_function() {
    let scene = Scene::new().await;
    scene.sql(READERS).await;
    scene.sql("CREATE ROLE late LOGIN PASSWORD 'x'; GRANT CONNECT ON DATABASE acme TO late; GRANT SELECT ON marker TO late").await;
    scene.sql("CREATE ROLE expired LOGIN PASSWORD 'x' VALID UNTIL '2001-01-01'; GRANT CONNECT ON DATABASE acme TO expired").await;
    scene
        .sql("CREATE ROLE forever LOGIN PASSWORD 'x' VALID UNTIL 'infinity'; GRANT CONNECT ON DATABASE acme TO forever")
        .await;
    scene.sql("CREATE ROLE no_login NOLOGIN PASSWORD 'x'; CREATE ROLE without LOGIN").await;
    let function = "SELECT role, verifier, until FROM verifier_of($1)";
    for (user, query) in [("reader", None), ("caller", Some(function))] {
        let files = scene.instance().set("auth.free_attempts", 100);
        write_record(&files, &scene.acme, user, query);
        let proxy = Proxy::start(files).await;
        let mut client = connect(&proxy, &scene.acme).await;
        assert_eq!(marker(&mut client).await, "acme");
        assert_eq!(client.mechanism, Some("SCRAM-SHA-256"));
        let mut client = attempt(&proxy, "late", "x").await.unwrap();
        assert_eq!(value(&mut client, "SELECT current_user").await, "late");
        attempt(&proxy, "forever", "x").await.unwrap();
        for (role, password) in
            [("late", "wrong"), ("expired", "x"), ("no_login", "x"), ("without", ""), ("nobody", "x")]
        {
            assert_eq!(attempt(&proxy, role, password).await.map(drop), Err("28P01".into()), "{role}");
        }
    }
}

#[tokio::test]
async fn an_answer_is_kept_until_a_login_fails_against_it() {
    let scene = Scene::new().await;
    scene.sql(READERS).await;
    let files = scene.instance().set("auth.free_attempts", 1000).set("auth.verifier_ttl", "1h");
    write_record(&files, &scene.acme, "reader", None);
    let proxy = Proxy::start(files).await;
    connect(&proxy, &scene.acme).await;
    // Nobody can ask any more, and nobody has to.
    scene.sql("REVOKE SELECT ON pg_authid FROM reader").await;
    let mut open = connect(&proxy, &scene.acme).await;
    assert_eq!(marker(&mut open).await, "acme");
    assert_eq!(attempt(&proxy, "nobody", "x").await.map(drop), Err("28P01".into()));

    scene.sql("GRANT SELECT ON pg_authid TO reader; ALTER ROLE acme PASSWORD 'changed'").await;
    // The old password works as long as the old answer is kept: the backends that there are do not ask.
    assert!(log_in(&mut Wire::tcp(proxy.address()).await.unwrap(), &scene.acme).await.is_ok());
    // The new one fails once against the old answer, which is asked for again then.
    assert_eq!(attempt(&proxy, "acme", "changed").await.map(drop), Err("28P01".into()));
    eventually!(attempt(&proxy, "acme", "changed").await.is_ok());
    assert_eq!(attempt(&proxy, "acme", password(&scene.acme)).await.map(drop), Err("28P01".into()));

    // New backends log in with the new keys, for the sessions from before as well.
    let end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'acme'";
    scene.postgres.sql("postgres", end_all).await.unwrap();
    eventually!(scene.sql("SELECT 1 FROM pg_stat_activity WHERE usename = 'acme'").await.is_empty());
    let mut client = attempt(&proxy, "acme", "changed").await.unwrap();
    eventually!(client.query("SELECT 1").await.is_ok());
    eventually!(open.query("SELECT 1").await.is_ok());
}

#[tokio::test]
async fn a_query_that_fails_is_the_operators_business() {
    let scene = Scene::new().await;
    scene.sql(READERS).await;
    let files = scene.instance().set("auth.free_attempts", 100);
    write_record(&files, &scene.acme, "reader", Some("SELECT no_such_column FROM pg_authid WHERE rolname = $1"));
    let proxy = Proxy::start(files).await;
    let mut client = Wire::tcp(proxy.address()).await.unwrap();
    let error = log_in(&mut client, &scene.acme).await.unwrap_err();
    assert_eq!((error.sqlstate(), error.message()), ("28P01", "password authentication failed for user \"acme\""));
    eventually!(proxy.metric("pgtenant_auth_total{method=\"scram-sha-256\",result=\"unavailable\"}").await == 1.0);
    // Corrected, it serves at once.
    write_record(&proxy.files, &scene.acme, "reader", None);
    proxy.reload().unwrap();
    assert_eq!(marker(&mut connect(&proxy, &scene.acme).await).await, "acme");
}

#[tokio::test]
async fn logins_during_an_outage_are_not_held_against_the_client() {
    let scene = Scene::new().await;
    scene.sql(READERS).await;
    let files = scene.instance().set("auth.free_attempts", 1).set("auth.backoff", "60s");
    write_record(&files, &scene.acme, "reader", None);
    let proxy = Proxy::start(files).await;
    scene.postgres.stop().await;
    // At once, because each waits a while for the instance.
    let attempt = async || attempt(&proxy, "acme", password(&scene.acme)).await.map(drop);
    let refused = Err("28P01".to_owned());
    assert_eq!(tokio::join!(attempt(), attempt(), attempt()), (refused.clone(), refused.clone(), refused));
    scene.postgres.restart().await.unwrap();
    attempt().await.unwrap();
}

#[tokio::test]
async fn a_client_known_from_before_an_outage_is_told_of_the_outage() {
    let scene = Scene::new().await;
    scene.sql(READERS).await;
    let files = scene.instance().set("auth.verifier_ttl", "1ms");
    write_record(&files, &scene.acme, "reader", None);
    let proxy = Proxy::start(files).await;
    attempt(&proxy, "acme", password(&scene.acme)).await.unwrap();
    scene.postgres.stop().await;
    // The pool's first try meets the end of its idle backend; the parameters that it needs are known by then.
    let mut client = attempt(&proxy, "acme", password(&scene.acme)).await.expect("a login needs no backend");
    assert_eq!(client.query("SELECT 1").await.unwrap_err().sqlstate(), "08006");
}
