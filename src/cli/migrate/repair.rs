//! `pgtenant migrate repair`.

use clap::Args;
use serde_json::json;

use super::super::ConfigArgs;
use super::STATUSES;
use super::scene::{Scene, WhatArgs};
use crate::lifecycle::migrate::Target;
use crate::lifecycle::migrate::plan::Goal;
use crate::lifecycle::migrate::repair::{self, Repair};
use crate::lifecycle::migrate::state::{ALL, NONE, SOME};

#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  pgtenant migrate repair --dir migrations --select tenant=acme --accept-edited --dry-run
  pgtenant migrate repair --dir migrations --select tenant=acme --mark-applied 42
  pgtenant migrate repair --dir migrations --baseline 42

Only the history is changed: look at the database first.

{STATUSES}"))]
pub(super) struct RepairArgs {
    #[command(flatten)]
    what: WhatArgs,
    #[command(flatten)]
    choice: Choice,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, an object for each tenant.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Clone, Copy, Args)]
#[group(required = true, multiple = false)]
struct Choice {
    /// Applied migrations whose files were edited since: take the files as they are now.
    #[arg(long)]
    accept_edited: bool,
    /// This migration is not applied: take it out of the history.
    #[arg(long, value_name = "VERSION")]
    forget: Option<i64>,
    /// This migration is applied, all of it: put it into the history without running it.
    #[arg(long, value_name = "VERSION")]
    mark_applied: Option<i64>,
    /// The statement of this migration that was cut off has not run: the next up runs it.
    #[arg(long, value_name = "VERSION")]
    retry: Option<i64>,
    /// Databases that were migrated by another tool and have no history yet: they have all up to this one.
    #[arg(long, value_name = "VERSION")]
    baseline: Option<i64>,
}

impl Choice {
    fn repair(self) -> Repair {
        match self {
            Choice { forget: Some(version), .. } => Repair::Forget(version),
            Choice { mark_applied: Some(version), .. } => Repair::MarkApplied(version),
            Choice { retry: Some(version), .. } => Repair::Retry(version),
            Choice { baseline: Some(version), .. } => Repair::Baseline(version),
            Choice { .. } => Repair::AcceptEdited,
        }
    }
}

pub(super) async fn run(args: RepairArgs) -> anyhow::Result<u8> {
    let goal = Goal::Up { to: None, out_of_order: true };
    let repair = args.choice.repair();
    let scene = Scene::new(args.config, &args.what, goal, args.json)?;
    let mut failed = 0;
    for tenant in &scene.tenants {
        let target = Target { tenant: &tenant.id, database: &tenant.database };
        let instance = scene.site.instance(&tenant.instance.name)?;
        let repaired = repair::repair(&scene.job, &instance, &target, repair, args.dry_run).await;
        let told: Vec<String> =
            repaired.as_ref().map(|steps| steps.iter().map(|step| step.what.clone()).collect()).unwrap_or_default();
        if !args.dry_run && (repaired.is_err() || !told.is_empty()) {
            let (result, detail) = match &repaired {
                Ok(_) => ("ok", told.join("; ")),
                Err(failure) => ("failed", failure.to_string()),
            };
            scene.site.record("migrate repair", &tenant.id, result, &detail)?;
        }
        match (&repaired, args.json) {
            (Ok(_), true) => println!("{}", json!({ "tenant": tenant.id, "repaired": told, "dry_run": args.dry_run })),
            (Err(failure), true) => println!("{}", json!({ "tenant": tenant.id, "failed": failure.to_string() })),
            (Ok(_), false) if told.is_empty() => println!("{}: nothing to repair", tenant.id),
            (Ok(_), false) => println!("{}: {}", tenant.id, told.join("; ")),
            (Err(failure), false) => eprintln!("{}: {failure}", tenant.id),
        }
        failed += usize::from(repaired.is_err());
    }
    Ok(match failed {
        0 => ALL,
        failed if failed == scene.tenants.len() => NONE,
        _ => SOME,
    })
}
