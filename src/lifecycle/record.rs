//! A tenant's record in the proxy's folder: written whole, so that a proxy that watches never reads half of one.

use std::path::{Path, PathBuf};

use super::credentials::Credentials;
use super::order::Order;
use super::{Failure, files};

/// `<tenants_dir>/<tenant>.toml`.
pub fn path(tenants_dir: &Path, tenant: &str) -> PathBuf {
    tenants_dir.join(format!("{tenant}.toml"))
}

/// The record of a new tenant; with verifiers, never passwords.
pub fn of(order: &Order, credentials: &Credentials) -> toml::Table {
    let mut record = order.record.clone();
    let mut set = |key: &str, value: Option<toml::Value>| {
        if let Some(value) = value {
            record.insert(key.to_owned(), value);
        }
    };
    let text = |text: &String| toml::Value::from(text.as_str());
    set("instance", Some(text(&order.instance)));
    set("database", Some(text(&order.database)));
    set("region", order.region.as_ref().map(text));
    set("tier", order.tier.as_ref().map(text));
    set("credentials", order.credentials.as_ref().map(|path| path.to_string_lossy().as_ref().into()));
    let roles = credentials.iter().map(|(role, credential)| {
        let verifier = ("verifier".to_owned(), credential.verifier.expose().into());
        (role.clone(), toml::Table::from_iter([verifier]).into())
    });
    set("roles", Some(toml::Table::from_iter(roles).into()));
    record
}

/// Writes a record with mode 0600.
pub fn write(tenants_dir: &Path, tenant: &str, record: &toml::Table) -> Result<PathBuf, Failure> {
    let path = path(tenants_dir, tenant);
    files::replace(&path, record.to_string().as_bytes()).map_err(Failure::file("write", &path))?;
    Ok(path)
}

/// Whether there was one.
pub fn remove(tenants_dir: &Path, tenant: &str) -> Result<bool, Failure> {
    let path = path(tenants_dir, tenant);
    files::remove(&path).map_err(Failure::file("remove", &path))
}

#[cfg(test)]
mod tests {
    use super::super::credentials;
    use super::*;

    #[test]
    fn the_record_holds_the_verifier_and_not_the_password() {
        let order = Order::new("acme", "one");
        let credentials = credentials::generate(&order.roles.logins()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = write(&dir.path().join("tenants.d"), "acme", &of(&order, &credentials)).unwrap();
        assert!(path.ends_with("tenants.d/acme.toml"));
        let text = std::fs::read_to_string(path).unwrap();
        let app = &credentials["acme_app"];
        assert!(!text.contains(app.password.expose()));
        let record: toml::Table = text.parse().unwrap();
        assert_eq!(record["instance"].as_str(), Some("one"));
        assert_eq!(record["roles"]["acme_app"]["verifier"].as_str(), Some(app.verifier.expose()));
    }
}
