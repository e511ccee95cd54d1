//! Puts a history right that the files do not tell, on an operator's word. Nothing of the schema is touched.

use super::super::Failure;
use super::super::instance::Instance;
use super::folder::Folder;
use super::history::{self, Change, Took};
use super::plan::{Entry, Unfinished};
use super::seat::Seat;
use super::work::Job;
use super::{Patience, Target};

/// What the operator says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Applied migrations that were edited since are fine as they are now.
    AcceptEdited,
    /// This one is not applied.
    Forget(i64),
    /// This one is applied, all of it.
    MarkApplied(i64),
    /// The statement that was cut off has not run.
    Retry(i64),
    /// A database without history has all up to this one.
    Baseline(i64),
}

/// What the history would lose or get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub what: String,
    /// None: the entry goes.
    entry: Option<Entry>,
    version: i64,
}

/// What has to be changed; nothing where all is right already.
///
/// # Errors
/// It cannot be meant: why.
pub fn steps(folder: &Folder, history: &[Entry], repair: Repair) -> Result<Vec<Step>, String> {
    let entry = |version: i64| history.iter().find(|entry| entry.version == version);
    let file = |version: i64| {
        folder.get(version).ok_or_else(|| format!("there is no file of version {version} in {}", folder.path.display()))
    };
    let whole = |version: i64| -> Result<Entry, String> {
        let file = file(version)?;
        Ok(Entry { version, name: file.name.clone(), checksum: file.checksum.clone(), unfinished: None })
    };
    let put = |what: String, entry: Entry| Step { what, version: entry.version, entry: Some(entry) };
    match repair {
        Repair::AcceptEdited => {
            let edited = history.iter().filter_map(|entry| {
                let file = folder.get(entry.version).filter(|file| file.checksum != entry.checksum)?;
                let entry = Entry { checksum: file.checksum.clone(), ..entry.clone() };
                Some(put(format!("{file}: taken as it is now"), entry))
            });
            Ok(edited.collect())
        }
        Repair::Forget(version) => {
            let step =
                |entry: &Entry| Step { what: format!("{version}_{}: not applied", entry.name), version, entry: None };
            Ok(entry(version).map(step).into_iter().collect())
        }
        Repair::MarkApplied(version) => {
            let there = entry(version).is_some_and(|entry| entry.unfinished.is_none());
            let step = |entry: Entry| put(format!("{version}_{}: applied", entry.name), entry);
            if there { Ok(Vec::new()) } else { whole(version).map(|entry| vec![step(entry)]) }
        }
        Repair::Retry(version) => {
            let cut_off = entry(version).and_then(|entry| Some((entry, entry.unfinished.clone()?)));
            let Some((entry, unfinished)) = cut_off.filter(|(_, unfinished)| unfinished.running) else {
                return Ok(Vec::new());
            };
            let entry = Entry { unfinished: Some(Unfinished { running: false, ..unfinished }), ..entry.clone() };
            Ok(vec![put(format!("{version}_{}: its statement has not run", entry.name), entry)])
        }
        Repair::Baseline(version) => {
            file(version)?;
            if !history.is_empty() {
                return Err("it has a history already; --mark-applied adds to that".to_owned());
            }
            let older = folder.migrations.iter().filter(|file| file.version <= version);
            older.map(|file| Ok(put(format!("{file}: applied"), whole(file.version)?))).collect()
        }
    }
}

/// Carries it out, and gives what was changed.
///
/// # Errors
/// The instance fails, or it cannot be meant for this tenant.
pub async fn repair(
    job: &Job,
    instance: &Instance,
    target: &Target<'_>,
    repair: Repair,
    dry_run: bool,
) -> Result<Vec<Step>, Failure> {
    let wrong = |why: String| Failure::Order(format!("tenant {}: {why}", target.tenant));
    let admin = instance.look(target.database).await?;
    let found = history::entries(instance, &admin).await?;
    let wanted = steps(&job.folder, &found, repair).map_err(wrong)?;
    if dry_run || (wanted.is_empty() && history::hash(instance, &admin).await? == Some(history::hash_of(&found))) {
        return Ok(wanted);
    }
    let Patience { lock_timeout, .. } = job.patience;
    let mut seat = Seat::take(instance, admin, target, job.shared_owners, lock_timeout).await?;
    let done = async {
        let wanted = steps(&job.folder, &seat.history, repair).map_err(wrong)?;
        let mut sql = "BEGIN;".to_owned();
        for step in &wanted {
            let (removed, entry) = (step.entry.is_none(), step.entry.clone().unwrap_or_else(|| gone(step.version)));
            sql += &Change { entry, removed, who: &job.who, took: Took::Unknown }.sql(&mut seat.history);
        }
        sql += &history::set_sql(&seat.history);
        sql += "COMMIT";
        seat.work.batch_execute(&sql).await.map_err(|error| instance.failed("write the history", &error))?;
        Ok(wanted)
    };
    let result = done.await;
    seat.leave().await?;
    result
}

fn gone(version: i64) -> Entry {
    Entry { version, name: String::new(), checksum: String::new(), unfinished: None }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Way;
    use super::*;

    fn folder() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("1_a.sql", "SELECT 1"), ("2_b.sql", "SELECT 2"), ("3_c.sql", "SELECT 3")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Folder::read(dir.path()).unwrap()
    }

    fn told(history: &[Entry], repair: Repair) -> Result<Vec<String>, String> {
        steps(&folder(), history, repair).map(|steps| steps.into_iter().map(|step| step.what).collect())
    }

    fn entry(version: i64, unfinished: Option<Unfinished>) -> Entry {
        Entry { version, name: "x".to_owned(), checksum: "old".to_owned(), unfinished }
    }

    #[test]
    fn a_history_is_put_right_where_it_is_not() {
        assert_eq!(told(&[entry(1, None)], Repair::AcceptEdited).unwrap(), ["1_a: taken as it is now"]);
        assert_eq!(told(&[entry(9, None)], Repair::AcceptEdited).unwrap(), Vec::<String>::new());
        assert_eq!(told(&[entry(9, None)], Repair::Forget(9)).unwrap(), ["9_x: not applied"]);
        assert_eq!(told(&[], Repair::Forget(9)).unwrap(), Vec::<String>::new());
        let cut_off = entry(2, Some(Unfinished { way: Way::Up, done: 1, running: true }));
        assert_eq!(told(std::slice::from_ref(&cut_off), Repair::Retry(2)).unwrap(), ["2_x: its statement has not run"]);
        assert_eq!(told(&[cut_off], Repair::MarkApplied(2)).unwrap(), ["2_b: applied"]);
        assert_eq!(told(&[entry(2, None)], Repair::MarkApplied(2)).unwrap(), Vec::<String>::new());
        assert_eq!(told(&[], Repair::Baseline(2)).unwrap(), ["1_a: applied", "2_b: applied"]);
        assert!(told(&[entry(1, None)], Repair::Baseline(2)).unwrap_err().contains("a history already"));
        assert!(told(&[], Repair::MarkApplied(7)).unwrap_err().contains("no file of version 7"));
    }
}
