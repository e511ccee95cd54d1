//! What a backend holds between two clients: prepared statements, the unnamed statement, and whether it is clean.

use std::collections::HashMap;

/// A statement's identity: the first half of the SHA-256 of its text and parameter types. Equal statements of all
/// clients of a pool share one server-side name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StatementId(pub u128);

impl StatementId {
    /// The name on the backend, well below PostgreSQL's 63 bytes.
    pub fn server_name(self) -> String {
        format!("pgt_{:032x}", self.0)
    }
}

/// Whose unnamed statement a backend has: the session, and the how-manieth of that session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnnamedOwner {
    pub session: u32,
    pub version: u64,
}

/// The state that outlives a transaction.
#[derive(Debug, Default)]
pub struct BackendState {
    pub prepared: Prepared,
    pub unnamed: Option<UnnamedOwner>,
    /// The last client may have left something behind: reset before another one gets the backend.
    pub dirty: bool,
}

impl BackendState {
    /// After DISCARD ALL.
    pub fn discarded(&mut self) {
        *self = BackendState::default();
    }
}

/// The statements prepared on one backend, bounded, least recently used first.
#[derive(Debug, Default)]
pub struct Prepared {
    used: HashMap<StatementId, u64, ahash::RandomState>,
    clock: u64,
}

impl Prepared {
    /// Whether it is prepared; counts as a use.
    pub fn touch(&mut self, id: StatementId) -> bool {
        self.clock += 1;
        self.used.get_mut(&id).map(|used| *used = self.clock).is_some()
    }

    /// Notes a statement; gives the one that has to be closed when there are more than `max`.
    pub fn insert(&mut self, id: StatementId, max: usize) -> Option<StatementId> {
        self.clock += 1;
        self.used.insert(id, self.clock);
        if self.used.len() <= max.max(1) {
            return None;
        }
        let oldest = self.used.iter().min_by_key(|(_, used)| **used).map(|(id, _)| *id)?;
        self.used.remove(&oldest);
        Some(oldest)
    }

    pub fn remove(&mut self, id: StatementId) {
        self.used.remove(&id);
    }

    pub fn clear(&mut self) {
        self.used.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut prepared = Prepared::default();
        let [a, b, c] = [1, 2, 3].map(StatementId);
        assert_eq!(prepared.insert(a, 2), None);
        assert_eq!(prepared.insert(b, 2), None);
        assert!(prepared.touch(a));
        assert_eq!(prepared.insert(c, 2), Some(b));
        assert!(!prepared.touch(b));
    }

    #[test]
    fn names_fit() {
        assert_eq!(StatementId(10).server_name(), "pgt_0000000000000000000000000000000a");
    }
}
