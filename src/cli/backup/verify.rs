//! `pgtenant backup verify`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::Whose;
use super::run::fail;
use crate::backup::verify::verify;
use crate::bundle::progress::Progress;
use crate::lifecycle::several;
use crate::lifecycle::shelf::{self, Stored};
use crate::lifecycle::{Failure, Site};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant backup verify acme
  pgtenant backup verify acme/20301224T173000Z --instance pg-scratch
  pgtenant backup verify --least-proven 10

The newest backup of each tenant, unless one is named. It is restored into database <tenant>~proof, which is dropped again,
on the tenant's own instance, or on backup.verify_instance. Rows and large objects by their checksums, sequences, extensions
and objects by kind have to be what they were. Owners and rights are not restored. When it succeeds, the proxy's metrics
say so.

Exit status: 0 proven; 3 some are not, each is named. For one alone: 1 not proven; 2 not possible as ordered; 4 there is a
database of that name which is not ours.")]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    whose: Whose,
    /// As many tenants as this, those with backups whose last proof is oldest or missing.
    #[arg(long, value_name = "NUMBER", conflicts_with = "tenants")]
    least_proven: Option<usize>,
    /// The instance for the scratch database.
    #[arg(long)]
    instance: Option<String>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, an object for each backup, and no progress.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let site = args.whose.site()?;
    let backups = backups(&args, &site)?;
    let mut failures = Vec::new();
    for stored in &backups {
        if args.dry_run {
            match args.json {
                true => println!("{}", json!({ "dry_run": true, "tenant": stored.tenant, "backup": stored.path })),
                false => println!("would verify {}", stored.path.display()),
            }
            continue;
        }
        let begun = Instant::now();
        let progress = Progress::new(!args.json && std::io::stderr().is_terminal(), &stored.tenant);
        let proven = verify(&site, stored, args.instance.as_deref(), &progress).await;
        progress.end();
        match proven {
            Ok(found) => {
                let (tables, seconds) = (found.tables.len(), begun.elapsed().as_secs_f64());
                let rows: u64 = found.tables.iter().map(|table| table.rows).sum();
                let large = found.large_objects.count;
                match args.json {
                    true => println!(
                        "{}",
                        json!({ "tenant": stored.tenant, "backup": stored.name, "proven": true, "tables": tables,
                                "rows": rows, "large_objects": large, "seconds": seconds })
                    ),
                    false => println!(
                        "backup {}/{} is proven: {}, {}, {}, in {seconds:.1} s",
                        stored.tenant,
                        stored.name,
                        several(tables, "table"),
                        several(rows, "row"),
                        several(large, "large object"),
                    ),
                }
            }
            Err(failure) => {
                fail(&stored.tenant, &failure, args.json);
                failures.push(failure);
            }
        }
    }
    Ok(super::status(&failures, backups.len()))
}

fn backups(args: &VerifyArgs, site: &Site) -> anyhow::Result<Vec<Stored>> {
    let config = &site.config;
    if let Some(number) = args.least_proven {
        let state = shelf::state(config);
        let mut tenants = shelf::tenants(config);
        if args.whose.select.is_some() {
            let chosen = args.whose.chosen(site)?.unwrap_or_default();
            tenants.retain(|id| chosen.iter().any(|tenant| tenant.id == *id));
        }
        tenants.retain(|tenant| config.tenants.contains_key(tenant));
        // Never comes before long ago.
        tenants.sort_by_key(|tenant| state.get(tenant).and_then(|known| known.proven));
        let newest = tenants.iter().filter_map(|tenant| shelf::of_tenant(config, tenant).ok()?.pop());
        return Ok(newest.take(number).collect());
    }
    let mut meant = args.whose.tenants.clone();
    if args.whose.select.is_some() {
        meant = args.whose.chosen(site)?.unwrap_or_default().iter().map(|tenant| tenant.id.clone()).collect();
    }
    if meant.is_empty() {
        let nobody = "which? Give tenants, backups as `pgtenant backup list` shows them, --select, or --least-proven";
        return Err(Failure::Order(nobody.to_owned()).into());
    }
    Ok(meant.iter().map(|meant| shelf::find(config, meant)).collect::<Result<_, _>>()?)
}
