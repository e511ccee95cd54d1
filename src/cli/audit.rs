//! `pgtenant audit`: looks whether the audit log is as it was written.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ConfigArgs;
use crate::lifecycle::audit::Audit;
use crate::lifecycle::several;
use crate::reload;

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the log's chain of hashes; exit status 1 where a line was changed, removed or inserted, with its number.
    #[command(after_help = "Examples:\n  pgtenant audit verify\n  pgtenant audit verify /backup/audit.jsonl\n\n\
                            It prints the last line's hash: whoever keeps that elsewhere can tell a log that was \
                            rewritten as a whole, with its head.")]
    Verify {
        /// The log; default: lifecycle.audit_log of the configuration.
        file: Option<PathBuf>,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

pub(super) fn run(args: AuditArgs) -> anyhow::Result<()> {
    let Command::Verify { file, config } = args.command;
    let path = match file {
        Some(path) => path,
        None => reload::load(&config.source())?.config.lifecycle.audit_log.clone(),
    };
    let (lines, hash) = Audit::new(&path).verify()?;
    println!("ok    {}: {}, the last with hash {hash}", path.display(), several(lines, "line"));
    Ok(())
}
