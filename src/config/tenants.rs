//! Tenants: the records of `tenants.d/` and of `[tenants.*]`, checked alone and against each other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::document::Document;
use super::file;
use super::problem::{Gathered, Problem, Scope};
use super::secret::{Secret, Verifier};
use super::{
    AuthQuery, Databases, Instance, InstanceAddress, Previous, Role, Service, Tenant, TenantBackup, TlsMode, backup,
    pool, quota, read, unknown,
};

/// What the records refer to.
pub(super) struct Shared<'a> {
    pub instances: &'a BTreeMap<String, Arc<Instance>>,
    pub tiers: &'a BTreeMap<String, Tier>,
    pub pool: &'a file::Pool,
    pub quota: &'a file::Quota,
    pub tls: TlsMode,
    pub backup: &'a TenantBackup,
}

/// What tenants of a tier inherit.
pub(super) struct Tier {
    pool: file::Pool,
    quota: file::Quota,
}

impl Tier {
    pub fn new(written: file::Tier, base: &file::Pool, mut scope: Scope<'_, '_>) -> Tier {
        pool::of_tenant(&written.pool, base, scope.enter("pool"));
        quota::check(&written.quota, scope.enter("quota"));
        Tier { pool: pool::of_tier(&written.pool, base), quota: written.quota }
    }
}

/// The tenants that are right, and the ids of all.
type Tenants = (BTreeMap<String, Arc<Tenant>>, BTreeSet<String>);

/// Resolves the inline tenants, and those in the folder `dir` (as written in `proxy.toml`, whose scope is given).
pub(super) fn resolve(
    dir: &Path,
    inline: BTreeMap<String, file::Tenant>,
    shared: &Shared<'_>,
    proxy: &mut Scope<'_, '_>,
) -> Tenants {
    let mut tenants = BTreeMap::new();
    let mut ids: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (id, written) in inline {
        ids.insert(id.clone(), proxy.document.path.clone());
        let mut tables = proxy.enter("tenants");
        if let Some(tenant) = tenant(&id, written, shared, tables.enter(&id)) {
            tenants.insert(id, Arc::new(tenant));
        }
    }
    for path in record_files("tenants_dir", dir, file::TENANTS_DIR, proxy) {
        let id = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(first) = ids.get(&id) {
            let message = format!("tenant {id:?} is in {} already; keep one of them", first.display());
            proxy.gathered.add(Problem::of_file(&path, message));
            continue;
        }
        ids.insert(id.clone(), path.clone());
        if let Some(tenant) = record(&path, &id, shared, proxy.gathered) {
            tenants.insert(id, Arc::new(tenant));
        }
    }
    check_overlap(&tenants, &proxy.document.path, proxy.gathered);
    check_guaranteed(&tenants, proxy);
    (tenants, ids.into_keys().collect())
}

/// The records in the folder by name; `key` names the folder, which has to be there when it is not the default. Others than
/// `*.toml` (editors' copies, secrets) are passed over.
pub(super) fn record_files(key: &str, written: &Path, default: &str, proxy: &mut Scope<'_, '_>) -> Vec<PathBuf> {
    let dir = proxy.path(written);
    let named = written != Path::new(default);
    // Also where it is not there yet: the first tenant makes it.
    proxy.gathered.sources.insert(dir.clone());
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => return Vec::new(),
        Err(error) => {
            proxy.problem(key, format!("cannot read folder {}: {error}", dir.display()));
            return Vec::new();
        }
    };
    let mut files = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => files.push(entry.path()),
            Err(error) => proxy.problem(key, format!("cannot read folder {}: {error}", dir.display())),
        }
    }
    let hidden = |path: &Path| path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    files.retain(|path| path.extension().is_some_and(|ending| ending == "toml") && !hidden(path));
    files.sort();
    files
}

fn record(path: &Path, id: &str, shared: &Shared<'_>, gathered: &mut Gathered<'_>) -> Option<Tenant> {
    let document = Document::read(path).map_err(|problem| gathered.add(problem)).ok()?;
    let written: file::Tenant = read::read(&document, gathered);
    tenant(id, written, shared, Scope { document: &document, table: String::new(), gathered })
}

/// What is wrong with an id, for a message that begins with whose it is.
pub fn check_id(id: &str) -> Result<(), &'static str> {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if id.len() > 63 {
        Err("has at most 63 characters, as a DNS label")
    } else if !id.bytes().next().is_some_and(known) {
        Err("begins with a lower-case letter or digit")
    } else if !id.bytes().all(|b| known(b) || b == b'-' || b == b'_') {
        Err("consists of lower-case letters, digits, - and _")
    } else {
        Ok(())
    }
}

/// None only without an instance; every other problem is reported and worked around.
fn tenant(id: &str, written: file::Tenant, shared: &Shared<'_>, mut scope: Scope<'_, '_>) -> Option<Tenant> {
    scope.gathered.secret_files.clear();
    if let Err(message) = check_id(id) {
        scope.problem("", format!("tenant {id:?}: an id {message}"));
    }
    if let Some(other) = written.id.filter(|other| other != id) {
        scope.problem("id", format!("{other:?}, but the record's name says {id:?}; make them agree or leave it out"));
    }
    let database = written.database.unwrap_or_else(|| id.to_owned());
    scope.require(!database.is_empty(), "database", "must not be empty");
    if written.roles.is_empty() && written.auth_query.is_none() {
        scope.problem("", format!("tenant {id:?} has neither [roles.*] nor [auth_query]: nobody could log in"));
    }
    let has_query = written.auth_query.is_some();
    let roles = written
        .roles
        .into_iter()
        .map(|(name, role)| {
            let mut table = scope.enter("roles");
            let role = self::role(role, has_query, table.enter(&name));
            (name, role)
        })
        .collect();
    let client_ca = written.client_ca.map(|ca| scope.file("client_ca", &ca));
    if written.client_certificate_required {
        scope.require(client_ca.is_some(), "client_certificate_required", "needs client_ca");
        scope.require(shared.tls != TlsMode::Off, "client_certificate_required", "needs TLS, but tls.mode is off");
    }
    let tier = written.tier.as_deref().and_then(|name| tier(name, shared, &mut scope));
    let base = tier.map_or(shared.pool, |tier| &tier.pool);
    let pool = pool::of_tenant(&written.pool, base, scope.enter("pool"));
    quota::check(&written.quota, scope.enter("quota"));
    let layers = [Some(&written.quota), tier.map(|tier| &tier.quota), Some(shared.quota)];
    let layers: Vec<&file::Quota> = layers.into_iter().flatten().collect();
    let quota = quota::resolve(&layers);
    let databases = databases(written.databases, &mut scope);
    let auth_query = written.auth_query.map(|query| auth_query(query, &database, scope.enter("auth_query")));
    let service = written.service.map(|service| self::service(service, scope.enter("service")));
    let instance = instance(written.instance, shared, &mut scope)?;
    if let Some(region) = &written.region
        && instance.region.as_ref() != Some(region)
    {
        let place = instance.region.as_deref().unwrap_or("none");
        let message = format!("the tenant stays in {region:?}, but instance {:?} has region {place:?}", instance.name);
        scope.problem("region", message);
    }
    let backup = backup::of_tenant(&written.backup, shared.backup, scope.enter("backup"));
    let credentials = written.credentials.map(|path| scope.path(&path));
    Some(Tenant {
        id: id.to_owned(),
        source: scope.document.path.clone(),
        instance,
        region: written.region,
        credentials,
        tier: written.tier,
        state: written.state,
        state_reason: written.state_reason,
        maintenance_roles: written.maintenance_roles,
        database,
        databases,
        roles,
        auth_query,
        service,
        allow: written.allow.into_iter().map(|network| network.0).collect(),
        client_ca,
        client_certificate_required: written.client_certificate_required,
        pool,
        quota,
        backup,
        secret_files: std::mem::take(&mut scope.gathered.secret_files),
    })
}

fn tier<'a>(name: &str, shared: &Shared<'a>, scope: &mut Scope<'_, '_>) -> Option<&'a Tier> {
    let found = shared.tiers.get(name);
    if found.is_none() {
        scope.problem("tier", unknown::name("tier", name, shared.tiers.keys().map(String::as_str)));
    }
    found
}

fn instance(name: Option<String>, shared: &Shared<'_>, scope: &mut Scope<'_, '_>) -> Option<Arc<Instance>> {
    let Some(name) = name else {
        scope.problem("instance", "missing; name one of [instances.*] in proxy.toml");
        return None;
    };
    let found = shared.instances.get(&name).cloned();
    if found.is_none() {
        let known = shared.instances.keys().map(String::as_str);
        scope.problem("instance", unknown::name("instance", &name, known));
    }
    found
}

fn databases(names: Vec<String>, scope: &mut Scope<'_, '_>) -> Databases {
    if names.iter().any(|name| name == "*") {
        scope.require(names.len() == 1, "databases", "\"*\" stands for all: write it alone, or the names");
        return Databases::All;
    }
    scope.require(names.iter().all(|name| !name.is_empty()), "databases", "a name must not be empty");
    Databases::Named(names)
}

fn role(written: file::Role, has_query: bool, mut scope: Scope<'_, '_>) -> Role {
    let (verifier, password) = (written.verifier, written.password);
    if verifier.is_some() && password.is_some() {
        scope.problem("", "has both verifier and password; keep one");
    }
    if verifier.is_none() && password.is_none() && written.certificate_cn.is_none() && !has_query {
        scope.problem("", "needs one of verifier, password and certificate_cn (or the tenant an [auth_query])");
    }
    scope.require(written.certificate_cn.as_deref() != Some(""), "certificate_cn", "must not be empty");
    let verifier = verifier.and_then(|verifier| read_verifier("verifier", verifier, &mut scope));
    let known = verifier.as_ref().is_none_or(is_verifier);
    scope.require(
        known,
        "verifier",
        "begins neither with SCRAM-SHA-256$ nor with md5; copy it from pg_authid.rolpassword",
    );
    let previous = match (written.previous_verifier, written.previous_valid_until, written.present_password) {
        (None, None, None) => None,
        (Some(former), Some(until), Some(password)) => {
            let former = read_verifier("previous_verifier", former, &mut scope);
            let alike = former
                .as_ref()
                .is_none_or(|former| salted(Some(former)).is_some_and(|s| Some(s) == salted(verifier.as_ref())));
            let message = "must be a SCRAM verifier with the salt and iterations of verifier; \
                           `pgtenant tenant rotate-credentials` makes such a pair";
            scope.require(alike, "previous_verifier", message);
            let password = scope.secret("present_password", &password);
            former.zip(password).map(|(verifier, present_password)| Previous {
                verifier,
                valid_until: until.0,
                present_password,
            })
        }
        _ => {
            scope.problem("", "previous_verifier, previous_valid_until and present_password belong together");
            None
        }
    };
    Role {
        previous,
        verifier,
        password: password.and_then(|reference| scope.secret("password", &reference)),
        certificate_cn: written.certificate_cn,
        valid_until: written.valid_until.map(|moment| moment.0),
    }
}

fn read_verifier(key: &str, written: Verifier, scope: &mut Scope<'_, '_>) -> Option<Secret> {
    match written {
        Verifier::Plain(text) => Some(text),
        Verifier::Reference(reference) => scope.secret(key, &reference),
    }
}

/// `SCRAM-SHA-256$<iterations>:<salt>`: what an exchange shows before the client's proof.
fn salted(verifier: Option<&Secret>) -> Option<&str> {
    verifier?.expose().rsplit_once('$').map(|(salted, _)| salted).filter(|salted| salted.starts_with("SCRAM-SHA-256$"))
}

/// By the forms of `pg_authid.rolpassword` (PostgreSQL manual, 52.8). A password that begins with `md5` is none.
fn is_verifier(secret: &Secret) -> bool {
    let text = secret.expose();
    let md5 =
        text.strip_prefix("md5").is_some_and(|hash| hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_hexdigit()));
    text.starts_with("SCRAM-SHA-256$") || md5
}

fn auth_query(written: file::AuthQuery, database: &str, mut scope: Scope<'_, '_>) -> AuthQuery {
    scope.require(written.query.contains("$1"), "query", "has no $1, which stands for the role");
    let user = user(written.user, &mut scope);
    AuthQuery {
        query: written.query,
        user,
        password: written.password.and_then(|reference| scope.secret("password", &reference)),
        database: written.database.unwrap_or_else(|| database.to_owned()),
    }
}

fn service(written: file::Service, mut scope: Scope<'_, '_>) -> Service {
    let user = user(written.user, &mut scope);
    Service { user, password: written.password.and_then(|reference| scope.secret("password", &reference)) }
}

fn user(written: Option<String>, scope: &mut Scope<'_, '_>) -> String {
    let user = written.unwrap_or_default();
    scope.require(!user.is_empty(), "user", "missing; name the role to log in with");
    user
}

/// No database may belong to two tenants, whatever their instances are called.
fn check_overlap(tenants: &BTreeMap<String, Arc<Tenant>>, proxy: &Path, gathered: &mut Gathered<'_>) {
    let mut by_address: HashMap<&InstanceAddress, Vec<&Tenant>> = HashMap::new();
    for tenant in tenants.values() {
        by_address.entry(&tenant.instance.address).or_default().push(tenant);
    }
    let mut problems = Vec::new();
    for neighbours in by_address.values() {
        problems.extend(neighbours.iter().filter_map(|tenant| not_alone(tenant, neighbours)));
        problems.extend(shared_databases(neighbours));
    }
    problems.sort_by(|(a, ..), (b, ..)| a.id.cmp(&b.id));
    for (tenant, key, message) in problems {
        let mut problem = Problem::of_file(&tenant.source, message);
        // An inline tenant shares its file with others.
        problem.key = if tenant.source == proxy { format!("tenants.{}.{key}", tenant.id) } else { key.to_owned() };
        gathered.add(problem);
    }
}

/// An instance cannot guarantee more than it has.
fn check_guaranteed(tenants: &BTreeMap<String, Arc<Tenant>>, proxy: &mut Scope<'_, '_>) {
    let mut by_instance: BTreeMap<&str, (&Instance, u64)> = BTreeMap::new();
    for tenant in tenants.values() {
        let (_, sum) = by_instance.entry(&tenant.instance.name).or_insert((&tenant.instance, 0));
        *sum += u64::from(tenant.pool.guaranteed_backends);
    }
    for (name, (instance, sum)) in by_instance {
        if sum > u64::from(instance.max_backends) {
            let max = instance.max_backends;
            let message = format!(
                "{max}, but {sum} are guaranteed to its tenants (pool.guaranteed_backends); raise it, or guarantee less"
            );
            proxy.enter("instances").enter(name).problem("max_backends", message);
        }
    }
}

/// A tenant, the key at fault, and the message.
type Overlap<'a> = (&'a Tenant, &'static str, String);

fn not_alone<'a>(tenant: &'a Tenant, neighbours: &[&Tenant]) -> Option<Overlap<'a>> {
    if tenant.databases != Databases::All {
        return None;
    }
    let other = neighbours.iter().find(|other| other.id != tenant.id)?;
    let message = format!(
        "\"*\" needs an instance of the tenant's own, but {:?} uses {:?} as well; list the names",
        other.id, tenant.instance.name
    );
    Some((tenant, "databases", message))
}

fn shared_databases<'a>(neighbours: &[&'a Tenant]) -> Vec<Overlap<'a>> {
    let mut owners: HashMap<&str, &Tenant> = HashMap::new();
    let mut overlaps = Vec::new();
    for tenant in neighbours {
        let further: &[String] = match &tenant.databases {
            Databases::Named(names) => names,
            Databases::All => &[],
        };
        let further = further.iter().map(|name| ("databases", name));
        for (key, name) in std::iter::once(("database", &tenant.database)).chain(further) {
            let owner = owners.entry(name).or_insert(tenant);
            if owner.id != tenant.id {
                let (owner, instance) = (&owner.id, &tenant.instance.name);
                let message = format!("{name:?} on instance {instance:?} belongs to tenant {owner:?} already");
                overlaps.push((*tenant, key, message));
            }
        }
    }
    overlaps
}
