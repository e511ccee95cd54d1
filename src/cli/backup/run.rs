//! `pgtenant backup run`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use futures_util::StreamExt;
use serde_json::json;
use time::OffsetDateTime;

use super::super::export::told;
use super::Whose;
use crate::backup::run::{order, run as back_up};
use crate::bundle::export::may_leave;
use crate::bundle::progress::Progress;
use crate::config::Tenant;
use crate::lifecycle::{Failure, Site, shelf};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant backup run acme globex
  pgtenant backup run --select tier=gold,region=eu --parallel 4
  pgtenant backup run --due
  pgtenant backup run --due --dry-run

--due is for a timer that comes often, such as each quarter of an hour: it does what is due by then, and nothing else. A
tenant is due when its last backup is as old as its schedule says (backup.every); those without a schedule never are.

Exit status: 0 all are backed up; 3 some failed, each is named. For one tenant alone: 1 failed, and nothing is left of it;
2 not possible as ordered; 4 another run is at work on it.")]
pub(super) struct RunArgs {
    #[command(flatten)]
    whose: Whose,
    /// Those whose backup is due; of all tenants, or of those that --select means.
    #[arg(long, conflicts_with = "tenants")]
    due: bool,
    /// Tenants at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, an object for each tenant, and no progress.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let site = args.whose.site()?;
    let tenants = tenants(&args, &site)?;
    if args.dry_run {
        return dry_run(&site, &tenants, args.json);
    }
    let shown = !args.json && args.parallel == 1 && std::io::stderr().is_terminal();
    let (site, json) = (&site, args.json);
    let runs = tenants.iter().map(|tenant| async move {
        let progress = Progress::new(shown, &tenant.id);
        let done = back_up(site, tenant, &progress).await;
        progress.end();
        match done {
            Ok(exported) => {
                println!("{}", told(&exported, json));
                None
            }
            Err(failure) => {
                fail(&tenant.id, &failure, json);
                Some(failure)
            }
        }
    });
    let done = futures_util::stream::iter(runs).buffer_unordered(args.parallel.into()).collect::<Vec<_>>().await;
    let failures: Vec<Failure> = done.into_iter().flatten().collect();
    let (made, seconds) = (tenants.len() - failures.len(), begun.elapsed().as_secs_f64());
    match json {
        true => println!("{}", json!({ "made": made, "failed": failures.len(), "seconds": seconds })),
        false => println!("{made} backed up, {} failed, in {seconds:.1} s", failures.len()),
    }
    Ok(super::status(&failures, tenants.len()))
}

fn tenants(args: &RunArgs, site: &Site) -> anyhow::Result<Vec<Arc<Tenant>>> {
    let chosen = args.whose.chosen(site)?;
    if !args.due {
        let nobody = || Failure::Order("whose? Give ids of tenants, --select, or --due".to_owned());
        return Ok(chosen.ok_or_else(nobody)?);
    }
    let (state, now) = (shelf::state(&site.config), OffsetDateTime::now_utc());
    let mut due = chosen.unwrap_or_else(|| site.config.tenants.values().cloned().collect());
    let lateness = |tenant: &Arc<Tenant>| shelf::lateness(state.get(&tenant.id), tenant.backup.every?, now);
    due.retain(|tenant| lateness(tenant).is_some());
    // Who has waited longest goes first: a run that is cut short forgets nobody for ever.
    due.sort_by_key(|tenant| std::cmp::Reverse(lateness(tenant)));
    Ok(due)
}

fn dry_run(site: &Site, tenants: &[Arc<Tenant>], as_json: bool) -> anyhow::Result<ExitCode> {
    let mut failures = Vec::new();
    for tenant in tenants {
        match order(site, tenant).and_then(|order| may_leave(tenant, &order).map(|()| order)) {
            Ok(order) => {
                let (id, path, encrypted) = (&tenant.id, order.output.display(), !order.recipients.is_empty());
                match as_json {
                    true => println!(
                        "{}",
                        json!({ "dry_run": true, "tenant": id, "backup": order.output, "encrypted": encrypted })
                    ),
                    false => {
                        println!("would back up tenant {id} to {path}{}", if encrypted { ", encrypted" } else { "" });
                    }
                }
            }
            Err(failure) => {
                fail(&tenant.id, &failure, as_json);
                failures.push(failure);
            }
        }
    }
    Ok(super::status(&failures, tenants.len()))
}

pub(super) fn fail(tenant: &str, failure: &Failure, as_json: bool) {
    match as_json {
        true => println!("{}", json!({ "tenant": tenant, "failed": failure.to_string() })),
        false => eprintln!("! {tenant}: {failure}"),
    }
}
