//! The configuration as it is written: one struct for each table, one field for each key, with the defaults.
//!
//! These structs are the one list of keys: unknown ones are told by them, and tests hold `proxy.toml` and
//! `docs/tenant.example.toml` against them. What the keys mean stands in `proxy.toml` and at the resolved types.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::scalar::{
    Address, Cidr, Count, FileMode, Limit, Moment, OptionalAddress, Period, Separator, Size, SystemIdentifier,
};
use super::secret::{Reference, Verifier};
use super::{
    Access, Engine, InstanceTls, LogFormat, PoolMode, Reset, TenantState, TlsMode, backup, lifecycle, migrate, program,
    query,
};

/// Folder of certificates, unless another one is named; only then it has to exist.
pub(super) const CERTIFICATES: &str = "certs";
/// Folder of instances; made when a provisioner makes the first.
pub(super) const INSTANCES_DIR: &str = "instances.d";
/// Folder of tenants, unless another one is named; only then it has to exist.
pub(super) const TENANTS_DIR: &str = "tenants.d";

const fn seconds(number: u64) -> Period {
    Period(Duration::from_secs(number))
}

const fn milliseconds(number: u64) -> Period {
    Period(Duration::from_millis(number))
}

/// `proxy.toml`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub listen: Listen,
    pub tls: Tls,
    pub routing: Routing,
    pub auth: Auth,
    pub pool: Pool,
    pub fairness: Fairness,
    pub quota: Quota,
    pub limits: Limits,
    pub http: Http,
    pub log: Log,
    pub tracing: Tracing,
    pub drain: Drain,
    pub admin: Admin,
    pub lifecycle: lifecycle::Written,
    pub migrate: migrate::Written,
    pub backup: backup::Written,
    pub query: query::Written,
    pub tier: BTreeMap<String, Tier>,
    pub tenants_dir: PathBuf,
    pub instances_dir: PathBuf,
    pub provisioner: BTreeMap<String, program::Provisioner>,
    pub instances: BTreeMap<String, Instance>,
    pub tenants: BTreeMap<String, Tenant>,
}

impl Default for File {
    fn default() -> Self {
        File {
            listen: Listen::default(),
            tls: Tls::default(),
            routing: Routing::default(),
            auth: Auth::default(),
            pool: Pool::default(),
            fairness: Fairness::default(),
            quota: Quota::default(),
            limits: Limits::default(),
            http: Http::default(),
            log: Log::default(),
            tracing: Tracing::default(),
            drain: Drain::default(),
            admin: Admin::default(),
            lifecycle: lifecycle::Written::default(),
            migrate: migrate::Written::default(),
            backup: backup::Written::default(),
            query: query::Written::default(),
            tier: BTreeMap::new(),
            tenants_dir: TENANTS_DIR.into(),
            instances_dir: INSTANCES_DIR.into(),
            provisioner: BTreeMap::new(),
            instances: BTreeMap::new(),
            tenants: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Listen {
    pub addresses: Vec<Address>,
    pub unix_socket_dir: Option<PathBuf>,
    pub unix_socket_mode: FileMode,
    pub backlog: u32,
    pub workers: Option<usize>,
    pub engine: Engine,
}

impl Default for Listen {
    fn default() -> Self {
        Listen {
            addresses: vec![Address(SocketAddr::from((Ipv4Addr::LOCALHOST, 6432)))],
            unix_socket_dir: None,
            unix_socket_mode: FileMode(0o777),
            backlog: 1024,
            workers: None,
            engine: Engine::Auto,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tls {
    pub mode: Option<TlsMode>,
    pub certificates: PathBuf,
    pub default_certificate: Option<String>,
}

impl Default for Tls {
    fn default() -> Self {
        Tls { mode: None, certificates: CERTIFICATES.into(), default_certificate: None }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Routing {
    pub sni_domains: Vec<String>,
    pub options: bool,
    pub user_suffix: Separator,
    pub client_certificate: bool,
    pub databases: BTreeMap<String, String>,
}

impl Default for Routing {
    fn default() -> Self {
        Routing {
            sni_domains: Vec::new(),
            options: true,
            user_suffix: Separator(Some('.')),
            client_certificate: true,
            databases: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Auth {
    pub login_timeout: Period,
    pub free_attempts: u32,
    pub backoff: Period,
    pub backoff_max: Period,
    pub verifier_ttl: Period,
    pub cleartext: bool,
    pub mock_iterations: u32,
}

impl Default for Auth {
    fn default() -> Self {
        Auth {
            login_timeout: seconds(15),
            free_attempts: 5,
            backoff: seconds(1),
            backoff_max: seconds(60),
            verifier_ttl: seconds(60),
            cleartext: false,
            mock_iterations: 4096,
        }
    }
}

/// `[pool]` of `proxy.toml`: the tenants' defaults, and how backends are connected.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Pool {
    pub mode: PoolMode,
    pub max_backends: u32,
    pub max_backends_per_role: Option<u32>,
    pub min_backends: u32,
    pub guaranteed_backends: u32,
    pub guaranteed_backends_per_role: u32,
    pub weight: u32,
    pub queue_timeout: Period,
    pub idle_timeout: Period,
    pub lifetime: Period,
    pub reset: Reset,
    pub pin_check: bool,
    pub cache_unnamed: bool,
    pub max_pins: Option<u32>,
    pub max_pin_time: Option<Period>,
    pub max_connecting_per_tenant: u32,
    pub max_connecting_per_instance: u32,
    pub connect_timeout: Period,
    pub retry: Period,
    pub retry_max: Period,
}

impl Default for Pool {
    fn default() -> Self {
        Pool {
            mode: PoolMode::Transaction,
            max_backends: 20,
            max_backends_per_role: None,
            min_backends: 0,
            guaranteed_backends: 0,
            guaranteed_backends_per_role: 0,
            weight: 1,
            queue_timeout: seconds(30),
            idle_timeout: seconds(10 * 60),
            lifetime: seconds(60 * 60),
            reset: Reset::WhenDirty,
            pin_check: false,
            cache_unnamed: true,
            max_pins: None,
            max_pin_time: None,
            max_connecting_per_tenant: 4,
            max_connecting_per_instance: 16,
            connect_timeout: seconds(5),
            retry: milliseconds(100),
            retry_max: seconds(15),
        }
    }
}

/// `[pool]` of a tenant: what differs from the defaults.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TenantPool {
    pub mode: Option<PoolMode>,
    pub max_backends: Option<u32>,
    pub max_backends_per_role: Option<u32>,
    pub min_backends: Option<u32>,
    pub guaranteed_backends: Option<u32>,
    pub guaranteed_backends_per_role: Option<u32>,
    pub weight: Option<u32>,
    pub queue_timeout: Option<Period>,
    pub idle_timeout: Option<Period>,
    pub lifetime: Option<Period>,
    pub reset: Option<Reset>,
    pub pin_check: Option<bool>,
    pub cache_unnamed: Option<bool>,
    pub max_pins: Option<u32>,
    pub max_pin_time: Option<Period>,
}

/// `[quota]` of `proxy.toml`, of a tier and of a tenant.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Quota {
    pub max_clients: Option<Limit<Count>>,
    pub max_transactions: Option<Limit<Count>>,
    pub transactions_per_second: Option<Limit<Count>>,
    pub transactions_burst: Option<Count>,
    pub bytes_per_second: Option<Limit<Size>>,
    pub bytes_burst: Option<Size>,
    pub backend_seconds_per_minute: Option<Limit<Count>>,
    pub max_result: Option<Limit<Size>>,
    pub query_timeout: Option<Limit<Period>>,
    pub transaction_timeout: Option<Limit<Period>>,
    pub idle_in_transaction_timeout: Option<Limit<Period>>,
    pub idle_session_timeout: Option<Limit<Period>>,
    pub delay_max: Option<Period>,
    pub notice_after: Option<Limit<Period>>,
    pub pause_max: Option<Period>,
}

/// `[tier.<name>]`: what the tenants of a tier have in common.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tier {
    pub quota: Quota,
    pub pool: TenantPool,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Fairness {
    pub enabled: bool,
    pub quantum: Period,
    pub lend_after: Period,
    pub shed_target: Option<Period>,
    pub shed_interval: Period,
}

impl Default for Fairness {
    fn default() -> Self {
        Fairness {
            enabled: true,
            quantum: milliseconds(100),
            lend_after: seconds(1),
            shed_target: None,
            shed_interval: seconds(5),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    pub max_clients: usize,
    pub max_message: Size,
    pub max_startup: Size,
    pub max_prepared_per_client: usize,
    pub max_prepared_per_backend: usize,
    pub max_prepared_size: Size,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_clients: 10_000,
            max_message: Size((1 << 30) - 1),
            max_startup: Size(10_000),
            max_prepared_per_client: 1000,
            max_prepared_per_backend: 200,
            max_prepared_size: Size(1 << 20),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Http {
    pub address: OptionalAddress,
    pub max_tenant_series: usize,
    pub token: Option<Reference>,
    pub tls: bool,
    pub client_ca: Option<PathBuf>,
}

impl Default for Http {
    fn default() -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9930));
        Http {
            address: OptionalAddress(Some(address)),
            max_tenant_series: 500,
            token: None,
            tls: false,
            client_ca: None,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    pub format: LogFormat,
    pub filter: String,
    pub sessions: bool,
    pub slow_transaction: Option<Period>,
    pub slow_wait: Option<Period>,
    pub sql: bool,
}

impl Default for Log {
    fn default() -> Self {
        // What logs before there is a configuration has the same.
        let super::Log { format, filter, sessions, sql, .. } = super::Log::default();
        Log { format, filter, sessions, slow_transaction: None, slow_wait: None, sql }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tracing {
    pub endpoint: Option<String>,
    pub ca: Option<PathBuf>,
    pub token: Option<Reference>,
    pub service_name: String,
    pub sample: f64,
    pub slow: Period,
}

impl Default for Tracing {
    fn default() -> Self {
        let service_name = "pgtenant".to_owned();
        Tracing { endpoint: None, ca: None, token: None, service_name, sample: 0.01, slow: seconds(1) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Drain {
    pub timeout: Period,
}

impl Default for Drain {
    fn default() -> Self {
        Drain { timeout: seconds(30) }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Admin {
    pub roles: BTreeMap<String, AdminRole>,
}

/// `[admin.roles.<name>]`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AdminRole {
    pub access: Access,
    pub verifier: Option<Verifier>,
    pub password: Option<Reference>,
}

impl Default for AdminRole {
    fn default() -> Self {
        AdminRole { access: Access::Stats, verifier: None, password: None }
    }
}

/// `[instances.<name>.admin]`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct InstanceAdmin {
    pub user: String,
    pub password: Option<Reference>,
    pub database: String,
}

impl Default for InstanceAdmin {
    fn default() -> Self {
        InstanceAdmin { user: "postgres".to_owned(), password: None, database: "postgres".to_owned() }
    }
}

/// `[instances.<name>]`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Instance {
    pub host: Option<String>,
    pub port: u16,
    pub tls: Option<InstanceTls>,
    pub tls_server_name: Option<String>,
    pub tls_ca: Option<PathBuf>,
    pub max_backends: u32,
    pub system_identifier: Option<SystemIdentifier>,
    pub region: Option<String>,
    pub tags: Vec<String>,
    pub max_tenants: Option<u32>,
    pub wal_retention: Option<Period>,
    pub admin: Option<InstanceAdmin>,
}

impl Default for Instance {
    fn default() -> Self {
        Instance {
            host: None,
            port: 5432,
            tls: None,
            tls_server_name: None,
            tls_ca: None,
            max_backends: 90,
            system_identifier: None,
            region: None,
            tags: Vec::new(),
            max_tenants: None,
            wal_retention: None,
            admin: None,
        }
    }
}

/// `tenants.d/<id>.toml`, or `[tenants.<id>]` of `proxy.toml`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tenant {
    pub id: Option<String>,
    pub instance: Option<String>,
    pub region: Option<String>,
    pub tier: Option<String>,
    pub credentials: Option<PathBuf>,
    pub state: TenantState,
    pub state_reason: Option<String>,
    pub maintenance_roles: Vec<String>,
    pub database: Option<String>,
    pub databases: Vec<String>,
    pub allow: Vec<Cidr>,
    pub client_ca: Option<PathBuf>,
    pub client_certificate_required: bool,
    pub roles: BTreeMap<String, Role>,
    pub auth_query: Option<AuthQuery>,
    pub service: Option<Service>,
    pub pool: TenantPool,
    pub quota: Quota,
    pub backup: backup::WrittenOfTenant,
}

impl Default for Tenant {
    fn default() -> Self {
        Tenant {
            id: None,
            instance: None,
            region: None,
            tier: None,
            credentials: None,
            state: TenantState::Active,
            state_reason: None,
            maintenance_roles: Vec::new(),
            database: None,
            databases: Vec::new(),
            allow: Vec::new(),
            client_ca: None,
            client_certificate_required: false,
            roles: BTreeMap::new(),
            auth_query: None,
            service: None,
            pool: TenantPool::default(),
            quota: Quota::default(),
            backup: backup::WrittenOfTenant::default(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Role {
    pub verifier: Option<Verifier>,
    pub password: Option<Reference>,
    pub certificate_cn: Option<String>,
    pub valid_until: Option<Moment>,
    pub previous_verifier: Option<Verifier>,
    pub previous_valid_until: Option<Moment>,
    pub present_password: Option<Reference>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AuthQuery {
    pub query: String,
    pub user: Option<String>,
    pub password: Option<Reference>,
    pub database: Option<String>,
}

impl Default for AuthQuery {
    fn default() -> Self {
        let query = "SELECT rolname::text, rolpassword, rolvaliduntil FROM pg_authid \
                     WHERE rolname = $1 AND rolcanlogin";
        AuthQuery { query: query.to_owned(), user: None, password: None, database: None }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Service {
    pub user: Option<String>,
    pub password: Option<Reference>,
}
