//! Configuration: `file` as written, `resolve` into the complete and checked [`Config`] that everything else takes.
//!
//! This module knows nobody above it: it holds plain data. Secrets are held as [`Secret`] and never printed.

mod admin;
mod backup;
mod document;
mod file;
mod http;
mod instances;
mod layers;
mod lifecycle;
mod migrate;
mod pool;
mod problem;
mod program;
mod query;
mod quota;
mod read;
mod resolve;
mod scalar;
mod secret;
mod tenants;
#[cfg(test)]
mod tests;
mod unknown;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

pub use backup::{Backup, TenantBackup};
pub use document::OVERRIDE;
pub use lifecycle::{Host, InstanceAdmin, Lifecycle};
pub use migrate::{BakeLimits, Migrate};
pub use problem::{ConfigError, Problem};
pub use program::{EXISTING, Program};
pub use query::Query;
pub use quota::Quota;
pub use resolve::load;
pub use scalar::duration;
pub use secret::Secret;
pub use tenants::check_id;

/// The complete, checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Every file that was read, for the watcher: `proxy.toml`, the tenants' folder, secrets, certificates.
    pub sources: Vec<PathBuf>,
    /// What was set in `proxy.toml` or over it, as text by dotted key: what an operator is shown. No tenants, instances
    /// or roles, which have secrets.
    pub written: BTreeMap<String, String>,
    pub listen: Listen,
    pub tls: Tls,
    pub routing: Routing,
    pub auth: Auth,
    pub pool: PoolDefaults,
    pub fairness: Fairness,
    pub limits: Limits,
    pub http: Http,
    pub log: Log,
    pub tracing: Tracing,
    pub drain: Drain,
    pub admin: Admin,
    pub lifecycle: Lifecycle,
    pub migrate: Migrate,
    pub backup: Backup,
    /// Files that `{ file = … }` of proxy.toml itself point to, tenants left out.
    pub secret_files: Vec<PathBuf>,
    pub query: Query,
    pub instances: BTreeMap<String, Arc<Instance>>,
    pub tenants: BTreeMap<String, Arc<Tenant>>,
}

/// Where clients connect.
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    /// TCP addresses; default `127.0.0.1:6432`. Port 0 takes a free one.
    pub addresses: Vec<SocketAddr>,
    /// Folder for the Unix socket `.s.PGSQL.<port of the first address>`; none by default.
    pub unix_socket_dir: Option<PathBuf>,
    /// Permission bits of the Unix socket; default 0o777, as PostgreSQL's own.
    pub unix_socket_mode: u32,
    /// Length of the kernel's accept queue; default 1024.
    pub backlog: u32,
    /// Worker threads for sessions; default one per core.
    pub workers: usize,
    /// How they move bytes.
    pub engine: Engine,
}

/// How worker threads ask the kernel to move bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// io_uring where the kernel has it (Linux 6.1) and allows it, otherwise epoll.
    #[default]
    Auto,
    Epoll,
    /// Without it there is no start.
    IoUring,
}

/// Whether clients must use TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    Required,
    Preferred,
    Off,
}

/// TLS towards clients.
#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    /// Default: `required`, unless every address is a loopback one: then `preferred` (`off` without certificates).
    /// Unix sockets never need TLS.
    pub mode: TlsMode,
    /// Folder of certificates, `<name>.crt` (PEM chain) beside `<name>.key`; served by the names inside them.
    pub certificates: Option<PathBuf>,
    /// File name (without ending) in `certificates` of the one served without or with an unknown SNI; default
    /// `default` where that exists, otherwise the first by name.
    pub default_certificate: Option<String>,
}

/// Which hints may name the tenant.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// SNI `<tenant>.<domain>` for each of these (lower case, no leading dot); empty switches the rule off.
    pub sni_domains: Vec<String>,
    /// `options=-c tenant=…`; default on.
    pub options: bool,
    /// User `role.tenant`, split at the last separator; default on with `.`.
    pub user_suffix: Option<char>,
    /// Database name → tenant id, from `[routing.databases]`; empty switches the rule off.
    pub databases: BTreeMap<String, String>,
    /// A verified client certificate's tenant (tenant's own CA); default on.
    pub client_certificate: bool,
}

/// Client authentication.
#[derive(Debug, Clone, PartialEq)]
pub struct Auth {
    /// From accept to ReadyForQuery; default 15 s.
    pub login_timeout: Duration,
    /// Failed logins of one address at one tenant before back-off begins; default 5.
    pub free_attempts: u32,
    /// First and longest wait of the back-off, which doubles; default 1 s and 60 s.
    pub backoff: Duration,
    pub backoff_max: Duration,
    /// How long a verifier from `auth_query` is used without asking again; default 60 s.
    pub verifier_ttl: Duration,
    /// Over TLS, ask for the password itself instead of a proof, for clients that know neither SCRAM nor md5; default
    /// false.
    pub cleartext: bool,
    /// PBKDF2 iterations that a mock exchange shows; default 4096, PostgreSQL's own.
    pub mock_iterations: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolMode {
    Transaction,
    Session,
    Statement,
}

impl PoolMode {
    /// As it is written.
    pub fn text(self) -> &'static str {
        match self {
            PoolMode::Transaction => "transaction",
            PoolMode::Session => "session",
            PoolMode::Statement => "statement",
        }
    }
}

/// Pool settings, `[pool]`; each may be overridden in a tenant's `[pool]` table, see [`TenantPool`].
#[derive(Debug, Clone, PartialEq)]
pub struct PoolDefaults {
    pub defaults: TenantPool,
    /// Connects under way at a time, per tenant and per instance; default 4 and 16.
    pub max_connecting_per_tenant: u32,
    pub max_connecting_per_instance: u32,
    /// From TCP connect to a logged-in, identified backend; default 5 s.
    pub connect_timeout: Duration,
    /// First and longest wait after a failed connect; default 100 ms and 15 s.
    pub retry: Duration,
    pub retry_max: Duration,
}

/// How tenants share an instance, `[fairness]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Fairness {
    /// By weight and backend time; otherwise first come, first served. Default true.
    pub enabled: bool,
    /// Backend time, for a weight of 1, by which a tenant may run ahead of one that waits; default 100 ms.
    pub quantum: Duration,
    /// After so long an idle backend may be closed for tenants that have their share already; default 1 s.
    pub lend_after: Duration,
    /// With longer waits for an instance's backends, requests are turned away (CoDel). Default: never.
    pub shed_target: Option<Duration>,
    /// When no wait was shorter for so long; default 5 s.
    pub shed_interval: Duration,
}

/// The pool settings of one tenant.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantPool {
    /// Default transaction.
    pub mode: PoolMode,
    /// Backends of the tenant, all roles and databases together; default 20.
    pub max_backends: u32,
    /// Backends of one (database, role); default: `max_backends`.
    pub max_backends_per_role: u32,
    /// Backends of one (database, role) kept open once it was used; default 0.
    pub min_backends: u32,
    /// So many of the instance's backends are the tenant's before any other's; default 0.
    pub guaranteed_backends: u32,
    /// So many of the tenant's backends are a (database, role)'s before any other's; default 0.
    pub guaranteed_backends_per_role: u32,
    /// Of what several tenants of an instance want, in proportion to the others'; 1 to 1000, default 1.
    pub weight: u32,
    /// Longest wait for a backend; default 30 s.
    pub queue_timeout: Duration,
    /// An idle backend beyond the minimum is closed after this; default 10 min.
    pub idle_timeout: Duration,
    /// A backend is closed at the first release after this age; default 1 h.
    pub lifetime: Duration,
    /// When a backend is cleaned before another client gets it; default `when-dirty`.
    pub reset: Reset,
    /// In transaction mode, ask the backend after every transaction what it has left, for state that functions make
    /// out of sight; default false.
    pub pin_check: bool,
    /// In transaction mode, prepare unnamed statements that recur once for each backend; default true.
    pub cache_unnamed: bool,
    /// Clients that may keep a backend at a time in transaction mode; default: as many as there are backends.
    pub max_pins: Option<u32>,
    /// Longest time that one may keep it; default: for ever.
    pub max_pin_time: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reset {
    /// When the last client did something that may have left state behind.
    WhenDirty,
    /// Always.
    Always,
}

/// Bounds on what a client can make us hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Client connections, all tenants together; default 10,000.
    pub max_clients: usize,
    /// Longest message of the protocol, in bytes; default 1 GiB - 1 as PostgreSQL's.
    pub max_message: u32,
    /// Longest StartupMessage, in bytes; default 10,000 as PostgreSQL's.
    pub max_startup: u32,
    /// Prepared statements one client may hold; default 1,000.
    pub max_prepared_per_client: usize,
    /// Prepared statements kept on one backend; the least recently used goes first; default 200.
    pub max_prepared_per_backend: usize,
    /// Longest statement that is remembered for other backends, in bytes; default 1 MiB. A longer one keeps its
    /// client on its backend while it exists.
    pub max_prepared_size: usize,
}

/// The HTTP endpoint: metrics, health checks, the API and the page.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// Default `127.0.0.1:9930`; none switches it off.
    pub address: Option<SocketAddr>,
    /// Tenants with series of their own on `/metrics`; the rest is summed as `_other`; default 500.
    pub max_tenant_series: usize,
    /// Opens the API (`Authorization: Bearer …`); none by default. At least 16 characters.
    pub token: Option<Secret>,
    /// TLS with the certificates that clients of PostgreSQL are shown; default false.
    pub tls: bool,
    /// CA certificates (PEM): a client certificate that one of them signed opens the API, too.
    pub client_ca: Option<PathBuf>,
}

impl Http {
    /// Whether only this machine can connect.
    pub fn is_local(&self) -> bool {
        self.address.is_none_or(|address| address.ip().is_loopback())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    pub format: LogFormat,
    /// A tracing filter; default `info`.
    pub filter: String,
    /// One line per session end; default true.
    pub sessions: bool,
    /// One line for a transaction that takes as long, its wait included; default none.
    pub slow_transaction: Option<Duration>,
    /// One line for a wait for a backend that takes as long; default none.
    pub slow_wait: Option<Duration>,
    /// With the text of its first query, in these lines and in spans; default false.
    pub sql: bool,
}

impl Default for Log {
    fn default() -> Self {
        Log {
            format: LogFormat::Text,
            filter: "info".to_owned(),
            sessions: true,
            slow_transaction: None,
            slow_wait: None,
            sql: false,
        }
    }
}

/// OpenTelemetry spans.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// Where they go; none by default: there are none.
    pub collector: Option<Collector>,
    /// Of those that are neither slow nor failed, the share that is kept; default 0.01.
    pub sample: f64,
    /// What takes as long is kept; default 1 s.
    pub slow: Duration,
}

/// A collector that takes OTLP over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// Host and port.
    pub authority: String,
    /// Default `/v1/traces`.
    pub path: String,
    /// Whose CA certificates vouch for it; none without TLS.
    pub trust: Option<Trust>,
    /// What opens it: `Authorization: Bearer …`.
    pub token: Option<Secret>,
    /// The `service.name` of our spans; default `pgtenant`.
    pub service: String,
}

/// Who vouches for a server on the web.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// The CAs that this machine trusts.
    System,
    /// Those of a PEM file.
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Drain {
    /// After SIGTERM, how long transactions may take to finish; default 30 s.
    pub timeout: Duration,
}

/// Who may use the admin console; nobody by default, and then there is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Admin {
    pub roles: BTreeMap<String, AdminRole>,
}

/// What a role of the console may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Look, with SHOW and EXPLAIN.
    Stats,
    /// Everything.
    Admin,
}

/// One role of the console, `[admin.roles.<name>]`; it has one of both secrets.
#[derive(Debug, Clone, PartialEq)]
pub struct AdminRole {
    /// Default stats.
    pub access: Access,
    /// `SCRAM-SHA-256$…`; not checked here beyond its prefix.
    pub verifier: Option<Secret>,
    pub password: Option<Secret>,
}

/// One PostgreSQL server that holds tenant databases, `[instances.<name>]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    pub name: String,
    pub address: InstanceAddress,
    pub tls: InstanceTls,
    /// Name that `verify-full` expects in the certificate; default: the host.
    pub tls_server_name: String,
    /// CA certificates (PEM) for `verify-ca` and `verify-full`.
    pub tls_ca: Option<PathBuf>,
    /// Backends of all tenants together; default 90.
    pub max_backends: u32,
    /// `system_identifier` of the cluster (`pg_controldata`, `pg_control_system()`); when absent, the first one
    /// seen since the start holds until the end.
    pub system_identifier: Option<u64>,
    pub region: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum InstanceAddress {
    Tcp {
        host: String,
        port: u16,
    },
    /// A folder (starts with `/`) that holds `.s.PGSQL.<port>`.
    Unix {
        dir: PathBuf,
        port: u16,
    },
}

impl std::fmt::Display for InstanceAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            InstanceAddress::Tcp { host, port } => write!(f, "{host}:{port}"),
            InstanceAddress::Unix { dir, port } => write!(f, "{}/.s.PGSQL.{port}", dir.display()),
        }
    }
}

/// TLS to an instance, libpq's `sslmode` without `allow` and `prefer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceTls {
    Off,
    /// Encrypted, certificate not checked.
    Require,
    VerifyCa,
    VerifyFull,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TenantState {
    Active,
    /// Transactions may read only, unless they ask for more.
    ReadOnly,
    /// Clients wait between transactions, and new ones at their login, for [`Quota::pause_max`] at most.
    Paused,
    /// Sessions end at their next safe point, and logins are refused with 57P03.
    Suspended,
    /// As suspended, but for [`Tenant::maintenance_roles`].
    Maintenance,
}

impl TenantState {
    pub const ALL: [TenantState; 5] = [
        TenantState::Active,
        TenantState::ReadOnly,
        TenantState::Paused,
        TenantState::Suspended,
        TenantState::Maintenance,
    ];

    /// As it is written.
    pub fn text(self) -> &'static str {
        match self {
            TenantState::Active => "active",
            TenantState::ReadOnly => "read-only",
            TenantState::Paused => "paused",
            TenantState::Suspended => "suspended",
            TenantState::Maintenance => "maintenance",
        }
    }
}

/// One tenant, `tenants.d/<id>.toml` or `[tenants.<id>]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenant {
    /// Lower-case letters, digits, `-` and `_`; begins with a letter or digit; at most 63 (a DNS label).
    pub id: String,
    /// Where the record was read, for error messages.
    pub source: PathBuf,
    pub instance: Arc<Instance>,
    /// Where the tenant has to stay: its instance is there, or the record is refused.
    pub region: Option<String>,
    /// Where its passwords were written when it was made; goes with the tenant. Nothing else looks at it.
    pub credentials: Option<PathBuf>,
    /// The `[tier.<name>]` that it has its defaults from.
    pub tier: Option<String>,
    pub state: TenantState,
    /// What clients are told about a state that keeps them out.
    pub state_reason: Option<String>,
    /// Roles that may work in state `maintenance`.
    pub maintenance_roles: Vec<String>,
    /// The tenant's database, and the one a client gets that asks for none or for the role's name.
    pub database: String,
    /// Further databases, by the names a client uses.
    pub databases: Databases,
    /// Roles by name; with `auth_query` those that it knows come on top.
    pub roles: BTreeMap<String, Role>,
    pub auth_query: Option<AuthQuery>,
    /// How backends log in when a role has no secret of its own; none: with the client's own SCRAM keys.
    pub service: Option<Service>,
    /// Client addresses that may log in; empty: all. Unix sockets always may.
    pub allow: Vec<IpNet>,
    /// CA certificates (PEM) of the tenant's client certificates; none: not asked for.
    pub client_ca: Option<PathBuf>,
    /// Clients must present such a certificate; default false.
    pub client_certificate_required: bool,
    pub pool: TenantPool,
    pub quota: Quota,
    pub backup: TenantBackup,
    /// Files that the record's `{ file = … }` point to.
    pub secret_files: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Databases {
    /// Only [`Tenant::database`] and these.
    Named(Vec<String>),
    /// `["*"]`: whatever the instance has; only where the tenant has the instance to itself.
    All,
}

/// One role of a tenant.
#[derive(Debug, Clone, PartialEq)]
pub struct Role {
    /// A verifier as in `pg_authid.rolpassword`: `SCRAM-SHA-256$…` or `md5…`; not checked here beyond its prefix.
    pub verifier: Option<Secret>,
    /// The role's password, by reference: clients are checked against it and backends log in with it.
    pub password: Option<Secret>,
    /// A client certificate with this common name logs the role in without a password.
    pub certificate_cn: Option<String>,
    /// No login after this moment.
    pub valid_until: Option<time::OffsetDateTime>,
    /// The password that was before, while it is good as well.
    pub previous: Option<Previous>,
}

/// A role's former password, after a rotation.
#[derive(Debug, Clone, PartialEq)]
pub struct Previous {
    /// `SCRAM-SHA-256$…` with the salt and iterations of the role's present verifier.
    pub verifier: Secret,
    pub valid_until: time::OffsetDateTime,
    /// The present password: backends of clients that come with the former one log in with it.
    pub present_password: Secret,
}

/// Verifiers are asked for in the tenant's own database.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthQuery {
    /// `$1` is the role; columns: role, verifier, valid until (timestamptz or null).
    /// Default: `SELECT rolname::text, rolpassword, rolvaliduntil FROM pg_authid WHERE rolname = $1 AND rolcanlogin`.
    pub query: String,
    pub user: String,
    pub password: Option<Secret>,
    /// Database to ask in; default: the tenant's.
    pub database: String,
}

/// A role with which all of a tenant's backends log in.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    pub user: String,
    pub password: Option<Secret>,
}
