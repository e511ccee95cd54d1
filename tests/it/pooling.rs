//! Pools: bounds that hold at the instance, fair queues, reaping, pool modes.

use std::time::{Duration, Instant};

use pgtenant::cli::demo::tenant::{Order, onboard};
use tokio_postgres::error::SqlState;
use toml::Value;

use crate::eventually;
use crate::harness::frontend::{self, bind, describe_statement, execute, flush, parse, query, sync};
use crate::harness::postgres;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::stage::{Census, Stage, add_role, client, client_as, instance};
use crate::harness::wire::{Wire, tags};

const OF_THE_TENANT: &str = "datname = 'app'";

/// Runs short transactions on so many clients until `time` is over; gives how many each finished.
async fn hammer(clients: Vec<Wire>, time: Duration) -> Vec<u32> {
    let end = Instant::now() + time;
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                let mut finished = 0;
                while Instant::now() < end {
                    client.query("BEGIN; SELECT pg_sleep(0.001); COMMIT").await.unwrap();
                    finished += 1;
                }
                finished
            })
        })
        .collect();
    let mut finished = Vec::new();
    for task in tasks {
        finished.push(task.await.unwrap());
    }
    finished
}

async fn clients(stage: &Stage, count: usize) -> Vec<Wire> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(stage.client().await);
    }
    clients
}

#[tokio::test]
async fn a_tenant_never_has_more_backends_than_its_bound() {
    let stage = Stage::new(&[("pool.max_backends", 3.into())]).await;
    let census = Census::begin(&stage.postgres, OF_THE_TENANT).await;
    let mut drivers = Vec::new();
    for _ in 0..10 {
        let driver = stage.driver().await;
        drivers.push(tokio::spawn(async move {
            for number in 0..50_i32 {
                let row = driver.query_one("SELECT $1::int4", &[&number]).await.unwrap();
                assert_eq!(row.get::<_, i32>(0), number);
            }
        }));
    }
    let finished = hammer(clients(&stage, 20).await, Duration::from_secs(2)).await;
    assert!(finished.iter().all(|&count| count > 0), "{finished:?}");
    for driver in drivers {
        driver.await.unwrap();
    }
    assert_eq!(census.most(), 3);
}

#[tokio::test]
async fn a_role_never_has_more_backends_than_its_bound() {
    let stage = Stage::new(&[("pool.max_backends", 4.into()), ("pool.max_backends_per_role", 2.into())]).await;
    let census = Census::begin(&stage.postgres, OF_THE_TENANT).await;
    let finished = hammer(clients(&stage, 10).await, Duration::from_secs(1)).await;
    assert!(finished.iter().all(|&count| count > 0), "{finished:?}");
    assert_eq!(census.most(), 2);
}

#[tokio::test]
async fn an_instance_never_has_more_backends_than_its_bound_and_no_tenant_starves() {
    let postgres = postgres::start().await;
    let mut files = ProxyFiles::new().instance("one", &postgres).set("instances.one.max_backends", 4);
    let mut tenants = Vec::new();
    for name in ["acme", "globex"] {
        let tenant = onboard(&postgres, &Order::shared(name, "one")).await.unwrap();
        files = files.tenant_with(&tenant, &[("pool.max_backends", 3.into())]);
        tenants.push(tenant);
    }
    let proxy = Proxy::start(files).await;
    let census = Census::begin(&postgres, "datname IN ('acme', 'globex')").await;
    let mut clients = Vec::new();
    for tenant in &tenants {
        for _ in 0..8 {
            clients.push(client(proxy.address(), tenant).await);
        }
    }
    let finished = hammer(clients, Duration::from_secs(2)).await;
    let [acme, globex] = [&finished[..8], &finished[8..]].map(|counts| counts.iter().sum::<u32>());
    assert!(acme.min(globex) * 4 > acme.max(globex), "{finished:?}");
    assert!(finished.iter().all(|&count| count > 0), "{finished:?}");
    assert!(census.most() <= 4, "{} backends", census.most());
}

#[tokio::test]
async fn two_roles_that_want_everything_both_get_on() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let verifier = add_role(&postgres, &tenant, "batch", "").await;
    let changes: [(&str, Value); 2] = [("pool.max_backends", 2.into()), ("roles.batch.verifier", verifier.into())];
    let proxy = Proxy::start(ProxyFiles::new().instance("one", &postgres).tenant_with(&tenant, &changes)).await;
    let census = Census::begin(&postgres, OF_THE_TENANT).await;
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(client(proxy.address(), &tenant).await);
    }
    for _ in 0..3 {
        clients.push(client_as(proxy.address(), &tenant, "batch").await);
    }
    let finished = hammer(clients, Duration::from_secs(2)).await;
    let [app, batch] = [&finished[..12], &finished[12..]].map(|counts| counts.iter().sum::<u32>());
    assert!(app.min(batch) * 8 > app.max(batch), "{finished:?}");
    assert!(finished.iter().all(|&count| count > 0), "{finished:?}");
    assert!(census.most() <= 2, "{} backends", census.most());
}

#[tokio::test]
async fn an_idle_backend_gives_way_to_another_role_at_the_bound() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let verifier = add_role(&postgres, &tenant, "batch", "").await;
    let changes: [(&str, Value); 2] = [("pool.max_backends", 2.into()), ("roles.batch.verifier", verifier.into())];
    let proxy = Proxy::start(ProxyFiles::new().instance("one", &postgres).tenant_with(&tenant, &changes)).await;
    let census = Census::begin(&postgres, OF_THE_TENANT).await;
    // Two backends of one role, idle.
    let mut one = client(proxy.address(), &tenant).await;
    let mut two = client(proxy.address(), &tenant).await;
    for client in [&mut one, &mut two] {
        client.query("BEGIN; SELECT 1").await.unwrap();
    }
    for client in [&mut one, &mut two] {
        client.query("COMMIT").await.unwrap();
    }
    let idle = "pgtenant_tenant_backends{tenant=\"acme\",instance_name=\"one\",state=\"idle\"";
    eventually!(proxy.metric(idle).await == 2.0);
    let begin = Instant::now();
    let mut batch = client_as(proxy.address(), &tenant, "batch").await;
    assert_eq!(batch.value("SELECT current_user").await, "batch");
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(one.value("SELECT current_user").await, "app");
    assert!(census.most() <= 2, "{} backends", census.most());
}

#[tokio::test]
async fn clients_are_served_in_the_order_they_came() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    stage.sql("CREATE SEQUENCE turn; GRANT ALL ON turn TO app").await;
    let mut holder = stage.client().await;
    let mut waiting = clients(&stage, 8).await;
    holder.query("BEGIN; SELECT 1").await.unwrap();
    for (index, client) in waiting.iter_mut().enumerate() {
        client.send(&query("SELECT nextval('turn')")).await.unwrap();
        stage.waiting(index as f64 + 1.0).await;
    }
    // The holder asks again at once, and comes last.
    holder.query("COMMIT").await.unwrap();
    assert_eq!(holder.value("SELECT nextval('turn')").await, "9");
    for (index, client) in waiting.iter_mut().enumerate() {
        let messages = client.read_until_ready().await.unwrap();
        assert_eq!(messages[1].row(), [Some((index + 1).to_string())]);
    }
}

#[tokio::test]
async fn a_wait_that_takes_too_long_is_an_error_and_the_session_stays() {
    let stage = Stage::new(&[("pool.max_backends", 1.into()), ("pool.queue_timeout", "200ms".into())]).await;
    let (mut holder, mut wire, driver) = (stage.client().await, stage.client().await, stage.driver().await);
    holder.query("BEGIN; SELECT 1").await.unwrap();

    let begin = Instant::now();
    let error = wire.query("SELECT 1").await.unwrap_err();
    assert!(begin.elapsed() >= Duration::from_millis(200));
    assert_eq!((error.severity(), error.sqlstate()), ("ERROR", "53300"));
    assert!(error.fields[&'D'].contains("may have 1 backends"), "{error:?}");
    assert!(error.fields[&'H'].contains("pool.max_backends"), "{error:?}");

    let batch = [parse("s", "SELECT 1"), describe_statement("s"), bind("", "s", &[]), execute("", 0), sync()];
    assert_eq!(tags(&wire.exchange(&batch).await), "EZ");
    // What comes after the error is passed over up to Sync, whenever it comes.
    wire.send(&[parse("s", "SELECT 1"), flush()].concat()).await.unwrap();
    wire.expect_error("53300").await;
    assert_eq!(tags(&wire.exchange(&[bind("", "s", &[]), execute("", 0), sync()]).await), "Z");
    // A pipeline: each batch gets its own answer.
    assert_eq!(tags(&wire.exchange(&[parse("", "SELECT 1"), sync(), sync()]).await), "EZ");
    assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "EZ");
    assert_eq!(tags(&wire.exchange(&[frontend::function_call(1258, &["a", "b"])]).await), "EZ");

    let error = driver.query_one("SELECT 1", &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));

    holder.query("COMMIT").await.unwrap();
    // The name was never taken.
    assert_eq!(tags(&wire.exchange(&batch).await), "1tT2DCZ");
    assert_eq!(driver.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    assert_eq!(stage.backends().await, 1);
}

#[tokio::test]
async fn the_instances_own_refusal_reaches_the_client() {
    let stage = Stage::new(&[]).await;
    let mut wire = stage.client().await;
    stage.sql("ALTER ROLE app CONNECTION LIMIT 0").await;
    stage.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'").await;
    eventually!(stage.backends().await == 0);
    let error = wire.query("SELECT 1").await.unwrap_err();
    assert_eq!((error.severity(), error.sqlstate()), ("ERROR", "53300"));
    assert_eq!(error.message(), "too many connections for role \"app\"");
    stage.sql("ALTER ROLE app CONNECTION LIMIT -1").await;
    eventually!(wire.query("SELECT 1").await.is_ok());
}

#[tokio::test]
async fn idle_backends_go_and_the_minimum_stays() {
    let stage = Stage::new(&[("pool.min_backends", 2.into()), ("pool.idle_timeout", "1s".into())]).await;
    let mut clients = clients(&stage, 4).await;
    for client in &mut clients {
        client.query("BEGIN; SELECT 1").await.unwrap();
    }
    assert_eq!(stage.backends().await, 4);
    for client in &mut clients {
        client.query("COMMIT").await.unwrap();
    }
    eventually!(stage.backends().await == 2);
    let census = Census::begin(&stage.postgres, OF_THE_TENANT).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!((census.fewest(), census.most()), (2, 2));
    // Killed ones (waited for: a client may be given one that is still dying) are replaced without a client that asks.
    stage.sql("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'app'").await;
    clients[0].query("SELECT 1").await.unwrap();
    clients[1].query("SELECT 1").await.unwrap();
    eventually!(stage.backends().await == 2);
}

#[tokio::test]
async fn backends_end_at_the_first_release_after_their_lifetime() {
    let stage = Stage::new(&[("pool.lifetime", "1s".into())]).await;
    let mut wire = stage.client().await;
    wire.query("BEGIN; SELECT 1").await.unwrap();
    let first = wire.value("SELECT pg_backend_pid()").await;
    wire.query("SELECT pg_sleep(1.1)").await.unwrap();
    assert_eq!(wire.value("SELECT pg_backend_pid()").await, first, "a transaction keeps its backend");
    wire.query("COMMIT").await.unwrap();
    assert_ne!(wire.value("SELECT pg_backend_pid()").await, first);
    // Nobody asks any more: the reaper closes it.
    eventually!(stage.backends().await == 0);
}

#[tokio::test]
async fn idle_backends_that_were_killed_are_not_handed_out() {
    let stage = Stage::new(&[("pool.max_backends", 3.into())]).await;
    let mut clients = clients(&stage, 3).await;
    for round in 0..5 {
        for client in &mut clients {
            client.query("BEGIN; SELECT 1").await.unwrap();
        }
        for client in &mut clients {
            client.query("COMMIT").await.unwrap();
        }
        if round == 2 {
            stage.postgres.restart().await.unwrap();
        } else {
            stage.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'").await;
        }
        eventually!(stage.backends().await == 0);
        for client in &mut clients {
            assert_eq!(client.value("SELECT 1").await, "1");
        }
    }
}

#[tokio::test]
async fn transaction_mode_gives_a_backend_to_each_transaction() {
    let stage = Stage::new(&[("pool.max_backends", 1.into()), ("pool.queue_timeout", "200ms".into())]).await;
    let (mut one, mut two) = (stage.client().await, stage.client().await);
    let pid = one.value("SELECT pg_backend_pid()").await;
    assert_eq!(two.value("SELECT pg_backend_pid()").await, pid);
    one.query("BEGIN; SELECT 1").await.unwrap();
    assert_eq!(two.failure("SELECT 1").await, "53300");
    assert_eq!(one.failure("SELECT 1/0").await, "22012");
    assert_eq!(two.failure("SELECT 1").await, "53300", "a failed transaction is still one");
    one.query("ROLLBACK").await.unwrap();
    assert_eq!(two.value("SELECT pg_backend_pid()").await, pid);
}

#[tokio::test]
async fn session_mode_gives_a_backend_to_each_client() {
    let changes: [(&str, Value); 3] =
        [("pool.mode", "session".into()), ("pool.max_backends", 2.into()), ("pool.queue_timeout", "200ms".into())];
    let stage = Stage::new(&changes).await;
    let (mut one, mut two) = (stage.client().await, stage.client().await);
    let pid = one.value("SELECT pg_backend_pid()").await;
    assert_ne!(two.value("SELECT pg_backend_pid()").await, pid);
    one.query("SET work_mem = '7MB'; PREPARE mine AS SELECT 1; SELECT pg_advisory_lock(1)").await.unwrap();
    assert_eq!(one.value("SHOW work_mem").await, "7MB");
    assert_eq!(one.value("SELECT pg_backend_pid()").await, pid);

    let mut third = Wire::tcp(stage.proxy.address()).await.unwrap();
    let password = secrecy::ExposeSecret::expose_secret(&stage.tenant.password).to_owned();
    let error = third.login("app.acme", "app", &password).await.unwrap_err();
    assert_eq!((error.severity(), error.sqlstate()), ("FATAL", "53300"));
    assert!(third.is_closed().await);

    // Without a goodbye, in the middle of a transaction.
    one.query("BEGIN; SELECT 1").await.unwrap();
    drop(one);
    let mut third = stage.client().await;
    assert_eq!(third.value("SELECT pg_backend_pid()").await, pid, "what can be cleaned is kept");
    assert_eq!(third.value("SHOW work_mem").await, "4MB");
    assert_eq!(third.failure("EXECUTE mine").await, "26000");
    assert_eq!(two.value("SELECT pg_try_advisory_lock(1)").await, "t");
    assert_eq!(stage.backends().await, 2);
}

#[tokio::test]
async fn statement_mode_refuses_transactions() {
    let stage = Stage::new(&[("pool.mode", "statement".into()), ("pool.max_backends", 1.into())]).await;
    let (mut one, mut two, driver) = (stage.client().await, stage.client().await, stage.driver().await);
    for number in ["1", "2"] {
        assert_eq!(one.value(&format!("SELECT {number}")).await, number);
        assert_eq!(two.value(&format!("SELECT {number}")).await, number);
    }
    assert_eq!(driver.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    one.send(&query("BEGIN; CREATE TABLE never (x int)")).await.unwrap();
    let mut error = None;
    while let Ok(message) = one.read().await {
        if message.tag == b'E' {
            error = Some(message.error());
        }
    }
    let error = error.expect("an error before the end");
    assert_eq!((error.severity(), error.sqlstate()), ("FATAL", "0A000"));
    assert!(error.message().contains("statement"), "{error:?}");
    assert_eq!(two.failure("SELECT * FROM never").await, "42P01", "the transaction is rolled back");
    // In the extended protocol as well.
    two.send(&[parse("", "BEGIN"), bind("", "", &[]), execute("", 0), sync()].concat()).await.unwrap();
    while let Ok(message) = two.read().await {
        error_is_refusal(&message);
    }
    eventually!(driver.query_one("SELECT 1", &[]).await.is_ok());
}

fn error_is_refusal(message: &crate::harness::wire::Message) {
    if message.tag == b'E' {
        assert_eq!(message.error().sqlstate(), "0A000");
    }
}
