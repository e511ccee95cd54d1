//! Makes a backup: an export to the tenant's folder.

use std::fs::File;

use time::OffsetDateTime;

use crate::bundle::export::{self, Exported, Order, export};
use crate::bundle::progress::Progress;
use crate::bundle::sealing::Recipients;
use crate::config::Tenant;
use crate::lifecycle::{Failure, Site, faults, shelf};

/// One backup, now. Two runs on one tenant exclude each other.
///
/// # Errors
/// Nothing is left of it.
pub async fn run(site: &Site, tenant: &Tenant, progress: &Progress) -> Result<Exported, Failure> {
    let config = &site.config;
    let order = order(site, tenant)?;
    let folder = shelf::folder(config, &tenant.id);
    export::may_leave(tenant, &order)?;
    make_private(&folder)?;
    let lock = File::open(&folder).map_err(Failure::file("open", &folder))?;
    if lock.try_lock().is_err() {
        return Err(Failure::Busy { tenant: tenant.id.clone() });
    }
    // What killed runs have left: it is nobody's, since we have the lock.
    for entry in std::fs::read_dir(&folder).map_err(Failure::file("read", &folder))?.flatten() {
        if entry.file_name().to_string_lossy().ends_with(".partial") {
            std::fs::remove_dir_all(entry.path()).map_err(Failure::file("remove", &entry.path()))?;
        }
    }
    let exported = export(site, tenant, &order, "backup run", progress).await?;
    faults::point("backup", "exported")?;
    let made = OffsetDateTime::now_utc().unix_timestamp();
    shelf::change(config, |state| {
        let known = state.entry(tenant.id.clone()).or_default();
        known.first.get_or_insert(made);
        known.made = Some(made);
    })?;
    Ok(exported)
}

/// What a backup of the tenant would be.
pub fn order(site: &Site, tenant: &Tenant) -> Result<Order, Failure> {
    let config = &site.config;
    Ok(Order {
        output: std::path::absolute(shelf::place(config, &tenant.id, OffsetDateTime::now_utc()))
            .map_err(Failure::file("find", &config.backup.dir))?,
        region: config.backup.region.clone(),
        jobs: config.backup.jobs,
        recipients: Recipients::parse(tenant.backup.recipients.iter().map(String::as_str))?,
    })
}

/// The tenant's folder and the one around it are for their owner alone, where we make them.
fn make_private(folder: &std::path::Path) -> Result<(), Failure> {
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
    builder.create(folder).map_err(Failure::file("make", folder))
}
