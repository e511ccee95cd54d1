//! What a tenant shall be like: the order that a run works on, written into its journal without any secret.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Failure;
use crate::config;

/// Names in PostgreSQL have at most 63 bytes (`NAMEDATALEN`), and a role's name has the tenant's and an ending.
const LONGEST_NAME: usize = 63;
/// PostgreSQL's own default, too.
pub const TEMPLATE: &str = "template1";

/// A tenant's roles: on the instance they belong to nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles {
    /// Owns the database, and cannot log in.
    pub owner: String,
    /// The application's.
    pub app: String,
    /// Reads, and nothing else.
    pub read_only: String,
}

impl Roles {
    pub fn of(tenant: &str) -> Roles {
        let named = |ending: &str| format!("{tenant}_{ending}");
        Roles { owner: named("owner"), app: named("app"), read_only: named("ro") }
    }

    pub fn all(&self) -> [&str; 3] {
        [&self.owner, &self.app, &self.read_only]
    }

    /// Those that log in.
    pub fn logins(&self) -> [&str; 2] {
        [&self.app, &self.read_only]
    }
}

/// One tenant, to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    pub tenant: String,
    pub instance: String,
    pub database: String,
    pub roles: Roles,
    /// Where it has to stay.
    pub region: Option<String>,
    pub tier: Option<String>,
    /// The database that its own begins as a copy of.
    pub template: String,
    pub extensions: Vec<String>,
    /// `ALTER DATABASE … SET`.
    pub settings: BTreeMap<String, String>,
    /// Folder of the migrations that it begins with.
    #[serde(default)]
    pub migrations: Option<PathBuf>,
    /// Further keys of the record, such as `[pool]` and `[quota]`.
    pub record: toml::Table,
    /// Where the passwords go, mode 0600; none: they are shown.
    pub credentials: Option<PathBuf>,
}

impl Order {
    /// With names after the tenant, a copy of `template1`.
    pub fn new(tenant: &str, instance: &str) -> Order {
        Order {
            tenant: tenant.to_owned(),
            instance: instance.to_owned(),
            database: tenant.to_owned(),
            roles: Roles::of(tenant),
            region: None,
            tier: None,
            template: TEMPLATE.to_owned(),
            extensions: Vec::new(),
            settings: BTreeMap::new(),
            migrations: None,
            record: toml::Table::new(),
            credentials: None,
        }
    }

    /// What can be said without asking anybody.
    pub fn check(&self) -> Result<(), Failure> {
        let wrong = |what: String| Err(Failure::Order(format!("tenant {:?}: {what}", self.tenant)));
        if let Err(message) = config::check_id(&self.tenant) {
            return wrong(format!("an id {message}"));
        }
        for name in self.roles.all().into_iter().chain([self.database.as_str()]) {
            if name.is_empty() || name.len() > LONGEST_NAME {
                return wrong(format!("{name:?} has more than the {LONGEST_NAME} bytes of a name in PostgreSQL"));
            }
        }
        let known = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if let Some(name) = self.settings.keys().find(|name| name.is_empty() || !name.chars().all(known)) {
            return wrong(format!("{name:?} is no setting"));
        }
        const OURS: [&str; 8] = ["id", "instance", "database", "databases", "region", "tier", "roles", "credentials"];
        if let Some(key) = self.record.keys().find(|key| OURS.contains(&key.as_str())) {
            return wrong(format!("record.{key} follows from the order itself; leave it out"));
        }
        Ok(())
    }
}
