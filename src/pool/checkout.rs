//! A backend in somebody's hands.

use std::future::{Future, poll_fn};
use std::ops::{Deref, DerefMut};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::Pool;
use super::instance::{Asked, Granted, NotGranted, spawn_close};
use super::ledger::{Slot, Ticket};
use crate::backend::{Backend, ConnectError};
use crate::wire::{PgError, sqlstate};

/// Why there is no backend.
#[derive(Debug, Error)]
pub enum CheckoutError {
    #[error(transparent)]
    Connect(#[from] Arc<ConnectError>),
    #[error("no backend within {} ms", waited.as_millis())]
    QueueTimeout { waited: Duration, max_backends: u32, waiting: u32 },
    #[error("turned away after {} ms, because the queue for the instance stands", waited.as_millis())]
    Shed { waited: Duration },
    #[error("the tenant was removed, suspended or moved")]
    Retired,
}

impl CheckoutError {
    /// The instance's own ErrorResponse, payload only, for a client that was to have the backend to itself.
    pub fn words(&self) -> Option<&[u8]> {
        match self {
            CheckoutError::Connect(error) => error.words(),
            _ => None,
        }
    }

    /// What the client is told; the session may go on.
    pub fn to_client(&self) -> PgError {
        match self {
            CheckoutError::Connect(error) => error.to_client(),
            CheckoutError::Retired => {
                PgError::error(sqlstate::ADMIN_SHUTDOWN, "the tenant's configuration has changed")
                    .with_hint("Connect again.")
            }
            CheckoutError::Shed { waited } => {
                PgError::error(sqlstate::TOO_MANY_CONNECTIONS, "the database server is overloaded")
                    .with_detail(format!(
                        "Waited {} ms for a backend; of the tenants that wait, this one has had most.",
                        waited.as_millis()
                    ))
                    .with_hint("Try again later, with fewer clients at a time or shorter transactions.")
            }
            CheckoutError::QueueTimeout { waited, max_backends, waiting } => {
                PgError::error(sqlstate::TOO_MANY_CONNECTIONS, "no backend connection became free in time")
                    .with_detail(format!(
                        "Waited {} ms; the tenant may have {max_backends} backends, {waiting} other clients wait.",
                        waited.as_millis()
                    ))
                    .with_hint("Try again, use shorter transactions, or raise pool.max_backends.")
            }
        }
    }
}

/// A checked-out backend. Dropping it closes the connection: an early return can never hand a dirty one on. Only
/// [`Checkout::release`] gives it back.
#[derive(Debug)]
pub struct Checkout {
    pool: Arc<Pool>,
    slot: Option<Slot<Box<Backend>>>,
    mid_query: bool,
    /// Since when it is in these hands.
    pub since: Instant,
}

impl Checkout {
    pub(super) fn new(pool: Arc<Pool>, slot: Slot<Box<Backend>>, since: Instant) -> Self {
        Checkout { pool, slot: Some(slot), mid_query: false, since }
    }

    /// Gives a clean backend back, to the first waiter or to the idle ones.
    pub fn release(self) {
        self.release_at(Instant::now());
    }

    /// The same, for a caller that has just looked at the clock.
    pub fn release_at(mut self, now: Instant) {
        if let Some(slot) = self.slot.take() {
            self.pool.instance.release(self.pool.key, slot, now);
        }
    }

    /// From here until [`Checkout::at_rest`], closing it means cancelling a query first.
    pub fn busy(&mut self) {
        self.mid_query = true;
    }

    pub fn at_rest(&mut self) {
        self.mid_query = false;
    }
}

impl Deref for Checkout {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.slot.as_ref().expect("taken only by the calls that end the checkout").backend
    }
}

impl DerefMut for Checkout {
    fn deref_mut(&mut self) -> &mut Backend {
        &mut self.slot.as_mut().expect("taken only by the calls that end the checkout").backend
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.instance.discard(self.pool.key);
            spawn_close(self.pool.clone(), slot.backend, self.mid_query);
        }
    }
}

/// How long one session waits, for a backend or something else. Its timer is set only when there is none or the last one has gone off, since
/// later waits end later: most waits are over long before, and cost nothing here.
#[derive(Debug, Default)]
pub struct Patience {
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// Ready at the deadline. The task may be woken without need before.
    pub fn poll_over(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = match &mut self.timer {
            Some(timer) if !timer.is_elapsed() && timer.deadline().into_std() <= deadline => return Poll::Pending,
            Some(timer) => timer,
            None => self.timer.insert(Box::pin(tokio::time::sleep_until(deadline.into()))),
        };
        loop {
            if timer.is_elapsed() && deadline <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline.into());
            // Not held up by the task's budget: then it would not wake the task, and is taken for set all the same.
            ready!(pin!(tokio::task::unconstrained(timer.as_mut())).poll(cx));
        }
    }
}

impl Pool {
    /// Takes a backend, waiting for one at most the tenant's queue timeout. Cancel safe: dropped while waiting, it leaves
    /// the queue.
    ///
    /// # Errors
    /// The queue timeout, or a connect that failed.
    pub async fn checkout(self: &Arc<Self>) -> Result<Checkout, CheckoutError> {
        self.checkout_with(&mut Patience::default()).await
    }

    /// The same, for somebody who asks again and again, always from one task.
    ///
    /// # Errors
    /// As [`Pool::checkout`].
    pub async fn checkout_with(self: &Arc<Self>, patience: &mut Patience) -> Result<Checkout, CheckoutError> {
        let begun = Instant::now();
        loop {
            let (ticket, granted) = match self.instance.ask(self.key, begun) {
                Asked::Ready(slot) => {
                    let mut checkout = Checkout::new(self.clone(), slot, begun);
                    if checkout.is_alive() {
                        self.tier.load().queue_wait.observe(0.0);
                        return Ok(checkout);
                    }
                    continue;
                }
                Asked::Refused(error) => return Err(error.into()),
                Asked::Gone => return Err(CheckoutError::Retired),
                Asked::Waiting(ticket, granted) => (ticket, granted),
            };
            let deadline = begun + self.tenant.current().pool.queue_timeout;
            let granted = Waiting::new(self, ticket, granted).end(patience, deadline).await;
            let now = Instant::now();
            let waited = now.duration_since(begun);
            self.tenant.stats.wait_micros.fetch_add(waited.as_micros() as u64, Ordering::Relaxed);
            self.tier.load().queue_wait.observe(waited.as_secs_f64());
            match granted {
                Some(Ok(mut checkout)) => {
                    checkout.since = now;
                    if checkout.is_alive() {
                        return Ok(checkout);
                    }
                }
                Some(Err(NotGranted::Connect(error))) => return Err(error.into()),
                Some(Err(NotGranted::Shed)) => return Err(CheckoutError::Shed { waited }),
                None => {
                    return Err(CheckoutError::QueueTimeout {
                        waited,
                        max_backends: self.tenant.current().pool.max_backends,
                        waiting: self.counts().waiting,
                    });
                }
            }
        }
    }
}

/// A place in the queue, given up on drop.
struct Waiting<'a> {
    pool: &'a Pool,
    ticket: Ticket,
    granted: oneshot::Receiver<Granted>,
    over: bool,
}

impl<'a> Waiting<'a> {
    fn new(pool: &'a Pool, ticket: Ticket, granted: oneshot::Receiver<Granted>) -> Self {
        pool.tenant.stats.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting { pool, ticket, granted, over: false }
    }

    /// What the waiter was given; none when the time was up, or when the ledger went away with the waiter still in it.
    async fn end(mut self, patience: &mut Patience, deadline: Instant) -> Option<Granted> {
        let given = poll_fn(|cx| match Pin::new(&mut self.granted).poll(cx) {
            Poll::Ready(granted) => Poll::Ready(granted.ok()),
            Poll::Pending => patience.poll_over(deadline, cx).map(|()| None),
        })
        .await;
        self.over = given.is_some();
        given
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.tenant.stats.waiting.fetch_sub(1, Ordering::Relaxed);
        // Who was served is in the queue no more.
        if !self.over {
            self.pool.instance.abandon(self.pool.key, self.ticket);
        }
    }
}
