//! What an import comes to: its place, its roles, its settings. Nothing is done yet.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::import::{self, Import, Verify};
use super::manifest::{Manifest, Part};
use crate::lifecycle::placement::Wish;
use crate::lifecycle::{Failure, Order, Site};

/// As the operator has said it.
#[derive(Debug)]
pub struct Wanted {
    /// Default: the id of the tenant that was exported.
    pub tenant: Option<String>,
    pub instance: Option<String>,
    pub region: Option<String>,
    pub tags: Vec<String>,
    pub tier: Option<String>,
    pub verify: Verify,
    pub roles: BTreeMap<String, String>,
    pub credentials: Option<PathBuf>,
}

/// An unfinished run goes on at the place that it chose.
///
/// # Errors
/// It cannot be there where it was wanted, or nobody takes the place of one of the database's roles.
pub fn plan(site: &Site, bundle: &Path, manifest: &Manifest, wanted: Wanted) -> Result<Import, Failure> {
    let tenant = wanted.tenant.unwrap_or_else(|| manifest.tenant.id.clone());
    let region = match (&manifest.tenant.region, wanted.region) {
        (Some(pinned), Some(region)) if *pinned != region => {
            return Err(Failure::Order(format!("the tenant in this bundle stays in {pinned}, not in {region}")));
        }
        (pinned, region) => region.or_else(|| pinned.clone()),
    };
    let instance = match import::unfinished(site, &tenant) {
        Some(begun) if wanted.instance.as_ref().is_some_and(|instance| *instance != begun.instance) => {
            let on = begun.instance;
            return Err(Failure::Order(format!(
                "tenant {tenant}: an import to instance {on} is not finished; give the same command again, and then this one"
            )));
        }
        Some(begun) => begun.instance,
        None => {
            let wish = Wish { instance: wanted.instance.as_deref(), region: region.as_deref(), tags: &wanted.tags };
            site.place(&tenant, &site.taken(), wish)?
        }
    };
    let of_all = manifest.database.settings.iter().filter(|setting| setting.role.is_none());
    let order = Order {
        region,
        tier: wanted.tier.or_else(|| manifest.tenant.tier.clone()),
        settings: of_all.map(|setting| (setting.name.clone(), setting.value.clone())).collect(),
        record: manifest.tenant.record.clone(),
        credentials: wanted.credentials,
        ..Order::new(&tenant, &instance)
    };
    order.check()?;
    let successors = successors(manifest, &order, &wanted.roles)?;
    let has_app = successors.values().any(|successor| *successor == order.roles.app);
    Ok(Import {
        instance,
        bundle: bundle.to_owned(),
        sums: sums_of(bundle)?,
        verify: wanted.verify,
        successors,
        grant: !has_app,
        order,
    })
}

/// What identifies the bundle at a path.
fn sums_of(bundle: &Path) -> Result<String, Failure> {
    let path = bundle.join(crate::lifecycle::copies::SUMS);
    Ok(super::sums::of_file(&path).map_err(Failure::file("read", &path))?.0)
}

/// Who takes the place of the dump's roles. `given` names successors for those that nobody can guess: `owner`, `app` or
/// `ro`, or a role of the instance.
fn successors(
    manifest: &Manifest,
    order: &Order,
    given: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Failure> {
    let known: Vec<&str> = manifest.roles.iter().map(|role| role.name.as_str()).collect();
    if let Some(stranger) = given.keys().find(|name| !known.contains(&name.as_str())) {
        let known = known.join(", ");
        return Err(Failure::Order(format!("the bundle has no role {stranger:?}; it has {known}")));
    }
    let ours = |name: &str| match name {
        "owner" => order.roles.owner.clone(),
        "app" => order.roles.app.clone(),
        "ro" => order.roles.read_only.clone(),
        other => other.to_owned(),
    };
    let mut successors = BTreeMap::new();
    let mut unknown = Vec::new();
    for role in &manifest.roles {
        let successor = match (given.get(&role.name), role.part) {
            (Some(given), _) => ours(given),
            // What a superuser had belongs to the tenant from now on: no tenant's code runs with a superuser's rights.
            (None, Part::Owner | Part::Instance) => order.roles.owner.clone(),
            (None, Part::App) => order.roles.app.clone(),
            (None, Part::ReadOnly) => order.roles.read_only.clone(),
            (None, Part::Other) => {
                unknown.push(role.name.as_str());
                continue;
            }
        };
        successors.insert(role.name.clone(), successor);
    }
    match unknown.first() {
        None => Ok(successors),
        Some(first) => Err(Failure::Order(format!(
            "the database needs further roles ({}): say who takes their place, as in --map-role {first}=app (owner, app, \
             ro, or a role of the instance)",
            unknown.join(", ")
        ))),
    }
}
