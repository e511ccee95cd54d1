//! `pgtenant migrate plan`: what `up` would do.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::super::ConfigArgs;
use super::STATUSES;
use super::progress::{Progress, of_row};
use super::scene::{PaceArgs, Scene, WhatArgs, carry_out};
use crate::config::Tenant;
use crate::lifecycle::migrate::plan::Goal;
use crate::lifecycle::migrate::run::Run;
use crate::lifecycle::migrate::state::{ALL, Column, DRIFT, NONE, Report, SOME, State};
use crate::lifecycle::several;

#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  pgtenant migrate plan --dir migrations
  pgtenant migrate plan --dir migrations --select tier=gold --waves canary:tenant=acme,10%,rest --json

Here 0 means that the plan can be carried out, for all of them; 1 and 2 that some or none could be asked.

{STATUSES}"))]
pub(super) struct PlanArgs {
    #[command(flatten)]
    what: WhatArgs,
    #[command(flatten)]
    pace: PaceArgs,
    /// Not further than to this version.
    #[arg(long, value_name = "VERSION")]
    to: Option<i64>,
    /// Also migrations that are older than what a tenant has.
    #[arg(long)]
    allow_out_of_order: bool,
    /// Print JSON, an object in each line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) async fn run(args: PlanArgs) -> anyhow::Result<u8> {
    let goal = Goal::Up { to: args.to, out_of_order: args.allow_out_of_order };
    let scene = Scene::new(args.config, &args.what, goal, args.json)?;
    carry_out(scene, &args.pace, true, None).await
}

/// Looks at the tenants and prints what a run would do; gives the exit status.
pub(super) async fn tell(run: &Run, tenants: &[Arc<Tenant>], progress: &Progress, as_json: bool) -> u8 {
    let report = run.look(tenants).await;
    progress.end();
    let pending = |tenant: &&Arc<Tenant>| report.tenants[&tenant.id].state.column() == Column::Pending;
    let pending: Vec<Arc<Tenant>> = tenants.iter().filter(pending).cloned().collect();
    let waves = run.pace.waves.assign(&pending, &run.site.config);
    if as_json {
        for (tenant, row) in &report.tenants {
            println!("{}", of_row(tenant, row));
        }
        println!("{}", json!({ "waves": waves }));
        return status(&report);
    }
    let mut by_versions: BTreeMap<&[i64], Vec<&str>> = BTreeMap::new();
    for (tenant, row) in &report.tenants {
        if let State::Pending { versions } = &row.state {
            by_versions.entry(versions).or_default().push(tenant);
        }
    }
    let way = run.job.goal.way().text();
    for (versions, tenants) in by_versions {
        println!("{}, {way}:", several(tenants.len(), "tenant"));
        for migration in versions.iter().filter_map(|version| run.job.folder.get(*version)) {
            let script = if way == "up" { Some(&migration.up) } else { migration.down.as_ref() };
            let without = script.is_some_and(|script| !script.transaction);
            println!("  {migration}{}", if without { "  (without a transaction)" } else { "" });
        }
    }
    for wave in &waves {
        let named: Vec<&str> = wave.tenants.iter().take(8).map(String::as_str).collect();
        let more = if wave.tenants.len() > named.len() { ", …" } else { "" };
        println!("wave {}: {}: {}{more}", wave.label, several(wave.tenants.len(), "tenant"), named.join(", "));
    }
    print!("{}", super::matrix::text(&report));
    status(&report)
}

fn status(report: &Report) -> u8 {
    let failed = report.count(Column::Failed);
    match report.count(Column::Drift) {
        0 if failed == 0 => ALL,
        0 if failed == report.tenants.len() => NONE,
        0 => SOME,
        _ => DRIFT,
    }
}
