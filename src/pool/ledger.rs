//! The bookkeeping of one instance's pools: who holds how many backends, who waits; `turns` says who goes next. Pure:
//! time comes in as an argument, and what has to be done comes out as [`Effect`]s.
//!
//! Three bounds hold at every moment: the instance's, each tenant's, each role's. A backend counts from the moment its
//! connect begins until its close is confirmed, so that the instance never sees more than the bound.

mod turns;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use slotmap::SlotMap;
use smallvec::SmallVec;

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

/// How many backends a tenant or the instance may have, and how many connects may be under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    pub max: u32,
    pub max_connecting: u32,
}

/// One pool's settings; those of one role are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSettings {
    /// Of all pools of the role together, as `min` is.
    pub max: u32,
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
    bound: Bound,
    usage: Usage,
    roles: Vec<RoleKey>,
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
    waiters: BTreeMap<Ticket, W>,
    epoch: u64,
    used: bool,
    failure: Option<Failure<E>>,
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
    usage: Usage,
    tenants: SlotMap<TenantKey, Tenant>,
    roles: SlotMap<RoleKey, Role>,
    pools: SlotMap<PoolKey, Pool<B, W, E>>,
    /// The pools that somebody waits for, and those that have backends: few of all.
    queued: Vec<PoolKey>,
    opened: Vec<PoolKey>,
    /// Tenants that have backends, or wait for some.
    sharers: u32,
    next_ticket: u64,
}

/// Seldom more than one.
pub type Effects<B, W, E> = SmallVec<[Effect<B, W, E>; 2]>;

impl<B, W, E: Clone> Ledger<B, W, E> {
    pub fn new(bound: Bound) -> Self {
        Ledger {
            bound,
            usage: Usage::default(),
            tenants: SlotMap::with_key(),
            roles: SlotMap::with_key(),
            pools: SlotMap::with_key(),
            queued: Vec::new(),
            opened: Vec::new(),
            sharers: 0,
            next_ticket: 0,
        }
    }

    pub fn add_tenant(&mut self, bound: Bound) -> TenantKey {
        self.tenants.insert(Tenant { bound, usage: Usage::default(), roles: Vec::new() })
    }

    pub fn add_role(&mut self, tenant: TenantKey) -> RoleKey {
        let key = self.roles.insert(Role { tenant, usage: Usage::default(), pools: Vec::new() });
        self.tenant(tenant).roles.push(key);
        key
    }

    /// A pool that is not `lasting` serves while somebody asks for it; the caller removes it then.
    pub fn add_pool(&mut self, role: RoleKey, settings: PoolSettings, lasting: bool) -> PoolKey {
        let pool = Pool {
            tenant: self.roles[role].tenant,
            role,
            settings,
            lasting,
            usage: Usage::default(),
            idle: Vec::new(),
            waiters: BTreeMap::new(),
            epoch: 0,
            used: false,
            failure: None,
        };
        let key = self.pools.insert(pool);
        self.role(role).pools.push(key);
        key
    }

    /// Whether nothing would be lost with the pool: no backend, closing ones included, no waiter, and no failed connect
    /// that still keeps others from trying.
    pub fn is_unused(&self, key: PoolKey, now: Instant) -> bool {
        self.pools.get(key).is_none_or(|pool| {
            let failed = pool.failure.as_ref().is_some_and(|failure| now < failure.retry_at);
            pool.usage.open == 0 && pool.usage.waiting == 0 && !failed
        })
    }

    /// Removes a pool if it has neither backends nor waiters; says whether it is gone.
    pub fn remove_pool(&mut self, key: PoolKey) -> bool {
        let Some(pool) = self.pools.get(key) else { return true };
        let role = pool.role;
        let empty = pool.usage.open == 0 && pool.usage.waiting == 0;
        if empty {
            self.pools.remove(key);
            self.role(role).pools.retain(|other| *other != key);
        }
        empty
    }

    /// Removes a role that has no pools any more.
    pub fn remove_role(&mut self, key: RoleKey) {
        if self.roles.get(key).is_some_and(|role| role.pools.is_empty())
            && let Some(role) = self.roles.remove(key)
        {
            self.tenant(role.tenant).roles.retain(|other| *other != key);
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

    /// Whether the tenant has neither backends, closing ones included, nor waiters.
    pub fn is_empty(&self, tenant: TenantKey) -> bool {
        self.tenants.get(tenant).is_none_or(|tenant| tenant.usage.open == 0 && tenant.usage.waiting == 0)
    }

    /// Whether any of the tenant's backends is being closed.
    pub fn is_closing(&self, tenant: TenantKey) -> bool {
        self.tenants.get(tenant).is_some_and(|tenant| tenant.usage.closing > 0)
    }

    /// Removes a tenant if it is empty; says whether it did.
    pub fn remove_tenant(&mut self, tenant: TenantKey) -> bool {
        let empty = self.is_empty(tenant);
        if empty {
            for role in self.tenants.remove(tenant).map(|tenant| tenant.roles).unwrap_or_default() {
                for pool in self.roles.remove(role).map(|role| role.pools).unwrap_or_default() {
                    self.pools.remove(pool);
                }
            }
        }
        empty
    }

    pub fn set_bound(&mut self, bound: Bound, now: Instant, effects: &mut Effects<B, W, E>) {
        self.bound = bound;
        self.pump(now, effects);
    }

    pub fn set_tenant(&mut self, tenant: TenantKey, bound: Bound, now: Instant, effects: &mut Effects<B, W, E>) {
        if let Some(tenant) = self.tenants.get_mut(tenant) {
            tenant.bound = bound;
        }
        self.pump(now, effects);
    }

    pub fn set_pool(&mut self, pool: PoolKey, settings: PoolSettings, now: Instant, effects: &mut Effects<B, W, E>) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.settings = settings;
        }
        self.pump(now, effects);
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

    /// Who has waited longest.
    pub fn first_waiter(&self, pool: PoolKey) -> Option<&W> {
        self.pools.get(pool)?.waiters.values().next()
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
        pool.waiters.insert(ticket, waiter());
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
    pub fn release(&mut self, key: PoolKey, mut slot: Slot<B>, now: Instant, effects: &mut Effects<B, W, E>) {
        let pool = self.pool(key);
        let expired = now.duration_since(slot.opened) >= pool.settings.lifetime;
        if slot.epoch != pool.epoch || expired || self.over_bound(key) || self.gives_way(key, now) {
            self.close(key, slot.backend, effects);
            return;
        }
        slot.idle_since = now;
        let pool = self.pool(key);
        match pool.waiters.pop_first() {
            Some((_, waiter)) => {
                self.each_usage(key, |usage| usage.waiting -= 1);
                effects.push(Effect::Grant(key, waiter, slot));
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
    pub fn discard(&mut self, key: PoolKey) {
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
        self.release(key, slot, now, effects);
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
            effects.extend(waiters.into_values().map(|waiter| Effect::Fail(waiter, error.clone())));
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

    /// Closes what was idle or lived too long or is beyond a lowered bound, restores minimums, and tries again what had to wait. Call it about once
    /// a second.
    pub fn reap(&mut self, now: Instant, effects: &mut Effects<B, W, E>) {
        let keys: Vec<PoolKey> = self.pools.keys().collect();
        for key in keys {
            let staying = self.roles[self.pools[key].role].usage.staying();
            let pool = self.pool(key);
            let mut spare = staying.saturating_sub(pool.settings.min);
            let mut expired = Vec::new();
            let mut index = 0;
            while index < pool.idle.len() {
                let slot = &pool.idle[index];
                let idle_too_long = spare > 0 && now.duration_since(slot.idle_since) >= pool.settings.idle_timeout;
                if idle_too_long || now.duration_since(slot.opened) >= pool.settings.lifetime {
                    spare = spare.saturating_sub(1);
                    expired.push(pool.idle.remove(index).backend);
                } else {
                    index += 1;
                }
            }
            for backend in expired {
                self.close(key, backend, effects);
            }
            while !self.pools[key].idle.is_empty() && self.over_bound(key) {
                let longest_idle = self.pool(key).idle.remove(0);
                self.close(key, longest_idle.backend, effects);
            }
            while self.wants_minimum(key) && self.may_open(key, now) {
                self.open(key, effects);
            }
        }
        self.pump(now, effects);
    }

    fn each_usage(&mut self, pool: PoolKey, change: impl Fn(&mut Usage)) {
        let Pool { tenant, role, ref mut usage, .. } = *self.pool(pool);
        let before = *usage;
        change(usage);
        let after = *usage;
        change(&mut self.role(role).usage);
        let usage = &mut self.tenant(tenant).usage;
        let shared = usage.is_used();
        change(usage);
        let shares = usage.is_used();
        self.sharers = self.sharers + u32::from(shares) - u32::from(shared);
        change(&mut self.usage);
        list(&mut self.queued, pool, before.waiting > 0, after.waiting > 0);
        list(&mut self.opened, pool, before.open > 0, after.open > 0);
    }

    fn close(&mut self, key: PoolKey, backend: B, effects: &mut Effects<B, W, E>) {
        self.discard(key);
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
            || tenant.usage.staying() > tenant.bound.max
            || self.usage.staying() > self.bound.max
    }

    fn may_open(&self, key: PoolKey, now: Instant) -> bool {
        let pool = &self.pools[key];
        let tenant = &self.tenants[pool.tenant];
        self.roles[pool.role].usage.open < pool.settings.max
            && tenant.usage.open < tenant.bound.max
            && self.usage.open < self.bound.max
            && self.may_connect(key, now)
    }

    fn wants_minimum(&self, key: PoolKey) -> bool {
        let pool = &self.pools[key];
        pool.lasting && pool.used && self.roles[pool.role].usage.staying() < pool.settings.min
    }

    fn may_connect(&self, key: PoolKey, now: Instant) -> bool {
        let pool = &self.pools[key];
        let tenant = &self.tenants[pool.tenant];
        tenant.usage.connecting < tenant.bound.max_connecting
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

#[cfg(test)]
mod tests;
