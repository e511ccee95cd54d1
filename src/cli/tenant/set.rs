//! `pgtenant tenant set`: edits the record. A running proxy takes it over by itself.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::super::ConfigArgs;
use crate::lifecycle::edit::{Edit, edit};
use crate::lifecycle::{Failure, Site};
use crate::reload;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant tenant set acme tier=gold pool.max_backends=40
  pgtenant tenant set acme quota.query_timeout=      # removes the key

A change that the proxy would refuse is not made. Exit status: 0 changed; 2 not possible as ordered.")]
pub(super) struct SetArgs {
    /// The tenant's id.
    tenant: String,
    /// Keys of the record (docs/tenant.example.toml) and their values; no value removes the key.
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = Edit::parse)]
    edits: Vec<Edit>,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: SetArgs) -> anyhow::Result<ExitCode> {
    let source = args.config.source();
    let site = Site::new(Arc::new(reload::load(&source)?.config), None);
    let unknown = || Failure::Unknown { tenant: args.tenant.clone() };
    let tenant = site.config.tenants.get(&args.tenant).ok_or_else(unknown)?.clone();
    if let Some(fixed) = args.edits.iter().find(|edit| edit.is_fixed()) {
        return Err(Failure::Order(format!("{} says where the tenant is, and is not changed by set", fixed.key)).into());
    }
    let what: Vec<String> = args.edits.iter().map(Edit::to_string).collect();
    let check = || reload::load(&source).map(drop).map_err(|error| error.to_string());
    let result = edit(&site, &tenant, &args.edits, check);
    site.recorded_with("tenant set", &tenant.id, result, &what.join(", "))?;
    println!("tenant {}: {}", tenant.id, what.join(", "));
    Ok(ExitCode::SUCCESS)
}
