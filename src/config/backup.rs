//! `[backup]`, and what a tenant's record says over it. Nothing of it matters to traffic.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::problem::Scope;
use super::resolve::positive;
use super::scalar::{Limit, Period};

/// Where backups go, and how they are proven.
#[derive(Debug, Clone, PartialEq)]
pub struct Backup {
    /// Folder of the tenants' backups; default `backups`.
    pub dir: PathBuf,
    /// Where that folder, and those that bundles are exported to, are: tenants that are pinned to a region are exported
    /// to no other. None: pinned tenants are not exported.
    pub region: Option<String>,
    /// Processes of pg_dump and pg_restore for one tenant; default 2.
    pub jobs: u32,
    /// Where encrypted bundles are laid open for pg_restore, for as long as it runs; default: the system's folder for
    /// temporary files.
    pub scratch_dir: PathBuf,
    /// The instance for scratch databases of `pgtenant backup verify`; none: the tenant's own.
    pub verify_instance: Option<String>,
    /// What holds for tenants whose records say nothing else.
    pub defaults: TenantBackup,
}

/// How one tenant is backed up.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantBackup {
    /// A backup is due so long after the last one; none (the default): no schedule.
    pub every: Option<Duration>,
    /// As many of the newest are kept; default 7.
    pub keep: u32,
    /// Older ones go, but for the newest and the last proven; none (the default): age does not matter.
    pub keep_for: Option<Duration>,
    /// Public keys of age; with none, backups are not encrypted.
    pub recipients: Vec<String>,
    /// The file with the key that opens them: for `backup verify` and `restore`.
    pub identity: Option<PathBuf>,
}

/// `[backup]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Written {
    pub dir: PathBuf,
    pub region: Option<String>,
    pub every: Option<Period>,
    pub keep: u32,
    pub keep_for: Option<Period>,
    pub jobs: u32,
    pub age_recipients: Vec<String>,
    pub age_identity: Option<PathBuf>,
    pub scratch_dir: Option<PathBuf>,
    pub verify_instance: Option<String>,
}

impl Default for Written {
    fn default() -> Self {
        Written {
            dir: "backups".into(),
            region: None,
            every: None,
            keep: 7,
            keep_for: None,
            jobs: 2,
            age_recipients: Vec::new(),
            age_identity: None,
            scratch_dir: None,
            verify_instance: None,
        }
    }
}

/// A record's `[backup]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WrittenOfTenant {
    pub every: Option<Limit<Period>>,
    pub keep: Option<u32>,
    pub keep_for: Option<Limit<Period>>,
    pub age_recipients: Option<Vec<String>>,
    pub age_identity: Option<PathBuf>,
}

impl Default for TenantBackup {
    fn default() -> Self {
        TenantBackup { every: None, keep: 7, keep_for: None, recipients: Vec::new(), identity: None }
    }
}

pub(super) fn resolve(written: &Written, mut scope: Scope<'_, '_>) -> Backup {
    scope.require(written.jobs > 0, "jobs", "at least 1 is needed");
    let defaults = TenantBackup {
        every: written.every.map(|every| positive(&mut scope, "every", every)),
        keep: keep(written.keep, &mut scope),
        keep_for: written.keep_for.map(|period| positive(&mut scope, "keep_for", period)),
        recipients: recipients(&written.age_recipients, &mut scope),
        identity: written.age_identity.as_ref().map(|path| scope.path(path)),
    };
    Backup {
        dir: scope.path(&written.dir),
        region: written.region.clone(),
        jobs: written.jobs,
        scratch_dir: written.scratch_dir.as_ref().map_or_else(std::env::temp_dir, |path| scope.path(path)),
        verify_instance: written.verify_instance.clone(),
        defaults,
    }
}

/// A tenant's own `[backup]` over that of `proxy.toml`; keys that it has of its own open nobody else's backups.
pub(super) fn of_tenant(written: &WrittenOfTenant, base: &TenantBackup, mut scope: Scope<'_, '_>) -> TenantBackup {
    let limit = |own: Option<Limit<Period>>, base| match own {
        Some(limit) => limit.0.map(|period| period.0),
        None => base,
    };
    let own = written.age_recipients.is_some() || written.age_identity.is_some();
    scope.require(
        !own || (written.age_recipients.is_some() && written.age_identity.is_some()),
        "",
        "age_recipients and age_identity belong together: write both, or none",
    );
    let every = limit(written.every, base.every);
    scope.require(every != Some(Duration::ZERO), "every", "must not be 0; for no schedule write \"none\"");
    TenantBackup {
        every,
        keep: written.keep.map_or(base.keep, |number| keep(number, &mut scope)),
        keep_for: limit(written.keep_for, base.keep_for),
        recipients: match &written.age_recipients {
            Some(own) => recipients(own, &mut scope),
            None => base.recipients.clone(),
        },
        identity: match &written.age_identity {
            Some(path) => Some(scope.path(path)),
            None => base.identity.clone(),
        },
    }
}

fn keep(number: u32, scope: &mut Scope<'_, '_>) -> u32 {
    scope.require(number > 0, "keep", "at least 1 is needed");
    number
}

fn recipients(written: &[String], scope: &mut Scope<'_, '_>) -> Vec<String> {
    for recipient in written {
        let message = format!("{recipient:?} is no public key of age; `age-keygen` shows one, which begins with age1");
        scope.require(recipient.parse::<age::x25519::Recipient>().is_ok(), "age_recipients", message);
    }
    written.to_vec()
}
