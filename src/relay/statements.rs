//! Protocol-level prepared statements: what one client calls them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};
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
    match state.restore(text, resets, idle, false) {
        Some((restored, replaced)) => ([&restored, &b"\0"[..], types].concat().into(), replaced.first(), look),
        None => (rest.into(), None, look),
    }
}

/// What a client was told of a statement: PostgreSQL keeps to it for as long as the statement is there.
#[derive(Debug)]
pub struct Told {
    /// The parameters' types, as ParameterDescription and Parse have them.
    pub types: Box<[u8]>,
    /// See [`shape_of`].
    pub shape: Option<u64>,
    /// The statement was analysed anew since then: whether the same came out is not known yet.
    pub unchecked: bool,
}

/// A number for the result that a RowDescription's payload tells of, none for what is none: the names and types of its
/// columns, and not the table that they come from (as in PostgreSQL's equalTupleDescs).
pub fn shape_of(payload: &[u8]) -> Option<u64> {
    let mut hasher = ahash::RandomState::with_seeds(1, 2, 3, 4).build_hasher();
    let (_, mut columns) = payload.split_first_chunk::<2>()?;
    while let Some((name, rest)) = cstr(columns) {
        // Table and its column, type with size and modifier, format.
        let (numbers, rest) = rest.split_first_chunk::<18>()?;
        hasher.write(name);
        hasher.write(&numbers[6..16]);
        columns = rest;
    }
    Some(hasher.finish())
}

/// A statement under one of the client's names.
#[derive(Debug)]
struct Named {
    statement: Arc<Statement>,
    /// The time of its Parse.
    born: u64,
    /// In which batch, unless that is settled.
    batch: Option<u64>,
    told: Option<Told>,
}

/// One client's statements by its own names.
#[derive(Debug, Default)]
pub struct ClientStatements {
    /// The unnamed one among them, under no name, where it is shared like those with a name.
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

/// With more statements dropped than this and not forgotten yet, those of a batch that is not answered are not looked for.
const MANY: usize = 1000;

/// The unnamed statement, kept so that another backend can have it too.
#[derive(Debug)]
pub struct Unnamed {
    pub version: u64,
    pub rest: Box<[u8]>,
    pub look: Option<Box<Look>>,
    pub tag: Option<&'static str>,
    /// The state of the schema that it was analysed with.
    pub schema: u64,
    told: Option<Told>,
}

impl Unnamed {
    /// Whether the client was told something about it that may be so no more.
    pub fn is_unchecked(&self) -> bool {
        self.told.as_ref().is_some_and(|told| told.unchecked)
    }

    /// It is about to be analysed anew.
    pub fn renew(&mut self, schema: u64) {
        self.schema = schema;
        if let Some(told) = &mut self.told {
            told.unchecked = true;
            self.rest = with_types(&self.rest, &told.types).into();
        }
    }
}

/// A Parse's payload after the name with other parameter types.
fn with_types(rest: &[u8], types: &[u8]) -> Vec<u8> {
    let text = cstr(rest).map_or(rest, |(text, _)| text);
    [text, b"\0", types].concat()
}

impl ClientStatements {
    pub fn len(&self) -> usize {
        self.named.len()
    }

    pub fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.get(name).map(|named| &named.statement)
    }

    /// The same; and whether the client was told something about it that may be so no more.
    pub fn find(&self, name: &[u8]) -> Option<(Arc<Statement>, bool)> {
        let Named { statement, told, .. } = self.named.get(name)?;
        Some((statement.clone(), told.as_ref().is_some_and(|told| told.unchecked)))
    }

    /// What the client was told of a statement, the unnamed one included.
    pub fn told(&mut self, name: &[u8]) -> Option<&mut Option<Told>> {
        match self.named.get_mut(name) {
            None if name.is_empty() => self.unnamed.as_mut().map(|unnamed| &mut unnamed.told),
            named => named.map(|named| &mut named.told),
        }
    }

    /// The client has been told that what it knows of a statement is out of date.
    pub fn forget_told(&mut self, id: StatementId) {
        self.named.values_mut().filter(|named| named.statement.id == id).for_each(|named| named.told = None);
    }

    /// What has to be prepared so that a statement is analysed anew, with the parameter types that the client knows.
    pub fn renewed(&self, name: &[u8], statement: &Statement) -> Box<[u8]> {
        match self.named.get(name).and_then(|named| named.told.as_ref()) {
            Some(told) => with_types(&statement.rest, &told.types).into(),
            None => statement.rest.clone(),
        }
    }

    /// A statement is another one now; says whether the client was told something of the one before.
    pub fn renew(&mut self, name: &[u8], statement: Arc<Statement>) -> bool {
        let Some(named) = self.named.get_mut(name) else { return false };
        named.statement = statement;
        named.told.as_mut().map(|told| told.unchecked = true).is_some()
    }

    /// Those that it has a name for, whatever that is.
    pub fn ids(&self) -> HashSet<StatementId, ahash::RandomState> {
        self.named.iter().filter(|(name, _)| !name.is_empty()).map(|(_, named)| named.statement.id).collect()
    }

    pub fn insert(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.named.insert(name.into(), Named { statement, born: self.clock, batch: Some(self.ended), told: None });
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
        self.named.insert(name.into(), Named { statement, born: self.clock, batch: None, told: None });
        self.clock += 1;
    }

    /// The client has ended a batch: with Sync, or a message that is one by itself.
    pub fn end_batch(&mut self) {
        self.ended += 1;
    }

    /// The number of the batch that is not ended yet.
    pub fn batch(&self) -> u64 {
        self.ended
    }

    /// The number of the oldest batch that is not answered.
    pub fn answered(&self) -> u64 {
        self.answered
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
        !name.is_empty() && self.named.get(name).is_some_and(|named| named.born < time)
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
    pub fn set_unnamed(
        &mut self,
        rest: &[u8],
        tag: Option<&'static str>,
        look: Option<Box<Look>>,
        schema: u64,
    ) -> &Unnamed {
        self.versions += 1;
        self.unnamed.insert(Unnamed { version: self.versions, rest: rest.into(), look, tag, schema, told: None })
    }

    pub fn unnamed(&self) -> Option<&Unnamed> {
        self.unnamed.as_ref()
    }

    pub fn unnamed_mut(&mut self) -> Option<&mut Unnamed> {
        self.unnamed.as_mut()
    }

    /// Takes the unnamed statement out.
    pub fn take_unnamed(&mut self) -> Option<Unnamed> {
        self.unnamed.take().or_else(|| {
            let Named { statement, told, .. } = self.named.remove(&b""[..])?;
            self.versions += 1;
            let Statement { schema, tag, .. } = *statement;
            let (rest, look) = (statement.rest.clone(), statement.look.clone());
            Some(Unnamed { version: self.versions, rest, look, tag, schema, told })
        })
    }

    pub fn replace_unnamed(&mut self, unnamed: Option<Unnamed>) {
        self.unnamed = unnamed;
    }

    pub fn forget_unnamed(&mut self) {
        self.unnamed = None;
        if !self.named.is_empty() {
            self.remove(b"");
        }
    }

    /// Counts the statements that were prepared.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// DEALLOCATE ALL, sent at this time: what was prepared behind it stays, and so does the unnamed statement.
    pub fn clear(&mut self, sent: u64) {
        let gone = self.named.extract_if(|name, named| named.born < sent && !name.is_empty());
        self.dropped.extend(gone.map(|(name, named)| (named.statement.id, name, None)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_of_a_result_is_its_columns_names_and_types() {
        let column = |name: &str, table: u8, kind: u8, format: u8| {
            [name.as_bytes(), b"\0\0\0\0", &[table], b"\0\x01\0\0\0", &[kind], b"\0\x04\xff\xff\xff\xff\0", &[format]]
                .concat()
        };
        let shape = |columns: &[Vec<u8>]| shape_of(&[&[0, columns.len() as u8][..], &columns.concat()].concat());
        let one = shape(&[column("x", 1, 23, 0), column("y", 1, 25, 0)]);
        assert!(one.is_some());
        assert_eq!(shape(&[column("x", 2, 23, 1), column("y", 0, 25, 1)]), one, "from another table, in binary");
        for other in [
            shape(&[column("x", 1, 23, 0)]),
            shape(&[column("x", 1, 20, 0), column("y", 1, 25, 0)]),
            shape(&[column("x", 1, 23, 0), column("z", 1, 25, 0)]),
            shape(&[]),
            shape_of(b""),
        ] {
            assert_ne!(other, one);
        }
    }

    #[test]
    fn what_is_analysed_anew_keeps_the_parameter_types_that_the_client_knows() {
        let mut mine = ClientStatements::default();
        let types = b"\0\x01\0\0\0\x17";
        mine.set_unnamed(b"SELECT $1\0\0\0", None, None, 1);
        *mine.told(b"").unwrap() = Some(Told { types: types[..].into(), shape: None, unchecked: false });
        let unnamed = mine.unnamed_mut().unwrap();
        unnamed.renew(2);
        assert_eq!((&*unnamed.rest, unnamed.schema), (&[&b"SELECT $1\0"[..], types].concat()[..], 2));
        assert!(unnamed.is_unchecked());
    }
}
