//! What the commands on migrations have in common: their options, and what follows from them and the configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::super::ConfigArgs;
use super::matrix;
use super::progress::Progress;
use crate::admin::ask::{Endpoint, Files};
use crate::config::{Config, Databases, Migrate, Secret, Tenant, duration};
use crate::lifecycle::migrate::Patience;
use crate::lifecycle::migrate::bake::Watch;
use crate::lifecycle::migrate::folder::Folder;
use crate::lifecycle::migrate::plan::Goal;
use crate::lifecycle::migrate::run::{Pace, Run};
use crate::lifecycle::migrate::run_journal::{Earlier, Order, RunJournal};
use crate::lifecycle::migrate::state::Report;
use crate::lifecycle::migrate::work::Job;
use crate::lifecycle::{Failure, Site};
use crate::reload::{self, Source};
use crate::select::Selector;

/// Tenants whose further databases are named.
const MOST_NAMED: usize = 5;

/// Which files, and which tenants.
#[derive(Debug, Clone, Args)]
pub(super) struct WhatArgs {
    /// The folder of the migrations; default: `[migrate]` dir.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Which tenants, as in tier=gold,region=eu; keys are tenant, tier, region, instance, tag, state.
    #[arg(long, value_name = "SELECTOR", default_value = "all")]
    pub select: Selector,
}

/// How a run goes through the tenants; defaults are those of `[migrate]`.
#[derive(Debug, Clone, Args)]
pub(super) struct PaceArgs {
    /// Who goes first: numbers, shares, selectors, and rest at the end.
    #[arg(long, value_name = "WAVES")]
    waves: Option<String>,
    /// Tenants at a time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    parallel: Option<u32>,
    /// Tenants at a time on one instance.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    per_instance: Option<u32>,
    /// Failures that the run goes on with: a number, or a share of the tenants.
    #[arg(long, value_name = "N|PERCENT")]
    max_failures: Option<String>,
    /// How long the proxy's figures are watched after a wave; 0s begins the next at once.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    bake: Option<Duration>,
    /// How long a statement waits for a lock.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    lock_timeout: Option<Duration>,
    /// Attempts after the first one, where somebody's lock was in the way.
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    #[command(flatten)]
    proxies: ProxyArgs,
}

/// Where the proxies are that are watched and told.
#[derive(Debug, Clone, Args)]
struct ProxyArgs {
    /// A proxy's HTTP endpoint; may be repeated. Default: `[migrate]` proxies, else `[http]` address.
    #[arg(long = "proxy-url", value_name = "URL")]
    urls: Vec<String>,
    /// CA certificates (PEM) that vouch for the proxies', for https.
    #[arg(long = "proxy-ca", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A file with the proxies' http.token; default: that of this configuration.
    #[arg(long = "proxy-token-file", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Everything that a command works with.
pub(super) struct Scene {
    pub site: Arc<Site>,
    pub job: Arc<Job>,
    pub tenants: Vec<Arc<Tenant>>,
    pub select: Selector,
    pub json: bool,
    source: Source,
}

impl Scene {
    /// # Errors
    /// The configuration, the folder or the selector.
    pub fn new(config: ConfigArgs, what: &WhatArgs, goal: Goal, json: bool) -> anyhow::Result<Scene> {
        let source = config.source();
        let config = Arc::new(reload::load(&source)?.config);
        let dir = what.dir.clone().or_else(|| config.migrate.dir.clone());
        let dir = dir.context("no folder of migrations: give --dir, or write [migrate] dir into proxy.toml")?;
        let folder = Folder::read(&std::path::absolute(dir)?)?;
        if let Goal::Up { to: Some(to), .. } = goal
            && folder.get(to).is_none()
        {
            anyhow::bail!("there is no migration {to} in {}", folder.path.display());
        }
        let tenants = what.select.select(&config)?;
        if let Some(remark) = passed_over(&tenants) {
            eprintln!("{remark}");
        }
        let site = Arc::new(Site::new(config.clone(), None));
        let Migrate { lock_timeout, retries, shared_owners, .. } = config.migrate;
        let patience = Patience { lock_timeout, retries };
        let job = Job { folder, goal, patience, shared_owners, who: site.who.clone() };
        Ok(Scene { site, job: Arc::new(job), tenants, select: what.select.clone(), json, source })
    }

    /// What a run is told by, and how it goes on.
    pub fn run(self, pace: &PaceArgs, progress: &Arc<Progress>) -> anyhow::Result<(Run, Vec<Arc<Tenant>>, Order)> {
        let defaults = &self.site.config.migrate;
        let max_failures = pace.max_failures.as_deref().unwrap_or(&defaults.max_failures).parse()?;
        let waves = pace.waves.as_deref().unwrap_or(&defaults.waves).parse()?;
        let steps = Pace {
            waves,
            parallel: pace.parallel.unwrap_or(defaults.parallel) as usize,
            per_instance: pace.per_instance.unwrap_or(defaults.per_instance) as usize,
            max_failures,
            bake: pace.bake.unwrap_or(defaults.bake),
        };
        let lock_timeout = pace.lock_timeout.unwrap_or(defaults.lock_timeout);
        if lock_timeout.is_zero() {
            anyhow::bail!("--lock-timeout must not be 0, which is for ever");
        }
        let patience = Patience { lock_timeout, retries: pace.retries.unwrap_or(defaults.retries) };
        let watch = watch(&self.site.config, &pace.proxies)?;
        let Scene { site, job, tenants, select, source, .. } = self;
        let Job { folder, goal, shared_owners, who, .. } = Arc::into_inner(job).context("the job is used already")?;
        let order = Order {
            select: select.to_string(),
            dir: folder.path.clone(),
            files: folder.hash(None),
            goal: goal.clone(),
        };
        let job = Arc::new(Job { folder, goal, patience, shared_owners, who });
        let selection = Box::new(move || {
            let config = reload::load(&source).map_err(|error| Failure::Order(error.to_string()))?.config;
            let tenants = select.select(&config).map_err(|error| Failure::Order(error.to_string()))?;
            Ok((Arc::new(config), tenants))
        });
        let interrupted = Arc::new(AtomicBool::new(false));
        heed_signals(interrupted.clone());
        let run = Run { site, job, pace: steps, watch, listener: progress.listener(), selection, interrupted };
        Ok((run, tenants, order))
    }
}

/// A run that was not finished and was ordered to do the same goes on, any other is given up.
pub(super) async fn carry_out(
    scene: Scene,
    pace: &PaceArgs,
    dry_run: bool,
    earlier: Option<(RunJournal, Earlier)>,
) -> anyhow::Result<u8> {
    let json = scene.json;
    let progress = Arc::new(Progress::new(json));
    let (run, tenants, order) = scene.run(pace, &progress)?;
    if dry_run {
        return Ok(super::plan::tell(&run, &tenants, &progress, json).await);
    }
    let (mut journal, earlier) = match earlier {
        Some((journal, earlier)) => (journal, Some(earlier)),
        None => {
            let mut journal = RunJournal::open(&run.site.config.lifecycle.journal_dir)?;
            let earlier = journal.earlier()?;
            (journal, earlier)
        }
    };
    let earlier = match earlier {
        Some(earlier) if earlier.order == order => {
            progress.remark(&format!("going on with the run of {} ({})", earlier.when, earlier.who));
            Some(earlier)
        }
        other => {
            if let Some(other) = other {
                progress
                    .remark(&format!("the run of {} ({}), which did not finish, is given up", other.when, other.who));
            }
            journal.begin(&run.site.who, &order)?;
            None
        }
    };
    let what = format!("migrate {}", run.job.goal.way().text());
    run.site.record_of_many(&what, "begun", &serde_json::to_string(&order)?)?;
    let report = run.go(&tenants, earlier, &mut journal).await;
    progress.end();
    let result = report.as_ref().map_or("failed", |report| if report.status() == 0 { "ok" } else { "failed" });
    let detail = match &report {
        Ok(report) => matrix::summary(report),
        Err(failure) => failure.to_string(),
    };
    run.site.record_of_many(&what, result, &detail)?;
    let report = report?;
    print(&report, json);
    Ok(report.status())
}

/// The matrix, or its JSON.
pub(super) fn print(report: &Report, as_json: bool) {
    if as_json {
        println!(
            "{}",
            json!({ "summary": matrix::counts(report), "stopped": report.stopped, "seconds": report.seconds, "status": report.status() })
        );
    } else {
        print!("{}", matrix::text(report));
    }
}

/// What a run leaves alone although it belongs to the tenants.
fn passed_over(tenants: &[Arc<Tenant>]) -> Option<String> {
    let further = tenants.iter().filter_map(|tenant| match &tenant.databases {
        Databases::Named(names) if names.is_empty() => None,
        Databases::Named(names) => Some(format!("{} ({})", tenant.id, names.join(", "))),
        Databases::All => Some(format!("{} (all of its instance)", tenant.id)),
    });
    let further: Vec<String> = further.collect();
    let more = further.len().saturating_sub(MOST_NAMED);
    let named = further.iter().take(MOST_NAMED).cloned().collect::<Vec<_>>().join("; ");
    let more = if more > 0 { format!("; and of {more} more tenants") } else { String::new() };
    (!further.is_empty()).then(|| format!("further databases of tenants are not migrated: {named}{more}"))
}

fn watch(config: &Config, args: &ProxyArgs) -> anyhow::Result<Watch> {
    let token = match &args.token_file {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Some(Secret::new(text.trim()))
        }
        None => config.http.token.clone(),
    };
    let urls = if args.urls.is_empty() { &config.migrate.proxies } else { &args.urls };
    let files = Files { ca: args.ca.as_deref(), certificate: None };
    let mut endpoints =
        urls.iter().map(|url| Endpoint::new(url, files, token.clone())).collect::<anyhow::Result<Vec<_>>>()?;
    if let (true, Some(address)) = (endpoints.is_empty(), config.http.address.filter(|address| address.port() != 0)) {
        endpoints.push(match config.http.tls {
            // Who vouches for its certificate is not in the configuration.
            true if args.ca.is_none() => return Ok(Watch::new(Vec::new(), config.migrate.bake_limits)),
            true => Endpoint::new(&format!("https://{address}"), files, token)?,
            false => Endpoint::at(address).with_token(token),
        });
    }
    Ok(Watch::new(endpoints, config.migrate.bake_limits))
}

/// The first signal lets those finish that are at work, the second ends at once.
fn heed_signals(interrupted: Arc<AtomicBool>) {
    tokio::spawn(async move {
        loop {
            if tokio::signal::ctrl_c().await.is_err() {
                return;
            }
            if interrupted.swap(true, Ordering::Relaxed) {
                std::process::exit(1);
            }
            eprintln!("interrupted: those that are at work finish; once more ends at once");
        }
    });
}
