//! From what is written to the complete and checked [`Config`]: reads the files, fills in defaults, checks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::document::{Document, join};
use super::file::{self, File};
use super::problem::{ConfigError, Gathered, Scope};
use super::scalar::Period;
use super::{
    Auth, Collector, Config, Drain, Instance, Limits, Listen, Log, Routing, Secret, Tls, TlsMode, Tracing, Trust,
    admin, backup, http, instances, layers, lifecycle, migrate, pool, program, query, quota, read, tenants,
};

/// Reads the configuration from `path` (none: `proxy.toml` here), under the environment's `PGTENANT__SECTION__KEY`
/// and `overrides` (dotted key, value), and everything that it refers to.
///
/// # Errors
/// All problems that were found, each with file, key and remedy.
pub fn load(path: Option<&Path>, overrides: &[(String, String)]) -> Result<Config, ConfigError> {
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    load_with(path, overrides, &environment.collect())
}

/// [`load`] with a given environment.
pub(super) fn load_with(
    path: Option<&Path>,
    overrides: &[(String, String)],
    environment: &HashMap<String, String>,
) -> Result<Config, ConfigError> {
    let path = path.unwrap_or(Path::new("proxy.toml"));
    let mut gathered = Gathered {
        problems: Vec::new(),
        sources: BTreeSet::from([path.to_owned()]),
        secret_files: Vec::new(),
        environment,
    };
    let document = layers::merge(Document::read(path)?, overrides, &mut gathered);
    let file: File = read::read(&document, &mut gathered);
    let config = resolve(file, &document, &mut gathered);
    match gathered.problems {
        problems if problems.is_empty() => Ok(config),
        problems => Err(ConfigError { problems }),
    }
}

/// Where something is wrong, a stand-in is put: the caller returns the problems then.
fn resolve(file: File, document: &Document, gathered: &mut Gathered<'_>) -> Config {
    let mut scope = Scope { document, table: String::new(), gathered };
    let listen = listen(file.listen, scope.enter("listen"));
    let tls = tls(file.tls, &listen, scope.enter("tls"));
    let auth = auth(&file.auth, scope.enter("auth"));
    let pool = pool::defaults(&file.pool, scope.enter("pool"));
    let fairness = pool::fairness(&file.fairness, scope.enter("fairness"));
    quota::check(&file.quota, scope.enter("quota"));
    let limits = limits(&file.limits, scope.enter("limits"));
    let http = http::resolve(file.http, tls.mode, scope.enter("http"));
    let log = log(file.log, scope.enter("log"));
    let tracing = tracing(file.tracing, scope.enter("tracing"));
    let drain = Drain { timeout: file.drain.timeout.0 };
    let admin = admin::resolve(file.admin, file.routing.user_suffix.0, scope.enter("admin"));

    let hosts = instances::resolve(&file.instances_dir, file.instances, &mut scope);
    let instances: BTreeMap<String, Arc<Instance>> =
        hosts.iter().map(|(name, host)| (name.clone(), host.instance.clone())).collect();
    let mut tiers_scope = scope.enter("tier");
    let tiers = file.tier.into_iter().map(|(name, written)| {
        let tier = tenants::Tier::new(written, &file.pool, tiers_scope.enter(&name));
        (name, tier)
    });
    let tiers: BTreeMap<String, tenants::Tier> = tiers.collect();
    let backup = backup::resolve(&file.backup, scope.enter("backup"));
    if let Some(name) = backup.verify_instance.as_ref().filter(|name| !instances.contains_key(*name)) {
        let message = super::unknown::name("instance", name, instances.keys().map(String::as_str));
        scope.enter("backup").problem("verify_instance", message);
    }
    let shared = tenants::Shared {
        backup: &backup.defaults,
        instances: &instances,
        tiers: &tiers,
        pool: &file.pool,
        quota: &file.quota,
        tls: tls.mode,
    };
    let secret_files = std::mem::take(&mut scope.gathered.secret_files);
    let (tenants, ids) = tenants::resolve(&file.tenants_dir, file.tenants, &shared, &mut scope);
    let folders = (scope.path(&file.tenants_dir), scope.path(&file.instances_dir));
    let provisioners = program::provisioners(file.provisioner, scope.enter("provisioner"));
    let tiers = tiers.into_keys().collect();
    let lifecycle = lifecycle::resolve(file.lifecycle, folders, provisioners, tiers, hosts, scope.enter("lifecycle"));
    let migrate = migrate::resolve(file.migrate, scope.enter("migrate"));
    let query = query::resolve(file.query, &instances, scope.enter("query"));
    let routing = routing(file.routing, &ids, scope.enter("routing"));

    let sources: Vec<PathBuf> = std::mem::take(&mut gathered.sources).into_iter().collect();
    let written = admin::written(&document.values);
    Config {
        sources,
        written,
        listen,
        tls,
        routing,
        auth,
        pool,
        fairness,
        limits,
        http,
        log,
        tracing,
        drain,
        admin,
        lifecycle,
        migrate,
        backup,
        secret_files,
        query,
        instances,
        tenants,
    }
}

/// A time limit that must not be zero, which some would read as "none".
pub(super) fn positive(scope: &mut Scope<'_, '_>, key: &str, period: Period) -> Duration {
    let message = "must not be 0; for as good as no limit write a long time, e.g. \"365d\"";
    scope.require(!period.0.is_zero(), key, message);
    period.0
}

fn listen(written: file::Listen, mut scope: Scope<'_, '_>) -> Listen {
    let addresses: Vec<_> = written.addresses.iter().map(|address| address.0).collect();
    scope.require(!addresses.is_empty(), "addresses", "at least one address is needed");
    let fixed: Vec<_> = addresses.iter().filter(|address| address.port() != 0).collect();
    let distinct: BTreeSet<_> = fixed.iter().collect();
    scope.require(distinct.len() == fixed.len(), "addresses", "an address occurs twice");
    let unix_socket_dir = written.unix_socket_dir.map(|dir| scope.path(&dir));
    if let Some(dir) = &unix_socket_dir {
        scope.require(dir.is_dir(), "unix_socket_dir", format!("no folder {}; make it first", dir.display()));
    }
    scope.require(written.workers != Some(0), "workers", "at least 1 is needed");
    scope.require(written.backlog > 0, "backlog", "at least 1 is needed");
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    Listen {
        addresses,
        unix_socket_dir,
        unix_socket_mode: written.unix_socket_mode.0,
        backlog: written.backlog,
        workers: written.workers.unwrap_or_else(cores),
        engine: written.engine,
    }
}

fn tls(written: file::Tls, listen: &Listen, mut scope: Scope<'_, '_>) -> Tls {
    let dir = scope.path(&written.certificates);
    let named = written.certificates != Path::new(file::CERTIFICATES);
    if named {
        scope.require(dir.is_dir(), "certificates", format!("no folder {}", dir.display()));
    }
    let present = std::fs::read_dir(&dir).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| entry.path().extension().is_some_and(|ending| ending == "crt")))
    });
    let local = listen.addresses.iter().all(|address| address.ip().is_loopback());
    let mode = written.mode.unwrap_or(match (local, present) {
        (false, _) => TlsMode::Required,
        (true, true) => TlsMode::Preferred,
        (true, false) => TlsMode::Off,
    });
    if mode != TlsMode::Off && !present {
        let why = match written.mode {
            Some(_) => "is switched on",
            None => "is required, since clients of other machines can connect (listen.addresses)",
        };
        let dir = dir.display();
        scope.problem(
            "certificates",
            format!(
                "TLS {why}, and {dir}/ holds no *.crt; put <name>.crt and <name>.key there, or set tls.mode = \"off\""
            ),
        );
    }
    if let Some(name) = &written.default_certificate {
        let path = dir.join(format!("{name}.crt"));
        scope.require(path.is_file(), "default_certificate", format!("no file {}", path.display()));
    }
    if dir.is_dir() {
        scope.gathered.sources.insert(dir.clone());
    }
    Tls { mode, certificates: present.then_some(dir), default_certificate: written.default_certificate }
}

fn routing(written: file::Routing, tenants: &BTreeSet<String>, mut scope: Scope<'_, '_>) -> Routing {
    let sni_domains: Vec<String> = written.sni_domains.iter().map(|domain| domain.to_ascii_lowercase()).collect();
    for domain in &sni_domains {
        if let Some(rest) = domain.strip_prefix('.').or_else(|| domain.strip_prefix("*.")) {
            scope.problem("sni_domains", format!("{domain:?}: write it without the beginning: {rest:?}"));
        } else {
            let message = format!("{domain:?} is no domain; write e.g. \"db.example.com\"");
            scope.require(is_domain(domain), "sni_domains", message);
        }
    }
    let mut databases = scope.enter("databases");
    for (database, tenant) in &written.databases {
        if !tenants.contains(tenant) {
            let message = super::unknown::name("tenant", tenant, tenants.iter().map(String::as_str));
            databases.problem(&join("", database), message);
        }
    }
    Routing {
        sni_domains,
        options: written.options,
        user_suffix: written.user_suffix.0,
        databases: written.databases,
        client_certificate: written.client_certificate,
    }
}

/// Host name syntax (RFC 1123 section 2.1), with room for a tenant's label in front.
fn is_domain(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 - 64 && name.split('.').all(label)
}

fn auth(written: &file::Auth, mut scope: Scope<'_, '_>) -> Auth {
    scope.require(written.mock_iterations > 0, "mock_iterations", "at least 1 is needed");
    let order = written.backoff.0 <= written.backoff_max.0;
    scope.require(order, "backoff", "must not be longer than auth.backoff_max");
    Auth {
        login_timeout: positive(&mut scope, "login_timeout", written.login_timeout),
        free_attempts: written.free_attempts,
        backoff: positive(&mut scope, "backoff", written.backoff),
        backoff_max: written.backoff_max.0,
        verifier_ttl: written.verifier_ttl.0,
        cleartext: written.cleartext,
        mock_iterations: written.mock_iterations,
    }
}

fn limits(written: &file::Limits, mut scope: Scope<'_, '_>) -> Limits {
    // The protocol's own bound (MaxAllocSize); 64 bytes hold the shortest sensible StartupMessage and error.
    let mut size = |key: &str, bytes: u64, least: u32| {
        let most = (1 << 30) - 1;
        match u32::try_from(bytes) {
            Ok(bytes) if (least..=most).contains(&bytes) => bytes,
            _ => {
                scope.problem(key, format!("{bytes} bytes; possible are {least} to {most}"));
                least
            }
        }
    };
    let max_message = size("max_message", written.max_message.0, 1024);
    let max_startup = size("max_startup", written.max_startup.0, 64);
    let max_prepared_size = size("max_prepared_size", written.max_prepared_size.0, 0) as usize;
    scope.require(written.max_clients > 0, "max_clients", "at least 1 is needed");
    scope.require(written.max_prepared_per_client > 0, "max_prepared_per_client", "at least 1 is needed");
    scope.require(written.max_prepared_per_backend > 0, "max_prepared_per_backend", "at least 1 is needed");
    Limits {
        max_clients: written.max_clients,
        max_message,
        max_startup,
        max_prepared_per_client: written.max_prepared_per_client,
        max_prepared_per_backend: written.max_prepared_per_backend,
        max_prepared_size,
    }
}

fn log(written: file::Log, mut scope: Scope<'_, '_>) -> Log {
    if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&written.filter) {
        scope.problem(
            "filter",
            format!(
                "{:?} is no filter ({error}); write e.g. \"info\" or \"info,pgtenant::pool=debug\"",
                written.filter
            ),
        );
    }
    Log {
        format: written.format,
        filter: written.filter,
        sessions: written.sessions,
        slow_transaction: written.slow_transaction.map(|period| period.0),
        slow_wait: written.slow_wait.map(|period| period.0),
        sql: written.sql,
    }
}

fn tracing(written: file::Tracing, mut scope: Scope<'_, '_>) -> Tracing {
    scope.require((0.0..=1.0).contains(&written.sample), "sample", "must be a share, from 0 to 1");
    let service = written.service_name;
    let ca = written.ca.map(|ca| scope.file("ca", &ca));
    let token = written.token.and_then(|reference| scope.secret("token", &reference));
    let collector = written.endpoint.and_then(|endpoint| {
        let found = collector(&endpoint, service, token);
        let message =
            "is no address of a collector; write e.g. \"http://127.0.0.1:4318\" or \"https://collector:4318\"";
        scope.require(found.is_some(), "endpoint", format!("{endpoint:?} {message}"));
        found
    });
    let collector = match (collector, ca) {
        (Some(Collector { trust: Some(_), authority, path, service, token }), Some(ca)) => {
            Some(Collector { trust: Some(Trust::File(ca)), authority, path, service, token })
        }
        (collector, ca) => {
            scope.require(ca.is_none(), "ca", "vouches for a collector with TLS; let endpoint begin with https://");
            collector
        }
    };
    Tracing { collector, sample: written.sample, slow: written.slow.0 }
}

/// From `http://host:port`, or `https`, and maybe a path; the port is OTLP's where none is given.
fn collector(endpoint: &str, service: String, token: Option<Secret>) -> Option<Collector> {
    let (scheme, rest) = endpoint.split_once("://")?;
    let trust = match scheme {
        "http" => None,
        "https" => Some(Trust::System),
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let clean = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let path = if matches!(path, "" | "/") { "/v1/traces" } else { path };
    (!authority.is_empty() && clean(rest)).then(|| Collector {
        authority: if has_port { authority.to_owned() } else { format!("{authority}:4318") },
        path: path.to_owned(),
        trust,
        token,
        service,
    })
}
