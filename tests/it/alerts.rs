//! What Prometheus and Grafana are told to look at: the rules' own tests, and that the proxy emits what they name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use pgtenant::cli::demo::certificates::DevCa;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::harness::proxy::{Proxy, http_get};
use crate::harness::scene::{Scene, connect};

fn docker(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker").join(path)
}

/// Debian's package prometheus has it. Without it the test is left out, unless `PGT_NO_SKIP` says that none may be.
async fn promtool(arguments: &[&str], input: &str) -> Option<Output> {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(docker("prometheus")).kill_on_drop(true);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            let must = std::env::var_os("PGT_NO_SKIP").is_some();
            assert!(!must, "promtool does not run ({error}): install Debian's package prometheus");
            eprintln!("SKIPPED: there is no promtool (Debian: prometheus), so the rules were not tried");
            return None;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    Some(child.wait_with_output().await.unwrap())
}

fn succeeded(output: &Output) {
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[tokio::test]
async fn every_alert_fires_when_it_should_and_stays_quiet_when_it_should() {
    if let Some(output) = promtool(&["test", "rules", "alerts_test.yml", "slo_test.yml"], "").await {
        succeeded(&output);
    }
    if let Some(output) = promtool(&["check", "config", "prometheus.yml"], "").await {
        succeeded(&output);
    }
    let read = |path| std::fs::read_to_string(docker(path)).unwrap();
    let (rules, tests) = (
        read("prometheus/alerts.yml") + &read("prometheus/slo.yml"),
        read("prometheus/alerts_test.yml") + &read("prometheus/slo_test.yml"),
    );
    let page = std::fs::read_to_string(docker("../docs/OPERATING.md")).unwrap();
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        for test in [format!("- name: {alert} fires\n"), format!("- name: {alert} stays quiet\n")] {
            assert!(tests.contains(&test), "nobody tests that {test}");
        }
        assert!(page.contains(&format!("`{alert}`")), "docs/OPERATING.md does not say what to do about {alert}");
    }
}

/// A proxy that has done a little of everything.
async fn metrics() -> (String, String) {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let files = scene.files().certificate(&ca, &["localhost"]).set("tls.mode", "preferred");
    let proxy = Proxy::start(files).await;
    let mut client = connect(&proxy, &scene.acme).await;
    client.query("SELECT 1").await.unwrap();
    client.failure("SELECT 1/0").await;
    drop(client);
    proxy.reload().unwrap();
    let of_tenant = http_get(proxy.http_address(), "/metrics/tenant/acme").await.1;
    (http_get(proxy.http_address(), "/metrics").await.1, of_tenant)
}

#[tokio::test]
async fn prometheus_finds_nothing_wrong_with_what_the_proxy_emits() {
    let (all, of_tenant) = metrics().await;
    for text in [all, of_tenant] {
        let Some(output) = promtool(&["check", "metrics"], &text).await else { return };
        succeeded(&output);
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(said.trim().is_empty(), "promtool check metrics: {said}");
    }
}

#[tokio::test]
async fn every_metric_of_rules_and_dashboards_is_emitted() {
    let (all, _) = metrics().await;
    let emitted: BTreeSet<&str> =
        all.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let files = [
        "prometheus/alerts.yml",
        "prometheus/slo.yml",
        "grafana/dashboards/overview.json",
        "grafana/dashboards/tenant.json",
    ];
    let texts = files.map(|file| (file, std::fs::read_to_string(docker(file)).unwrap()));
    let recorded: BTreeSet<&str> =
        texts[1].1.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    let mut seen = 0;
    for (file, text) in &texts {
        let expressions = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let words = expressions.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && !"_:".contains(c)));
        for word in words.filter(|word| word.contains("pgtenant_") || word.starts_with("process_")) {
            let family = ["_bucket", "_count", "_sum"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            let known = match word.contains(':') {
                true => recorded.contains(word),
                false => emitted.contains(word) || emitted.contains(family),
            };
            assert!(known, "{file} names {word}, which nobody emits");
            seen += 1;
        }
    }
    assert!(seen > 80, "{seen}");
}

const DASHBOARDS: [&str; 2] = ["grafana/dashboards/overview.json", "grafana/dashboards/tenant.json"];

/// Each panel of a dashboard, those in rows included.
fn panels(of: &Value) -> Vec<&Value> {
    let own = of["panels"].as_array().into_iter().flatten();
    own.flat_map(|panel| std::iter::once(panel).chain(panels(panel))).collect()
}

/// What a legend names: `{{tier}}`.
fn legend(target: &Value) -> Vec<&str> {
    let legend = target["legendFormat"].as_str().unwrap_or_default();
    legend.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap().trim()).collect()
}

/// A unit test of promtool's for each expression of the dashboards: that it gives something, with the labels of its legend,
/// on the series that the proxy has emitted.
fn expectations(emitted: &str) -> (Value, usize) {
    let series = |line: &str| {
        let name = line.rsplit_once(' ').unwrap().0;
        let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
        let comma = if labels == "}" { "" } else { "," };
        format!("{name}{{job=\"pgtenant\",instance=\"proxy:9930\"{comma}{labels}")
    };
    let input: Vec<Value> = emitted
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| json!({ "series": series(line), "values": "1+1x60" }))
        .collect();
    let mut tests = Vec::new();
    for file in DASHBOARDS {
        let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(docker(file)).unwrap()).unwrap();
        let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
        let lists = variables.map(|variable| {
            let query = variable["query"]["query"].as_str().unwrap();
            let (metric, label) = query.strip_prefix("label_values(").unwrap().split_once(", ").unwrap();
            (metric.to_owned(), vec![label.trim_end_matches(')').to_owned()])
        });
        let targets =
            panels(&dashboard).into_iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
        let shown = targets.map(|target| {
            let labels = legend(target).into_iter().map(str::to_owned).collect();
            (target["expr"].as_str().unwrap().replace("$proxy", ".*").replace("$tenant", "acme"), labels)
        });
        for (expression, labels) in lists.chain(shown) {
            assert!(!expression.contains('$'), "{file}: a variable that nobody has set in {expression}");
            let mut expect = |expr: String, labels: &str| {
                let sample = json!({ "labels": labels, "value": 1 });
                tests.push(json!({ "expr": expr, "eval_time": "30m", "exp_samples": [sample] }));
            };
            expect(format!("count({expression}) > bool 0"), "{}");
            for label in labels {
                let marked = format!("label_replace({expression}, \"is_there\", \"yes\", \"{label}\", \".+\")");
                expect(format!("count by (is_there) ({marked}) > bool 0"), "{is_there=\"yes\"}");
            }
        }
    }
    let count = tests.len();
    let rules = docker("prometheus/slo.yml");
    let test = json!({ "interval": "1m", "input_series": input, "promql_expr_test": tests });
    (json!({ "rule_files": [rules], "evaluation_interval": "1m", "tests": [test] }), count)
}

#[tokio::test]
async fn every_panel_of_the_dashboards_shows_something() {
    let (all, _) = metrics().await;
    let (document, count) = expectations(&all);
    assert!(count > 70, "{count}");
    let mut file = tempfile::Builder::new().suffix(".yml").tempfile().unwrap();
    // JSON is YAML, too.
    serde_json::to_writer(&mut file, &document).unwrap();
    if let Some(output) = promtool(&["test", "rules", file.path().to_str().unwrap()], "").await {
        succeeded(&output);
    }
}

/// The selectors of a text, each metric with the labels beside it: `name{label="…", …}`.
fn selectors(text: &str) -> Vec<(&str, Vec<&str>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in text.match_indices('{') {
        let begin = text[..at].rfind(|c| !is_name(c)).map_or(0, |before| before + 1);
        let end = at + text[at..].find('}').unwrap();
        let labels = text[at + 1..end].split("\",").filter_map(|part| part.split(['=', '!']).next());
        found.push((&text[begin..at], labels.map(str::trim).filter(|label| !label.is_empty()).collect()));
    }
    found
}

/// Rules ask for labels that there are, and their tests try them on series as the proxy emits them.
#[tokio::test]
async fn the_labels_that_rules_and_their_tests_name_are_emitted() {
    let (all, _) = metrics().await;
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (metric, found) in selectors(&all) {
        labels.entry(metric).or_default().extend(found);
    }
    let mut seen = 0;
    for file in ["alerts.yml", "slo.yml", "alerts_test.yml", "slo_test.yml"] {
        let text = std::fs::read_to_string(docker("prometheus").join(file)).unwrap();
        for (metric, named) in selectors(&text).into_iter().filter(|(metric, _)| metric.starts_with("pgtenant_")) {
            let of_scrape = ["job", "instance", "alertname", "severity"];
            let known =
                |label: &&str| of_scrape.contains(label) || labels.get(metric).is_some_and(|it| it.contains(label));
            let unknown: Vec<&&str> = named.iter().filter(|label| !known(label)).collect();
            assert!(unknown.is_empty(), "{file}: {metric} has no {unknown:?}, but {:?}", labels.get(metric));
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen}");
}

/// Grafana is told where Prometheus is by the name that the dashboards ask for, and Compose mounts what there is.
#[test]
fn compose_mounts_what_there_is() {
    let read = |path| std::fs::read_to_string(docker(path)).unwrap();
    let (compose, prepare) = (read("compose.yaml"), read("prepare.sh"));
    let words = compose.split([' ', '"', '\n']).filter_map(|word| word.strip_prefix("./"));
    let mounted: BTreeSet<&str> = words.filter_map(|word| word.split(':').next()).collect();
    for path in &mounted {
        let made = prepare.contains(path) || path.rsplit('/').next().is_some_and(|name| prepare.contains(name));
        assert!(docker(path).exists() || path.starts_with("local/") && made, "compose.yaml mounts {path}");
    }
    assert!(mounted.len() >= 8, "{mounted:?}");
    let source = read("grafana/provisioning/datasources/prometheus.yml");
    for file in DASHBOARDS {
        let dashboard: Value = serde_json::from_str(&read(file)).unwrap();
        for panel in panels(&dashboard).into_iter().filter(|panel| panel["type"] != "row") {
            let uid = panel["datasource"]["uid"].as_str().unwrap();
            assert!(source.contains(&format!("uid: {uid}\n")), "{file}: {}", panel["title"]);
        }
    }
    assert!(compose.contains("/var/lib/grafana/dashboards/overview.json"));
    let provider = read("grafana/provisioning/dashboards/pgtenant.yml");
    assert!(provider.contains("/var/lib/grafana/dashboards") && source.contains("http://prometheus:9090"));
    assert!(read("prometheus/prometheus.yml").contains("\"pgtenant:9930\""));
}
