//! Tenants: who they are, how a connection names one, and how its roles are checked.

pub mod explain;
mod registry;
pub mod route;
mod verifiers;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, Guard};

pub use registry::{Change, Registry};
pub use verifiers::{Credential, LookupError, Verifiers};

use crate::config;
use crate::metrics::TenantStats;

/// A tenant's name, checked when its record was read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

impl TenantId {
    pub fn new(id: &str) -> Self {
        TenantId(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tenant as long as it stays at the same place. A move to another instance or database makes another `Tenant`.
#[derive(Debug)]
pub struct Tenant {
    pub id: TenantId,
    record: ArcSwap<config::Tenant>,
    /// Outlives moves and reloads.
    pub stats: Arc<TenantStats>,
    retired: AtomicBool,
}

impl Tenant {
    fn new(record: Arc<config::Tenant>, stats: Arc<TenantStats>) -> Self {
        Tenant { id: TenantId::new(&record.id), record: ArcSwap::new(record), stats, retired: AtomicBool::new(false) }
    }

    /// The record as it is now.
    pub fn record(&self) -> Arc<config::Tenant> {
        self.record.load_full()
    }

    /// The same for a quick look, on a request's way: without counting a reference, and not to be kept.
    pub fn current(&self) -> Guard<Arc<config::Tenant>> {
        self.record.load()
    }

    /// It was removed, suspended or moved: its sessions end when their transaction does.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }
}

/// Whether sessions and backends of the old record can go on under the new one.
fn same_place(old: &config::Tenant, new: &config::Tenant) -> bool {
    let instance = |record: &config::Tenant| config::Instance { max_backends: 0, ..(*record.instance).clone() };
    instance(old) == instance(new)
        && old.database == new.database
        && old.databases == new.databases
        && old.service == new.service
        && old.pool.mode == new.pool.mode
        && new.state == config::TenantState::Active
}
