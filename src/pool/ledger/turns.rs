//! Who goes next: whom a free place is for, who makes room, and when a released backend is somebody else's turn.
//!
//! Within a role it is first come, first served. Between the tenants of an instance, those come first who have less than
//! what is guaranteed to them, then those who have less than their share of its backends, then those who have had less of
//! its backend time, all by weight. It is fair queueing by virtual time rather than a round with deficits, because what a
//! transaction costs is known only when it is over.

use std::time::Instant;

use super::{Effects, Ledger, Pool, PoolKey, RoleKey, Tenant, TenantKey, Ticket};

/// What decides between two that wait for a place; the smaller one is served.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Standing {
    has_what_is_guaranteed: bool,
    has_its_share: bool,
    /// In microseconds.
    time: i64,
    role_has_what_is_guaranteed: bool,
    ticket: Ticket,
}

impl<B, W, E: Clone> Ledger<B, W, E> {
    /// Opens backends for those who wait, one after the other by their standing, and makes room where another pool idles.
    pub(super) fn pump(&mut self, now: Instant, effects: &mut Effects<B, W, E>) {
        if self.usage.waiting == 0 {
            return;
        }
        while let Some(key) = self.queue(now).filter(|(_, key)| self.may_open(*key, now)).min().map(|(_, key)| key) {
            self.open(key, effects);
        }
        let mut left: Vec<(Standing, PoolKey)> = self.queue(now).collect();
        left.sort_unstable();
        for (_, key) in left {
            self.seek_room(key, now, effects);
        }
    }

    /// The same for those who wait for one pool.
    pub(super) fn pump_for(&mut self, key: PoolKey, now: Instant, effects: &mut Effects<B, W, E>) {
        while self.pools[key].lacks_backends() && self.may_open(key, now) {
            self.open(key, effects);
        }
        if self.pools[key].lacks_backends() {
            self.seek_room(key, now, effects);
        }
    }

    /// Pools whose waiters need a new backend, each with its standing.
    fn queue(&self, now: Instant) -> impl Iterator<Item = (Standing, PoolKey)> {
        let lacking = self.queued.iter().filter(|key| self.pools[**key].lacks_backends());
        lacking.filter_map(move |&key| Some((self.standing(&self.pools[key], now)?, key)))
    }

    /// None where nobody waits.
    fn standing(&self, pool: &Pool<B, W, E>, now: Instant) -> Option<Standing> {
        let (role, tenant) = (&self.roles[pool.role], &self.tenants[pool.tenant]);
        let fair = self.fairness.enabled;
        Some(Standing {
            has_what_is_guaranteed: tenant.usage.open >= tenant.share.guaranteed,
            has_its_share: fair && !self.is_below_share(tenant),
            time: if fair { (self.time_of(pool.tenant, now) * 1e6) as i64 } else { 0 },
            role_has_what_is_guaranteed: role.usage.open >= pool.settings.guaranteed,
            ticket: pool.first_waiter()?,
        })
    }

    /// What the tenant has had, as its meter reads.
    pub(super) fn time_of(&self, tenant: TenantKey, now: Instant) -> f64 {
        let tenant = &self.tenants[tenant];
        tenant.meter.read(tenant.share.weight, self.seconds(now))
    }

    /// Backends are whole ones and shares need not be: below it, another one belongs to the tenant at least in part.
    fn is_below_share(&self, tenant: &Tenant) -> bool {
        !self.reaches_share(tenant, tenant.usage.open)
    }

    fn reaches_share(&self, tenant: &Tenant, backends: u32) -> bool {
        let all = u64::from(self.bound.max) * u64::from(tenant.share.weight);
        u64::from(backends) * u64::from(self.sharing) >= all && backends >= tenant.share.guaranteed
    }

    fn exceeds_share(&self, tenant: &Tenant) -> bool {
        let all = u64::from(self.bound.max) * u64::from(tenant.share.weight);
        let staying = tenant.usage.staying();
        u64::from(staying) * u64::from(self.sharing) > all && staying > tenant.share.guaranteed
    }

    /// Closes the longest idle backend that stands in the way of `key`: one of the same role at the role's bound, one of
    /// the same tenant at the tenant's, one that may be taken at the instance's.
    fn seek_room(&mut self, key: PoolKey, now: Instant, effects: &mut Effects<B, W, E>) {
        // Where nobody else has any, there is none to take away.
        if self.opened.iter().all(|other| *other == key) || !self.may_connect(key, now) {
            return;
        }
        let pool = &self.pools[key];
        let (role, tenant) = (&self.roles[pool.role], &self.tenants[pool.tenant]);
        let at_role_bound = role.usage.open >= pool.settings.max;
        let at_tenant_bound = tenant.usage.open >= tenant.share.max;
        // A close under way will give its slot to the queue: do not close another backend for the same waiter.
        if self.closing_at_bound(pool) >= pool.usage.waiting - pool.usage.connecting {
            return;
        }
        let in_the_way = |candidate: &Pool<B, W, E>, idle_since: Instant| match (at_role_bound, at_tenant_bound) {
            (true, _) => candidate.role == pool.role,
            (false, true) => candidate.tenant == pool.tenant,
            (false, false) => candidate.tenant == pool.tenant || self.may_take(pool, candidate, idle_since, now),
        };
        let victim = self
            .opened
            .iter()
            .filter(|other| **other != key)
            .filter_map(|&other| Some((self.pools[other].idle.first()?.idle_since, other)))
            .filter(|&(idle_since, other)| in_the_way(&self.pools[other], idle_since))
            .min();
        if let Some((_, other)) = victim {
            let slot = self.pool(other).idle.remove(0);
            self.close(other, slot.backend, effects);
        }
    }

    /// Whether an idle backend of another tenant may be closed for one that waits.
    fn may_take(&self, pool: &Pool<B, W, E>, candidate: &Pool<B, W, E>, idle_since: Instant, now: Instant) -> bool {
        let (ours, theirs) = (&self.tenants[pool.tenant], &self.tenants[candidate.tenant]);
        let spared = theirs.usage.staying() > theirs.share.guaranteed;
        if !self.fairness.enabled {
            return spared || ours.usage.open == 0;
        }
        let unused = now.saturating_duration_since(idle_since) >= self.fairness.lend_after;
        match spared {
            true => {
                unused
                    || ours.usage.open < ours.share.guaranteed
                    || self.is_below_share(ours) && self.exceeds_share(theirs)
            }
            // Not even what is guaranteed to somebody may keep others out for good while it is not used.
            false => unused && ours.usage.open == 0,
        }
    }

    /// Backends on their way out, of those that share the narrowest bound that is reached.
    fn closing_at_bound(&self, pool: &Pool<B, W, E>) -> u32 {
        let (role, tenant) = (&self.roles[pool.role], &self.tenants[pool.tenant]);
        if role.usage.open >= pool.settings.max {
            role.usage.closing
        } else if tenant.usage.open >= tenant.share.max {
            tenant.usage.closing
        } else {
            self.usage.closing
        }
    }

    /// Whether a released backend of `key` goes to somebody else's waiter, who is kept out by a bound that we share.
    pub(super) fn gives_way(&self, key: PoolKey, now: Instant) -> bool {
        let pool = &self.pools[key];
        if self.usage.waiting == pool.usage.waiting {
            return false;
        }
        let tenant = &self.tenants[pool.tenant];
        let at_tenant_bound = tenant.usage.open >= tenant.share.max;
        self.gives_way_to_own_role(pool, now)
            // One close at a time: its slot goes to the queue.
            || at_tenant_bound && tenant.usage.closing == 0 && self.gives_way_to_other_role(pool, now)
            || self.usage.open >= self.bound.max && self.gives_way_to_other_tenant(pool, now)
    }

    /// Within a role it is first come, first served, whatever startup parameters somebody has.
    fn gives_way_to_own_role(&self, pool: &Pool<B, W, E>, now: Instant) -> bool {
        let (role, tenant) = (&self.roles[pool.role], &self.tenants[pool.tenant]);
        let at_a_bound = role.usage.open >= pool.settings.max
            || tenant.usage.open >= tenant.share.max
            || self.usage.open >= self.bound.max;
        let own = pool.first_waiter();
        let mut others = role.pools.iter().map(|&other| &self.pools[other]);
        at_a_bound
            && self.closing_at_bound(pool) == 0
            && others.any(|other| other.usage.connecting < other.usage.waiting && waits_longer(other, own, now))
    }

    /// To one that has less than what is guaranteed to it, while we have more; or that has waited longer than ours and has
    /// less than its share of the tenant's backends, while we have more than ours.
    fn gives_way_to_other_role(&self, pool: &Pool<B, W, E>, now: Instant) -> bool {
        let (role, tenant) = (&self.roles[pool.role], &self.tenants[pool.tenant]);
        let own = self.first_of_role(pool.role);
        let sharers = tenant.roles.iter().filter(|&&role| self.roles[role].usage.is_used()).count() as u32;
        let share = (tenant.share.max / sharers.max(1)).max(1);
        let may_be_asked = role.usage.open > share || own.is_none();
        let exceeds_guaranteed = role.usage.open > pool.settings.guaranteed;
        let mut others = tenant.roles.iter().flat_map(|&role| &self.roles[role].pools).map(|&other| &self.pools[other]);
        exceeds_guaranteed
            && others.any(|other| {
                let open = self.roles[other.role].usage.open;
                let is_owed = open < other.settings.guaranteed && waits_longer(other, None, now);
                let is_late = open < share.min(other.settings.max) && waits_longer(other, own, now);
                other.role != pool.role && (is_owed || may_be_asked && is_late)
            })
    }

    /// To those who come before us; as many closes at a time as there are of them.
    fn gives_way_to_other_tenant(&self, pool: &Pool<B, W, E>, now: Instant) -> bool {
        let others = self.queued.iter().map(|&other| &self.pools[other]).filter(|other| {
            let theirs = &self.tenants[other.tenant];
            other.tenant != pool.tenant
                && other.lacks_backends()
                && waits_longer(other, None, now)
                && theirs.usage.open < theirs.share.max
                && self.roles[other.role].usage.open < other.settings.max
                && self.comes_before(other, pool, now)
        });
        others.count() > self.usage.closing as usize
    }

    /// Whether a waiter of `other`, a pool of another tenant, comes before whoever wants our released backend.
    fn comes_before(&self, other: &Pool<B, W, E>, pool: &Pool<B, W, E>, now: Instant) -> bool {
        let (ours, theirs) = (&self.tenants[pool.tenant], &self.tenants[other.tenant]);
        if ours.usage.staying() <= ours.share.guaranteed {
            return false;
        }
        if theirs.usage.open < theirs.share.guaranteed {
            return true;
        }
        let own = self.first_of_role(pool.role);
        if !self.fairness.enabled {
            return self.is_below_share(theirs)
                && (self.exceeds_share(ours) || own.is_none())
                && waits_longer(other, own, now);
        }
        if self.is_below_share(theirs) && self.reaches_share(ours, ours.usage.staying() - 1) {
            return true;
        }
        match own {
            None => self.is_below_share(theirs) && self.exceeds_share(ours),
            // A change of hands costs a connect: not for less than a quantum.
            Some(_) => {
                let ahead = self.time_of(pool.tenant, now) - self.time_of(other.tenant, now);
                ahead > self.fairness.quantum.as_secs_f64()
            }
        }
    }

    fn first_of_role(&self, role: RoleKey) -> Option<Ticket> {
        self.roles[role].pools.iter().filter_map(|&pool| self.pools[pool].first_waiter()).min()
    }
}

/// Whether somebody waits in `other` for longer than `own`, who may be nobody, and could connect now: a place that is
/// given up for somebody who cannot use it yet would only be taken again by us.
fn waits_longer<B, W, E>(other: &Pool<B, W, E>, own: Option<Ticket>, now: Instant) -> bool {
    let longer = match (other.first_waiter(), own) {
        (Some(theirs), Some(own)) => theirs < own,
        (theirs, None) => theirs.is_some(),
        (None, _) => false,
    };
    longer && other.failure.as_ref().is_none_or(|failure| now >= failure.retry_at)
}
