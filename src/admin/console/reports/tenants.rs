//! Tenants and what they have: DATABASES, TENANTS, POOLS, USERS, INSTANCES.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::super::View;
use super::super::table::{Row, row};
use crate::config::{self, InstanceAddress, InstanceTls, TenantState};
use crate::pool::{Counts, Pool};
use crate::tenant::Tenant;

pub(super) fn sorted(view: View<'_>) -> Vec<Arc<Tenant>> {
    let mut tenants = view.registry.all();
    tenants.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    tenants
}

/// PgBouncer knows a database by one name: the tenant's, with the database where it is a further one of the tenant's.
pub(super) fn database_name(record: &config::Tenant, database: &str) -> String {
    match database == record.database {
        true => record.id.clone(),
        false => format!("{}/{database}", record.id),
    }
}

pub(super) fn host_and_port(address: &InstanceAddress) -> (String, u16) {
    match address {
        InstanceAddress::Tcp { host, port } => (host.clone(), *port),
        InstanceAddress::Unix { dir, port } => (dir.display().to_string(), *port),
    }
}

fn backends(counts: Counts) -> u32 {
    counts.idle + counts.active + counts.connecting
}

pub(super) fn databases(view: View<'_>) -> Vec<Row> {
    let row = |tenant: Arc<Tenant>| {
        let (record, standing) = (tenant.record(), tenant.state());
        let (host, port) = host_and_port(&record.instance.address);
        let pool = &record.pool;
        row![
            record.id.as_str(),
            host,
            port,
            record.database.as_str(),
            record.service.as_ref().map(|service| service.user.as_str()),
            pool.max_backends_per_role,
            pool.min_backends,
            0,
            pool.lifetime.as_secs(),
            pool.mode.text(),
            Option::<&str>::None,
            pool.max_backends,
            backends(view.pools.counts(&tenant)),
            record.quota.max_clients.unwrap_or_default(),
            tenant.stats.clients.load(Relaxed),
            standing.state == TenantState::Paused,
            standing.disabled || standing.state == TenantState::Suspended,
        ]
    };
    sorted(view).into_iter().map(row).collect()
}

pub(super) fn tenants(view: View<'_>) -> Vec<Row> {
    let row = |tenant: Arc<Tenant>| {
        let (record, stats, counts) = (tenant.record(), &tenant.stats, view.pools.counts(&tenant));
        let standing = tenant.state();
        row![
            record.id.as_str(),
            record.instance.name.as_str(),
            standing.state.text(),
            record.pool.mode.text(),
            stats.clients.load(Relaxed),
            stats.waiting.load(Relaxed),
            stats.pins.load(Relaxed),
            counts.active,
            counts.idle,
            counts.connecting,
            record.pool.max_backends,
            stats.queries.load(Relaxed),
            stats.transactions.load(Relaxed),
            stats.bytes_received.load(Relaxed),
            stats.bytes_sent.load(Relaxed),
            stats.wait_micros.load(Relaxed),
            stats.query_micros.load(Relaxed),
            stats.errors.load(Relaxed),
            stats.logins.load(Relaxed),
            stats.login_failures.load(Relaxed),
            record.tier.as_deref(),
            standing.disabled,
            standing.reason.as_deref(),
            standing.by.as_deref(),
        ]
    };
    sorted(view).into_iter().map(row).collect()
}

/// The limits that there are, by tenant.
pub(super) fn quotas(view: View<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for tenant in sorted(view) {
        let record = tenant.record();
        for line in tenant.quotas(backends(view.pools.counts(&tenant))) {
            let Some(limit) = line.limit else { continue };
            let percent = line.ratio().map(|ratio| (ratio * 100.0).round() as i64);
            rows.push(row![
                record.id.as_str(),
                record.tier.as_deref(),
                line.quota,
                line.unit,
                limit.to_string(),
                line.used.map(|used| format!("{:.1}", used).trim_end_matches(".0").to_owned()),
                percent,
                line.refused,
            ]);
        }
    }
    rows
}

/// The pools of one (tenant, database, role): clients' startup parameters are no matter of PgBouncer's.
#[derive(Default)]
struct Sum {
    clients: u32,
    counts: Counts,
    waited: Duration,
}

impl Sum {
    fn add(&mut self, pool: &Pool, now: Instant) {
        let counts = pool.counts();
        self.counts.idle += counts.idle;
        self.counts.active += counts.active;
        self.counts.connecting += counts.connecting;
        self.counts.waiting += counts.waiting;
        let waited = pool.waits_since().map(|since| now.saturating_duration_since(since));
        self.waited = self.waited.max(waited.unwrap_or_default());
    }
}

/// By database and role that backends log in as.
fn sums(view: View<'_>, tenant: &Arc<Tenant>) -> BTreeMap<(String, String), Sum> {
    let (record, now) = (tenant.record(), Instant::now());
    let mut sums: BTreeMap<(String, String), Sum> = BTreeMap::new();
    for pool in view.pools.pools(tenant) {
        let name = (database_name(&record, &pool.name.database), pool.name.role.clone());
        sums.entry(name).or_default().add(&pool, now);
    }
    sums
}

pub(super) fn pools(view: View<'_>) -> Vec<Row> {
    let mut clients: BTreeMap<(String, String), u32> = BTreeMap::new();
    for session in view.sessions.all() {
        let pool = &session.about.pool;
        let name = (database_name(&session.tenant.current(), &pool.name.database), pool.name.role.clone());
        *clients.entry(name).or_default() += 1;
    }
    let mut rows = Vec::new();
    for tenant in sorted(view) {
        let mode = tenant.record().pool.mode.text();
        for (name, mut sum) in sums(view, &tenant) {
            sum.clients = clients.get(&name).copied().unwrap_or_default();
            let (database, role) = name;
            let counts = sum.counts;
            rows.push(row![
                database,
                role,
                sum.clients.saturating_sub(counts.waiting),
                counts.waiting,
                0,
                0,
                counts.active,
                0,
                0,
                counts.idle,
                0,
                0,
                counts.connecting,
                sum.waited.as_secs(),
                sum.waited.subsec_micros(),
                mode,
                Option::<&str>::None,
            ]);
        }
    }
    rows
}

/// Roles are a tenant's own: `<role>.<tenant>`, those of the record and those that have logged in.
pub(super) fn users(view: View<'_>) -> Vec<Row> {
    let mut users: BTreeMap<(String, String), (u32, u32)> = BTreeMap::new();
    let mut rows = Vec::new();
    for session in view.sessions.all() {
        users.entry((session.tenant.id.to_string(), session.about.role.clone())).or_default().0 += 1;
    }
    for tenant in sorted(view) {
        let record = tenant.record();
        let id = record.id.as_str();
        for role in record.roles.keys() {
            users.entry((id.to_owned(), role.clone())).or_default();
        }
        for ((_, role), sum) in sums(view, &tenant) {
            users.entry((id.to_owned(), role)).or_default().1 += backends(sum.counts);
        }
        let end = (id.to_owned() + "\0", String::new());
        for ((_, role), (clients, backends)) in users.range((id.to_owned(), String::new())..end) {
            let (size, mode) = (record.pool.max_backends_per_role, record.pool.mode.text());
            rows.push(row![format!("{role}.{id}"), size, 0, mode, 0, *backends, 0, *clients]);
        }
    }
    rows
}

pub(super) fn instances(view: View<'_>) -> Vec<Row> {
    let config = view.config.load();
    let mut sums: BTreeMap<&str, (u32, Counts)> = BTreeMap::new();
    for tenant in view.registry.all() {
        let counts = view.pools.counts(&tenant);
        if let Some((name, _)) = config.instances.get_key_value(&tenant.record().instance.name) {
            let (tenants, sum) = sums.entry(name).or_default();
            *tenants += 1;
            sum.idle += counts.idle;
            sum.active += counts.active;
            sum.connecting += counts.connecting;
            sum.waiting += counts.waiting;
        }
    }
    let row = |instance: &Arc<config::Instance>| {
        let (tenants, sum) = sums.get(instance.name.as_str()).copied().unwrap_or_default();
        let tls = match instance.tls {
            InstanceTls::Off => "off",
            InstanceTls::Require => "require",
            InstanceTls::VerifyCa => "verify-ca",
            InstanceTls::VerifyFull => "verify-full",
        };
        row![
            instance.name.as_str(),
            instance.address.to_string(),
            tls,
            instance.region.as_deref(),
            tenants,
            instance.max_backends,
            sum.active,
            sum.idle,
            sum.connecting,
            sum.waiting,
        ]
    };
    config.instances.values().map(row).collect()
}
