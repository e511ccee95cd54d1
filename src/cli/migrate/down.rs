//! `pgtenant migrate down`.

use anyhow::bail;
use clap::Args;

use super::super::ConfigArgs;
use super::STATUSES;
use super::scene::{PaceArgs, Scene, WhatArgs, carry_out};
use crate::lifecycle::migrate::folder::Folder;
use crate::lifecycle::migrate::plan::Goal;
use crate::reload;

#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  pgtenant migrate down --dir migrations --to 41 --select tenant=acme
  pgtenant migrate down --dir migrations --steps 1 --dry-run

--steps counts the files of the folder, so that given again it takes back nothing more.

{STATUSES}"))]
pub(super) struct DownArgs {
    #[command(flatten)]
    what: WhatArgs,
    #[command(flatten)]
    pace: PaceArgs,
    /// Take back what is newer than this version; 0 is everything.
    #[arg(long, value_name = "VERSION", required_unless_present = "steps")]
    to: Option<i64>,
    /// Take back the newest files of the folder, so many.
    #[arg(long, value_name = "N", conflicts_with = "to", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, an object in each line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) async fn run(args: DownArgs) -> anyhow::Result<u8> {
    let to = match (args.to, args.steps) {
        (Some(to), _) => to,
        (None, Some(steps)) => before(&args, steps as usize)?,
        (None, None) => bail!("say --to or --steps"),
    };
    let scene = Scene::new(args.config, &args.what, Goal::DownTo(to), args.json)?;
    carry_out(scene, &args.pace, args.dry_run, None).await
}

/// The version that is the newest without the last files.
fn before(args: &DownArgs, steps: usize) -> anyhow::Result<i64> {
    let dir = match &args.what.dir {
        Some(dir) => dir.clone(),
        None => reload::load(&args.config.clone().source())?.config.migrate.dir.clone().unwrap_or_default(),
    };
    let folder = Folder::read(&dir)?;
    let left = folder.migrations.len().saturating_sub(steps);
    Ok(left.checked_sub(1).map_or(0, |last| folder.migrations[last].version))
}
