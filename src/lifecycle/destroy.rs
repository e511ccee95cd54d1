//! What an erased tenant has beside database, roles and record: bundles, backups, keys, files with secrets.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::erase::{Estate, Remains, Removed};
use super::journal::Journal;
use super::{Failure, Site, copies, files, provision, rotate, shelf};
use crate::config::Tenant;

/// See the module. As it was when the run began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// Bundles that were written by `export`, wherever.
    pub bundles: Vec<PathBuf>,
    /// The folder of its backups, and their names.
    pub backups: Option<(PathBuf, Vec<String>)>,
    /// Private keys of age that are the tenant's alone.
    pub keys: Vec<PathBuf>,
    /// What the record's `{ file = … }` point to, and passwords of a rotation.
    pub secrets: Vec<PathBuf>,
    /// Instances where killed exports and proofs may have left a login, or a scratch database.
    pub instances: Vec<String>,
}

impl Copies {
    /// `kept` gets the files that others need as well.
    pub fn find(site: &Site, tenant: &Tenant, record: &Path, kept: &mut Vec<String>) -> Result<Copies, Failure> {
        let config = &site.config;
        let folder = shelf::folder(config, &tenant.id);
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        let on_shelf = |path: &Path| path.starts_with(&folder);
        let stored = shelf::of_tenant(config, &tenant.id)?;
        let backups = folder.is_dir().then(|| (folder.clone(), stored.into_iter().map(|one| one.name).collect()));
        let noted = copies::noted(site, &tenant.id)?.into_iter().map(|copy| copy.path);
        let presents = tenant.roles.keys().map(|role| rotate::present_file(record, role));
        let mut secrets: Vec<PathBuf> = tenant.secret_files.clone();
        secrets.extend(presents.filter(|path| path.is_file()));
        let mut keys: Vec<PathBuf> = tenant.backup.identity.iter().cloned().collect();
        for files in [&mut secrets, &mut keys] {
            files.sort();
            files.dedup();
            files.retain(|path| match path.exists() && is_shared(site, tenant, path) {
                true => {
                    kept.push(format!("{}: others use it", path.display()));
                    false
                }
                false => path.exists(),
            });
        }
        let mut instances = vec![tenant.instance.name.clone()];
        instances.extend(config.backup.verify_instance.clone().filter(|name| *name != tenant.instance.name));
        Ok(Copies { bundles: noted.filter(|path| !on_shelf(path)).collect(), backups, keys, secrets, instances })
    }

    /// Removes all of it; may run again. A bundle that is not where it was written is no reason to stop.
    pub(super) async fn destroy(&self, site: &Site, estate: &Estate, journal: &mut Journal) -> Result<(), Failure> {
        for instance in &self.instances {
            drop_scratch(site, instance, &estate.tenant).await?;
        }
        for path in self.secrets.iter().chain(&self.keys) {
            files::remove(path).map_err(Failure::file("remove", path))?;
        }
        for path in &self.bundles {
            if copies::destroy(path)? {
                journal.done(&gone(path))?;
            }
        }
        if let Some((folder, _)) = &self.backups {
            match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Failure::file("remove", folder)(error));
                }
                _ => {}
            }
        }
        shelf::change_if_there(&site.config, |state| _ = state.remove(&estate.tenant))?;
        let noted = copies::noted(site, &estate.tenant)?.into_iter().map(|copy| copy.path);
        copies::forget(site, &estate.tenant, &noted.collect::<Vec<_>>())?;
        journal.done("copies")
    }

    pub(super) fn removed(&self, journal: &Journal) -> Vec<Removed> {
        let when = journal.done_at("copies").unwrap_or_default();
        let one = |what, name: String| Removed { what, name, when: when.to_owned() };
        let file = |what| move |path: &PathBuf| one(what, path.display().to_string());
        let mut removed: Vec<Removed> = self.secrets.iter().map(file("secret file")).collect();
        removed.extend(self.keys.iter().map(file("key of age")));
        let bundles = self.bundles.iter().filter(|path| journal.done_at(&gone(path)).is_some());
        removed.extend(bundles.map(file("bundle")));
        if let Some((folder, names)) = &self.backups {
            removed.extend(names.iter().map(|name| one("backup", folder.join(name).display().to_string())));
        }
        removed
    }

    /// What may be elsewhere.
    pub(super) fn remains(&self, journal: &Journal) -> Vec<Remains> {
        let missing = self.bundles.iter().filter(|path| journal.done_at(&gone(path)).is_none());
        let mut remains: Vec<Remains> = missing
            .map(|path| Remains {
                what: format!("bundle {}", path.display()),
                until: None,
                note: "it was written there and is there no more: who has moved it has it".to_owned(),
            })
            .collect();
        if !self.bundles.is_empty() || self.backups.is_some() {
            let note = match self.keys.is_empty() {
                true => "where somebody has made any",
                false => {
                    "where somebody has made any: those that were encrypted for the tenant's own key alone can no longer be \
                     opened, unless the key was copied as well"
                }
            };
            let what = "copies of bundles and backups".to_owned();
            remains.push(Remains { what, until: None, note: note.to_owned() });
        }
        remains
    }
}

fn gone(path: &Path) -> String {
    format!("bundle {}", path.display())
}

/// A file that another tenant or proxy.toml points to is not the tenant's alone.
fn is_shared(site: &Site, tenant: &Tenant, path: &PathBuf) -> bool {
    let config = &site.config;
    let by_proxy = config.secret_files.contains(path) || config.backup.defaults.identity.as_ref() == Some(path);
    let mut others = config.tenants.values().filter(|other| other.id != tenant.id);
    by_proxy
        || others.any(|other| {
            let paths = other.secret_files.iter().chain(&other.backup.identity).chain(&other.credentials);
            paths.into_iter().any(|used| used == path)
        })
}

async fn drop_scratch(site: &Site, instance: &str, tenant: &str) -> Result<(), Failure> {
    let instance = site.instance(instance)?;
    let session = instance.session().await?;
    let database = shelf::scratch(tenant);
    let seats = shelf::seats(tenant);
    if let Some(owner) = provision::owner_of(&instance, &session, &database).await?
        && seats.contains(&owner)
    {
        provision::drop_database(&instance, &session, &database).await?;
    }
    provision::drop_roles(&instance, &session, &seats.each_ref().map(String::as_str)).await.map(drop)
}
