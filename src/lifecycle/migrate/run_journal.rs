//! The journal of a run over many tenants: its order, its waves, and what became of each tenant, so that `resume` goes on
//! with the same tenants in the same waves. What is applied is told by the tenants' own histories alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::{Failure, audit};
use super::plan::Goal;
use super::state::State;
use super::waves::Assigned;

/// What a run was ordered to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub select: String,
    pub dir: PathBuf,
    /// Hash of all files: edited ones make another run.
    pub files: String,
    pub goal: Goal,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Begun { when: String, who: String, order: Order },
    Waves { waves: Vec<Assigned> },
    Tenant { tenant: String, state: State },
    Baked { label: String, what: String },
    Ended { when: String, why: String },
}

/// What an earlier run has left.
#[derive(Debug, Clone, PartialEq)]
pub struct Earlier {
    pub when: String,
    pub who: String,
    pub order: Order,
    pub waves: Vec<Assigned>,
    pub states: BTreeMap<String, State>,
    /// Waves that were watched, with whatever outcome.
    pub baked: BTreeSet<String>,
    /// Why it did not finish; none: it was killed.
    pub stopped: Option<String>,
}

/// See the module. While it lives, no other run begins here.
#[derive(Debug)]
pub struct RunJournal {
    path: PathBuf,
    file: File,
}

impl RunJournal {
    /// # Errors
    /// Another run is at work.
    pub fn open(journal_dir: &Path) -> Result<RunJournal, Failure> {
        let path = path(journal_dir);
        let dir = path.parent().expect("it has a folder");
        std::fs::create_dir_all(dir).map_err(Failure::file("make", dir))?;
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let file = file.map_err(Failure::file("write", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(RunJournal { path, file }),
            Err(TryLockError::Error(error)) => Err(Failure::file("lock", &path)(error)),
            Err(TryLockError::WouldBlock) => {
                let what =
                    "another run of pgtenant migrate is at work with this configuration; wait until it has ended";
                Err(Failure::Order(what.to_owned()))
            }
        }
    }

    /// What a run that did not go through has left.
    pub fn earlier(&mut self) -> Result<Option<Earlier>, Failure> {
        let mut text = String::new();
        let read = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.read_to_string(&mut text));
        read.map_err(Failure::file("read", &self.path))?;
        read_lines(&text).map_err(|why| Failure::Journal { path: self.path.clone(), why })
    }

    /// Begins anew; what was there before is given up.
    pub fn begin(&mut self, who: &str, order: &Order) -> Result<(), Failure> {
        self.file.set_len(0).map_err(Failure::file("write", &self.path))?;
        self.write(&Line::Begun { when: audit::now(), who: who.to_owned(), order: order.clone() })?;
        self.file.sync_all().map_err(Failure::file("write", &self.path))
    }

    /// Further waves.
    pub fn waves(&mut self, waves: &[Assigned]) -> Result<(), Failure> {
        self.write(&Line::Waves { waves: waves.to_vec() })
    }

    pub fn tenant(&mut self, tenant: &str, state: &State) -> Result<(), Failure> {
        self.write(&Line::Tenant { tenant: tenant.to_owned(), state: state.clone() })
    }

    pub fn baked(&mut self, label: &str, what: &str) -> Result<(), Failure> {
        self.write(&Line::Baked { label: label.to_owned(), what: what.to_owned() })
    }

    /// It has ended before all was done; `resume` goes on.
    pub fn ended(&mut self, why: &str) -> Result<(), Failure> {
        self.write(&Line::Ended { when: audit::now(), why: why.to_owned() })
    }

    /// All is done: there is nothing to resume.
    pub fn clear(&mut self) -> Result<(), Failure> {
        self.file.set_len(0).map_err(Failure::file("write", &self.path))
    }

    fn write(&mut self, line: &Line) -> Result<(), Failure> {
        let mut text = serde_json::to_string(line)
            .map_err(|error| Failure::Journal { path: self.path.clone(), why: error.to_string() })?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(Failure::file("write", &self.path))
    }
}

/// The journal, where a run that has not finished keeps the tenant's name in it.
pub fn names(journal_dir: &Path, tenant: &str) -> Option<PathBuf> {
    let path = path(journal_dir);
    // Ids have no character that JSON writes otherwise.
    let named = std::fs::read_to_string(&path).is_ok_and(|text| text.contains(&format!("\"{tenant}\"")));
    named.then_some(path)
}

fn path(journal_dir: &Path) -> PathBuf {
    journal_dir.join("migrate").join("run.jsonl")
}

fn read_lines(text: &str) -> Result<Option<Earlier>, String> {
    let mut earlier: Option<Earlier> = None;
    // A line that a kill has cut off is as good as none.
    for text in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let line = match serde_json::from_str(text) {
            Ok(line) => line,
            // What follows a line that was cut off.
            Err(_) if earlier.is_some() => continue,
            Err(error) => return Err(format!("{error}; it is none of ours")),
        };
        match (line, &mut earlier) {
            (Line::Begun { when, who, order }, _) => {
                let (waves, states, baked) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
                earlier = Some(Earlier { when, who, order, waves, states, baked, stopped: None });
            }
            (_, None) => return Err("its beginning is missing".to_owned()),
            (Line::Waves { waves }, Some(run)) => run.waves.extend(waves),
            (Line::Tenant { tenant, state }, Some(run)) => {
                run.states.insert(tenant, state);
                // It went on after an end.
                run.stopped = None;
            }
            (Line::Baked { label, .. }, Some(run)) => _ = run.baked.insert(label),
            (Line::Ended { why, .. }, Some(run)) => run.stopped = Some(why),
        }
    }
    Ok(earlier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_was_cut_off_is_found_with_its_waves() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = RunJournal::open(dir.path()).unwrap();
        assert_eq!(journal.earlier().unwrap(), None);
        assert!(RunJournal::open(dir.path()).unwrap_err().to_string().contains("at work"));
        let goal = Goal::Up { to: None, out_of_order: false };
        let order = Order { select: "all".to_owned(), dir: "m".into(), files: "f".to_owned(), goal };
        journal.begin("ops", &order).unwrap();
        let wave = Assigned { label: "canary".to_owned(), tenants: vec!["acme".to_owned()] };
        journal.waves(std::slice::from_ref(&wave)).unwrap();
        journal.tenant("acme", &State::NotReached).unwrap();
        journal.baked("canary", "well").unwrap();
        journal.file.write_all(b"{\"tenant\":").unwrap();
        drop(journal);
        let mut journal = RunJournal::open(dir.path()).unwrap();
        let earlier = journal.earlier().unwrap().unwrap();
        assert_eq!((&earlier.order, earlier.waves, earlier.stopped), (&order, vec![wave], None));
        assert_eq!((&earlier.states["acme"], earlier.baked.contains("canary")), (&State::NotReached, true));
        journal.file.write_all(b"\n").unwrap();
        journal.ended("too many failures").unwrap();
        assert_eq!(journal.earlier().unwrap().unwrap().stopped.as_deref(), Some("too many failures"));
        journal.clear().unwrap();
        assert_eq!(journal.earlier().unwrap(), None);
    }
}
