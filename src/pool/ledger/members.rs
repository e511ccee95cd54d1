//! Who is in the ledger: tenants, their roles, and the roles' pools.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{
    Bound, Effects, Fairness, Ledger, Meter, Pool, PoolKey, PoolSettings, Role, RoleKey, Share, Tenant, TenantKey,
    Usage,
};

impl<B, W, E: Clone> Ledger<B, W, E> {
    pub fn add_tenant(&mut self, share: Share) -> TenantKey {
        let meter = Meter::default();
        self.tenants.insert(Tenant { share, usage: Usage::default(), roles: Vec::new(), meter })
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

    pub fn set_bound(&mut self, bound: Bound, fairness: Fairness, now: Instant, effects: &mut Effects<B, W, E>) {
        self.bound = bound;
        self.fairness = fairness;
        self.pump(now, effects);
    }

    pub fn set_tenant(&mut self, tenant: TenantKey, share: Share, now: Instant, effects: &mut Effects<B, W, E>) {
        if let Some(tenant) = self.tenants.get_mut(tenant) {
            let weigh = |sum: u32, counts: bool| match counts {
                true => sum + share.weight - tenant.share.weight,
                false => sum,
            };
            self.sharing = weigh(self.sharing, tenant.usage.is_used());
            self.active = weigh(self.active, tenant.is_active());
            tenant.share = share;
        }
        self.pump(now, effects);
    }

    pub fn set_pool(&mut self, pool: PoolKey, settings: PoolSettings, now: Instant, effects: &mut Effects<B, W, E>) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.settings = settings;
        }
        self.pump(now, effects);
    }
}
