//! `pgtenant tenant`: makes, shows and changes tenants (docs/TENANTS.md).

mod apply;
mod create;
mod erase;
mod rotate;
mod set;
mod show;
mod state;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::ConfigArgs;
use crate::config::TenantState;
use crate::lifecycle::{Failure, Site};
use crate::reload;

#[derive(Debug, Args)]
pub(super) struct TenantArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a tenant: roles, database, record, and a first login through the proxy.
    Create(Box<create::CreateArgs>),
    /// Make the tenants that a folder describes, and change those that differ from it.
    Apply(apply::ApplyArgs),
    /// Have its clients wait between transactions, and new ones at their login.
    Pause(state::StateArgs),
    /// End a pause: it is active again.
    Resume(state::StateArgs),
    /// End its sessions at their next safe point, and let nobody in.
    Suspend(state::StateArgs),
    /// As suspend, but for its maintenance_roles.
    Maintenance(state::StateArgs),
    /// Let its transactions read only.
    ReadOnly(state::StateArgs),
    /// Make it active, whatever it was.
    Activate(state::StateArgs),
    /// List the tenants, and the runs that are not finished.
    List(show::ListArgs),
    /// Show one tenant, without its secrets.
    Show(show::ShowArgs),
    /// Change keys of a tenant's record.
    Set(set::SetArgs),
    /// Give a tenant's roles new passwords; the old ones stay good for a while.
    RotateCredentials(rotate::RotateArgs),
    /// Erase a tenant: route, sessions, database, roles, files; with a receipt.
    Erase(erase::EraseArgs),
}

/// Where the proxy is, and its configuration.
#[derive(Debug, Args)]
pub(super) struct SiteArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// The running proxy, for the first login; default: its Unix socket or first address in the configuration.
    #[arg(long, value_name = "HOST:PORT")]
    proxy: Option<SocketAddr>,
}

impl SiteArgs {
    pub(super) fn site(self) -> anyhow::Result<Site> {
        let mut site = reload::site(&self.config.source(), self.proxy)?;
        site.remark = |line| eprintln!("{line}");
        Ok(site)
    }
}

/// Exit statuses: 0 done, 1 failed and nothing is left of it, 2 not possible as ordered, 3 some tenants failed,
/// 4 exists or is worked on, 5 unfinished: give the command again.
pub(super) fn run(args: TenantArgs) -> ExitCode {
    let result = match args.command {
        Command::Create(args) => on_runtime(create::run(*args)),
        Command::Apply(args) => on_runtime(apply::run(args)),
        Command::RotateCredentials(args) => on_runtime(rotate::run(args)),
        Command::Erase(args) => on_runtime(erase::run(args)),
        Command::List(args) => show::list(args),
        Command::Pause(args) => state::run(TenantState::Paused, args),
        Command::Resume(args) | Command::Activate(args) => state::run(TenantState::Active, args),
        Command::Suspend(args) => state::run(TenantState::Suspended, args),
        Command::Maintenance(args) => state::run(TenantState::Maintenance, args),
        Command::ReadOnly(args) => state::run(TenantState::ReadOnly, args),
        Command::Show(args) => show::show(args),
        Command::Set(args) => set::run(args),
    };
    ended(result)
}

/// The exit status of a command on tenants, with its error told.
pub(super) fn ended(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("pgtenant: {}", super::told(&error));
        ExitCode::from(error.downcast_ref::<Failure>().map_or(1, Failure::status))
    })
}

pub(super) fn on_runtime(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}
