//! What of a tenant's record goes into a bundle.

use super::manifest::TenantRecord;
use crate::config::Tenant;
use crate::lifecycle::Failure;

/// What means the same wherever the tenant is, and is no secret.
const TAKEN: [&str; 3] = ["allow", "pool", "quota"];
/// What stands in the manifest's own fields, or follows from the place.
const TOLD: [&str; 7] = ["id", "instance", "database", "region", "tier", "roles", "credentials"];

/// From the record's own file, or from proxy.toml.
pub fn of(tenant: &Tenant) -> Result<TenantRecord, Failure> {
    let path = &tenant.source;
    let text = std::fs::read_to_string(path).map_err(Failure::file("read", path))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| Failure::Order(format!("{}: {}", path.display(), error.message())))?;
    let inline = table.get("tenants").and_then(|tenants| tenants.get(&tenant.id)).and_then(toml::Value::as_table);
    let written = inline.unwrap_or(&table);
    let record = TAKEN.iter().filter_map(|key| Some(((*key).to_owned(), written.get(*key)?.clone())));
    let others = written.keys().filter(|key| !TAKEN.contains(&key.as_str()) && !TOLD.contains(&key.as_str()));
    Ok(TenantRecord {
        id: tenant.id.clone(),
        region: tenant.region.clone(),
        tier: tenant.tier.clone(),
        record: record.collect(),
        left_out: others.cloned().collect(),
    })
}
