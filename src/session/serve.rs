//! Step 6: wait for a request, check out a backend, relay until the transaction is over, release; until the end.

mod begun;
mod listens;
mod quotas;
mod read_only;
mod refuse;
mod settle;
mod total;
mod traced;
mod wait;
mod watch;

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Instant;

use begun::Begun;
use listens::tell_notifications;
use quotas::Share;
use read_only::Restricted;
use settle::Pinned;
use total::{Total, count_error};
use traced::{Traced, Transactions};
use wait::{Cause, NoBackend, Notice, patiently, unless_over};
use watch::Watch;

use super::welcome::{Welcomed, always_reset};
use super::{Client, Context, Peer};
use crate::backend::CommandError;
use crate::config::PoolMode;
use crate::listen::Listener;
use crate::metrics::{ErrorSource, Pin, ProtocolViolation};
use crate::net::Endpoint;
use crate::pool::{Checkout, Patience};
use crate::quota::Gate;
use crate::relay::{
    Broken, ClientFault, Exchange, Flow, FlowLimits, Outcome, QUERY_BOUND, SessionState, TransactionStatus,
};
use crate::sessions::Order;
use crate::wire::tag::frontend;
use crate::wire::{HEADER, Header, PgError, Severity, sqlstate};

/// With so many bytes of answers to take, a client gets no further ones.
const MAX_UNSENT: usize = 64 * 1024;

/// Why a session ended.
#[derive(Debug)]
enum End {
    /// The client said goodbye.
    Terminated,
    /// The client's connection broke.
    ClientGone,
    ClientFault(ClientFault),
    BackendLost(String),
    /// The proxy drains, or the tenant was retired.
    Told(PgError),
}

/// A session at work.
struct Serving {
    client: Endpoint,
    flow: Flow,
    session: Welcomed,
    context: Arc<Context>,
    total: Total,
    /// A transaction without a backend.
    begun: Begun,
    /// With the queue for a backend.
    patience: Patience,
    notice: Notice,
    /// Of the tenant's quotas.
    share: Share,
    /// Where there are limits of time.
    watch: Option<Box<Watch>>,
    /// Where the tenant may only read.
    restricted: Option<Box<Restricted>>,
    /// Why the session keeps its backend in transaction mode.
    pinned: Option<Pinned>,
    /// What it hears through a backend that it shares.
    listener: Option<Listener>,
}

/// Serves a welcomed client to its end, and writes the session's line in the log; `counted` lives as long. The future is small: what seldom happens is
/// boxed when it does, here and below, since thousands of sessions wait at any time.
pub(super) fn requests(
    client: Client,
    session: Welcomed,
    begun: Instant,
    context: Arc<Context>,
    counted: impl Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let peer = client.peer;
    let (stream, received) = client.stream.into_parts();
    let limits = {
        let limits = &context.config.load().limits;
        FlowLimits {
            max_message: limits.max_message as usize,
            max_prepared_per_client: limits.max_prepared_per_client,
            max_prepared_per_backend: limits.max_prepared_per_backend,
            max_prepared_size: limits.max_prepared_size,
            cache_unnamed: session.tenant.current().pool.cache_unnamed,
        }
    };
    let plain = session.mode == PoolMode::Session;
    let state = SessionState::new(session.settings.clone(), session.told.clone());
    let flow = Flow::new(session.registration.id, limits, plain, state, session.pool.statements.clone());
    session.tenant.stats.clients.fetch_add(1, Ordering::Relaxed);
    let tls = stream.is_tls();
    let client = Endpoint::new(stream, received.to_vec());
    let mut serving = Box::new(Serving {
        client,
        flow,
        session,
        context,
        total: Total::default(),
        begun: Begun::No,
        patience: Patience::default(),
        notice: Notice::default(),
        share: Share::default(),
        watch: None,
        restricted: None,
        pinned: None,
        listener: None,
    });
    async move {
        let end = serving.run().await;
        serving.listener = None;
        Box::pin(serving.close(&end)).await;
        serving.session.tenant.stats.clients.fetch_sub(1, Ordering::Relaxed);
        serving.log(peer, tls, begun, &end);
        drop(counted);
    }
}

impl Serving {
    async fn run(&mut self) -> End {
        loop {
            if let Err(end) = self.next_request().await {
                return end;
            }
            let mut traced = self.traced();
            let checkout = match self.listens().await {
                Ok(true) => continue,
                Ok(false) => self.backend().await,
                Err(error) => Err(error),
            };
            let checkout = match checkout {
                Ok(checkout) => checkout,
                Err(NoBackend::Refused(error)) => {
                    self.traced_to_end(traced, Some(&error.code));
                    match Box::pin(self.refuse(error)).await {
                        Ok(()) => continue,
                        Err(end) => return end,
                    }
                }
                Err(NoBackend::End(end)) => return end,
            };
            if let Some(traced) = &mut traced {
                traced.got_backend();
            }
            let errors = self.total.errors;
            let relayed = self.relay(checkout, &mut traced).await;
            let failed = relayed.is_err() || self.total.errors > errors;
            self.traced_to_end(traced, failed.then_some("failed"));
            if let Err(end) = relayed {
                return end;
            }
        }
    }

    /// Waits for the client's next request, holding no backend (but in session mode the one that it keeps).
    async fn next_request(&mut self) -> Result<(), End> {
        if self.session.kept.is_some() {
            return Ok(());
        }
        let late = self.begins_late();
        let Serving { client, session, flow, begun, listener, watch, .. } = self;
        let max = flow.max_message();
        watch::is_busy(watch);
        poll_fn(|cx| {
            loop {
                if client.has_unsent()
                    && let Poll::Ready(Err(_)) = client.poll_send(cx)
                {
                    return Poll::Ready(Err(End::ClientGone));
                }
                tell_notifications(listener.as_ref(), flow, client, cx)?;
                let takes_its_answers = client.unsent() <= MAX_UNSENT;
                match first_request(client.received(), max, flow) {
                    Err(end) => return Poll::Ready(Err(end)),
                    Ok(true) if takes_its_answers => {
                        // Who has to be asked whether a transaction may begin is asked at its BEGIN.
                        let late = late && (*begun != Begun::No || !session.tenant.gates().bar());
                        match answer_alone(client, flow) || late && begun.answer(client, flow) {
                            true => {
                                watch::is_busy(watch);
                                continue;
                            }
                            false => return Poll::Ready(Ok(())),
                        }
                    }
                    Ok(_) => {}
                }
                let order = session.registration.poll_ordered(cx);
                if order == Order::End || order == Order::Finish && *begun == Begun::No {
                    return Poll::Ready(Err(End::Told(farewell(session))));
                }
                if !takes_its_answers {
                    return Poll::Pending;
                }
                let filled = client.poll_fill(cx);
                if filled.is_pending()
                    && let Some(error) = watch::quiet_too_long(watch, session, begun, listener.is_some(), client, cx)
                {
                    return Poll::Ready(Err(End::Told(error)));
                }
                match ready!(filled) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(End::ClientGone)),
                    Ok(_) => {}
                }
            }
        })
        .await
    }

    /// A backend that suits this session.
    async fn backend(&mut self) -> Result<Checkout, NoBackend> {
        if let Some(error) = self.begun.refusal() {
            return Err(NoBackend::Refused(error));
        }
        self.notice.reset();
        let mut checkout = loop {
            // Who keeps its backend is asked when its request is here.
            let bar = self.session.tenant.gates().bar();
            if bar && (self.session.kept.is_none() || !self.client.received().is_empty()) {
                Box::pin(self.ask_to_begin()).await?;
            }
            if let Some(mut kept) = self.session.kept.take() {
                kept.since = Instant::now();
                if self.restricts_own() {
                    Box::pin(self.restrict_own(&mut kept)).await?;
                }
                return self.ready(kept).await;
            }
            let Serving { session, client, patience, notice, .. } = self;
            let checkout = session.pool.checkout_with(patience);
            let checkout = patiently(session, client, notice, Cause::Backend, checkout).await?;
            let checkout = checkout.map_err(|error| self.without_backend(&error))?;
            if !self.session.tenant.gates().has(Gate::Paused) {
                break checkout;
            }
            // Since it was asked for.
            checkout.release();
        };
        let registration = &self.session.registration;
        let reads = self.session.pool.statements.reads_sequences.load(Ordering::Relaxed);
        match checkout.serve(registration.id, always_reset(&self.session.pool), reads).await {
            Ok(()) => self.ready(checkout).await,
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// Puts the session's parameters in force, with the request where that can do no harm, and begins the transaction.
    async fn ready(&mut self, mut checkout: Checkout) -> Result<Checkout, NoBackend> {
        let restricted = self.restricted_settings();
        let wanted = restricted.as_ref().unwrap_or(&self.session.settings);
        if self.session.mode != PoolMode::Session
            && let Some(change) = checkout.change_to(wanted)
        {
            if change.may_fail {
                match Box::pin(checkout.adopt(wanted)).await {
                    Ok(()) => {}
                    Err(CommandError::Refused(error)) => {
                        match self.flow.state.held {
                            true => self.session.kept = Some(checkout),
                            false => checkout.release(),
                        }
                        return Err(NoBackend::Refused(error));
                    }
                    Err(error) => return Err(self.lost(&error)),
                }
            } else {
                checkout.in_force = wanted.clone();
                self.flow.send_ahead(change.sql);
            }
        }
        if let Some(words) = self.begun.take() {
            self.flow.send_ahead(words);
        }
        if !self.flow.is_ahead() {
            self.session.registration.runs_on(&checkout.cancel);
        }
        Ok(checkout)
    }

    fn lost(&self, error: &CommandError) -> NoBackend {
        tracing::warn!(tenant = self.session.tenant.id.as_str(), %error, "backend lost");
        let text = "could not connect to the tenant's database";
        NoBackend::Refused(PgError::error(sqlstate::CONNECTION_FAILURE, text))
    }

    /// One exchange, and what becomes of its backend.
    async fn relay(&mut self, mut checkout: Checkout, traced: &mut Traced) -> Result<(), End> {
        let keeps = self.session.mode == PoolMode::Session || self.pinned.is_some();
        let Serving { client, flow, session, context, total, pinned, listener, share, watch, .. } = self;
        let metrics = &*session.tier;
        let begun = checkout.since;
        let mut transactions = Transactions::new(session, flow, total, keeps, begun);
        checkout.busy();
        let registration = &session.registration;
        let cancel = checkout.cancel.clone();
        let mut ahead = flow.is_ahead();
        let mut too_long = pinned.as_ref().and_then(|pinned| pin_deadline(session, pinned));
        let mut missed = None;
        let mut emptying = None;
        quotas::prepare(flow, session, (keeps, keeps && context.tracer.is_on()));
        let mut exchange = Exchange::new(client, &mut checkout, flow, session.mode, metrics, begun);
        let result = exchange
            .run(|cx, flow, moved, client, pace| {
                if ahead && !flow.is_ahead() {
                    ahead = false;
                    registration.runs_on(&cancel);
                }
                if let Some(deadline) = &mut too_long
                    && deadline.as_mut().poll(cx).is_ready()
                {
                    registration.finish();
                }
                // A session that keeps its backend is one long exchange: it is counted as it goes.
                if flow.at_rest() {
                    total.add(flow, std::mem::take(moved), session, context, share);
                }
                transactions.look((flow, pace), (session, context), total, traced);
                let rests = keeps && listener.is_none() && !client.has_unsent();
                let watched = keeps && context.tracer.is_on();
                if let Some(error) = quotas::look(flow, session, share, watch, cx, (pace, keeps, rests, watched)) {
                    missed = Some(End::Told(error));
                }
                if let Err(end) = tell_notifications(listener.as_ref(), flow, client, cx) {
                    missed = Some(end);
                }
                if flow.waits_for_database() {
                    let emptied = emptying.get_or_insert_with(|| Box::pin(context.pools.empty(&session.tenant)));
                    if emptied.as_mut().poll(cx).is_ready() {
                        emptying = None;
                        flow.database_is_free();
                        cx.waker().wake_by_ref();
                    }
                }
                missed.is_some() || interrupted(registration.poll_ordered(cx), flow)
            })
            .await;
        drop(emptying);
        let (moved, now) = (exchange.moved, exchange.clock);
        transactions.over(metrics, now);
        total.add(flow, moved, session, context, share);
        quotas::finish(flow);
        match result {
            Ok(Outcome::Free) => {
                self.session.registration.runs_nothing().await;
                checkout.at_rest();
                self.unlisten_own().await?;
                self.give_share_back();
                self.settle(checkout, now).await
            }
            Ok(Outcome::Asked) => {
                // Of the one that has begun to arrive more is to be seen then.
                *traced = None;
                self.session.registration.runs_nothing().await;
                checkout.at_rest();
                self.session.kept = Some(checkout);
                Ok(())
            }
            Ok(Outcome::Terminated) => {
                Box::pin(self.leave(checkout)).await;
                Err(End::Terminated)
            }
            Ok(Outcome::OpenTransaction) => {
                Box::pin(self.leave(checkout)).await;
                let text = "transaction blocks are not allowed in pool mode statement";
                Err(End::Told(
                    PgError::fatal(sqlstate::FEATURE_NOT_SUPPORTED, text)
                        .with_hint("Run each statement by itself, or ask for pool mode transaction."),
                ))
            }
            Ok(Outcome::Interrupted) => {
                Box::pin(self.leave(checkout)).await;
                Err(missed.unwrap_or_else(|| End::Told(self.farewell())))
            }
            Err(Broken::Client(_)) => {
                Box::pin(self.leave(checkout)).await;
                Err(End::ClientGone)
            }
            Err(Broken::ClientFault(fault)) => {
                Box::pin(self.leave(checkout)).await;
                Err(End::ClientFault(fault))
            }
            Err(Broken::Backend(error)) => Err(End::BackendLost(error.to_string())),
            Err(Broken::BackendFault(fault)) => Err(End::BackendLost(fault.to_string())),
            Err(Broken::Ahead(error)) => {
                tracing::error!(tenant = self.session.tenant.id.as_str(), %error, "session state not restored");
                Err(End::Told(error.with_severity(Severity::Fatal).with_hint(
                    "The session's parameters could not be put in force on another backend. Connect again.",
                )))
            }
        }
    }

    /// What a session that is told to end tells its client.
    fn farewell(&self) -> PgError {
        let overstayed = self.pinned.as_ref().is_some_and(|pinned| {
            let max = self.session.tenant.current().pool.max_pin_time;
            max.is_some_and(|max| pinned.since.elapsed() >= max)
        });
        if overstayed { self.pinned_too_long() } else { farewell(&self.session) }
    }

    /// The client leaves its backend behind: what is clean, or can be made so, goes back to the pool.
    async fn leave(&mut self, mut checkout: Checkout) {
        self.session.registration.runs_nothing().await;
        // Some things not even DISCARD ALL takes away.
        let stays = [Pin::Library, Pin::Seed, Pin::Foreign].iter().any(|pin| self.flow.state.certain.contains(*pin));
        let broken = !self.flow.at_rest() || checkout.endpoint.has_unsent();
        if broken || stays || self.session.pool.name.is_walsender() {
            return;
        }
        checkout.at_rest();
        let cleaned = async {
            if self.flow.status() != TransactionStatus::Idle {
                checkout.roll_back().await?;
            }
            // Locks and temporary tables of a whole session are not left to the next one's checkout; and in a whole
            // session there is room for much that we do not see.
            let state = &self.flow.state;
            let unsettled = state.held || !state.doubt.is_empty() || state.opaque || self.flow.has_unshared();
            if self.session.mode == PoolMode::Session || checkout.state.dirty || unsettled || !self.flow.is_free() {
                checkout.reset().await?;
            }
            // The schema of temporary objects stays behind them. A whole session begins without.
            let tells = self.session.mode == PoolMode::Session && checkout.has_temporary_schema().await?;
            Ok::<bool, CommandError>(!tells)
        };
        match cleaned.await {
            Ok(true) => checkout.release(),
            Ok(false) => {}
            Err(error) => tracing::debug!(tenant = self.session.tenant.id.as_str(), %error, "backend not cleaned"),
        }
    }

    /// An error that the client is sent.
    fn count_error(&self, source: ErrorSource, sqlstate: &str) {
        count_error(&self.session, &self.context, source, sqlstate);
    }

    /// Last words, where the client can still hear them.
    async fn close(&mut self, end: &End) {
        let error = match end {
            End::Terminated | End::ClientGone => None,
            End::ClientFault(fault) => Some(fault.to_error()),
            // A client with a backend of its own hears what the backend has said, and nothing else.
            End::BackendLost(_) if self.session.mode == PoolMode::Session => None,
            End::BackendLost(_) if self.flow.backend_said_goodbye() => None,
            End::BackendLost(_) => Some(
                PgError::fatal(sqlstate::CONNECTION_FAILURE, "the backend connection was lost")
                    .with_hint("The transaction is lost unless it was being committed. Connect again."),
            ),
            End::Told(error) => Some(error.clone()),
        };
        if let Some(error) = error.filter(|_| !self.flow.mid_response()) {
            let source = if matches!(end, End::ClientFault(_)) { ErrorSource::Client } else { ErrorSource::Proxy };
            self.count_error(source, &error.code);
            self.client.queue(&error.encode());
        }
        if let End::ClientFault(fault) = end {
            self.context.metrics.protocol_violations.inc(violation(fault));
        }
        let left = matches!(end, End::Terminated | End::ClientGone);
        if left && !self.client.has_unsent() {
            // Nobody waits for more than the end of the stream. Under TLS it has a message of its own.
            if self.client.stream().is_tls() {
                poll_fn(|cx| {
                    let _ = self.client.poll_shutdown(cx);
                    Poll::Ready(())
                })
                .await;
            }
            return;
        }
        let said = async {
            let _ = poll_fn(|cx| self.client.poll_send(cx)).await;
            // Closing over unread bytes would take the last words away from the client.
            let _ = self.client.end().await;
        };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), said).await;
    }

    fn log(&self, client: Peer, tls: bool, begun: Instant, end: &End) {
        if !self.context.config.load().log.sessions {
            return;
        }
        let reason = match end {
            End::Terminated => "terminated".to_owned(),
            End::ClientGone => "client gone".to_owned(),
            End::ClientFault(fault) => fault.to_string(),
            End::BackendLost(error) => format!("backend lost: {error}"),
            End::Told(error) => error.message.clone(),
        };
        tracing::info!(
            tenant = self.session.tenant.id.as_str(),
            role = self.session.role,
            database = self.session.pool.name.database,
            %client,
            tls,
            seconds = begun.elapsed().as_secs_f64(),
            queries = self.total.queries,
            transactions = self.total.transactions,
            received = self.total.moved.received,
            sent = self.total.moved.sent,
            backend_seconds = self.total.moved.busy.as_secs_f64(),
            reason,
            "session ended"
        );
    }
}

/// When a pinned session has kept its backend too long.
fn pin_deadline(session: &Welcomed, pinned: &Pinned) -> Option<std::pin::Pin<Box<tokio::time::Sleep>>> {
    let max = session.tenant.current().pool.max_pin_time?;
    Some(Box::pin(tokio::time::sleep_until((pinned.since + max).into())))
}

/// Whether the first request is here as far as it has to be. A client that sends slowly holds no backend meanwhile.
fn first_request(received: &[u8], max: usize, flow: &Flow) -> Result<bool, End> {
    match Header::read(received, max) {
        Ok(None) => Ok(false),
        Ok(Some(header)) if header.tag == frontend::TERMINATE => Err(End::Terminated),
        Ok(Some(header)) => {
            let needed = flow.bytes_needed(header).max(QUERY_BOUND);
            Ok(received.len() >= HEADER + header.payload.min(needed))
        }
        Err(fault) => Err(End::ClientFault(fault.into())),
    }
}

/// Whether what was received begins with a batch that needed no backend; its answers are queued then.
fn answer_alone(client: &mut Endpoint, flow: &mut Flow) -> bool {
    let mut replies = Vec::new();
    let length = flow.answer_alone(client.received(), &mut replies);
    if length == 0 {
        return false;
    }
    client.queue(&replies);
    client.take(|_| std::io::Result::Ok(length)).is_ok()
}

/// Asked while a backend is held: a client that keeps its backend may end between two transactions.
fn interrupted(order: Order, flow: &Flow) -> bool {
    match order {
        Order::GoOn => false,
        Order::Finish => flow.at_rest() && flow.status() == TransactionStatus::Idle,
        Order::End => true,
    }
}

/// What a session that is told to end tells its client.
fn farewell(session: &Welcomed) -> PgError {
    let standing = session.tenant.state();
    match session.tenant.is_retired() {
        false if !standing.admits(&session.role, &session.tenant.current()) => {
            standing.refusal(session.tenant.id.as_str())
        }
        false => PgError::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection due to administrator command"),
        true => {
            PgError::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection: the tenant's configuration has changed")
                .with_hint("Connect again.")
        }
    }
}

fn violation(fault: &ClientFault) -> ProtocolViolation {
    match fault {
        ClientFault::Frame(_) => ProtocolViolation::MessageLength,
        ClientFault::Type(_) => ProtocolViolation::MessageUnknown,
        ClientFault::Malformed(_) => ProtocolViolation::MessageMalformed,
        ClientFault::TooManyStatements(_) => ProtocolViolation::MessageUnexpected,
    }
}

/// Waits until something was received, or the session has to end.
fn poll_more(client: &mut Endpoint, cx: &mut TaskContext<'_>) -> Poll<Result<(), End>> {
    match ready!(client.poll_fill(cx)) {
        Ok(0) | Err(_) => Poll::Ready(Err(End::ClientGone)),
        Ok(_) => Poll::Ready(Ok(())),
    }
}
