//! `pgtenant migrate resume`.

use anyhow::bail;
use clap::Args;

use super::super::ConfigArgs;
use super::STATUSES;
use super::scene::{PaceArgs, Scene, WhatArgs, carry_out};
use crate::lifecycle::migrate::run_journal::RunJournal;
use crate::reload;

#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  pgtenant migrate resume
  pgtenant migrate resume --max-failures 5%
  pgtenant migrate resume --abandon

It has the tenants, files and waves of the run that did not finish, and tries those again that failed.

{STATUSES}"))]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    pace: PaceArgs,
    /// Forget the run; what it has applied stays.
    #[arg(long)]
    abandon: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, an object in each line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) async fn run(args: ResumeArgs) -> anyhow::Result<u8> {
    let config = reload::load(&args.config.clone().source())?.config;
    let mut journal = RunJournal::open(&config.lifecycle.journal_dir)?;
    let Some(earlier) = journal.earlier()? else { bail!("there is no run to go on with: the last one has finished") };
    if args.abandon {
        journal.clear()?;
        eprintln!("the run of {} ({}) is given up", earlier.when, earlier.who);
        return Ok(0);
    }
    let order = &earlier.order;
    let what = WhatArgs { dir: Some(order.dir.clone()), select: order.select.parse()? };
    let scene = Scene::new(args.config, &what, order.goal.clone(), args.json)?;
    if scene.job.folder.hash(None) != order.files {
        bail!(
            "the files in {} are not those that the run of {} began with: give migrate up again, which begins anew with \
             them, or put them back",
            order.dir.display(),
            earlier.when
        );
    }
    carry_out(scene, &args.pace, args.dry_run, Some((journal, earlier))).await
}
