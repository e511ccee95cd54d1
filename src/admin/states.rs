//! Changing tenants' states at run time, and what follows from a change, whoever made it: the console, the API, a record.

use std::collections::HashSet;
use std::sync::Arc;

use crate::config::TenantState;
use crate::pool::Pools;
use crate::sessions::{Order, Sessions};
use crate::tenant::{Standing, Tenant};

/// Sets a tenant's state on an operator's word, or goes back to the record's (none), at once.
pub fn set(tenant: &Arc<Tenant>, standing: Option<Standing>, sessions: &Sessions, pools: &Pools) {
    tenant.set_state(standing);
    let standing = tenant.state();
    tracing::info!(
        tenant = tenant.id.as_str(),
        state = standing.state.text(),
        disabled = standing.disabled,
        by = standing.by,
        reason = standing.reason,
        "state set"
    );
    heed(std::slice::from_ref(tenant), sessions, pools);
}

/// Has sessions and pools heed the tenants' quotas and states as they are now: who may not be in ends at its next safe
/// point, and backends that nobody is to use are closed.
pub fn heed(tenants: &[Arc<Tenant>], sessions: &Sessions, pools: &Pools) {
    if tenants.is_empty() {
        return;
    }
    let concerned: HashSet<_> = tenants.iter().map(Arc::as_ptr).collect();
    sessions.take_notice(|session| concerned.contains(&Arc::as_ptr(&session.tenant)));
    let restricted: HashSet<_> = tenants.iter().filter(|it| restricts(it.state().state)).map(Arc::as_ptr).collect();
    if restricted.is_empty() {
        return;
    }
    sessions.order(Order::Finish, |session| {
        let tenant = &session.tenant;
        restricted.contains(&Arc::as_ptr(tenant)) && !tenant.state().admits(&session.about.role, &tenant.current())
    });
    for tenant in tenants.iter().filter(|tenant| tenant.state().state == TenantState::Suspended) {
        pools.evict(tenant);
    }
}

fn restricts(state: TenantState) -> bool {
    matches!(state, TenantState::Suspended | TenantState::Maintenance)
}
