//! Commands that change tenants' states: PAUSE, RESUME, SUSPEND, DISABLE, ENABLE, KILL, WAIT_CLOSE, and ours.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::View;
use super::act::tenant;
use crate::admin::states;
use crate::config::TenantState;
use crate::drain::Phase;
use crate::sessions::Order;
use crate::tenant::{Standing, Tenant};
use crate::wire::{PgError, sqlstate};

/// How often is looked whether backends are free.
const LOOK: Duration = Duration::from_millis(5);
/// PostgreSQL's code for a command that does not fit the present state.
const WRONG_STATE: &str = "55000";
/// Tenants that an error names at most.
const NAMED: usize = 5;

/// A command for one tenant, or for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Waits until no backend is in use, and no longer than that.
    Pause(Option<String>, Option<Duration>),
    Resume(Option<String>),
    /// Without a tenant PgBouncer's: everybody holds still at once, and backends stay open.
    SuspendAll,
    /// One of our own states, with a reason.
    State(String, TenantState, Option<String>),
    Disable(String),
    Enable(String),
    Kill(String),
    WaitClose(Option<String>),
}

/// Carries a command out and gives the tag of its CommandComplete.
pub(super) async fn run(change: Change, operator: &str, view: View<'_>) -> Result<&'static str, PgError> {
    match change {
        Change::Pause(name, within) => {
            let tenants = chosen(name, view)?;
            tenants.iter().for_each(|tenant| pause(tenant, operator, view));
            tenants.iter().for_each(|tenant| view.pools.evict(tenant));
            let free = async {
                for tenant in &tenants {
                    until_free(tenant, view).await;
                }
            };
            match within {
                None => free.await,
                Some(within) => tokio::time::timeout(within, free).await.map_err(|_| still_busy(&tenants, view))?,
            }
            Ok("PAUSE")
        }
        Change::Resume(name) => resume(name, operator, view).map(|()| "RESUME"),
        Change::SuspendAll => {
            chosen(None, view)?.iter().for_each(|tenant| pause(tenant, operator, view));
            Ok("SUSPEND")
        }
        Change::State(name, state, reason) => {
            let tenant = tenant(&name, view)?;
            let standing = Standing { disabled: tenant.state().disabled, ..Standing::by(operator, state, reason) };
            set(&tenant, standing, view);
            Ok(match state {
                TenantState::Maintenance => "MAINTENANCE",
                TenantState::ReadOnly => "READ_ONLY",
                _ => "SUSPEND",
            })
        }
        Change::Disable(name) => {
            let tenant = tenant(&name, view)?;
            set(&tenant, Standing { disabled: true, ..(*tenant.state()).clone() }, view);
            Ok("DISABLE")
        }
        Change::Enable(name) => {
            let tenant = tenant(&name, view)?;
            let standing = tenant.state();
            let kept_out = matches!(standing.state, TenantState::Suspended | TenantState::Maintenance);
            let standing = if kept_out { released(&tenant, operator) } else { (*standing).clone() };
            set(&tenant, Standing { disabled: false, ..standing }, view);
            Ok("ENABLE")
        }
        Change::Kill(name) => {
            let tenant = tenant(&name, view)?;
            pause(&tenant, operator, view);
            view.sessions.order(Order::End, |session| Arc::ptr_eq(&session.tenant, &tenant));
            view.pools.evict(&tenant);
            Ok("KILL")
        }
        Change::WaitClose(name) => {
            let asked = SystemTime::now();
            for tenant in &chosen(name, view)? {
                until_renewed(tenant, asked, view).await;
            }
            Ok("WAIT_CLOSE")
        }
    }
}

fn chosen(name: Option<String>, view: View<'_>) -> Result<Vec<Arc<Tenant>>, PgError> {
    match name {
        Some(name) => tenant(&name, view).map(|tenant| vec![tenant]),
        None => Ok(view.registry.all()),
    }
}

fn set(tenant: &Arc<Tenant>, standing: Standing, view: View<'_>) {
    states::set(tenant, Some(standing), view.sessions, view.pools);
}

/// Who is kept out stays so.
fn pause(tenant: &Arc<Tenant>, operator: &str, view: View<'_>) {
    let before = tenant.state();
    if !matches!(before.state, TenantState::Suspended | TenantState::Paused) {
        let paused = Standing::by(operator, TenantState::Paused, None);
        set(tenant, Standing { disabled: before.disabled, ..paused }, view);
    }
}

/// The record's state again; where that itself keeps the tenant from its work, it is active on the operator's word.
fn released(tenant: &Tenant, operator: &str) -> Standing {
    let standing = Standing::of(&tenant.current());
    match standing.state {
        TenantState::Active | TenantState::ReadOnly => standing,
        _ => Standing::by(operator, TenantState::Active, None),
    }
}

fn resume(name: Option<String>, operator: &str, view: View<'_>) -> Result<(), PgError> {
    let named = name.is_some();
    for tenant in chosen(name, view)? {
        let standing = tenant.state();
        let differs = standing.by.is_some() && standing.state != TenantState::Active;
        if standing.state == TenantState::Paused || named && differs {
            set(&tenant, Standing { disabled: standing.disabled, ..released(&tenant, operator) }, view);
        } else if named {
            let text = format!("tenant \"{}\" is not paused", tenant.id);
            return Err(PgError::error(WRONG_STATE, text).with_hint("SHOW TENANTS has their states."));
        }
    }
    Ok(())
}

/// The pause is in force all the same.
fn still_busy(tenants: &[Arc<Tenant>], view: View<'_>) -> PgError {
    let busy: Vec<&str> =
        tenants.iter().filter(|tenant| is_in_use(tenant, view)).map(|tenant| tenant.id.as_str()).collect();
    let (shown, more) = (&busy[..busy.len().min(NAMED)], busy.len().saturating_sub(NAMED));
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    PgError::error(sqlstate::QUERY_CANCELED, "paused, but backends are still in use")
        .with_detail(format!("Clients hold backends of: {}{more}.", shown.join(", ")))
        .with_hint("SHOW CLIENTS has them, KILL_CLIENT ends one; RESUME ends the pause.")
}

/// Whether a client of the tenant has a backend.
fn is_in_use(tenant: &Arc<Tenant>, view: View<'_>) -> bool {
    let of_tenant = |session: &Arc<crate::sessions::Session>| Arc::ptr_eq(&session.tenant, tenant);
    let held = view.sessions.all().iter().any(|session| of_tenant(session) && session.backend().is_some());
    // Those that listen for many clients run nothing of theirs.
    held || view.pools.counts(tenant).active as usize > view.hubs.count(tenant)
}

/// Until no client of the tenant has a backend, or the tenant is no longer paused.
async fn until_free(tenant: &Arc<Tenant>, view: View<'_>) {
    let stays = || tenant.state().state == TenantState::Paused && !tenant.is_retired();
    while stays() && is_in_use(tenant, view) && view.drain.phase() != Phase::Ended {
        tokio::time::sleep(LOOK).await;
    }
}

/// Until no client has a backend that was to be closed when it was asked for.
async fn until_renewed(tenant: &Arc<Tenant>, asked: SystemTime, view: View<'_>) {
    let Some(evicted) = view.pools.evicted(tenant).filter(|evicted| *evicted <= asked) else { return };
    let old = || {
        view.sessions
            .all()
            .iter()
            .filter(|session| Arc::ptr_eq(&session.tenant, tenant))
            .any(|session| session.backend().is_some_and(|backend| backend.opened() <= evicted))
    };
    while old() && !tenant.is_retired() && view.drain.phase() != Phase::Ended {
        tokio::time::sleep(LOOK).await;
    }
}
