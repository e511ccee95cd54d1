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
    named: HashMap<Box<[u8]>, Named, ahash::RandomState>,
    unnamed: Option<Unnamed>,
    versions: u64,
    clock: u64,
    /// Dropped while requests were under way, which may still speak of them; in which batch, unless that is settled.
    dropped: Vec<(StatementId, Box<[u8]>, Option<u64>)>,
    /// How many batches the client has ended, and how many of them are answered.
    ended: u64,
    answered: u64,
}

#[derive(Debug)]
struct Named {
    statement: Arc<Statement>,
    /// The time of its Parse.
    born: u64,
    /// In which batch, unless that is settled.
    batch: Option<u64>,
}

/// With more statements dropped than this and not forgotten yet, those of a batch that is not answered are not looked for.
const MANY: usize = 1000;

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
        self.named.get(name).map(|named| &named.statement)
    }

    pub fn insert(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.named.insert(name.into(), Named { statement, born: self.clock, batch: Some(self.ended) });
        self.clock += 1;
    }

    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        let Named { statement, .. } = self.named.remove(name)?;
        self.dropped.push((statement.id, name.into(), Some(self.ended)));
        Some(statement)
    }

    /// A Parse was passed over.
    pub fn undo_insert(&mut self, name: &[u8]) {
        if let Some(Named { statement, .. }) = self.named.remove(name) {
            self.dropped.push((statement.id, name.into(), None));
        }
    }

    /// A Close was passed over.
    pub fn undo_remove(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.dropped.retain(|(_, dropped, _)| **dropped != *name);
        self.named.insert(name.into(), Named { statement, born: self.clock, batch: None });
        self.clock += 1;
    }

    /// The client has ended a batch: with Sync, or a message that is one by itself.
    pub fn end_batch(&mut self) {
        self.ended += 1;
    }

    pub fn batch_answered(&mut self) {
        self.answered += 1;
    }

    /// An earlier batch is not answered.
    pub fn is_behind(&self) -> bool {
        self.ended != self.answered
    }

    /// Whether an error in an earlier batch can still undo what the client has done to this name: prepared it (which
    /// matters only if `prepared` is asked for), or closed it.
    pub fn is_unsettled(&self, name: &[u8], prepared: bool) -> bool {
        let unsettled = |batch: Option<u64>| batch.is_some_and(|batch| batch != self.ended && batch >= self.answered);
        prepared && self.named.get(name).is_some_and(|named| unsettled(named.batch))
            || self.dropped.len() > MANY
            || self.dropped.iter().any(|(_, dropped, batch)| **dropped == *name && unsettled(*batch))
    }

    /// Whether it was prepared before this time.
    pub fn is_older(&self, name: &[u8], time: u64) -> bool {
        self.named.get(name).is_some_and(|named| named.born < time)
    }

    /// Nothing is under way any more.
    pub fn at_rest(&mut self) {
        self.dropped.clear();
        self.answered = self.ended;
    }

    /// What the client calls a statement.
    pub fn name_of(&self, id: StatementId) -> Option<&[u8]> {
        let named = self.named.iter().find(|(_, named)| named.statement.id == id).map(|(name, _)| &**name);
        named.or_else(|| self.dropped.iter().rev().find(|(dropped, ..)| *dropped == id).map(|(_, name, _)| &**name))
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
        let gone = self.named.extract_if(|_, named| named.born < sent);
        self.dropped.extend(gone.map(|(name, named)| (named.statement.id, name, None)));
    }
}
