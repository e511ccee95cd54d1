//! Before a transaction begins: whether the tenant's quotas allow it, after a delay if need be; and what it has used in the
//! end.

use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use super::read_only;
use super::wait::{Cause, patiently};
use super::watch::{Late, Watch};
use super::{End, NoBackend, Serving, farewell};
use crate::config::Quota;
use crate::metrics::QuotaName;
use crate::pool::CheckoutError;
use crate::quota::{Gate, Queued, Running, Short, Turn, Usage};
use crate::relay::{Figures, Flow, Moved, Pace};
use crate::session::welcome::Welcomed;
use crate::tenant::Tenant;
use crate::wire::tag::frontend;
use crate::wire::{PgError, Severity};

/// What a session holds of its tenant's quotas.
#[derive(Debug, Default)]
pub(super) struct Share {
    running: Option<Running>,
    /// A transaction was reserved that has not ended yet.
    reserved: bool,
}

impl Serving {
    /// Asks for leave to begin a transaction, where there is something to ask for.
    pub(super) async fn ask_to_begin(&mut self) -> Result<(), NoBackend> {
        if self.client.received().first() == Some(&frontend::TERMINATE) || self.session.pool.name.is_walsender() {
            return Ok(());
        }
        self.wait_while_paused().await?;
        if self.session.tenant.gates().has(Gate::Begin) {
            let Serving { session, client, notice, .. } = self;
            let begun = patiently(session, client, notice, Cause::Quota, begin(&session.tenant)).await?;
            let running = begun.map_err(|short| self.refusal(&short))?;
            self.share = Share { running, reserved: true };
        }
        Ok(())
    }

    /// Waits until the tenant is no longer paused, or for as long as its clients may have to.
    pub(super) async fn wait_while_paused(&mut self) -> Result<(), NoBackend> {
        if !self.session.tenant.gates().has(Gate::Paused) {
            return Ok(());
        }
        let Serving { session, client, notice, .. } = self;
        let resumed = patiently(session, client, notice, Cause::Pause, session.tenant.resumed()).await?;
        match resumed {
            Err(refusal) => Err(NoBackend::End(End::Told(refusal))),
            // What was held back must not reach the place that the tenant has left.
            Ok(()) if session.tenant.is_retired() => Err(NoBackend::End(End::Told(farewell(session)))),
            Ok(()) => Ok(()),
        }
    }

    fn refusal(&self, short: &Short) -> NoBackend {
        self.session.tenant.stats.refuse(short.quota);
        NoBackend::Refused(short.to_client(self.session.tenant.id.as_str()))
    }

    /// A checkout that failed, as the client is told.
    pub(super) fn without_backend(&self, error: &CheckoutError) -> NoBackend {
        if let CheckoutError::QueueTimeout { .. } = error {
            self.session.tenant.stats.refuse(QuotaName::QueueTimeout);
        }
        NoBackend::Refused(error.to_client().with_severity(Severity::Error))
    }

    /// The transaction is over, and no other has begun.
    pub(super) fn give_share_back(&mut self) {
        self.share = Share::default();
    }
}

/// Before an exchange: what it has to heed. `watched`: the client keeps its backend, and somebody wants to know how long each
/// of its transactions takes.
pub(super) fn prepare(flow: &mut Flow, session: &Welcomed, (keeps, watched): (bool, bool)) {
    let gates = session.tenant.gates();
    let concerned = !gates.is_empty() || flow.has_limits() || session.restricted || watched;
    if !concerned || session.pool.name.is_walsender() {
        return;
    }
    flow.bar(keeps && (gates.bar() || session.restricted) || watched);
    read_only::prepare(flow, session);
    flow.set_max_result(session.tenant.current().quota.max_result);
}

/// Behind it.
pub(super) fn finish(flow: &mut Flow) {
    if flow.has_limits() {
        flow.bar(false);
        flow.cancel_arrived();
    }
}

/// Before each wait of an exchange: as the quotas are now. Gives why the session has to end. `keeps`: the client keeps the
/// backend between transactions; `rests`: doing nothing there counts.
pub(super) fn look(
    flow: &mut Flow,
    session: &Welcomed,
    share: &mut Share,
    watch: &mut Option<Box<Watch>>,
    cx: &mut Context<'_>,
    (pace, keeps, rests, watched): (Pace, bool, bool, bool),
) -> Option<PgError> {
    let gates = session.tenant.gates();
    if gates.is_empty() && !flow.has_limits() && !watched {
        return None;
    }
    prepare(flow, session, (keeps, watched));
    let (registration, stats) = (&session.registration, &session.tenant.stats);
    if flow.awaits_cancel() && !registration.is_cancelling() {
        flow.cancel_arrived();
        cx.waker().wake_by_ref();
    }
    if flow.takes_cancel() {
        registration.cancel_own();
    }
    for _ in 0..flow.takes_cuts() {
        stats.refuse(QuotaName::MaxResult);
    }
    if keeps && flow.is_free() {
        share.rest();
    }
    if !gates.has(Gate::Time) && !gates.has(Gate::Idle) || session.pool.name.is_walsender() {
        return None;
    }
    let quota = session.tenant.current().quota;
    match watch.get_or_insert_default().poll(cx, &quota, flow, pace, rests)? {
        Late::Statement(words) => {
            stats.refuse(QuotaName::QueryTimeout);
            flow.cancels_with(words);
            registration.cancel_own();
            None
        }
        Late::Session(name, error) => {
            stats.refuse(name);
            Some(error)
        }
    }
}

impl Share {
    /// Counts what was used since the last time; the transaction itself was paid for when it began.
    pub fn charge(&mut self, tenant: &Tenant, figures: &Figures, moved: &Moved) {
        if !tenant.gates().has(Gate::Begin) {
            return;
        }
        let paid = u64::from(self.reserved && figures.transactions > 0);
        self.reserved &= paid == 0;
        let bytes = moved.received + moved.sent;
        let quota = tenant.current().quota;
        tenant.usage.charge(&quota, Instant::now(), figures.transactions - paid, bytes, moved.busy);
    }

    /// Between two transactions of a session that keeps its backend.
    pub fn rest(&mut self) {
        if self.running.is_some() {
            self.running = None;
        }
    }
}

/// Reserves a transaction and takes a place for it, both within the quotas' delay.
async fn begin(tenant: &Tenant) -> Result<Option<Running>, Short> {
    let begun = Instant::now();
    let reserved = reserve(tenant, begun).await?;
    let running = place(tenant, begun).await?;
    reserved.keep();
    Ok(running)
}

/// A transaction that is given back unless it begins.
struct Reserved<'a> {
    tenant: &'a Tenant,
    quota: Quota,
    kept: bool,
}

impl Reserved<'_> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.tenant.usage.give_back(&self.quota);
        }
    }
}

/// The quotas as they are now, and how long they may still delay who has begun to ask then.
fn left(tenant: &Tenant, begun: Instant) -> (Quota, Instant, Duration) {
    let (quota, now) = (tenant.current().quota, Instant::now());
    (quota, now, (begun + quota.delay_max).saturating_duration_since(now))
}

async fn reserve(tenant: &Tenant, begun: Instant) -> Result<Reserved<'_>, Short> {
    loop {
        let (quota, now, left) = left(tenant, begun);
        match tenant.usage.reserve(&quota, now, left) {
            Ok(wait) => {
                let reserved = Reserved { tenant, quota, kept: false };
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                return Ok(reserved);
            }
            Err(short) if left.is_zero() => return Err(short),
            // Who has to be refused is delayed as well: or it would only ask again at once.
            Err(short) => {
                let pause = short.wait.map_or(left, |wait| wait.min(left));
                let _ = tokio::time::timeout(pause, tenant.usage.changed()).await;
            }
        }
    }
}

async fn place(tenant: &Tenant, begun: Instant) -> Result<Option<Running>, Short> {
    let usage: &Arc<Usage> = &tenant.usage;
    let mut turn = Turn::New;
    let mut queued: Option<Queued> = None;
    loop {
        let (quota, _, left) = left(tenant, begun);
        match usage.begin(&quota, turn) {
            Ok(running) => return Ok(running),
            Err(short) if left.is_zero() => return Err(short),
            Err(_) if queued.is_none() => {
                queued = Some(usage.queue());
                turn = Turn::Queued;
            }
            Err(_) => {
                let _ = tokio::time::timeout(left, usage.freed()).await;
                turn = Turn::Come;
            }
        }
    }
}
