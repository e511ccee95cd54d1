//! The bookkeeping of one instance's pools: who holds how many backends, who waits; `turns` says who goes next. Pure:
//! time comes in as an argument, and what has to be done comes out as [`Effect`]s.
//!
//! Three bounds hold at every moment: the instance's, each tenant's, each role's. A backend counts from the moment its
//! connect begins until its close is confirmed, so that the instance never sees more than the bound.

mod members;
mod meter;
mod shedding;
mod turns;
mod upkeep;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use slotmap::SlotMap;
use smallvec::SmallVec;

use meter::Meter;
use shedding::Shedding;

// A key that is kept too long finds nothing, and never another tenant's pool.
slotmap::new_key_type! {
    /// A tenant in this ledger.
    pub struct TenantKey;
    /// One (tenant, database, role) in this ledger: what bounds its pools.
    pub struct RoleKey;
    /// A pool in this ledger.
    pub struct PoolKey;
}

/// A place in a queue; smaller is earlier, over all pools of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// How many backends the instance may have, and how many connects may be under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    pub max: u32,
    pub max_connecting: u32,
}

/// What a tenant may have of its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub max: u32,
    pub max_connecting: u32,
    /// So many are the tenant's before anybody else's: whoever has more than is guaranteed to it makes room at its next
    /// release.
    pub guaranteed: u32,
    /// Of what several tenants want, in proportion to the others'; at least 1.
    pub weight: u32,
}

/// How the tenants of an instance share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fairness {
    /// By weight and backend time; otherwise first come, first served.
    pub enabled: bool,
    /// Backend time, for a weight of 1, by which a tenant may run ahead of one that waits before it has to give way.
    pub quantum: Duration,
    /// An idle backend is lent to those who have their share already when it was not used for so long.
    pub lend_after: Duration,
    /// None: nobody is turned away before the queue timeout.
    pub shed: Option<Shed>,
}

/// When waiting requests are turned away (CoDel, RFC 8289).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shed {
    /// A longer wait means a standing queue...
    pub target: Duration,
    /// ...when none was shorter for so long.
    pub interval: Duration,
}

/// One pool's settings; those of one role are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSettings {
    /// Of all pools of the role together, as `min` and `guaranteed` are.
    pub max: u32,
    /// Of the tenant's backends; before those of the roles that have what is guaranteed to them.
    pub guaranteed: u32,
    /// Kept open once the role was used.
    pub min: u32,
    pub idle_timeout: Duration,
    pub lifetime: Duration,
    /// First and longest wait after a failed connect.
    pub retry: Duration,
    pub retry_max: Duration,
}

/// A backend with what the ledger needs to know about it.
#[derive(Debug)]
pub struct Slot<B> {
    pub backend: B,
    epoch: u64,
    opened: Instant,
    /// When it came back last.
    pub idle_since: Instant,
}

/// What the caller has to do, in order.
#[derive(Debug)]
pub enum Effect<B, W, E> {
    /// Hand the backend to the waiter; one that is gone gives it back by another `release`.
    Grant(PoolKey, W, Slot<B>),
    /// Connect; then report `opened` or `open_failed`.
    Open(PoolKey),
    /// Close; then report `closed`.
    Close(PoolKey, B),
    /// No backend will come: the connect failed.
    Fail(W, E),
    /// No backend will come soon: the queue stands still, and the waiter's tenant has had most.
    Shed(W),
}

/// The answer to a request for a backend.
#[derive(Debug)]
pub enum Checkout<B, E> {
    Ready(Slot<B>),
    Waiting(Ticket),
    /// The pool was removed with its tenant.
    Gone,
    /// The last connect failed, and it is too early for another.
    Refused(E),
}

/// Backends of one pool by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub idle: u32,
    pub active: u32,
    pub connecting: u32,
    pub waiting: u32,
}

#[derive(Debug, Default, Clone, Copy)]
struct Usage {
    /// Connecting, idle, active and closing.
    open: u32,
    connecting: u32,
    closing: u32,
    waiting: u32,
}

impl Usage {
    fn staying(&self) -> u32 {
        self.open - self.closing
    }

    /// Whether it takes a share of what there is.
    fn is_used(&self) -> bool {
        self.open > 0 || self.waiting > 0
    }
}

#[derive(Debug)]
struct Tenant {
    share: Share,
    usage: Usage,
    roles: Vec<RoleKey>,
    meter: Meter,
}

impl Tenant {
    /// It holds a backend or waits for one.
    fn is_active(&self) -> bool {
        self.meter.held > 0 || self.usage.waiting > 0
    }
}

/// The pools of one role differ in what their backends were opened with. They share its bounds, and one queue.
#[derive(Debug)]
struct Role {
    tenant: TenantKey,
    usage: Usage,
    pools: Vec<PoolKey>,
}

#[derive(Debug)]
struct Pool<B, W, E> {
    tenant: TenantKey,
    role: RoleKey,
    settings: PoolSettings,
    /// Refilled to the role's minimum when nobody asks for it.
    lasting: bool,
    usage: Usage,
    idle: Vec<Slot<B>>,
    waiters: BTreeMap<Ticket, Waiting<W>>,
    epoch: u64,
    used: bool,
    failure: Option<Failure<E>>,
}

#[derive(Debug)]
struct Waiting<W> {
    waiter: W,
    since: Instant,
}

#[derive(Debug)]
struct Failure<E> {
    error: E,
    times: u32,
    retry_at: Instant,
}

/// `B` is a backend, `W` a waiter's address, `E` a connect error.
#[derive(Debug)]
pub struct Ledger<B, W, E> {
    bound: Bound,
    fairness: Fairness,
    /// What meters count from.
    epoch: Instant,
    usage: Usage,
    tenants: SlotMap<TenantKey, Tenant>,
    roles: SlotMap<RoleKey, Role>,
    pools: SlotMap<PoolKey, Pool<B, W, E>>,
    /// The pools that somebody waits for, and those that have backends: few of all.
    queued: Vec<PoolKey>,
    opened: Vec<PoolKey>,
    /// The weight of all tenants that have backends, or wait for some; and of those that hold some or wait.
    sharing: u32,
    active: u32,
    /// The mean of the active tenants' meters.
    meter: Meter,
    shedding: Shedding,
    next_ticket: u64,
}

/// Seldom more than one.
pub type Effects<B, W, E> = SmallVec<[Effect<B, W, E>; 2]>;

impl<B, W, E: Clone> Ledger<B, W, E> {
    pub fn new(bound: Bound, fairness: Fairness, now: Instant) -> Self {
        Ledger {
            bound,
            fairness,
            epoch: now,
            usage: Usage::default(),
            tenants: SlotMap::with_key(),
            roles: SlotMap::with_key(),
            pools: SlotMap::with_key(),
            queued: Vec::new(),
            opened: Vec::new(),
            sharing: 0,
            active: 0,
            meter: Meter::default(),
            shedding: Shedding::default(),
            next_ticket: 0,
        }
    }

    fn tenant(&mut self, key: TenantKey) -> &mut Tenant {
        self.tenants.get_mut(key).expect("a tenant stays as long as it has pools in use")
    }

    fn role(&mut self, key: RoleKey) -> &mut Role {
        self.roles.get_mut(key).expect("a role stays as long as it has pools")
    }

    fn pool(&mut self, key: PoolKey) -> &mut Pool<B, W, E> {
        self.pools.get_mut(key).expect("a pool stays as long as it has backends or waiters")
    }

    pub fn counts(&self, pool: PoolKey) -> Counts {
        let Some(pool) = self.pools.get(pool) else { return Counts::default() };
        let idle = pool.idle.len() as u32;
        Counts {
            idle,
            active: pool.usage.open - pool.usage.connecting - pool.usage.closing - idle,
            connecting: pool.usage.connecting,
            waiting: pool.usage.waiting,
        }
    }

    /// The pool's idle backends, the one used last at the end.
    pub fn idle(&self, pool: PoolKey) -> &[Slot<B>] {
        self.pools.get(pool).map_or(&[], |pool| &pool.idle)
    }

    /// Since when somebody waits who has waited longest.
    pub fn waits_since(&self, pool: PoolKey) -> Option<Instant> {
        Some(self.pools.get(pool)?.waiters.values().next()?.since)
    }

    /// Asks for a backend: the most recently used idle one, or a place in the queue.
    pub fn checkout(
        &mut self,
        key: PoolKey,
        now: Instant,
        waiter: impl FnOnce() -> W,
        effects: &mut Effects<B, W, E>,
    ) -> Checkout<B, E> {
        let Some(pool) = self.pools.get_mut(key) else { return Checkout::Gone };
        pool.used = true;
        // A release serves the queue first: where there is an idle backend, nobody waits.
        if let Some(slot) = pool.idle.pop() {
            let tenant = pool.tenant;
            self.hold(tenant, 1, now);
            return Checkout::Ready(slot);
        }
        if pool.established() == 0
            && let Some(failure) = &pool.failure
            && now < failure.retry_at
        {
            return Checkout::Refused(failure.error.clone());
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        pool.waiters.insert(ticket, Waiting { waiter: waiter(), since: now });
        let tenant = pool.tenant;
        self.hold(tenant, 0, now);
        self.each_usage(key, |usage| usage.waiting += 1);
        // Those who wait already could not be helped a moment ago, and nothing has become free since.
        self.pump_for(key, now, effects);
        Checkout::Waiting(ticket)
    }

    /// A waiter has given up. Harmless when it was served meanwhile.
    pub fn abandon(&mut self, key: PoolKey, ticket: Ticket) {
        if let Some(pool) = self.pools.get_mut(key)
            && pool.waiters.remove(&ticket).is_some()
        {
            self.each_usage(key, |usage| usage.waiting -= 1);
        }
    }

    /// A clean backend comes back: to the first waiter, to the idle ones, or to its end.
    pub fn release(&mut self, key: PoolKey, slot: Slot<B>, now: Instant, effects: &mut Effects<B, W, E>) {
        self.hold(self.pools[key].tenant, -1, now);
        self.place(key, slot, now, effects);
    }

    /// A backend in nobody's hands finds its place.
    fn place(&mut self, key: PoolKey, mut slot: Slot<B>, now: Instant, effects: &mut Effects<B, W, E>) {
        let pool = &self.pools[key];
        let expired = now.duration_since(slot.opened) >= pool.settings.lifetime;
        if slot.epoch != pool.epoch || expired || self.over_bound(key) || self.gives_way(key, now) {
            self.close(key, slot.backend, effects);
            return;
        }
        slot.idle_since = now;
        let pool = self.pool(key);
        match pool.waiters.pop_first() {
            Some((_, Waiting { waiter, since })) => {
                let tenant = pool.tenant;
                self.hold(tenant, 1, now);
                self.each_usage(key, |usage| usage.waiting -= 1);
                effects.push(Effect::Grant(key, waiter, slot));
                self.watch_queue(now.saturating_duration_since(since), now, effects);
            }
            None => {
                pool.idle.push(slot);
                if self.usage.waiting > 0 {
                    self.pump(now, effects);
                }
            }
        }
    }

    /// A backend that must not be used again was taken out of the caller's hands: it counts until `closed`.
    pub fn discard(&mut self, key: PoolKey, now: Instant) {
        self.hold(self.pools[key].tenant, -1, now);
        self.each_usage(key, |usage| usage.closing += 1);
    }

    /// A close is confirmed (or its time is up).
    pub fn closed(&mut self, key: PoolKey, now: Instant, effects: &mut Effects<B, W, E>) {
        self.each_usage(key, |usage| {
            usage.open -= 1;
            usage.closing -= 1;
        });
        self.pump(now, effects);
    }

    /// A connect succeeded.
    pub fn opened(&mut self, key: PoolKey, backend: B, now: Instant, effects: &mut Effects<B, W, E>) {
        let pool = self.pool(key);
        pool.failure = None;
        let slot = Slot { backend, epoch: pool.epoch, opened: now, idle_since: now };
        self.each_usage(key, |usage| usage.connecting -= 1);
        self.place(key, slot, now, effects);
        self.pump(now, effects);
    }

    /// A connect failed. `jitter` in 0..1 spreads the retries. Waiters hear of it at once, unless the pool has backends
    /// that will be released.
    pub fn open_failed(&mut self, key: PoolKey, error: E, jitter: f64, now: Instant, effects: &mut Effects<B, W, E>) {
        let pool = self.pool(key);
        let times = pool.failure.as_ref().map_or(0, |failure| failure.times);
        let wait = pool.settings.retry.saturating_mul(1 << times.min(16)).min(pool.settings.retry_max);
        let retry_at = now + wait.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        pool.failure = Some(Failure { error: error.clone(), times: times + 1, retry_at });
        self.each_usage(key, |usage| {
            usage.open -= 1;
            usage.connecting -= 1;
        });
        if self.pools[key].established() == 0 {
            let waiters = std::mem::take(&mut self.pool(key).waiters);
            let count = waiters.len() as u32;
            self.each_usage(key, |usage| usage.waiting -= count);
            effects.extend(waiters.into_values().map(|waiting| Effect::Fail(waiting.waiter, error.clone())));
        }
        self.pump(now, effects);
    }

    /// Lets go of every backend of the pool: idle ones now, the others at their release.
    pub fn evict(&mut self, key: PoolKey, effects: &mut Effects<B, W, E>) {
        let Some(pool) = self.pools.get_mut(key) else { return };
        pool.epoch += 1;
        pool.failure = None;
        for slot in std::mem::take(&mut pool.idle) {
            self.close(key, slot.backend, effects);
        }
    }

    /// Forgets a failed connect, because its cause may be mended (another password, another address).
    pub fn forgive(&mut self, key: PoolKey) {
        if let Some(pool) = self.pools.get_mut(key) {
            pool.failure = None;
        }
    }

    fn each_usage(&mut self, pool: PoolKey, change: impl Fn(&mut Usage)) {
        let Pool { tenant, role, ref mut usage, .. } = *self.pool(pool);
        let before = *usage;
        change(usage);
        let after = *usage;
        change(&mut self.role(role).usage);
        let of_tenant = self.tenant(tenant);
        let (shared, was_active) = (of_tenant.usage.is_used(), of_tenant.is_active());
        change(&mut of_tenant.usage);
        let (shares, is_active, weight) = (of_tenant.usage.is_used(), of_tenant.is_active(), of_tenant.share.weight);
        weigh(&mut self.sharing, weight, shared, shares);
        weigh(&mut self.active, weight, was_active, is_active);
        change(&mut self.usage);
        list(&mut self.queued, pool, before.waiting > 0, after.waiting > 0);
        list(&mut self.opened, pool, before.open > 0, after.open > 0);
    }

    /// As meters count.
    fn seconds(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.epoch).as_secs_f64()
    }

    /// Counts the backends in the tenant's hands, and what time they were there. For a tenant that begins to wait `change`
    /// is 0.
    fn hold(&mut self, key: TenantKey, change: i32, now: Instant) {
        let (quantum, now) = (self.fairness.quantum, self.seconds(now));
        self.meter.advance(self.active, now);
        let tenant = &mut self.tenants[key];
        let was_active = tenant.is_active();
        tenant.meter.advance(tenant.share.weight, now);
        tenant.meter.stay_near(&self.meter, quantum);
        tenant.meter.held = tenant.meter.held.wrapping_add_signed(change);
        self.meter.held = self.meter.held.wrapping_add_signed(change);
        weigh(&mut self.active, tenant.share.weight, was_active, tenant.is_active());
    }

    /// Closes a backend that is in nobody's hands.
    fn close(&mut self, key: PoolKey, backend: B, effects: &mut Effects<B, W, E>) {
        self.each_usage(key, |usage| usage.closing += 1);
        effects.push(Effect::Close(key, backend));
    }

    fn open(&mut self, key: PoolKey, effects: &mut Effects<B, W, E>) {
        self.each_usage(key, |usage| {
            usage.open += 1;
            usage.connecting += 1;
        });
        effects.push(Effect::Open(key));
    }

    /// A bound was lowered below what is open.
    fn over_bound(&self, key: PoolKey) -> bool {
        let pool = &self.pools[key];
        let tenant = &self.tenants[pool.tenant];
        self.roles[pool.role].usage.staying() > pool.settings.max
            || tenant.usage.staying() > tenant.share.max
            || self.usage.staying() > self.bound.max
    }

    fn may_open(&self, key: PoolKey, now: Instant) -> bool {
        let pool = &self.pools[key];
        let tenant = &self.tenants[pool.tenant];
        self.roles[pool.role].usage.open < pool.settings.max
            && tenant.usage.open < tenant.share.max
            && self.usage.open < self.bound.max
            && self.may_connect(key, now)
    }

    fn may_connect(&self, key: PoolKey, now: Instant) -> bool {
        let pool = &self.pools[key];
        let tenant = &self.tenants[pool.tenant];
        tenant.usage.connecting < tenant.share.max_connecting
            && self.usage.connecting < self.bound.max_connecting
            && pool.failure.as_ref().is_none_or(|failure| now >= failure.retry_at)
    }
}

impl<B, W, E> Pool<B, W, E> {
    /// Backends that are idle or in somebody's hands.
    fn established(&self) -> u32 {
        self.usage.open - self.usage.connecting - self.usage.closing
    }

    /// Somebody waits for whom no connect is under way.
    fn lacks_backends(&self) -> bool {
        self.usage.connecting < self.usage.waiting
    }

    fn first_waiter(&self) -> Option<Ticket> {
        self.waiters.first_key_value().map(|(ticket, _)| *ticket)
    }
}

/// Puts a pool on a list, or takes it off.
fn list(listed: &mut Vec<PoolKey>, pool: PoolKey, is_listed: bool, belongs: bool) {
    match (is_listed, belongs) {
        (false, true) => listed.push(pool),
        (true, false) => listed.retain(|other| *other != pool),
        _ => {}
    }
}

/// Adds a weight to a sum, or takes it off.
fn weigh(sum: &mut u32, weight: u32, counted: bool, counts: bool) {
    match (counted, counts) {
        (false, true) => *sum += weight,
        (true, false) => *sum -= weight,
        _ => {}
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
