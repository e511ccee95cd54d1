//! The figures of one instance, resolved once so that the data path looks nothing up.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::labels::{ConnectResult, Label, Pin};
use super::{Held, counter_vec, gauge_vec, histogram_vec};

/// One instance's series; cheap to add to, shared by all pools of the instance.
#[derive(Debug)]
pub struct InstanceMetrics {
    /// Seconds from TCP connect to a logged-in, identified backend; successes only.
    pub connect: Histogram,
    connects: Vec<IntCounter>,
    identity_mismatches: IntCounter,
    pins: Vec<IntGauge>,
    pins_begun: Vec<IntCounter>,
    listeners: IntGauge,
    listen_backends: IntGauge,
    /// Requests turned away because the queue for the instance stood.
    pub shed: IntCounter,
}

/// What clients of one tier get from one instance; cheap to add to, shared by all their pools there.
#[derive(Debug)]
pub struct TierMetrics {
    /// Seconds a client waited for a backend, immediate checkouts included.
    pub queue_wait: Histogram,
    /// Seconds from a request sent to a backend to its answer's end.
    pub query: Histogram,
    /// Seconds from checkout to release; for clients that keep their backend from the first request to the last answer.
    pub transaction: Histogram,
    failures: IntCounter,
}

impl TierMetrics {
    /// Counts an error of our own that a client was sent, unless somebody asked for it: an operator with a limit or an
    /// order, or the client with a cancel request.
    pub fn error(&self, sqlstate: &str) {
        // No connection, no resources, a fault of ours; insufficient_resources but for its configured limits.
        let class = sqlstate.get(..2).unwrap_or_default();
        if matches!(class, "08" | "58" | "XX") || class == "53" && sqlstate != "53400" {
            self.failures.inc();
        }
    }
}

impl InstanceMetrics {
    /// Counts a client that listens on a shared backend, until the returned value is dropped.
    #[must_use = "the client is counted only while this lives"]
    pub fn listens(&self) -> Held {
        Held::new(&self.listeners)
    }

    /// Counts a backend that listens for many clients, until the returned value is dropped.
    #[must_use = "the backend is counted only while this lives"]
    pub fn listens_with_a_backend(&self) -> Held {
        Held::new(&self.listen_backends)
    }

    /// Counts a client that begins (1) or ceases (-1) to keep its backend for this reason.
    pub fn pinned(&self, reason: Pin, change: i64) {
        if change > 0 {
            self.pins_begun[reason.index()].inc();
        }
        self.pins[reason.index()].add(change);
    }

    /// Counts an attempt to open a backend; one that ends with `Identity` raises the mismatch alarm as well.
    pub fn connected(&self, result: ConnectResult) {
        self.connects[result.index()].inc();
        if result == ConnectResult::Identity {
            self.identity_mismatches.inc();
        }
    }
}

/// The families that [`InstanceMetrics`] are children of.
#[derive(Debug)]
pub(super) struct Families {
    queue_wait: HistogramVec,
    query: HistogramVec,
    transaction: HistogramVec,
    connect: HistogramVec,
    connects: IntCounterVec,
    identity_mismatches: IntCounterVec,
    pins: IntGaugeVec,
    pins_begun: IntCounterVec,
    listeners: IntGaugeVec,
    listen_backends: IntGaugeVec,
    shed: IntCounterVec,
    failures: IntCounterVec,
}

/// Upper bounds in seconds. A query through a proxy on a local network takes about 200 µs.
const QUERY: &[f64] = &[0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0];
const WAIT: &[f64] = &[0.00001, 0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0];
const CONNECT: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

impl Families {
    pub(super) fn register(registry: &Registry) -> Self {
        let instance = &["instance_name"];
        let tier = &["instance_name", "tier"];
        let histogram = |name, help, bounds| histogram_vec(registry, name, help, tier, bounds);
        Self {
            queue_wait: histogram("pgtenant_queue_wait_seconds", "Time clients waited for a backend.", WAIT),
            query: histogram("pgtenant_query_seconds", "Time from request to the end of its answer.", QUERY),
            transaction: histogram("pgtenant_transaction_seconds", "Time a transaction held its backend.", QUERY),
            failures: counter_vec(
                registry,
                "pgtenant_failures_total",
                "Requests that failed because no backend was to be had, or because it was lost.",
                tier,
            ),
            connect: histogram_vec(
                registry,
                "pgtenant_backend_connect_seconds",
                "Time to open a backend, login included.",
                instance,
                CONNECT,
            ),
            connects: counter_vec(
                registry,
                "pgtenant_backend_connects_total",
                "Attempts to open a backend.",
                &["instance_name", "result"],
            ),
            identity_mismatches: counter_vec(
                registry,
                "pgtenant_backend_identity_mismatch_total",
                "Backends refused because they are not the instance or database on record.",
                instance,
            ),
            pins: gauge_vec(
                registry,
                "pgtenant_pins",
                "Clients that keep a backend in transaction mode, by what they have on it.",
                &["instance_name", "reason"],
            ),
            pins_begun: counter_vec(
                registry,
                "pgtenant_pins_begun_total",
                "Times a client began to keep a backend in transaction mode, by what it had on it.",
                &["instance_name", "reason"],
            ),
            listeners: gauge_vec(registry, "pgtenant_listeners", "Clients that listen on a shared backend.", instance),
            listen_backends: gauge_vec(
                registry,
                "pgtenant_listen_backends",
                "Backends that listen for all clients of a database.",
                instance,
            ),
            shed: counter_vec(
                registry,
                "pgtenant_requests_shed_total",
                "Requests turned away because the queue for the instance stood (fairness.shed_target).",
                instance,
            ),
        }
    }

    pub(super) fn instance(&self, name: &str) -> InstanceMetrics {
        InstanceMetrics {
            connect: self.connect.with_label_values(&[name]),
            connects: ConnectResult::ALL
                .iter()
                .map(|result| self.connects.with_label_values(&[name, result.text()]))
                .collect(),
            identity_mismatches: self.identity_mismatches.with_label_values(&[name]),
            pins: Pin::ALL.iter().map(|pin| self.pins.with_label_values(&[name, pin.text()])).collect(),
            pins_begun: Pin::ALL.iter().map(|pin| self.pins_begun.with_label_values(&[name, pin.text()])).collect(),
            listeners: self.listeners.with_label_values(&[name]),
            listen_backends: self.listen_backends.with_label_values(&[name]),
            shed: self.shed.with_label_values(&[name]),
        }
    }

    pub(super) fn tier(&self, instance: &str, tier: &str) -> TierMetrics {
        let labels = &[instance, tier];
        TierMetrics {
            queue_wait: self.queue_wait.with_label_values(labels),
            query: self.query.with_label_values(labels),
            transaction: self.transaction.with_label_values(labels),
            failures: self.failures.with_label_values(labels),
        }
    }

    /// Takes off what [`Families::tier`] made.
    pub(super) fn remove_tier(&self, instance: &str, tier: &str) {
        for family in [&self.queue_wait, &self.query, &self.transaction] {
            // The error says that there was no such series, which is what we want.
            let _ = family.remove_label_values(&[instance, tier]);
        }
        let _ = self.failures.remove_label_values(&[instance, tier]);
    }

    /// Takes an instance's series off; handles still in use count into nothing.
    pub(super) fn remove(&self, name: &str) {
        let _ = self.connect.remove_label_values(&[name]);
        for result in ConnectResult::ALL {
            let _ = self.connects.remove_label_values(&[name, result.text()]);
        }
        for pin in Pin::ALL {
            let _ = self.pins.remove_label_values(&[name, pin.text()]);
            let _ = self.pins_begun.remove_label_values(&[name, pin.text()]);
        }
        for family in [&self.listeners, &self.listen_backends] {
            let _ = family.remove_label_values(&[name]);
        }
        for family in [&self.identity_mismatches, &self.shed] {
            let _ = family.remove_label_values(&[name]);
        }
    }
}
