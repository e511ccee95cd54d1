//! The tenants there are: a snapshot that is swapped whole.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::{Standing, Tenant, same_place};
use crate::config;

type Snapshot = HashMap<String, Arc<Tenant>, ahash::RandomState>;

/// See the module.
#[derive(Debug, Default)]
pub struct Registry {
    tenants: ArcSwap<Snapshot>,
}

/// What a publication changed.
#[derive(Debug, Default)]
pub struct Change {
    pub added: usize,
    /// Same place, other settings: sessions go on.
    pub changed: Vec<Arc<Tenant>>,
    /// Removed or moved: sessions end at their next safe point.
    pub retired: Vec<Arc<Tenant>>,
}

impl Registry {
    pub fn get(&self, id: &str) -> Option<Arc<Tenant>> {
        self.tenants.load().get(id).cloned()
    }

    pub fn contains(&self, id: &str) -> bool {
        self.tenants.load().contains_key(id)
    }

    pub fn all(&self) -> Vec<Arc<Tenant>> {
        self.tenants.load().values().cloned().collect()
    }

    /// Replaces all records. A tenant whose record is unchanged notices nothing.
    pub fn publish(&self, records: &BTreeMap<String, Arc<config::Tenant>>) -> Change {
        let old = self.tenants.load_full();
        let mut new = Snapshot::default();
        let mut change = Change::default();
        for (id, record) in records {
            let tenant = match old.get(id) {
                Some(tenant) if *tenant.record() == **record => tenant.clone(),
                Some(tenant) if same_place(&tenant.record(), record) => {
                    tenant.adopt(record);
                    change.changed.push(tenant.clone());
                    tenant.clone()
                }
                Some(tenant) => {
                    change.retired.push(tenant.clone());
                    let (old, before) = (tenant.record(), tenant.state());
                    let standing = Standing::after(&before, &old, record).unwrap_or_else(|| (*before).clone());
                    tenant.usage.adopt(&old.quota, &record.quota, Instant::now());
                    Arc::new(Tenant::new(record.clone(), standing, tenant.stats.clone(), tenant.usage.clone()))
                }
                None => {
                    change.added += 1;
                    Arc::new(Tenant::new(record.clone(), Standing::of(record), Arc::default(), Arc::default()))
                }
            };
            new.insert(id.clone(), tenant);
        }
        change.retired.extend(old.iter().filter(|(id, _)| !new.contains_key(*id)).map(|(_, tenant)| tenant.clone()));
        for tenant in &change.retired {
            tenant.retire();
        }
        self.tenants.store(Arc::new(new));
        change
    }
}
