//! A bundle becomes a tenant: a saga like `lifecycle::create`'s, with a fresh database that is filled, compared with the
//! bundle, and only then renamed into its place.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::contents::Depth;
use super::manifest::Contents;
use super::progress::Progress;
use super::restore::{self, Opened, Target};
use super::seat::Seat;
use crate::lifecycle::credentials::{self, Credentials};
use crate::lifecycle::instance::Instance;
use crate::lifecycle::journal::Journal;
use crate::lifecycle::quote::{identifier, literal};
use crate::lifecycle::smoke::{self, Smoke};
use crate::lifecycle::{Failure, Order, Site, faults, files, provision, record};

const ACT: &str = "import";

/// How the new database is compared with the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// Checksums of all rows and large objects, sequences, extensions, objects by kind.
    Full,
    /// The same with rows counted instead.
    Counts,
    /// Not at all.
    None,
}

/// What a run works on; in its journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Import {
    /// Where the journal's readers look for it.
    pub instance: String,
    pub order: Order,
    pub bundle: PathBuf,
    /// SHA-256 of the bundle's `SHA256SUMS`: it is the same bundle when the run goes on.
    pub sums: String,
    pub verify: Verify,
    /// The dump's roles, and who takes their place.
    pub successors: BTreeMap<String, String>,
    /// Nobody in the dump was the application: it gets the rights that a new tenant's has.
    pub grant: bool,
}

/// How a run goes about it.
pub struct Means<'a> {
    pub jobs: u32,
    pub progress: &'a Progress,
    /// The command, for the audit log.
    pub what: &'a str,
}

/// In this order; taken back in the reverse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Reserve,
    Roles,
    Database,
    Restore,
    Verify,
    Rename,
    Grants,
    Settings,
    Record,
    Smoke,
    Active,
}

impl Step {
    pub const ALL: [Step; 11] = [
        Step::Reserve,
        Step::Roles,
        Step::Database,
        Step::Restore,
        Step::Verify,
        Step::Rename,
        Step::Grants,
        Step::Settings,
        Step::Record,
        Step::Smoke,
        Step::Active,
    ];

    pub fn text(self) -> &'static str {
        match self {
            Step::Reserve => "reserve",
            Step::Roles => "roles",
            Step::Database => "database",
            Step::Restore => "restore",
            Step::Verify => "verify",
            Step::Rename => "rename",
            Step::Grants => "grants",
            Step::Settings => "settings",
            Step::Record => "record",
            Step::Smoke => "smoke",
            Step::Active => "active",
        }
    }
}

/// A tenant that is there.
#[derive(Debug)]
pub struct Imported {
    pub order: Order,
    /// To be shown once, where the order has no file for them.
    pub credentials: Credentials,
    pub smoke: Smoke,
    /// What was found in the database; none: nobody has looked, in this run.
    pub found: Option<Contents>,
    pub resumed: bool,
    journal: Journal,
}

impl Imported {
    /// The passwords are where they belong: the run has ended.
    pub fn handed_over(self) -> Result<(), Failure> {
        faults::point(ACT, "handed-over")?;
        self.journal.remove()
    }
}

/// One run.
struct Run<'a> {
    site: &'a Site,
    import: &'a Import,
    instance: &'a Instance,
    opened: Opened,
    means: &'a Means<'a>,
    journal: Journal,
    credentials: Credentials,
    smoke: Smoke,
    found: Option<Contents>,
}

/// Makes the tenant, or goes on where a killed run was. When a step fails, what was done is taken back.
///
/// # Errors
/// [`Failure::Step`] says whether anything is left; all others mean that nothing was done.
pub async fn import(
    site: &Site,
    import: &Import,
    mut opened: Opened,
    placing: Option<std::fs::File>,
    means: &Means<'_>,
) -> Result<Imported, Failure> {
    let order = &import.order;
    order.check()?;
    let instance = site.instance(&order.instance)?;
    opened.fits(&instance).await?;
    opened.give_to(&import.successors);
    let dir = &site.config.lifecycle.journal_dir;
    let mut journal = Journal::open(dir, &order.tenant)?;
    let mut resumed = !journal.is_new();
    if resumed {
        same(&journal, import)?;
        if journal.is_undoing() {
            undo(site, &instance, order).await?;
            journal.remove()?;
            journal = Journal::open(dir, &order.tenant)?;
            resumed = false;
        }
    }
    if !resumed {
        let begun = match is_free(site, &instance, order).await {
            Ok(()) => {
                let from = format!("from {} on instance {}", import.bundle.display(), order.instance);
                site.record(means.what, &order.tenant, "begun", &from)
            }
            failed => failed,
        };
        if let Err(failure) = begun.and_then(|()| journal.begin(ACT, &site.who, import)) {
            journal.remove()?;
            return Err(failure);
        }
    }
    drop(placing);
    let credentials = credentials::generate(&order.roles.logins())?;
    let smoke = Smoke::NotTested(String::new());
    let instance = &*instance;
    let run = Run { site, import, instance, opened, means, journal, credentials, smoke, found: None };
    let result = run.steps().await;
    let detail = format!("from {}", import.bundle.display());
    let run = site.recorded_with(means.what, &order.tenant, result, &detail)?;
    Ok(Imported {
        order: order.clone(),
        credentials: run.credentials,
        smoke: run.smoke,
        found: run.found,
        resumed,
        journal: run.journal,
    })
}

/// The import that a killed run was begun with: a run goes on where it was, also with its placement.
pub fn unfinished(site: &Site, tenant: &str) -> Option<Import> {
    let (act, import) = Journal::peek(&site.config.lifecycle.journal_dir, tenant)?;
    (act == ACT).then(|| serde_json::from_value(import).ok()).flatten()
}

/// A run goes on with what it was begun with.
fn same(journal: &Journal, import: &Import) -> Result<(), Failure> {
    let tenant = &import.order.tenant;
    let different = |what: &str| {
        let remedy = "is not finished; give the same command again, and then this one";
        Failure::Order(format!("tenant {tenant}: {what} {remedy}"))
    };
    match journal.begun::<serde_json::Value>()? {
        Some((ACT, begun)) => match serde_json::from_value::<Import>(begun) {
            Ok(begun) if begun == *import => Ok(()),
            _ => Err(different("an import with other options, or of another bundle,")),
        },
        _ => Err(different("another act")),
    }
}

/// The database until it is renamed. No tenant's has a `~`, and ids leave room for it.
fn fresh(order: &Order) -> String {
    format!("{}~new", order.database)
}

async fn is_free(site: &Site, instance: &Instance, order: &Order) -> Result<(), Failure> {
    let exists = |what: String| Err(Failure::Exists { tenant: order.tenant.clone(), what });
    if site.has(&order.tenant) {
        return exists("its record".to_owned());
    }
    if let Some(path) = order.credentials.as_ref().filter(|path| path.exists()) {
        return exists(format!("its credentials file {}", path.display()));
    }
    if let Some(tier) = order.tier.as_ref().filter(|tier| !site.config.lifecycle.tiers.contains(*tier)) {
        return Err(Failure::Order(format!("no tier {tier:?} in the configuration; give another one with --tier")));
    }
    let session = instance.session().await?;
    for database in [&order.database, &fresh(order)] {
        if provision::owner_of(instance, &session, database).await?.is_some() {
            return exists(format!("database {database:?} on instance {}", order.instance));
        }
    }
    match provision::existing_roles(instance, &session, &order.roles.all()).await?.first() {
        Some(role) => exists(format!("role {role:?} on instance {}", order.instance)),
        None => Ok(()),
    }
}

impl Run<'_> {
    async fn steps(mut self) -> Result<Self, Failure> {
        for step in Step::ALL {
            let done = match self.take(step).await {
                Ok(()) => faults::point(ACT, step.text()),
                failed => failed,
            };
            if let Err(cause) = done.and_then(|()| self.journal.done(step.text())) {
                return Err(self.back(step, cause).await);
            }
        }
        Ok(self)
    }

    fn is_done(&self, step: Step) -> bool {
        self.journal.done_at(step.text()).is_some()
    }

    /// Each step looks for what is there already, or can be done again.
    async fn take(&mut self, step: Step) -> Result<(), Failure> {
        let (instance, order) = (self.instance, &self.import.order);
        match step {
            Step::Reserve => match &order.credentials {
                Some(path) => credentials::write(path, &order.tenant, &order.database, &self.credentials),
                None => Ok(()),
            },
            Step::Roles => {
                provision::roles(instance, &instance.session().await?, &order.roles, &self.credentials).await
            }
            // Half a restore is none: it is begun anew.
            Step::Database if self.is_done(Step::Restore) => Ok(()),
            Step::Database => self.empty_database().await,
            Step::Restore if self.is_done(Step::Restore) => Ok(()),
            Step::Restore => self.restore().await,
            Step::Verify if self.is_done(Step::Verify) => Ok(()),
            Step::Verify => self.verify().await,
            Step::Rename => self.rename().await,
            Step::Grants => {
                provision::grant_connect(instance, &instance.session().await?, order).await?;
                match self.import.grant {
                    true => provision::grant_contents(instance, &instance.connect(&order.database).await?, order).await,
                    false => Ok(()),
                }
            }
            Step::Settings => self.settings().await,
            Step::Record => {
                let written = record::of(order, &self.credentials);
                record::write(&self.site.config.lifecycle.tenants_dir, &order.tenant, &written).map(drop)
            }
            Step::Smoke => {
                let password = &self.credentials[&order.roles.app].password;
                self.means.progress.step("logs in");
                let smoke = smoke::test(&self.site.config, self.site.proxy.as_ref(), order, password).await;
                smoke.map(|smoke| self.smoke = smoke)
            }
            // Nobody but the smoke test had a password until now.
            Step::Active => Ok(()),
        }
    }

    async fn empty_database(&self) -> Result<(), Failure> {
        let (instance, order) = (self.instance, &self.import.order);
        let (session, fresh) = (instance.session().await?, fresh(order));
        provision::drop_database(instance, &session, &fresh).await?;
        let owner = Some(order.roles.owner.as_str());
        restore::create(instance, &session, &fresh, owner, &self.opened.manifest.database).await?;
        // Nobody looks in before it is whole.
        let close = format!("REVOKE ALL ON DATABASE {} FROM PUBLIC", identifier(&fresh));
        instance.run(&session, "close the database to others", &close).await
    }

    /// The login for what the tenant has written: with its new roles' rights.
    async fn seat(&self) -> Result<Seat, Failure> {
        let order = &self.import.order;
        let mut members: Vec<&str> = self.import.successors.values().map(String::as_str).collect();
        members.extend(order.roles.all());
        members.sort_unstable();
        members.dedup();
        let seat = Seat::take(self.instance, &order.tenant, &members).await?;
        faults::point(ACT, "seat").map(|()| seat)
    }

    async fn restore(&mut self) -> Result<(), Failure> {
        let (instance, order, means) = (self.instance, &self.import.order, self.means);
        let (seat, fresh) = (self.seat().await?, fresh(order));
        let target = Target { instance, database: &fresh, owner: &order.roles.owner };
        self.opened.fill(&self.site.config, &target, &seat, means.jobs, means.progress).await?;
        Seat::leave(instance, &order.tenant, Some((&fresh, &order.roles.owner))).await
    }

    async fn verify(&mut self) -> Result<(), Failure> {
        let depth = match self.import.verify {
            Verify::Full => Depth::Checksums,
            Verify::Counts => Depth::Counts,
            Verify::None => return Ok(()),
        };
        let (instance, order, means) = (self.instance, &self.import.order, self.means);
        let (seat, fresh) = (self.seat().await?, fresh(order));
        let target = Target { instance, database: &fresh, owner: &order.roles.owner };
        self.found = Some(self.opened.compare(&target, &seat, depth, means.jobs, means.progress).await?);
        Seat::leave(instance, &order.tenant, None).await
    }

    async fn rename(&self) -> Result<(), Failure> {
        let (instance, order) = (self.instance, &self.import.order);
        let (session, fresh) = (instance.session().await?, fresh(order));
        let owner = provision::owner_of(instance, &session, &order.database).await?;
        if owner.as_ref() == Some(&order.roles.owner) {
            return Ok(());
        }
        // Autovacuum may be in it for a moment (55006): that is tried again. The server refuses where the name is taken.
        let (from, to) = (identifier(&fresh), identifier(&order.database));
        instance.run(&session, "rename the database", &format!("ALTER DATABASE {from} RENAME TO {to}")).await
    }

    /// Those of the database; and of its roles in it, where they have successors.
    async fn settings(&self) -> Result<(), Failure> {
        let (instance, order) = (self.instance, &self.import.order);
        let inside = instance.connect(&order.database).await?;
        provision::settings(instance, &inside, order).await?;
        for setting in &self.opened.manifest.database.settings {
            let successor = setting.role.as_ref().and_then(|role| self.import.successors.get(role));
            let Some(role) = successor else { continue };
            let name: Vec<String> = setting.name.split('.').map(identifier).collect();
            let sql = format!(
                "SELECT set_config({}, {}, false); ALTER ROLE {} IN DATABASE {} SET {} FROM CURRENT",
                literal(&setting.name),
                literal(&setting.value),
                identifier(role),
                identifier(&order.database),
                name.join(".")
            );
            instance.run(&instance.connect(&order.database).await?, &format!("set {}", setting.name), &sql).await?;
        }
        Ok(())
    }

    /// Takes back what was done, and says what came of it.
    async fn back(mut self, step: Step, cause: Failure) -> Failure {
        let undone = match self.journal.undo() {
            Ok(()) => undo(self.site, self.instance, &self.import.order).await,
            failed => failed,
        };
        let undone = undone.and_then(|()| self.journal.remove());
        let after = match &undone {
            Ok(()) => "what was done before is taken back".to_owned(),
            Err(failure) => format!("it could not all be taken back ({failure}): give the same command again"),
        };
        Failure::Step { step: step.text(), cause: Box::new(cause), after, undone: undone.is_ok() }
    }
}

/// The way back, from whatever there is. It may be killed, and run again.
async fn undo(site: &Site, instance: &Instance, order: &Order) -> Result<(), Failure> {
    record::remove(&site.config.lifecycle.tenants_dir, &order.tenant)?;
    faults::point(ACT, "undo-record")?;
    let session = instance.session().await?;
    for database in [&order.database, &fresh(order)] {
        // One that somebody else has made meanwhile stays.
        let owner = provision::owner_of(instance, &session, database).await?;
        if owner.is_some_and(|owner| owner == order.roles.owner) {
            provision::drop_database(instance, &session, database).await?;
        }
    }
    faults::point(ACT, "undo-database")?;
    Seat::leave(instance, &order.tenant, None).await?;
    provision::drop_roles(instance, &session, &order.roles.all()).await?;
    faults::point(ACT, "undo-roles")?;
    if let Some(path) = &order.credentials {
        files::remove(path).map_err(Failure::file("remove", path))?;
    }
    Ok(())
}
