//! `pgtenant migrate`: the same migrations for every tenant (docs/MIGRATIONS.md).

mod down;
mod matrix;
mod plan;
mod progress;
mod repair;
mod resume;
mod scene;
mod status;
mod up;
mod verify;

use std::process::ExitCode;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what up would do, to whom, and in which order; nothing is changed.
    Plan(plan::PlanArgs),
    /// Apply the migrations that the tenants lack, wave by wave.
    Up(up::UpArgs),
    /// Take back the newest migrations, wave by wave.
    Down(down::DownArgs),
    /// Show how far the tenants are.
    Status(status::StatusArgs),
    /// Compare histories with the files, and the tenants' schemas with each other.
    Verify(verify::VerifyArgs),
    /// Go on with the run that was stopped or killed.
    Resume(resume::ResumeArgs),
    /// Put a tenant's history right; its schema is not touched.
    Repair(repair::RepairArgs),
}

/// Nothing was begun: the arguments, the configuration or a file is not right, or another run is at work.
pub(super) const NOT_BEGUN: u8 = 4;

/// Behind every command's help.
const STATUSES: &str = "Exit status: 0 all; 1 some; 2 none of the tenants are there; 3 drift: some tenant's history \
                        contradicts the files; 4 nothing was begun (arguments, configuration, files, another run).";

pub(super) fn run(args: MigrateArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("pgtenant: {error}");
            return ExitCode::from(NOT_BEGUN);
        }
    };
    let result = runtime.block_on(async {
        match args.command {
            Command::Plan(args) => plan::run(args).await,
            Command::Up(args) => up::run(args).await,
            Command::Down(args) => down::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Verify(args) => verify::run(args).await,
            Command::Resume(args) => resume::run(args).await,
            Command::Repair(args) => repair::run(args).await,
        }
    });
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("pgtenant: {}", super::told(&error));
            ExitCode::from(NOT_BEGUN)
        }
    }
}
