//! `[lifecycle]`, and what the commands on tenants have to know of instances. Nothing of it matters to traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::file;
use super::problem::Scope;
use super::program::{self, Program};
use super::resolve::positive;
use super::scalar::Period;
use super::{Instance, Secret};

/// Where the commands on tenants write.
#[derive(Debug, Clone, PartialEq)]
pub struct Lifecycle {
    /// Folder of the tenants' records.
    pub tenants_dir: PathBuf,
    /// Folder of the instances that provisioners have made; default `instances.d`.
    pub instances_dir: PathBuf,
    /// Every act, as JSON lines; default `audit.jsonl`.
    pub audit_log: PathBuf,
    /// Journals of runs that are not finished; made when needed, default `lifecycle.d`.
    pub journal_dir: PathBuf,
    /// Tenants that are worked on at a time on one instance; default 4.
    pub per_instance: u32,
    /// How long an old password stays good after a rotation; default 24 h.
    pub grace: Duration,
    /// Folders with pg_dump and pg_restore, looked into before the system's own; default none.
    pub postgres_tools: Vec<PathBuf>,
    /// Gets new passwords, where they are not written to a file; none: they are shown.
    pub credentials_hook: Option<Program>,
    /// What makes whole instances, by name.
    pub provisioners: BTreeMap<String, Program>,
    /// Names of `[tier.*]`.
    pub tiers: BTreeSet<String>,
    /// The instances as places for tenants, by name.
    pub hosts: BTreeMap<String, Host>,
}

/// `[lifecycle]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Written {
    pub audit_log: PathBuf,
    pub journal_dir: PathBuf,
    pub per_instance: u32,
    pub grace: Period,
    pub postgres_tools: Vec<PathBuf>,
    pub credentials_hook: Option<program::Hook>,
}

impl Default for Written {
    fn default() -> Self {
        Written {
            audit_log: "audit.jsonl".into(),
            journal_dir: "lifecycle.d".into(),
            per_instance: 4,
            grace: Period(Duration::from_secs(24 * 60 * 60)),
            postgres_tools: Vec::new(),
            credentials_hook: None,
        }
    }
}

/// An instance as a place for tenants.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    pub instance: Arc<Instance>,
    /// What tenants may ask for beside a region.
    pub tags: Vec<String>,
    /// Default: no limit.
    pub max_tenants: Option<u32>,
    /// How long its WAL archives and base backups live on; none: not known here.
    pub wal_retention: Option<Duration>,
    /// None: no tenant is made or erased here.
    pub admin: Option<InstanceAdmin>,
}

/// Who may create roles and databases on an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceAdmin {
    /// Default `postgres`.
    pub user: String,
    /// None where the server asks for none.
    pub password: Option<Secret>,
    /// Where to connect for what belongs to the whole instance; default `postgres`.
    pub database: String,
}

/// What an instance's table says about it as a place.
pub(super) fn host(written: &file::Instance, instance: Arc<Instance>, mut scope: Scope<'_, '_>) -> Host {
    let mut table = scope.enter("admin");
    let admin = written.admin.as_ref().map(|admin| {
        table.require(!admin.user.is_empty(), "user", "must not be empty");
        table.require(!admin.database.is_empty(), "database", "must not be empty");
        InstanceAdmin {
            user: admin.user.clone(),
            password: admin.password.as_ref().and_then(|reference| table.secret("password", reference)),
            database: admin.database.clone(),
        }
    });
    Host {
        instance,
        tags: written.tags.clone(),
        max_tenants: written.max_tenants,
        wal_retention: written.wal_retention.map(|period| period.0),
        admin,
    }
}

pub(super) fn resolve(
    written: Written,
    (tenants_dir, instances_dir): (PathBuf, PathBuf),
    provisioners: BTreeMap<String, Program>,
    tiers: BTreeSet<String>,
    hosts: BTreeMap<String, Host>,
    mut scope: Scope<'_, '_>,
) -> Lifecycle {
    scope.require(written.per_instance > 0, "per_instance", "at least 1 is needed");
    Lifecycle {
        tenants_dir,
        instances_dir,
        provisioners,
        credentials_hook: written.credentials_hook.map(|hook| program::hook(hook, scope.enter("credentials_hook"))),
        audit_log: scope.path(&written.audit_log),
        journal_dir: scope.path(&written.journal_dir),
        per_instance: written.per_instance,
        grace: positive(&mut scope, "grace", written.grace),
        postgres_tools: written.postgres_tools.iter().map(|folder| scope.path(folder)).collect(),
        tiers,
        hosts,
    }
}
