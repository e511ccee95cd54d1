//! Proves a backup: restores it into a scratch database, compares all of it, and drops the database again.

use time::OffsetDateTime;

use crate::bundle::contents::Depth;
use crate::bundle::manifest::Contents;
use crate::bundle::progress::Progress;
use crate::bundle::restore::{self, Opened, Target};
use crate::bundle::sealing::Identities;
use crate::bundle::seat::Seat;
use crate::lifecycle::instance::Instance;
use crate::lifecycle::quote::identifier;
use crate::lifecycle::shelf::{self, Stored};
use crate::lifecycle::{Failure, Site, faults, provision};

const ACT: &str = "backup-verify";

/// Restores and compares. The tenant itself is neither read nor touched.
///
/// # Errors
/// The backup cannot be restored, or something else came out than had gone in.
pub async fn verify(
    site: &Site,
    stored: &Stored,
    instance: Option<&str>,
    progress: &Progress,
) -> Result<Contents, Failure> {
    let what = "backup verify";
    site.record(what, &stored.tenant, "begun", &format!("of {}", stored.path.display()))?;
    let result = prove(site, stored, instance, progress).await;
    let found = site.recorded_with(what, &stored.tenant, result, &format!("of {}", stored.path.display()))?;
    let proven = OffsetDateTime::now_utc().unix_timestamp();
    shelf::change(&site.config, |state| {
        let known = state.entry(stored.tenant.clone()).or_default();
        known.proven = Some(proven);
        known.proven_backup = Some(stored.name.clone());
    })?;
    Ok(found)
}

async fn prove(site: &Site, stored: &Stored, instance: Option<&str>, progress: &Progress) -> Result<Contents, Failure> {
    let config = &site.config;
    progress.step("checks the bundle");
    let key = key(site, stored)?;
    let mut opened = restore::open(config, &stored.path, key.as_ref())?;
    let instance = site.instance(&place(site, stored, instance)?)?;
    stays_in_its_region(&opened, &instance)?;
    opened.fits(&instance).await?;
    let database = shelf::scratch(&stored.tenant);
    drop_scratch(&instance, &stored.tenant).await?;
    let seat = Seat::take(&instance, &seat_of(&stored.tenant), &[]).await?;
    opened.give_all_to(seat.role());
    {
        let session = instance.session().await?;
        restore::create(&instance, &session, &database, Some(seat.role()), &opened.manifest.database).await?;
        let close = format!("REVOKE ALL ON DATABASE {} FROM PUBLIC", identifier(&database));
        instance.run(&session, "close the database to others", &close).await?;
    }
    faults::point(ACT, "database")?;
    let jobs = config.backup.jobs;
    let target = Target { instance: &instance, database: &database, owner: seat.role() };
    let compared = match opened.fill(config, &target, &seat, jobs, progress).await {
        Ok(()) => {
            faults::point(ACT, "restored")?;
            opened.compare(&target, &seat, Depth::Checksums, jobs, progress).await
        }
        Err(failure) => Err(failure),
    };
    let dropped = drop_scratch(&instance, &stored.tenant).await;
    let found = compared?;
    dropped.map(|()| found)
}

/// Another login than that of an import.
fn seat_of(tenant: &str) -> String {
    shelf::scratch(tenant)
}

/// The private key, where the backup is encrypted.
fn key(site: &Site, stored: &Stored) -> Result<Option<Identities>, Failure> {
    if !restore::is_encrypted(&stored.path) {
        return Ok(None);
    }
    match identity(site, &stored.tenant) {
        Some(path) => Identities::of_file(&path).map(Some),
        None => Err(Failure::Order(format!(
            "backup {} is encrypted: name the file with the key in [backup] age_identity",
            stored.path.display()
        ))),
    }
}

/// Of the tenant, or of all.
pub fn identity(site: &Site, tenant: &str) -> Option<std::path::PathBuf> {
    let own = site.config.tenants.get(tenant).map(|tenant| &tenant.backup);
    own.unwrap_or(&site.config.backup.defaults).identity.clone()
}

/// The instance for the scratch database.
fn place(site: &Site, stored: &Stored, given: Option<&str>) -> Result<String, Failure> {
    let of_tenant = || site.config.tenants.get(&stored.tenant).map(|tenant| tenant.instance.name.clone());
    let given = given.map(str::to_owned).or_else(|| site.config.backup.verify_instance.clone());
    given.or_else(of_tenant).ok_or_else(|| {
        let tenant = &stored.tenant;
        Failure::Order(format!("tenant {tenant} is not in the configuration: name an instance with --instance"))
    })
}

fn stays_in_its_region(opened: &Opened, instance: &Instance) -> Result<(), Failure> {
    let (pinned, region) = (&opened.manifest.tenant.region, &instance.host.instance.region);
    match pinned.is_none() || pinned == region {
        true => Ok(()),
        false => Err(Failure::Order(format!(
            "tenant {} stays in {}, and instance {} is in {}",
            opened.manifest.tenant.id,
            pinned.as_deref().unwrap_or_default(),
            instance.name(),
            region.as_deref().unwrap_or("no region")
        ))),
    }
}

/// With its login; also of a run that was killed. One that is not ours stays.
async fn drop_scratch(instance: &Instance, tenant: &str) -> Result<(), Failure> {
    let (session, database) = (instance.session().await?, shelf::scratch(tenant));
    match provision::owner_of(instance, &session, &database).await? {
        None => {}
        Some(owner) if owner == shelf::seat(&seat_of(tenant)) => {
            provision::drop_database(instance, &session, &database).await?;
        }
        Some(owner) => {
            let what = format!("database {database:?} of {owner} on instance {}", instance.name());
            return Err(Failure::Exists { tenant: tenant.to_owned(), what });
        }
    }
    Seat::leave(instance, &seat_of(tenant), None).await
}
