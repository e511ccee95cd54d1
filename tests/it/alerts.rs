//! What Prometheus and Grafana are told to look at: the rules' own tests, and that the proxy emits what they name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use pgtenant::cli::demo::certificates::DevCa;
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
