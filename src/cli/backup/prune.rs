//! `pgtenant backup prune`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::Whose;
use super::run::fail;
use crate::backup::prune::prune;
use crate::lifecycle::{Failure, shelf};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant backup prune --dry-run
  pgtenant backup prune
  pgtenant backup prune acme

Of each tenant's backups, backup.keep of the newest are kept, and none that is older than backup.keep_for. The newest, and
the one that was proven last, always are. Without ids: of all who have backups.

Exit status: 0 done; 3 some tenants failed, each is named; for one alone: 1.")]
pub(super) struct PruneArgs {
    #[command(flatten)]
    whose: Whose,
    /// Say what would be removed, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, an object for each tenant.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: PruneArgs) -> anyhow::Result<ExitCode> {
    let site = args.whose.site()?;
    let mut tenants = shelf::tenants(&site.config);
    if let Some(chosen) = args.whose.chosen(&site)? {
        tenants.retain(|id| chosen.iter().any(|tenant| tenant.id == *id));
    }
    let (mut failures, mut removed): (Vec<Failure>, usize) = (Vec::new(), 0);
    for tenant in &tenants {
        match prune(&site, tenant, args.dry_run) {
            Ok(gone) => {
                removed += gone.len();
                let names: Vec<&str> = gone.iter().map(|stored| stored.name.as_str()).collect();
                if args.json {
                    println!("{}", json!({ "tenant": tenant, "removed": names, "dry_run": args.dry_run }));
                    continue;
                }
                for name in names {
                    println!("{} {tenant}/{name}", if args.dry_run { "would remove" } else { "removed" });
                }
            }
            Err(failure) => {
                fail(tenant, &failure, args.json);
                failures.push(failure);
            }
        }
    }
    if !args.json && !args.dry_run {
        println!("{removed} removed, {} tenants failed", failures.len());
    }
    Ok(super::status(&failures, tenants.len()))
}
