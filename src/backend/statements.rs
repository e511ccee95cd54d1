//! Protocol-level prepared statements that the clients of a pool share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sha2::{Digest, Sha256};

use super::StatementId;

/// A statement as Parse carried it.
#[derive(Debug)]
pub struct Statement {
    pub id: StatementId,
    /// Query text, NUL, number and types of the parameters: Parse's payload after the name.
    pub rest: Box<[u8]>,
    /// Running it may leave state on the backend.
    pub leaves_state: bool,
    /// Some backend has taken it.
    proved: AtomicBool,
}

impl Statement {
    /// A backend answered its Parse with ParseComplete.
    pub fn prove(&self) {
        self.proved.store(true, Ordering::Relaxed);
    }
}

/// The statements that some client of a pool has prepared: one copy of each.
#[derive(Debug, Default)]
pub struct Statements {
    known: Mutex<HashMap<StatementId, Weak<Statement>, ahash::RandomState>>,
}

impl Statements {
    /// The pool's one copy of this statement.
    pub fn intern(&self, rest: &[u8], leaves_state: impl FnOnce() -> bool) -> Arc<Statement> {
        let id = id_of(rest);
        let mut known = self.lock();
        if let Some(statement) = known.get(&id).and_then(Weak::upgrade) {
            return statement;
        }
        if known.len() == known.capacity() {
            known.retain(|_, statement| statement.strong_count() > 0);
        }
        let statement =
            Arc::new(Statement { id, rest: rest.into(), leaves_state: leaves_state(), proved: false.into() });
        known.insert(id, Arc::downgrade(&statement));
        statement
    }

    /// The pool's copy of a statement that some client has and some backend has taken.
    pub fn proved(&self, rest: &[u8]) -> Option<Arc<Statement>> {
        let statement = self.lock().get(&id_of(rest)).and_then(Weak::upgrade)?;
        statement.proved.load(Ordering::Relaxed).then_some(statement)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StatementId, Weak<Statement>, ahash::RandomState>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn id_of(rest: &[u8]) -> StatementId {
    let digest = Sha256::digest(rest);
    let half = digest.first_chunk::<16>().expect("SHA-256 has 32 bytes");
    StatementId(u128::from_be_bytes(*half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_statements_share_one_copy_until_the_last_client_lets_go() {
        let statements = Statements::default();
        let one = statements.intern(b"SELECT 1\0\0\0", || false);
        assert!(Arc::ptr_eq(&one, &statements.intern(b"SELECT 1\0\0\0", || false)));
        assert_ne!(one.id, statements.intern(b"SELECT 2\0\0\0", || false).id);
        drop(one);
        for number in 0..10_000 {
            statements.intern(format!("SELECT {number}\0\0\0").as_bytes(), || false);
        }
        assert!(statements.known.lock().unwrap().len() < 100, "forgotten statements are pruned");
    }
}
