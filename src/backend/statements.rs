//! Protocol-level prepared statements that the clients of a pool share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sha2::{Digest, Sha256};

use super::StatementId;
use super::recurring::{Found, Recurring};
use crate::sql::Look;

/// A statement as Parse carried it.
#[derive(Debug)]
pub struct Statement {
    pub id: StatementId,
    /// Query text, NUL, number and types of the parameters: Parse's payload after the name.
    pub rest: Box<[u8]>,
    /// What running it may do to the session.
    pub look: Option<Box<Look>>,
    /// The command tag that the client expects, where it is not the statement's own.
    pub tag: Option<&'static str>,
    /// The state of the schema that it is analysed with.
    pub schema: u64,
    /// A number for the parameters that it is parsed under.
    pub context: u64,
    /// Some backend has taken it.
    proved: AtomicBool,
}

impl Statement {
    /// A backend answered its Parse with ParseComplete. A reset's text depends on the client that sends it: its Parse is
    /// always looked into.
    pub fn prove(&self) {
        let resets = self.look.as_ref().is_some_and(|look| !look.resets.is_empty());
        self.proved.store(!resets, Ordering::Relaxed);
    }
}

/// The statements that some client of a pool has prepared: one copy of each.
#[derive(Debug, Default)]
pub struct Statements {
    /// Some client has asked for `currval` or `lastval`: from then on it matters who has advanced a sequence where.
    pub reads_sequences: AtomicBool,
    /// Counts what changes the tenant's schema, as far as command tags tell: a statement that is prepared later is
    /// analysed anew, as on a connection of one's own.
    schema: Arc<AtomicU64>,
    known: Mutex<HashMap<StatementId, Weak<Statement>, ahash::RandomState>>,
    recurring: Mutex<Recurring>,
}

impl Statements {
    /// `schema` is counted by all pools of the tenant.
    pub fn new(schema: Arc<AtomicU64>) -> Self {
        Statements { schema, ..Statements::default() }
    }

    /// The tenant's schema has changed.
    pub fn schema_changed(&self) {
        self.schema.fetch_add(1, Ordering::Relaxed);
    }

    /// The state of the schema now.
    pub fn schema(&self) -> u64 {
        self.schema.load(Ordering::Relaxed)
    }

    fn id_of(rest: &[u8], context: u64, schema: u64) -> StatementId {
        let numbers = [context.to_be_bytes(), schema.to_be_bytes()].concat();
        let digest = Sha256::new().chain_update(numbers).chain_update(rest).finalize();
        let half = digest.first_chunk::<16>().expect("SHA-256 has 32 bytes");
        StatementId(u128::from_be_bytes(*half))
    }

    /// The pool's one copy of this statement, parsed under this context.
    pub fn intern(
        &self,
        rest: &[u8],
        context: u64,
        tag: Option<&'static str>,
        look: impl FnOnce() -> Option<Box<Look>>,
    ) -> Arc<Statement> {
        let schema = self.schema();
        let id = Self::id_of(rest, context, schema);
        let mut known = self.lock();
        if let Some(statement) = known.get(&id).and_then(Weak::upgrade) {
            return statement;
        }
        if known.len() == known.capacity() {
            known.retain(|_, statement| statement.strong_count() > 0);
        }
        let statement =
            Arc::new(Statement { id, rest: rest.into(), look: look(), tag, schema, context, proved: false.into() });
        known.insert(id, Arc::downgrade(&statement));
        statement
    }

    /// The pool's copy of a statement that some client has and some backend has taken.
    pub fn proved(&self, rest: &[u8], context: u64) -> Option<Arc<Statement>> {
        let statement = self.lock().get(&Self::id_of(rest, context, self.schema())).and_then(Weak::upgrade)?;
        statement.proved.load(Ordering::Relaxed).then_some(statement)
    }

    /// The pool's copy of an unnamed statement that comes again and again. What `is_plain` says is asked once: whether
    /// running it does nothing of note to its session.
    pub fn recurring(&self, rest: &[u8], context: u64, is_plain: impl FnOnce() -> bool) -> Option<Arc<Statement>> {
        let mut recurring = self.recurring.lock().unwrap_or_else(PoisonError::into_inner);
        match recurring.find(rest, context, self.schema()) {
            Found::Kept(statement) => Some(statement),
            Found::Again(number) if is_plain() => {
                let statement = self.intern(rest, context, None, || None);
                recurring.keep(number, context, statement.clone());
                Some(statement)
            }
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StatementId, Weak<Statement>, ahash::RandomState>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_statements_share_one_copy_until_the_last_client_lets_go() {
        let statements = Statements::default();
        let intern = |rest: &[u8], context| statements.intern(rest, context, None, || None);
        let one = intern(b"SELECT 1\0\0\0", 0);
        assert!(Arc::ptr_eq(&one, &intern(b"SELECT 1\0\0\0", 0)));
        assert_ne!(one.id, intern(b"SELECT 2\0\0\0", 0).id);
        assert_ne!(one.id, intern(b"SELECT 1\0\0\0", 1).id, "parsed under other parameters");
        statements.schema_changed();
        assert_ne!(one.id, intern(b"SELECT 1\0\0\0", 0).id, "after a change of the schema");
        drop(one);
        for number in 0..10_000 {
            intern(format!("SELECT {number}\0\0\0").as_bytes(), 0);
        }
        assert!(statements.known.lock().unwrap().len() < 100, "forgotten statements are pruned");
    }
}
