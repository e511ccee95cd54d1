//! What a database lacks, and what speaks against giving it to it: its history beside the folder. Pure.

use serde::Serialize;

use super::folder::Folder;

/// An entry of a tenant's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub version: i64,
    pub name: String,
    pub checksum: String,
    /// None: it is applied. Otherwise a migration without a transaction that was begun and is not over.
    pub unfinished: Option<Unfinished>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unfinished {
    pub way: Way,
    /// Groups of statements that are done.
    pub done: usize,
    /// The next one was being run without a transaction: nobody has seen whether it was.
    pub running: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    Up,
    Down,
}

impl Way {
    pub fn text(self) -> &'static str {
        match self {
            Way::Up => "up",
            Way::Down => "down",
        }
    }
}

/// Where a run leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    Up {
        /// None: to the last one.
        to: Option<i64>,
        /// Also those that are older than what is applied.
        out_of_order: bool,
    },
    /// All that are newer are taken back.
    DownTo(i64),
}

impl Goal {
    pub fn way(&self) -> Way {
        match self {
            Goal::Up { .. } => Way::Up,
            Goal::DownTo(_) => Way::Down,
        }
    }
}

/// Versions to be run, in this order; none: nothing to do.
pub type Plan = Vec<i64>;

/// Why a database is not touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "drift", rename_all = "kebab-case")]
pub enum Drift {
    #[error("{version}_{name} was edited after it was applied")]
    Edited { version: i64, name: String },
    #[error("{version}_{name} is applied, and there is no file of it")]
    Missing { version: i64, name: String },
    #[error("{version}_{name} is not applied, but the newer {newer} is (--allow-out-of-order applies it)")]
    OutOfOrder { version: i64, name: String, newer: i64 },
    #[error("{version}_{name} was cut off on its way {}; finish that way first", way.text())]
    OtherWay { version: i64, name: String, way: Way },
    #[error("{version}_{name} has no way down")]
    NoWayDown { version: i64, name: String },
}

/// What has to be run.
///
/// # Errors
/// Everything in which history and folder contradict each other.
pub fn plan(folder: &Folder, history: &[Entry], goal: &Goal) -> Result<Plan, Vec<Drift>> {
    let mut drift = differences(folder, history, goal);
    let plan = match goal {
        Goal::Up { to, out_of_order } => up(folder, history, *to, *out_of_order, &mut drift),
        Goal::DownTo(version) => {
            history.iter().rev().map(|entry| entry.version).take_while(|applied| applied > version).collect()
        }
    };
    if goal.way() == Way::Down {
        let lacking = plan.iter().filter_map(|&version| folder.get(version)).filter(|it| it.down.is_none());
        drift.extend(lacking.map(|it| Drift::NoWayDown { version: it.version, name: it.name.clone() }));
    }
    if drift.is_empty() { Ok(plan) } else { Err(drift) }
}

/// Entries that are not what the files say.
pub fn differences(folder: &Folder, history: &[Entry], goal: &Goal) -> Vec<Drift> {
    let differs = |entry: &Entry| {
        let (version, name) = (entry.version, entry.name.clone());
        match (folder.get(version), &entry.unfinished) {
            (None, _) => Some(Drift::Missing { version, name }),
            (Some(file), _) if file.checksum != entry.checksum => Some(Drift::Edited { version, name }),
            (_, Some(unfinished)) if unfinished.way != goal.way() => {
                Some(Drift::OtherWay { version, name, way: unfinished.way })
            }
            _ => None,
        }
    };
    history.iter().filter_map(differs).collect()
}

fn up(folder: &Folder, history: &[Entry], to: Option<i64>, out_of_order: bool, drift: &mut Vec<Drift>) -> Plan {
    let entry = |version: i64| history.iter().find(|entry| entry.version == version);
    let newest = history.iter().filter(|entry| entry.unfinished.is_none()).map(|entry| entry.version).max();
    let mut plan = Vec::new();
    for file in folder.migrations.iter().filter(|file| to.is_none_or(|to| file.version <= to)) {
        match (entry(file.version), newest) {
            (Some(entry), _) if entry.unfinished.is_none() => continue,
            (None, Some(newer)) if newer > file.version && !out_of_order => {
                drift.push(Drift::OutOfOrder { version: file.version, name: file.name.clone(), newer });
            }
            _ => plan.push(file.version),
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::super::folder::Migration;
    use super::super::script::Script;
    use super::*;

    fn folder(versions: &[i64]) -> Folder {
        let script = || Script { transaction: true, groups: Vec::new() };
        let migration = |&version: &i64| Migration {
            version,
            name: "m".to_owned(),
            file: "m".into(),
            checksum: version.to_string(),
            up: script(),
            down: (version != 9).then(script),
        };
        Folder { path: "f".into(), migrations: versions.iter().map(migration).collect() }
    }

    fn applied(version: i64) -> Entry {
        Entry { version, name: "m".to_owned(), checksum: version.to_string(), unfinished: None }
    }

    fn cut_off(version: i64, way: Way) -> Entry {
        Entry { unfinished: Some(Unfinished { way, done: 1, running: false }), ..applied(version) }
    }

    const UP: Goal = Goal::Up { to: None, out_of_order: false };

    #[test]
    fn what_is_lacking_is_applied_in_order() {
        let history = [applied(1), applied(2)];
        assert_eq!(plan(&folder(&[1, 2, 3, 5]), &history, &UP), Ok(vec![3, 5]));
        assert_eq!(plan(&folder(&[1, 2]), &history, &UP), Ok(vec![]));
        assert_eq!(
            plan(&folder(&[1, 2, 3, 5]), &[], &Goal::Up { to: Some(3), out_of_order: false }),
            Ok(vec![1, 2, 3])
        );
        assert_eq!(plan(&folder(&[1, 2, 3]), &[applied(1), cut_off(2, Way::Up)], &UP), Ok(vec![2, 3]));
    }

    #[test]
    fn older_ones_are_refused_unless_asked_for() {
        let out =
            |out_of_order| plan(&folder(&[1, 2, 3]), &[applied(1), applied(3)], &Goal::Up { to: None, out_of_order });
        assert_eq!(out(false), Err(vec![Drift::OutOfOrder { version: 2, name: "m".to_owned(), newer: 3 }]));
        assert_eq!(out(true), Ok(vec![2]));
    }

    #[test]
    fn a_history_that_the_files_do_not_tell_is_drift() {
        let edited = Entry { checksum: "other".to_owned(), ..applied(1) };
        let drift = plan(&folder(&[1, 3]), &[edited, applied(2)], &UP).unwrap_err();
        let name = "m".to_owned();
        assert_eq!(drift, [Drift::Edited { version: 1, name: name.clone() }, Drift::Missing { version: 2, name }]);
        let drift = plan(&folder(&[1]), &[cut_off(1, Way::Down)], &UP).unwrap_err();
        assert!(drift[0].to_string().contains("finish that way first"), "{drift:?}");
    }

    #[test]
    fn the_way_down_is_the_reverse() {
        let (files, history) = (folder(&[1, 2, 3]), [applied(1), applied(2), applied(3)]);
        assert_eq!(plan(&files, &history, &Goal::DownTo(1)), Ok(vec![3, 2]));
        assert_eq!(plan(&files, &history, &Goal::DownTo(0)), Ok(vec![3, 2, 1]));
        assert_eq!(plan(&files, &history[..2], &Goal::DownTo(2)), Ok(vec![]));
        let drift = plan(&folder(&[1, 9]), &[applied(1), applied(9)], &Goal::DownTo(1)).unwrap_err();
        assert!(drift[0].to_string().contains("no way down"));
    }
}
