//! Tenants: who they are, how a connection names one, and how its roles are checked.

pub mod explain;
mod registry;
pub mod route;
mod standing;
mod verifiers;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

pub use registry::{Change, Registry};
pub use standing::Standing;
pub use verifiers::{Credential, LookupError, Verifiers};

use crate::config;
use crate::metrics::TenantStats;
use crate::quota::{Gate, Gates, QuotaLine, Usage, report};
use crate::wire::PgError;

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
    /// Outlives moves and reloads, as `usage` does.
    pub stats: Arc<TenantStats>,
    pub usage: Arc<Usage>,
    standing: watch::Sender<Arc<Standing>>,
    /// What quotas and state ask for on a request's way; see [`Gates`].
    gates: AtomicU32,
    retired: AtomicBool,
}

impl Tenant {
    fn new(record: Arc<config::Tenant>, standing: Standing, stats: Arc<TenantStats>, usage: Arc<Usage>) -> Self {
        let gates = AtomicU32::new((Gates::of(&record.quota) | standing.gates()).bits());
        Tenant {
            id: TenantId::new(&record.id),
            record: ArcSwap::new(record),
            stats,
            usage,
            standing: watch::Sender::new(Arc::new(standing)),
            gates,
            retired: AtomicBool::new(false),
        }
    }

    /// What holds for the tenant now: an operator's word, or the record's.
    pub fn state(&self) -> Arc<Standing> {
        self.standing.borrow().clone()
    }

    /// The same, for somebody who waits for it to change.
    pub fn watch_state(&self) -> watch::Receiver<Arc<Standing>> {
        self.standing.subscribe()
    }

    /// An operator's word, over the record's state until that is changed; none: the record's state again. Whoever calls
    /// this has to see to the tenant's sessions: `admin::states::set` does both.
    pub fn set_state(&self, standing: Option<Standing>) {
        let standing = standing.unwrap_or_else(|| Standing::of(&self.record.load()));
        self.stand(standing, &self.record.load());
    }

    /// The gates first: whoever is woken looks at them.
    fn stand(&self, standing: Standing, record: &config::Tenant) {
        self.gates.store((Gates::of(&record.quota) | standing.gates()).bits(), Ordering::Release);
        self.standing.send_replace(Arc::new(standing));
    }

    /// Until the tenant is no longer paused, or has another place.
    ///
    /// # Errors
    /// What a client is told that has waited as long as it may ([`config::Quota::pause_max`]).
    pub async fn resumed(&self) -> Result<(), PgError> {
        let mut standing = self.watch_state();
        let resumed = standing.wait_for(|_| !self.gates().has(Gate::Paused) || self.is_retired());
        // The sender is our own: it is there as long as we are.
        match tokio::time::timeout(self.current().quota.pause_max, resumed).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.state().refusal(self.id.as_str())),
        }
    }

    /// What has to be looked at on a request's way: one load.
    pub fn gates(&self) -> Gates {
        Gates::from_bits(self.gates.load(Ordering::Relaxed))
    }

    /// Use against quotas; `backends` are the tenant's open ones now.
    pub fn quotas(&self, backends: u32) -> Vec<QuotaLine> {
        report(&self.current(), &self.usage, &self.stats, backends)
    }

    /// Takes over a record of the same place.
    fn adopt(&self, record: &Arc<config::Tenant>) {
        let old = self.record.swap(record.clone());
        let before = self.state();
        let standing = before.after(&old, record).unwrap_or_else(|| (*before).clone());
        self.stand(standing, record);
        self.usage.adopt(&old.quota, &record.quota, std::time::Instant::now());
    }

    /// The record as it is now.
    pub fn record(&self) -> Arc<config::Tenant> {
        self.record.load_full()
    }

    /// The same for a quick look, on a request's way: without counting a reference, and not to be kept.
    pub fn current(&self) -> Guard<Arc<config::Tenant>> {
        self.record.load()
    }

    /// It has another place now, or none: who waits for its state to change is woken.
    fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.standing.send_modify(|_| {});
    }

    /// It was removed or moved: its sessions end when their transaction does.
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
}
