//! Who goes next: whom a free place is for, who makes room, and when a released backend is somebody else's turn.

use std::time::Instant;

use super::{Effects, Ledger, Pool, PoolKey, RoleKey, Ticket};

impl<B, W, E: Clone> Ledger<B, W, E> {
    /// Opens backends for those who wait, the longest wait first, and makes room where another pool idles.
    pub(super) fn pump(&mut self, now: Instant, effects: &mut Effects<B, W, E>) {
        if self.usage.waiting == 0 {
            return;
        }
        let mut queue: Vec<(Ticket, PoolKey)> = self
            .queued
            .iter()
            .map(|&key| (&self.pools[key], key))
            .filter(|(pool, _)| pool.lacks_backends())
            .filter_map(|(pool, key)| Some((pool.first_waiter()?, key)))
            .collect();
        queue.sort_unstable();
        for (_, key) in queue {
            self.pump_for(key, now, effects);
        }
    }

    /// The same for those who wait for one pool.
    pub(super) fn pump_for(&mut self, key: PoolKey, now: Instant, effects: &mut Effects<B, W, E>) {
        while self.pools[key].lacks_backends() && self.may_open(key, now) {
            self.open(key, effects);
        }
        // Where nobody else has any, there is none to take away.
        let others = self.opened.iter().any(|other| *other != key);
        if others && self.pools[key].lacks_backends() && self.may_connect(key, now) {
            self.make_room(key, effects);
        }
    }

    /// Closes the longest idle backend that stands in the way of `key`: one of the same role at the role's bound, one of
    /// the same tenant at the tenant's, one of any tenant at the instance's.
    fn make_room(&mut self, key: PoolKey, effects: &mut Effects<B, W, E>) {
        let pool = &self.pools[key];
        let (role, tenant) = (&self.roles[pool.role], &self.tenants[pool.tenant]);
        let at_role_bound = role.usage.open >= pool.settings.max;
        let at_tenant_bound = tenant.usage.open >= tenant.bound.max;
        // A close under way will give its slot to the queue: do not close another backend for the same waiter.
        if self.closing_at_bound(pool) >= pool.usage.waiting - pool.usage.connecting {
            return;
        }
        let in_the_way = |candidate: &Pool<B, W, E>| match (at_role_bound, at_tenant_bound) {
            (true, _) => candidate.role == pool.role,
            (false, true) => candidate.tenant == pool.tenant,
            (false, false) => true,
        };
        let victim = self
            .opened
            .iter()
            .map(|&other| (&self.pools[other], other))
            .filter(|(candidate, other)| *other != key && in_the_way(candidate))
            .filter_map(|(candidate, other)| Some((candidate.idle.first()?.idle_since, other)))
            .min();
        if let Some((_, other)) = victim {
            let slot = self.pool(other).idle.remove(0);
            self.close(other, slot.backend, effects);
        }
    }

    /// Backends on their way out, of those that share the narrowest bound that is reached.
    fn closing_at_bound(&self, pool: &Pool<B, W, E>) -> u32 {
        let (role, tenant) = (&self.roles[pool.role], &self.tenants[pool.tenant]);
        if role.usage.open >= pool.settings.max {
            role.usage.closing
        } else if tenant.usage.open >= tenant.bound.max {
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
        if self.gives_way_to_own_role(pool, now) {
            return true;
        }
        // One close at a time: its slot goes to the queue.
        let tenant = &self.tenants[pool.tenant];
        if tenant.usage.open >= tenant.bound.max {
            return tenant.usage.closing == 0 && self.gives_way_to_other_role(pool, now);
        }
        self.usage.open >= self.bound.max && self.usage.closing == 0 && self.gives_way_to_other_tenant(pool, now)
    }

    /// Within a role it is first come, first served, whatever startup parameters somebody has.
    fn gives_way_to_own_role(&self, pool: &Pool<B, W, E>, now: Instant) -> bool {
        let (role, tenant) = (&self.roles[pool.role], &self.tenants[pool.tenant]);
        let at_a_bound = role.usage.open >= pool.settings.max
            || tenant.usage.open >= tenant.bound.max
            || self.usage.open >= self.bound.max;
        let own = pool.first_waiter();
        let mut others = role.pools.iter().map(|&other| &self.pools[other]);
        at_a_bound
            && self.closing_at_bound(pool) == 0
            && others.any(|other| other.usage.connecting < other.usage.waiting && waits_longer(other, own, now))
    }

    /// To one that has waited longer than ours and has less than its share of the tenant's backends, while we have more
    /// than ours.
    fn gives_way_to_other_role(&self, pool: &Pool<B, W, E>, now: Instant) -> bool {
        let (role, tenant) = (&self.roles[pool.role], &self.tenants[pool.tenant]);
        let own = self.first_of_role(pool.role);
        let sharers = tenant.roles.iter().filter(|&&role| self.roles[role].usage.is_used()).count() as u32;
        let share = (tenant.bound.max / sharers.max(1)).max(1);
        let mut others = tenant.roles.iter().flat_map(|&role| &self.roles[role].pools).map(|&other| &self.pools[other]);
        (role.usage.open > share || own.is_none())
            && others.any(|other| {
                waits_longer(other, own, now) && self.roles[other.role].usage.open < share.min(other.settings.max)
            })
    }

    /// The same for the instance's backends.
    fn gives_way_to_other_tenant(&self, pool: &Pool<B, W, E>, now: Instant) -> bool {
        let tenant = &self.tenants[pool.tenant];
        let own = self.first_of_role(pool.role);
        let share = (self.bound.max / self.sharers.max(1)).max(1);
        (tenant.usage.open > share || own.is_none())
            && self.queued.iter().map(|&other| &self.pools[other]).any(|other| {
                let theirs = &self.tenants[other.tenant];
                other.tenant != pool.tenant
                    && waits_longer(other, own, now)
                    && theirs.usage.open < share.min(theirs.bound.max)
                    && self.roles[other.role].usage.open < other.settings.max
            })
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
