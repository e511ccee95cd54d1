//! `pgtenant tenant apply`: prints the plan, then does it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::SiteArgs;
use super::create::hand_over;
use crate::lifecycle::apply::{self, Plan};
use crate::lifecycle::create::create;
use crate::lifecycle::edit::edit;
use crate::lifecycle::{Failure, Site};
use crate::reload::{self, Source};

/// Some tenants failed.
const SOME_FAILED: u8 = 3;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant tenant apply -f tenants/ --dry-run
  pgtenant tenant apply -f tenants/ --credentials-dir /root/credentials

A file <id>.toml may say: instance, region, tier, tags, provisioner, template, extensions, [settings], and in [record] further keys of
the tenant's record. Tenants that no file describes are left alone. Given again, it goes on with what is not done.

Exit status: 0 all is as described; 2 a file is not right; 3 some tenants failed, each is named.")]
pub(super) struct ApplyArgs {
    /// A folder of files `<id>.toml`, or one of them.
    #[arg(short = 'f', long = "file", value_name = "PATH")]
    path: PathBuf,
    /// Write new tenants' passwords to `<id>.credentials` there, mode 0600, instead of giving them to the hook or
    /// showing them.
    #[arg(long, value_name = "DIR")]
    credentials_dir: Option<PathBuf>,
    /// The folder of the migrations that new tenants begin with; default: `[migrate]` dir.
    #[arg(long, value_name = "DIR")]
    migrations: Option<PathBuf>,
    /// Print the plan, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, an object for each line of the plan and each tenant.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    site: SiteArgs,
}

pub(super) async fn run(args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let mut wanted = apply::read(&args.path)?;
    let migrations = args.migrations.map(std::path::absolute).transpose()?;
    wanted.values_mut().for_each(|wanted| wanted.migrations.clone_from(&migrations));
    let credentials_dir = args.credentials_dir.map(std::path::absolute).transpose()?;
    let source = args.site.config.clone().source();
    let mut site = Arc::new(args.site.site()?);
    // Until the end: nobody else takes the places that were chosen.
    let placing = (!args.dry_run).then(|| site.placing()).transpose()?;
    let plans = apply::plan(&site, &wanted, credentials_dir.as_deref());
    let mut failed = print_plan(&plans, args.json);
    if args.dry_run {
        return Ok(status(failed));
    }
    let (mut made, mut changed, mut same) = (0, 0, 0);
    let mut taken = apply::taken(&site, &plans);
    let mut creates = JoinSet::new();
    for (tenant, plan) in plans {
        match plan {
            Ok(Plan::Same) => same += 1,
            Ok(Plan::Create(order)) => {
                let site = site.clone();
                creates.spawn(async move { (tenant, create(&site, &order, None).await, site) });
            }
            Ok(Plan::Provision(..)) => {
                let wanted = &wanted[&tenant];
                match apply::provisioned(site.clone(), &tenant, wanted, credentials_dir.as_deref(), &mut taken).await {
                    Ok((with_instance, order)) => {
                        site = with_instance.clone();
                        creates
                            .spawn(async move { (tenant, create(&with_instance, &order, None).await, with_instance) });
                    }
                    Err(failure) => failed += tell(&tenant, &failure, args.json),
                }
            }
            Ok(Plan::Change(edits)) => match change(&site, &source, &tenant, &edits) {
                Ok(()) => changed += 1,
                Err(failure) => failed += tell(&tenant, &failure, args.json),
            },
            Err(_) => {}
        }
    }
    while let Some(done) = creates.join_next().await {
        match done? {
            (tenant, Ok(created), site) => match hand_over(&site, created, args.json).await {
                Ok(()) => made += 1,
                Err(failure) => failed += tell(&tenant, &failure, args.json),
            },
            (tenant, Err(failure), _) => failed += tell(&tenant, &failure, args.json),
        }
    }
    drop(placing);
    let seconds = begun.elapsed().as_secs_f64();
    match args.json {
        true => println!(
            "{}",
            json!({ "made": made, "changed": changed, "unchanged": same, "failed": failed, "seconds": seconds })
        ),
        false => println!("{made} made, {changed} changed, {same} unchanged, {failed} failed, in {seconds:.1} s"),
    }
    Ok(status(failed))
}

fn status(failed: usize) -> ExitCode {
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(SOME_FAILED) }
}

/// Gives the number of tenants that nothing can be done about.
fn print_plan(plans: &BTreeMap<String, Result<Plan, Failure>>, as_json: bool) -> usize {
    let mut failed = 0;
    for (tenant, plan) in plans {
        let (sign, value) = match plan {
            Ok(Plan::Create(order)) => ("+", format!("make it on instance {}", order.instance)),
            Ok(Plan::Provision(name, why)) => {
                ("+", format!("make it on an instance that provisioner {name} makes ({why})"))
            }
            Ok(Plan::Change(edits)) => ("~", edits.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
            Ok(Plan::Same) => ("=", "as described".to_owned()),
            Err(failure) => {
                failed += tell(tenant, failure, as_json);
                continue;
            }
        };
        match as_json {
            true => println!("{}", json!({ "plan": sign, "tenant": tenant, "what": value })),
            false if sign != "=" => println!("{sign} {tenant}: {value}"),
            false => {}
        }
    }
    failed
}

fn tell(tenant: &str, failure: &Failure, as_json: bool) -> usize {
    match as_json {
        true => println!("{}", json!({ "tenant": tenant, "failed": Value::from(failure.to_string()) })),
        false => eprintln!("! {tenant}: {failure}"),
    }
    1
}

fn change(site: &Site, source: &Source, tenant: &str, edits: &[crate::lifecycle::edit::Edit]) -> Result<(), Failure> {
    let record = site.config.tenants.get(tenant).ok_or_else(|| Failure::Unknown { tenant: tenant.to_owned() })?;
    let check = || reload::load(source).map(drop).map_err(|error| error.to_string());
    let what: Vec<String> = edits.iter().map(ToString::to_string).collect();
    let result = edit(site, record, edits, check);
    site.recorded_with("tenant apply", tenant, result, &what.join(", "))
}
