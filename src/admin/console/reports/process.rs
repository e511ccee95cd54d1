//! The process itself: VERSION, STATE, LISTS, MEM, and what PgBouncer has and we have not.

use super::super::View;
use super::super::table::{Row, row};
use super::tenants;
use crate::drain::Phase;

/// No peers, no names that are remembered, no sockets for another process to take over.
pub(super) fn nothing(_: View<'_>) -> Vec<Row> {
    Vec::new()
}

pub(super) fn version(_: View<'_>) -> Vec<Row> {
    vec![row![concat!("pgtenant ", env!("CARGO_PKG_VERSION"))]]
}

pub(super) fn state(view: View<'_>) -> Vec<Row> {
    let draining = view.drain.phase() != Phase::Running;
    let yes_no = |yes| if yes { "yes" } else { "no" };
    vec![row!["active", yes_no(!draining)], row!["paused", "no"], row!["suspended", "no"]]
}

pub(super) fn lists(view: View<'_>) -> Vec<Row> {
    let (mut pools, mut free, mut used) = (0, 0, 0);
    for tenant in view.registry.all() {
        let of_tenant = view.pools.pools(&tenant);
        pools += of_tenant.len();
        for pool in of_tenant {
            let counts = pool.counts();
            free += counts.idle;
            used += counts.active;
        }
    }
    vec![
        row!["databases", view.registry.all().len()],
        row!["users", tenants::users(view).len()],
        row!["peers", 0],
        row!["pools", pools],
        row!["peer_pools", 0],
        row!["free_clients", 0],
        row!["used_clients", view.sessions.count()],
        row!["login_clients", 0],
        row!["free_servers", free],
        row!["used_servers", used],
        row!["dns_names", 0],
        row!["dns_zones", 0],
        row!["dns_queries", 0],
        row!["dns_pending", 0],
    ]
}

/// Resident memory in pages; PgBouncer shows its slabs.
pub(super) fn memory(_: View<'_>) -> Vec<Row> {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    // SAFETY: sysconf takes a number and reads nothing of ours.
    let size = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    vec![row!["resident", size, pages, 0, pages * size]]
}
