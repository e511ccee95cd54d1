//! Limits of time: on a statement, a transaction, and on doing nothing. Looked at when the session would wait, with one
//! timer that is set only where there is a limit.

use std::task::Context;
use std::time::{Duration, Instant};

use super::begun::Begun;
use crate::config::Quota;
use crate::metrics::{Label, QuotaName};
use crate::net::Endpoint;
use crate::pool::Patience;
use crate::quota::Gate;
use crate::relay::{Flow, Pace, TransactionStatus};
use crate::session::welcome::Welcomed;
use crate::wire::{PgError, sqlstate};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Watch {
    timer: Patience,
    /// What had ended when the statement and the transaction at hand began, and when that was.
    statement: Option<(u32, Instant)>,
    transaction: Option<(u32, Instant)>,
    /// The statement at hand was cancelled.
    cancelled: bool,
    /// Since when a session without a backend has nothing to do.
    quiet: Option<Instant>,
}

/// A limit that was reached.
pub(super) enum Late {
    /// The statement is to be cancelled, and its client told this.
    Statement(PgError),
    /// The session is to end with this.
    Session(QuotaName, PgError),
}

impl Watch {
    /// Of a session with a backend. `rests`: doing nothing between two transactions counts.
    pub fn poll(&mut self, cx: &mut Context<'_>, quota: &Quota, flow: &Flow, pace: Pace, rests: bool) -> Option<Late> {
        self.quiet = None;
        let (statements, transactions) = flow.ended();
        let (resting, open) = (flow.at_rest(), flow.status() != TransactionStatus::Idle);
        let statement = begin(&mut self.statement, flow.is_working() && !resting, statements, pace);
        if statement.is_none() || statement.is_some_and(|(_, anew)| anew) {
            self.cancelled = false;
        }
        let transaction = begin(&mut self.transaction, open || !resting, transactions, pace);
        let idle = resting.then_some(pace.rested);
        let limits = [
            (QuotaName::QueryTimeout, statement.filter(|_| !self.cancelled).map(|it| it.0), quota.query_timeout),
            (QuotaName::TransactionTimeout, transaction.map(|it| it.0), quota.transaction_timeout),
            (QuotaName::IdleInTransaction, idle.filter(|_| open), quota.idle_in_transaction_timeout),
            (QuotaName::IdleSession, idle.filter(|_| !open && rests), quota.idle_session_timeout),
        ];
        let (name, limit) = self.first_over(cx, &limits)?;
        if name == QuotaName::QueryTimeout {
            self.cancelled = true;
            return Some(Late::Statement(words(name, limit)));
        }
        Some(Late::Session(name, words(name, limit)))
    }

    /// Of a session without one, before it waits for its client. `begun`: in a transaction all the same.
    pub fn poll_quiet(&mut self, cx: &mut Context<'_>, quota: &Quota, begun: bool) -> Option<(QuotaName, PgError)> {
        (self.statement, self.transaction) = (None, None);
        let since = *self.quiet.get_or_insert_with(Instant::now);
        let limit = match begun {
            true => (QuotaName::IdleInTransaction, Some(since), quota.idle_in_transaction_timeout),
            false => (QuotaName::IdleSession, Some(since), quota.idle_session_timeout),
        };
        let (name, limit) = self.first_over(cx, &[limit])?;
        Some((name, words(name, limit)))
    }

    fn first_over(
        &mut self,
        cx: &mut Context<'_>,
        limits: &[(QuotaName, Option<Instant>, Option<Duration>)],
    ) -> Option<(QuotaName, Duration)> {
        let known = limits.iter().filter_map(|(name, since, limit)| Some((*name, (*since)? + (*limit)?, (*limit)?)));
        let (name, deadline, limit) = known.min_by_key(|(_, deadline, _)| *deadline)?;
        self.timer.poll_over(deadline, cx).is_ready().then_some((name, limit))
    }
}

/// A session without a backend has done something, or is told something.
pub(super) fn is_busy(watch: &mut Option<Box<Watch>>) {
    if let Some(watch) = watch {
        watch.quiet = None;
    }
}

/// Asked when a session without a backend waits for its client: why it has to end.
pub(super) fn quiet_too_long(
    watch: &mut Option<Box<Watch>>,
    session: &Welcomed,
    begun: &Begun,
    listens: bool,
    client: &Endpoint,
    cx: &mut Context<'_>,
) -> Option<PgError> {
    let gates = session.tenant.gates();
    let begun = *begun != Begun::No;
    if !(gates.has(Gate::Idle) || gates.has(Gate::Time) && begun) {
        return None;
    }
    if client.has_unsent() || !client.received().is_empty() || listens && !begun {
        is_busy(watch);
        return None;
    }
    let quota = session.tenant.current().quota;
    let (name, error) = watch.get_or_insert_default().poll_quiet(cx, &quota, begun)?;
    session.tenant.stats.refuse(name);
    Some(error)
}

/// When the thing at hand began, if there is one; and whether it is another than at the last look.
fn begin(known: &mut Option<(u32, Instant)>, there: bool, ended: u32, pace: Pace) -> Option<(Instant, bool)> {
    if !there {
        *known = None;
        return None;
    }
    let anew = match known {
        Some((before, _)) if *before == ended => false,
        // The one before has ended meanwhile, with the client's next on its heels.
        Some(_) => {
            *known = Some((ended, Instant::now()));
            true
        }
        None => {
            *known = Some((ended, pace.asked.unwrap_or(pace.rested)));
            true
        }
    };
    known.map(|(_, since)| (since, anew))
}

/// In PostgreSQL's words, as far as it has some, with the quota's name.
fn words(name: QuotaName, limit: Duration) -> PgError {
    let (key, seconds) = (name.text(), limit.as_secs_f64());
    let error = match name {
        QuotaName::QueryTimeout => {
            PgError::error(sqlstate::QUERY_CANCELED, format!("canceling statement due to the tenant's {key}"))
        }
        QuotaName::TransactionTimeout => {
            PgError::fatal(sqlstate::TRANSACTION_TIMEOUT, format!("terminating connection due to the tenant's {key}"))
        }
        QuotaName::IdleInTransaction => {
            let text = format!("terminating connection due to the tenant's {key}");
            PgError::fatal(sqlstate::IDLE_IN_TRANSACTION_TIMEOUT, text)
        }
        _ => {
            PgError::fatal(sqlstate::IDLE_SESSION_TIMEOUT, format!("terminating connection due to the tenant's {key}"))
        }
    };
    error.with_detail(format!("Quota {key}: limit {seconds} s."))
}
