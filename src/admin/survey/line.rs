//! One tenant in numbers, as cheap as it has to be where there are thousands.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::figures::{Backends, Quota, Rates, TenantFigures};
use super::quotas::{highest_use, quotas};
use super::score::{self, Score};
use crate::admin::console::View;
use crate::config;
use crate::metrics::TenantStats;
use crate::pool::Counts;
use crate::quota::QuotaLine;
use crate::tenant::Tenant;

/// A tenant's counters since the process began.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted {
    pub queries: u64,
    pub transactions: u64,
    pub errors: u64,
    pub logins: u64,
    pub login_failures: u64,
    pub received: u64,
    pub sent: u64,
    pub wait_micros: u64,
    pub query_micros: u64,
}

impl Counted {
    pub fn of(stats: &TenantStats) -> Self {
        Counted {
            queries: stats.queries.load(Relaxed),
            transactions: stats.transactions.load(Relaxed),
            errors: stats.errors.load(Relaxed),
            logins: stats.logins.load(Relaxed),
            login_failures: stats.login_failures.load(Relaxed),
            received: stats.bytes_received.load(Relaxed),
            sent: stats.bytes_sent.load(Relaxed),
            wait_micros: stats.wait_micros.load(Relaxed),
            query_micros: stats.query_micros.load(Relaxed),
        }
    }

    /// Per second since `before`, `window` ago.
    fn rates(&self, before: &Counted, window: Duration) -> Rates {
        let seconds = window.as_secs_f64();
        let rate = |now: u64, before: u64| match seconds >= 0.1 {
            true => now.saturating_sub(before) as f64 / seconds,
            false => 0.0,
        };
        Rates {
            queries: rate(self.queries, before.queries),
            transactions: rate(self.transactions, before.transactions),
            errors: rate(self.errors, before.errors),
            logins: rate(self.logins, before.logins),
            login_failures: rate(self.login_failures, before.login_failures),
            received_bytes: rate(self.received, before.received),
            sent_bytes: rate(self.sent, before.sent),
            wait_seconds: rate(self.wait_micros, before.wait_micros) / 1e6,
            backend_seconds: rate(self.query_micros, before.query_micros) / 1e6,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Line {
    pub tenant: Arc<Tenant>,
    pub record: Arc<config::Tenant>,
    pub counts: Counts,
    pub clients: u64,
    pub waiting: u64,
    pub pins: u64,
    pub longest_wait: Duration,
    pub rates: Rates,
    /// Of the quota that is closest to its limit; 1 is all of it.
    pub highest_use: f64,
    pub score: Score,
}

impl Line {
    /// `before` is what was counted when `window` began; none for a tenant that is new since.
    pub fn of(tenant: Arc<Tenant>, before: Option<&Counted>, window: Duration, now: Instant, view: View<'_>) -> Self {
        let (record, stats, counts) = (tenant.record(), &tenant.stats, view.pools.counts(&tenant));
        let gauge = |value: i64| u64::try_from(value).unwrap_or(0);
        let clients = gauge(stats.clients.load(Relaxed));
        let (waiting, pins) = (gauge(stats.waiting.load(Relaxed)), gauge(stats.pins.load(Relaxed)));
        let longest_wait = match waiting {
            0 => Duration::ZERO,
            _ => {
                let pools = view.pools.pools(&tenant);
                let waits = pools.iter().filter_map(|pool| pool.waits_since());
                waits.map(|since| now.saturating_duration_since(since)).max().unwrap_or_default()
            }
        };
        let counted = Counted::of(stats);
        let rates = before.map_or_else(Rates::default, |before| counted.rates(before, window));
        let highest_use = highest_use(&tenant, counts);
        let score = score::of(&score::Suffering {
            waiting,
            longest_wait,
            queue_timeout: record.pool.queue_timeout,
            max_backends: record.pool.max_backends,
            highest_use,
            pins,
            rates: &rates,
        });
        Line { tenant, record, counts, clients, waiting, pins, longest_wait, rates, highest_use, score }
    }

    /// What it is in now, the record's or an operator's word.
    pub fn state(&self) -> &'static str {
        self.tenant.state().state.text()
    }

    /// For the list: with the quotas that have a limit and a use, or were enforced.
    pub fn figures(&self) -> TenantFigures {
        self.with_quotas(|quota| quota.ratio().is_some() || quota.refused > 0)
    }

    /// The same with all quotas.
    pub fn detailed(&self) -> TenantFigures {
        self.with_quotas(|_| true)
    }

    fn with_quotas(&self, wanted: impl Fn(&QuotaLine) -> bool) -> TenantFigures {
        let (record, counts) = (&self.record, self.counts);
        TenantFigures {
            id: record.id.clone(),
            instance: record.instance.name.clone(),
            region: record.instance.region.clone(),
            tier: record.tier.clone(),
            state: self.state().to_owned(),
            mode: record.pool.mode.text().to_owned(),
            score: self.score.value,
            why: self.score.why.iter().map(|why| (*why).to_owned()).collect(),
            clients: self.clients,
            waiting: self.waiting,
            longest_wait_seconds: self.longest_wait.as_secs_f64(),
            pins: self.pins,
            backends: Backends {
                active: counts.active.into(),
                idle: counts.idle.into(),
                connecting: counts.connecting.into(),
            },
            highest_use: self.highest_use,
            quotas: quotas(&self.tenant, counts).iter().filter(|quota| wanted(quota)).map(Quota::from).collect(),
            rates: self.rates,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_and_never_negative() {
        let before = Counted { queries: 100, wait_micros: 0, errors: 7, ..Counted::default() };
        let now = Counted { queries: 600, wait_micros: 2_500_000, errors: 3, ..Counted::default() };
        let rates = now.rates(&before, Duration::from_secs(5));
        assert_eq!((rates.queries, rates.wait_seconds, rates.errors), (100.0, 0.5, 0.0));
        assert_eq!(now.rates(&before, Duration::ZERO).queries, 0.0, "nothing is known yet");
    }
}
