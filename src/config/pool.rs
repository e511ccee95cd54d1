//! Pool settings: the defaults of `[pool]`, and a tenant's own over them.

use super::file;
use super::problem::Scope;
use super::resolve::positive;
use super::{Fairness, PoolDefaults, TenantPool};

/// Beyond, tenants of little weight would get nothing to speak of.
const MAX_WEIGHT: u32 = 1000;

pub(super) fn defaults(written: &file::Pool, mut scope: Scope<'_, '_>) -> PoolDefaults {
    let defaults = TenantPool {
        mode: written.mode,
        max_backends: written.max_backends,
        max_backends_per_role: written.max_backends_per_role.unwrap_or(written.max_backends),
        min_backends: written.min_backends,
        guaranteed_backends: written.guaranteed_backends,
        guaranteed_backends_per_role: written.guaranteed_backends_per_role,
        weight: written.weight,
        queue_timeout: positive(&mut scope, "queue_timeout", written.queue_timeout),
        idle_timeout: positive(&mut scope, "idle_timeout", written.idle_timeout),
        lifetime: positive(&mut scope, "lifetime", written.lifetime),
        reset: written.reset,
        pin_check: written.pin_check,
        cache_unnamed: written.cache_unnamed,
        max_pins: written.max_pins,
        max_pin_time: written.max_pin_time.map(|time| positive(&mut scope, "max_pin_time", time)),
    };
    check_bounds(&defaults, &mut scope);
    let connecting = [
        ("max_connecting_per_tenant", written.max_connecting_per_tenant),
        ("max_connecting_per_instance", written.max_connecting_per_instance),
    ];
    for (key, number) in connecting {
        scope.require(number > 0, key, "at least 1 is needed");
    }
    scope.require(written.retry.0 <= written.retry_max.0, "retry", "must not be longer than pool.retry_max");
    PoolDefaults {
        defaults,
        max_connecting_per_tenant: written.max_connecting_per_tenant,
        max_connecting_per_instance: written.max_connecting_per_instance,
        connect_timeout: positive(&mut scope, "connect_timeout", written.connect_timeout),
        retry: positive(&mut scope, "retry", written.retry),
        retry_max: written.retry_max.0,
    }
}

/// `[fairness]`.
pub(super) fn fairness(written: &file::Fairness, mut scope: Scope<'_, '_>) -> Fairness {
    Fairness {
        enabled: written.enabled,
        quantum: positive(&mut scope, "quantum", written.quantum),
        lend_after: written.lend_after.0,
        shed_target: written.shed_target.map(|target| positive(&mut scope, "shed_target", target)),
        shed_interval: positive(&mut scope, "shed_interval", written.shed_interval),
    }
}

/// `base` with what the tier says otherwise: so a tenant of the tier inherits it.
pub(super) fn of_tier(tier: &file::TenantPool, base: &file::Pool) -> file::Pool {
    // Written out, so that no key is forgotten.
    let file::TenantPool {
        mode,
        max_backends,
        max_backends_per_role,
        min_backends,
        guaranteed_backends,
        guaranteed_backends_per_role,
        weight,
        queue_timeout,
        idle_timeout,
        lifetime,
        reset,
        pin_check,
        cache_unnamed,
        max_pins,
        max_pin_time,
    } = *tier;
    file::Pool {
        mode: mode.unwrap_or(base.mode),
        max_backends: max_backends.unwrap_or(base.max_backends),
        max_backends_per_role: max_backends_per_role.or(base.max_backends_per_role),
        min_backends: min_backends.unwrap_or(base.min_backends),
        guaranteed_backends: guaranteed_backends.unwrap_or(base.guaranteed_backends),
        guaranteed_backends_per_role: guaranteed_backends_per_role.unwrap_or(base.guaranteed_backends_per_role),
        weight: weight.unwrap_or(base.weight),
        queue_timeout: queue_timeout.unwrap_or(base.queue_timeout),
        idle_timeout: idle_timeout.unwrap_or(base.idle_timeout),
        lifetime: lifetime.unwrap_or(base.lifetime),
        reset: reset.unwrap_or(base.reset),
        pin_check: pin_check.unwrap_or(base.pin_check),
        cache_unnamed: cache_unnamed.unwrap_or(base.cache_unnamed),
        max_pins: max_pins.or(base.max_pins),
        max_pin_time: max_pin_time.or(base.max_pin_time),
        ..base.clone()
    }
}

/// Inherited bounds give way to the tenant's own: `max_backends = 5` alone is complete, whatever the defaults are.
pub(super) fn of_tenant(own: &file::TenantPool, base: &file::Pool, mut scope: Scope<'_, '_>) -> TenantPool {
    let max_backends = own.max_backends.unwrap_or(base.max_backends);
    let inherited = base.max_backends_per_role.map_or(max_backends, |most| most.min(max_backends));
    let max_backends_per_role = own.max_backends_per_role.unwrap_or(inherited);
    let min_backends = own.min_backends.unwrap_or(base.min_backends.min(max_backends_per_role));
    let pool = TenantPool {
        mode: own.mode.unwrap_or(base.mode),
        max_backends,
        max_backends_per_role,
        min_backends,
        guaranteed_backends: own.guaranteed_backends.unwrap_or(base.guaranteed_backends.min(max_backends)),
        guaranteed_backends_per_role: own
            .guaranteed_backends_per_role
            .unwrap_or(base.guaranteed_backends_per_role.min(max_backends_per_role)),
        weight: own.weight.unwrap_or(base.weight),
        queue_timeout: own.queue_timeout.unwrap_or(base.queue_timeout).0,
        idle_timeout: own.idle_timeout.unwrap_or(base.idle_timeout).0,
        lifetime: own.lifetime.unwrap_or(base.lifetime).0,
        reset: own.reset.unwrap_or(base.reset),
        pin_check: own.pin_check.unwrap_or(base.pin_check),
        cache_unnamed: own.cache_unnamed.unwrap_or(base.cache_unnamed),
        max_pins: own.max_pins.or(base.max_pins),
        max_pin_time: own.max_pin_time.or(base.max_pin_time).map(|time| time.0),
    };
    // What is inherited was checked where it was written.
    let times = [
        ("queue_timeout", own.queue_timeout),
        ("idle_timeout", own.idle_timeout),
        ("lifetime", own.lifetime),
        ("max_pin_time", own.max_pin_time),
    ];
    for (key, period) in times {
        period.map(|period| positive(&mut scope, key, period));
    }
    let bounds = [
        own.max_backends,
        own.max_backends_per_role,
        own.min_backends,
        own.guaranteed_backends,
        own.guaranteed_backends_per_role,
        own.weight,
    ];
    if bounds.iter().any(Option::is_some) {
        check_bounds(&pool, &mut scope);
    }
    pool
}

fn check_bounds(pool: &TenantPool, scope: &mut Scope<'_, '_>) {
    let (most, per_role, least) = (pool.max_backends, pool.max_backends_per_role, pool.min_backends);
    if most == 0 {
        scope.problem("max_backends", "at least 1 is needed; state = \"suspended\" shuts a tenant out");
    } else if per_role == 0 {
        scope.problem("max_backends_per_role", "at least 1 is needed");
    } else if per_role > most {
        scope.problem("max_backends_per_role", format!("{per_role} is more than max_backends ({most})"));
    } else if least > per_role {
        scope.problem("min_backends", format!("{least} is more than one role may have ({per_role})"));
    } else if pool.guaranteed_backends > most {
        let guaranteed = pool.guaranteed_backends;
        scope.problem("guaranteed_backends", format!("{guaranteed} is more than max_backends ({most})"));
    } else if pool.guaranteed_backends_per_role > per_role {
        let guaranteed = pool.guaranteed_backends_per_role;
        let message = format!("{guaranteed} is more than one role may have ({per_role})");
        scope.problem("guaranteed_backends_per_role", message);
    }
    if !(1..=MAX_WEIGHT).contains(&pool.weight) {
        scope.problem("weight", format!("{} is not in 1..={MAX_WEIGHT}", pool.weight));
    }
}
