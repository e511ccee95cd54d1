//! Makes a tenant: a saga of steps that may each run again, with a journal to go on from and a way back.

use std::fs::File;
use std::path::Path;

use serde_json::{Value, json};
use tokio::sync::SemaphorePermit;

use super::credentials::{self, Credentials};
use super::hook::{self, Whose};
use super::instance::{Instance, Session};
use super::journal::Journal;
use super::migrate::folder::Folder;
use super::migrate::plan::Goal;
use super::migrate::work::{self, Hindrance, Job};
use super::migrate::{Patience, Target};
use super::order::Order;
use super::site::Site;
use super::smoke::{self, Smoke};
use super::{Failure, faults, files, provision, provisioner, record};
use crate::config;

const ACT: &str = "create";

/// In this order; taken back in the reverse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Reserve,
    Roles,
    Database,
    Grants,
    Extensions,
    Settings,
    Migrations,
    Record,
    Smoke,
    Active,
}

impl Step {
    pub const ALL: [Step; 10] = [
        Step::Reserve,
        Step::Roles,
        Step::Database,
        Step::Grants,
        Step::Extensions,
        Step::Settings,
        Step::Migrations,
        Step::Record,
        Step::Smoke,
        Step::Active,
    ];

    pub fn text(self) -> &'static str {
        match self {
            Step::Reserve => "reserve",
            Step::Roles => "roles",
            Step::Database => "database",
            Step::Grants => "grants",
            Step::Extensions => "extensions",
            Step::Settings => "settings",
            Step::Migrations => "migrations",
            Step::Record => "record",
            Step::Smoke => "smoke",
            Step::Active => "active",
        }
    }
}

/// A tenant that is there.
#[derive(Debug)]
pub struct Created {
    pub order: Order,
    /// To be shown once, where the order has no file for them.
    pub credentials: Credentials,
    pub smoke: Smoke,
    /// An earlier run had begun it.
    pub resumed: bool,
    journal: Journal,
}

impl Created {
    /// Gives the passwords to the hook, where there is one and no file has them; whether it did.
    pub async fn give(&self, site: &Site) -> Result<bool, Failure> {
        let order = &self.order;
        let whose = Whose {
            act: ACT,
            tenant: &order.tenant,
            instance: &order.instance,
            region: order.region.as_deref(),
            database: &order.database,
            old_valid_until: None,
        };
        hook::give(site, whose, order.credentials.as_deref(), &self.credentials).await
    }

    /// What is said of it, without the passwords; `given`: the hook has them.
    pub fn told(&self, given: bool) -> Value {
        let order = &self.order;
        json!({
            "tenant": order.tenant, "instance": order.instance, "database": order.database, "roles": order.roles,
            "region": order.region, "tier": order.tier, "smoke": self.smoke.to_string(), "resumed": self.resumed,
            "credentials": order.credentials, "given_to_hook": given,
        })
    }

    /// The passwords are where they belong: the run has ended. Until then another run makes new ones.
    pub fn handed_over(self) -> Result<(), Failure> {
        faults::point(ACT, "handed-over")?;
        self.journal.remove()
    }
}

/// One run.
struct Run<'a> {
    site: &'a Site,
    order: Order,
    instance: &'a Instance,
    journal: Journal,
    credentials: Credentials,
    smoke: Smoke,
    /// Given up when the instance has nothing more to do.
    turn: Option<SemaphorePermit<'a>>,
}

/// Makes the tenant, or goes on where a killed run was. When a step fails, what was done is taken back.
///
/// `placing` is let go as soon as the journal says which place is taken. Passwords are made anew by every run: those of a killed one were given to nobody.
///
/// # Errors
/// [`Failure::Step`] says whether anything is left; all others mean that nothing was done.
pub async fn create(site: &Site, order: &Order, placing: Option<File>) -> Result<Created, Failure> {
    order.check()?;
    let mut journal = Journal::open(&site.config.lifecycle.journal_dir, &order.tenant)?;
    let instance = site.instance(&order.instance);
    let instance = match instance {
        Ok(instance) => instance,
        Err(failure) => return Err(abandon(journal, failure)),
    };
    let turn = instance.turns.acquire().await.expect("never closed");
    let mut resumed = !journal.is_new();
    if resumed {
        same_order(&journal, order)?;
        if journal.is_undoing() {
            undo(site, &instance, order).await?;
            journal.remove()?;
            journal = Journal::open(&site.config.lifecycle.journal_dir, &order.tenant)?;
            resumed = false;
        }
    }
    if !resumed {
        if let Err(failure) = is_free(site, &instance, order).await {
            return Err(abandon(journal, failure));
        }
        site.record("tenant create", &order.tenant, "begun", &format!("on instance {}", order.instance))?;
        journal.begin(ACT, &site.who, order)?;
    }
    provisioner::placed(site, &order.tenant)?;
    drop(placing);
    let credentials = credentials::generate(&order.roles.logins())?;
    let smoke = Smoke::NotTested(String::new());
    let run = Run { site, order: order.clone(), instance: &instance, journal, credentials, smoke, turn: Some(turn) };
    let result = run.steps().await;
    let (order, credentials, smoke, journal) = site.recorded_with("tenant create", &order.tenant, result, "")?;
    Ok(Created { order, credentials, smoke, resumed, journal })
}

/// A journal that nothing was written to goes away again.
fn abandon(journal: Journal, failure: Failure) -> Failure {
    match journal.is_new().then(|| journal.remove()) {
        Some(Err(error)) => error,
        _ => failure,
    }
}

/// A run goes on with the order that it was begun with.
fn same_order(journal: &Journal, order: &Order) -> Result<(), Failure> {
    let different = |what: &str| {
        let tenant = &order.tenant;
        Failure::Order(format!(
            "tenant {tenant}: {what} is not finished; give the same command again, and then this one"
        ))
    };
    match journal.begun::<Order>() {
        Ok(Some((ACT, begun))) if begun == *order => Ok(()),
        Ok(Some((ACT, _))) => Err(different("a create with other options")),
        _ => Err(different("another act")),
    }
}

/// The order that a killed create of this tenant was begun with: a run goes on where it was, also with its placement.
pub fn unfinished(site: &Site, tenant: &str) -> Option<Order> {
    let (act, order) = Journal::peek(&site.config.lifecycle.journal_dir, tenant)?;
    (act == ACT).then(|| serde_json::from_value(order).ok()).flatten()
}

/// Tenants that a run has begun with and not finished.
pub fn unfinished_tenants(site: &Site) -> Vec<String> {
    let mut tenants = Journal::tenants(&site.config.lifecycle.journal_dir);
    tenants.extend(provisioner::tenants(site));
    tenants.sort();
    tenants.dedup();
    tenants
}

/// Nobody has the tenant's name, its database's or its roles': what there is from now on is the run's own.
async fn is_free(site: &Site, instance: &Instance, order: &Order) -> Result<(), Failure> {
    let exists = |what: String| Err(Failure::Exists { tenant: order.tenant.clone(), what });
    if site.has(&order.tenant) {
        return exists("its record".to_owned());
    }
    if let Some(path) = order.credentials.as_ref().filter(|path| path.exists()) {
        return exists(format!("its credentials file {}", path.display()));
    }
    if let Some(tier) = order.tier.as_ref().filter(|tier| !site.config.lifecycle.tiers.contains(*tier)) {
        return Err(Failure::Order(format!("no tier {tier:?} in the configuration ([tier.{tier}])")));
    }
    let session = instance.session().await?;
    if provision::owner_of(instance, &session, &order.database).await?.is_some() {
        return exists(format!("database {:?} on instance {}", order.database, order.instance));
    }
    let roles = provision::existing_roles(instance, &session, &order.roles.all()).await?;
    if let Some(role) = roles.first() {
        return exists(format!("role {role:?} on instance {}", order.instance));
    }
    if provision::owner_of(instance, &session, &order.template).await?.is_none() {
        let (template, instance) = (&order.template, &order.instance);
        return Err(Failure::Order(format!("no database {template:?} on instance {instance} to be the template")));
    }
    Ok(())
}

type Done = (Order, Credentials, Smoke, Journal);

impl Run<'_> {
    async fn steps(mut self) -> Result<Done, Failure> {
        for step in Step::ALL {
            let done = match self.take(step).await {
                Ok(()) => faults::point(ACT, step.text()),
                failed => failed,
            };
            if let Err(cause) = done.and_then(|()| self.journal.done(step.text())) {
                return Err(self.back(step, cause).await);
            }
            self.site.passed(step.text());
        }
        Ok((self.order, self.credentials, self.smoke, self.journal))
    }

    /// Each step looks for what is there already, or can be done again.
    async fn take(&mut self, step: Step) -> Result<(), Failure> {
        let (instance, order) = (self.instance, &self.order);
        let inside = || instance.connect(&order.database);
        match step {
            Step::Reserve => match &order.credentials {
                Some(path) => credentials::write(path, &order.tenant, &order.database, &self.credentials),
                None => Ok(()),
            },
            Step::Roles => {
                provision::roles(instance, &instance.session().await?, &order.roles, &self.credentials).await
            }
            Step::Database => {
                let session = instance.session().await?;
                match provision::owner_of(instance, &session, &order.database).await? {
                    Some(owner) if owner == order.roles.owner => Ok(()),
                    Some(owner) => {
                        let what = format!("database {:?}, which belongs to {owner:?},", order.database);
                        Err(Failure::Exists { tenant: order.tenant.clone(), what })
                    }
                    None => provision::database(instance, &session, order).await,
                }
            }
            Step::Grants => provision::grants(instance, &instance.session().await?, &inside().await?, order).await,
            Step::Extensions if order.extensions.is_empty() => Ok(()),
            Step::Extensions => provision::extensions(instance, &inside().await?, order).await,
            Step::Settings => provision::settings(instance, &inside().await?, order).await,
            Step::Migrations => match &order.migrations {
                Some(dir) => migrations(self.site, instance, order, dir).await,
                None => Ok(()),
            },
            Step::Record => {
                let written = record::of(order, &self.credentials);
                record::write(&self.site.config.lifecycle.tenants_dir, &order.tenant, &written).map(drop)
            }
            Step::Smoke => {
                self.turn = None;
                let password = &self.credentials[&order.roles.app].password;
                let smoke = smoke::test(&self.site.config, self.site.proxy.as_ref(), order, password).await;
                smoke.map(|smoke| self.smoke = smoke)
            }
            // Nobody but the smoke test had a password until now.
            Step::Active => Ok(()),
        }
    }

    /// Takes back what was done, and says what came of it.
    async fn back(mut self, step: Step, cause: Failure) -> Failure {
        let undone = match self.journal.undo() {
            Ok(()) => undo(self.site, self.instance, &self.order).await,
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

/// All that the folder has; what the template's history has already is not applied again.
async fn migrations(site: &Site, instance: &Instance, order: &Order, dir: &Path) -> Result<(), Failure> {
    let config::Migrate { lock_timeout, retries, shared_owners, .. } = site.config.migrate;
    let job = Job {
        folder: Folder::read(dir)?,
        goal: Goal::Up { to: None, out_of_order: false },
        patience: Patience { lock_timeout, retries },
        shared_owners,
        who: site.who.clone(),
    };
    let target = Target { tenant: &order.tenant, database: &order.database };
    match work::migrate(&job, instance, &target, &|_| ()).await {
        Ok(done) => done.left.map_or(Ok(()), |left| Err(Failure::Order(left))),
        Err(Hindrance::Failed { why, .. }) => Err(why),
        Err(Hindrance::Drift(drift)) => {
            let drift: Vec<String> = drift.iter().map(ToString::to_string).collect();
            Err(Failure::Order(format!(
                "the template's history is not that of {}: {}",
                dir.display(),
                drift.join("; ")
            )))
        }
    }
}

/// The way back, from whatever there is. It may be killed, and run again.
async fn undo(site: &Site, instance: &Instance, order: &Order) -> Result<(), Failure> {
    record::remove(&site.config.lifecycle.tenants_dir, &order.tenant)?;
    faults::point(ACT, "undo-record")?;
    let session: Session<'_> = instance.session().await?;
    // One that somebody else has made meanwhile stays.
    if provision::owner_of(instance, &session, &order.database).await?.is_some_and(|owner| owner == order.roles.owner) {
        provision::drop_database(instance, &session, &order.database).await?;
    }
    faults::point(ACT, "undo-database")?;
    provision::drop_roles(instance, &session, &order.roles.all()).await?;
    faults::point(ACT, "undo-roles")?;
    if let Some(path) = &order.credentials {
        files::remove(path).map_err(Failure::file("remove", path))?;
    }
    Ok(())
}
