//! Tenants on `/metrics`: the most active ones by name, the rest summed as `_other`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering::Relaxed};

use super::labels::{Label, QuotaName};
use super::text::{Micros, Text, label};

/// One tenant's figures. Lives as long as the tenant, across reloads, and is added to on the data path (Relaxed).
#[derive(Debug, Default)]
pub struct TenantStats {
    /// Logged-in clients now.
    pub clients: AtomicI64,
    /// Of these, waiting for a backend now.
    pub waiting: AtomicI64,
    /// Of these, keeping a backend in transaction mode now.
    pub pins: AtomicI64,
    pub queries: AtomicU64,
    pub transactions: AtomicU64,
    /// Bytes from and to clients, without TLS.
    pub bytes_received: AtomicU64,
    pub bytes_sent: AtomicU64,
    /// Microseconds that clients waited for a backend.
    pub wait_micros: AtomicU64,
    /// Microseconds that backends were busy.
    pub query_micros: AtomicU64,
    /// Errors that clients were sent, the backend's and ours.
    pub errors: AtomicU64,
    /// Successful logins: a sign of life. They have no series, to keep those of a tenant to a dozen.
    pub logins: AtomicU64,
    pub login_failures: AtomicU64,
    /// Clients that were refused, cancelled or disconnected for a quota, by [`QuotaName`].
    pub refused: [AtomicU64; QuotaName::ALL.len()],
    rank: Rank,
}

impl TenantStats {
    /// Counts a client that was refused, cancelled or disconnected for a quota.
    pub fn refuse(&self, quota: QuotaName) {
        self.refused[quota.index()].fetch_add(1, Relaxed);
    }
}

/// What the last scrapes thought of the tenant; written by [`Board`] alone.
#[derive(Debug, Default)]
struct Rank {
    activity: AtomicU64,
    score: AtomicU64,
    place: AtomicU8,
}

/// Where the tenant stood in the last scrape; 0 before its first.
const PLACE_OTHER: u8 = 1;
const PLACE_LISTED: u8 = 2;

/// One tenant at a scrape.
#[derive(Debug, Clone, Copy)]
pub struct TenantSample<'a> {
    pub tenant: &'a str,
    /// Name of its instance.
    pub instance: &'a str,
    pub region: Option<&'a str>,
    pub stats: &'a TenantStats,
    pub backends_idle: u64,
    pub backends_active: u64,
    pub backends_connecting: u64,
    /// Of the quota closest to its limit; 1 is all of it.
    pub highest_use: f64,
}

/// A tenant's quota at a scrape.
#[derive(Debug, Clone, Copy)]
pub struct QuotaSample<'a> {
    /// The key that sets it.
    pub quota: &'a str,
    /// None: no limit, and no sample.
    pub limit: Option<f64>,
    pub used: Option<f64>,
    /// Times that it was enforced.
    pub refused: u64,
}

/// The tenant label of the sum; no tenant's id can begin with `_`.
const OTHER: &str = "_other";

type Read<T> = fn(&TenantSample<'_>) -> T;

const GAUGES: [(&str, &str, Read<i64>); 3] = [
    ("pgtenant_tenant_clients", "Logged-in clients of the tenant.", |t| t.stats.clients.load(Relaxed)),
    ("pgtenant_tenant_clients_waiting", "Clients of the tenant that wait for a backend.", |t| {
        t.stats.waiting.load(Relaxed)
    }),
    ("pgtenant_tenant_clients_pinned", "Clients of the tenant that keep a backend in transaction mode.", |t| {
        t.stats.pins.load(Relaxed)
    }),
];

/// Connects under way are shown per instance only, to keep the series of a tenant to a dozen.
const BACKENDS: [(&str, Read<u64>); 2] = [("idle", |t| t.backends_idle), ("active", |t| t.backends_active)];

const HIGHEST_USE: (&str, &str) =
    ("pgtenant_tenant_quota_highest_use_ratio", "Use of the tenant's quota that is closest to its limit, 1 being all.");

struct Counter {
    name: &'static str,
    help: &'static str,
    unit: Unit,
    read: Read<u64>,
}

enum Unit {
    One,
    Micros,
}

#[rustfmt::skip]
const COUNTERS: [Counter; 8] = [
    Counter { name: "pgtenant_tenant_queries_total", help: "Queries of the tenant.",
              unit: Unit::One, read: |t| t.stats.queries.load(Relaxed) },
    Counter { name: "pgtenant_tenant_transactions_total", help: "Transactions of the tenant.",
              unit: Unit::One, read: |t| t.stats.transactions.load(Relaxed) },
    Counter { name: "pgtenant_tenant_received_bytes_total", help: "Bytes received from the tenant's clients.",
              unit: Unit::One, read: |t| t.stats.bytes_received.load(Relaxed) },
    Counter { name: "pgtenant_tenant_sent_bytes_total", help: "Bytes sent to the tenant's clients.",
              unit: Unit::One, read: |t| t.stats.bytes_sent.load(Relaxed) },
    Counter { name: "pgtenant_tenant_wait_seconds_total", help: "Time that the tenant's clients waited for a backend.",
              unit: Unit::Micros, read: |t| t.stats.wait_micros.load(Relaxed) },
    Counter { name: "pgtenant_tenant_query_seconds_total", help: "Time that the tenant's backends were busy.",
              unit: Unit::Micros, read: |t| t.stats.query_micros.load(Relaxed) },
    Counter { name: "pgtenant_tenant_errors_total", help: "Errors that the tenant's clients were sent.",
              unit: Unit::One, read: |t| t.stats.errors.load(Relaxed) },
    Counter { name: "pgtenant_tenant_login_failures_total", help: "Failed logins at the tenant.",
              unit: Unit::One, read: |t| t.stats.login_failures.load(Relaxed) },
];

impl Counter {
    fn write(&self, text: &mut Text, labels: &str, value: u64) {
        match self.unit {
            Unit::One => text.sample(labels, value),
            Unit::Micros => text.sample(labels, Micros(value)),
        }
    }
}

/// The counters in their order, and behind them the refusals by quota.
type Counts = [u64; COUNTERS.len() + QuotaName::ALL.len()];

fn counts(tenant: &TenantSample<'_>) -> Counts {
    let mut counts = Counts::default();
    let (counters, refused) = counts.split_at_mut(COUNTERS.len());
    counters.iter_mut().zip(&COUNTERS).for_each(|(count, counter)| *count = (counter.read)(tenant));
    refused.iter_mut().zip(&tenant.stats.refused).for_each(|(count, refused)| *count = refused.load(Relaxed));
    counts
}

/// Decides who is listed, and keeps the counters of `_other` from ever falling.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// Added to the sum over the tenants in `_other`: what tenants counted that have left it, less what they had
    /// counted when they came down from the list. Wraps; the sum of both does not.
    carry: Counts,
    last: Counts,
}

impl Board {
    /// Writes the series of all tenants.
    pub(super) fn write(&mut self, text: &mut Text, tenants: &[TenantSample<'_>], max_series: usize) {
        let (listed, rest) = rank(tenants, max_series);
        let counts = self.other_counts(&listed, &rest);
        let labels: Vec<String> = listed.iter().map(|tenant| labels(tenant)).collect();
        let mut other = String::new();
        label(&mut other, "tenant", OTHER);

        for (name, help, read) in GAUGES {
            text.family(name, "gauge", help);
            for (tenant, labels) in listed.iter().zip(&labels) {
                text.sample(labels, read(tenant));
            }
            text.sample(&other, rest.iter().map(|tenant| read(tenant)).sum::<i64>());
        }
        text.family("pgtenant_tenant_backends", "gauge", "Backends of the tenant by state.");
        for (state, read) in BACKENDS {
            for (tenant, labels) in listed.iter().zip(&labels) {
                text.sample(&format!("{labels},state=\"{state}\""), read(tenant));
            }
            text.sample(&format!("{other},state=\"{state}\""), rest.iter().map(|tenant| read(tenant)).sum::<u64>());
        }
        let (name, help) = HIGHEST_USE;
        text.family(name, "gauge", help);
        for (tenant, labels) in listed.iter().zip(&labels) {
            text.sample(labels, tenant.highest_use);
        }
        // That of the one among them that is closest: a sum would mean nothing.
        text.sample(&other, rest.iter().map(|tenant| tenant.highest_use).fold(0.0, f64::max));
        for (counter, sum) in COUNTERS.iter().zip(counts) {
            text.family(counter.name, "counter", counter.help);
            for (tenant, labels) in listed.iter().zip(&labels) {
                counter.write(text, labels, (counter.read)(tenant));
            }
            counter.write(text, &other, sum);
        }
        write_quotas(text, &listed, &labels, &counts[COUNTERS.len()..]);
    }

    /// The counters of `_other`. A tenant that comes or goes would make the plain sum jump, which Prometheus takes
    /// for traffic or, where it falls, for a restart: both are carried over. So rates are right; a total is not the
    /// sum over today's members.
    fn other_counts(&mut self, listed: &[&TenantSample<'_>], rest: &[&TenantSample<'_>]) -> Counts {
        for tenant in listed {
            if tenant.stats.rank.place.swap(PLACE_LISTED, Relaxed) == PLACE_OTHER {
                self.add_carry(tenant, u64::wrapping_add);
            }
        }
        let mut sums = Counts::default();
        for tenant in rest {
            if tenant.stats.rank.place.swap(PLACE_OTHER, Relaxed) == PLACE_LISTED {
                self.add_carry(tenant, u64::wrapping_sub);
            }
            for (sum, count) in sums.iter_mut().zip(counts(tenant)) {
                *sum = sum.wrapping_add(count);
            }
        }
        for (index, sum) in sums.iter_mut().enumerate() {
            let fallen = self.last[index].wrapping_sub(sum.wrapping_add(self.carry[index]));
            // Tenants were removed with all they had counted. A difference of more than half the range is a rise.
            if fallen <= u64::MAX / 2 {
                self.carry[index] = self.carry[index].wrapping_add(fallen);
            }
            *sum = sum.wrapping_add(self.carry[index]);
        }
        self.last = sums;
        sums
    }

    fn add_carry(&mut self, tenant: &TenantSample<'_>, add: fn(u64, u64) -> u64) {
        for (carry, count) in self.carry.iter_mut().zip(counts(tenant)) {
            *carry = add(*carry, count);
        }
    }
}

/// Splits the tenants into those that get series of their own and the rest.
///
/// Listed are tenants with clients, backends, or queries and logins of late: the score is their number since the last
/// scrape plus 15/16 of what it was, so one query is forgotten after 15 minutes and a million after an hour and a
/// quarter (at a scrape each 15 s). Where there are too many, those with the higher score win, and one that is listed
/// counts double, so that two alike do not change places at every scrape.
fn rank<'a, 'b>(
    tenants: &'b [TenantSample<'a>],
    max_series: usize,
) -> (Vec<&'b TenantSample<'a>>, Vec<&'b TenantSample<'a>>) {
    let mut active = Vec::new();
    let mut rest = Vec::new();
    for tenant in tenants {
        let rank = &tenant.stats.rank;
        let stats = tenant.stats;
        let activity = [&stats.queries, &stats.logins, &stats.login_failures]
            .iter()
            .fold(0_u64, |sum, count| sum.wrapping_add(count.load(Relaxed)));
        let recent = activity.saturating_sub(rank.activity.swap(activity, Relaxed)).saturating_mul(256);
        let before = rank.score.load(Relaxed);
        let score = (before - before.div_ceil(16)).saturating_add(recent);
        rank.score.store(score, Relaxed);
        let present = stats.clients.load(Relaxed) > 0 || tenant.backends_idle + tenant.backends_active > 0;
        if score > 0 || present {
            let weight = if rank.place.load(Relaxed) == PLACE_LISTED { 2 } else { 1 };
            active.push((score.saturating_add(1).saturating_mul(weight), tenant));
        } else {
            rest.push(tenant);
        }
    }
    active.sort_unstable_by(|(a, first), (b, second)| b.cmp(a).then_with(|| first.tenant.cmp(second.tenant)));
    let unlisted = active.split_off(max_series.min(active.len()));
    rest.extend(unlisted.into_iter().map(|(_, tenant)| tenant));
    (active.into_iter().map(|(_, tenant)| tenant).collect(), rest)
}

/// For each tenant the quotas that it was refused for: few have more than a handful.
fn write_quotas(text: &mut Text, listed: &[&TenantSample<'_>], labels: &[String], others: &[u64]) {
    text.family(
        "pgtenant_tenant_quota_refused_total",
        "counter",
        "Clients of the tenant that were refused, cancelled or disconnected for a quota.",
    );
    for (tenant, labels) in listed.iter().zip(labels) {
        for quota in QuotaName::ALL {
            let refused = tenant.stats.refused[quota.index()].load(Relaxed);
            if refused > 0 {
                text.sample(&format!("{labels},quota=\"{}\"", quota.text()), refused);
            }
        }
    }
    for (quota, refused) in QuotaName::ALL.iter().zip(others).filter(|(_, refused)| **refused > 0) {
        text.sample(&format!("tenant=\"{OTHER}\",quota=\"{}\"", quota.text()), refused);
    }
}

fn labels(tenant: &TenantSample<'_>) -> String {
    let mut labels = String::new();
    label(&mut labels, "tenant", tenant.tenant);
    label(&mut labels, "instance_name", tenant.instance);
    if let Some(region) = tenant.region {
        label(&mut labels, "region", region);
    }
    labels
}

/// Writes the backends of all tenants, listed or not, by instance and state.
pub(super) fn write_instances(text: &mut Text, tenants: &[TenantSample<'_>]) {
    let mut instances: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
    for tenant in tenants {
        let [idle, active, connecting] = instances.entry(tenant.instance).or_default();
        *idle += tenant.backends_idle;
        *active += tenant.backends_active;
        *connecting += tenant.backends_connecting;
    }
    text.family("pgtenant_backends", "gauge", "Connections to PostgreSQL by instance and state.");
    for (instance, counts) in instances {
        for (state, count) in ["idle", "active", "connecting"].into_iter().zip(counts) {
            let mut labels = String::new();
            label(&mut labels, "instance_name", instance);
            label(&mut labels, "state", state);
            text.sample(&labels, count);
        }
    }
}

/// Writes everything about one tenant, listed or not, and leaves the ranks as they are.
pub(super) fn write_one(text: &mut Text, tenant: &TenantSample<'_>, quotas: &[QuotaSample<'_>]) {
    let labels = labels(tenant);
    for (name, help, read) in GAUGES {
        text.family(name, "gauge", help);
        text.sample(&labels, read(tenant));
    }
    text.family("pgtenant_tenant_backends", "gauge", "Backends of the tenant by state.");
    for (state, read) in BACKENDS {
        text.sample(&format!("{labels},state=\"{state}\""), read(tenant));
    }
    text.sample(&format!("{labels},state=\"connecting\""), tenant.backends_connecting);
    let (name, help) = HIGHEST_USE;
    text.family(name, "gauge", help);
    text.sample(&labels, tenant.highest_use);
    for counter in &COUNTERS {
        text.family(counter.name, "counter", counter.help);
        counter.write(text, &labels, (counter.read)(tenant));
    }
    text.family("pgtenant_tenant_logins_total", "counter", "Successful logins at the tenant.");
    text.sample(&labels, tenant.stats.logins.load(Relaxed));
    let mut of_quotas = |name, kind, help, value: fn(&QuotaSample<'_>) -> Option<f64>| {
        text.family(name, kind, help);
        for (quota, value) in quotas.iter().filter_map(|quota| Some((quota, value(quota)?))) {
            let mut labels = labels.clone();
            label(&mut labels, "quota", quota.quota);
            text.sample(&labels, value);
        }
    };
    of_quotas("pgtenant_tenant_quota_limit", "gauge", "The tenant's limits, times in seconds.", |quota| quota.limit);
    of_quotas("pgtenant_tenant_quota_used", "gauge", "What the tenant uses of them now.", |quota| quota.used);
    of_quotas("pgtenant_tenant_quota_refused_total", "counter", "Times that they were enforced.", |quota| {
        Some(quota.refused as f64)
    });
}
