//! Onboards a demo tenant on an instance (roles, database, marker row) and writes its record.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::postgres::{Postgres, PostgresError};

/// The bound in every demo tenant's record: few enough that a handful of clients has to share them.
pub const MAX_BACKENDS: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum OnboardError {
    #[error("tenant {tenant}: {source}")]
    Postgres { tenant: String, source: PostgresError },
    #[error("tenant {tenant}: the system gives no random numbers for a password")]
    NoRandomness { tenant: String },
    #[error("tenant {tenant}: role {role} has no verifier in pg_authid")]
    NoVerifier { tenant: String, role: String },
    #[error("cannot write the tenant's record {path}: {source}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
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

/// Creates the tenant's roles and database on `postgres`:
///
/// - a role without login that owns the database, `<database>_owner`;
/// - the application's role, which may connect, use and create tables in `public`, and nothing else;
/// - `marker(tenant text)` with one row, which the application may read;
/// - CONNECT is taken from PUBLIC, so that no other role of the instance gets in.
pub async fn onboard(postgres: &Postgres, order: &Order) -> Result<Onboarded, OnboardError> {
    let failed = |source| OnboardError::Postgres { tenant: order.tenant.clone(), source };
    let password = random_password().ok_or_else(|| OnboardError::NoRandomness { tenant: order.tenant.clone() })?;
    let (database, role) = (identifier(&order.database), identifier(&order.role));
    let owner = identifier(&format!("{}_owner", order.database));

    postgres.sql("postgres", &format!("CREATE ROLE {owner} NOLOGIN")).await.map_err(failed)?;
    let secret = literal(password.expose_secret());
    postgres.sql("postgres", &format!("CREATE ROLE {role} LOGIN PASSWORD {secret}")).await.map_err(failed)?;
    postgres.sql("postgres", &format!("CREATE DATABASE {database} OWNER {owner}")).await.map_err(failed)?;
    let grants = format!(
        "REVOKE ALL ON DATABASE {database} FROM PUBLIC;
         GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {role};
         GRANT USAGE, CREATE ON SCHEMA public TO {role};
         SET ROLE {owner};
         CREATE TABLE marker (tenant text NOT NULL);
         INSERT INTO marker VALUES ({marker});
         GRANT SELECT ON marker TO {role}",
        marker = literal(&order.tenant)
    );
    postgres.sql(&order.database, &grants).await.map_err(failed)?;

    let query = format!("SELECT rolpassword FROM pg_authid WHERE rolname = {}", literal(&order.role));
    let mut rows = postgres.sql("postgres", &query).await.map_err(failed)?;
    let verifier = rows.pop().and_then(|mut row| row.pop().flatten());
    let verifier =
        verifier.ok_or_else(|| OnboardError::NoVerifier { tenant: order.tenant.clone(), role: order.role.clone() })?;
    Ok(Onboarded {
        tenant: order.tenant.clone(),
        instance: order.instance.clone(),
        database: order.database.clone(),
        role: order.role.clone(),
        password,
        verifier: verifier.into(),
    })
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

    /// Writes the record as `<tenants_dir>/<tenant>.toml`; see [`write_record`].
    pub fn write(&self, tenants_dir: &Path) -> Result<PathBuf, OnboardError> {
        write_record(tenants_dir, &self.tenant, &self.record())
    }
}

/// Writes a record with mode 0600 and puts it into place whole: a proxy that watches the folder never reads half of it.
pub fn write_record(tenants_dir: &Path, tenant: &str, record: &toml::Table) -> Result<PathBuf, OnboardError> {
    let path = tenants_dir.join(format!("{tenant}.toml"));
    let write = || {
        std::fs::create_dir_all(tenants_dir)?;
        let mut file = tempfile::NamedTempFile::new_in(tenants_dir)?;
        file.write_all(record.to_string().as_bytes())?;
        file.persist(&path).map_err(|error| error.error).map(drop)
    };
    write().map_err(|source| OnboardError::Write { path: path.clone(), source })?;
    Ok(path)
}

/// 128 random bits in hexadecimal.
fn random_password() -> Option<SecretString> {
    let bits = (u128::from(getrandom::u64().ok()?) << 64) | u128::from(getrandom::u64().ok()?);
    Some(format!("{bits:032x}").into())
}

/// A quoted identifier (PostgreSQL manual, section 4.1.1).
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A quoted string constant (section 4.1.2.1; `standard_conforming_strings` is on by default).
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
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

    #[test]
    fn names_are_quoted() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("o'clock"), "'o''clock'");
    }
}
