//! `pgtenant migrate status`: how far the tenants are.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::super::ConfigArgs;
use super::progress::{Progress, of_row};
use super::scene::{PaceArgs, Scene, WhatArgs};
use super::{STATUSES, matrix};
use crate::lifecycle::migrate::plan::Goal;
use crate::lifecycle::migrate::state::Report;

#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  pgtenant migrate status --dir migrations
  pgtenant migrate status --dir migrations --select tenant=acme --json

{STATUSES}"))]
pub(super) struct StatusArgs {
    #[command(flatten)]
    what: WhatArgs,
    #[command(flatten)]
    pace: PaceArgs,
    /// Print JSON, an object for each tenant.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) async fn run(args: StatusArgs) -> anyhow::Result<u8> {
    let goal = Goal::Up { to: None, out_of_order: false };
    let scene = Scene::new(args.config, &args.what, goal, args.json)?;
    let names: BTreeMap<i64, String> =
        scene.job.folder.migrations.iter().map(|migration| (migration.version, migration.to_string())).collect();
    let progress = Arc::new(Progress::new(args.json));
    let (run, tenants, _) = scene.run(&args.pace, &progress)?;
    let report = run.look(&tenants).await;
    progress.end();
    match args.json {
        true => {
            for (tenant, row) in &report.tenants {
                println!("{}", of_row(tenant, row));
            }
            let counts = matrix::counts(&report);
            println!("{}", json!({ "summary": counts, "seconds": report.seconds, "status": report.status() }));
        }
        false => {
            print!("{}{}", by_version(&report, &names), matrix::text(&report));
        }
    }
    Ok(report.status())
}

/// How many tenants are at which migration.
fn by_version(report: &Report, names: &BTreeMap<i64, String>) -> String {
    let mut counts: BTreeMap<Option<i64>, usize> = BTreeMap::new();
    for row in report.tenants.values() {
        *counts.entry(row.version).or_default() += 1;
    }
    let name = |version: &Option<i64>| match version {
        None => "(nothing)".to_owned(),
        Some(version) => names.get(version).cloned().unwrap_or_else(|| format!("{version} (no file)")),
    };
    let width = counts.keys().map(|version| name(version).chars().count()).max().unwrap_or(0);
    let lines = counts.iter().map(|(version, count)| format!("{:width$}  {count:>11} tenants\n", name(version)));
    format!("newest migration:\n{}\n", lines.collect::<String>())
}
