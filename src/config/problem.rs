//! Problems with the configuration: collected while it is read, reported together.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use super::document::{Document, join};
use super::secret::{Reference, Secret};

/// One thing that is wrong: `<file>: <key>: <what and what to do>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, environment variable or `--set` that holds the value.
    pub place: String,
    /// Dotted path of the key; empty when the file as a whole is meant.
    pub key: String,
    /// Line in the file, from 1, where it is known.
    pub line: Option<usize>,
    pub message: String,
}

impl Problem {
    pub(super) fn of_file(path: &Path, message: String) -> Self {
        Problem { place: path.display().to_string(), key: String::new(), line: None, message }
    }

    /// Whether this one is about the same key as `other`, or about a part of it.
    fn covers(&self, other: &Problem) -> bool {
        let below = self.key.strip_prefix(&other.key);
        !other.key.is_empty()
            && self.place == other.place
            && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match self.line {
            Some(line) => write!(f, " (line {line})"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with the configuration, one problem on a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        ConfigError { problems: vec![problem] }
    }
}

/// What accumulates over all files.
#[derive(Debug)]
pub(super) struct Gathered<'a> {
    pub problems: Vec<Problem>,
    pub sources: BTreeSet<PathBuf>,
    /// Files of secrets, those of one tenant at a time.
    pub secret_files: Vec<PathBuf>,
    /// Environment variables, for secrets.
    pub environment: &'a HashMap<String, String>,
}

impl Gathered<'_> {
    pub fn add(&mut self, problem: Problem) {
        // A value that did not parse is absent afterwards: what follows from that is not worth a line.
        if !self.problems.iter().any(|known| known.covers(&problem)) {
            self.problems.push(problem);
        }
    }
}

/// A table within a document, and where to report what is wrong with it.
pub(super) struct Scope<'a, 'e> {
    pub document: &'a Document,
    /// Dotted path of the table; empty for the whole document.
    pub table: String,
    pub gathered: &'a mut Gathered<'e>,
}

impl<'e> Scope<'_, 'e> {
    /// The table `key` within this one.
    pub fn enter<'s>(&'s mut self, key: &str) -> Scope<'s, 'e> {
        Scope { document: self.document, table: join(&self.table, key), gathered: self.gathered }
    }

    /// Reports that `key` of this table (or the table itself, when empty) is wrong.
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        let path = match (self.table.as_str(), key) {
            (table, "") => table.to_owned(),
            ("", key) => key.to_owned(),
            (table, key) => format!("{table}.{key}"),
        };
        self.gathered.add(self.document.problem(&path, message.into()));
    }

    pub fn require(&mut self, holds: bool, key: &str, message: impl Into<String>) {
        if !holds {
            self.problem(key, message);
        }
    }

    /// A path as written, from the folder of its file.
    pub fn path(&self, written: &Path) -> PathBuf {
        self.document.folder().join(written)
    }

    /// A file that has to be there; it is watched from now on.
    pub fn file(&mut self, key: &str, written: &Path) -> PathBuf {
        let path = self.path(written);
        self.require(path.is_file(), key, format!("no file {}", path.display()));
        self.gathered.sources.insert(path.clone());
        path
    }

    /// The secret behind a reference; none when it could not be read, which is reported.
    pub fn secret(&mut self, key: &str, reference: &Reference) -> Option<Secret> {
        let read = match reference {
            Reference::File(written) => {
                let path = self.path(written);
                self.gathered.sources.insert(path.clone());
                self.gathered.secret_files.push(path.clone());
                Secret::from_file(&path)
            }
            Reference::Env(name) => match self.gathered.environment.get(name) {
                Some(value) => Secret::from_text(value, &format!("environment variable {name}")),
                None => Err(format!("environment variable {name} is not set (or not UTF-8)")),
            },
        };
        read.map_err(|message| self.problem(key, message)).ok()
    }
}
