//! What operations can see: series that move, bounded labels, health, and one log line for each session.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgtenant::cli::demo::tenant::{Order, onboard};

use crate::eventually;
use crate::harness::frontend::{bind, execute, message, parse, query, sync};
use crate::harness::postgres;
use crate::harness::proxy::{Proxy, ProxyFiles, http_get};
use crate::harness::serve::Served;
use crate::harness::stage::{Stage, client, client_with, instance};
use crate::harness::wire::{Wire, cancel};

/// A scrape: every sample by its name and labels. Fails on anything that Prometheus would not take.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut types = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(declaration) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declaration.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "declared twice: {line}");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
            let name = series.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            assert!(types.contains_key(name) || family.is_some_and(|it| types.contains_key(it)), "undeclared: {line}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
            assert!(!series.contains('{') || series.ends_with('}'), "{line}");
            let value =
                if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap_or_else(|_| panic!("{line}")) };
            assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
        }
    }
    samples
}

async fn scrape(proxy: &Proxy) -> BTreeMap<String, f64> {
    let (status, text) = http_get(proxy.http_address(), "/metrics").await;
    assert_eq!(status, 200);
    samples(&text)
}

/// The sum of all samples whose name and labels contain each of these.
fn sum(samples: &BTreeMap<String, f64>, parts: &[&str]) -> f64 {
    samples.iter().filter(|(series, _)| parts.iter().all(|part| series.contains(part))).map(|(_, value)| value).sum()
}

const OF_ACME: &str = "tenant=\"acme\",instance_name=\"one\"";

#[tokio::test]
async fn every_figure_moves_with_what_it_counts() {
    let stage = Stage::new(&[("pool.max_backends", 2.into()), ("pool.queue_timeout", "100ms".into())]).await;
    let start = scrape(&stage.proxy).await;
    assert_eq!(sum(&start, &["pgtenant_build_info"]), 1.0);
    assert_eq!(sum(&start, &["pgtenant_clients"]), 0.0);
    let (mut one, mut two, mut three) = (stage.client().await, stage.client().await, stage.client().await);

    // 3 simple queries and 2 executions; 1 explicit and 3 implicit transactions.
    one.query("BEGIN; SELECT 1").await.unwrap();
    one.query("SELECT 1").await.unwrap();
    two.query("BEGIN; SELECT 1").await.unwrap();
    let now = scrape(&stage.proxy).await;
    assert_eq!(sum(&now, &["pgtenant_clients"]), 3.0);
    assert_eq!(sum(&now, &["pgtenant_tenant_clients{", OF_ACME]), 3.0);
    assert_eq!(sum(&now, &["pgtenant_backends{instance_name=\"one\",state=\"active\"}"]), 2.0);
    assert_eq!(sum(&now, &["pgtenant_tenant_backends{", OF_ACME, "state=\"active\""]), 2.0);
    three.send(&query("SELECT 1")).await.unwrap();
    stage.waiting(1.0).await;
    three.expect_error("53300").await;
    three.read_until_ready().await.unwrap();
    one.query("COMMIT").await.unwrap();
    two.query("COMMIT").await.unwrap();
    let large = "SELECT repeat('x', 100000)";
    for _ in 0..2 {
        three.exchange(&[parse("", large), bind("", "", &[]), execute("", 0), sync()]).await;
    }
    assert_eq!(three.failure("SELECT 1/0").await, "22012");
    three.send(&query("SELECT pg_sleep(60)")).await.unwrap();
    eventually!(stage.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'").await.len() == 1);
    cancel(stage.proxy.address(), three.key.as_ref().unwrap()).await.unwrap();
    three.read_until_ready().await.unwrap();
    let mut wrong = Wire::tcp(stage.proxy.address()).await.unwrap();
    wrong.login("app.acme", "app", "wrong").await.unwrap_err();
    let mut rude = stage.client().await;
    rude.send(&message(b'!', b"")).await.unwrap();
    rude.expect_error("08P01").await;
    drop(rude);

    // The last session may still be counting what its client has read.
    eventually!(sum(&scrape(&stage.proxy).await, &["pgtenant_tenant_queries_total", OF_ACME]) >= 9.0);
    let expected = [
        (&["pgtenant_tenant_queries_total", OF_ACME][..], 9.0),
        (&["pgtenant_tenant_transactions_total", OF_ACME], 6.0),
        (&["pgtenant_tenant_login_failures_total", OF_ACME], 1.0),
        (&["pgtenant_auth_total", "scram-sha-256\"", "result=\"ok\""], 4.0),
        (&["pgtenant_auth_total", "result=\"wrong_password\""], 1.0),
        (&["pgtenant_errors_total", "class=\"22\"", "source=\"backend\""], 1.0),
        (&["pgtenant_errors_total", "class=\"57\"", "source=\"backend\""], 1.0),
        (&["pgtenant_errors_total", "class=\"53\"", "source=\"proxy\""], 1.0),
        (&["pgtenant_errors_total", "class=\"28\"", "source=\"proxy\""], 1.0),
        (&["pgtenant_errors_total", "class=\"08\"", "source=\"client\""], 1.0),
        (&["pgtenant_protocol_violations_total", "message_unknown"], 1.0),
        (&["pgtenant_cancel_requests_total", "forwarded"], 1.0),
        (&["pgtenant_backend_connects_total{instance_name=\"one\",result=\"ok\"}"], 2.0),
        (&["pgtenant_backend_connect_seconds_count", "instance_name=\"one\""], 2.0),
        (&["pgtenant_backends{instance_name=\"one\",state=\"idle\"}"], 2.0),
        (&["pgtenant_tenant_backends{", OF_ACME, "state=\"idle\""], 2.0),
        (&["pgtenant_backend_identity_mismatch_total"], 0.0),
        (&["pgtenant_draining"], 0.0),
        (&["pgtenant_config_last_reload_successful"], 1.0),
    ];
    eventually!(
        {
            let now = scrape(&stage.proxy).await;
            expected.iter().all(|(parts, value)| sum(&now, parts) == *value)
        },
        "{:?}",
        {
            let now = scrape(&stage.proxy).await;
            expected
                .iter()
                .filter(|(parts, value)| sum(&now, parts) != *value)
                .map(|(parts, value)| (parts, value, sum(&now, parts)))
                .collect::<Vec<_>>()
        }
    );
    let now = scrape(&stage.proxy).await;
    for parts in [
        &["pgtenant_connections_accepted_total"][..],
        &["pgtenant_queue_wait_seconds_count", "instance_name=\"one\""],
        &["pgtenant_query_seconds_count", "instance_name=\"one\""],
        &["pgtenant_transaction_seconds_count", "instance_name=\"one\""],
        &["pgtenant_tenant_wait_seconds_total", OF_ACME],
        &["pgtenant_tenant_query_seconds_total", OF_ACME],
        &["pgtenant_tenant_received_bytes_total", OF_ACME],
        &["process_resident_memory_bytes"],
    ] {
        assert!(sum(&now, parts) > sum(&start, parts), "{parts:?} has not moved");
    }
    assert!(sum(&now, &["pgtenant_tenant_wait_seconds_total", OF_ACME]) >= 0.1);
    let sent = sum(&now, &["pgtenant_tenant_sent_bytes_total", OF_ACME]);
    assert!((200_000.0..220_000.0).contains(&sent), "{sent}");
    // Counters never fall.
    for (series, value) in &start {
        assert!(!series.contains("_total") || now.get(series).is_none_or(|later| later >= value), "{series} fell");
    }
}

#[tokio::test]
async fn sessions_that_keep_their_backend_are_counted_while_they_last() {
    let stage = Stage::new(&[("pool.mode", "session".into())]).await;
    let mut wire = stage.client().await;
    for _ in 0..3 {
        wire.query("SELECT 1").await.unwrap();
    }
    wire.failure("SELECT 1/0").await;
    eventually!({
        let now = scrape(&stage.proxy).await;
        sum(&now, &["pgtenant_tenant_queries_total", OF_ACME]) == 4.0
            && sum(&now, &["pgtenant_tenant_transactions_total", OF_ACME]) == 4.0
            && sum(&now, &["pgtenant_tenant_errors_total", OF_ACME]) == 1.0
            && sum(&now, &["pgtenant_errors_total", "class=\"22\""]) == 1.0
            && sum(&now, &["pgtenant_tenant_sent_bytes_total", OF_ACME]) > 100.0
    });
    drop(wire);
    eventually!(sum(&scrape(&stage.proxy).await, &["pgtenant_clients"]) == 0.0);
    assert_eq!(sum(&scrape(&stage.proxy).await, &["pgtenant_tenant_queries_total", OF_ACME]), 4.0, "counted once");
}

#[tokio::test]
async fn tenants_beyond_the_bound_are_summed() {
    let postgres = postgres::start().await;
    let mut files = ProxyFiles::new().set("http.max_tenant_series", 2).instance("one", &postgres);
    let mut tenants = Vec::new();
    for number in 0..5 {
        let tenant = onboard(&postgres, &Order::shared(&format!("tenant{number}"), "one")).await.unwrap();
        files = files.tenant(&tenant);
        tenants.push(tenant);
    }
    let proxy = Proxy::start(files).await;
    let mut clients = Vec::new();
    for (number, tenant) in tenants.iter().enumerate() {
        let mut wire = client(proxy.address(), tenant).await;
        for _ in 0..(number + 1) * 10 {
            wire.query("SELECT 1").await.unwrap();
        }
        clients.push(wire);
    }
    for _ in 0..3 {
        let now = scrape(&proxy).await;
        let listed: BTreeSet<&str> = now
            .keys()
            .filter_map(|series| series.strip_prefix("pgtenant_tenant_queries_total{tenant=\""))
            .filter_map(|rest| rest.split('"').next())
            .collect();
        assert_eq!(listed, BTreeSet::from(["_other", "tenant3", "tenant4"]), "the most active have their own");
        eventually!(sum(&scrape(&proxy).await, &["pgtenant_tenant_queries_total"]) == 150.0);
        assert_eq!(sum(&now, &["pgtenant_tenant_clients{"]), 5.0);
        assert_eq!(sum(&now, &["pgtenant_tenant_clients{tenant=\"_other\""]), 3.0);
    }
}

#[tokio::test]
async fn health_and_unknown_paths() {
    let stage = Stage::new(&[]).await;
    let http = stage.proxy.http_address();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(http_get(http, path).await.0, 200, "{path}");
    }
    assert_eq!(http_get(http, "/nowhere").await.0, 404);
    // An instance that is down makes one tenant's trouble, not an unready proxy.
    stage.postgres.stop().await;
    assert_eq!(http_get(http, "/readyz").await.0, 200);
}

#[tokio::test]
async fn one_line_in_the_log_for_each_session() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let files = ProxyFiles::new().set("log.format", "json").instance("one", &postgres).tenant(&tenant);
    let served = Served::start(files).await;
    let mut wire = client_with(served.address, &tenant, &[("application_name", "secret\n{\"forged\":1}")]).await;
    wire.query("SELECT 'a secret' FROM generate_series(1, 3)").await.unwrap();
    wire.failure("SELECT 1/0").await;
    wire.send(&crate::harness::frontend::terminate()).await.unwrap();
    drop(client(served.address, &tenant).await);
    let mut wrong = Wire::tcp(served.address).await.unwrap();
    wrong.login("app.acme", "app", "wrong password").await.unwrap_err();
    let ended = || {
        let events = served.events();
        events.into_iter().filter(|event| event["message"] == "session ended").collect::<Vec<_>>()
    };
    eventually!(ended().len() == 2);
    let mut lines = ended();
    lines.sort_by_key(|line| line["queries"].as_u64());
    let [idle, first] = &lines[..] else { panic!("{lines:?}") };
    for (key, value) in [("tenant", "acme"), ("role", "app"), ("database", "app"), ("level", "INFO")] {
        assert_eq!(first[key], value, "{first}");
    }
    assert_eq!((first["queries"].as_u64(), first["transactions"].as_u64()), (Some(2), Some(2)), "{first}");
    assert!(first["seconds"].as_f64().unwrap() > 0.0 && first["sent"].as_u64().unwrap() > 50, "{first}");
    assert!(first["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{first}");
    assert_eq!((first["tls"].as_bool(), first["reason"].as_str()), (Some(false), Some("terminated")), "{first}");
    assert_eq!(idle["reason"], "client gone");
    eventually!(served.events().iter().any(|event| event["message"] == "connection refused"));
    let log = served.log();
    assert!(!log.contains("a secret") && !log.contains("wrong password") && !log.contains("forged"), "{log}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(ended().len(), 2);
}

#[tokio::test]
async fn the_lines_can_be_switched_off() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let files = ProxyFiles::new().set("log.sessions", false).instance("one", &postgres).tenant(&tenant);
    let served = Served::start(files).await;
    drop(client(served.address, &tenant).await);
    eventually!(served.metric("pgtenant_clients ").await == 0.0);
    assert!(!served.log().contains("session ended"));
}
