//! What every act works with: the configuration, the instances' admins, the audit log, who is at it.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use super::audit::{Act, Audit, operator};
use super::instance::Instance;
use super::journal::Journal;
use super::placement::{self, Wish};
use super::{Failure, provisioner, record};
use crate::config::{Config, InstanceAddress};

/// Reads the configuration again.
pub type Load = dyn Fn() -> Result<Config, String> + Send + Sync;

/// Told of every step that is done.
pub type Progress = dyn Fn(&'static str) + Send + Sync;

/// See the module.
pub struct Site {
    pub config: Arc<Config>,
    pub who: String,
    /// Where the smoke test logs in.
    pub proxy: Option<InstanceAddress>,
    /// What programs that we call say meanwhile; default: the log.
    pub remark: fn(&str),
    load: Option<Arc<Load>>,
    progress: Option<Arc<Progress>>,
    audit: Audit,
    instances: Mutex<BTreeMap<String, Arc<Instance>>>,
}

impl Site {
    pub fn new(config: Arc<Config>, proxy: Option<InstanceAddress>) -> Site {
        let audit = Audit::new(&config.lifecycle.audit_log);
        let remark = |line: &str| tracing::info!("{line}");
        Site { who: operator(), proxy, remark, load: None, progress: None, audit, instances: Mutex::default(), config }
    }

    /// With what reads the configuration again, for acts that change it on their way.
    pub fn with_load(self, load: impl Fn() -> Result<Config, String> + Send + Sync + 'static) -> Site {
        Site { load: Some(Arc::new(load)), ..self }
    }

    /// With somebody who looks on.
    pub fn with_progress(self, progress: impl Fn(&'static str) + Send + Sync + 'static) -> Site {
        Site { progress: Some(Arc::new(progress)), ..self }
    }

    /// A step is done, and the journal says so.
    pub(super) fn passed(&self, step: &'static str) {
        self.progress.iter().for_each(|progress| progress(step));
    }

    /// The same with the configuration as it is now.
    pub fn again(&self) -> Result<Site, Failure> {
        let config = self.load.as_ref().map_or_else(|| Ok((*self.config).clone()), |load| load());
        let config = config.map_err(Failure::Order)?;
        Ok(Site {
            config: Arc::new(config),
            who: self.who.clone(),
            proxy: self.proxy.clone(),
            remark: self.remark,
            load: self.load.clone(),
            progress: self.progress.clone(),
            audit: self.audit.clone(),
            instances: Mutex::default(),
        })
    }

    /// The admin of an instance, connected to when it is first needed.
    pub fn instance(&self, name: &str) -> Result<Arc<Instance>, Failure> {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(instance) = instances.get(name) {
            return Ok(instance.clone());
        }
        let lifecycle = &self.config.lifecycle;
        let unknown = || Failure::Order(format!("no instance {name:?} in the configuration"));
        let host = lifecycle.hosts.get(name).ok_or_else(unknown)?;
        let instance = Arc::new(Instance::new(host, lifecycle.per_instance)?);
        instances.insert(name.to_owned(), instance.clone());
        Ok(instance)
    }

    /// Writes down what is done; on the disk when this returns.
    pub fn record(&self, what: &str, tenant: &str, result: &str, detail: &str) -> Result<(), Failure> {
        let act = Act { who: &self.who, what, tenant: Some(tenant), result, detail };
        Ok(self.audit.record(&act)?)
    }

    /// The same for an act on many tenants.
    pub fn record_of_many(&self, what: &str, result: &str, detail: &str) -> Result<(), Failure> {
        let act = Act { who: &self.who, what, tenant: None, result, detail };
        Ok(self.audit.record(&act)?)
    }

    /// Writes down how an act has ended, and hands its result on; `detail` says what was done.
    pub fn recorded_with<T>(
        &self,
        what: &str,
        tenant: &str,
        result: Result<T, Failure>,
        detail: &str,
    ) -> Result<T, Failure> {
        match result {
            Ok(done) => self.record(what, tenant, "ok", detail).map(|()| done),
            Err(failure) => {
                self.record(what, tenant, "failed", &failure.to_string())?;
                Err(failure)
            }
        }
    }

    /// Held while places are chosen: two runs must not both take an instance's last one.
    pub fn placing(&self) -> Result<File, Failure> {
        let dir = &self.config.lifecycle.journal_dir;
        std::fs::create_dir_all(dir).map_err(Failure::file("make", dir))?;
        let file = File::open(dir).map_err(Failure::file("open", dir))?;
        file.lock().map_err(Failure::file("lock", dir))?;
        Ok(file)
    }

    /// Tenants by instance: those with a record, and those on their way.
    pub fn taken(&self) -> BTreeMap<String, u32> {
        let lifecycle = &self.config.lifecycle;
        let mut taken = BTreeMap::new();
        for tenant in self.config.tenants.values() {
            *taken.entry(tenant.instance.name.clone()).or_insert(0) += 1;
        }
        for tenant in Journal::tenants(&lifecycle.journal_dir) {
            let order =
                Journal::peek(&lifecycle.journal_dir, &tenant).filter(|_| !self.config.tenants.contains_key(&tenant));
            if let Some(instance) = order.as_ref().and_then(|(_, order)| order["instance"].as_str()) {
                *taken.entry(instance.to_owned()).or_insert(0) += 1;
            }
        }
        for instance in provisioner::kept(self) {
            *taken.entry(instance).or_insert(0) += 1;
        }
        taken
    }

    /// An instance for the tenant.
    pub fn place(&self, tenant: &str, taken: &BTreeMap<String, u32>, wish: Wish<'_>) -> Result<String, Failure> {
        placement::place(&self.config.lifecycle.hosts, taken, wish)
            .map_err(|why| Failure::NoPlace { tenant: tenant.to_owned(), why })
    }

    /// Whether the proxy's configuration, or its folder as it is now, has the tenant.
    pub fn has(&self, tenant: &str) -> bool {
        self.config.tenants.contains_key(tenant) || record::path(&self.config.lifecycle.tenants_dir, tenant).exists()
    }
}
