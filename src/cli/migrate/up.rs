//! `pgtenant migrate up`.

use clap::Args;

use super::super::ConfigArgs;
use super::STATUSES;
use super::scene::{PaceArgs, Scene, WhatArgs, carry_out};
use crate::lifecycle::migrate::plan::Goal;

#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  pgtenant migrate up --dir migrations --dry-run
  pgtenant migrate up --dir migrations --select 'tier=gold,region=eu' --waves canary:1,5%,25%,rest
  pgtenant migrate up --dir migrations --select tenant=acme --bake 0s

Given again after it was stopped or killed, it goes on where it was.

{STATUSES}"))]
pub(super) struct UpArgs {
    #[command(flatten)]
    what: WhatArgs,
    #[command(flatten)]
    pace: PaceArgs,
    /// Not further than to this version.
    #[arg(long, value_name = "VERSION")]
    to: Option<i64>,
    /// Apply also migrations that are older than what a tenant has.
    #[arg(long)]
    allow_out_of_order: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, an object in each line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) async fn run(args: UpArgs) -> anyhow::Result<u8> {
    let goal = Goal::Up { to: args.to, out_of_order: args.allow_out_of_order };
    let scene = Scene::new(args.config, &args.what, goal, args.json)?;
    carry_out(scene, &args.pace, args.dry_run, None).await
}
