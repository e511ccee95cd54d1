//! What has become of the tenants of a run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::Failure;
use super::plan::Drift;
use super::work::{Done, Hindrance};

/// Where a tenant is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    Migrated {
        versions: Vec<i64>,
        seconds: f64,
        /// Attempts that ended because of somebody's lock.
        retries: u32,
    },
    /// It had all of it before.
    UpToDate,
    /// It lacks these.
    Pending { versions: Vec<i64> },
    /// Its history and the files contradict each other; nothing was done to it.
    Drift { why: Vec<String> },
    Failed {
        why: String,
        /// What was done before that.
        versions: Vec<i64>,
    },
    /// The run has stopped before its turn.
    NotReached,
}

/// The columns of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Column {
    Migrated,
    UpToDate,
    Pending,
    NotReached,
    Drift,
    Failed,
}

impl Column {
    pub const ALL: [Column; 6] =
        [Column::Migrated, Column::UpToDate, Column::Pending, Column::NotReached, Column::Drift, Column::Failed];

    pub fn text(self) -> &'static str {
        match self {
            Column::Migrated => "migrated",
            Column::UpToDate => "up to date",
            Column::Pending => "pending",
            Column::NotReached => "not reached",
            Column::Drift => "drift",
            Column::Failed => "failed",
        }
    }
}

impl State {
    pub fn column(&self) -> Column {
        match self {
            State::Migrated { .. } => Column::Migrated,
            State::UpToDate => Column::UpToDate,
            State::Pending { .. } => Column::Pending,
            State::Drift { .. } => Column::Drift,
            State::Failed { .. } => Column::Failed,
            State::NotReached => Column::NotReached,
        }
    }

    /// It is where the run leads.
    pub fn is_there(&self) -> bool {
        matches!(self, State::Migrated { .. } | State::UpToDate)
    }

    pub fn drift(drift: &[Drift]) -> State {
        State::Drift { why: drift.iter().map(ToString::to_string).collect() }
    }

    pub fn failed(failure: &Failure) -> State {
        State::Failed { why: failure.to_string(), versions: Vec::new() }
    }

    /// Of a piece of work that took so long.
    pub fn of(result: Result<Done, Hindrance>, seconds: f64) -> State {
        match result {
            Ok(done) if done.versions.is_empty() => State::UpToDate,
            Ok(Done { versions, retries, .. }) => State::Migrated { versions, seconds, retries },
            Err(Hindrance::Drift(drift)) => State::drift(&drift),
            Err(Hindrance::Failed { why, done }) => State::Failed { why: why.to_string(), versions: done.versions },
        }
    }
}

/// One tenant's line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub instance: String,
    /// None: there was nothing to do, or nothing could be done.
    pub wave: Option<String>,
    /// The newest migration that it had when it was looked at.
    pub version: Option<i64>,
    #[serde(flatten)]
    pub state: State,
}

/// How it has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct Report {
    pub tenants: BTreeMap<String, Row>,
    /// In the order in which they went.
    pub waves: Vec<String>,
    /// Why the run did not go through all its waves.
    pub stopped: Option<String>,
    pub seconds: f64,
}

/// Exit statuses (docs/MIGRATIONS.md).
pub const ALL: u8 = 0;
pub const SOME: u8 = 1;
pub const NONE: u8 = 2;
pub const DRIFT: u8 = 3;

impl Report {
    pub fn count(&self, column: Column) -> usize {
        self.tenants.values().filter(|row| row.state.column() == column).count()
    }

    /// Whether all, some or none of the tenants are where the run leads; drift wins, since no further run mends it.
    pub fn status(&self) -> u8 {
        let there = self.tenants.values().filter(|row| row.state.is_there()).count();
        match there {
            _ if self.count(Column::Drift) > 0 => DRIFT,
            there if there == self.tenants.len() => ALL,
            0 => NONE,
            _ => SOME,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_says_how_many_are_there() {
        let status = |states: &[State]| {
            let row =
                |state: &State| Row { instance: "one".to_owned(), wave: None, version: None, state: state.clone() };
            let tenants = states.iter().enumerate().map(|(number, state)| (number.to_string(), row(state))).collect();
            Report { tenants, ..Report::default() }.status()
        };
        let failed = State::Failed { why: String::new(), versions: vec![] };
        let migrated = State::Migrated { versions: vec![1], seconds: 0.1, retries: 0 };
        assert_eq!(status(&[State::UpToDate, migrated.clone()]), ALL);
        assert_eq!(status(&[State::UpToDate, failed.clone()]), SOME);
        assert_eq!(status(&[State::NotReached, failed.clone()]), NONE);
        assert_eq!(status(&[migrated, failed, State::Drift { why: vec![] }]), DRIFT);
    }
}
