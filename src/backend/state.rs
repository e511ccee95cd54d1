//! What a backend holds between two clients: prepared statements, the unnamed statement, and whether it is clean.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::Parameters;

/// A statement's identity: the first half of the SHA-256 of its text, its parameter types, and the
/// session parameters that it is parsed under. Equal statements of all clients of a pool share one server-side name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StatementId(pub u128);

impl StatementId {
    /// What names on a backend begin with.
    pub const PREFIX: &'static str = "pgt_";
    /// Bytes of a name on a backend, well below PostgreSQL's 63.
    pub const LENGTH: usize = 36;
    /// None of a client's.
    pub const TAKEN: StatementId = StatementId(u128::MAX);

    /// The name on the backend.
    pub fn server_name(self) -> ServerName {
        let mut name = [0; Self::LENGTH];
        let (prefix, digits) = name.split_at_mut(Self::PREFIX.len());
        prefix.copy_from_slice(Self::PREFIX.as_bytes());
        for (pair, byte) in digits.as_chunks_mut().0.iter_mut().zip(self.0.to_be_bytes()) {
            *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
        }
        ServerName(name)
    }

    /// The statement that a text begins with a name of.
    pub fn of_server_name(text: &[u8]) -> Option<StatementId> {
        let digits = text.get(Self::PREFIX.len()..Self::LENGTH)?;
        let digits = std::str::from_utf8(digits).ok().filter(|_| text.starts_with(Self::PREFIX.as_bytes()))?;
        u128::from_str_radix(digits, 16).ok().map(StatementId)
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// What a statement is called on a backend. It is written into every Bind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ServerName([u8; StatementId::LENGTH]);

impl ServerName {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.0).expect("letters and digits"))
    }
}

/// Whose unnamed statement a backend has: the session, and the how-manieth of that session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnnamedOwner {
    pub session: u32,
    pub version: u64,
}

impl UnnamedOwner {
    /// Nobody knows who; sessions count from 1.
    pub const SOMEBODY: UnnamedOwner = UnnamedOwner { session: 0, version: 0 };
}

/// The state that outlives a transaction.
#[derive(Debug, Default)]
pub struct BackendState {
    pub prepared: Prepared,
    /// None when it has no such statement.
    pub unnamed: Option<UnnamedOwner>,
    /// The last client may have left something behind that nobody can ask for: reset before another one gets the backend.
    pub dirty: bool,
    /// `currval` and `lastval` may tell of another session's doing.
    pub sequences_of_others: bool,
    /// As the last ParameterStatus messages said. Equal ones of a pool are one, but for news.
    pub parameters: Arc<Parameters>,
    /// A ParameterStatus came since they were last exchanged for the pool's own.
    pub has_news: bool,
}

impl BackendState {
    /// After DISCARD ALL.
    pub fn discarded(&mut self) {
        let parameters = std::mem::take(&mut self.parameters);
        *self = BackendState { parameters, has_news: self.has_news, ..BackendState::default() };
    }

    /// Notes a ParameterStatus message.
    pub fn reported(&mut self, payload: &[u8]) {
        Arc::make_mut(&mut self.parameters).note(payload);
        self.has_news = true;
    }
}

/// The statements prepared on one backend, bounded, least recently used first.
#[derive(Debug, Default)]
pub struct Prepared {
    /// As it will be when everything that was sent succeeds, with the time of the last use.
    used: HashMap<StatementId, u64, ahash::RandomState>,
    /// As the backend's answers tell.
    there: HashSet<StatementId, ahash::RandomState>,
    clock: u64,
}

impl Prepared {
    /// Whether it is prepared; counts as a use.
    pub fn touch(&mut self, id: StatementId) -> bool {
        self.clock += 1;
        self.used.get_mut(&id).map(|used| *used = self.clock).is_some()
    }

    /// Notes a statement that is being prepared.
    pub fn insert(&mut self, id: StatementId) {
        self.clock += 1;
        self.used.insert(id, self.clock);
    }

    /// It has to be prepared again: its plan is out of date, or it is gone without our doing.
    pub fn expire(&mut self, id: StatementId, gone: bool) {
        self.used.remove(&id);
        if gone {
            self.there.remove(&id);
        }
    }

    /// Whether it is there, but must not be used as it is.
    pub fn is_expired(&self, id: StatementId) -> bool {
        self.there.contains(&id) && !self.used.contains_key(&id)
    }

    /// Takes out the least recently used one while there are more than `max` (but never the last): it has to be closed.
    pub fn evict(&mut self, max: usize) -> Option<StatementId> {
        if self.used.len() <= max.max(1) {
            return None;
        }
        let oldest = self.used.iter().min_by_key(|(_, used)| **used).map(|(id, _)| *id)?;
        self.used.remove(&oldest);
        Some(oldest)
    }

    /// Takes out all that are none of these; they have to be closed.
    pub fn remove_others(&mut self, own: &HashSet<StatementId, ahash::RandomState>) -> Vec<StatementId> {
        let others: HashSet<_> = self.used.keys().chain(&self.there).copied().filter(|id| !own.contains(id)).collect();
        self.used.retain(|id, _| own.contains(id));
        others.into_iter().collect()
    }

    /// The backend answered that a statement is there (true) or gone (false), or passed over the question; `last` when
    /// nothing else about it is under way.
    pub fn settle(&mut self, id: StatementId, there: Option<bool>, last: bool) {
        match there {
            Some(true) => drop(self.there.insert(id)),
            Some(false) => drop(self.there.remove(&id)),
            None => {}
        }
        if last && !self.there.contains(&id) {
            self.used.remove(&id);
        } else if last {
            self.used.entry(id).or_insert(self.clock);
        }
    }

    pub fn clear(&mut self) {
        self.clear_but(|_| false);
    }

    /// All are gone; those that are sent already will be there.
    pub fn clear_but(&mut self, sent: impl Fn(StatementId) -> bool) {
        self.used.retain(|id, _| sent(*id));
        self.there.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut prepared = Prepared::default();
        let [a, b, c] = [1, 2, 3].map(StatementId);
        prepared.insert(a);
        prepared.insert(b);
        assert_eq!(prepared.evict(2), None);
        assert!(prepared.touch(a));
        prepared.insert(c);
        assert_eq!((prepared.evict(2), prepared.evict(2)), (Some(b), None));
        assert!(!prepared.touch(b));
        assert_eq!((prepared.evict(0), prepared.evict(0)), (Some(a), None), "the last one stays");
    }

    #[test]
    fn what_was_passed_over_did_not_happen() {
        let mut prepared = Prepared::default();
        let [a, b] = [1, 2].map(StatementId);
        prepared.insert(a);
        prepared.settle(a, Some(true), true);
        // A closed for B, both passed over.
        prepared.insert(b);
        assert_eq!(prepared.evict(1), Some(a));
        prepared.settle(b, None, true);
        prepared.settle(a, None, true);
        assert!(prepared.touch(a) && !prepared.touch(b));
        // Closed and prepared again: the last answer counts.
        prepared.settle(a, Some(false), false);
        assert!(prepared.touch(a));
        prepared.settle(a, Some(true), true);
        assert!(prepared.touch(a));
        prepared.settle(a, Some(false), true);
        assert!(!prepared.touch(a));
    }

    #[test]
    fn what_is_out_of_date_is_closed_before_it_is_prepared_again() {
        let mut prepared = Prepared::default();
        let a = StatementId(1);
        prepared.insert(a);
        prepared.settle(a, Some(true), true);
        prepared.expire(a, false);
        assert!(prepared.is_expired(a) && !prepared.touch(a));
        prepared.insert(a);
        assert!(!prepared.is_expired(a));
        prepared.expire(a, true);
        assert!(!prepared.is_expired(a) && !prepared.touch(a));
    }

    #[test]
    fn names_fit() {
        let name = StatementId(10).server_name();
        assert_eq!(name.to_string(), "pgt_0000000000000000000000000000000a");
        assert_eq!(StatementId(0x19af << 112).server_name().to_string(), "pgt_19af0000000000000000000000000000");
        assert_eq!(StatementId::of_server_name(format!("{name}\" does").as_bytes()), Some(StatementId(10)));
        assert_eq!(StatementId::of_server_name(b"pgt_000000000000000000000000000000 \""), None);
    }
}
