//! Protocol-level prepared statements: what one client calls them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::state::SessionState;
use crate::backend::{Statement, StatementId};
use crate::sql::{self, Look};
use crate::wire::cstr;

/// What a Parse's payload after the name says: the same with the client's own values for resets where there are any, the
/// command tag that the client expects then, and what running it may do.
pub fn look_into<'a>(
    rest: &'a [u8],
    state: &SessionState,
    idle: bool,
) -> (Cow<'a, [u8]>, Option<&'static str>, Option<Box<Look>>) {
    let (text, types) = cstr(rest).unwrap_or((rest, b""));
    let look = sql::look(text, state.standard_strings());
    let resets = look.as_ref().map_or(&[][..], |look| &look.resets);
    match state.restore(text, resets, idle) {
        Some((restored, replaced)) => ([&restored, &b"\0"[..], types].concat().into(), replaced.first(), look),
        None => (rest.into(), None, look),
    }
}

/// One client's statements by its own names.
#[derive(Debug, Default)]
pub struct ClientStatements {
    /// With the time of their Parse.
    named: HashMap<Box<[u8]>, (Arc<Statement>, u64), ahash::RandomState>,
    unnamed: Option<Unnamed>,
    versions: u64,
    clock: u64,
    /// Dropped while requests were under way, which may still speak of them.
    dropped: Vec<(StatementId, Box<[u8]>)>,
}

/// The unnamed statement, kept so that another backend can have it too.
#[derive(Debug)]
pub struct Unnamed {
    pub version: u64,
    pub rest: Box<[u8]>,
    pub look: Option<Box<Look>>,
    pub tag: Option<&'static str>,
}

impl ClientStatements {
    pub fn len(&self) -> usize {
        self.named.len()
    }

    pub fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.get(name).map(|(statement, _)| statement)
    }

    pub fn insert(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.named.insert(name.into(), (statement, self.clock));
        self.clock += 1;
    }

    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        let (statement, _) = self.named.remove(name)?;
        self.dropped.push((statement.id, name.into()));
        Some(statement)
    }

    /// Whether it was prepared before this time.
    pub fn is_older(&self, name: &[u8], time: u64) -> bool {
        self.named.get(name).is_some_and(|(_, born)| *born < time)
    }

    /// Nothing is under way any more.
    pub fn at_rest(&mut self) {
        self.dropped.clear();
    }

    /// What the client calls a statement.
    pub fn name_of(&self, id: StatementId) -> Option<&[u8]> {
        let named = self.named.iter().find(|(_, (statement, _))| statement.id == id).map(|(name, _)| &**name);
        named.or_else(|| self.dropped.iter().rev().find(|(dropped, _)| *dropped == id).map(|(_, name)| &**name))
    }

    /// A new unnamed statement replaces the one before.
    pub fn set_unnamed(&mut self, rest: &[u8], tag: Option<&'static str>, look: Option<Box<Look>>) -> &Unnamed {
        self.versions += 1;
        self.unnamed.insert(Unnamed { version: self.versions, rest: rest.into(), look, tag })
    }

    pub fn unnamed(&self) -> Option<&Unnamed> {
        self.unnamed.as_ref()
    }

    /// Takes the unnamed statement out for a moment.
    pub fn take_unnamed(&mut self) -> Option<Unnamed> {
        self.unnamed.take()
    }

    pub fn replace_unnamed(&mut self, unnamed: Option<Unnamed>) {
        self.unnamed = unnamed;
    }

    pub fn forget_unnamed(&mut self) {
        self.unnamed = None;
    }

    /// Counts the statements that were prepared.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// DEALLOCATE ALL, sent at this time: what was prepared behind it stays.
    pub fn clear(&mut self, sent: u64) {
        let gone = self.named.extract_if(|_, (_, born)| *born < sent);
        self.dropped.extend(gone.map(|(name, (statement, _))| (statement.id, name)));
    }
}
