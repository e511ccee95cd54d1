//! Live sessions: their cancel keys, what they can be told from outside, and where a cancel request has to go.

use std::fmt;
use std::future::poll_fn;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use atomic_waker::AtomicWaker;
use dashmap::DashMap;
use subtle::ConstantTimeEq;

use crate::backend::{CancelKey, Pins};
use crate::net::stream::TlsFacts;
use crate::pool::Pool;
use crate::tenant::Tenant;

/// What a session can be told. Later ones win.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    GoOn,
    /// End at the next point where no transaction is open.
    Finish,
    /// End now.
    End,
}

/// All sessions that are logged in.
#[derive(Debug, Default)]
pub struct Sessions {
    live: DashMap<SessionKey, Arc<Session>, ahash::RandomState>,
    last_id: AtomicU32,
}

/// What BackendKeyData tells; both together find the session. `Debug` does not show the secret.
#[derive(Clone)]
pub struct SessionKey {
    /// Its backend's where the session has one to itself: those of two instances may be equal. Otherwise random, never 0.
    pub pid: u32,
    pub secret: Arc<[u8]>,
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionKey").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Hash for SessionKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.pid.hash(state);
    }
}

impl PartialEq for SessionKey {
    fn eq(&self, other: &SessionKey) -> bool {
        self.pid == other.pid && bool::from(self.secret.ct_eq(&other.secret))
    }
}

impl Eq for SessionKey {}

/// A session as the others see it.
pub struct Session {
    /// Never 0, unique among the live ones, and told to nobody.
    pub id: u32,
    pub key: SessionKey,
    pub tenant: Arc<Tenant>,
    pub about: About,
    order: AtomicU8,
    cancel: Mutex<Cancel>,
    pinned: Mutex<Option<PinnedTo>>,
    /// The session's task, which waits for a change of these.
    waker: AtomicWaker,
}

/// Who a session's client is, for people who look. As it logged in: what it sets later is not followed.
#[derive(Debug)]
pub struct About {
    pub role: String,
    pub pool: Arc<Pool>,
    /// None on a Unix socket.
    pub address: Option<SocketAddr>,
    /// Version and cipher suite.
    pub tls: Option<TlsFacts>,
    /// At most 63 bytes, as PostgreSQL keeps of it.
    pub application_name: Box<str>,
    pub since: SystemTime,
    /// The backend of a session that has one to itself from its login on.
    pub own: Option<Arc<CancelKey>>,
}

/// A session that keeps its backend in transaction mode.
#[derive(Debug, Clone)]
pub struct PinnedTo {
    pub pins: Pins,
    pub since: Instant,
    pub backend: Arc<CancelKey>,
}

/// What a session is doing.
#[derive(Debug, Clone)]
pub enum Activity {
    Idle,
    /// For a backend.
    Waiting,
    Active(Arc<CancelKey>),
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenant = self.tenant.id.as_str();
        f.debug_struct("Session").field("key", &self.key).field("tenant", &tenant).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Cancel {
    target: Target,
    /// Requests on their way to the instance.
    in_flight: u32,
    /// Somebody cancelled while we waited.
    missed: bool,
}

/// What a cancel request would hit.
#[derive(Debug, Default)]
enum Target {
    #[default]
    Nothing,
    Waiting,
    Backend(Arc<CancelKey>),
}

/// What became of a cancel request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    Forwarded,
    UnknownKey,
    /// Nothing was running.
    Idle,
    Failed,
}

impl Sessions {
    /// Registers a session under `pid`, or under a random one, with a random secret of `secret_length` bytes. It is
    /// forgotten when the registration is dropped.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn register(
        self: &Arc<Self>,
        tenant: Arc<Tenant>,
        about: About,
        pid: Option<u32>,
        secret_length: usize,
    ) -> Result<Registration, getrandom::Error> {
        loop {
            let mut random = vec![0; size_of::<u32>() + secret_length];
            getrandom::fill(&mut random)?;
            let (number, secret) = random.split_first_chunk().expect("it is at least as long");
            let pid = pid.unwrap_or(u32::from_ne_bytes(*number) & 0x7fff_ffff);
            let key = SessionKey { pid, secret: secret.into() };
            if pid == 0 {
                continue;
            }
            if let dashmap::Entry::Vacant(vacant) = self.live.entry(key.clone()) {
                let session = Arc::new(Session {
                    id: self.fresh_id(),
                    key,
                    tenant,
                    about,
                    order: AtomicU8::new(0),
                    cancel: Mutex::default(),
                    pinned: Mutex::default(),
                    waker: AtomicWaker::new(),
                });
                vacant.insert(session.clone());
                return Ok(Registration { sessions: self.clone(), session });
            }
        }
    }

    /// Counts up, so that an id comes again only after four billion others.
    fn fresh_id(&self) -> u32 {
        loop {
            let id = self.last_id.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if id != 0 {
                return id;
            }
        }
    }

    pub fn count(&self) -> usize {
        self.live.len()
    }

    /// All of them, in the order in which they came.
    pub fn all(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> = self.live.iter().map(|entry| entry.value().clone()).collect();
        all.sort_unstable_by_key(|session| session.id);
        all
    }

    /// Tells every session that `chosen` picks, and says how many there were.
    pub fn order(&self, order: Order, chosen: impl Fn(&Session) -> bool) -> usize {
        let mut told = 0;
        for session in self.live.iter().filter(|entry| chosen(entry.value())) {
            session.order.fetch_max(order as u8, Ordering::AcqRel);
            session.waker.wake();
            told += 1;
        }
        told
    }

    /// Wakes the sessions that `chosen` picks: what holds for their tenant has changed.
    pub fn take_notice(&self, chosen: impl Fn(&Session) -> bool) {
        self.live.iter().filter(|entry| chosen(entry.value())).for_each(|session| session.waker.wake());
    }

    /// Carries out a CancelRequest: exactly the query that the session runs now, or its wait for a backend.
    pub async fn cancel(&self, pid: u32, secret: &[u8]) -> Cancelled {
        let key = SessionKey { pid, secret: secret.into() };
        let Some(session) = self.live.get(&key).map(|entry| entry.value().clone()) else {
            return Cancelled::UnknownKey;
        };
        let Some(under_way) = session.begin_cancel() else { return Cancelled::Idle };
        match under_way {
            UnderWay::Waiter => Cancelled::Forwarded,
            UnderWay::Backend(flight) => match flight.key.send().await {
                Ok(()) => Cancelled::Forwarded,
                Err(error) => {
                    tracing::warn!(tenant = session.tenant.id.as_str(), %error, "cancel request not delivered");
                    Cancelled::Failed
                }
            },
        }
    }
}

/// A session's place among the live ones.
#[derive(Debug)]
pub struct Registration {
    sessions: Arc<Sessions>,
    session: Arc<Session>,
}

impl std::ops::Deref for Registration {
    type Target = Arc<Session>;

    fn deref(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.sessions.live.remove(&self.session.key);
    }
}

enum UnderWay {
    Waiter,
    Backend(Flight),
}

/// A cancel request on its way: the backend is not given on before it has arrived.
struct Flight {
    session: Arc<Session>,
    key: Arc<CancelKey>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.session.cancel().in_flight -= 1;
        self.session.waker.wake();
    }
}

impl Session {
    fn cancel(&self) -> std::sync::MutexGuard<'_, Cancel> {
        self.cancel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_cancel(self: &Arc<Self>) -> Option<UnderWay> {
        let mut cancel = self.cancel();
        match &cancel.target {
            Target::Nothing => None,
            Target::Waiting => {
                cancel.target = Target::Nothing;
                cancel.missed = true;
                self.waker.wake();
                Some(UnderWay::Waiter)
            }
            Target::Backend(key) => {
                let key = key.clone();
                cancel.in_flight += 1;
                Some(UnderWay::Backend(Flight { session: self.clone(), key }))
            }
        }
    }

    /// Cancels the query that it runs, for the session itself, in the background.
    pub fn cancel_own(self: &Arc<Self>) {
        if let Some(UnderWay::Backend(flight)) = self.begin_cancel() {
            tokio::spawn(async move {
                if let Err(error) = flight.key.send().await {
                    let tenant = flight.session.tenant.id.as_str();
                    tracing::warn!(tenant, %error, "cancel request not delivered");
                }
            });
        }
    }

    /// A cancel request is on its way to the instance.
    pub fn is_cancelling(&self) -> bool {
        self.cancel().in_flight > 0
    }

    /// What it is doing now.
    pub fn activity(&self) -> Activity {
        match &self.cancel().target {
            Target::Nothing => Activity::Idle,
            Target::Waiting => Activity::Waiting,
            Target::Backend(key) => Activity::Active(key.clone()),
        }
    }

    /// It keeps its backend in transaction mode from now on; none: no longer.
    pub fn pin(&self, pinned: Option<PinnedTo>) {
        *self.pinned.lock().unwrap_or_else(PoisonError::into_inner) = pinned;
    }

    /// Why it keeps its backend, and since when.
    pub fn pinned(&self) -> Option<PinnedTo> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The backend that it works on, or keeps.
    pub fn backend(&self) -> Option<Arc<CancelKey>> {
        if let Activity::Active(key) = self.activity() {
            return Some(key);
        }
        self.pinned().map(|pinned| pinned.backend).or_else(|| self.about.own.clone())
    }

    /// From now on a cancel request ends the wait for a backend: [`Session::poll_wait_is_over`] says so.
    pub fn waits(&self) {
        let mut cancel = self.cancel();
        cancel.target = Target::Waiting;
        cancel.missed = false;
    }

    /// Ready when the wait was cancelled, or the session told to end.
    pub fn poll_wait_is_over(&self, cx: &mut Context<'_>) -> Poll<WaitOver> {
        if self.poll_ordered(cx) == Order::End {
            return Poll::Ready(WaitOver::Ended);
        }
        let mut cancel = self.cancel();
        if let Target::Waiting = cancel.target {
            return Poll::Pending;
        }
        cancel.missed = false;
        Poll::Ready(WaitOver::Cancelled)
    }

    /// From now on a cancel request goes to this backend; so does one that came when the wait was just over.
    pub fn runs_on(self: &Arc<Self>, key: &Arc<CancelKey>) {
        let missed = {
            let mut cancel = self.cancel();
            let missed = std::mem::take(&mut cancel.missed);
            cancel.target = Target::Backend(key.clone());
            missed
        };
        if missed && let Some(UnderWay::Backend(flight)) = self.begin_cancel() {
            tokio::spawn(async move { flight.key.send().await });
        }
    }

    /// From now on a cancel request hits nothing; returns when those under way have arrived, so that none of them can
    /// hit the backend's next client.
    pub async fn runs_nothing(&self) {
        let none_under_way = || {
            let mut cancel = self.cancel();
            cancel.target = Target::Nothing;
            cancel.missed = false;
            cancel.in_flight == 0
        };
        if none_under_way() {
            return;
        }
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            if none_under_way() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// The session tells itself to end when no transaction is open.
    pub fn finish(&self) {
        self.order.fetch_max(Order::Finish as u8, Ordering::AcqRel);
    }

    pub fn ordered(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::GoOn,
            1 => Order::Finish,
            _ => Order::End,
        }
    }

    /// The order, after seeing to it that the task is woken when it changes.
    pub fn poll_ordered(&self, cx: &mut Context<'_>) -> Order {
        self.waker.register(cx.waker());
        self.ordered()
    }
}

/// How a wait for a backend was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitOver {
    Cancelled,
    Ended,
}

/// Client connections, bounded.
#[derive(Debug)]
pub struct ClientCap {
    count: AtomicU32,
    max: u32,
}

impl ClientCap {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(ClientCap { count: AtomicU32::new(0), max: u32::try_from(max).unwrap_or(u32::MAX) })
    }

    /// A place, if one is free; given back on drop.
    pub fn take(self: &Arc<Self>) -> Option<ClientPlace> {
        let taken = self
            .count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < self.max).then_some(count + 1));
        taken.ok().map(|_| ClientPlace(self.clone()))
    }
}

/// A client's place under the cap.
#[derive(Debug)]
pub struct ClientPlace(Arc<ClientCap>);

impl Drop for ClientPlace {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
    }
}
