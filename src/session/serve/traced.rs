//! The time that a transaction takes, where somebody wants to know.

use std::time::Instant;

use super::{Serving, Total};
use crate::config::PoolMode;
use crate::metrics::TierMetrics;
use crate::relay::{Flow, Pace};
use crate::session::Context;
use crate::session::welcome::Welcomed;
use crate::trace::Transaction;

/// A transaction that is watched.
pub(super) type Traced = Option<Box<Transaction>>;

impl Serving {
    /// A transaction that begins with the request that is here. Of a client that keeps its backend the request may still
    /// have to come: then none has begun.
    pub(super) fn traced(&self) -> Traced {
        let received = self.client.received();
        if received.is_empty() || self.session.pool.name.is_walsender() {
            return None;
        }
        self.context.tracer.transaction(received)
    }

    pub(super) fn traced_to_end(&self, traced: Traced, failure: Option<&str>) {
        ends(traced, &self.session, &self.context, failure);
    }
}

fn ends(traced: Traced, session: &Welcomed, context: &Context, failure: Option<&str>) {
    if let Some(traced) = traced {
        traced.end(&context.tracer, session.who(), failure.map(str::to_owned));
    }
}

/// The transactions of an exchange. A client that keeps its backend may have many in one.
pub(super) struct Transactions {
    keeps: bool,
    is_session: bool,
    /// The first request of the one under way was sent.
    begun: Option<Instant>,
    /// Those that had ended when the exchange began.
    ended: u32,
    errors: usize,
}

impl Transactions {
    /// `checked_out` is when the backend was got, or taken up again by a client that keeps it.
    pub fn new(session: &Welcomed, flow: &Flow, total: &Total, keeps: bool, checked_out: Instant) -> Self {
        Transactions {
            keeps,
            is_session: session.mode == PoolMode::Session,
            begun: (!keeps).then_some(checked_out),
            ended: flow.ended().1,
            errors: total.errors,
        }
    }

    /// Before each wait of the exchange: how far it has come.
    pub fn look(
        &mut self,
        (flow, pace): (&Flow, Pace),
        (session, context): (&Welcomed, &Context),
        total: &Total,
        traced: &mut Traced,
    ) {
        if !self.keeps {
            return;
        }
        self.begun = self.begun.or(pace.asked);
        let ended = flow.ended().1;
        if !flow.is_free() || ended == self.ended {
            return;
        }
        self.ended = ended;
        self.observe(&session.tier, pace.rested);
        let failed = total.errors > self.errors;
        self.errors = total.errors;
        ends(traced.take(), session, context, failed.then_some("failed"));
    }

    /// The exchange is over. Sessions with a backend of their own have told of each transaction at its end.
    pub fn over(&mut self, metrics: &TierMetrics, now: Instant) {
        if !self.is_session {
            self.observe(metrics, now);
        }
    }

    fn observe(&mut self, metrics: &TierMetrics, now: Instant) {
        if let Some(begun) = self.begun.take() {
            metrics.transaction.observe(now.saturating_duration_since(begun).as_secs_f64());
        }
    }
}
