//! What operations can see: process-wide series in a registry, tenants' figures written at scrape.
//!
//! Built once in `app` and handed down. The number of series is bounded: labels are closed lists (`labels`),
//! instances come from the configuration, and tenants are listed up to a cap ([`Metrics::encode`]).

mod backup;
mod instance;
mod labels;
mod process;
mod tenants;
mod text;

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use prometheus::{
    Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use backup::BackupFigures;
pub use instance::{InstanceMetrics, TierMetrics};
pub use labels::{
    AuthMethod, AuthResult, CancelResult, ConnectResult, ErrorSource, Label, Outcome, Pin, ProtocolViolation,
    QuotaName, Refusal, SpanResult, TlsVersion,
};
pub use tenants::{QuotaSample, TenantSample, TenantStats};

use instance::Families;
use tenants::Board;
use text::Text;

/// The tier label of tenants that have none.
const NO_TIER: &str = "none";

/// All series of this process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    instances: Families,
    known_instances: Mutex<BTreeMap<String, Arc<InstanceMetrics>>>,
    /// By instance and tier.
    known_tiers: Mutex<BTreeMap<(String, String), Arc<TierMetrics>>>,
    max_backends: IntGaugeVec,
    /// Since when what is in use may differ from what is in the files.
    stale_since: Mutex<Option<Instant>>,
    staleness: Gauge,
    board: Mutex<Board>,
    clients: IntGauge,
    pools: IntGauge,
    logins: IntGauge,
    /// Connections accepted, the refused ones included.
    pub connections_accepted: IntCounter,
    /// Connections closed before their login began.
    pub connections_refused: Counters<Refusal>,
    /// CancelRequests.
    pub cancel_requests: Counters<CancelResult>,
    pub protocol_violations: Counters<ProtocolViolation>,
    tls_handshakes: IntCounterVec,
    auth: IntCounterVec,
    errors: IntCounterVec,
    spans: Counters<SpanResult>,
    reloads: Counters<Outcome>,
    reload_successful: IntGauge,
    reload_time: Gauge,
    certificates: IntGaugeVec,
    draining: IntGauge,
    backups: backup::Families,
}

impl Metrics {
    /// Builds the registry with every series in it.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let r = &registry;
        register_constants(r);
        Arc::new(Self {
            instances: Families::register(r),
            known_instances: Mutex::default(),
            known_tiers: Mutex::default(),
            max_backends: gauge_vec(
                r,
                "pgtenant_instance_max_backends",
                "Backends that the instance may have, all tenants together.",
                &["instance_name"],
            ),
            stale_since: Mutex::default(),
            staleness: seconds_gauge(
                r,
                "pgtenant_registry_stale_seconds",
                "For how long the tenants in use may have been others than those on record; 0 while they are the same.",
            ),
            board: Mutex::default(),
            clients: gauge(r, "pgtenant_clients", "Logged-in clients."),
            pools: gauge(r, "pgtenant_pools", "Pools that somebody uses or may use again."),
            logins: gauge(r, "pgtenant_logins_in_progress", "Client connections between accept and ReadyForQuery."),
            connections_accepted: counter(r, "pgtenant_connections_accepted_total", "Client connections accepted."),
            connections_refused: Counters::register(
                r,
                "pgtenant_connections_refused_total",
                "Client connections closed before their login began.",
                "reason",
            ),
            cancel_requests: Counters::register(r, "pgtenant_cancel_requests_total", "CancelRequests.", "result"),
            protocol_violations: Counters::register(
                r,
                "pgtenant_protocol_violations_total",
                "Messages that the protocol does not allow.",
                "kind",
            ),
            tls_handshakes: counter_vec(
                r,
                "pgtenant_tls_handshakes_total",
                "TLS handshakes with clients.",
                &["result", "version"],
            ),
            auth: counter_vec(r, "pgtenant_auth_total", "Logins of clients.", &["method", "result"]),
            errors: counter_vec(
                r,
                "pgtenant_errors_total",
                "Errors that clients were sent, by SQLSTATE class and by who made them.",
                &["class", "source"],
            ),
            spans: Counters::register(
                r,
                "pgtenant_spans_total",
                "Spans that were to be kept, by what became of them.",
                "result",
            ),
            reloads: Counters::register(r, "pgtenant_reload_total", "Reloads of the configuration.", "result"),
            reload_successful: gauge(
                r,
                "pgtenant_config_last_reload_successful",
                "1 if the last load of the configuration worked, 0 if the one before it serves on.",
            ),
            reload_time: seconds_gauge(
                r,
                "pgtenant_config_last_reload_success_timestamp_seconds",
                "When the configuration in use was loaded.",
            ),
            certificates: register(
                r,
                IntGaugeVec::new(
                    Opts::new(
                        "pgtenant_certificate_not_after_timestamp_seconds",
                        "When a certificate served to clients expires.",
                    ),
                    &["name"],
                ),
            ),
            backups: backup::Families::register(r),
            draining: gauge(r, "pgtenant_draining", "1 while the process finishes its sessions before it ends."),
            registry,
        })
    }

    /// The series of one instance, made at the first call. Keep what it returns: this takes a lock.
    pub fn instance(&self, name: &str) -> Arc<InstanceMetrics> {
        let mut known = self.known_instances.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(instance) = known.get(name) {
            return instance.clone();
        }
        let instance = Arc::new(self.instances.instance(name));
        known.insert(name.to_owned(), instance.clone());
        instance
    }

    /// The series of one tier at one instance, made at the first call; none: of tenants without a tier.
    pub fn tier(&self, instance: &str, tier: Option<&str>) -> Arc<TierMetrics> {
        let tier = tier.unwrap_or(NO_TIER);
        let mut known = self.known_tiers.lock().unwrap_or_else(PoisonError::into_inner);
        let made = known.entry((instance.to_owned(), tier.to_owned()));
        made.or_insert_with(|| Arc::new(self.instances.tier(instance, tier))).clone()
    }

    /// Replaces the instances' bounds on backends.
    pub fn set_max_backends<'a>(&self, instances: impl IntoIterator<Item = (&'a str, u32)>) {
        self.max_backends.reset();
        for (name, max) in instances {
            self.max_backends.with_label_values(&[name]).set(max.into());
        }
    }

    /// Takes an instance's series off once the configuration no longer names it.
    pub fn forget_instance(&self, name: &str) {
        let mut tiers = self.known_tiers.lock().unwrap_or_else(PoisonError::into_inner);
        tiers.retain(|(instance, tier), _| {
            if instance == name {
                self.instances.remove_tier(instance, tier);
            }
            instance != name
        });
        drop(tiers);
        let mut known = self.known_instances.lock().unwrap_or_else(PoisonError::into_inner);
        if known.remove(name).is_some() {
            self.instances.remove(name);
        }
    }

    /// Counts a client connection until the returned value is dropped.
    #[must_use = "the client is counted only while this lives"]
    pub fn client(&self) -> Held {
        Held::new(&self.clients)
    }

    /// Counts a login in progress until the returned value is dropped.
    #[must_use = "the login is counted only while this lives"]
    pub fn login(&self) -> Held {
        Held::new(&self.logins)
    }

    /// Counts a pool until the returned value is dropped.
    #[must_use = "the pool is counted only while this lives"]
    pub fn pool(&self) -> Held {
        Held::new(&self.pools)
    }

    /// Counts one finished or failed TLS handshake.
    pub fn tls_handshake(&self, outcome: Outcome, version: TlsVersion) {
        self.tls_handshakes.with_label_values(&[outcome.text(), version.text()]).inc();
    }

    /// Counts one login that ended.
    pub fn auth(&self, method: AuthMethod, result: AuthResult) {
        self.auth.with_label_values(&[method.text(), result.text()]).inc();
    }

    /// Counts one ErrorResponse to a client by the class of its SQLSTATE.
    pub fn error(&self, source: ErrorSource, sqlstate: &str) {
        self.errors.with_label_values(&[labels::sqlstate_class(sqlstate), source.text()]).inc();
    }

    /// Notes the configuration that the process starts with, which is not a reload.
    pub fn loaded(&self) {
        self.reload_successful.set(1);
        self.reload_time.set(unix_time());
        *self.stale_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Counts a reload and notes whether what is in use is what is in the files.
    pub fn reloaded(&self, outcome: Outcome) {
        self.reloads.inc(outcome);
        match outcome {
            Outcome::Ok => self.loaded(),
            Outcome::Failed => {
                self.reload_successful.set(0);
                self.stale_since.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
            }
        }
    }

    /// Counts spans that were to be kept.
    pub fn spans(&self, result: SpanResult, spans: u64) {
        self.spans.add(result, spans);
    }

    /// Replaces the certificates shown: name and end of validity in Unix seconds.
    pub fn set_certificates<'a>(&self, certificates: impl IntoIterator<Item = (&'a str, i64)>) {
        self.certificates.reset();
        for (name, not_after) in certificates {
            self.certificates.with_label_values(&[name]).set(not_after);
        }
    }

    /// Replaces what is known of backups.
    pub fn set_backups(&self, figures: &BackupFigures) {
        self.backups.set(figures);
    }

    /// Shows that the process is draining, for good.
    pub fn set_draining(&self) {
        self.draining.set(1);
    }

    /// Everything in Prometheus' text format 0.0.4. At most `max_series` tenants have series of their own (a dozen each,
    /// and two for each quota), the most active first; the others are summed as `tenant="_other"`. Takes a lock and about
    /// 10 ms for 10,000 tenants: not for a thread that serves clients.
    #[must_use]
    pub fn encode(&self, tenants: &[TenantSample<'_>], max_series: usize) -> String {
        let stale_since = *self.stale_since.lock().unwrap_or_else(PoisonError::into_inner);
        self.staleness.set(stale_since.map_or(0.0, |since| since.elapsed().as_secs_f64()));
        let mut out = String::with_capacity(64 * 1024);
        TextEncoder::new()
            .encode_utf8(&self.registry.gather(), &mut out)
            .expect("families from a registry encode into a String");
        let mut text = Text::after(out);
        process::write(&mut text);
        tenants::write_instances(&mut text, tenants);
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.write(&mut text, tenants, max_series);
        text.finish()
    }

    /// One tenant's figures in the same format: those of [`Metrics::encode`] and what would be too many series there.
    #[must_use]
    pub fn encode_tenant(tenant: &TenantSample<'_>, quotas: &[QuotaSample<'_>]) -> String {
        let mut text = Text::default();
        tenants::write_one(&mut text, tenant, quotas);
        text.finish()
    }
}

/// A gauge that is one higher while this lives, so that no way out of a function can forget to count down.
#[derive(Debug)]
pub struct Held(IntGauge);

impl Held {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A counter for each value of a label, all there from the start so that a rate sees the first increment too.
#[derive(Debug)]
pub struct Counters<L> {
    children: Vec<IntCounter>,
    label: PhantomData<L>,
}

impl<L: Label> Counters<L> {
    fn register(registry: &Registry, name: &str, help: &str, label: &str) -> Self {
        let family = counter_vec(registry, name, help, &[label]);
        let children = L::ALL.iter().map(|value| family.with_label_values(&[value.text()])).collect();
        Self { children, label: PhantomData }
    }

    pub fn inc(&self, label: L) {
        self.add(label, 1);
    }

    pub fn add(&self, label: L, number: u64) {
        self.children[label.index()].inc_by(number);
    }

    #[must_use]
    pub fn get(&self, label: L) -> u64 {
        self.children[label.index()].get()
    }
}

fn register<C>(registry: &Registry, collector: prometheus::Result<C>) -> C
where
    C: prometheus::core::Collector + Clone + 'static,
{
    let collector = collector.expect("names and labels are fixed and valid");
    registry.register(Box::new(collector.clone())).expect("each name is registered once");
    collector
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help))
}

fn counter_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(name, help))
}

fn seconds_gauge(registry: &Registry, name: &str, help: &str) -> Gauge {
    register(registry, Gauge::new(name, help))
}

fn histogram_vec(registry: &Registry, name: &str, help: &str, labels: &[&str], bounds: &[f64]) -> HistogramVec {
    register(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(bounds.to_vec()), labels))
}

/// What stays the same as long as the process runs.
fn register_constants(registry: &Registry) {
    let info = register(
        registry,
        IntGaugeVec::new(
            Opts::new("pgtenant_build_info", "Always 1; the labels say what runs."),
            &["version", "revision", "tls", "arch"],
        ),
    );
    let tls = if cfg!(feature = "aws-lc") { "aws-lc-rs" } else { "ring" };
    // Set by the Dockerfile and release builds; a build from a checkout has none.
    let revision = option_env!("PGTENANT_REVISION").unwrap_or_default();
    info.with_label_values(&[env!("CARGO_PKG_VERSION"), revision, tls, std::env::consts::ARCH]).set(1);
    seconds_gauge(registry, "process_start_time_seconds", "When the process started, in Unix seconds.")
        .set(unix_time());
}

fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests;
