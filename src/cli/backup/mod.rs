//! `pgtenant backup`: backups of tenants (docs/BACKUPS.md).

mod list;
mod prune;
mod run;
mod verify;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::ConfigArgs;
use super::tenant::{ended, on_runtime};
use crate::config::Tenant;
use crate::lifecycle::{Failure, Site};
use crate::reload;
use crate::select::Selector;

/// Some tenants failed.
const SOME_FAILED: u8 = 3;

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Back up tenants now, or those whose backup is due.
    Run(run::RunArgs),
    /// List the backups, and which of them was proven last.
    List(list::ListArgs),
    /// Prove backups: restore them into a scratch database, compare everything, drop it.
    Verify(verify::VerifyArgs),
    /// Remove outdated backups, never the newest and never the last proven one.
    Prune(prune::PruneArgs),
}

pub(super) fn run(args: BackupArgs) -> ExitCode {
    ended(match args.command {
        Command::Run(args) => on_runtime(run::run(args)),
        Command::List(args) => list::run(args),
        Command::Verify(args) => on_runtime(verify::run(args)),
        Command::Prune(args) => prune::run(args),
    })
}

/// Which tenants are meant.
#[derive(Debug, Args)]
struct Whose {
    /// Ids of tenants.
    tenants: Vec<String>,
    /// Those that a selector means, as in tier=gold,region=eu; all is everybody.
    #[arg(long, conflicts_with = "tenants")]
    select: Option<Selector>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Whose {
    fn site(&self) -> anyhow::Result<Site> {
        Ok(Site::new(Arc::new(reload::load(&self.config.clone().source())?.config), None))
    }

    /// None: nobody was named.
    fn chosen(&self, site: &Site) -> anyhow::Result<Option<Vec<Arc<Tenant>>>> {
        if let Some(selector) = &self.select {
            let meant = selector.select(&site.config).map_err(|error| Failure::Order(error.to_string()))?;
            return Ok(Some(meant));
        }
        let known =
            |id: &String| site.config.tenants.get(id).cloned().ok_or_else(|| Failure::Unknown { tenant: id.clone() });
        let chosen = self.tenants.iter().map(known).collect::<Result<Vec<_>, _>>()?;
        Ok((!chosen.is_empty()).then_some(chosen))
    }
}

/// How a command on several tenants ends: one alone with its own status.
fn status(failures: &[Failure], tenants: usize) -> ExitCode {
    match (failures, tenants) {
        ([], _) => ExitCode::SUCCESS,
        ([failure], 1) => ExitCode::from(failure.status()),
        _ => ExitCode::from(SOME_FAILED),
    }
}
