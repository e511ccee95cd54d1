//! `pgtenant migrate verify`: histories against the files, and the tenants' schemas against each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::ConfigArgs;
use super::progress::{Progress, of_row};
use super::scene::{PaceArgs, Scene, WhatArgs};
use super::{STATUSES, matrix};
use crate::lifecycle::Failure;
use crate::lifecycle::migrate::Target;
use crate::lifecycle::migrate::fingerprint::{self, Found, Schema};
use crate::lifecycle::migrate::plan::Goal;
use crate::lifecycle::migrate::state::{DRIFT, Report, State};

/// Differences that are listed for a group.
const LISTED: usize = 12;

#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  pgtenant migrate verify --dir migrations
  pgtenant migrate verify --dir migrations --select region=eu --json

Tenants at the same migration, on the same major version of PostgreSQL, should have the same schema. Owners, grants and
comments are not compared.

{STATUSES}"))]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    what: WhatArgs,
    #[command(flatten)]
    pace: PaceArgs,
    /// Print JSON, an object for each tenant and each distinct schema.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Tenants that should be the same.
type Peers = (u32, Option<i64>);

/// A schema with the tenants that have it.
struct Group {
    hash: String,
    schema: Schema,
    tenants: Vec<String>,
}

pub(super) async fn run(args: VerifyArgs) -> anyhow::Result<u8> {
    let goal = Goal::Up { to: None, out_of_order: true };
    let scene = Scene::new(args.config, &args.what, goal, args.json)?;
    let progress = Arc::new(Progress::new(args.json));
    let (run, tenants, _) = scene.run(&args.pace, &progress)?;
    let mut report = run.look(&tenants).await;
    progress.end();
    let mut reads = JoinSet::new();
    let places = Arc::new(Semaphore::new(run.pace.parallel));
    for tenant in tenants.iter().filter(|tenant| !matches!(report.tenants[&tenant.id].state, State::Failed { .. })) {
        let (tenant, site, places) = (tenant.clone(), run.site.clone(), places.clone());
        reads.spawn(async move {
            let _place = places.acquire().await.expect("never closed");
            let target = Target { tenant: &tenant.id, database: &tenant.database };
            let instance = match site.instance(&tenant.instance.name) {
                Ok(instance) => instance,
                Err(failure) => return (tenant.id.clone(), Err(failure)),
            };
            (tenant.id.clone(), fingerprint::read(&instance, &target).await)
        });
    }
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    while let Some(read) = reads.join_next().await {
        match read? {
            (tenant, Ok(schema)) => _ = found.insert(tenant, schema),
            (tenant, Err(failure)) => fail(&mut report, &tenant, &failure),
        }
    }
    let groups = groups(&report, found);
    let differ = groups.values().any(|groups| groups.len() > 1);
    match args.json {
        true => print_json(&report, &groups),
        false => {
            print!("{}", as_text(&groups));
            print!("{}", matrix::text(&report));
        }
    }
    Ok(if differ { DRIFT } else { report.status() })
}

fn fail(report: &mut Report, tenant: &str, failure: &Failure) {
    if let Some(row) = report.tenants.get_mut(tenant) {
        row.state = State::failed(failure);
    }
}

/// The largest group of each comes first: it is what the others are compared with.
fn groups(report: &Report, found: BTreeMap<String, Found>) -> BTreeMap<Peers, Vec<Group>> {
    let mut all: BTreeMap<Peers, Vec<Group>> = BTreeMap::new();
    for (tenant, Found { major, schema }) in found {
        let peers = (major, report.tenants.get(&tenant).and_then(|row| row.version));
        let (groups, hash) = (all.entry(peers).or_default(), fingerprint::hash(&schema));
        match groups.iter_mut().find(|group| group.hash == hash) {
            Some(group) => group.tenants.push(tenant),
            None => groups.push(Group { hash, schema, tenants: vec![tenant] }),
        }
    }
    for groups in all.values_mut() {
        groups.sort_by_key(|group| std::cmp::Reverse(group.tenants.len()));
    }
    all
}

fn as_text(all: &BTreeMap<Peers, Vec<Group>>) -> String {
    let mut text = String::new();
    for ((major, version), groups) in all {
        let version = version.map_or("nothing applied".to_owned(), |version| format!("at {version}"));
        let distinct = if groups.len() == 1 { "one schema" } else { "distinct schemas" };
        text += &format!("PostgreSQL {major}, {version}: {} {distinct}\n", groups.len());
        for (place, group) in groups.iter().enumerate() {
            let named: Vec<&str> = group.tenants.iter().take(5).map(String::as_str).collect();
            let more = if group.tenants.len() > 5 { ", …" } else { "" };
            text += &format!("  {}  {:>5} tenants  {}{more}\n", group.hash, group.tenants.len(), named.join(", "));
            if place > 0 {
                let differences = fingerprint::differences(&groups[0].schema, &group.schema);
                for difference in differences.iter().take(LISTED) {
                    text += &format!("      {difference}\n");
                }
                if differences.len() > LISTED {
                    text += &format!("      … and {} more\n", differences.len() - LISTED);
                }
            }
        }
    }
    text.replace("1 one schema", "one schema")
}

fn print_json(report: &Report, all: &BTreeMap<Peers, Vec<Group>>) {
    for (tenant, row) in &report.tenants {
        println!("{}", of_row(tenant, row));
    }
    for ((major, version), groups) in all {
        for (place, group) in groups.iter().enumerate() {
            let differences =
                if place > 0 { fingerprint::differences(&groups[0].schema, &group.schema) } else { Vec::new() };
            println!(
                "{}",
                json!({ "schema": group.hash, "postgresql": major, "version": version, "tenants": group.tenants,
                        "differences": differences })
            );
        }
    }
}
