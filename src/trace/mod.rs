//! What took how long: OpenTelemetry spans, and a line in the log for what was slow.
//!
//! Off by default, and then one relaxed load for a transaction. When a transaction or login is over, it is decided
//! whether its spans are kept: the slow and the failed ones are, those that a caller records, and a share of the rest.

mod otlp;
mod parent;
mod span;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::config::{self, Config};
use crate::metrics::{Metrics, SpanResult};
pub use otlp::{Road, RoadError};
use parent::Parent;
use span::{Kind, Part, Trace};

/// Traces that wait for the exporter; further ones are dropped and counted.
const WAITING: usize = 1024;
/// Longest text of a query in the log or in a span, in bytes.
const MAX_SQL: usize = 1000;

/// See the module.
#[derive(Debug)]
pub struct Tracer {
    on: AtomicBool,
    settings: ArcSwap<Settings>,
    traces: mpsc::Sender<Trace>,
    metrics: Arc<Metrics>,
}

/// What comes out of a [`Tracer`]: its exporter's end.
#[derive(Debug)]
pub struct Traces(mpsc::Receiver<Trace>);

#[derive(Debug, Default)]
struct Settings {
    /// None: no spans.
    tracing: Option<config::Tracing>,
    slow_transaction: Option<Duration>,
    slow_wait: Option<Duration>,
    sql: bool,
}

impl Settings {
    fn log_wait(&self, who: Who<'_>, waited: Duration, sql: Option<&str>) {
        let Who { tenant, role, database, instance } = who;
        let wait_seconds = waited.as_secs_f64();
        if self.slow_wait.is_some_and(|limit| waited >= limit) {
            tracing::warn!(tenant, role, database, instance, wait_seconds, sql, "slow wait for a backend");
        }
    }
}

/// Whose time it is; empty where that is not known yet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Who<'a> {
    pub tenant: &'a str,
    pub role: &'a str,
    pub database: &'a str,
    pub instance: &'a str,
}

impl Tracer {
    /// Off, until a configuration says otherwise.
    pub fn new(metrics: Arc<Metrics>) -> (Tracer, Traces) {
        let (traces, received) = mpsc::channel(WAITING);
        let tracer = Tracer { on: AtomicBool::new(false), settings: ArcSwap::default(), traces, metrics };
        (tracer, Traces(received))
    }

    /// Takes over a configuration. The collector's address is that of the start.
    pub fn publish(&self, config: &Config) {
        let log = &config.log;
        let tracing = config.tracing.collector.is_some().then(|| config.tracing.clone());
        let on = tracing.is_some() || log.slow_transaction.is_some() || log.slow_wait.is_some();
        let (slow_transaction, slow_wait) = (log.slow_transaction, log.slow_wait);
        self.settings.store(Arc::new(Settings { tracing, slow_transaction, slow_wait, sql: log.sql }));
        self.on.store(on, Relaxed);
    }

    /// Whether anything is watched.
    pub fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// A transaction whose first request is at the beginning of `received`; none while nothing is watched.
    pub fn transaction(&self, received: &[u8]) -> Option<Box<Transaction>> {
        if !self.is_on() {
            return None;
        }
        let settings = self.settings.load_full();
        let text = parent::text(received);
        let parent = settings.tracing.as_ref().and(text).and_then(parent::parent);
        let sql = text.filter(|_| settings.sql).map(shown);
        Some(Box::new(Transaction { begin: Instant::now(), backend: None, parent, sql, settings }))
    }

    /// A login that has begun with the connection's accept.
    pub fn login(&self, begin: Instant) -> Steps {
        let on = self.is_on() && self.settings.load().tracing.is_some();
        Steps(on.then(|| Box::new(Marks { begin, parts: Vec::new(), last: begin })))
    }

    /// A client has waited for a backend since `begin`, at its login: got, or in vain.
    pub fn waited(&self, begin: Instant, who: Who<'_>) {
        if self.is_on() {
            self.settings.load().log_wait(who, begin.elapsed(), None);
        }
    }

    fn keep(&self, trace: Trace, tracing: &config::Tracing) {
        let wanted = trace.failure.is_some()
            || trace.took() >= tracing.slow
            || trace.parent.is_some_and(|parent| parent.sampled)
            || chosen(tracing.sample);
        if !wanted {
            return;
        }
        let spans = 1 + trace.parts.len() as u64;
        if self.traces.try_send(trace).is_err() {
            self.metrics.spans(SpanResult::Dropped, spans);
        }
    }
}

impl Traces {
    /// Sends them to a collector, for ever.
    pub async fn export(self, road: Road, metrics: Arc<Metrics>) {
        otlp::export(self.0, road, metrics).await;
    }
}

/// A share of all, from 0 to 1.
fn chosen(share: f64) -> bool {
    let mut bytes = [0; 4];
    share > 0.0
        && getrandom::fill(&mut bytes).is_ok()
        && f64::from(u32::from_ne_bytes(bytes)) < share * f64::from(u32::MAX)
}

fn shown(sql: &[u8]) -> Box<str> {
    String::from_utf8_lossy(&sql[..sql.len().min(MAX_SQL)]).into()
}

/// A transaction that is watched.
#[derive(Debug)]
pub struct Transaction {
    begin: Instant,
    /// When it had one.
    backend: Option<Instant>,
    parent: Option<Parent>,
    sql: Option<Box<str>>,
    settings: Arc<Settings>,
}

impl Transaction {
    /// It waits for a backend no longer.
    pub fn got_backend(&mut self) {
        self.backend = Some(Instant::now());
    }

    /// It is over; `failure` is the SQLSTATE, or the reason in words.
    pub fn end(self, tracer: &Tracer, who: Who<'_>, failure: Option<String>) {
        let end = Instant::now();
        self.log(who, end);
        let Some(tracing) = &self.settings.tracing else { return };
        let had_backend = self.backend.unwrap_or(end);
        let mut parts = vec![Part { name: "queue", kind: Kind::Internal, begin: self.begin, end: had_backend }];
        if let Some(begin) = self.backend {
            parts.push(Part { name: "backend", kind: Kind::Client, begin, end });
        }
        let mut attributes = attributes(who);
        attributes.extend(self.sql.map(|sql| ("db.query.text", sql.into())));
        let (parent, begin) = (self.parent, self.begin);
        tracer.keep(Trace { name: "transaction", parent, begin, end, parts, attributes, failure }, tracing);
    }

    fn log(&self, who: Who<'_>, end: Instant) {
        let Who { tenant, role, database, instance } = who;
        let took = end.duration_since(self.begin);
        let waited = self.backend.unwrap_or(end).duration_since(self.begin);
        let (seconds, wait_seconds, sql) = (took.as_secs_f64(), waited.as_secs_f64(), self.sql.as_deref());
        self.settings.log_wait(who, waited, sql);
        if self.settings.slow_transaction.is_some_and(|limit| took >= limit) {
            tracing::warn!(tenant, role, database, instance, seconds, wait_seconds, sql, "slow transaction");
        }
    }
}

fn attributes(who: Who<'_>) -> Vec<(&'static str, String)> {
    let known = [
        ("db.system.name", "postgresql"),
        ("pgtenant.tenant", who.tenant),
        ("pgtenant.role", who.role),
        ("db.namespace", who.database),
        ("pgtenant.instance", who.instance),
    ];
    known.into_iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key, value.to_owned())).collect()
}

/// A login's steps as they are done; nothing where logins are not watched.
#[derive(Debug, Default)]
pub struct Steps(Option<Box<Marks>>);

#[derive(Debug)]
struct Marks {
    begin: Instant,
    last: Instant,
    parts: Vec<Part>,
}

impl Steps {
    /// The step since the last mark was this.
    pub fn did(&mut self, name: &'static str) {
        if let Some(marks) = &mut self.0 {
            let now = Instant::now();
            marks.parts.push(Part { name, kind: Kind::Internal, begin: marks.last, end: now });
            marks.last = now;
        }
    }

    /// It is over; `failure` as in the metric of logins.
    pub fn end(self, tracer: &Tracer, who: Who<'_>, failure: Option<String>) {
        let Some(marks) = self.0 else { return };
        let settings = tracer.settings.load();
        let Some(tracing) = &settings.tracing else { return };
        let Marks { begin, parts, .. } = *marks;
        let (end, attributes) = (Instant::now(), attributes(who));
        tracer.keep(Trace { name: "login", parent: None, begin, end, parts, attributes, failure }, tracing);
    }
}
