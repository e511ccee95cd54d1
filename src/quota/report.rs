//! A tenant's use against its quotas, for people and programs that look.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Usage;
use crate::config;
use crate::metrics::{Label, QuotaName, TenantStats};

/// One quota of a tenant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuotaLine {
    /// The key in `[quota]` or `[pool]`.
    pub quota: &'static str,
    /// What limit and use are counted in: `clients`, `seconds`, `bytes/s`, ….
    pub unit: &'static str,
    /// None is no limit.
    pub limit: Option<f64>,
    /// Present use; none for limits of time and size, which are about one query or client each. Rates are averages of the
    /// last ten seconds.
    pub used: Option<f64>,
    /// How often somebody was refused, cancelled or disconnected for it, since the start.
    pub refused: u64,
}

impl QuotaLine {
    /// Use as a part of the limit; none where either is unknown.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.used? / self.limit?.max(f64::MIN_POSITIVE))
    }
}

/// All quotas of a tenant, those without a limit included, in the order of the documentation. `backends` are the tenant's
/// open ones now. Costs a few loads and one allocation.
pub fn report(record: &config::Tenant, usage: &Usage, stats: &TenantStats, backends: u32) -> Vec<QuotaLine> {
    let (quota, pool) = (&record.quota, &record.pool);
    let count = |limit: Option<u32>| limit.map(f64::from);
    let time = |limit: Option<Duration>| limit.map(|time| time.as_secs_f64());
    let running = usage.running.load(Relaxed).into();
    let lines = [
        (QuotaName::MaxClients, "clients", count(quota.max_clients), Some(usage.clients.load(Relaxed).into())),
        (QuotaName::MaxTransactions, "transactions", count(quota.max_transactions), Some(running)),
        (QuotaName::TransactionsPerSecond, "transactions/s", count(quota.transactions_per_second), Some(usage.rate(0))),
        (QuotaName::BytesPerSecond, "bytes/s", quota.bytes_per_second.map(|limit| limit as f64), Some(usage.rate(1))),
        (QuotaName::BackendSeconds, "s/min", count(quota.backend_seconds_per_minute), Some(usage.rate(2))),
        (QuotaName::MaxResult, "bytes", quota.max_result.map(|limit| limit as f64), None),
        (QuotaName::QueryTimeout, "seconds", time(quota.query_timeout), None),
        (QuotaName::TransactionTimeout, "seconds", time(quota.transaction_timeout), None),
        (QuotaName::IdleInTransaction, "seconds", time(quota.idle_in_transaction_timeout), None),
        (QuotaName::IdleSession, "seconds", time(quota.idle_session_timeout), None),
        (QuotaName::MaxBackends, "backends", Some(pool.max_backends.into()), Some(backends.into())),
        (QuotaName::QueueTimeout, "seconds", Some(pool.queue_timeout.as_secs_f64()), None),
        (QuotaName::MaxPins, "clients", count(pool.max_pins), Some(stats.pins.load(Relaxed) as f64)),
        (QuotaName::MaxPinTime, "seconds", time(pool.max_pin_time), None),
    ];
    let line = |(name, unit, limit, used): (QuotaName, _, _, _)| QuotaLine {
        quota: name.text(),
        unit,
        limit,
        used,
        refused: stats.refused[name.index()].load(Relaxed),
    };
    lines.into_iter().map(line).collect()
}
