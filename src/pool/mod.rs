//! Per-tenant bounded pools of backends: checkout, release, hand-off, reaping. The bookkeeping is in `ledger`.

mod checkout;
mod instance;
pub mod ledger;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;

pub use checkout::{Checkout, CheckoutError, Patience};
pub use ledger::Counts;

use crate::backend::{CancelKey, ConnectError, Login, Parameters, Settings, Statements, Target};
use crate::config;
use crate::metrics::{Held, Metrics, TierMetrics};
use crate::net::InstanceTlsError;
use crate::tenant::Tenant;
use crate::wire::StartupParameters;
use crate::workers::Workers;
use instance::InstancePools;
use ledger::{Bound, Fairness, PoolKey, PoolSettings, RoleKey, Share, Shed, TenantKey};

/// Welcomes remembered per pool: clients of one pool seldom differ in their startup parameters.
const MAX_WELCOMES: usize = 64;

/// How long a request waits for idle backends to be closed that stand in its way.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(3);
/// Different settings of which a pool keeps one copy; beyond, each client has its own.
const MAX_SHARED: usize = 256;

/// The pools of all tenants.
#[derive(Debug)]
pub struct Pools {
    workers: Arc<Workers>,
    metrics: Arc<Metrics>,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    defaults: config::PoolDefaults,
    fairness: config::Fairness,
    instances: HashMap<String, Arc<InstancePools>>,
    /// By the tenant's address: current and retired ones, whose pools go when the last backend is gone.
    tenants: HashMap<usize, Arc<TenantPools>, ahash::RandomState>,
}

#[derive(Debug)]
struct TenantPools {
    tenant: Arc<Tenant>,
    home: Handle,
    instance: Arc<InstancePools>,
    key: TenantKey,
    roles: Mutex<HashMap<RoleName, RolePools>>,
    /// See [`Statements`].
    schema: Arc<AtomicU64>,
    /// When its backends were last told to close.
    evicted: Mutex<Option<SystemTime>>,
}

/// A role in a database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RoleName {
    database: String,
    role: String,
}

/// The pools of one (tenant, database, role), by the startup parameters that their backends were opened with.
#[derive(Debug)]
struct RolePools {
    shared: Arc<Role>,
    pools: HashMap<Option<Arc<StartupParameters>>, Arc<Pool>>,
}

/// What the pools of a role share.
#[derive(Debug)]
struct Role {
    key: RoleKey,
    login: Mutex<Option<Login>>,
    /// A backend of this role was there once.
    exists: AtomicBool,
}

/// What tells the pools of a tenant apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolName {
    pub database: String,
    /// The role that backends log in as.
    pub role: String,
    /// Of clients that have their backend to themselves (session mode, replication): the pool's backends are opened with
    /// these, and serve clients with equal ones only.
    pub startup: Option<Arc<StartupParameters>>,
}

impl PoolName {
    /// A backend for replication is used once.
    pub fn is_walsender(&self) -> bool {
        self.startup.as_ref().is_some_and(|startup| startup.is_walsender())
    }
}

/// One (tenant, database, role), and one set of startup parameters where backends are opened with a client's own.
#[derive(Debug)]
pub struct Pool {
    pub tenant: Arc<Tenant>,
    pub name: PoolName,
    /// Prepared statements that its clients share.
    pub statements: Arc<Statements>,
    instance: Arc<InstancePools>,
    key: PoolKey,
    home: Handle,
    shared: Arc<Role>,
    tier: ArcSwap<TierMetrics>,
    connect_timeout: Duration,
    welcomes: Mutex<HashMap<Arc<Settings>, Welcome>>,
    values: Mutex<SharedValues>,
    _counted: Held,
}

/// What an instance tells a client that logs in.
#[derive(Debug, Clone)]
pub struct Welcome {
    pub parameters: Arc<Parameters>,
    /// NoticeResponses, whole messages.
    pub notices: Arc<[u8]>,
}

/// One copy of what is equal, so that comparing means comparing addresses.
#[derive(Debug, Default)]
struct SharedValues {
    settings: HashSet<Arc<Settings>, ahash::RandomState>,
    parameters: HashSet<Arc<Parameters>, ahash::RandomState>,
}

impl Pools {
    pub fn new(config: &config::Config, workers: Arc<Workers>, metrics: Arc<Metrics>) -> Self {
        let (defaults, fairness) = (config.pool.clone(), config.fairness.clone());
        let shared = Shared { defaults, fairness, instances: HashMap::new(), tenants: HashMap::default() };
        Pools { workers, metrics, shared: Mutex::new(shared) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool of this name; `login` is what the client's login just proved, and replaces an older one.
    ///
    /// # Errors
    /// The instance's TLS files cannot be read.
    pub fn get(&self, tenant: &Arc<Tenant>, name: PoolName, login: Login) -> Result<Arc<Pool>, InstanceTlsError> {
        let (of_tenant, defaults) = {
            let mut shared = self.shared();
            let of_tenant = self.of_tenant(&mut shared, tenant)?;
            (of_tenant, shared.defaults.clone())
        };
        Ok(of_tenant.pool(name, login, &defaults, &self.metrics))
    }

    fn of_tenant(&self, shared: &mut Shared, tenant: &Arc<Tenant>) -> Result<Arc<TenantPools>, InstanceTlsError> {
        if let Some(known) = shared.tenants.get(&address(tenant)) {
            return Ok(known.clone());
        }
        let record = tenant.record();
        let (bound, fairness) = (instance_bound(&record.instance, &shared.defaults), fairness(&shared.fairness));
        let name = &record.instance.name;
        let instance = match shared.instances.get(name) {
            Some(instance) if instance.is_at(&record.instance) => instance.clone(),
            _ => {
                let instance =
                    InstancePools::new(record.instance.clone(), bound, fairness, self.metrics.instance(name))?;
                shared.instances.insert(name.clone(), instance.clone());
                instance
            }
        };
        let key = instance.add_tenant(share_of_tenant(&record.pool, &shared.defaults));
        let home = self.workers.home(tenant.id.as_str()).clone();
        let pools = Arc::new(TenantPools {
            tenant: tenant.clone(),
            home,
            instance,
            key,
            roles: Mutex::default(),
            schema: Arc::default(),
            evicted: Mutex::default(),
        });
        shared.tenants.insert(address(tenant), pools.clone());
        Ok(pools)
    }

    /// Takes over new bounds and settings, and lets go of what belongs to retired tenants.
    pub fn reconfigure(&self, config: &config::Config) {
        let mut shared = self.shared();
        shared.defaults = config.pool.clone();
        shared.fairness = config.fairness.clone();
        for instance in config.instances.values() {
            if let Some(known) = shared.instances.get(&instance.name).filter(|known| known.is_at(instance)) {
                known.set_bound(instance_bound(instance, &config.pool), fairness(&config.fairness));
            }
        }
        // What backends are left there belongs to retired tenants, which hold it until they are gone.
        shared.instances.retain(|name, _| {
            let stays = config.instances.contains_key(name);
            if !stays {
                self.metrics.forget_instance(name);
            }
            stays
        });
        for tenant in shared.tenants.values() {
            if tenant.tenant.is_retired() {
                tenant.evict();
                continue;
            }
            let record = tenant.tenant.record();
            let pool = settings(&record.pool, &config.pool);
            let tier = tier(&self.metrics, &record);
            tenant.pools().iter().for_each(|pool| pool.tier.store(tier.clone()));
            tenant.instance.set_tenant(tenant.key, share_of_tenant(&record.pool, &config.pool), &tenant.keys(), pool);
        }
    }

    /// Closes what idled or lived too long, and forgets retired tenants and pools that a client's parameters made and
    /// nobody uses any more. Call it about once a second.
    pub fn reap(&self) {
        let mut shared = self.shared();
        for instance in shared.instances.values() {
            instance.reap();
        }
        let instances = shared.instances.clone();
        shared.tenants.retain(|_, tenant| {
            tenant.forget_unused();
            if !tenant.tenant.is_retired() {
                return true;
            }
            let current = instances.get(tenant.instance.name()).is_some_and(|it| Arc::ptr_eq(it, &tenant.instance));
            if !current {
                tenant.instance.reap();
            }
            tenant.evict();
            !tenant.instance.remove_tenant(tenant.key, &tenant.keys())
        });
    }

    /// A tenant's backends by state, all its pools together.
    pub fn counts(&self, tenant: &Arc<Tenant>) -> Counts {
        let of_tenant = self.shared().tenants.get(&address(tenant)).cloned();
        of_tenant.map(|pools| pools.counts()).unwrap_or_default()
    }

    /// A tenant's pools that there are now.
    pub fn pools(&self, tenant: &Arc<Tenant>) -> Vec<Arc<Pool>> {
        let of_tenant = self.shared().tenants.get(&address(tenant)).cloned();
        of_tenant.map(|pools| pools.pools()).unwrap_or_default()
    }

    /// Closes a tenant's idle backends; the others go at their release.
    pub fn evict(&self, tenant: &Arc<Tenant>) {
        let of_tenant = self.shared().tenants.get(&address(tenant)).cloned();
        if let Some(pools) = of_tenant {
            pools.evict();
        }
    }

    /// The tenant's schema has changed by other ways than the proxy's: statements that are prepared from now on are
    /// analysed anew.
    pub fn schema_changed(&self, tenant: &Arc<Tenant>) {
        if let Some(pools) = self.shared().tenants.get(&address(tenant)) {
            pools.schema.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// When a tenant's backends were last told to close, if ever: older ones go at their release.
    pub fn evicted(&self, tenant: &Arc<Tenant>) -> Option<SystemTime> {
        let of_tenant = self.shared().tenants.get(&address(tenant)).cloned();
        of_tenant.and_then(|pools| *pools.evicted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the tenant has no backend left, closing ones included.
    pub fn is_empty(&self, tenant: &Arc<Tenant>) -> bool {
        let of_tenant = self.shared().tenants.get(&address(tenant)).cloned();
        of_tenant.is_none_or(|pools| pools.instance.is_empty(pools.key))
    }

    /// Closes a tenant's idle backends and waits, for a bounded time, until the instance has let go of them: as long as
    /// there are any in a database, it can be neither dropped nor renamed nor copied.
    pub async fn empty(&self, tenant: &Arc<Tenant>) {
        let of_tenant = self.shared().tenants.get(&address(tenant)).cloned();
        let Some(pools) = of_tenant else { return };
        pools.evict();
        let closed = async {
            while pools.instance.is_closing(pools.key) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(EMPTY_TIMEOUT, closed).await;
    }

    /// Closes every idle backend; the others go at their release.
    pub fn evict_all(&self) {
        for tenant in self.shared().tenants.values() {
            tenant.evict();
        }
    }
}

impl TenantPools {
    fn roles(&self) -> MutexGuard<'_, HashMap<RoleName, RolePools>> {
        self.roles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pools(&self) -> Vec<Arc<Pool>> {
        self.roles().values().flat_map(|role| role.pools.values().cloned()).collect()
    }

    /// The pool of this name, made where there is none.
    fn pool(&self, name: PoolName, login: Login, defaults: &config::PoolDefaults, metrics: &Metrics) -> Arc<Pool> {
        let mut roles = self.roles();
        let role = RoleName { database: name.database.clone(), role: name.role.clone() };
        let role = roles.entry(role).or_insert_with(|| {
            let key = self.instance.add_role(self.key);
            let shared = Arc::new(Role { key, login: Mutex::default(), exists: AtomicBool::new(false) });
            RolePools { shared, pools: HashMap::new() }
        });
        role.renew_login(login);
        if role.pools.len() == role.pools.capacity() {
            // So that they stay few between two reaps as well, however many there are to choose from.
            role.forget_unused(true);
        }
        let pool = role.pools.entry(name.startup.clone()).or_insert_with(|| {
            let record = self.tenant.record();
            let lasting = name.startup.is_none();
            self.instance.add_pool(role.shared.key, settings(&record.pool, defaults), lasting, |key| Pool {
                tenant: self.tenant.clone(),
                name,
                statements: Arc::new(Statements::new(self.schema.clone())),
                instance: self.instance.clone(),
                key,
                home: self.home.clone(),
                shared: role.shared.clone(),
                tier: ArcSwap::new(tier(metrics, &record)),
                connect_timeout: defaults.connect_timeout,
                welcomes: Mutex::default(),
                values: Mutex::default(),
                _counted: metrics.pool(),
            })
        });
        pool.clone()
    }

    /// Forgets the pools that nobody uses and that nothing would be lost with, and roles that never had a backend.
    fn forget_unused(&self) {
        self.roles().retain(|_, role| {
            role.forget_unused(false);
            let stays = !role.pools.is_empty() || role.shared.exists.load(Ordering::Relaxed);
            if !stays {
                self.instance.remove_role(role.shared.key);
            }
            stays
        });
    }

    fn keys(&self) -> Vec<PoolKey> {
        self.pools().iter().map(|pool| pool.key).collect()
    }

    fn counts(&self) -> Counts {
        self.pools().iter().map(|pool| pool.counts()).fold(Counts::default(), |sum, one| Counts {
            idle: sum.idle + one.idle,
            active: sum.active + one.active,
            connecting: sum.connecting + one.connecting,
            waiting: sum.waiting + one.waiting,
        })
    }

    fn evict(&self) {
        *self.evicted.lock().unwrap_or_else(PoisonError::into_inner) = Some(SystemTime::now());
        for pool in self.pools() {
            pool.instance.evict(pool.key);
        }
    }
}

impl RolePools {
    fn renew_login(&self, login: Login) {
        let mut current = self.shared.login.lock().unwrap_or_else(PoisonError::into_inner);
        // A certificate proves a client, and gives nothing to log in with: what others have proved stays.
        let is_less = login == Login::Nothing && current.is_some();
        if current.as_ref() != Some(&login) && !is_less {
            *current = Some(login);
            // The last connect may have failed for want of it.
            for pool in self.pools.values() {
                pool.instance.forgive(pool.key);
            }
        }
    }

    /// Whoever takes a pool from here does so under the lock that is held for this.
    fn forget_unused(&mut self, at_once: bool) {
        let exists = self.shared.exists.load(Ordering::Relaxed);
        self.pools.retain(|startup, pool| {
            let made_by_a_client = startup.is_some() || !exists;
            !made_by_a_client || !pool.instance.remove_pool(pool, at_once)
        });
    }
}

impl Pool {
    pub fn counts(&self) -> Counts {
        self.instance.counts(self.key)
    }

    /// Where its backends are.
    pub fn instance_name(&self) -> &str {
        self.instance.name()
    }

    /// Its idle backends.
    pub fn idle(&self) -> Vec<Arc<CancelKey>> {
        self.instance.idle(self.key)
    }

    /// Since when the client waits that has waited longest.
    pub fn waits_since(&self) -> Option<Instant> {
        self.instance.waits_since(self.key)
    }

    /// The figures of its tenant's tier, as it is now.
    pub fn tier(&self) -> Arc<TierMetrics> {
        self.tier.load_full()
    }

    /// The figures of its instance.
    pub fn metrics(&self) -> &crate::metrics::InstanceMetrics {
        &self.instance.metrics
    }

    /// Where its backends live.
    pub fn home(&self) -> &Handle {
        &self.home
    }

    fn target(&self) -> Option<Target> {
        let login = self.shared.login.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(Target {
            place: self.instance.place.clone(),
            database: self.name.database.clone(),
            role: self.name.role.clone(),
            login,
            startup: self.name.startup.clone(),
            timeout: self.connect_timeout,
        })
    }

    /// What a backend said under these settings, if one was asked before; with the pool's own copy of the settings, which
    /// backends recognise faster than an equal one.
    pub fn welcome(&self, settings: &Settings) -> Option<(Arc<Settings>, Welcome)> {
        let welcomes = self.welcomes.lock().unwrap_or_else(PoisonError::into_inner);
        welcomes.get_key_value(settings).map(|(settings, welcome)| (settings.clone(), welcome.clone()))
    }

    pub fn remember_welcome(&self, settings: Arc<Settings>, welcome: Welcome) {
        let mut welcomes = self.welcomes.lock().unwrap_or_else(PoisonError::into_inner);
        if welcomes.len() >= MAX_WELCOMES {
            welcomes.clear();
        }
        welcomes.insert(settings, welcome);
    }

    /// The pool's one copy of these settings.
    pub fn share_settings(&self, settings: &Arc<Settings>) -> Arc<Settings> {
        share(&mut self.values.lock().unwrap_or_else(PoisonError::into_inner).settings, settings)
    }

    /// The pool's one copy of these reported parameters.
    pub fn share_parameters(&self, parameters: &Arc<Parameters>) -> Arc<Parameters> {
        share(&mut self.values.lock().unwrap_or_else(PoisonError::into_inner).parameters, parameters)
    }

    /// Connects in the background and tells the ledger how it went.
    fn spawn_connect(self: Arc<Self>) {
        let home = self.home.clone();
        home.spawn(async move {
            let begun = Instant::now();
            let result = match self.target() {
                Some(target) => crate::backend::connect(&target).await.map(|mut backend| {
                    backend.state.parameters = self.share_parameters(&backend.state.parameters);
                    backend
                }),
                None => Err(ConnectError::Login {
                    instance: self.instance.name().to_owned(),
                    role: self.name.role.clone(),
                    reason: "nobody has logged in yet",
                }),
            };
            if result.is_ok() {
                self.shared.exists.store(true, Ordering::Relaxed);
                self.instance.metrics.connect.observe(begun.elapsed().as_secs_f64());
            }
            self.instance.connected(&self, result);
        });
    }
}

fn share<T: Eq + std::hash::Hash>(known: &mut HashSet<Arc<T>, ahash::RandomState>, value: &Arc<T>) -> Arc<T> {
    if let Some(shared) = known.get(value) {
        return shared.clone();
    }
    if known.len() >= MAX_SHARED {
        known.retain(|shared| Arc::strong_count(shared) > 1);
    }
    if known.len() < MAX_SHARED {
        known.insert(value.clone());
    }
    value.clone()
}

fn tier(metrics: &Metrics, record: &config::Tenant) -> Arc<TierMetrics> {
    metrics.tier(&record.instance.name, record.tier.as_deref())
}

/// Tells one incarnation of a tenant from another; unique as long as the tenant is held.
fn address(tenant: &Arc<Tenant>) -> usize {
    Arc::as_ptr(tenant) as usize
}

fn settings(pool: &config::TenantPool, defaults: &config::PoolDefaults) -> PoolSettings {
    PoolSettings {
        max: pool.max_backends_per_role,
        guaranteed: pool.guaranteed_backends_per_role,
        min: pool.min_backends,
        idle_timeout: pool.idle_timeout,
        lifetime: pool.lifetime,
        retry: defaults.retry,
        retry_max: defaults.retry_max,
    }
}

fn share_of_tenant(pool: &config::TenantPool, defaults: &config::PoolDefaults) -> Share {
    Share {
        max: pool.max_backends,
        max_connecting: defaults.max_connecting_per_tenant,
        guaranteed: pool.guaranteed_backends,
        weight: pool.weight,
    }
}

fn fairness(written: &config::Fairness) -> Fairness {
    Fairness {
        enabled: written.enabled,
        quantum: written.quantum,
        lend_after: written.lend_after,
        shed: written.shed_target.map(|target| Shed { target, interval: written.shed_interval }),
    }
}

fn instance_bound(instance: &config::Instance, defaults: &config::PoolDefaults) -> Bound {
    Bound { max: instance.max_backends, max_connecting: defaults.max_connecting_per_instance }
}
