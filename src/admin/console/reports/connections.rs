//! Connections one by one: CLIENTS, SERVERS, SOCKETS, PINS.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use time::OffsetDateTime;

use super::super::View;
use super::super::table::{Row, Value, row};
use super::tenants::{database_name, host_and_port, sorted};
use crate::backend::CancelKey;
use crate::metrics::Label;
use crate::pool::Pool;
use crate::sessions::{Activity, Session};
use crate::tenant::Tenant;

/// What CLIENTS and SERVERS show; the rest of their columns is 0 or empty.
#[derive(Default)]
struct Connection {
    kind: &'static str,
    user: String,
    database: String,
    replication: bool,
    state: &'static str,
    address: (String, u16),
    /// None: not known, and shown as the epoch, because agents take no empty time.
    connected: Option<SystemTime>,
    ptr: String,
    link: String,
    remote_pid: i32,
    tls: String,
    application_name: String,
    id: u32,
}

impl Connection {
    fn row(self) -> Row {
        let (address, port) = self.address;
        let connected = moment(self.connected.unwrap_or(SystemTime::UNIX_EPOCH));
        row![
            self.kind,
            self.user,
            self.database,
            if self.replication { "yes" } else { "none" },
            self.state,
            address,
            port,
            "",
            0,
            connected.clone(),
            connected,
            0,
            0,
            0,
            self.ptr,
            self.link,
            self.remote_pid,
            self.tls,
            self.application_name,
            0,
            self.id,
        ]
    }
}

/// As PgBouncer writes it.
fn moment(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", at.hour(), at.minute(), at.second())
}

fn client_name(session: &Session) -> String {
    format!("client-{}", session.id)
}

/// Process ids are an instance's own.
fn backend_name(pool: &Pool, pid: i32) -> String {
    format!("{}/{pid}", pool.instance_name())
}

fn client_address(session: &Session) -> (String, u16) {
    session.about.address.map_or(("unix".to_owned(), 0), |address| (address.ip().to_string(), address.port()))
}

fn client(session: &Session) -> Connection {
    let about = &session.about;
    let state = match session.activity() {
        Activity::Idle => "idle",
        Activity::Waiting => "waiting",
        Activity::Active(_) => "active",
    };
    let link = session.backend().map_or_else(String::new, |key| backend_name(&about.pool, key.pid()));
    Connection {
        kind: "C",
        user: about.role.clone(),
        database: database_name(&session.tenant.current(), &about.pool.name.database),
        replication: about.pool.name.is_walsender(),
        state,
        address: client_address(session),
        connected: Some(about.since),
        ptr: client_name(session),
        link,
        tls: about.tls.map_or_else(String::new, |tls| tls.to_string()),
        application_name: about.application_name.to_string(),
        id: session.id,
        ..Connection::default()
    }
}

pub(super) fn clients(view: View<'_>) -> Vec<Row> {
    view.sessions.all().iter().map(|session| client(session).row()).collect()
}

/// Backends with the sessions that have them, by the address of their pools.
type Taken = HashMap<usize, Vec<(Arc<CancelKey>, Arc<Session>)>>;

fn taken(view: View<'_>) -> Taken {
    let mut found = Taken::new();
    for session in view.sessions.all() {
        if let Some(key) = session.backend() {
            found.entry(Arc::as_ptr(&session.about.pool) as usize).or_default().push((key, session));
        }
    }
    found
}

fn backends(view: View<'_>) -> Vec<Connection> {
    let mut taken = taken(view);
    let mut found = Vec::new();
    for tenant in sorted(view) {
        for pool in view.pools.pools(&tenant) {
            let known = taken.remove(&(Arc::as_ptr(&pool) as usize)).unwrap_or_default();
            of_pool(&tenant, &pool, known, &mut found);
        }
    }
    found
}

fn of_pool(tenant: &Tenant, pool: &Pool, taken: Vec<(Arc<CancelKey>, Arc<Session>)>, found: &mut Vec<Connection>) {
    let record = tenant.record();
    let counts = pool.counts();
    let unknown = |state: &'static str| Connection {
        kind: "S",
        user: pool.name.role.clone(),
        database: database_name(&record, &pool.name.database),
        replication: pool.name.is_walsender(),
        state,
        address: host_and_port(&record.instance.address),
        ..Connection::default()
    };
    let backend = |state: &'static str, key: &CancelKey| Connection {
        connected: Some(key.opened()),
        ptr: backend_name(pool, key.pid()),
        remote_pid: key.pid(),
        ..unknown(state)
    };
    found.extend(pool.idle().iter().map(|key| backend("idle", key)));
    // One that we look after ourselves, to listen for many clients, is in no session's hands.
    let ours = (counts.active as usize).saturating_sub(taken.len());
    for (key, session) in taken {
        found.push(Connection { link: client_name(&session), ..backend("active", &key) });
    }
    found.extend((0..ours).map(|_| unknown("active")));
    let connecting = || Connection { connected: Some(SystemTime::now()), ..unknown("login") };
    found.extend((0..counts.connecting).map(|_| connecting()));
}

pub(super) fn servers(view: View<'_>) -> Vec<Row> {
    backends(view).into_iter().map(Connection::row).collect()
}

pub(super) fn sockets(view: View<'_>) -> Vec<Row> {
    let clients = view.sessions.all();
    clients.iter().map(|session| client(session)).chain(backends(view)).map(with_buffers).collect()
}

pub(super) fn active_sockets(view: View<'_>) -> Vec<Row> {
    let clients = view.sessions.all();
    let all = clients.iter().map(|session| client(session)).chain(backends(view));
    all.filter(|it| it.state != "idle").map(with_buffers).collect()
}

/// Buffers belong to threads here, not to connections.
fn with_buffers(connection: Connection) -> Row {
    [connection.row(), vec![Value::Number(0); 7]].concat()
}

pub(super) fn pins(view: View<'_>) -> Vec<Row> {
    let now = Instant::now();
    let row = |session: &Arc<Session>| {
        let pinned = session.pinned()?;
        let reasons: Vec<&str> = pinned.pins.iter().map(Label::text).collect();
        let about = &session.about;
        Some(row![
            session.tenant.id.as_str(),
            about.role.as_str(),
            about.pool.name.database.as_str(),
            session.id,
            client_address(session).0,
            &*about.application_name,
            reasons.join(", "),
            now.saturating_duration_since(pinned.since).as_secs(),
            session.tenant.record().pool.max_pins,
        ])
    };
    view.sessions.all().iter().filter_map(row).collect()
}
