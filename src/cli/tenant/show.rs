//! `pgtenant tenant list` and `show`: what the configuration says.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::super::ConfigArgs;
use crate::config::{Config, Tenant};
use crate::lifecycle::{Failure, Site, create};
use crate::reload;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgtenant tenant list\n  pgtenant tenant list --region eu --json\n\nExit status: 0 printed; 2 the configuration or the arguments."
)]
pub(super) struct ListArgs {
    /// Only those in this region.
    #[arg(long)]
    region: Option<String>,
    /// Only those of this tier.
    #[arg(long)]
    tier: Option<String>,
    /// Only those on this instance.
    #[arg(long)]
    instance: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  pgtenant tenant show acme --json\n\nExit status: 0 printed; 2 no such tenant, the configuration or the arguments."
)]
pub(super) struct ShowArgs {
    /// The tenant's id.
    tenant: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let config = Arc::new(reload::load(&args.config.source())?.config);
    let is = |wanted: &Option<String>, of: Option<&str>| wanted.is_none() || wanted.as_deref() == of;
    let tenants: Vec<&Arc<Tenant>> = config
        .tenants
        .values()
        .filter(|tenant| is(&args.region, tenant.instance.region.as_deref()))
        .filter(|tenant| is(&args.tier, tenant.tier.as_deref()) && is(&args.instance, Some(&tenant.instance.name)))
        .collect();
    let unfinished = unfinished(&config);
    if args.json {
        let tenants: Vec<Value> = tenants.into_iter().map(|tenant| facts(tenant)).collect();
        println!("{}", json!({ "tenants": tenants, "unfinished": unfinished }));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:24} {:16} {:12} {:10} {:11} DATABASE", "TENANT", "INSTANCE", "REGION", "TIER", "STATE");
    for tenant in tenants {
        let region = tenant.instance.region.as_deref().unwrap_or("-");
        let tier = tenant.tier.as_deref().unwrap_or("-");
        let (id, instance, state) = (&tenant.id, &tenant.instance.name, tenant.state.text());
        println!("{id:24} {instance:16} {region:12} {tier:10} {state:11} {}", tenant.database);
    }
    for tenant in unfinished {
        println!("{tenant:24} unfinished: give the command again that was at work on it");
    }
    Ok(ExitCode::SUCCESS)
}

fn unfinished(config: &Arc<Config>) -> Vec<String> {
    create::unfinished_tenants(&Site::new(config.clone(), None))
}

fn facts(tenant: &Tenant) -> Value {
    json!({
        "tenant": tenant.id, "instance": tenant.instance.name, "region": tenant.instance.region,
        "pinned": tenant.region.is_some(), "tier": tenant.tier, "state": tenant.state.text(),
        "database": tenant.database, "roles": tenant.roles.keys().collect::<Vec<_>>(),
        "pool_mode": tenant.pool.mode.text(), "max_backends": tenant.pool.max_backends,
        "record": tenant.source, "credentials": tenant.credentials,
    })
}

pub(super) fn show(args: ShowArgs) -> anyhow::Result<ExitCode> {
    let config = reload::load(&args.config.source())?.config;
    let tenant = config.tenants.get(&args.tenant).ok_or(Failure::Unknown { tenant: args.tenant })?;
    let facts = facts(tenant);
    if args.json {
        println!("{facts}");
        return Ok(ExitCode::SUCCESS);
    }
    for (key, value) in facts.as_object().into_iter().flatten() {
        let value = match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
            value => value.to_string(),
        };
        println!("{key:14} {value}");
    }
    Ok(ExitCode::SUCCESS)
}
