//! A new tenant's passwords: made here, given out once, and otherwise kept as SCRAM verifiers only.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{Failure, files};
use crate::auth::ScramVerifier;
use crate::config::Secret;

/// What is known of a role's password while a run lasts.
#[derive(Debug, Clone)]
pub struct Credential {
    pub password: Secret,
    /// As in `pg_authid.rolpassword`.
    pub verifier: Secret,
}

impl Credential {
    /// A random password with its verifier.
    pub fn generate() -> Result<Credential, Failure> {
        Ok(Credential::of(&random_password()?))
    }

    fn of(password: &Secret) -> Credential {
        let verifier = Secret::new(ScramVerifier::generate(password.expose()).0.to_text().as_str());
        Credential { password: password.clone(), verifier }
    }
}

/// By role.
pub type Credentials = BTreeMap<String, Credential>;

/// New ones for these roles.
pub fn generate(roles: &[&str]) -> Result<Credentials, Failure> {
    roles.iter().map(|role| Ok(((*role).to_owned(), Credential::generate()?))).collect()
}

/// 128 random bits in hexadecimal.
pub fn random_password() -> Result<Secret, Failure> {
    let half = || getrandom::u64().map_err(|_| Failure::NoRandomness);
    Ok(Secret::new(format!("{:016x}{:016x}", half()?, half()?)))
}

/// The text of a credentials file: TOML, a table for each role.
pub fn text(tenant: &str, database: &str, credentials: &Credentials) -> zeroize::Zeroizing<String> {
    let mut text = zeroize::Zeroizing::new(format!("tenant = {tenant:?}\ndatabase = {database:?}\n"));
    for (role, credential) in credentials {
        text.push_str(&format!("\n[roles.{role:?}]\npassword = {:?}\n", credential.password.expose()));
    }
    text
}

/// Passwords by role, for an answer in JSON.
pub fn shown(credentials: &Credentials) -> Value {
    credentials.iter().map(|(role, of)| (role.clone(), json!(of.password.expose()))).collect()
}

/// Writes them with mode 0600, over what an earlier attempt has written.
pub fn write(path: &Path, tenant: &str, database: &str, credentials: &Credentials) -> Result<(), Failure> {
    files::replace(path, text(tenant, database, credentials).as_bytes()).map_err(Failure::file("write", path))
}
