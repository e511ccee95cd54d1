//! What the API says, as its answers are written in JSON; `pgtenant top` reads the same.

use serde::{Deserialize, Serialize};

use super::record::Record;
use crate::quota::QuotaLine;

/// The tenants that were asked for, the first of them, and the sums over all that there are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tenants {
    /// What the rates are of, in seconds before now.
    pub window_seconds: f64,
    pub draining: bool,
    pub version: String,
    /// Tenants that there are, and those that the filter picks.
    pub total: usize,
    pub matched: usize,
    /// Over all, whatever the filter.
    pub totals: Totals,
    pub tenants: Vec<TenantFigures>,
}

/// Sums over tenants.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Totals {
    pub clients: u64,
    pub waiting: u64,
    pub pins: u64,
    pub backends: Backends,
    pub rates: Rates,
    /// Tenants with a score above 0.
    pub hurting: usize,
}

/// One tenant in the list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TenantFigures {
    pub id: String,
    pub instance: String,
    pub region: Option<String>,
    pub tier: Option<String>,
    pub state: String,
    pub mode: String,
    /// Who hurts: 0 to 100.
    pub score: f64,
    /// The reasons, the weightiest first.
    pub why: Vec<String>,
    pub clients: u64,
    pub waiting: u64,
    /// Of those that wait now.
    pub longest_wait_seconds: f64,
    pub pins: u64,
    pub backends: Backends,
    /// Of the quota closest to its limit; 1 is all of it.
    pub highest_use: f64,
    pub quotas: Vec<Quota>,
    pub rates: Rates,
}

/// Backends by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backends {
    pub active: u64,
    pub idle: u64,
    pub connecting: u64,
}

impl Backends {
    pub fn all(&self) -> u64 {
        self.active + self.idle + self.connecting
    }
}

/// Per second.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Rates {
    pub queries: f64,
    pub transactions: f64,
    pub errors: f64,
    pub logins: f64,
    pub login_failures: f64,
    pub received_bytes: f64,
    pub sent_bytes: f64,
    /// Clients that waited for a backend, on average.
    pub wait_seconds: f64,
    /// Backends that were busy, on average.
    pub backend_seconds: f64,
}

impl Rates {
    pub(super) fn add(&mut self, other: &Rates) {
        self.queries += other.queries;
        self.transactions += other.transactions;
        self.errors += other.errors;
        self.logins += other.logins;
        self.login_failures += other.login_failures;
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
        self.wait_seconds += other.wait_seconds;
        self.backend_seconds += other.backend_seconds;
    }
}

/// A limit of a tenant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Quota {
    /// The key that sets it.
    pub quota: String,
    /// What limit and use are counted in.
    pub unit: String,
    /// None is no limit.
    pub limit: Option<f64>,
    /// None where it is about one query or client each.
    pub used: Option<f64>,
    /// Times that it was enforced.
    pub refused: u64,
}

impl Quota {
    /// 1 is all of it; 0 where either is unknown.
    pub fn used_part(&self) -> f64 {
        match (self.used, self.limit) {
            (Some(used), Some(limit)) if limit > 0.0 => used / limit,
            (Some(used), Some(_)) if used > 0.0 => 1.0,
            _ => 0.0,
        }
    }
}

impl From<&QuotaLine> for Quota {
    fn from(line: &QuotaLine) -> Self {
        let (quota, unit) = (line.quota.to_owned(), line.unit.to_owned());
        Quota { quota, unit, limit: line.limit, used: line.used, refused: line.refused }
    }
}

/// All about one tenant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Detail {
    /// With all its quotas; in the list those with a limit and a use, or that were enforced.
    pub tenant: TenantFigures,
    pub record: Record,
    pub pools: Vec<PoolFigures>,
    /// The first hundred.
    pub clients: Vec<Client>,
    pub pinned: Vec<Pinned>,
}

/// One pool: a role in a database.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PoolFigures {
    pub database: String,
    pub role: String,
    pub backends: Backends,
    pub waiting: u64,
    pub longest_wait_seconds: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Client {
    /// As in SHOW CLIENTS.
    pub id: u32,
    pub role: String,
    pub database: String,
    pub state: String,
    /// None on a Unix socket.
    pub address: Option<String>,
    pub tls: bool,
    pub application_name: String,
    pub connected_seconds: u64,
}

/// A client that keeps its backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pinned {
    pub client: u32,
    pub reasons: Vec<String>,
    pub seconds: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Instances {
    pub instances: Vec<Instance>,
}

/// One PostgreSQL server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Instance {
    pub name: String,
    pub address: String,
    pub region: Option<String>,
    pub tenants: u64,
    pub clients: u64,
    pub waiting: u64,
    pub backends: Backends,
    pub max_backends: u64,
    /// Backends that may still be opened, or are idle.
    pub headroom: u64,
    pub rates: Rates,
}
