//! `[query]`: how one query is asked of many tenants. Nothing of it matters to traffic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::Instance;
use super::problem::Scope;
use super::resolve::positive;
use super::scalar::{Period, Size};

/// What stands for the tenant's id in a role's name.
const TENANT: &str = "{tenant}";

/// As written.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Written {
    role: String,
    region: Option<String>,
    scratch_instance: Option<String>,
    parallel: u32,
    per_instance: u32,
    timeout: Period,
    max_rows: u64,
    max_size: Size,
}

impl Default for Written {
    fn default() -> Self {
        Written {
            role: "{tenant}_ro".to_owned(),
            region: None,
            scratch_instance: None,
            parallel: 8,
            per_instance: 2,
            timeout: Period(Duration::from_secs(30)),
            max_rows: 10_000,
            max_size: Size(256 << 20),
        }
    }
}

/// How `pgtenant query` asks the tenants.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// The tenants' read-only role, `{tenant}` for the id; default `{tenant}_ro`.
    pub role: String,
    /// Where this command runs and its results stay; none: tenants that are pinned to a region are not asked.
    pub region: Option<String>,
    /// Where results are merged; default: an instance of the asked tenants.
    pub scratch_instance: Option<String>,
    /// Tenants that are asked at a time, in all and on one instance; default 8 and 2.
    pub parallel: u32,
    pub per_instance: u32,
    /// For one tenant; default 30 s.
    pub timeout: Duration,
    /// Of one tenant; default 10,000.
    pub max_rows: u64,
    /// Of all tenants together, in bytes of text; default 256 MiB.
    pub max_size: u64,
}

impl Query {
    /// The role that a tenant is read as.
    pub fn role_of(&self, tenant: &str) -> String {
        self.role.replace(TENANT, tenant)
    }
}

pub(super) fn resolve(
    written: Written,
    instances: &BTreeMap<String, Arc<Instance>>,
    mut scope: Scope<'_, '_>,
) -> Query {
    scope.require(!written.role.is_empty(), "role", "must not be empty");
    scope.require(written.parallel > 0, "parallel", "at least 1 is needed");
    scope.require(written.per_instance > 0, "per_instance", "at least 1 is needed");
    scope.require(written.max_rows > 0, "max_rows", "at least 1 is needed");
    scope.require(written.max_size.0 > 0, "max_size", "must not be 0");
    if let Some(name) = written.scratch_instance.as_ref().filter(|name| !instances.contains_key(*name)) {
        scope.problem("scratch_instance", format!("there is no [instances.{name}]"));
    }
    Query {
        role: written.role,
        region: written.region,
        scratch_instance: written.scratch_instance,
        parallel: written.parallel,
        per_instance: written.per_instance,
        timeout: positive(&mut scope, "timeout", written.timeout),
        max_rows: written.max_rows,
        max_size: written.max_size.0,
    }
}
