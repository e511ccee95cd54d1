//! `pgtenant tenant pause`, `resume` and their like: a tenant's state in its record (docs/STATES.md).

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use clap::Args;

use super::super::ConfigArgs;
use crate::config::{self, TenantState};
use crate::lifecycle::Site;
use crate::lifecycle::edit::{Edit, edit};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant tenant suspend acme --reason 'unpaid since May'
  pgtenant tenant activate acme

The state is written into the record, and a running proxy takes it over by itself (docs/STATES.md).

Exit status: 0 done; 1 it could not be written; 2 no such tenant, or not possible as ordered.")]
pub(super) struct StateArgs {
    /// The tenant's id.
    id: String,
    /// What clients are told that are kept out.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Edits the record and says what it has done. A running proxy takes it over by itself.
pub(super) fn run(state: TenantState, args: StateArgs) -> anyhow::Result<ExitCode> {
    let source = args.config.source();
    let site = Site::new(Arc::new(config::load(source.path.as_deref(), &source.overrides)?), None);
    let Some(record) = site.config.tenants.get(&args.id) else {
        bail!("there is no tenant {:?}; {} are configured", args.id, site.config.tenants.len());
    };
    let edits = [
        Edit { key: "state".to_owned(), value: Some(state.text().into()) },
        Edit { key: "state_reason".to_owned(), value: args.reason.as_deref().map(Into::into) },
    ];
    let detail = args.reason.as_ref().map_or(state.text().to_owned(), |reason| format!("{}: {reason}", state.text()));
    site.recorded_with("tenant state", &args.id, edit(&site, record, &edits, || Ok(())), &detail)?;
    println!("tenant {}: {} ({})", args.id, state.text(), record.source.display());
    Ok(ExitCode::SUCCESS)
}
