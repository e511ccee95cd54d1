//! `pgtenant backup list`.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Whose;
use crate::bundle::{restore, sums};
use crate::lifecycle::{Failure, shelf};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant backup list
  pgtenant backup list acme --json

Backups of tenants that are no longer in the configuration are listed as well.

Exit status: 0; 2 there is no such tenant.")]
pub(super) struct ListArgs {
    #[command(flatten)]
    whose: Whose,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: ListArgs) -> anyhow::Result<ExitCode> {
    let site = args.whose.site()?;
    let config = &site.config;
    let mut tenants = shelf::tenants(config);
    match (&args.whose.select, args.whose.tenants.is_empty()) {
        (Some(_), _) => {
            let chosen = args.whose.chosen(&site)?.unwrap_or_default();
            tenants.retain(|id| chosen.iter().any(|tenant| tenant.id == *id));
        }
        (None, true) => {}
        (None, false) => {
            let known = |id: &&String| !tenants.contains(id) && !config.tenants.contains_key(*id);
            if let Some(unknown) = args.whose.tenants.iter().find(known) {
                return Err(Failure::Unknown { tenant: unknown.clone() }.into());
            }
            tenants.retain(|id| args.whose.tenants.contains(id));
        }
    }
    let state = shelf::state(config);
    let mut rows = Vec::new();
    for tenant in &tenants {
        let proven = state.get(tenant).cloned().unwrap_or_default();
        for stored in shelf::of_tenant(config, tenant)? {
            let is_proven = proven.proven_backup.as_ref() == Some(&stored.name);
            let moment = |unix: i64| OffsetDateTime::from_unix_timestamp(unix).ok()?.format(&Rfc3339).ok();
            let proven = proven.proven.filter(|_| is_proven).and_then(moment);
            let sizes = sums::files(&stored.path)?.into_iter();
            let sizes = sizes.map(|name| std::fs::metadata(stored.path.join(name)).map_or(0, |size| size.len()));
            let (bytes, encrypted) = (sizes.sum::<u64>(), restore::is_encrypted(&stored.path));
            rows.push(json!({
                "tenant": tenant, "backup": stored.name, "path": stored.path, "bytes": bytes, "encrypted": encrypted,
                "proven": proven, "made": stored.made.format(&Rfc3339)?,
            }));
        }
    }
    if args.json {
        println!("{}", json!({ "backups": rows }));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:44} {:>14} {:9} PROVEN", "BACKUP", "BYTES", "ENCRYPTED");
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        let name = format!("{}/{}", text("tenant"), text("backup"));
        let encrypted = if row["encrypted"] == Value::Bool(true) { "yes" } else { "no" };
        println!("{name:44} {:>14} {encrypted:9} {}", row["bytes"].as_u64().unwrap_or_default(), text("proven"));
    }
    Ok(ExitCode::SUCCESS)
}
