//! What a backend has to have, and not to have, before a client's request reaches it: statements and traces of others.

use std::sync::Arc;

use super::flow::{Described, Expected, Flow, ParseNote, Retry, TransactionStatus, Wait};
use super::splice::Splice;
use super::statements::Unnamed;
use crate::backend::{BackendState, ServerName, Statement, StatementId, UnnamedOwner};
use crate::sql::{self, Look, Marks};
use crate::wire::tag::frontend;
use crate::wire::{cstr, messages};

impl Flow {
    /// What other sessions have left to be seen on this backend goes before this one looks, or adds to it: their
    /// statements, and what they have done to sequences. The latter only as the first thing in a transaction: later on
    /// that would be its own doing, too.
    pub(super) fn forget_others(
        &mut self,
        backend: &mut BackendState,
        look: Option<&Look>,
        text: &[u8],
        splice: &mut Splice<'_>,
    ) {
        let looks_at = |mark| look.is_some_and(|look| look.marks.contains(mark));
        if looks_at(Marks::STATEMENTS) {
            self.close_others(backend, splice);
        }
        if backend.sequences_of_others
            && self.is_free()
            && (looks_at(Marks::SEQUENCE_READ) || self.counts_advance(text))
        {
            backend.sequences_of_others = false;
            self.ours(backend, "DISCARD SEQUENCES", Expected::Ahead, splice);
        }
    }

    /// Closes the statements that the client has not prepared, one by one: DEALLOCATE ALL would take those that it has
    /// made in SQL, and be part of its transaction.
    fn close_others(&mut self, backend: &mut BackendState, splice: &mut Splice<'_>) {
        let own = self.mine.ids();
        for id in backend.prepared.remove_others(&own) {
            self.inject_close(Some(id), splice);
        }
    }

    /// The pool's copy of an unnamed statement that comes again and again, where it can be prepared under a name: nothing
    /// precedes it that could fail, and keep it from replacing the one before; and no transaction is open, in which a function
    /// may have made a temporary table that hides another one.
    pub(super) fn recurring(&self, rest: &[u8]) -> Option<Arc<Statement>> {
        let may_fail = self.expected.iter().any(|expected| !matches!(expected, Expected::Ahead));
        if !self.limits.cache_unnamed || self.status != TransactionStatus::Idle || may_fail {
            return None;
        }
        let text = || cstr(rest).map_or(rest, |(text, _)| text);
        let is_plain = || sql::look(text(), self.state.standard_strings()).is_none();
        self.shared.recurring(rest, self.state.shared_context()?, is_plain)
    }

    /// The client prepares a statement under this name.
    pub(super) fn prepare_first(
        &mut self,
        backend: &mut BackendState,
        name: &[u8],
        statement: Arc<Statement>,
        splice: &mut Splice<'_>,
    ) {
        let id = statement.id;
        if let Retry::Possible(_) = self.retry {
            self.retry_names.push(name.into());
        }
        let there = backend.prepared.touch(id);
        // Where it was only sent, under another of the client's names, it may be passed over.
        if there && !self.may_have_failed() && !self.in_flight.is_of_earlier_batch(Some(id)) {
            self.extended(Expected::KnownParse(name.into()));
        } else {
            if there || backend.prepared.is_expired(id) {
                self.inject_close(Some(id), splice);
            }
            self.make_room(backend, id, splice);
            messages::parse(splice.insert(), id.server_name().as_bytes(), &statement.rest);
            // When it fails, the client's later batches have to fail as well.
            self.in_flight.sent(Some(id), false);
            self.extended(Expected::Parse(ParseNote::Named(name.into(), id)));
        }
        self.mine.insert(name, statement);
    }

    /// Whether the client may be in a failed transaction, in which most statements are refused: the backend knows.
    fn may_have_failed(&self) -> bool {
        match self.status {
            TransactionStatus::Failed => true,
            TransactionStatus::InTransaction => self.mine.is_behind(),
            TransactionStatus::Idle => self.mine.is_behind() && self.state.begins,
        }
    }

    /// Whether this backend has a statement, whatever becomes of what is under way; counts as a use.
    pub(super) fn has(&self, backend: &mut BackendState, id: StatementId) -> bool {
        backend.prepared.touch(id) && !self.in_flight.is_unsure(Some(id))
    }

    /// Prepares a client's statement on this backend if another one has it. Gives the statement, which is a new one when the
    /// schema has changed, or parameters that it would be parsed under: the old one is the same on every backend. And
    /// whether the client was told something of the old one that may be so no more.
    pub(super) fn ensure(
        &mut self,
        backend: &mut BackendState,
        name: &[u8],
        statement: Arc<Statement>,
        splice: &mut Splice<'_>,
    ) -> (Arc<Statement>, bool) {
        if self.has(backend, statement.id) {
            return (statement, false);
        }
        let context = self.state.parse_context(self.session, statement.look.as_deref());
        if statement.context == context && !self.is_stale(statement.schema) {
            self.prepare(backend, statement.id, &statement.rest, splice);
            return (statement, false);
        }
        if backend.prepared.is_expired(statement.id) {
            self.inject_close(Some(statement.id), splice);
        }
        let rest = self.mine.renewed(name, &statement);
        let statement = self.shared.intern(&rest, context, statement.tag, || statement.look.clone());
        let unchecked = self.mine.renew(name, statement.clone());
        self.prepare(backend, statement.id, &statement.rest, splice);
        (statement, unchecked)
    }

    /// Whether what was analysed with this state of the schema may be something else now.
    fn is_stale(&self, schema: u64) -> bool {
        self.state.changed_schema || self.shared.schema() != schema
    }

    /// Asks whether a statement is still what the client was told; its message has to wait for that.
    pub(super) fn check_result(&mut self, id: Option<StatementId>, name: &[u8], splice: &mut Splice<'_>) {
        let server_name = id.map(StatementId::server_name);
        messages::describe_statement(splice.insert(), server_name.as_ref().map_or(b"", ServerName::as_bytes));
        messages::framed(splice.insert(), frontend::FLUSH, &[]);
        self.extended(Expected::Check(Box::new(Described { id, name: name.into() })));
        self.wait = Wait::Check;
        self.held_back = true;
    }

    fn prepare(&mut self, backend: &mut BackendState, id: StatementId, rest: &[u8], splice: &mut Splice<'_>) {
        let there = backend.prepared.touch(id);
        let unsure = self.in_flight.is_unsure(Some(id));
        if there && !unsure {
            return;
        }
        if unsure || backend.prepared.is_expired(id) {
            // Right whether it is there or not.
            self.inject_close(Some(id), splice);
        }
        self.make_room(backend, id, splice);
        messages::parse(splice.insert(), id.server_name().as_bytes(), rest);
        self.in_flight.sent(Some(id), true);
        self.extended(Expected::InjectedParse(Some(id)));
    }

    /// The same for the unnamed statement: a client finds its own, or none, but never somebody else's.
    pub(super) fn ensure_unnamed(&mut self, backend: &mut BackendState, splice: &mut Splice<'_>) -> bool {
        let unsure = self.in_flight.is_unsure(None);
        let changed = self.state.changed_schema;
        let Some(unnamed) = self.mine.unnamed_mut() else {
            if !self.is_unshared(b"") && (backend.unnamed.is_some() || unsure) {
                backend.unnamed = None;
                self.inject_close(None, splice);
            }
            return false;
        };
        let owner = Some(UnnamedOwner { session: self.session, version: unnamed.version });
        if backend.unnamed != owner || unsure {
            let schema = self.shared.schema();
            if changed || unnamed.schema != schema {
                unnamed.renew(schema);
            }
            messages::parse(splice.insert(), b"", &unnamed.rest);
            backend.unnamed = owner;
            self.in_flight.sent(None, true);
            self.extended(Expected::InjectedParse(None));
        }
        self.mine.unnamed().is_some_and(Unnamed::is_unchecked)
    }

    /// Notes a statement on the backend and closes those that have to go for it.
    pub(super) fn make_room(&mut self, backend: &mut BackendState, id: StatementId, splice: &mut Splice<'_>) {
        backend.prepared.insert(id);
        while let Some(oldest) = backend.prepared.evict(self.limits.max_prepared_per_backend) {
            self.inject_close(Some(oldest), splice);
        }
    }

    /// Prepares what can be prepared always, for its name.
    pub(super) fn inject_taken(&mut self, splice: &mut Splice<'_>) {
        let statement = Some(StatementId::TAKEN);
        self.inject_close(statement, splice);
        messages::parse(splice.insert(), StatementId::TAKEN.server_name().as_bytes(), b"\0\0\0");
        self.in_flight.sent(statement, true);
        self.extended(Expected::InjectedParse(statement));
    }

    pub(super) fn inject_close(&mut self, statement: Option<StatementId>, splice: &mut Splice<'_>) {
        let name = statement.map(StatementId::server_name);
        messages::close_statement(splice.insert(), name.as_ref().map_or(b"", ServerName::as_bytes));
        self.in_flight.sent(statement, true);
        self.extended(Expected::InjectedClose(statement));
    }
}
