//! Statements being prepared or closed: until the answer comes, an error in the same batch may mean that nothing happened.

use std::collections::VecDeque;

use crate::backend::StatementId;

/// See the module. A statement is known by its identity, the unnamed one as none.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// Counts the client's Syncs: an error passes over everything up to the next one.
    batch: u64,
    changes: VecDeque<Change>,
}

#[derive(Debug)]
struct Change {
    statement: Option<StatementId>,
    batch: u64,
    /// Later batches rely on it, whatever becomes of its own.
    relied_on: bool,
}

impl InFlight {
    /// A Sync was sent.
    pub fn next_batch(&mut self) {
        self.batch += 1;
    }

    pub fn sent(&mut self, statement: Option<StatementId>, relied_on: bool) {
        self.changes.push_back(Change { statement, batch: self.batch, relied_on });
    }

    /// The oldest change of this statement was answered or passed over; says whether that was the last one.
    pub fn settled(&mut self, statement: Option<StatementId>) -> bool {
        if let Some(index) = self.changes.iter().position(|change| change.statement == statement) {
            self.changes.remove(index);
        }
        !self.changes.iter().any(|change| change.statement == statement)
    }

    /// Whether an error in an earlier batch could still undo what this one relies on.
    pub fn is_unsure(&self, statement: Option<StatementId>) -> bool {
        let last = self.changes.iter().rev().find(|change| change.statement == statement);
        last.is_some_and(|change| change.relied_on && change.batch != self.batch)
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
}
