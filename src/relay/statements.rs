//! Protocol-level prepared statements: what one client calls them.

use std::collections::HashMap;
use std::sync::Arc;

use super::scan;
use crate::backend::{Statement, Statements};
use crate::wire::cstr;

/// The text in Parse's payload after the name.
fn query_text(rest: &[u8]) -> &[u8] {
    cstr(rest).map_or(rest, |(text, _)| text)
}

/// One client's statements by its own names.
#[derive(Debug, Default)]
pub struct ClientStatements {
    named: HashMap<Box<[u8]>, Arc<Statement>, ahash::RandomState>,
    unnamed: Option<Unnamed>,
    versions: u64,
}

/// The unnamed statement, kept so that another backend can have it too.
#[derive(Debug)]
pub struct Unnamed {
    pub version: u64,
    pub rest: Box<[u8]>,
    pub leaves_state: bool,
}

impl ClientStatements {
    pub fn len(&self) -> usize {
        self.named.len()
    }

    pub fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.get(name)
    }

    pub fn insert(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.named.insert(name.into(), statement);
    }

    /// The pool's copy of a statement, under this client's name for it.
    pub fn prepare(&mut self, name: &[u8], rest: &[u8], shared: &Statements) -> Arc<Statement> {
        let statement = shared.intern(rest, || scan::leaves_state(query_text(rest)));
        self.insert(name, statement.clone());
        statement
    }

    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        self.named.remove(name)
    }

    /// A new unnamed statement replaces the one before.
    pub fn set_unnamed(&mut self, rest: &[u8]) -> &Unnamed {
        self.versions += 1;
        let leaves_state = scan::leaves_state(query_text(rest));
        self.unnamed.insert(Unnamed { version: self.versions, rest: rest.into(), leaves_state })
    }

    pub fn unnamed(&self) -> Option<&Unnamed> {
        self.unnamed.as_ref()
    }

    pub fn forget_unnamed(&mut self) {
        self.unnamed = None;
    }

    /// DEALLOCATE ALL.
    pub fn clear(&mut self) {
        self.named.clear();
        self.unnamed = None;
    }
}
