//! The answers to SHOW: each with PgBouncer's columns and types in PgBouncer's order, and where the rows come from.
//!
//! Source: PgBouncer 1.25, `src/admin.c` and `src/stats.c`. What has no meaning here is 0 or empty (docs/CONSOLE.md).

mod connections;
mod process;
pub(super) mod settings;
mod stats;
mod tenants;

use super::View;
use super::table::{Columns, Kind, Row};

/// One SHOW.
#[derive(Debug)]
pub(super) struct Report {
    pub name: &'static str,
    pub columns: Columns,
    make: fn(View<'_>) -> Vec<Row>,
}

impl Report {
    /// Reads everything anew; takes milliseconds where there are thousands of rows.
    pub fn rows(&self, view: View<'_>) -> Vec<Row> {
        (self.make)(view)
    }
}

/// The SHOW of this name, in any case.
pub(super) fn find(name: &str) -> Option<&'static Report> {
    REPORTS.iter().find(|report| report.name.eq_ignore_ascii_case(name))
}

/// The text of SHOW HELP.
pub(super) fn help() -> String {
    let names: Vec<&str> = REPORTS.iter().map(|report| report.name).collect();
    format!(
        "Console usage\n\tSHOW HELP|{}\n\tEXPLAIN ROUTE [user=…] [database=…] [options='…'] [sni=…] [certificate=…]\n\t\
         RELOAD\n\tSET <key> = <value>|DEFAULT\n\tRECONNECT [<tenant>]\n\tWAIT_CLOSE [<tenant>]\n\tPAUSE [<tenant>] [WITHIN '<time>']\n\tRESUME [<tenant>]\n\t\
         SUSPEND\n\tSUSPEND|MAINTENANCE|READ_ONLY <tenant> ['reason']\n\tDISABLE <tenant>\n\tENABLE <tenant>\n\t\
         KILL <tenant>\n\tKILL_CLIENT <client_id>\n\tSHUTDOWN\n\t\
         SHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS\n",
        names.join("|")
    )
}

use Kind::{Int4, Int8, Numeric, Text};

/// CLIENTS, SERVERS and, with seven more, SOCKETS.
macro_rules! connection_columns {
    ($($further:expr,)*) => {
        &[
            ("type", Text), ("user", Text), ("database", Text), ("replication", Text), ("state", Text), ("addr", Text),
            ("port", Int4), ("local_addr", Text), ("local_port", Int4), ("connect_time", Text), ("request_time", Text),
            ("wait", Int4), ("wait_us", Int4), ("close_needed", Int4), ("ptr", Text), ("link", Text),
            ("remote_pid", Int4), ("tls", Text), ("application_name", Text), ("prepared_statements", Int4), ("id", Int8),
            $($further,)*
        ]
    };
}

const CONNECTIONS: Columns = connection_columns![];
#[rustfmt::skip]
const SOCKETS: Columns = connection_columns![
    ("recv_pos", Int4), ("pkt_pos", Int4), ("pkt_remain", Int4), ("send_pos", Int4), ("send_remain", Int4),
    ("pkt_avail", Int4), ("send_avail", Int4),
];

#[rustfmt::skip]
const REPORTS: &[Report] = &[
    Report { name: "ACTIVE_SOCKETS", columns: SOCKETS, make: connections::active_sockets },
    Report { name: "CLIENTS", columns: CONNECTIONS, make: connections::clients },
    Report { name: "CONFIG", make: settings::config, columns: &[
        ("key", Text), ("value", Text), ("default", Text), ("changeable", Text),
    ] },
    Report { name: "DATABASES", make: tenants::databases, columns: &[
        ("name", Text), ("host", Text), ("port", Int4), ("database", Text), ("force_user", Text), ("pool_size", Int4),
        ("min_pool_size", Int4), ("reserve_pool_size", Int4), ("server_lifetime", Int4), ("pool_mode", Text),
        ("load_balance_hosts", Text), ("max_connections", Int4), ("current_connections", Int4),
        ("max_client_connections", Int4), ("current_client_connections", Int4), ("paused", Int4), ("disabled", Int4),
    ] },
    Report { name: "DNS_HOSTS", make: process::nothing, columns: &[("hostname", Text), ("ttl", Int8), ("addrs", Text)] },
    Report { name: "DNS_ZONES", make: process::nothing, columns: &[
        ("zonename", Text), ("serial", Int4), ("count", Int4),
    ] },
    Report { name: "FDS", make: process::nothing, columns: &[
        ("fd", Int4), ("task", Text), ("user", Text), ("database", Text), ("addr", Text), ("port", Int4),
        ("cancel", Int8), ("link", Int4), ("client_encoding", Text), ("std_strings", Text), ("datestyle", Text),
        ("timezone", Text), ("password", Text),
    ] },
    Report { name: "INSTANCES", make: tenants::instances, columns: &[
        ("instance", Text), ("address", Text), ("tls", Text), ("region", Text), ("tenants", Int4),
        ("max_backends", Int4), ("backends_active", Int4), ("backends_idle", Int4), ("backends_connecting", Int4),
        ("waiting", Int4),
    ] },
    Report { name: "LISTS", make: process::lists, columns: &[("list", Text), ("items", Int4)] },
    Report { name: "MEM", make: process::memory, columns: &[
        ("name", Text), ("size", Int4), ("used", Int4), ("free", Int4), ("memtotal", Int8),
    ] },
    Report { name: "PEERS", make: process::nothing, columns: &[
        ("peer_id", Int4), ("host", Text), ("port", Int4), ("pool_size", Int4),
    ] },
    Report { name: "PEER_POOLS", make: process::nothing, columns: &[
        ("peer_id", Int4), ("cl_active_cancel_req", Int4), ("cl_waiting_cancel_req", Int4), ("sv_active_cancel", Int4),
        ("sv_login", Int4),
    ] },
    Report { name: "PINS", make: connections::pins, columns: &[
        ("tenant", Text), ("user", Text), ("database", Text), ("id", Int8), ("addr", Text), ("application_name", Text),
        ("reasons", Text), ("seconds", Int8), ("max_pins", Int4),
    ] },
    Report { name: "POOLS", make: tenants::pools, columns: &[
        ("database", Text), ("user", Text), ("cl_active", Int4), ("cl_waiting", Int4), ("cl_active_cancel_req", Int4),
        ("cl_waiting_cancel_req", Int4), ("sv_active", Int4), ("sv_active_cancel", Int4), ("sv_being_canceled", Int4),
        ("sv_idle", Int4), ("sv_used", Int4), ("sv_tested", Int4), ("sv_login", Int4), ("maxwait", Int4),
        ("maxwait_us", Int4), ("pool_mode", Text), ("load_balance_hosts", Text),
    ] },
    Report { name: "QUOTAS", make: tenants::quotas, columns: &[
        ("tenant", Text), ("tier", Text), ("quota", Text), ("unit", Text), ("limit", Text), ("used", Text),
        ("used_percent", Int8), ("refused", Int8),
    ] },
    Report { name: "SERVERS", columns: CONNECTIONS, make: connections::servers },
    Report { name: "SOCKETS", columns: SOCKETS, make: connections::sockets },
    Report { name: "STATE", make: process::state, columns: &[("key", Text), ("value", Text)] },
    Report { name: "STATS", make: stats::stats, columns: &[
        ("database", Text), ("total_server_assignment_count", Numeric), ("total_xact_count", Numeric),
        ("total_query_count", Numeric), ("total_received", Numeric), ("total_sent", Numeric),
        ("total_xact_time", Numeric), ("total_query_time", Numeric), ("total_wait_time", Numeric),
        ("total_client_parse_count", Numeric), ("total_server_parse_count", Numeric), ("total_bind_count", Numeric),
        ("avg_server_assignment_count", Numeric), ("avg_xact_count", Numeric), ("avg_query_count", Numeric),
        ("avg_recv", Numeric), ("avg_sent", Numeric), ("avg_xact_time", Numeric), ("avg_query_time", Numeric),
        ("avg_wait_time", Numeric), ("avg_client_parse_count", Numeric), ("avg_server_parse_count", Numeric),
        ("avg_bind_count", Numeric),
    ] },
    Report { name: "STATS_AVERAGES", columns: STATS, make: stats::averages },
    Report { name: "STATS_TOTALS", columns: STATS, make: stats::totals_by_tenant },
    Report { name: "TENANTS", make: tenants::tenants, columns: &[
        ("tenant", Text), ("instance", Text), ("state", Text), ("pool_mode", Text), ("clients", Int4),
        ("waiting", Int4), ("pins", Int4), ("backends_active", Int4), ("backends_idle", Int4),
        ("backends_connecting", Int4), ("max_backends", Int4), ("queries", Int8), ("transactions", Int8),
        ("bytes_received", Int8), ("bytes_sent", Int8), ("wait_us", Int8), ("query_us", Int8), ("errors", Int8),
        ("logins", Int8), ("login_failures", Int8), ("tier", Text), ("disabled", Int4), ("state_reason", Text),
        ("state_by", Text),
    ] },
    Report { name: "TOTALS", make: stats::totals, columns: &[("name", Text), ("value", Numeric)] },
    Report { name: "USERS", make: tenants::users, columns: &[
        ("name", Text), ("pool_size", Int4), ("reserve_pool_size", Int4), ("pool_mode", Text),
        ("max_user_connections", Int4), ("current_connections", Int4), ("max_user_client_connections", Int4),
        ("current_client_connections", Int4),
    ] },
    Report { name: "VERSION", make: process::version, columns: &[("version", Text)] },
];

#[rustfmt::skip]
const STATS: Columns = &[
    ("database", Text), ("server_assignment_count", Numeric), ("xact_count", Numeric), ("query_count", Numeric),
    ("bytes_received", Numeric), ("bytes_sent", Numeric), ("xact_time", Numeric), ("query_time", Numeric),
    ("wait_time", Numeric), ("client_parse_count", Numeric), ("server_parse_count", Numeric), ("bind_count", Numeric),
];
