//! Statements being prepared or closed: until the answer comes, an error in the same batch may mean that nothing happened.

use std::collections::VecDeque;

use crate::backend::StatementId;

/// See the module. A statement is known by its identity, the unnamed one as none.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// Counts the client's batches: an error passes over everything up to the next Sync.
    batch: u64,
    changes: VecDeque<Change>,
}

#[derive(Debug)]
struct Change {
    what: What,
    batch: u64,
    /// Later batches rely on it, whatever becomes of its own.
    relied_on: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Statement(Option<StatementId>),
    /// All that have a name are dropped.
    All,
}

impl InFlight {
    /// A batch was ended.
    pub fn next_batch(&mut self) {
        self.batch += 1;
    }

    pub fn sent(&mut self, statement: Option<StatementId>, relied_on: bool) {
        self.changes.push_back(Change { what: What::Statement(statement), batch: self.batch, relied_on });
    }

    /// DEALLOCATE ALL or DISCARD ALL was sent.
    pub fn sent_drop(&mut self) {
        self.changes.push_back(Change { what: What::All, batch: self.batch, relied_on: true });
    }

    /// One of an earlier batch is not answered.
    pub fn is_earlier_drop(&self) -> bool {
        self.changes.iter().any(|change| change.what == What::All && change.batch != self.batch)
    }

    /// The oldest of those was answered.
    pub fn dropped(&mut self) {
        if let Some(index) = self.changes.iter().position(|change| change.what == What::All) {
            self.changes.remove(index);
        }
    }

    /// Nothing is under way: those that are still waited for have failed.
    pub fn at_rest(&mut self) {
        self.changes.retain(|change| change.what != What::All);
    }

    /// Whether there is a change of this statement to come.
    pub fn contains(&self, statement: Option<StatementId>) -> bool {
        self.changes.iter().any(|change| change.what == What::Statement(statement))
    }

    /// The oldest change of this statement was answered or passed over; says whether that was the last one.
    pub fn settled(&mut self, statement: Option<StatementId>) -> bool {
        let what = What::Statement(statement);
        if let Some(index) = self.changes.iter().position(|change| change.what == what) {
            self.changes.remove(index);
        }
        !self.contains(statement)
    }

    /// Whether an earlier batch changes this statement, and is not answered.
    pub fn is_of_earlier_batch(&self, statement: Option<StatementId>) -> bool {
        self.changes.iter().any(|change| change.what == What::Statement(statement) && change.batch != self.batch)
    }

    /// Whether an error in an earlier batch could still undo what this one relies on, or it is about to be dropped.
    pub fn is_unsure(&self, statement: Option<StatementId>) -> bool {
        let concerns = |what: &What| *what == What::Statement(statement) || (statement.is_some() && *what == What::All);
        let last = self.changes.iter().rev().find(|change| concerns(&change.what));
        last.is_some_and(|change| change.what == What::All || (change.relied_on && change.batch != self.batch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_unsure_for_later_batches_until_it_is_settled() {
        let mut in_flight = InFlight::default();
        let (one, two) = (Some(StatementId(1)), Some(StatementId(2)));
        in_flight.sent(one, true);
        in_flight.sent(two, false);
        assert!(!in_flight.is_unsure(one), "in its own batch an error passes over both");
        in_flight.next_batch();
        assert!(in_flight.is_unsure(one) && !in_flight.is_unsure(two) && !in_flight.is_unsure(None));
        in_flight.sent(one, true);
        assert!(!in_flight.is_unsure(one));
        assert!(!in_flight.settled(one));
        assert!(in_flight.settled(one) && in_flight.settled(two) && in_flight.settled(None));
        assert!(in_flight.changes.is_empty());
    }

    #[test]
    fn a_drop_of_all_makes_those_unsure_that_were_there_before() {
        let mut in_flight = InFlight::default();
        let (one, two) = (Some(StatementId(1)), Some(StatementId(2)));
        in_flight.sent(one, true);
        in_flight.sent_drop();
        in_flight.sent(two, true);
        assert!(in_flight.is_unsure(one) && !in_flight.is_unsure(two) && !in_flight.is_unsure(None));
        in_flight.settled(one);
        in_flight.dropped();
        assert!(!in_flight.is_unsure(one) && in_flight.contains(two));
        in_flight.sent_drop();
        in_flight.at_rest();
        assert!(!in_flight.is_unsure(one));
    }
}
