//! Changes a tenant's record: keys by their dotted names, with everything else as it was written, comments included.

use std::path::Path;

use toml_edit::{DocumentMut, Item, Table, Value};

use super::site::Site;
use super::{Failure, files};
use crate::config::Tenant;

/// Keys that say where a tenant is and who it is: they are not changed by writing something else.
const FIXED: [&str; 5] = ["id", "instance", "database", "databases", "region"];

/// A key and its new value; none removes it.
#[derive(Debug, Clone)]
pub struct Edit {
    pub key: String,
    pub value: Option<Value>,
}

impl Edit {
    /// `pool.max_backends=5`, `tier="gold"`, `tier=gold`, `state_reason=`: what is no TOML is text, and nothing
    /// removes the key.
    pub fn parse(text: &str) -> Result<Edit, String> {
        let (key, value) = text.split_once('=').ok_or("write key=value, as in pool.max_backends=5")?;
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || key.split('.').any(str::is_empty) {
            return Err(format!("{key:?} is no key of a record"));
        }
        let value = (!value.is_empty()).then(|| value.parse().unwrap_or_else(|_| Value::from(value)));
        Ok(Edit { key: key.to_owned(), value })
    }

    /// Whether it changes what only a move may change.
    pub fn is_fixed(&self) -> bool {
        FIXED.contains(&self.key.as_str())
    }
}

impl std::fmt::Display for Edit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} = {}", self.key, value.to_string().trim()),
            None => write!(f, "{} removed", self.key),
        }
    }
}

/// The record's text with the edits.
pub fn edited(text: &str, edits: &[Edit]) -> Result<String, String> {
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| error.message().to_owned())?;
    for edit in edits {
        let path: Vec<&str> = edit.key.split('.').collect();
        set(document.as_table_mut(), &path, edit.value.as_ref())?;
    }
    Ok(document.to_string())
}

fn set(table: &mut Table, path: &[&str], to: Option<&Value>) -> Result<(), String> {
    match (path, to) {
        ([], _) => Ok(()),
        ([key], None) => {
            table.remove(key);
            Ok(())
        }
        ([key], Some(to)) => {
            // The value alone is replaced, so that a comment behind it stays.
            match table.get_mut(key).and_then(Item::as_value_mut) {
                Some(known) => {
                    let decor = known.decor().clone();
                    *known = to.clone();
                    *known.decor_mut() = decor;
                }
                None => _ = table.insert(key, Item::Value(to.clone())),
            }
            Ok(())
        }
        ([key, rest @ ..], to) => {
            if to.is_none() && !table.contains_key(key) {
                return Ok(());
            }
            let mut new = Table::new();
            new.set_implicit(true);
            if let Some(inline) = table.get(key).and_then(Item::as_inline_table) {
                let below = inline.clone().into_table();
                table.remove(key);
                table.insert(key, Item::Table(below));
            }
            let below = table.entry(key).or_insert(Item::Table(new));
            let below = below.as_table_mut().ok_or_else(|| format!("{key} is no table"))?;
            set(below, rest, to)
        }
    }
}

/// Edits the record of a tenant, in its own file or in `proxy.toml`. One that the proxy would refuse is put back as it was.
///
/// # Errors
/// The record would not be right any more: `check` says why.
pub fn edit(
    site: &Site,
    tenant: &Tenant,
    edits: &[Edit],
    check: impl FnOnce() -> Result<(), String>,
) -> Result<(), Failure> {
    let path = &tenant.source;
    let before = std::fs::read_to_string(path).map_err(Failure::file("read", path))?;
    let wrong = |why: String| Failure::Order(format!("tenant {}: {why}; nothing was changed", tenant.id));
    let edits: Vec<Edit> = edits
        .iter()
        .map(|edit| match is_alone(site, tenant) {
            true => edit.clone(),
            false => Edit { key: format!("tenants.{}.{}", tenant.id, edit.key), ..edit.clone() },
        })
        .collect();
    let after = edited(&before, &edits).map_err(wrong)?;
    files::replace(path, after.as_bytes()).map_err(Failure::file("write", path))?;
    if let Err(why) = check() {
        files::replace(path, before.as_bytes()).map_err(Failure::file("write", path))?;
        return Err(wrong(why));
    }
    Ok(())
}

fn is_alone(site: &Site, tenant: &Tenant) -> bool {
    tenant.source.parent() == Some(&site.config.lifecycle.tenants_dir)
}

/// The file that is the tenant's alone.
pub fn record_of<'a>(site: &Site, tenant: &'a Tenant) -> Result<&'a Path, Failure> {
    match is_alone(site, tenant) {
        true => Ok(&tenant.source),
        false => Err(Failure::Order(format!(
            "tenant {} stands in {}; edit it by hand, or give it a file of its own in {}",
            tenant.id,
            tenant.source.display(),
            site.config.lifecycle.tenants_dir.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str, edits: &[&str]) -> String {
        let edits: Vec<Edit> = edits.iter().map(|edit| Edit::parse(edit).unwrap()).collect();
        edited(text, &edits).unwrap()
    }

    #[test]
    fn everything_else_stays_as_it_is_written() {
        let text = "# Acme, Inc.\ntier = \"gold\"  # since May\n\n[pool]\nmax_backends = 5\n";
        let changed = after(text, &["tier=silver", "pool.weight=2", "quota.max_result=\"1GiB\""]);
        assert_eq!(
            changed,
            "# Acme, Inc.\ntier = \"silver\"  # since May\n\n[pool]\nmax_backends = 5\nweight = 2\n\n\
             [quota]\nmax_result = \"1GiB\"\n"
        );
        assert_eq!(
            after(&changed, &["quota.max_result=", "pool.weight=", "nothing.there="]).matches("weight").count(),
            0
        );
        assert_eq!(after("pool = { weight = 1 }\n", &["pool.weight=3"]), "[pool]\nweight = 3\n");
        assert_eq!(after("", &["allow=[\"10.0.0.0/8\"]"]), "allow = [\"10.0.0.0/8\"]\n");
        let proxy = "[tenants.acme]\ninstance = \"pg1\"\n[tenants.acme.roles.app]\n";
        let inline = "[tenants.acme]\ninstance = \"pg1\"\nstate = \"read-only\"\n[tenants.acme.roles.app]\n";
        assert_eq!(after(proxy, &["tenants.acme.state=read-only"]), inline);
        assert!(edited("pool = 1\n", &[Edit::parse("pool.weight=3").unwrap()]).is_err());
        assert!(Edit::parse("tier").is_err() && Edit::parse("a..b=1").is_err());
    }
}
