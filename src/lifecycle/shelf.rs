//! Where tenants' backups are, and what is known of them: `<backup.dir>/<tenant>/<time>.pgt`, and `state.json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use super::copies::SUMS;
use super::{Failure, files};
use crate::config::Config;
use crate::metrics::BackupFigures;

const ENDING: &str = "pgt";
const STATE: &str = "state.json";
/// UTC, and in the order of time when names are sorted.
const NAME: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// A backup that is there whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub tenant: String,
    /// As in `20301224T173000Z`.
    pub name: String,
    pub path: PathBuf,
    pub made: OffsetDateTime,
}

/// The folder of a tenant's backups.
pub fn folder(config: &Config, tenant: &str) -> PathBuf {
    config.backup.dir.join(tenant)
}

/// Where a backup goes that is made at this moment.
pub fn place(config: &Config, tenant: &str, now: OffsetDateTime) -> PathBuf {
    let name = now.format(NAME).unwrap_or_else(|_| now.unix_timestamp().to_string());
    folder(config, tenant).join(format!("{name}.{ENDING}"))
}

/// Acts that have a login of their own to read or restore rows with, by what stands behind the tenant's id.
const SEATS: [&str; 3] = ["", "~export", "~proof"];

/// The login for an act on a tenant, `<tenant>`, `<tenant>~export` or `<tenant>~proof`; the same each time: what a killed run
/// has left is found.
pub fn seat(act: &str) -> String {
    let digest = Sha256::digest(act.as_bytes());
    let hex: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("pgtenant_restore_{hex}")
}

/// All that a tenant may have.
pub fn seats(tenant: &str) -> [String; 3] {
    SEATS.map(|behind| seat(&format!("{tenant}{behind}")))
}

/// The database that a backup is restored into to prove it. Such a login owns it; no tenant's has a `~`.
pub fn scratch(tenant: &str) -> String {
    format!("{tenant}~proof")
}

/// A tenant's backups, oldest first. What is not whole, or has another name, is passed over.
pub fn of_tenant(config: &Config, tenant: &str) -> Result<Vec<Stored>, Failure> {
    let dir = folder(config, tenant);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::file("read", &dir)(error)),
    };
    let mut found: Vec<Stored> = entries
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let name = path.file_name()?.to_str()?.strip_suffix(ENDING)?.strip_suffix('.')?.to_owned();
            let made = PrimitiveDateTime::parse(&name, NAME).ok()?.assume_utc();
            path.join(SUMS).is_file().then(|| Stored { tenant: tenant.to_owned(), name, made, path })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Everybody who has a folder there.
pub fn tenants(config: &Config) -> Vec<String> {
    let entries = std::fs::read_dir(&config.backup.dir).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut tenants: Vec<String> = folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    tenants.sort();
    tenants
}

/// What was done to a tenant's backups last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    /// Unix time of the first backup and of the last one that was made.
    pub first: Option<i64>,
    pub made: Option<i64>,
    /// Unix time at which a restore was proven last, and the backup's name.
    pub proven: Option<i64>,
    pub proven_backup: Option<String>,
}

/// By tenant.
pub type State = BTreeMap<String, Known>;

/// The state as it is; one that cannot be read is as good as none.
pub fn state(config: &Config) -> State {
    let text = std::fs::read(config.backup.dir.join(STATE)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Changes the state; writers wait for each other.
pub fn change(config: &Config, change: impl FnOnce(&mut State)) -> Result<(), Failure> {
    let dir = &config.backup.dir;
    std::fs::create_dir_all(dir).map_err(Failure::file("make", dir))?;
    let lock = File::open(dir).map_err(Failure::file("open", dir))?;
    lock.lock().map_err(Failure::file("lock", dir))?;
    let before = state(config);
    let mut after = before.clone();
    change(&mut after);
    if after == before {
        return Ok(());
    }
    let path = dir.join(STATE);
    let text = serde_json::to_string_pretty(&after).expect("plain data") + "\n";
    files::replace(&path, text.as_bytes()).map_err(Failure::file("write", &path))
}

/// The same where there are backups at all.
pub fn change_if_there(config: &Config, change: impl FnOnce(&mut State)) -> Result<(), Failure> {
    match config.backup.dir.is_dir() {
        true => self::change(config, change),
        false => Ok(()),
    }
}

/// Whether the tenant's next backup is due, or by how much it is late.
pub fn lateness(known: Option<&Known>, every: Duration, now: OffsetDateTime) -> Option<Duration> {
    let Some(made) = known.and_then(|known| known.made) else { return Some(Duration::MAX) };
    age(made, now).checked_sub(every)
}

fn age(moment: i64, now: OffsetDateTime) -> Duration {
    Duration::from_secs(now.unix_timestamp().saturating_sub(moment).try_into().unwrap_or_default())
}

/// What the proxy's metrics say of tenants that have a schedule.
pub fn figures(config: &Config, now: OffsetDateTime) -> BackupFigures {
    let mut figures = BackupFigures::default();
    if config.tenants.values().all(|tenant| tenant.backup.every.is_none()) {
        return figures;
    }
    let state = state(config);
    for tenant in config.tenants.values() {
        let Some(every) = tenant.backup.every else { continue };
        let known = state.get(&tenant.id);
        figures.scheduled += 1;
        figures.overdue += i64::from(lateness(known, every, now).is_some_and(|late| late > every));
        let proven = known.and_then(|known| known.proven);
        figures.unproven += i64::from(proven.is_none());
        // What was never proven is as old as it can be.
        if let Some(since) = proven.or_else(|| known.and_then(|known| known.first)) {
            figures.oldest_proof = figures.oldest_proof.max(age(since, now).as_secs_f64());
        }
    }
    figures
}

/// The backup that somebody means: `<tenant>/<name>`, or `<tenant>` for its newest.
pub fn find(config: &Config, meant: &str) -> Result<Stored, Failure> {
    let (tenant, name) = match meant.trim_end_matches('/').split_once('/') {
        Some((tenant, name)) => (tenant, Some(name.strip_suffix(".pgt").unwrap_or(name))),
        None => (meant, None),
    };
    let stored = of_tenant(config, tenant)?;
    let found = match name {
        None => stored.last(),
        Some(name) => stored.iter().find(|stored| stored.name == name),
    };
    found.cloned().ok_or_else(|| {
        let dir = config.backup.dir.display();
        Failure::Order(format!("no backup {meant:?} in {dir}; `pgtenant backup list` shows those that there are"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_due_when_the_last_one_is_old_enough() {
        let now = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        let day = Duration::from_secs(86_400);
        let known = |ago: i64| Known { made: Some(1_000_000 - ago), ..Known::default() };
        assert_eq!(lateness(None, day, now), Some(Duration::MAX));
        assert_eq!(lateness(Some(&known(86_399)), day, now), None);
        assert_eq!(lateness(Some(&known(86_400)), day, now), Some(Duration::ZERO));
        // A clock that was put back.
        assert_eq!(lateness(Some(&known(-50)), day, now), None);
    }
}
