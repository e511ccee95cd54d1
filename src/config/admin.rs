//! The admin console's roles, and the configuration as the console shows it.

use std::collections::BTreeMap;

use config::{Value, ValueKind};

use super::document::join;
use super::file;
use super::problem::Scope;
use super::secret::{Secret, Verifier};
use super::{Admin, AdminRole};

/// Tables of `proxy.toml` that are not shown: they hold secrets, or have a SHOW of their own.
const HIDDEN: [&str; 4] = ["admin", "instances", "provisioner", "tenants"];

/// `separator` stands between role and tenant in a client's user.
pub(super) fn resolve(written: file::Admin, separator: Option<char>, mut scope: Scope<'_, '_>) -> Admin {
    let mut roles = scope.enter("roles");
    let roles = written.roles.into_iter().map(|(name, written)| {
        let scope = roles.enter(&name);
        let role = role(&name, written, separator, scope);
        (name, role)
    });
    Admin { roles: roles.collect() }
}

fn role(name: &str, written: file::AdminRole, separator: Option<char>, mut scope: Scope<'_, '_>) -> AdminRole {
    scope.require(!name.is_empty(), "", "a role's name must not be empty");
    if let Some(separator) = separator.filter(|separator| name.contains(*separator)) {
        let message = format!("{name:?} names a tenant by its {separator:?} (routing.user_suffix); use another name");
        scope.problem("", message);
    }
    match (&written.verifier, &written.password) {
        (Some(_), Some(_)) => scope.problem("", "has both verifier and password; keep one"),
        (None, None) => scope.problem("", "needs one of verifier and password"),
        _ => {}
    }
    let verifier = match written.verifier {
        Some(Verifier::Plain(text)) => Some(text),
        Some(Verifier::Reference(reference)) => scope.secret("verifier", &reference),
        None => None,
    };
    let is_scram = |secret: &Secret| secret.expose().starts_with("SCRAM-SHA-256$");
    let known = verifier.as_ref().is_none_or(is_scram);
    scope.require(known, "verifier", "does not begin with SCRAM-SHA-256$; make one with: pgtenant verifier");
    AdminRole {
        access: written.access,
        verifier,
        password: written.password.and_then(|reference| scope.secret("password", &reference)),
    }
}

/// See `Config::written`.
pub(super) fn written(document: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let ValueKind::Table(table) = &document.kind else { return found };
    for (key, value) in table.iter().filter(|(key, _)| !HIDDEN.contains(&key.as_str())) {
        gather(&join("", key), value, &mut found);
    }
    found
}

fn gather(path: &str, value: &Value, found: &mut BTreeMap<String, String>) {
    match &value.kind {
        ValueKind::Table(table) => {
            table.iter().for_each(|(key, value)| gather(&join(path, key), value, found));
        }
        ValueKind::Array(items) => {
            let items: Vec<String> = items.iter().map(ToString::to_string).collect();
            found.insert(path.to_owned(), items.join(","));
        }
        _ => _ = found.insert(path.to_owned(), value.to_string()),
    }
}
