//! Changed files while clients are connected: all or nothing, and unchanged tenants notice nothing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pgtenant::cli::demo::postgres::Postgres;
use pgtenant::cli::demo::tenant::{Onboarded, Order, onboard};
use secrecy::ExposeSecret;
use toml::Value;

use crate::eventually;
use crate::harness::frontend::query;
use crate::harness::postgres;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::serve::Served;
use crate::harness::stage::{Census, Stage, client};
use crate::harness::wire::{ErrorResponse, Wire, tags};

/// Two tenants on one instance.
struct Two {
    proxy: Proxy,
    acme: Onboarded,
    globex: Onboarded,
    one: Postgres,
}

impl Two {
    async fn new() -> Two {
        let one = postgres::start().await;
        let acme = onboard(&one, &Order::shared("acme", "one")).await.unwrap();
        let globex = onboard(&one, &Order::shared("globex", "one")).await.unwrap();
        let files = ProxyFiles::new().instance("one", &one).tenant(&acme).tenant(&globex);
        Two { proxy: Proxy::start(files).await, acme, globex, one }
    }

    async fn client(&self, tenant: &Onboarded) -> Wire {
        client(self.proxy.address(), tenant).await
    }
}

async fn refusal(proxy: &Proxy, tenant: &Onboarded) -> ErrorResponse {
    let mut wire = Wire::tcp(proxy.address()).await.unwrap();
    let user = format!("{}.{}", tenant.role, tenant.tenant);
    wire.login(&user, &tenant.database, tenant.password.expose_secret()).await.unwrap_err()
}

async fn told_to_go(wire: &mut Wire) {
    let error = wire.expect_error("57P01").await;
    assert_eq!(error.severity(), "FATAL");
    assert!(wire.is_closed().await);
}

async fn pid(wire: &mut Wire) -> String {
    wire.value("SELECT pg_backend_pid()").await
}

#[tokio::test]
async fn a_bad_file_keeps_the_last_good_state_and_says_so() {
    let two = Two::new().await;
    let mut wire = two.client(&two.acme).await;
    let path = two.proxy.files.tenants_dir().join("globex.toml");
    let good = fs::read_to_string(&path).unwrap();
    let bad = [
        ("this is not toml", "globex.toml"),
        ("instance = \"one\"\nmax_backend = 3", "max_backend"),
        ("instance = \"nowhere\"\ndatabase = \"globex\"", "nowhere"),
        ("", "instance"),
    ];
    for (count, (text, named)) in bad.iter().enumerate() {
        // Along with a good change, which must not be taken over alone.
        two.proxy.files.rewrite_tenant(&two.acme, &[("state", "suspended".into())]);
        fs::write(&path, text).unwrap();
        let error = two.proxy.reload().unwrap_err().to_string();
        assert!(error.contains("globex.toml") && error.contains(named), "{error}");
        assert_eq!(two.proxy.metric("pgtenant_config_last_reload_successful").await, 0.0);
        assert!(two.proxy.metric("pgtenant_reload_total{result=\"failed\"}").await > count as f64);
        assert_eq!(wire.value("SELECT tenant FROM marker").await, "acme");
        assert_eq!(two.client(&two.globex).await.value("SELECT tenant FROM marker").await, "globex");
    }
    two.proxy.files.rewrite_tenant(&two.acme, &[]);
    fs::write(&path, good).unwrap();
    two.proxy.reload().unwrap();
    assert_eq!(two.proxy.metric("pgtenant_config_last_reload_successful").await, 1.0);
    assert!(two.proxy.metric("pgtenant_reload_total{result=\"ok\"}").await >= 1.0);
    assert_eq!(wire.value("SELECT tenant FROM marker").await, "acme");
}

#[tokio::test]
async fn unchanged_tenants_notice_nothing() {
    let two = Two::new().await;
    let (mut open, mut asking, mut idle) =
        (two.client(&two.acme).await, two.client(&two.acme).await, two.client(&two.acme).await);
    open.query("BEGIN; CREATE TEMP TABLE mine AS SELECT 1 AS x").await.unwrap();
    let kept = pid(&mut open).await;
    asking.send(&query("SELECT pg_sleep(1)")).await.unwrap();
    let count = "SELECT array_agg(pid ORDER BY pid) FROM pg_stat_activity WHERE datname = 'acme'";
    idle.query("SELECT 1").await.unwrap();
    let before = two.one.sql("postgres", count).await.unwrap();
    // Removed, added again, suspended, another bound: all of it somebody else's.
    let path = two.proxy.files.tenants_dir().join("globex.toml");
    fs::remove_file(&path).unwrap();
    two.proxy.reload().unwrap();
    for changes in [&[][..], &[("state", "suspended".into())], &[("pool.max_backends", 1.into())]] {
        two.proxy.files.rewrite_tenant(&two.globex, changes);
        two.proxy.reload().unwrap();
    }
    assert_eq!(open.value("SELECT x FROM mine").await, "1");
    assert_eq!(pid(&mut open).await, kept);
    open.query("COMMIT").await.unwrap();
    assert_eq!(tags(&asking.read_until_ready().await.unwrap()), "TDCZ");
    idle.query("SELECT 1").await.unwrap();
    assert_eq!(two.one.sql("postgres", count).await.unwrap(), before, "a backend was replaced");
    // Another password in the own record changes nothing for those who are in.
    let verifier = pgtenant_verifier(&two.one, "acme", "another").await;
    two.proxy.files.rewrite_tenant(&two.acme, &[("roles.acme.verifier", verifier.into())]);
    two.proxy.reload().unwrap();
    assert_eq!(idle.value("SELECT 1").await, "1");
    assert_eq!(refusal(&two.proxy, &two.acme).await.sqlstate(), "28P01");
    let mut wire = Wire::tcp(two.proxy.address()).await.unwrap();
    wire.login("acme.acme", "acme", "another").await.unwrap();
    assert_eq!(wire.value("SELECT 1").await, "1");
}

/// Changes a role's password at the instance; gives the new verifier.
async fn pgtenant_verifier(postgres: &Postgres, role: &str, password: &str) -> String {
    let sql =
        format!("ALTER ROLE {role} PASSWORD '{password}'; SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'");
    postgres.sql("postgres", &sql).await.unwrap().remove(0).remove(0).unwrap()
}

#[tokio::test]
async fn tenants_come_and_go() {
    let two = Two::new().await;
    let new = onboard(&two.one, &Order::shared("initech", "one")).await.unwrap();
    assert_eq!(refusal(&two.proxy, &new).await.sqlstate(), "28P01");
    two.proxy.files.rewrite_tenant(&new, &[]);
    two.proxy.reload().unwrap();
    assert_eq!(two.client(&new).await.value("SELECT tenant FROM marker").await, "initech");

    // Removed: who is idle goes at once, a transaction may finish, a query too.
    let (mut idle, mut open, mut asking) =
        (two.client(&two.globex).await, two.client(&two.globex).await, two.client(&two.globex).await);
    open.query("BEGIN; SELECT 1").await.unwrap();
    asking.send(&query("SELECT pg_sleep(0.5)")).await.unwrap();
    eventually!(
        two.one.sql("globex", "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'").await.unwrap().len() == 1
    );
    fs::remove_file(two.proxy.files.tenants_dir().join("globex.toml")).unwrap();
    two.proxy.reload().unwrap();
    told_to_go(&mut idle).await;
    assert_eq!(refusal(&two.proxy, &two.globex).await.sqlstate(), "28P01");
    assert_eq!(open.value("SELECT tenant FROM marker").await, "globex");
    assert_eq!(tags(&asking.read_until_ready().await.unwrap()), "TDCZ");
    told_to_go(&mut asking).await;
    open.query("COMMIT").await.unwrap();
    told_to_go(&mut open).await;
    eventually!(crate::harness::stage::backends(&two.one, &two.globex).await == 0);
    // And back again.
    two.proxy.files.rewrite_tenant(&two.globex, &[]);
    two.proxy.reload().unwrap();
    assert_eq!(two.client(&two.globex).await.value("SELECT tenant FROM marker").await, "globex");
}

#[tokio::test]
async fn a_suspended_tenant_is_told_so_and_resumes() {
    let two = Two::new().await;
    let mut idle = two.client(&two.acme).await;
    two.proxy.files.rewrite_tenant(&two.acme, &[("state", "suspended".into())]);
    two.proxy.reload().unwrap();
    assert_eq!(idle.expect_error("57P03").await.severity(), "FATAL");
    assert!(idle.is_closed().await);
    let error = refusal(&two.proxy, &two.acme).await;
    assert_eq!((error.severity(), error.sqlstate()), ("FATAL", "57P03"));
    eventually!(crate::harness::stage::backends(&two.one, &two.acme).await == 0);
    two.proxy.files.rewrite_tenant(&two.acme, &[]);
    two.proxy.reload().unwrap();
    assert_eq!(two.client(&two.acme).await.value("SELECT tenant FROM marker").await, "acme");
}

#[tokio::test]
async fn a_moved_tenant_is_served_at_its_new_place_only() {
    let two = Two::new().await;
    let elsewhere = postgres::start().await;
    let moved = onboard(&elsewhere, &Order::shared("acme", "two")).await.unwrap();
    elsewhere.sql("acme", "UPDATE marker SET tenant = 'acme at two'").await.unwrap();
    let (mut idle, mut open, mut neighbour) =
        (two.client(&two.acme).await, two.client(&two.acme).await, two.client(&two.globex).await);
    open.query("BEGIN; SELECT 1").await.unwrap();
    let Two { proxy, acme, one, .. } = two;
    // The instance is new as well: proxy.toml changes with the record.
    let path = proxy.files.dir().join("proxy.toml");
    let mut text = fs::read_to_string(&path).unwrap();
    text += &format!("\n[instances.two]\nhost = \"127.0.0.1\"\nport = {}\n", elsewhere.port());
    fs::write(&path, text).unwrap();
    proxy.files.rewrite_tenant(&moved, &[]);
    proxy.reload().unwrap();
    told_to_go(&mut idle).await;
    let mut wire = client(proxy.address(), &moved).await;
    assert_eq!(wire.value("SELECT tenant FROM marker").await, "acme at two");
    assert_eq!(open.value("SELECT tenant FROM marker").await, "acme", "a transaction ends where it began");
    open.query("COMMIT").await.unwrap();
    told_to_go(&mut open).await;
    eventually!(crate::harness::stage::backends(&one, &acme).await == 0);
    assert_eq!(neighbour.value("SELECT tenant FROM marker").await, "globex");
    for _ in 0..10 {
        assert_eq!(client(proxy.address(), &moved).await.value("SELECT tenant FROM marker").await, "acme at two");
    }
}

#[tokio::test]
async fn pool_settings_change_for_those_who_are_connected() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(stage.client().await);
    }
    let set = |changes: &[(&str, Value)]| {
        stage.proxy.files.rewrite_tenant(&stage.tenant, changes);
        stage.proxy.reload().unwrap();
    };
    // Raised: those who wait get on at once.
    for client in &mut clients {
        client.send(&query("BEGIN; SELECT pg_sleep(0.1)")).await.unwrap();
    }
    stage.waiting(3.0).await;
    set(&[("pool.max_backends", 4.into())]);
    for client in &mut clients {
        client.read_until_ready().await.unwrap();
    }
    assert_eq!(stage.backends().await, 4);
    // Lowered: no transaction is cut, and what is free above the bound goes.
    set(&[("pool.max_backends", 2.into())]);
    for client in &mut clients {
        assert_eq!(client.value("SELECT 1").await, "1");
        client.query("COMMIT").await.unwrap();
    }
    eventually!(stage.backends().await <= 2);
    // Idle ones, too.
    set(&[("pool.max_backends", 4.into())]);
    for client in &mut clients {
        client.query("BEGIN; SELECT 1").await.unwrap();
    }
    for client in &mut clients {
        client.query("COMMIT").await.unwrap();
    }
    assert_eq!(stage.backends().await, 4);
    set(&[("pool.max_backends", 1.into())]);
    eventually!(stage.backends().await <= 1);
    let census = Census::begin(&stage.postgres, "usename = 'app'").await;
    for client in &mut clients {
        client.query("SELECT pg_sleep(0.01)").await.unwrap();
    }
    assert_eq!(census.most(), 1);
    // The queue timeout holds for the next wait, an idle timeout for those idle already.
    clients[0].query("BEGIN; SELECT 1").await.unwrap();
    set(&[("pool.max_backends", 1.into()), ("pool.queue_timeout", "50ms".into())]);
    assert_eq!(clients[1].failure("SELECT 1").await, "53300");
    clients[0].query("COMMIT").await.unwrap();
    set(&[("pool.idle_timeout", "1s".into())]);
    eventually!(stage.backends().await == 0);
    // Another mode is another way to serve: sessions connect again.
    set(&[("pool.mode", "session".into())]);
    for client in &mut clients {
        told_to_go(client).await;
    }
    let mut wire = stage.client().await;
    wire.query("SET work_mem = '7MB'").await.unwrap();
    let mut other = stage.client().await;
    assert_eq!(other.value("SHOW work_mem").await, "4MB");
    assert_eq!(wire.value("SHOW work_mem").await, "7MB");
}

#[tokio::test]
async fn the_instances_bound_changes_too() {
    let two = Two::new().await;
    let mut clients = Vec::new();
    for tenant in [&two.acme, &two.globex, &two.acme, &two.globex] {
        let mut wire = two.client(tenant).await;
        wire.query("BEGIN; SELECT 1").await.unwrap();
        clients.push(wire);
    }
    let path = two.proxy.files.dir().join("proxy.toml");
    let text = fs::read_to_string(&path).unwrap();
    let bound = |bound: u32| {
        let mut table: toml::Table = text.parse().unwrap();
        let instance = table["instances"]["one"].as_table_mut().unwrap();
        instance.insert("max_backends".to_owned(), i64::from(bound).into());
        fs::write(&path, table.to_string()).unwrap();
        two.proxy.reload().unwrap();
    };
    bound(2);
    for client in &mut clients {
        client.query("COMMIT").await.unwrap();
    }
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname IN ('acme', 'globex')";
    eventually!(two.one.sql("postgres", count).await.unwrap()[0][0].as_deref().unwrap().parse::<u32>().unwrap() <= 2);
    for client in &mut clients {
        assert_eq!(client.value("SELECT 1").await, "1");
    }
    bound(4);
    for client in &mut clients {
        client.query("BEGIN; SELECT 1").await.unwrap();
    }
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

#[tokio::test]
async fn a_changed_file_is_noticed_without_being_told() {
    let one = postgres::start().await;
    let acme = onboard(&one, &Order::shared("acme", "one")).await.unwrap();
    let globex = onboard(&one, &Order::shared("globex", "one")).await.unwrap();
    let files = ProxyFiles::new().instance("one", &one).tenant(&acme);
    let served = Served::start(files).await;
    let mut wire = client(served.address, &acme).await;
    served.files.rewrite_tenant(&globex, &[]);
    eventually!(served.metric("pgtenant_reload_total{result=\"ok\"}").await >= 1.0);
    assert_eq!(client(served.address, &globex).await.value("SELECT tenant FROM marker").await, "globex");
    // A bad one: the log and the metric say so.
    let path = served.files.tenants_dir().join("globex.toml");
    let good = fs::read_to_string(&path).unwrap();
    replace(&path, "instanze = \"one\"");
    eventually!(served.metric("pgtenant_reload_total{result=\"failed\"}").await >= 1.0);
    assert_eq!(served.metric("pgtenant_config_last_reload_successful").await, 0.0);
    eventually!(served.log().contains("instanze"), "{}", served.log());
    assert!(served.log().contains("the last good one stays in force"), "{}", served.log());
    assert_eq!(client(served.address, &globex).await.value("SELECT 1").await, "1");
    // Mended: a file that is replaced by another, and one that is written in place.
    replace(&path, &good);
    eventually!(served.metric("pgtenant_config_last_reload_successful").await == 1.0);
    fs::write(&path, good.replace("[pool]", "state = \"suspended\"\n[pool]")).unwrap();
    eventually!(served.log().matches("changed=1").count() + served.log().matches("retired=1").count() >= 1);
    fs::remove_file(&path).unwrap();
    eventually!(served.log().matches("retired=1").count() >= 1);
    assert_eq!(wire.value("SELECT tenant FROM marker").await, "acme");
}

#[tokio::test]
async fn sighup_reads_everything_again() {
    let one = postgres::start().await;
    let acme = onboard(&one, &Order::shared("acme", "one")).await.unwrap();
    let served = Served::start(ProxyFiles::new().instance("one", &one).tenant(&acme)).await;
    let mut wire = client(served.address, &acme).await;
    let reloads = || async { served.metric("pgtenant_reload_total").await };
    for expected in 1..=3 {
        served.signal(libc::SIGHUP);
        eventually!(reloads().await == f64::from(expected));
        assert_eq!(wire.value("SELECT 1").await, "1");
    }
    let path = served.files.dir().join("proxy.toml");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{good}\n[rubbish]\nx = 1\n")).unwrap();
    served.signal(libc::SIGHUP);
    eventually!(served.metric("pgtenant_config_last_reload_successful").await == 0.0);
    eventually!(served.log().contains("rubbish"), "{}", served.log());
    assert_eq!(wire.value("SELECT 1").await, "1");
    // What takes effect only after a restart is named.
    fs::write(&path, good.replace("[listen]", "[listen]\nbacklog = 7")).unwrap();
    served.signal(libc::SIGHUP);
    eventually!(served.log().contains("takes effect only after a restart"), "{}", served.log());
    let waited = tokio::time::timeout(Duration::from_secs(1), wire.query("SELECT 1")).await;
    assert!(waited.unwrap().is_ok());
}
