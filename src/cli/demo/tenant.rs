//! Onboards a demo tenant on a throwaway instance as `pgtenant tenant create` does, with a marker row.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::postgres::{Postgres, PostgresError, SUPERUSER};
use crate::config::{self, Host, InstanceAddress, InstanceAdmin, InstanceTls};
use crate::lifecycle::credentials::{self, Credentials};
use crate::lifecycle::instance::Instance;
use crate::lifecycle::quote::{identifier, literal};
use crate::lifecycle::{Failure, Roles, order, provision, record};

/// The bound in every demo tenant's record: few enough that a handful of clients has to share them.
pub const MAX_BACKENDS: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum OnboardError {
    #[error("tenant {tenant}: {source}")]
    Postgres { tenant: String, source: PostgresError },
    #[error("tenant {tenant}: {source}")]
    Lifecycle { tenant: String, source: Failure },
}

/// What to onboard. Roles and databases belong to the whole instance: tenants that share one need names of their own.
#[derive(Debug, Clone)]
pub struct Order {
    /// The tenant's id, and the text of its marker row.
    pub tenant: String,
    /// Name of the instance in `proxy.toml`.
    pub instance: String,
    pub database: String,
    /// The role that the application logs in as.
    pub role: String,
}

impl Order {
    /// Role `app` and database `app`, on an instance that the tenant has to itself.
    pub fn alone(tenant: &str, instance: &str) -> Order {
        Order { tenant: tenant.into(), instance: instance.into(), database: "app".into(), role: "app".into() }
    }

    /// Role and database named after the tenant, on an instance that it shares with others.
    pub fn shared(tenant: &str, instance: &str) -> Order {
        Order { database: tenant.into(), role: tenant.into(), ..Order::alone(tenant, instance) }
    }
}

/// A tenant that exists on its instance; not `Debug`, since it holds the password.
#[derive(Clone)]
pub struct Onboarded {
    pub tenant: String,
    pub instance: String,
    pub database: String,
    pub role: String,
    pub password: SecretString,
    /// As in `pg_authid.rolpassword`.
    pub verifier: SecretString,
}

/// Creates the tenant's roles and database on `postgres`, with the steps of `pgtenant tenant create`; its read-only role
/// has no login. Then `marker(tenant text)` with one row, which the application may read.
pub async fn onboard(postgres: &Postgres, order: &Order) -> Result<Onboarded, OnboardError> {
    let failed = |source| OnboardError::Postgres { tenant: order.tenant.clone(), source };
    let mut credentials = provision(postgres, order)
        .await
        .map_err(|source| OnboardError::Lifecycle { tenant: order.tenant.clone(), source })?;
    let marker = format!(
        "SET ROLE {owner}; CREATE TABLE marker (tenant text NOT NULL); INSERT INTO marker VALUES ({marker});
         REVOKE ALL ON marker FROM {role}; GRANT SELECT ON marker TO {role}",
        owner = identifier(&roles(order).owner),
        role = identifier(&order.role),
        marker = literal(&order.tenant)
    );
    postgres.sql(&order.database, &marker).await.map_err(failed)?;
    let credential = credentials.remove(&order.role).expect("made for this role");
    Ok(Onboarded {
        tenant: order.tenant.clone(),
        instance: order.instance.clone(),
        database: order.database.clone(),
        role: order.role.clone(),
        password: credential.password.expose().to_owned().into(),
        verifier: credential.verifier.expose().to_owned().into(),
    })
}

fn roles(order: &Order) -> Roles {
    let named = |ending: &str| format!("{}_{ending}", order.database);
    Roles { owner: named("owner"), app: order.role.clone(), read_only: named("ro") }
}

async fn provision(postgres: &Postgres, order: &Order) -> Result<Credentials, Failure> {
    let credentials = credentials::generate(&[&order.role])?;
    let order = order::Order {
        database: order.database.clone(),
        roles: roles(order),
        ..order::Order::new(&order.tenant, &order.instance)
    };
    let instance = Instance::new(&host(postgres), 1)?;
    let session = instance.session().await?;
    provision::roles(&instance, &session, &order.roles, &credentials).await?;
    provision::database(&instance, &session, &order).await?;
    let inside = instance.connect(&order.database).await?;
    provision::grants(&instance, &session, &inside, &order).await?;
    Ok(credentials)
}

/// The instance with its superuser, over the Unix socket.
fn host(postgres: &Postgres) -> Host {
    let address = InstanceAddress::Unix { dir: postgres.socket_dir().to_owned(), port: postgres.port() };
    let instance = config::Instance {
        name: "demo".to_owned(),
        address,
        tls: InstanceTls::Off,
        tls_server_name: String::new(),
        tls_ca: None,
        max_backends: 1,
        system_identifier: None,
        region: None,
    };
    let admin = InstanceAdmin { user: SUPERUSER.to_owned(), password: None, database: "postgres".to_owned() };
    Host { instance: instance.into(), tags: Vec::new(), max_tenants: None, wal_retention: None, admin: Some(admin) }
}

impl Onboarded {
    /// The tenant's record, as `tenants.d/<tenant>.toml` has it; with the verifier, never the password.
    pub fn record(&self) -> toml::Table {
        let string = |text: &str| toml::Value::from(text);
        let role = toml::Table::from_iter([("verifier".to_owned(), string(self.verifier.expose_secret()))]);
        let roles = toml::Table::from_iter([(self.role.clone(), role.into())]);
        let pool = toml::Table::from_iter([("max_backends".to_owned(), toml::Value::from(MAX_BACKENDS))]);
        toml::Table::from_iter([
            ("instance".to_owned(), string(&self.instance)),
            ("database".to_owned(), string(&self.database)),
            ("roles".to_owned(), roles.into()),
            ("pool".to_owned(), pool.into()),
        ])
    }

    /// Writes the record as `<tenants_dir>/<tenant>.toml`; see [`record::write`].
    pub fn write(&self, tenants_dir: &Path) -> Result<PathBuf, OnboardError> {
        record::write(tenants_dir, &self.tenant, &self.record())
            .map_err(|source| OnboardError::Lifecycle { tenant: self.tenant.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_holds_the_verifier_and_not_the_password() {
        let tenant = Onboarded {
            tenant: "acme".into(),
            instance: "one".into(),
            database: "app".into(),
            role: "app".into(),
            password: "open sesame".to_owned().into(),
            verifier: "SCRAM-SHA-256$4096:c2FsdA==$a:b".to_owned().into(),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = tenant.write(&dir.path().join("tenants.d")).unwrap();
        assert!(path.ends_with("tenants.d/acme.toml"));
        let text = std::fs::read_to_string(path).unwrap();
        assert!(!text.contains("sesame"));
        let record: toml::Table = text.parse().unwrap();
        assert_eq!(record["instance"].as_str(), Some("one"));
        assert_eq!(record["pool"]["max_backends"].as_integer(), Some(5));
        assert_eq!(record["roles"]["app"]["verifier"].as_str(), Some("SCRAM-SHA-256$4096:c2FsdA==$a:b"));
    }
}
