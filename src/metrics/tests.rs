//! `encode` as Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;

use super::*;

/// Series name with labels → value, after checking that the text is well formed: each family once, HELP and TYPE
/// before its samples, no series twice.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut families = BTreeSet::new();
    let mut current = ("", "");
    let mut series = BTreeMap::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').expect("a name and a text");
            assert!(families.insert(name), "{name} begins twice");
            assert!(!words.is_empty());
            current = (name, "");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a name and a type");
            assert_eq!(name, current.0);
            assert!(["counter", "gauge", "histogram"].contains(&kind));
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            current.1 = kind;
        } else {
            let (key, value) = line.rsplit_once(' ').expect("a series and a value");
            let name = key.split('{').next().expect("a name");
            let family = match current.1 {
                "histogram" => ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)),
                _ => Some(name),
            };
            assert_eq!(family, Some(current.0), "{line}");
            assert!(series.insert(key.to_owned(), value.parse().expect("a number")).is_none(), "{key} twice");
        }
    }
    series
}

fn sample<'a>(tenant: &'a str, stats: &'a TenantStats) -> TenantSample<'a> {
    TenantSample {
        tenant,
        instance: "one",
        region: None,
        stats,
        backends_idle: 0,
        backends_active: 0,
        backends_connecting: 0,
        highest_use: 0.0,
    }
}

fn queries(series: &BTreeMap<String, f64>, tenant: &str) -> Option<f64> {
    let labels = if tenant == "_other" { String::new() } else { ",instance_name=\"one\"".to_owned() };
    series.get(&format!("pgtenant_tenant_queries_total{{tenant=\"{tenant}\"{labels}}}")).copied()
}

#[test]
fn every_family_is_well_formed() {
    let metrics = Metrics::new();
    let instance = metrics.instance("one");
    metrics.tier("one", Some("gold")).query.observe(0.003);
    instance.connected(ConnectResult::Ok);
    instance.connected(ConnectResult::Identity);
    metrics.connections_refused.inc(Refusal::Cap);
    metrics.tls_handshake(Outcome::Ok, TlsVersion::V1_3);
    metrics.auth(AuthMethod::ScramSha256, AuthResult::WrongPassword);
    metrics.error(ErrorSource::Backend, "23505");
    metrics.error(ErrorSource::Proxy, "ZZ999");
    metrics.set_certificates([("default", 1_900_000_000)]);
    let (client, login) = (metrics.client(), metrics.login());
    drop(login);

    let series = parse(&metrics.encode(&[], 10));
    for (key, value) in [
        ("pgtenant_clients", 1.0),
        ("pgtenant_logins_in_progress", 0.0),
        ("pgtenant_connections_refused_total{reason=\"cap\"}", 1.0),
        ("pgtenant_tls_handshakes_total{result=\"ok\",version=\"1.3\"}", 1.0),
        ("pgtenant_auth_total{method=\"scram-sha-256\",result=\"wrong_password\"}", 1.0),
        ("pgtenant_errors_total{class=\"23\",source=\"backend\"}", 1.0),
        ("pgtenant_errors_total{class=\"other\",source=\"proxy\"}", 1.0),
        ("pgtenant_backend_identity_mismatch_total{instance_name=\"one\"}", 1.0),
        ("pgtenant_query_seconds_bucket{instance_name=\"one\",tier=\"gold\",le=\"0.005\"}", 1.0),
        ("pgtenant_certificate_not_after_timestamp_seconds{name=\"default\"}", 1_900_000_000.0),
    ] {
        assert_eq!(series.get(key), Some(&value), "{key}");
    }
    #[cfg(target_os = "linux")]
    assert!(series["process_resident_memory_bytes"] > 0.0 && series["process_open_fds"] > 0.0);
    drop(client);
    assert_eq!(parse(&metrics.encode(&[], 10))["pgtenant_clients"], 0.0);
}

#[test]
fn a_reload_that_fails_shows_until_one_works() {
    let metrics = Metrics::new();
    let successful = || parse(&metrics.encode(&[], 0))["pgtenant_config_last_reload_successful"];
    metrics.loaded();
    assert_eq!(successful(), 1.0);
    metrics.reloaded(Outcome::Failed);
    assert_eq!(successful(), 0.0);
    metrics.reloaded(Outcome::Ok);
    assert_eq!(successful(), 1.0);
    assert_eq!(metrics.reloads.get(Outcome::Failed), 1);
}

#[test]
fn a_forgotten_instance_and_certificate_leave_no_series() {
    let metrics = Metrics::new();
    metrics.instance("old").connected(ConnectResult::Ok);
    metrics.tier("old", None).error("08006");
    metrics.set_max_backends([("old", 90)]);
    metrics.set_certificates([("old", 1)]);
    metrics.forget_instance("old");
    metrics.set_certificates([]);
    metrics.set_max_backends([]);
    assert!(!metrics.encode(&[], 10).contains("\"old\""));
}

#[test]
fn names_are_escaped_and_regions_shown() {
    let metrics = Metrics::new();
    let stats = TenantStats::default();
    stats.clients.store(2, Relaxed);
    let mut tenant = sample("acme", &stats);
    tenant.instance = "o\"n\\e\n";
    tenant.region = Some("eu-1");
    tenant.backends_connecting = 3;
    let series = parse(&metrics.encode(&[tenant], 10));
    let labels = r#"{tenant="acme",instance_name="o\"n\\e\n",region="eu-1"}"#;
    assert_eq!(series[&format!("pgtenant_tenant_clients{labels}")], 2.0);
    assert_eq!(series[r#"pgtenant_backends{instance_name="o\"n\\e\n",state="connecting"}"#], 3.0);
}

#[test]
fn refusals_are_counted_by_quota() {
    let metrics = Metrics::new();
    let (acme, globex) = (TenantStats::default(), TenantStats::default());
    acme.clients.store(1, Relaxed);
    acme.refuse(QuotaName::MaxResult);
    globex.refuse(QuotaName::MaxClients);
    let series = parse(&metrics.encode(&[sample("acme", &acme), sample("globex", &globex)], 10));
    let refused = |tenant: &str, quota: &str| {
        series.get(&format!("pgtenant_tenant_quota_refused_total{{{tenant},quota=\"{quota}\"}}")).copied()
    };
    let of_acme = "tenant=\"acme\",instance_name=\"one\"";
    assert_eq!(refused(of_acme, "max_result"), Some(1.0));
    assert_eq!(refused(of_acme, "max_clients"), None);
    assert_eq!(refused("tenant=\"_other\"", "max_clients"), Some(1.0));
}

#[test]
fn the_most_active_are_listed_and_the_rest_is_summed() {
    let metrics = Metrics::new();
    let stats: Vec<TenantStats> = (0..5).map(|_| TenantStats::default()).collect();
    for (index, stats) in stats.iter().enumerate() {
        stats.queries.store(100 * (index as u64 + 1), Relaxed);
        stats.clients.store(1, Relaxed);
        stats.wait_micros.store(1_500_000, Relaxed);
    }
    let names = ["a", "b", "c", "d", "e"];
    let samples: Vec<_> = names.iter().zip(&stats).map(|(name, stats)| sample(name, stats)).collect();
    let series = parse(&metrics.encode(&samples, 2));
    assert_eq!(queries(&series, "e"), Some(500.0));
    assert_eq!(queries(&series, "d"), Some(400.0));
    assert_eq!(queries(&series, "c"), None);
    assert_eq!(queries(&series, "_other"), Some(600.0));
    assert_eq!(series["pgtenant_tenant_clients{tenant=\"_other\"}"], 3.0);
    assert_eq!(series["pgtenant_tenant_wait_seconds_total{tenant=\"_other\"}"], 4.5);
}

#[test]
fn the_sum_never_falls_or_jumps_as_tenants_come_and_go() {
    let metrics = Metrics::new();
    let (a, b) = (TenantStats::default(), TenantStats::default());
    let other = |tenants: &[TenantSample<'_>]| queries(&parse(&metrics.encode(tenants, 1)), "_other");
    a.queries.store(10_000, Relaxed);
    b.queries.store(5_000, Relaxed);
    assert_eq!(other(&[sample("a", &a), sample("b", &b)]), Some(5_000.0), "a is listed");
    b.queries.fetch_add(1_000_000, Relaxed);
    let after_swap = other(&[sample("a", &a), sample("b", &b)]);
    assert_eq!(after_swap, Some(1_005_000.0), "b goes up with what it did since, a comes down with nothing");
    a.queries.fetch_add(7, Relaxed);
    assert_eq!(other(&[sample("a", &a), sample("b", &b)]), Some(1_005_007.0));
    assert_eq!(other(&[sample("b", &b)]), Some(1_005_007.0), "a is removed");
}

#[test]
fn a_silent_tenant_expires_and_comes_back() {
    let metrics = Metrics::new();
    let stats = TenantStats::default();
    let listed = || queries(&parse(&metrics.encode(&[sample("a", &stats)], 10)), "a");
    assert_eq!(listed(), None, "never used");
    stats.queries.store(1, Relaxed);
    assert_eq!(listed(), Some(1.0));
    let scrapes = (0..200).take_while(|_| listed().is_some()).count();
    assert!((30..100).contains(&scrapes), "{scrapes}");
    stats.clients.store(1, Relaxed);
    assert_eq!(listed(), Some(1.0));
}

#[test]
fn two_tenants_alike_do_not_change_places() {
    let metrics = Metrics::new();
    let (a, b) = (TenantStats::default(), TenantStats::default());
    for round in 0..20 {
        a.queries.fetch_add(100 + 10 * (round % 2), Relaxed);
        b.queries.fetch_add(110 - 10 * (round % 2), Relaxed);
        let series = parse(&metrics.encode(&[sample("a", &a), sample("b", &b)], 1));
        assert!(queries(&series, "b").is_some(), "round {round}");
    }
}

#[test]
fn ten_thousand_tenants_make_a_bounded_text() {
    let metrics = Metrics::new();
    let tenants: Vec<(String, TenantStats)> =
        (0..10_000).map(|number| (format!("tenant-{number:05}"), TenantStats::default())).collect();
    for (_, stats) in &tenants {
        stats.clients.store(1, Relaxed);
        stats.queries.store(3, Relaxed);
    }
    let samples: Vec<_> = tenants.iter().map(|(name, stats)| sample(name, stats)).collect();
    let text = metrics.encode(&samples, 500);
    let series = parse(&text);
    let of_tenants = series.keys().filter(|key| key.contains("tenant=")).count();
    assert_eq!(of_tenants, 14 * 501);
    assert!(text.len() < 1_000_000, "{} bytes", text.len());
    assert_eq!(queries(&series, "_other"), Some(9_500.0 * 3.0));
}

/// Every series name that stands in our sources as a text of its own.
fn names_in_sources() -> BTreeSet<&'static str> {
    let sources = [
        include_str!("mod.rs"),
        include_str!("backup.rs"),
        include_str!("instance.rs"),
        include_str!("process.rs"),
        include_str!("tenants.rs"),
    ];
    sources
        .iter()
        .flat_map(|text| text.split('"'))
        .filter(|word| word.starts_with("pgtenant_") || word.starts_with("process_"))
        .filter(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        .collect()
}

/// Name → type and labels, from the tables of docs/METRICS.md.
fn documented() -> BTreeMap<&'static str, (&'static str, BTreeSet<&'static str>)> {
    let rows = include_str!("../../docs/METRICS.md").lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let mut cells = row.split('|').map(str::trim);
        let mut cell = || cells.next().expect("four cells");
        let (name, kind, labels) = (cell().trim_end_matches('`'), cell(), cell());
        (name, (kind, labels.split(',').map(|label| label.trim().trim_matches('`')).collect()))
    })
    .collect()
}

#[test]
fn every_series_is_documented() {
    let documented = documented();
    assert_eq!(documented.keys().copied().collect::<BTreeSet<_>>(), names_in_sources());

    let metrics = Metrics::new();
    metrics.instance("one");
    metrics.tier("one", None);
    metrics.set_max_backends([("one", 90)]);
    metrics.tls_handshake(Outcome::Ok, TlsVersion::V1_3);
    metrics.auth(AuthMethod::None, AuthResult::Timeout);
    metrics.error(ErrorSource::Backend, "23505");
    metrics.set_certificates([("default", 1)]);
    let stats = TenantStats::default();
    stats.clients.store(1, Relaxed);
    let tenant = TenantSample { region: Some("eu-1"), ..sample("acme", &stats) };
    let quota = QuotaSample { quota: "max_backends", limit: Some(10.0), used: Some(1.0), refused: 0 };
    let text = metrics.encode(&[tenant], 10) + &Metrics::encode_tenant(&tenant, &[quota]);
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a name and a type");
        assert_eq!(documented.get(name).map(|(kind, _)| *kind), Some(kind), "{name}");
    }
    for (name, (_, labels)) in &documented {
        let series = text.lines().find(|line| line.starts_with(*name) && !line.contains("_other")).expect(name);
        let inside = series.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').expect("closed").0);
        let found: BTreeSet<&str> = inside.split("\",").map(|label| label.split('=').next().unwrap_or("")).collect();
        let found: BTreeSet<&str> = found.into_iter().filter(|label| *label != "le").collect();
        assert_eq!(found, *labels, "{name}");
    }
}

#[test]
fn alerts_ask_for_series_that_there_are() {
    let documented = documented();
    let alerts = include_str!("../../docker/prometheus/alerts.yml");
    let words =
        alerts.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("pgtenant_"));
    for word in words {
        let family = word.strip_suffix("_bucket").unwrap_or(word);
        assert!(documented.contains_key(family), "{word}");
    }
}

#[test]
fn a_tenant_has_a_page_of_its_own_whether_it_is_listed_or_not() {
    let stats = TenantStats::default();
    stats.queries.store(7, Relaxed);
    stats.logins.store(2, Relaxed);
    let tenant = TenantSample { backends_connecting: 1, highest_use: 0.5, ..sample("acme", &stats) };
    let quotas = [QuotaSample { quota: "max_backends", limit: Some(10.0), used: Some(5.0), refused: 3 }];
    let series = parse(&Metrics::encode_tenant(&tenant, &quotas));
    assert_eq!(queries(&series, "acme"), Some(7.0));
    let of_acme = |rest: &str| series[&rest.replace("ACME", "tenant=\"acme\",instance_name=\"one\"")];
    assert_eq!(of_acme("pgtenant_tenant_backends{ACME,state=\"connecting\"}"), 1.0);
    assert_eq!(of_acme("pgtenant_tenant_quota_highest_use_ratio{ACME}"), 0.5);
    assert_eq!(of_acme("pgtenant_tenant_quota_limit{ACME,quota=\"max_backends\"}"), 10.0);
    assert_eq!(of_acme("pgtenant_tenant_quota_refused_total{ACME,quota=\"max_backends\"}"), 3.0);
    assert_eq!(of_acme("pgtenant_tenant_logins_total{ACME}"), 2.0);
    assert!(!series.keys().any(|series| series.contains("_other")));
}

#[test]
fn failures_are_what_nobody_asked_for() {
    let metrics = Metrics::new();
    let tier = metrics.tier("one", None);
    for sqlstate in ["08006", "53300", "XX000", "58000"] {
        tier.error(sqlstate);
    }
    for asked_for in ["53400", "57014", "57P01", "57P03", "25006", "0A000", ""] {
        tier.error(asked_for);
    }
    let series = parse(&metrics.encode(&[], 0));
    assert_eq!(series["pgtenant_failures_total{instance_name=\"one\",tier=\"none\"}"], 4.0);
}

#[test]
fn tenants_are_stale_from_the_first_reload_that_fails_on() {
    let metrics = Metrics::new();
    let stale = || parse(&metrics.encode(&[], 0))["pgtenant_registry_stale_seconds"];
    metrics.loaded();
    assert_eq!(stale(), 0.0);
    metrics.reloaded(Outcome::Failed);
    let first = stale();
    metrics.reloaded(Outcome::Failed);
    assert!(first > 0.0 && stale() > first);
    metrics.reloaded(Outcome::Ok);
    assert_eq!(stale(), 0.0);
}
