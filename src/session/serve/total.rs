//! What a session has done: for its tenant's figures, and for its line in the log.

use std::sync::atomic::Ordering;

use super::quotas::Share;
use crate::metrics::ErrorSource;
use crate::relay::{Flow, Moved};
use crate::session::Context;
use crate::session::welcome::Welcomed;

/// Figures for the log line.
#[derive(Default)]
pub(super) struct Total {
    pub queries: u64,
    pub transactions: u64,
    /// That the backend told the client.
    pub errors: usize,
    pub moved: Moved,
}

impl Total {
    /// Adds what was counted since the last time, here and for the tenant.
    pub fn add(&mut self, flow: &mut Flow, moved: Moved, session: &Welcomed, context: &Context, share: &mut Share) {
        let figures = flow.take_figures();
        share.charge(&session.tenant, &figures, &moved);
        let stats = &session.tenant.stats;
        let add = |counter: &std::sync::atomic::AtomicU64, value: u64| counter.fetch_add(value, Ordering::Relaxed);
        add(&stats.queries, figures.queries);
        add(&stats.transactions, figures.transactions);
        add(&stats.bytes_received, moved.received);
        add(&stats.bytes_sent, moved.sent);
        add(&stats.query_micros, moved.busy.as_micros() as u64);
        for code in &figures.errors {
            count_error(session, context, ErrorSource::Backend, code);
        }
        self.queries += figures.queries;
        self.errors += figures.errors.len();
        self.transactions += figures.transactions;
        self.moved.received += moved.received;
        self.moved.sent += moved.sent;
        self.moved.busy += moved.busy;
    }
}

pub(super) fn count_error(session: &Welcomed, context: &Context, source: ErrorSource, sqlstate: &str) {
    session.tenant.stats.errors.fetch_add(1, Ordering::Relaxed);
    context.metrics.error(source, sqlstate);
    if source == ErrorSource::Proxy {
        session.tier.error(sqlstate);
    }
}
