//! Tenants as they are wanted, a file for each: what has to be done about it, and the doing.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::create;
use super::edit::{self, Edit};
use super::migrate::folder::Folder;
use super::order::{Order, TEMPLATE};
use super::placement::Wish;
use super::{Failure, Site, provisioner};
use crate::config::EXISTING;

/// `<tenant>.toml` of the folder.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    pub instance: Option<String>,
    pub region: Option<String>,
    pub tier: Option<String>,
    pub tags: Vec<String>,
    /// What makes an instance where none has room; none, or `sql`: nothing does.
    pub provisioner: Option<String>,
    pub template: Option<String>,
    pub extensions: Vec<String>,
    pub settings: BTreeMap<String, String>,
    /// Folder of the migrations; none: that of `[migrate]`.
    #[serde(skip)]
    pub migrations: Option<PathBuf>,
    /// Further keys of the record.
    pub record: toml::Table,
}

impl Wanted {
    fn wish(&self) -> Wish<'_> {
        Wish { instance: self.instance.as_deref(), region: self.region.as_deref(), tags: &self.tags }
    }

    /// What may make an instance for it; an instance that was named is not made.
    pub fn provisioner(&self) -> Option<&str> {
        self.provisioner.as_deref().filter(|name| *name != EXISTING && self.instance.is_none())
    }
}

/// What is to be done about one tenant.
#[derive(Debug)]
pub enum Plan {
    Create(Box<Order>),
    /// No instance has room, and why: this provisioner is to make one.
    Provision(String, String),
    Change(Vec<Edit>),
    Same,
}

/// What a create would come to.
#[derive(Debug)]
pub enum Foreseen {
    Order(Box<Order>),
    /// No instance has room, and why: this provisioner would make one.
    Provision {
        provisioner: String,
        why: String,
    },
}

impl Foreseen {
    /// What it would begin with.
    ///
    /// # Errors
    /// The folder cannot be read, or is not right.
    pub fn migrations(&self) -> Result<Option<Folder>, Failure> {
        match self {
            Foreseen::Order(order) => order.migrations.as_deref().map(Folder::read).transpose(),
            Foreseen::Provision { .. } => Ok(None),
        }
    }

    /// For those who ask in JSON.
    pub fn told(&self, tenant: &str) -> Value {
        match self {
            Foreseen::Order(order) => json!({ "dry_run": true, "order": order }),
            Foreseen::Provision { provisioner, why } => {
                json!({ "dry_run": true, "tenant": tenant, "provisioner": provisioner, "no_place": why })
            }
        }
    }
}

/// Reads the folder, or one file.
///
/// # Errors
/// A file cannot be read or is not right; it is named.
pub fn read(path: &Path) -> Result<BTreeMap<String, Wanted>, Failure> {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(Failure::file("read", path))?;
        files = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|ending| ending == "toml"));
    }
    let wanted = files.iter().map(|path| {
        let text = std::fs::read_to_string(path).map_err(Failure::file("read", path))?;
        let wrong = |error: toml::de::Error| Failure::Order(format!("{}: {error}", path.display()));
        let tenant = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok((tenant, toml::from_str(&text).map_err(wrong)?))
    });
    wanted.collect()
}

/// What a wish comes to for a tenant that is not there. An unfinished run goes on at the place that it chose.
pub fn order(
    site: &Site,
    tenant: &str,
    wanted: &Wanted,
    credentials: Option<&Path>,
    taken: &mut BTreeMap<String, u32>,
) -> Result<Order, Failure> {
    let instance = match create::unfinished(site, tenant) {
        Some(order) => order.instance,
        None => {
            let kept = provisioner::kept_for(site, tenant);
            // Its own place is the one that is taken.
            if let Some(taken) = kept.as_ref().and_then(|instance| taken.get_mut(instance)) {
                *taken = taken.saturating_sub(1);
            }
            let wish = Wish { instance: wanted.instance.as_deref().or(kept.as_deref()), ..wanted.wish() };
            site.place(tenant, taken, wish)?
        }
    };
    *taken.entry(instance.clone()).or_insert(0) += 1;
    let order = Order {
        region: wanted.region.clone(),
        tier: wanted.tier.clone(),
        template: wanted.template.clone().unwrap_or_else(|| TEMPLATE.to_owned()),
        extensions: wanted.extensions.clone(),
        settings: wanted.settings.clone(),
        migrations: wanted.migrations.clone().or_else(|| site.config.migrate.dir.clone()),
        record: wanted.record.clone(),
        credentials: credentials.map(Path::to_owned),
        ..Order::new(tenant, &instance)
    };
    order.check()?;
    Ok(order)
}

/// What making the tenant would come to; nothing is done.
///
/// # Errors
/// It cannot be made as ordered.
pub fn foreseen(
    site: &Site,
    tenant: &str,
    wanted: &Wanted,
    credentials: Option<&Path>,
    taken: &mut BTreeMap<String, u32>,
) -> Result<Foreseen, Failure> {
    match (order(site, tenant, wanted, credentials, taken), wanted.provisioner()) {
        (Err(Failure::NoPlace { why, .. }), Some(name)) => {
            provisioner::named(site, name).map(|_| Foreseen::Provision { provisioner: name.to_owned(), why })
        }
        (order, _) => order.map(|order| Foreseen::Order(order.into())),
    }
}

/// The tenant's order, on an instance that is made now where none has room; with the site that has it, and the lock on the
/// places.
pub async fn placed(
    site: Arc<Site>,
    tenant: &str,
    wanted: &Wanted,
    credentials: Option<&Path>,
) -> Result<(Arc<Site>, Order, File), Failure> {
    let placing = site.placing()?;
    let found = order(&site, tenant, wanted, credentials, &mut site.taken());
    let (Err(Failure::NoPlace { .. }), Some(name)) = (&found, wanted.provisioner()) else {
        return Ok((site, found?, placing));
    };
    if site.has(tenant) {
        return Err(Failure::Exists { tenant: tenant.to_owned(), what: "its record".to_owned() });
    }
    // It takes minutes, in which others may choose places.
    drop(placing);
    let line = provisioner::line(&site)?;
    let mut site = Arc::new(site.again()?);
    if order(&site, tenant, wanted, credentials, &mut site.taken()).is_err() {
        site = Arc::new(provisioner::make(&site, tenant, name, wanted.wish()).await?);
    }
    drop(line);
    let placing = site.placing()?;
    let order = order(&site, tenant, wanted, credentials, &mut site.taken())?;
    Ok((site, order, placing))
}

/// Tenants by instance when the plans are carried out.
pub fn taken(site: &Site, plans: &BTreeMap<String, Result<Plan, Failure>>) -> BTreeMap<String, u32> {
    let mut taken = site.taken();
    let unfinished = create::unfinished_tenants(site);
    for (tenant, plan) in plans {
        if let Ok(Plan::Create(order)) = plan
            && !unfinished.contains(tenant)
        {
            *taken.entry(order.instance.clone()).or_insert(0) += 1;
        }
    }
    taken
}

/// The order of a [`Plan::Provision`]; the caller has the lock on the places.
pub async fn provisioned(
    site: Arc<Site>,
    tenant: &str,
    wanted: &Wanted,
    credentials_dir: Option<&Path>,
    taken: &mut BTreeMap<String, u32>,
) -> Result<(Arc<Site>, Order), Failure> {
    let credentials = file_of(credentials_dir, tenant);
    let credentials = credentials.as_deref();
    // One that was made a moment ago may have room for several.
    match (order(&site, tenant, wanted, credentials, taken), wanted.provisioner()) {
        (Err(Failure::NoPlace { .. }), Some(name)) => {
            let site = Arc::new(provisioner::make(&site, tenant, name, wanted.wish()).await?);
            let order = order(&site, tenant, wanted, credentials, taken)?;
            Ok((site, order))
        }
        (order, _) => Ok((site, order?)),
    }
}

fn file_of(credentials_dir: Option<&Path>, tenant: &str) -> Option<PathBuf> {
    credentials_dir.map(|dir| dir.join(format!("{tenant}.credentials")))
}

/// What has to be done about every tenant. Those that are not in the folder are left alone.
pub fn plan(
    site: &Site,
    wanted: &BTreeMap<String, Wanted>,
    credentials_dir: Option<&Path>,
) -> BTreeMap<String, Result<Plan, Failure>> {
    let mut taken = site.taken();
    let mut plans = BTreeMap::new();
    for (tenant, wanted) in wanted {
        let plan = match site.config.tenants.get(tenant) {
            // A record may be there already when its run was killed.
            Some(record) if create::unfinished(site, tenant).is_none() => changes(site, record, wanted),
            _ => {
                let credentials = file_of(credentials_dir, tenant);
                let foreseen = foreseen(site, tenant, wanted, credentials.as_deref(), &mut taken);
                foreseen.map(|foreseen| match foreseen {
                    Foreseen::Order(order) => Plan::Create(order),
                    Foreseen::Provision { provisioner, why } => Plan::Provision(provisioner, why),
                })
            }
        };
        plans.insert(tenant.clone(), plan);
    }
    plans
}

fn changes(site: &Site, tenant: &crate::config::Tenant, wanted: &Wanted) -> Result<Plan, Failure> {
    let elsewhere = |what: String| Failure::Order(format!("tenant {}: {what}; apply moves no tenant", tenant.id));
    if let Some(instance) = wanted.instance.as_ref().filter(|instance| **instance != tenant.instance.name) {
        return Err(elsewhere(format!("it is on instance {}, not {instance}", tenant.instance.name)));
    }
    if wanted.region.is_some() && wanted.region != tenant.instance.region {
        let (own, wanted) = (tenant.instance.region.as_deref(), wanted.region.as_deref());
        let text = |region: Option<&str>| region.unwrap_or("no region").to_owned();
        return Err(elsewhere(format!("it is in {}, not {}", text(own), text(wanted))));
    }
    let path = edit::record_of(site, tenant)?;
    let text = std::fs::read_to_string(path).map_err(Failure::file("read", path))?;
    let record: toml::Table = text.parse().map_err(|error| Failure::Order(format!("{}: {error}", path.display())))?;
    let mut keys = Vec::new();
    flatten("", &wanted.record, &mut keys);
    keys.extend(wanted.tier.iter().map(|tier| ("tier".to_owned(), tier.as_str().into())));
    keys.extend(wanted.region.iter().map(|region| ("region".to_owned(), region.as_str().into())));
    let differs = |(key, value): &(String, toml::Value)| found(&record, key) != Some(value);
    let edits: Vec<Edit> = keys
        .into_iter()
        .filter(differs)
        .filter_map(|(key, value)| Some(Edit { key, value: Some(value.to_string().parse().ok()?) }))
        .collect();
    Ok(if edits.is_empty() { Plan::Same } else { Plan::Change(edits) })
}

/// Dotted keys with their values.
fn flatten(prefix: &str, table: &toml::Table, into: &mut Vec<(String, toml::Value)>) {
    for (key, value) in table {
        let key = format!("{prefix}{key}");
        match value {
            toml::Value::Table(below) => flatten(&format!("{key}."), below, into),
            value => into.push((key, value.clone())),
        }
    }
}

fn found<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((first, rest)) => found(table.get(first)?.as_table()?, rest),
    }
}
