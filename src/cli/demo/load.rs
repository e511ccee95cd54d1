//! A short pgbench through the proxy, and a look at the instance meanwhile: many clients, few backends.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::process::Command;

use super::setup::{Site, Tenant};
use super::tenant::MAX_BACKENDS;

pub(super) const CLIENTS: u32 = 40;
pub(super) const SECONDS: u32 = 5;
/// Client backends at the instance, but for the one that asks.
const COUNT: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
const SAMPLE: Duration = Duration::from_millis(10);

/// What a run came to.
pub(super) struct Load {
    pub(super) throughput: anyhow::Result<String>,
    pub(super) backends: anyhow::Result<String>,
    pub(super) samples: u32,
}

/// Fills pgbench's tables as the tenant's own role, by COPY through the proxy.
pub(super) async fn fill(site: &Site, tenant: &Tenant) -> anyhow::Result<()> {
    output(&mut pgbench(site, tenant, &["--initialize", "--quiet"])).await.map(drop)
}

/// Runs pgbench's own read-only transactions, as prepared statements: each client's have to be known on every backend.
pub(super) async fn run(site: &Site, tenant: &Tenant) -> anyhow::Result<Load> {
    let (clients, seconds) = (CLIENTS.to_string(), SECONDS.to_string());
    let select_only = ["--select-only", "--no-vacuum", "--protocol=prepared", "--jobs=2"];
    let mut command = pgbench(site, tenant, &select_only);
    command.args(["--client", &clients, "--time", &seconds]);
    let watcher = tenant.postgres.connect("postgres").await?;
    let (mut samples, mut peak) = (0, 0_i64);
    let bench = output(&mut command);
    tokio::pin!(bench);
    let report = loop {
        tokio::select! {
            report = &mut bench => break report,
            () = tokio::time::sleep(SAMPLE) => {
                let row = watcher.query_one(COUNT, &[]).await.context("the instance cannot be asked for its backends")?;
                let count: i64 = row.get(0);
                (samples, peak) = (samples + 1, peak.max(count));
            }
        }
    };
    Ok(Load { throughput: report.and_then(|report| throughput(&report)), backends: bounded(peak), samples })
}

fn bounded(peak: i64) -> anyhow::Result<String> {
    ensure!(peak > 0, "no backend was seen at the instance");
    ensure!(peak <= i64::from(MAX_BACKENDS), "{peak} backends at a time; the tenant's bound is {MAX_BACKENDS}");
    Ok(format!("{peak} at most; the tenant's bound is {MAX_BACKENDS}"))
}

/// What pgbench (15 and newer) says at its end.
fn throughput(report: &str) -> anyhow::Result<String> {
    let number = |label: &str| -> anyhow::Result<f64> {
        let value = report.lines().find_map(|line| line.trim().strip_prefix(label)?.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).with_context(|| format!("pgbench prints no \"{label}\":\n{report}"))
    };
    let failed = number("number of failed transactions:")?;
    ensure!(failed == 0.0, "{failed} transactions failed");
    let clients = number("number of clients:")?;
    ensure!(clients == f64::from(CLIENTS), "{clients} clients instead of {CLIENTS}");
    Ok(format!("{:.0} tps, {:.1} ms average, 0 errors", number("tps =")?, number("latency average =")?))
}

/// pgbench as the tenant, with the service that the demo shows to people.
fn pgbench(site: &Site, tenant: &Tenant, arguments: &[&str]) -> Command {
    let mut command = libpq_program(site, tenant, "pgbench");
    command.args(arguments).arg(format!("service={}", tenant.id()));
    command
}

/// One of PostgreSQL's programs with the demo's services and none of the caller's settings; ended when dropped.
pub(super) fn libpq_program(site: &Site, tenant: &Tenant, name: &str) -> Command {
    let mut command = Command::new(program(tenant.postgres.bin_dir(), name));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C").env("PGSERVICEFILE", site.service_file());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Beside the server, else on `PATH`: packages differ in what they put where.
fn program(bin_dir: &Path, name: &str) -> PathBuf {
    let beside = bin_dir.join(name);
    if beside.is_file() { beside } else { name.into() }
}

/// What the command printed; its last words are the error when it fails.
pub(super) async fn output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.output().await;
    let output = output.with_context(|| {
        format!("cannot run {program}; on Debian and Ubuntu: apt-get install postgresql postgresql-client")
    })?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}: {}", output.status, errors.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(failed: u32) -> String {
        format!(
            "number of clients: 40\nnumber of failed transactions: {failed} (0.000%)\n\
             latency average = 2.149 ms\ninitial connection time = 91.0 ms\n\
             tps = 18613.21 (without initial connection time)\n"
        )
    }

    #[test]
    fn reads_what_pgbench_reports() {
        assert_eq!(throughput(&report(0)).unwrap(), "18613 tps, 2.1 ms average, 0 errors");
        assert_eq!(throughput(&report(3)).unwrap_err().to_string(), "3 transactions failed");
        assert!(throughput("").unwrap_err().to_string().contains("number of failed transactions"));
    }

    #[test]
    fn more_backends_than_allowed_are_an_error_and_so_are_none() {
        assert!(bounded(0).is_err());
        assert!(bounded(5).is_ok());
        assert!(bounded(6).is_err());
    }
}
