//! Gives a tenant's roles new passwords; the old ones stay good for a grace time.
//!
//! PostgreSQL keeps one verifier for a role. So the proxy takes both passwords, and opens backends with the present one,
//! which it finds in a file beside the record until the grace time is over and [`finish`] has removed it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use toml_edit::Value;

use super::credentials::{self, Credential, Credentials};
use super::edit::{self, Edit};
use super::hook::{self, Whose};
use super::journal::Journal;
use super::site::Site;
use super::{Failure, faults, files, quote};
use crate::auth::{ScramVerifier, Verifier};
use crate::config::Tenant;

const ACT: &str = "rotate";

/// What the clients know now: a run that goes on must not take its own new passwords for the old ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Rotation {
    roles: Vec<(String, String)>,
    valid_until: String,
}

/// New passwords, to be shown once; the run ends with [`Rotated::handed_over`].
#[derive(Debug)]
pub struct Rotated {
    pub credentials: Credentials,
    /// When the old ones end, RFC 3339.
    pub valid_until: String,
    journal: Journal,
}

impl Rotated {
    /// Gives the passwords to the hook, where there is one and no file has them; whether it did.
    pub async fn give(&self, site: &Site, tenant: &Tenant, file: Option<&Path>) -> Result<bool, Failure> {
        let whose = Whose {
            act: "rotate-credentials",
            tenant: &tenant.id,
            instance: &tenant.instance.name,
            region: tenant.instance.region.as_deref(),
            database: &tenant.database,
            old_valid_until: Some(&self.valid_until),
        };
        hook::give(site, whose, file, &self.credentials).await
    }

    /// What is said of it, without the passwords; `given`: the hook has them.
    pub fn told(&self, tenant: &Tenant, file: Option<&Path>, given: bool) -> serde_json::Value {
        let until = &self.valid_until;
        serde_json::json!({ "tenant": tenant.id, "old_valid_until": until, "credentials": file, "given_to_hook": given })
    }

    /// The passwords are where they belong. Until then another run makes new ones.
    pub fn handed_over(self) -> Result<(), Failure> {
        faults::point(ACT, "handed-over")?;
        self.journal.remove()
    }
}

/// New passwords for all roles of the record that have SCRAM verifiers.
///
/// # Errors
/// [`Failure::Step`]: the same command goes on. All others: nothing was changed.
pub async fn rotate(site: &Site, tenant: &Tenant, grace: Duration, file: Option<&Path>) -> Result<Rotated, Failure> {
    let path = edit::record_of(site, tenant)?;
    let mut journal = Journal::open(&site.config.lifecycle.journal_dir, &tenant.id)?;
    let rotation = match journal.begun::<serde_json::Value>()? {
        Some((ACT, order)) => serde_json::from_value(order)
            .map_err(|error| Failure::Journal { path: path.to_owned(), why: error.to_string() })?,
        Some(_) => return Err(Failure::Order(format!("tenant {}: another act on it is not finished", tenant.id))),
        None => {
            let begun = begin(site, tenant, grace, &mut journal);
            match begun {
                Ok(rotation) => rotation,
                Err(failure) => {
                    journal.remove()?;
                    return Err(failure);
                }
            }
        }
    };
    let result = carry_out(site, tenant, &rotation, path, file).await.map_err(|cause| Failure::Step {
        step: "rotate-credentials",
        cause: Box::new(cause),
        after: "give the same command again to go on".to_owned(),
        undone: false,
    });
    let credentials = site.recorded_with("tenant rotate-credentials", &tenant.id, result, "")?;
    Ok(Rotated { credentials, valid_until: rotation.valid_until, journal })
}

/// The roles that would get new passwords.
///
/// # Errors
/// As [`rotate`] before it changes anything.
pub fn roles(site: &Site, tenant: &Tenant) -> Result<Vec<String>, Failure> {
    edit::record_of(site, tenant)?;
    match Journal::peek(&site.config.lifecycle.journal_dir, &tenant.id) {
        Some((act, _)) if act != ACT => {
            Err(Failure::Order(format!("tenant {}: another act on it is not finished", tenant.id)))
        }
        _ => Ok(scram_roles(tenant)?.into_iter().map(|(role, _)| role).collect()),
    }
}

/// With their verifiers.
fn scram_roles(tenant: &Tenant) -> Result<Vec<(String, String)>, Failure> {
    let scram = |text: &str| text.starts_with("SCRAM-SHA-256$");
    let verifiers = tenant.roles.iter().filter_map(|(role, of)| Some((role, of.verifier.as_ref()?)));
    let roles: Vec<(String, String)> = verifiers
        .filter(|(_, verifier)| scram(verifier.expose()))
        .map(|(role, verifier)| (role.clone(), verifier.expose().to_owned()))
        .collect();
    if roles.is_empty() {
        return Err(Failure::Order(format!("tenant {}: no role of its record has a SCRAM verifier", tenant.id)));
    }
    Ok(roles)
}

fn begin(site: &Site, tenant: &Tenant, grace: Duration, journal: &mut Journal) -> Result<Rotation, Failure> {
    let roles = scram_roles(tenant)?;
    let until = OffsetDateTime::now_utc() + grace;
    let until = until.replace_nanosecond(0).unwrap_or(until);
    let valid_until = until.format(&Rfc3339).map_err(|error| Failure::Order(error.to_string()))?;
    let rotation = Rotation { roles, valid_until };
    site.record("tenant rotate-credentials", &tenant.id, "begun", &format!("grace until {}", rotation.valid_until))?;
    journal.begin(ACT, &site.who, &rotation)?;
    Ok(rotation)
}

async fn carry_out(
    site: &Site,
    tenant: &Tenant,
    rotation: &Rotation,
    path: &Path,
    file: Option<&Path>,
) -> Result<Credentials, Failure> {
    let instance = site.instance(&tenant.instance.name)?;
    let session = instance.session().await?;
    let mut credentials = Credentials::new();
    let (mut edits, mut sql) = (Vec::new(), String::new());
    for (role, former) in &rotation.roles {
        let credential = successor(former)?;
        let present = present_file(path, role);
        files::replace(&present, credential.password.expose().as_bytes()).map_err(Failure::file("write", &present))?;
        edits.push(set(role, "verifier", credential.verifier.expose().into()));
        edits.push(set(role, "previous_verifier", former.as_str().into()));
        edits.push(set(role, "previous_valid_until", rotation.valid_until.as_str().into()));
        let name = present.file_name().unwrap_or_default().to_string_lossy().into_owned();
        edits.push(set(role, "present_password", Value::from_iter([("file", Value::from(name))])));
        let verifier = quote::literal(credential.verifier.expose());
        sql += &format!("ALTER ROLE {} PASSWORD {verifier};", quote::identifier(role));
        credentials.insert(role.clone(), credential);
    }
    if let Some(file) = file {
        credentials::write(file, &tenant.id, &tenant.database, &credentials)?;
    }
    faults::point(ACT, "files")?;
    edit::edit(site, tenant, &edits, || Ok(()))?;
    faults::point(ACT, "record")?;
    instance.run(&session, "set the passwords", &sql).await?;
    faults::point(ACT, "instance")?;
    Ok(credentials)
}

/// A new password whose verifier has the old one's salt and iterations: the exchange cannot ask which one will come.
fn successor(former: &str) -> Result<Credential, Failure> {
    let Ok(Verifier::Scram(former)) = Verifier::parse(former) else {
        return Err(Failure::Order("the record's verifier is malformed".to_owned()));
    };
    let password = credentials::random_password()?;
    let verifier = ScramVerifier::from_password(password.expose(), former.salt(), former.iterations()).0;
    Ok(Credential { verifier: crate::config::Secret::new(verifier.to_text().as_str()), password })
}

fn set(role: &str, key: &str, value: Value) -> Edit {
    Edit { key: format!("roles.{role}.{key}"), value: Some(value) }
}

pub(super) fn present_file(record: &Path, role: &str) -> PathBuf {
    let id = record.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    record.with_file_name(format!("{id}.{role}.present"))
}

/// The roles whose old passwords [`finish`] would end.
pub fn former(site: &Site, tenant: &Tenant) -> Result<Vec<String>, Failure> {
    edit::record_of(site, tenant)?;
    if Journal::peek(&site.config.lifecycle.journal_dir, &tenant.id).is_some() {
        return Err(Failure::Order(format!("tenant {}: an act on it is not finished; finish that first", tenant.id)));
    }
    let roles = tenant.roles.iter().filter(|(_, role)| role.previous.is_some());
    Ok(roles.map(|(name, _)| name.clone()).collect())
}

/// Ends the grace time: the old passwords, and the files with the present ones, are gone. Gives the roles concerned.
pub fn finish(site: &Site, tenant: &Tenant) -> Result<Vec<String>, Failure> {
    let path = edit::record_of(site, tenant)?;
    let journal = Journal::open(&site.config.lifecycle.journal_dir, &tenant.id)?;
    if !journal.is_new() {
        return Err(Failure::Order(format!("tenant {}: an act on it is not finished; finish that first", tenant.id)));
    }
    let roles: Vec<String> =
        tenant.roles.iter().filter(|(_, role)| role.previous.is_some()).map(|(name, _)| name.clone()).collect();
    let keys = ["previous_verifier", "previous_valid_until", "present_password"];
    let edits: Vec<Edit> = roles
        .iter()
        .flat_map(|role| keys.map(|key| Edit { key: format!("roles.{role}.{key}"), value: None }))
        .collect();
    let result = edit::edit(site, tenant, &edits, || Ok(())).and_then(|()| {
        tenant
            .roles
            .keys()
            .map(|role| present_file(path, role))
            .try_for_each(|file| files::remove(&file).map(drop).map_err(Failure::file("remove", &file)))
    });
    let result = result.and_then(|()| journal.remove());
    site.recorded_with("tenant rotate-credentials", &tenant.id, result, "grace ended")?;
    Ok(roles)
}
