//! PAUSE and its relatives on the console, as PgBouncer's.

use std::time::Duration;

use crate::eventually;
use crate::harness::frontend::query;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::scene::{Scene, connect, failure, log_in, tenant, value};
use crate::harness::wire::{Wire, tags};

const SECRET: &str = "look and touch";

fn with_console(files: ProxyFiles) -> ProxyFiles {
    crate::harness::scene::secret(&files, "ops.password", SECRET);
    files.set("admin.roles.ops.access", "admin").set("admin.roles.ops.password.file", "ops.password")
}

async fn ops(proxy: &Proxy) -> Wire {
    let mut wire = Wire::tcp(proxy.address()).await.unwrap();
    wire.login("ops", "pgbouncer", SECRET).await.unwrap();
    wire
}

/// State, whether it is disabled, reason and operator, as SHOW TENANTS has them for acme.
async fn shown(console: &mut Wire) -> (String, String, String, String) {
    let rows = console.query("SHOW TENANTS").await.unwrap();
    let row = rows.into_iter().find(|row| row[0].as_deref() == Some("acme")).unwrap();
    let cell = |at: usize| row[at].clone().unwrap_or_default();
    (cell(2), cell(21), cell(22), cell(23))
}

#[tokio::test]
async fn pause_waits_until_no_backend_is_in_use() {
    let scene = Scene::new().await;
    let globex = tenant(&scene.postgres, "globex").await;
    let proxy = Proxy::start(with_console(scene.files().tenant(&globex))).await;
    let (mut console, mut second) = (ops(&proxy).await, ops(&proxy).await);
    let (mut open, mut idle) = (connect(&proxy, &scene.acme).await, connect(&proxy, &scene.acme).await);
    let mut listening = connect(&proxy, &scene.acme).await;
    listening.query("LISTEN news").await.unwrap();
    let mut other = connect(&proxy, &globex).await;
    open.query("BEGIN; SELECT 1").await.unwrap();
    console.send(&query("PAUSE acme")).await.unwrap();
    assert!(console.is_silent(Duration::from_millis(200)).await, "a transaction is open");
    assert_eq!(shown(&mut second).await.0, "paused");
    idle.send(&query("SELECT 2")).await.unwrap();
    assert!(idle.is_silent(Duration::from_millis(200)).await);
    assert_eq!(value(&mut other, "SELECT 1").await, "1");
    open.query("COMMIT").await.unwrap();
    assert_eq!(tags(&console.read_until_ready().await.unwrap()), "CZ");
    console.query("RESUME acme").await.unwrap();
    assert_eq!(tags(&idle.read_until_ready().await.unwrap()), "TDCZ");
    assert_eq!(console.failure("RESUME acme").await, "55000");
    // All of them; nobody waits, since nothing runs.
    console.query("PAUSE").await.unwrap();
    for wire in [&mut open, &mut other] {
        wire.send(&query("SELECT 3")).await.unwrap();
        assert!(wire.is_silent(Duration::from_millis(100)).await);
    }
    console.query("RESUME").await.unwrap();
    for wire in [&mut open, &mut other] {
        assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "TDCZ");
    }
    console.query("SUSPEND").await.unwrap();
    assert_eq!(shown(&mut console).await.0, "paused");
    console.query("RESUME").await.unwrap();
    assert_eq!(shown(&mut console).await.0, "active");
}

#[tokio::test]
async fn pause_ends_with_its_time_or_its_client() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(with_console(scene.files())).await;
    let (mut console, mut second) = (ops(&proxy).await, ops(&proxy).await);
    let mut open = connect(&proxy, &scene.acme).await;
    open.query("BEGIN; SELECT 1").await.unwrap();
    let error = console.query("PAUSE acme WITHIN '200ms'").await.unwrap_err();
    assert_eq!((error.sqlstate(), error.severity()), ("57014", "ERROR"));
    assert_eq!(error.fields[&'D'], "Clients hold backends of: acme.");
    assert_eq!(shown(&mut console).await.0, "paused", "all the same");
    assert_eq!(console.failure("PAUSE acme WITHIN soon").await, "42601");
    second.send(&query("PAUSE")).await.unwrap();
    assert!(second.is_silent(Duration::from_millis(100)).await);
    second.leave().await.unwrap();
    assert!(second.is_closed().await, "nobody is left to be told");
    open.query("COMMIT").await.unwrap();
    console.query("PAUSE acme WITHIN '10s'; RESUME acme").await.unwrap();
}

#[tokio::test]
async fn a_login_that_is_held_ends_with_its_client() {
    let scene = Scene::new().await;
    let limit = [("quota.max_clients", 1.into())];
    let proxy = Proxy::start(with_console(scene.instance().tenant_with(&scene.acme, &limit))).await;
    let mut console = ops(&proxy).await;
    console.query("PAUSE acme").await.unwrap();
    let mut held = Wire::tcp(proxy.address()).await.unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(300), log_in(&mut held, &scene.acme)).await;
    assert!(waits.is_err());
    let mut next = Wire::tcp(proxy.address()).await.unwrap();
    assert_eq!(log_in(&mut next, &scene.acme).await.unwrap_err().sqlstate(), "53300", "its place is taken");
    held.leave().await.unwrap();
    assert!(held.is_closed().await);
    console.query("RESUME acme").await.unwrap();
    connect(&proxy, &scene.acme).await;
}

#[tokio::test]
async fn an_operators_word_holds_until_the_record_says_something_else() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(with_console(scene.files())).await;
    let mut console = ops(&proxy).await;
    let mut client = connect(&proxy, &scene.acme).await;
    console.query("SUSPEND acme 'not paid'").await.unwrap();
    assert_eq!(client.expect_error("57P03").await.fields[&'D'], "not paid");
    let expected = |state: &str, disabled: &str, reason: &str, by: &str| {
        (state.to_owned(), disabled.to_owned(), reason.to_owned(), by.to_owned())
    };
    assert_eq!(shown(&mut console).await, expected("suspended", "0", "not paid", "ops"));
    // Other changes of the record leave it alone.
    proxy.files.rewrite_tenant(&scene.acme, &[("pool.max_backends", 7.into())]);
    console.query("RELOAD").await.unwrap();
    assert_eq!(shown(&mut console).await.0, "suspended");
    proxy.files.rewrite_tenant(&scene.acme, &[("state", "read-only".into())]);
    console.query("RELOAD").await.unwrap();
    assert_eq!(shown(&mut console).await, expected("read-only", "0", "", ""));
    let mut client = connect(&proxy, &scene.acme).await;
    assert_eq!(client.failure("CREATE TABLE t ()").await, "25006");
    console.query("MAINTENANCE acme").await.unwrap();
    client.expect_error("57P03").await;
    console.query("ENABLE acme").await.unwrap();
    assert_eq!(shown(&mut console).await.0, "read-only");
    console.query("READ_ONLY acme 'for a while'; RESUME acme").await.unwrap();
}

#[tokio::test]
async fn disable_keeps_new_clients_out_and_kill_ends_the_others() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(with_console(scene.files())).await;
    let mut console = ops(&proxy).await;
    let mut client = connect(&proxy, &scene.acme).await;
    console.query("DISABLE acme").await.unwrap();
    assert_eq!(value(&mut client, "SELECT 1").await, "1");
    let mut new = Wire::tcp(proxy.address()).await.unwrap();
    let error = log_in(&mut new, &scene.acme).await.unwrap_err();
    assert_eq!((error.sqlstate(), error.message()), ("57P03", "tenant \"acme\" takes no new clients"));
    console.query("ENABLE acme").await.unwrap();
    connect(&proxy, &scene.acme).await;
    console.query("KILL acme").await.unwrap();
    client.expect_error("57P01").await;
    eventually!(
        scene
            .postgres
            .sql("postgres", "SELECT 1 FROM pg_stat_activity WHERE datname = 'acme'")
            .await
            .unwrap()
            .is_empty()
    );
    let mut waiting = Wire::tcp(proxy.address()).await.unwrap();
    {
        let login = log_in(&mut waiting, &scene.acme);
        tokio::pin!(login);
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut login).await.is_err(), "until it is resumed");
        console.query("RESUME acme").await.unwrap();
        login.await.unwrap();
    }
    assert_eq!(value(&mut waiting, "SELECT 1").await, "1");
}

#[tokio::test]
async fn wait_close_waits_for_the_backends_from_before_a_reconnect() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(with_console(scene.files())).await;
    let mut console = ops(&proxy).await;
    console.query("WAIT_CLOSE acme").await.unwrap();
    let mut open = connect(&proxy, &scene.acme).await;
    open.query("BEGIN; SELECT 1").await.unwrap();
    console.query("RECONNECT acme").await.unwrap();
    console.send(&query("WAIT_CLOSE acme")).await.unwrap();
    assert!(console.is_silent(Duration::from_millis(200)).await);
    open.send(&query("SELECT 1/0")).await.unwrap();
    assert_eq!(failure(&mut open).await.sqlstate(), "22012");
    open.query("ROLLBACK").await.unwrap();
    assert_eq!(tags(&console.read_until_ready().await.unwrap()), "CZ");
}

#[tokio::test]
async fn quotas_are_shown_with_their_use() {
    let scene = Scene::new().await;
    let limit = [("quota.max_clients", 4.into()), ("quota.query_timeout", "2s".into())];
    let proxy = Proxy::start(with_console(scene.instance().tenant_with(&scene.acme, &limit))).await;
    let mut console = ops(&proxy).await;
    let _client = connect(&proxy, &scene.acme).await;
    let rows = console.query("SHOW QUOTAS").await.unwrap();
    let row = |quota: &str| {
        let row = rows.iter().find(|row| row[2].as_deref() == Some(quota)).unwrap();
        row.iter().map(|cell| cell.clone().unwrap_or_default()).collect::<Vec<_>>()
    };
    assert_eq!(row("max_clients"), ["acme", "", "max_clients", "clients", "4", "1", "25", "0"]);
    assert_eq!(row("query_timeout"), ["acme", "", "query_timeout", "seconds", "2", "", "", "0"]);
    assert_eq!(row("max_backends")[3], "backends");
}
