//! Which backups go, and their removal: by number and age, and never the last one that was proven.

use std::path::PathBuf;

use time::OffsetDateTime;

use crate::config::TenantBackup;
use crate::lifecycle::shelf::{self, Stored};
use crate::lifecycle::{Failure, Site, copies};

/// Of a tenant's backups, oldest first, those that are neither among the newest `keep` nor young enough, and neither the
/// newest nor the last proven one.
pub fn outdated<'a>(
    backups: &'a [Stored],
    rule: &TenantBackup,
    proven: Option<&str>,
    now: OffsetDateTime,
) -> Vec<&'a Stored> {
    let first_kept = backups.len().saturating_sub(rule.keep as usize);
    let is_old = |stored: &Stored| rule.keep_for.is_some_and(|keep_for| stored.made + keep_for < now);
    let newest = backups.last().map(|newest| newest.name.as_str());
    let goes = |(at, stored): &(usize, &'a Stored)| {
        let name = Some(stored.name.as_str());
        (*at < first_kept || is_old(stored)) && name != newest && name != proven
    };
    backups.iter().enumerate().filter(goes).map(|(_, stored)| stored).collect()
}

/// Removes the tenant's outdated backups, and names them.
pub fn prune(site: &Site, tenant: &str, dry_run: bool) -> Result<Vec<Stored>, Failure> {
    let config = &site.config;
    let rule = config.tenants.get(tenant).map_or(&config.backup.defaults, |tenant| &tenant.backup);
    let backups = shelf::of_tenant(config, tenant)?;
    let state = shelf::state(config);
    let proven = state.get(tenant).and_then(|known| known.proven_backup.as_deref());
    let gone: Vec<Stored> = outdated(&backups, rule, proven, OffsetDateTime::now_utc()).into_iter().cloned().collect();
    if dry_run || gone.is_empty() {
        return Ok(gone);
    }
    let names: Vec<&str> = gone.iter().map(|stored| stored.name.as_str()).collect();
    site.record("backup prune", tenant, "begun", &names.join(", "))?;
    let removed = gone.iter().try_for_each(|stored| copies::destroy(&stored.path).map(drop));
    let paths: Vec<PathBuf> = gone.iter().map(|stored| stored.path.clone()).collect();
    let removed = removed.and_then(|()| copies::forget(site, tenant, &paths));
    site.recorded_with("backup prune", tenant, removed, &names.join(", ")).map(|()| gone)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newest_and_the_proven_one_stay_whatever_the_rule() {
        const DAY: u64 = 86_400;
        let now = OffsetDateTime::from_unix_timestamp(100 * DAY as i64).unwrap();
        let stored = |days_ago: u64| Stored {
            tenant: "acme".to_owned(),
            name: format!("{days_ago}"),
            path: PathBuf::new(),
            made: now - Duration::from_secs(days_ago * DAY),
        };
        let backups: Vec<Stored> = [40, 30, 20, 10, 1].map(stored).into();
        let rule = |keep, days: Option<u64>| TenantBackup {
            keep,
            keep_for: days.map(|days| Duration::from_secs(days * DAY)),
            ..TenantBackup::default()
        };
        let gone = |rule: &TenantBackup, proven: Option<&str>| -> Vec<String> {
            outdated(&backups, rule, proven, now).iter().map(|stored| stored.name.clone()).collect()
        };
        assert_eq!(gone(&rule(7, None), None), Vec::<String>::new());
        assert_eq!(gone(&rule(3, None), None), ["40", "30"]);
        assert_eq!(gone(&rule(3, None), Some("40")), ["30"]);
        assert_eq!(gone(&rule(7, Some(15)), None), ["40", "30", "20"]);
        assert_eq!(gone(&rule(1, Some(0)), Some("20")), ["40", "30", "10"]);
        assert!(outdated(&[], &rule(1, None), None, now).is_empty());
    }
}
