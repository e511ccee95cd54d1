//! The ledger of one instance behind its lock, and what carries out its effects.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use slotmap::SecondaryMap;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::Pool;
use super::checkout::Checkout;
use super::ledger::{
    self, Bound, Counts, Effect, Fairness, Ledger, PoolKey, PoolSettings, RoleKey, Share, Slot, TenantKey, Ticket,
};
use crate::backend::{Backend, CancelKey, ConnectError};
use crate::config;
use crate::metrics::{ConnectResult, InstanceMetrics};
use crate::net::{DialError, InstanceTlsError, Place};

/// What a waiter gets in the end.
pub(super) type Granted = Result<Checkout, NotGranted>;

/// Why a waiter gets nothing.
#[derive(Debug)]
pub(super) enum NotGranted {
    Connect(Arc<ConnectError>),
    Shed,
}

type Waiter = oneshot::Sender<Granted>;
type Effects = ledger::Effects<Box<Backend>, Waiter, Arc<ConnectError>>;

/// See the module. The lock is held for bookkeeping only, never across an await or a system call.
#[derive(Debug)]
pub(super) struct InstancePools {
    pub place: Arc<Place>,
    pub metrics: Arc<InstanceMetrics>,
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    ledger: Ledger<Box<Backend>, Waiter, Arc<ConnectError>>,
    pools: SecondaryMap<PoolKey, Arc<Pool>>,
}

/// The answer to a request for a backend.
pub(super) enum Asked {
    Ready(Slot<Box<Backend>>),
    Waiting(Ticket, oneshot::Receiver<Granted>),
    Refused(Arc<ConnectError>),
    Gone,
}

impl InstancePools {
    pub fn new(
        instance: Arc<config::Instance>,
        bound: Bound,
        fairness: Fairness,
        metrics: Arc<InstanceMetrics>,
    ) -> Result<Arc<Self>, InstanceTlsError> {
        let place = Arc::new(Place::new(instance)?);
        let books = Books { ledger: Ledger::new(bound, fairness, Instant::now()), pools: SecondaryMap::new() };
        Ok(Arc::new(InstancePools { place, metrics, books: Mutex::new(books) }))
    }

    pub fn name(&self) -> &str {
        &self.place.instance.name
    }

    /// Whether the record still means this place; its bound may have changed.
    pub fn is_at(&self, instance: &config::Instance) -> bool {
        let max_backends = instance.max_backends;
        config::Instance { max_backends, ..(*self.place.instance).clone() } == *instance
    }

    /// Does the books, then what they ask for.
    fn with<T>(&self, change: impl FnOnce(&mut Books, &mut Effects) -> T) -> T {
        let mut effects = Effects::new();
        let mut tasks = SmallVec::<[Task; 2]>::new();
        let result = {
            let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
            let result = change(&mut books, &mut effects);
            for effect in effects {
                tasks.push(match effect {
                    Effect::Grant(key, waiter, slot) => Task::Grant(books.pools[key].clone(), waiter, slot),
                    Effect::Open(key) => Task::Open(books.pools[key].clone()),
                    Effect::Close(key, backend) => Task::Close(books.pools[key].clone(), backend),
                    Effect::Fail(waiter, error) => Task::Fail(waiter, NotGranted::Connect(error)),
                    Effect::Shed(waiter) => {
                        self.metrics.shed.inc();
                        Task::Fail(waiter, NotGranted::Shed)
                    }
                });
            }
            result
        };
        for task in tasks {
            task.run();
        }
        result
    }

    pub fn add_tenant(&self, share: Share) -> TenantKey {
        self.with(|books, _| books.ledger.add_tenant(share))
    }

    pub fn add_role(&self, tenant: TenantKey) -> RoleKey {
        self.with(|books, _| books.ledger.add_role(tenant))
    }

    pub fn remove_role(&self, role: RoleKey) {
        self.with(|books, _| books.ledger.remove_role(role));
    }

    pub fn add_pool(
        &self,
        role: RoleKey,
        settings: PoolSettings,
        lasting: bool,
        make: impl FnOnce(PoolKey) -> Pool,
    ) -> Arc<Pool> {
        self.with(|books, _| {
            let key = books.ledger.add_pool(role, settings, lasting);
            let pool = Arc::new(make(key));
            books.pools.insert(key, pool.clone());
            pool
        })
    }

    /// Removes a pool that nobody uses, if nobody but its tenant's list and ours has it; says whether it did. `at_once`:
    /// even where it remembers a failed connect. Nobody else may take it from the tenant's list meanwhile.
    pub fn remove_pool(&self, pool: &Arc<Pool>, at_once: bool) -> bool {
        self.with(|books, _| {
            let unused = Arc::strong_count(pool) == 2
                && (at_once || books.ledger.is_unused(pool.key, Instant::now()))
                && books.ledger.remove_pool(pool.key);
            if unused {
                books.pools.remove(pool.key);
            }
            unused
        })
    }

    /// Says whether the tenant was free of backends and waiters, and is gone now.
    pub fn remove_tenant(&self, tenant: TenantKey, pools: &[PoolKey]) -> bool {
        self.with(|books, _| {
            let removed = books.ledger.remove_tenant(tenant);
            if removed {
                books.pools.retain(|key, _| !pools.contains(&key));
            }
            removed
        })
    }

    pub fn set_bound(&self, bound: Bound, fairness: Fairness) {
        self.with(|books, effects| books.ledger.set_bound(bound, fairness, Instant::now(), effects));
    }

    pub fn set_tenant(&self, tenant: TenantKey, share: Share, pools: &[PoolKey], settings: PoolSettings) {
        self.with(|books, effects| {
            let now = Instant::now();
            books.ledger.set_tenant(tenant, share, now, effects);
            for pool in pools {
                books.ledger.set_pool(*pool, settings, now, effects);
            }
        });
    }

    pub fn ask(&self, pool: PoolKey, now: Instant) -> Asked {
        self.with(|books, effects| {
            let mut receiver = None;
            let waiter = || {
                let (sender, granted) = oneshot::channel();
                receiver = Some(granted);
                sender
            };
            match books.ledger.checkout(pool, now, waiter, effects) {
                ledger::Checkout::Ready(slot) => Asked::Ready(slot),
                ledger::Checkout::Refused(error) => Asked::Refused(error),
                ledger::Checkout::Gone => Asked::Gone,
                ledger::Checkout::Waiting(ticket) => {
                    Asked::Waiting(ticket, receiver.expect("a ticket means that a waiter was made"))
                }
            }
        })
    }

    pub fn abandon(&self, pool: PoolKey, ticket: Ticket) {
        self.with(|books, _| books.ledger.abandon(pool, ticket));
    }

    pub fn release(&self, pool: PoolKey, slot: Slot<Box<Backend>>, now: Instant) {
        self.with(|books, effects| books.ledger.release(pool, slot, now, effects));
    }

    pub fn discard(&self, pool: PoolKey) {
        self.with(|books, _| books.ledger.discard(pool, Instant::now()));
    }

    pub fn closed(&self, pool: PoolKey) {
        self.with(|books, effects| books.ledger.closed(pool, Instant::now(), effects));
    }

    pub fn counts(&self, pool: PoolKey) -> Counts {
        self.with(|books, _| books.ledger.counts(pool))
    }

    pub fn idle(&self, pool: PoolKey) -> Vec<Arc<CancelKey>> {
        self.with(|books, _| books.ledger.idle(pool).iter().map(|slot| slot.backend.cancel.clone()).collect())
    }

    pub fn waits_since(&self, pool: PoolKey) -> Option<Instant> {
        self.with(|books, _| books.ledger.waits_since(pool))
    }

    pub fn is_empty(&self, tenant: TenantKey) -> bool {
        self.with(|books, _| books.ledger.is_empty(tenant))
    }

    pub fn is_closing(&self, tenant: TenantKey) -> bool {
        self.with(|books, _| books.ledger.is_closing(tenant))
    }

    pub fn evict(&self, pool: PoolKey) {
        self.with(|books, effects| books.ledger.evict(pool, effects));
    }

    pub fn forgive(&self, pool: PoolKey) {
        self.with(|books, _| books.ledger.forgive(pool));
    }

    pub fn reap(&self) {
        self.with(|books, effects| books.ledger.reap(Instant::now(), effects));
    }

    /// A connect is over.
    pub fn connected(&self, pool: &Pool, result: Result<Backend, ConnectError>) {
        match result {
            Ok(backend) => {
                self.metrics.connected(ConnectResult::Ok);
                self.with(|books, effects| books.ledger.opened(pool.key, Box::new(backend), Instant::now(), effects));
            }
            Err(error) => {
                self.metrics.connected(outcome(&error));
                tracing::warn!(tenant = pool.tenant.id.as_str(), %error, "no backend");
                let error = Arc::new(error);
                let jitter = jitter();
                self.with(|books, effects| {
                    books.ledger.open_failed(pool.key, error, jitter, Instant::now(), effects);
                });
            }
        }
    }
}

/// What an effect means outside of the books.
enum Task {
    Grant(Arc<Pool>, Waiter, Slot<Box<Backend>>),
    Open(Arc<Pool>),
    Close(Arc<Pool>, Box<Backend>),
    Fail(Waiter, NotGranted),
}

impl Task {
    fn run(self) {
        match self {
            Task::Grant(pool, waiter, slot) => {
                // A waiter that left in this very moment gives the backend back unused.
                let since = slot.idle_since;
                let granted = Checkout::new(pool, slot, since);
                if let Err(Ok(unused)) = waiter.send(Ok(granted)) {
                    unused.release();
                }
            }
            Task::Open(pool) => pool.spawn_connect(),
            Task::Close(pool, backend) => spawn_close(pool, backend, false),
            // Gone already: nobody left to tell.
            Task::Fail(waiter, error) => drop(waiter.send(Err(error))),
        }
    }
}

/// Closes a backend that the ledger has already counted out, and tells it when the instance has let go.
pub(super) fn spawn_close(pool: Arc<Pool>, backend: Box<Backend>, mid_query: bool) {
    let home = pool.home.clone();
    home.spawn(async move {
        backend.close(mid_query).await;
        pool.instance.closed(pool.key);
    });
}

fn outcome(error: &ConnectError) -> ConnectResult {
    match error {
        ConnectError::Dial(DialError::Connect { .. }) | ConnectError::Io { .. } | ConnectError::Protocol { .. } => {
            ConnectResult::Unreachable
        }
        ConnectError::Dial(_) => ConnectResult::Tls,
        ConnectError::Timeout { .. } => ConnectResult::Timeout,
        ConnectError::Refused { .. } | ConnectError::Scram { .. } | ConnectError::Login { .. } => {
            ConnectResult::Refused
        }
        ConnectError::Identity { .. } => ConnectResult::Identity,
    }
}

/// A number in 0..1; how even it is does not matter.
fn jitter() -> f64 {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    f64::from(nanos % 1000) / 1000.0
}
