//! A backend in somebody's hands.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::oneshot;

use super::Pool;
use super::instance::{Asked, Granted, spawn_close};
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
}

impl Checkout {
    pub(super) fn new(pool: Arc<Pool>, slot: Slot<Box<Backend>>) -> Self {
        Checkout { pool, slot: Some(slot), mid_query: false }
    }

    /// Gives a clean backend back, to the first waiter or to the idle ones.
    pub fn release(mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.instance.release(self.pool.key, slot);
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

impl Pool {
    /// Takes a backend, waiting for one at most the tenant's queue timeout. Cancel safe: dropped while waiting, it leaves
    /// the queue.
    ///
    /// # Errors
    /// The queue timeout, or a connect that failed.
    pub async fn checkout(self: &Arc<Self>) -> Result<Checkout, CheckoutError> {
        let begun = Instant::now();
        loop {
            let (ticket, granted) = match self.instance.ask(self.key) {
                Asked::Ready(slot) => {
                    let mut checkout = Checkout::new(self.clone(), slot);
                    if checkout.is_alive() {
                        self.instance.metrics.queue_wait.observe(begun.elapsed().as_secs_f64());
                        return Ok(checkout);
                    }
                    continue;
                }
                Asked::Refused(error) => return Err(error.into()),
                Asked::Gone => return Err(CheckoutError::Retired),
                Asked::Waiting(ticket, granted) => (ticket, granted),
            };
            let waiting = Waiting::new(self, ticket);
            let timeout = self.tenant.record().pool.queue_timeout;
            let result = tokio::time::timeout_at((begun + timeout).into(), granted).await;
            drop(waiting);
            let waited = begun.elapsed();
            self.tenant.stats.wait_micros.fetch_add(waited.as_micros() as u64, Ordering::Relaxed);
            self.instance.metrics.queue_wait.observe(waited.as_secs_f64());
            match granted_or(result) {
                Some(Ok(mut checkout)) => {
                    if checkout.is_alive() {
                        return Ok(checkout);
                    }
                }
                Some(Err(error)) => return Err(error.into()),
                None => {
                    return Err(CheckoutError::QueueTimeout {
                        waited,
                        max_backends: self.tenant.record().pool.max_backends,
                        waiting: self.counts().waiting,
                    });
                }
            }
        }
    }
}

/// None when the time was up, or when the ledger went away with the waiter still in it.
fn granted_or(
    result: Result<Result<Granted, oneshot::error::RecvError>, tokio::time::error::Elapsed>,
) -> Option<Granted> {
    result.ok().and_then(Result::ok)
}

/// A place in the queue, given up on drop.
struct Waiting<'a> {
    pool: &'a Pool,
    ticket: Ticket,
}

impl<'a> Waiting<'a> {
    fn new(pool: &'a Pool, ticket: Ticket) -> Self {
        pool.tenant.stats.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting { pool, ticket }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.tenant.stats.waiting.fetch_sub(1, Ordering::Relaxed);
        self.pool.instance.abandon(self.pool.key, self.ticket);
    }
}
