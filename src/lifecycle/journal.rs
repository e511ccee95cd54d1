//! The journal of one run on one tenant: what was ordered and how far it is, so that a killed run can go on.
//!
//! A file of JSON lines, `<tenant>.jsonl`, locked while a run works on it and removed when it has ended. A line that
//! was written half, at the end, is as good as none.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Failure, audit, files};

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Begun {
        act: String,
        when: String,
        who: String,
        order: serde_json::Value,
    },
    /// A step is done.
    Done {
        step: String,
        when: String,
    },
    /// From here on the run takes back what it did.
    Undoing {
        when: String,
    },
}

/// A run's journal, and the lock on its tenant while it lives.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    lines: Vec<Line>,
}

impl Journal {
    /// Takes the tenant for this run. A journal without lines is new.
    ///
    /// # Errors
    /// Another run has it ([`Failure::Busy`]), or the file is not a journal.
    pub fn open(dir: &Path, tenant: &str) -> Result<Journal, Failure> {
        std::fs::create_dir_all(dir).map_err(Failure::file("make", dir))?;
        let path = path(dir, tenant);
        let failed = |source| Failure::File { action: "write", path: path.clone(), source };
        loop {
            let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
            let mut file = file.map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(Failure::Busy { tenant: tenant.to_owned() }),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            // The run that had it may have removed it meanwhile.
            let ours = file.metadata().map_err(failed)?.ino();
            if std::fs::metadata(&path).is_ok_and(|there| there.ino() == ours) {
                let lines = read(&mut file, &path)?;
                return Ok(Journal { path, file, lines });
            }
        }
    }

    /// The journals in a folder, by tenant: runs that were not finished, or are at work.
    pub fn tenants(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".jsonl")?.to_owned()));
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// What a tenant's run was ordered to do, without taking it.
    pub fn peek(dir: &Path, tenant: &str) -> Option<(String, serde_json::Value)> {
        let path = path(dir, tenant);
        let lines = read(&mut File::open(&path).ok()?, &path).ok()?;
        lines.into_iter().find_map(|line| match line {
            Line::Begun { act, order, .. } => Some((act, order)),
            _ => None,
        })
    }

    pub fn is_new(&self) -> bool {
        self.lines.is_empty()
    }

    /// The act and its order.
    pub fn begun<T: DeserializeOwned>(&self) -> Result<Option<(&str, T)>, Failure> {
        let Some(Line::Begun { act, order, .. }) = self.lines.first() else { return Ok(None) };
        let order = serde_json::from_value(order.clone()).map_err(|error| self.strange(&error))?;
        Ok(Some((act, order)))
    }

    /// When it was ordered.
    pub fn begun_at(&self) -> Option<&str> {
        match self.lines.first() {
            Some(Line::Begun { when, .. }) => Some(when),
            _ => None,
        }
    }

    pub fn begin(&mut self, act: &str, who: &str, order: &impl Serialize) -> Result<(), Failure> {
        let order = serde_json::to_value(order).map_err(|error| self.strange(&error))?;
        self.write(Line::Begun { act: act.to_owned(), when: audit::now(), who: who.to_owned(), order })
    }

    pub fn done(&mut self, step: &str) -> Result<(), Failure> {
        self.write(Line::Done { step: step.to_owned(), when: audit::now() })
    }

    /// When a step was done first.
    pub fn done_at(&self, step: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| match line {
            Line::Done { step: done, when } if done == step => Some(when.as_str()),
            _ => None,
        })
    }

    pub fn undo(&mut self) -> Result<(), Failure> {
        self.write(Line::Undoing { when: audit::now() })
    }

    pub fn is_undoing(&self) -> bool {
        self.lines.iter().any(|line| matches!(line, Line::Undoing { .. }))
    }

    /// The run has ended: nothing is left of it.
    pub fn remove(self) -> Result<(), Failure> {
        files::remove(&self.path).map(drop).map_err(Failure::file("remove", &self.path))
    }

    fn write(&mut self, line: Line) -> Result<(), Failure> {
        let mut text = serde_json::to_string(&line).map_err(|error| self.strange(&error))?;
        text.push('\n');
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        written.map_err(Failure::file("write", &self.path))?;
        self.lines.push(line);
        Ok(())
    }

    fn strange(&self, why: &dyn std::fmt::Display) -> Failure {
        Failure::Journal { path: self.path.clone(), why: why.to_string() }
    }
}

fn path(dir: &Path, tenant: &str) -> PathBuf {
    dir.join(format!("{tenant}.jsonl"))
}

fn read(file: &mut File, path: &Path) -> Result<Vec<Line>, Failure> {
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(Failure::file("read", path))?;
    let whole = text.rfind('\n').map_or(0, |at| at + 1);
    // What was written half does not count, and must not stand in front of the next line.
    if whole < text.len() {
        file.set_len(whole as u64).map_err(Failure::file("write", path))?;
    }
    let lines = text[..whole].lines().map(serde_json::from_str).collect::<Result<Vec<Line>, _>>();
    lines.map_err(|error| Failure::Journal { path: path.to_owned(), why: format!("{error}; it is none of ours") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_run_is_found_again_and_nobody_shares_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path(), "acme").unwrap();
        assert!(journal.is_new());
        assert!(matches!(Journal::open(dir.path(), "acme"), Err(Failure::Busy { .. })));
        journal.begin("create", "ops", &"order").unwrap();
        journal.done("roles").unwrap();
        drop(journal);
        let path = path(dir.path(), "acme");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text + "{\"done\":{\"st").unwrap();
        let mut journal = Journal::open(dir.path(), "acme").unwrap();
        assert_eq!(journal.begun::<String>().unwrap(), Some(("create", "order".to_owned())));
        journal.done("database").unwrap();
        assert!(journal.done_at("database").is_some() && journal.done_at("grants").is_none());
        drop(journal);
        let journal = Journal::open(dir.path(), "acme").unwrap();
        assert_eq!(journal.lines.len(), 3);
        assert_eq!(Journal::tenants(dir.path()), ["acme"]);
        journal.remove().unwrap();
        assert!(Journal::tenants(dir.path()).is_empty());
    }
}
