//! `pgtenant route`: what `serve` would do with a connection's hints.

use clap::Args;

use super::ConfigArgs;
use crate::config::{self, Config, PoolMode};
use crate::tenant::route::{Hints, database, route};
use crate::wire::StartupOptions;

#[derive(Debug, Args)]
pub struct RouteArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The TLS server name, as in acme.db.example.com.
    #[arg(long)]
    sni: Option<String>,
    /// The user, as in app or app.acme.
    #[arg(long, default_value = "")]
    user: String,
    /// The database.
    #[arg(long)]
    database: Option<String>,
    /// The startup parameter options, as in "-c tenant=acme".
    #[arg(long, allow_hyphen_values = true)]
    options: Option<String>,
    /// The tenant whose CA vouches for the client's certificate.
    #[arg(long, value_name = "TENANT")]
    certificate: Option<String>,
}

/// Prints the route, or fails with the reason why there is none.
pub fn run(args: RouteArgs) -> anyhow::Result<()> {
    let source = args.config.source();
    let config = config::load(source.path.as_deref(), &source.overrides)?;
    let mut options = StartupOptions::parse(args.options.as_deref().unwrap_or_default());
    let hints = Hints {
        sni: args.sni,
        option: options.take("tenant"),
        user: args.user,
        database: args.database,
        certificate: args.certificate,
    };
    print!("{}", explain(&hints, &options, &config)?);
    Ok(())
}

fn explain(hints: &Hints, options: &StartupOptions, config: &Config) -> anyhow::Result<String> {
    let route = route(hints, &config.routing, |tenant| config.tenants.contains_key(tenant))?;
    let Some(tenant) = config.tenants.get(&route.tenant) else {
        anyhow::bail!("{} names tenant \"{}\", and there is no such tenant", route.rule, route.tenant);
    };
    let Some(database) = database(&route, &hints.user, tenant) else {
        let name = route.database.unwrap_or_default();
        anyhow::bail!("tenant {}: database \"{name}\" is not in its record ({})", tenant.id, tenant.source.display());
    };
    if tenant.pool.mode != PoolMode::Session {
        options.settings()?;
    }
    let role = tenant.service.as_ref().map_or(&route.role, |service| &service.user);
    let mode = match tenant.pool.mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
        PoolMode::Statement => "statement",
    };
    Ok(format!(
        "tenant    {}\nrule      {}\nrole      {}\npool      database {database}, role {role}, {mode} mode, at most {} of \
         the tenant's {} backends\ninstance  {} at {}\n",
        tenant.id,
        route.rule,
        route.role,
        tenant.pool.max_backends_per_role,
        tenant.pool.max_backends,
        tenant.instance.name,
        tenant.instance.address,
    ))
}
