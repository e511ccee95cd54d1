//! PgBouncer's averages: what the tenants' counters gained in the last whole period, per second or per query.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::metrics::TenantStats;
use crate::tenant::Registry;

/// PgBouncer's default `stats_period`.
const PERIOD: Duration = Duration::from_secs(60);

/// The counters of a tenant that are averaged.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    pub transactions: u64,
    pub queries: u64,
    pub received: u64,
    pub sent: u64,
    pub query_micros: u64,
    pub wait_micros: u64,
}

impl Sample {
    pub fn of(stats: &TenantStats) -> Self {
        Sample {
            transactions: stats.transactions.load(Relaxed),
            queries: stats.queries.load(Relaxed),
            received: stats.bytes_received.load(Relaxed),
            sent: stats.bytes_sent.load(Relaxed),
            query_micros: stats.query_micros.load(Relaxed),
            wait_micros: stats.wait_micros.load(Relaxed),
        }
    }

    /// Counts, bytes and waits per second; busy time per query.
    fn average_since(&self, before: &Sample, period: Duration) -> Self {
        let gained = |now: u64, before: u64| now.saturating_sub(before);
        let per_second = |now, before| (gained(now, before) as f64 / period.as_secs_f64()) as u64;
        let queries = gained(self.queries, before.queries).max(1);
        Sample {
            transactions: per_second(self.transactions, before.transactions),
            queries: per_second(self.queries, before.queries),
            received: per_second(self.received, before.received),
            sent: per_second(self.sent, before.sent),
            query_micros: gained(self.query_micros, before.query_micros) / queries,
            wait_micros: per_second(self.wait_micros, before.wait_micros),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Averages {
    since: Option<Instant>,
    /// At the end of the last period, and the averages over it.
    tenants: HashMap<String, (Sample, Sample), ahash::RandomState>,
}

impl Averages {
    /// 0 in the first period, as PgBouncer's are.
    pub fn of(&self, tenant: &str) -> Sample {
        self.tenants.get(tenant).map_or_else(Sample::default, |(_, average)| *average)
    }

    pub fn tick(&mut self, registry: &Registry) {
        let now = Instant::now();
        let passed = self.since.map(|since| now.duration_since(since));
        if passed.is_some_and(|passed| passed < PERIOD) {
            return;
        }
        self.since = Some(now);
        let before = std::mem::take(&mut self.tenants);
        for tenant in registry.all() {
            let sample = Sample::of(&tenant.stats);
            let average = match (before.get(tenant.id.as_str()), passed) {
                (Some((before, _)), Some(passed)) => sample.average_since(before, passed),
                _ => Sample::default(),
            };
            self.tenants.insert(tenant.id.as_str().to_owned(), (sample, average));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_per_second_and_per_query() {
        let before = Sample { queries: 100, sent: 10, ..Sample::default() };
        let now = Sample { queries: 400, sent: 610, query_micros: 3000, wait_micros: 6000, ..before };
        let average = now.average_since(&before, Duration::from_secs(60));
        assert_eq!((average.queries, average.sent, average.query_micros, average.wait_micros), (5, 10, 10, 100));
    }
}
