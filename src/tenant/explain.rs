//! What becomes of a connection's hints, in words for an operator: `pgtenant route` and the console's EXPLAIN ROUTE.

use std::path::PathBuf;

use thiserror::Error;

use super::route::{Hints, RouteError, Rule, database, route};
use crate::config::{Config, PoolMode};
use crate::wire::{OptionsError, StartupOptions};

/// Why a connection would reach nothing.
#[derive(Debug, Error)]
pub enum ExplainError {
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error("{rule} names tenant \"{tenant}\", and there is no such tenant")]
    NoSuchTenant { rule: Rule, tenant: String },
    #[error("tenant {tenant}: database \"{database}\" is not in its record ({})", source_file.display())]
    NoSuchDatabase { tenant: String, database: String, source_file: PathBuf },
    #[error(transparent)]
    Options(#[from] OptionsError),
}

/// The route as pairs of what and where; `options` are those without the tenant.
///
/// # Errors
/// Why there is none.
pub fn explain(
    hints: &Hints,
    options: &StartupOptions,
    config: &Config,
) -> Result<Vec<(&'static str, String)>, ExplainError> {
    let route = route(hints, &config.routing, |tenant| config.tenants.contains_key(tenant))?;
    let Some(tenant) = config.tenants.get(&route.tenant) else {
        return Err(ExplainError::NoSuchTenant { rule: route.rule, tenant: route.tenant });
    };
    let Some(database) = database(&route, &hints.user, tenant) else {
        return Err(ExplainError::NoSuchDatabase {
            tenant: tenant.id.clone(),
            database: route.database.unwrap_or_default(),
            source_file: tenant.source.clone(),
        });
    };
    if tenant.pool.mode != PoolMode::Session {
        options.settings()?;
    }
    let role = tenant.service.as_ref().map_or(&route.role, |service| &service.user);
    let pool = format!(
        "database {database}, role {role}, {} mode, at most {} of the tenant's {} backends",
        tenant.pool.mode.text(),
        tenant.pool.max_backends_per_role,
        tenant.pool.max_backends,
    );
    Ok(vec![
        ("tenant", tenant.id.clone()),
        ("rule", route.rule.to_string()),
        ("role", route.role.clone()),
        ("pool", pool),
        ("instance", format!("{} at {}", tenant.instance.name, tenant.instance.address)),
    ])
}
