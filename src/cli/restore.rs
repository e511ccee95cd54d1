//! `pgtenant restore`: an import of a backup.

use std::process::ExitCode;

use clap::Args;

use super::import::{ImportOptions, carry_out};
use super::tenant::{ended, on_runtime};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant restore acme --to-new acme-restored
  pgtenant restore acme/20301224T173000Z --to-new acme-restored --instance pg-eu-2
  pgtenant restore /mnt/elsewhere/20301224T173000Z.pgt --to-new acme --age-identity acme.age-key

Never over a tenant that is there: look at the new one first, then move the application, or erase the old one and restore
once more under its name. Everything else is as with `pgtenant import`.

Exit status: as pgtenant import.")]
pub(super) struct RestoreArgs {
    /// The backup: `<tenant>` for its newest, `<tenant>/<name>` as `pgtenant backup list` shows it, or a path.
    backup: String,
    /// The new tenant's id.
    #[arg(long, value_name = "TENANT")]
    to_new: String,
    #[command(flatten)]
    options: ImportOptions,
}

pub(super) fn run(args: RestoreArgs) -> ExitCode {
    ended(on_runtime(async move {
        let mut options = args.options;
        let (backup, identity) = options.backup(&args.backup)?;
        options.set_default_identity(identity);
        carry_out(backup, Some(args.to_new), options, "restore").await
    }))
}
