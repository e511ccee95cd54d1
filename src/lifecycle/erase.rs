//! Erases a tenant: route, sessions, database, roles, files; with a receipt of what is gone and what lives on elsewhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::destroy::Copies;
use super::instance::{Instance, Session};
use super::journal::Journal;
use super::site::Site;
use super::{Failure, edit, faults, files, migrate, provision, quote, record};
use crate::config::{Databases, Tenant};

const ACT: &str = "erase";

/// What belongs to the tenant and to nobody else, as it was when the run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estate {
    pub tenant: String,
    pub instance: String,
    pub databases: Vec<String>,
    pub roles: Vec<String>,
    pub record: PathBuf,
    pub credentials: Option<PathBuf>,
    /// What else is to be removed.
    #[serde(default)]
    pub copies: Copies,
    /// Roles and files that stay, and why.
    pub kept: Vec<String>,
}

/// What the operator keeps.
#[derive(Debug, Serialize)]
pub struct Receipt {
    pub tenant: String,
    pub instance: String,
    pub system_identifier: Option<String>,
    pub who: String,
    pub begun: String,
    pub erased: String,
    pub removed: Vec<Removed>,
    pub remains: Vec<Remains>,
}

#[derive(Debug, Serialize)]
pub struct Removed {
    pub what: &'static str,
    pub name: String,
    pub when: String,
}

/// Data of the tenant that this program cannot reach.
#[derive(Debug, Serialize)]
pub struct Remains {
    pub what: String,
    /// RFC 3339; none where nobody has told us.
    pub until: Option<String>,
    pub note: String,
}

/// What would be erased.
///
/// # Errors
/// There is no such tenant, its record is not a file of its own, or the instance cannot be asked.
pub async fn estate(site: &Site, id: &str) -> Result<Estate, Failure> {
    let dir = &site.config.lifecycle.journal_dir;
    if let Some((ACT, order)) = Journal::peek(dir, id).as_ref().map(|(act, order)| (act.as_str(), order)) {
        let strange = |error: serde_json::Error| Failure::Journal { path: dir.clone(), why: error.to_string() };
        return serde_json::from_value(order.clone()).map_err(strange);
    }
    let tenant = site.config.tenants.get(id).ok_or_else(|| Failure::Unknown { tenant: id.to_owned() })?;
    let record = edit::record_of(site, tenant)?.to_owned();
    let databases = match &tenant.databases {
        Databases::Named(more) => std::iter::once(&tenant.database).chain(more).cloned().collect(),
        Databases::All => {
            let why = "databases = [\"*\"]: it has the instance to itself; drop that, or name the databases";
            return Err(Failure::Order(format!("tenant {id}: {why}")));
        }
    };
    let instance = site.instance(&tenant.instance.name)?;
    let (roles, mut kept) = roles(site, &instance, tenant).await?;
    let credentials = tenant.credentials.clone();
    let copies = Copies::find(site, tenant, &record, &mut kept)?;
    Ok(Estate {
        copies,
        tenant: id.to_owned(),
        instance: tenant.instance.name.clone(),
        databases,
        roles,
        record,
        credentials,
        kept,
    })
}

/// The record's roles and the database's owner, but for those that others need.
async fn roles(site: &Site, instance: &Instance, tenant: &Tenant) -> Result<(Vec<String>, Vec<String>), Failure> {
    let session = instance.session().await?;
    let mut names: BTreeSet<String> = tenant.roles.keys().cloned().collect();
    names.extend(provision::owner_of(instance, &session, &tenant.database).await?);
    let ours = super::Roles::of(&tenant.id);
    names.extend(ours.all().map(str::to_owned));
    // One that a migration has left that was killed.
    names.insert(migrate::role_name(&tenant.id));
    let used = |name: &str| {
        let others =
            site.config.tenants.values().filter(|other| other.id != tenant.id && other.instance == tenant.instance);
        others.into_iter().any(|other| {
            other.roles.contains_key(name) || other.service.as_ref().is_some_and(|service| service.user == name)
        })
    };
    let list: Vec<String> = names.iter().map(|name| quote::literal(name)).collect();
    let sql = format!(
        "SELECT rolname, rolsuper OR rolname = current_user OR rolname ~ '^pg_',
                EXISTS (SELECT FROM pg_database WHERE datdba = r.oid AND datname <> {})
           FROM pg_roles r WHERE rolname IN ({}) ORDER BY 1",
        quote::literal(&tenant.database),
        list.join(", ")
    );
    let (mut gone, mut kept) = (Vec::new(), Vec::new());
    for row in instance.rows(&session, "look at the roles", &sql).await? {
        let is = |at: usize| row[at].as_deref() == Some("t");
        let Some(name) = row[0].clone() else { continue };
        match (is(1), is(2) || used(&name)) {
            (false, false) => gone.push(name),
            (true, _) => kept.push(format!("{name}: it runs the instance")),
            (_, true) => kept.push(format!("{name}: others use it")),
        }
    }
    Ok((gone, kept))
}

/// Erases the tenant, or goes on where a killed run was, and writes the receipt. There is no way back.
///
/// # Errors
/// A step failed: [`Failure::Step`], and the same command goes on from there. All others: nothing was done.
pub async fn erase(site: &Site, estate: &Estate, receipt: &Path) -> Result<Receipt, Failure> {
    let mut journal = Journal::open(&site.config.lifecycle.journal_dir, &estate.tenant)?;
    match journal.begun::<Estate>() {
        Ok(None) => {
            let began = site
                .record("tenant erase", &estate.tenant, "begun", &format!("on instance {}", estate.instance))
                .and_then(|()| journal.begin(ACT, &site.who, estate));
            if let Err(failure) = began {
                journal.remove()?;
                return Err(failure);
            }
        }
        Ok(Some((ACT, begun))) if begun == *estate => {}
        _ => {
            let tenant = &estate.tenant;
            return Err(Failure::Order(format!(
                "tenant {tenant}: another act on it is not finished; finish that first"
            )));
        }
    }
    let steps = steps(site, estate, &mut journal, receipt).await;
    let receipt =
        site.recorded_with("tenant erase", &estate.tenant, steps, &format!("receipt {}", receipt.display()))?;
    faults::point(ACT, "audited")?;
    journal.remove()?;
    Ok(receipt)
}

async fn steps(site: &Site, estate: &Estate, journal: &mut Journal, path: &Path) -> Result<Receipt, Failure> {
    let stopped = |step: &'static str| {
        move |cause: Failure| Failure::Step {
            step,
            cause: Box::new(cause),
            after: "give the same command again to go on".to_owned(),
            undone: false,
        }
    };
    // First the route: nobody gets in, and the proxy ends the sessions.
    close(site, estate, journal).map_err(stopped("route"))?;
    site.passed("route");
    let instance = site.instance(&estate.instance).map_err(stopped("instance"))?;
    let session = instance.session().await.map_err(stopped("instance"))?;
    for database in &estate.databases {
        drop_database(&instance, &session, database).await.map_err(stopped("database"))?;
    }
    journal.done("database").and_then(|()| faults::point(ACT, "database")).map_err(stopped("database"))?;
    site.passed("database");
    let roles: Vec<&str> = estate.roles.iter().map(String::as_str).collect();
    provision::drop_roles(&instance, &session, &roles).await.map_err(stopped("roles"))?;
    journal.done("roles").and_then(|()| faults::point(ACT, "roles")).map_err(stopped("roles"))?;
    site.passed("roles");
    if let Some(path) = &estate.credentials {
        files::remove(path).map_err(Failure::file("remove", path)).map_err(stopped("credentials"))?;
    }
    journal.done("credentials").and_then(|()| faults::point(ACT, "credentials")).map_err(stopped("credentials"))?;
    site.passed("credentials");
    estate.copies.destroy(site, estate, journal).await.map_err(stopped("copies"))?;
    faults::point(ACT, "copies").map_err(stopped("copies"))?;
    site.passed("copies");
    let identity =
        instance.value(&session, "ask for its identity", "SELECT system_identifier FROM pg_control_system()");
    let identity = identity.await.map_err(stopped("receipt"))?;
    let receipt = receipt(site, estate, journal, &instance, identity);
    let text = serde_json::to_string_pretty(&receipt).expect("a receipt is plain data");
    files::replace(path, format!("{text}\n").as_bytes())
        .map_err(Failure::file("write", path))
        .map_err(stopped("receipt"))?;
    faults::point(ACT, "receipt").map_err(stopped("receipt"))?;
    site.passed("receipt");
    Ok(receipt)
}

fn close(site: &Site, estate: &Estate, journal: &mut Journal) -> Result<(), Failure> {
    record::remove(&site.config.lifecycle.tenants_dir, &estate.tenant)?;
    journal.done("route")?;
    faults::point(ACT, "route")
}

/// No new connection, then none at all.
async fn drop_database(instance: &Instance, session: &Session<'_>, database: &str) -> Result<(), Failure> {
    if provision::owner_of(instance, session, database).await?.is_some() {
        let sql = format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", quote::identifier(database));
        instance.run(session, "close the database", &sql).await?;
        faults::point(ACT, "closed")?;
    }
    provision::drop_database(instance, session, database).await.map(drop)
}

fn receipt(site: &Site, estate: &Estate, journal: &Journal, instance: &Instance, identity: Option<String>) -> Receipt {
    let when = |step: &str| journal.done_at(step).unwrap_or_default().to_owned();
    let mut removed = vec![Removed { what: "record", name: estate.record.display().to_string(), when: when("route") }];
    removed.extend(estate.databases.iter().map(|name| Removed {
        what: "database",
        name: name.clone(),
        when: when("database"),
    }));
    removed.extend(estate.roles.iter().map(|name| Removed { what: "role", name: name.clone(), when: when("roles") }));
    removed.extend(estate.credentials.iter().map(|path| Removed {
        what: "credentials file",
        name: path.display().to_string(),
        when: when("credentials"),
    }));
    let mut remains = vec![archives(estate, instance, &when("database"))];
    remains.push(Remains {
        what: format!("audit log {}", site.config.lifecycle.audit_log.display()),
        until: None,
        note: "the tenant's id and what was done to it; no data of its own".to_owned(),
    });
    let run = migrate::run_journal::names(&site.config.lifecycle.journal_dir, &estate.tenant);
    remains.extend(run.map(|path| Remains {
        what: format!("journal of a run of migrations {}", path.display()),
        until: None,
        note: "the tenant's id and how far it was, until the next pgtenant migrate".to_owned(),
    }));
    removed.extend(estate.copies.removed(journal));
    remains.extend(estate.copies.remains(journal));
    remains.push(logs(estate));
    remains.extend(estate.kept.iter().map(|kept| Remains { what: "kept".to_owned(), until: None, note: kept.clone() }));
    Receipt {
        tenant: estate.tenant.clone(),
        instance: estate.instance.clone(),
        system_identifier: identity,
        who: site.who.clone(),
        begun: journal.begun_at().unwrap_or_default().to_owned(),
        erased: when("copies"),
        removed,
        remains,
    }
}

fn logs(estate: &Estate) -> Remains {
    Remains {
        what: format!("logs of the proxy and of instance {}, traces, Prometheus' figures", estate.instance),
        until: None,
        note: "as long as they are kept; with the tenant's id, its roles and clients' addresses, and statements where these \
               are logged, or gathered by an extension such as pg_stat_statements"
            .to_owned(),
    }
}

fn archives(estate: &Estate, instance: &Instance, dropped: &str) -> Remains {
    let what = format!("WAL archives and base backups of instance {}", estate.instance);
    let dropped = OffsetDateTime::parse(dropped, &Rfc3339).ok();
    let until = instance.host.wal_retention.zip(dropped).map(|(retention, dropped)| dropped + retention);
    let note = match until {
        Some(_) => "where there are any; kept for so long by instances.*.wal_retention".to_owned(),
        None => {
            format!("where there are any; write [instances.{}] wal_retention to have their end told", estate.instance)
        }
    };
    Remains { what, until: until.and_then(|until| until.format(&Rfc3339).ok()), note }
}
