//! The backend's half of the relay: which request its messages answer, and when everything is answered.

use std::ops::Range;
use std::sync::Arc;

use super::flow::{Batch, Expected, Flow, ParseNote, Restore, Retry, TransactionStatus, Wait};
use super::replaced::Completed;
use super::splice::Splice;
use super::statements::{Told, shape_of};
use crate::backend::{BackendState, StatementId, UnnamedOwner};
use crate::wire::tag::backend as tag;
use crate::wire::{HEADER, Header, PgError, ReadFault, Severity, messages};

/// An ErrorResponse's severity and SQLSTATE come first, the routine that raised it last: this much of it is looked at.
const ERROR_VIEW: usize = 2048;
/// A parameter's name and value longer than this are not kept.
const PARAMETER_BOUND: usize = 64 * 1024;
/// A description longer than this is not remembered.
const DESCRIPTION_BOUND: usize = 64 * 1024;
/// PostgreSQL's error for a statement that would give another result than it did when it was prepared. Drivers look at the
/// routine, too.
const OUTDATED: &[u8] = b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0\
    Fplancache.c\0RRevalidateCachedQuery\0\0";
/// PostgreSQL's notifications are shorter than 8,000 bytes.
const NOTIFICATION_BOUND: usize = 16 * 1024;
/// A CommandComplete longer than this is none of PostgreSQL's.
const TAG_BOUND: usize = 1024;

impl Flow {
    /// Takes backend bytes; `splice` gets what goes to the client. Gives the bytes that are done with; the rest has to be
    /// shown again, with more behind it.
    ///
    /// # Errors
    /// The backend's fault.
    pub fn responses(
        &mut self,
        backend: &mut BackendState,
        input: &[u8],
        splice: &mut Splice<'_>,
    ) -> Result<usize, ReadFault> {
        let mut at = 0;
        loop {
            if self.response_rest > 0 {
                let length = self.response_rest.min(input.len() - at);
                if !self.limit.drops_rest {
                    splice.pass(at, at + length);
                }
                at += length;
                self.response_rest -= length;
            }
            let Some(header) = Header::read(&input[at..], i32::MAX as usize)? else { break };
            self.limit.drops_rest = false;
            let available = input.len() - at - HEADER;
            self.answer_known(&mut |tag, parts| messages::framed(splice.insert(), tag, parts));
            let own = matches!(self.expected.front(), Some(Expected::Ahead | Expected::Behind));
            if !own && matches!(header.tag, tag::DATA_ROW | tag::COPY_DATA) {
                let drops = self.limit.drops(header.payload);
                if drops || self.retry == Retry::No {
                    // Rows are many, and nothing has to be known of them.
                    let end = at + HEADER + available.min(header.payload);
                    self.response_rest = HEADER + header.payload - (end - at);
                    self.limit.drops_rest = drops;
                    if !drops {
                        splice.pass(at, end);
                    }
                    at = end;
                    continue;
                }
            }
            let ahead = own && header.tag != tag::NOTIFICATION;
            // Our own answers are short, and the client must not get the rest of one.
            let needed = if ahead { header.payload } else { self.answer_needed(header) };
            if available < header.payload.min(needed) {
                break;
            }
            let in_view = available.min(header.payload);
            let end = at + HEADER + in_view;
            let view = &input[at + HEADER..end];
            self.response_rest = header.payload - in_view;
            if ahead {
                self.answers_ours(backend, header.tag, view, at..end, splice)?;
            } else if self.response(backend, header.tag, view)?
                && self.passes()
                && self.passes_limits(header.tag, view, splice)
            {
                // What was kept back for a DISCARD ALL that has failed.
                if header.tag == tag::READY && !self.plain && !Arc::ptr_eq(&self.state.told, &backend.parameters) {
                    self.tell(backend, splice.insert());
                }
                self.forward(header.tag, view, at, end, splice);
            }
            at = end;
            self.answer_known(&mut |tag, parts| messages::framed(splice.insert(), tag, parts));
        }
        Ok(at)
    }

    /// Notes a message that answers what was sent ahead or behind.
    fn answers_ours(
        &mut self,
        backend: &mut BackendState,
        tag: u8,
        view: &[u8],
        whole: Range<usize>,
        splice: &mut Splice<'_>,
    ) -> Result<(), ReadFault> {
        match tag {
            tag::PARAMETER_STATUS => backend.reported(view),
            tag::ERROR if matches!(self.expected.front(), Some(Expected::Ahead)) => {
                self.ahead_failed = Some(PgError::decode(view));
            }
            tag::READY if matches!(self.expected.front(), Some(Expected::Behind)) => {
                self.tell(backend, splice.insert());
                if self.ready(view)? {
                    splice.pass(whole.start, whole.end);
                }
            }
            tag::READY => {
                self.expected.pop_front();
                if !matches!(self.expected.front(), Some(Expected::Ahead)) {
                    self.tell(backend, splice.insert());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Tells the client of parameters that the backend reports otherwise than the one before.
    pub(super) fn tell(&mut self, backend: &BackendState, out: &mut Vec<u8>) {
        if Arc::ptr_eq(&self.state.told, &backend.parameters) {
            return;
        }
        for (name, value) in backend.parameters.iter().filter(|(name, value)| self.state.told.get(name) != Some(*value))
        {
            messages::parameter_status(out, name, value);
        }
        self.state.told = backend.parameters.clone();
    }

    /// A whole error or notice as the client should have it: its own names, and the place in its own text; none where there
    /// is nothing to change.
    fn in_own_words(&mut self, tag: u8, view: &[u8]) -> Option<Vec<u8>> {
        let renamed = if tag == tag::ERROR { self.with_own_names(view) } else { None };
        let placed = match self.expected.front() {
            Some(Expected::Restored(replaced)) => replaced.with_own_position(renamed.as_deref().unwrap_or(view)),
            _ => None,
        };
        placed.or(renamed)
    }

    /// An error that speaks of a statement calls it as the client does; none where there is nothing to change.
    fn with_own_names(&mut self, view: &[u8]) -> Option<Vec<u8>> {
        let taken = self.taken.take();
        let mut found = memchr::memmem::find_iter(view, StatementId::PREFIX).peekable();
        found.peek()?;
        let (mut renamed, mut done) = (Vec::new(), 0);
        for at in found {
            let name = StatementId::of_server_name(&view[at..])
                .and_then(|id| taken.as_deref().or_else(|| self.mine.name_of(id)));
            if let Some(name) = name.filter(|_| at >= done) {
                renamed.extend_from_slice(&view[done..at]);
                renamed.extend_from_slice(name);
                done = at + StatementId::LENGTH;
            }
        }
        renamed.extend_from_slice(&view[done..]);
        Some(renamed)
    }

    /// Lets a message pass; a command tag as the client expects it, an error or notice in the client's words.
    fn forward(&mut self, tag: u8, view: &[u8], at: usize, end: usize, splice: &mut Splice<'_>) {
        if tag == tag::ERROR && std::mem::take(&mut self.outdated) {
            return messages::framed(splice.insert(), tag, &[OUTDATED]);
        }
        if matches!(tag, tag::ERROR | tag::NOTICE)
            && self.response_rest == 0
            && let Some(changed) = self.in_own_words(tag, view)
        {
            return messages::framed(splice.insert(), tag, &[&changed]);
        }
        match self.retagged.take() {
            Some(command) if tag == tag::COMMAND_COMPLETE => {
                messages::framed(splice.insert(), tag, &[command.as_bytes(), b"\0"]);
            }
            _ => splice.pass(at, end),
        }
    }

    /// Notes one message; says whether the client gets it.
    fn response(&mut self, backend: &mut BackendState, tag: u8, view: &[u8]) -> Result<bool, ReadFault> {
        match (tag, self.expected.front()) {
            (tag::DATA_ROW | tag::COPY_DATA, _) => {}
            // It has heard this when it prepared the statement itself.
            (tag::NOTICE, Some(Expected::InjectedParse(_))) if self.response_rest == 0 => return Ok(false),
            (tag::PARSE_COMPLETE, Some(Expected::InjectedParse(statement)))
            | (tag::CLOSE_COMPLETE, Some(Expected::InjectedClose(statement))) => {
                let statement = *statement;
                self.expected.pop_front();
                self.settle(backend, statement, Some(tag == tag::PARSE_COMPLETE));
                return Ok(false);
            }
            (tag::PARSE_COMPLETE, Some(Expected::Parse(note))) => {
                let statement = match note {
                    ParseNote::Named(name, id) => {
                        if let Some(statement) = self.mine.get(name) {
                            statement.prove();
                        }
                        Some(Some(*id))
                    }
                    ParseNote::Unnamed(..) => Some(None),
                    ParseNote::Unshared(_) | ParseNote::Taken(_) | ParseNote::Plain => None,
                };
                self.expected.pop_front();
                if let Some(statement) = statement {
                    self.settle(backend, statement, Some(true));
                }
            }
            (tag::BIND_COMPLETE, Some(Expected::Bind(_)))
            | (tag::CLOSE_COMPLETE, Some(Expected::Close(_)))
            | (tag::EMPTY_QUERY | tag::PORTAL_SUSPENDED, Some(Expected::Execute(_))) => {
                self.expected.pop_front();
            }
            (tag::PARAMETER_DESCRIPTION, Some(Expected::Describe(Some(_)))) => {
                self.types.clear();
                if self.response_rest == 0 {
                    self.types.extend_from_slice(view);
                }
            }
            (tag::PARAMETER_DESCRIPTION, Some(Expected::Check(_))) => return Ok(false),
            (tag::ROW_DESCRIPTION | tag::NO_DATA, Some(Expected::Describe(_))) => self.described(view),
            (tag::ROW_DESCRIPTION | tag::NO_DATA, Some(Expected::Check(_))) => {
                self.checked(view);
                return Ok(false);
            }
            (tag::PARSE_COMPLETE | tag::BIND_COMPLETE | tag::CLOSE_COMPLETE, _) => {
                return Err(ReadFault::Unexpected(tag));
            }
            (tag::COMMAND_COMPLETE, _) => {
                match self.expected.front_mut() {
                    Some(Expected::Execute(tag)) => {
                        self.retagged = *tag;
                        self.expected.pop_front();
                    }
                    Some(Expected::Restored(replaced)) => match replaced.completed() {
                        Completed::Nothing => return Ok(false),
                        Completed::As(tag) => self.retagged = Some(tag),
                        Completed::AsItSays => {}
                    },
                    _ => {}
                }
                self.command_complete(backend, view);
            }
            // What the client's own parameters will undo at once.
            (tag::PARAMETER_STATUS, _) if self.restore != Restore::No && self.is_last_batch() => {
                backend.reported(view);
                return Ok(false);
            }
            (tag::PARAMETER_STATUS, _) => {
                backend.reported(view);
                self.state.told = backend.parameters.clone();
                // Something has set it: we may have overlooked what.
                self.state.doubt.all_parameters |= !self.plain && self.state.doubt.is_empty();
            }
            (tag::NOTIFICATION, _) if self.response_rest == 0 && self.state.channels.watched() => {
                return Ok(!self.state.channels.hears(view));
            }
            (tag::ERROR, _) => return Ok(self.error(backend, view)),
            (tag::COPY_IN | tag::COPY_BOTH, _) => self.copy_begins(),
            (tag::READY, _) => return self.ready(view),
            _ => {}
        }
        Ok(true)
    }

    /// The client is told what a statement or portal gives: that has to stay so.
    fn described(&mut self, view: &[u8]) {
        let Some(Expected::Describe(Some(described))) = self.expected.pop_front() else { return };
        let name = described.name;
        // Bound in the same batch, the unnamed one is seldom used again.
        let unused = name.is_empty() && matches!(self.expected.front(), Some(Expected::Bind(_)));
        let whole = self.response_rest == 0 && !self.types.is_empty() && !unused;
        if let Some(told) = self.mine.told(&name) {
            let told_now = || Told { types: self.types[..].into(), shape: shape_of(view), unchecked: false };
            *told = whole.then(told_now);
        }
    }

    /// A statement was analysed anew: it is what the client was told, or it cannot be used once more.
    fn checked(&mut self, view: &[u8]) {
        self.wait = Wait::No;
        let Some(Expected::Check(described)) = self.expected.pop_front() else { return };
        let name = described.name;
        let Some(told) = self.mine.told(&name) else { return };
        match told {
            Some(known) if known.shape == shape_of(view) => known.unchecked = false,
            Some(_) => {
                *told = None;
                self.wait = Wait::Outdated;
            }
            None => {}
        }
    }

    /// How much of an answer's payload has to be in view before it can be forwarded.
    fn answer_needed(&self, header: Header) -> usize {
        match (header.tag, self.expected.front()) {
            (tag::ROW_DESCRIPTION | tag::PARAMETER_DESCRIPTION, Some(Expected::Check(_))) => header.payload,
            (tag::ROW_DESCRIPTION | tag::PARAMETER_DESCRIPTION, Some(Expected::Describe(Some(_)))) => DESCRIPTION_BOUND,
            (tag, _) => bytes_needed(tag),
        }
    }

    fn command_complete(&mut self, backend: &mut BackendState, view: &[u8]) {
        self.limit.statements = self.limit.statements.wrapping_add(1);
        let command = view.strip_suffix(b"\0").unwrap_or(view);
        self.state.channels.completed(command, self.status == TransactionStatus::Idle);
        match command {
            b"DISCARD ALL" | b"DEALLOCATE ALL" => {
                let sent = self.drops.pop_front().unwrap_or(u64::MAX);
                self.mine.clear(sent);
                self.unshared.clear();
                self.in_flight.dropped();
                backend.prepared.clear_but(|id| self.in_flight.contains(Some(id)));
                // DEALLOCATE ALL leaves the unnamed statement alone.
                backend.unnamed = Some(UnnamedOwner::SOMEBODY);
                if command == b"DISCARD ALL" {
                    self.state.discarded_sequences();
                    self.discarded = self.restores;
                    if self.restore == Restore::Asked {
                        self.restore = Restore::Due;
                    }
                }
            }
            b"DISCARD SEQUENCES" => self.state.discarded_sequences(),
            // To a savepoint, it may be, and the parameters with it.
            b"ROLLBACK" => self.state.parameters_changed(),
            _ if !self.plain && changes_schema(command) => self.state.schema_changed(command),
            _ => {}
        }
    }

    /// A statement of ours cannot be used as it is: the plan's result has changed (RevalidateCachedQuery in PostgreSQL), or
    /// something has dropped it. It is prepared again when it is next used; says whether that can be at once.
    fn expired(&mut self, backend: &mut BackendState, error: &PgError, view: &[u8]) -> bool {
        let id = match self.expected.front() {
            Some(Expected::Bind(id)) => *id,
            Some(Expected::Describe(Some(described)) | Expected::Check(described)) => described.id,
            _ => None,
        };
        let Some(id) = id else { return false };
        let outdated = error.code == "0A000" && memchr::memmem::find(view, b"RRevalidateCachedQuery\0").is_some();
        let gone = error.code == "26000";
        if outdated || gone {
            backend.prepared.expire(id, gone);
        }
        if outdated {
            self.mine.forget_told(id);
        }
        match self.retry {
            Retry::Possible(got) if gone || outdated && self.learns_the_result(id) => self.retry = Retry::Failed(got),
            _ => return false,
        }
        true
    }

    /// Whether the client will not take the result for what it was told before: it has prepared the statement just now, or
    /// asks for the description before it runs it.
    fn learns_the_result(&self, id: StatementId) -> bool {
        let first = self.expected.iter().find(|it| matches!(it, Expected::Describe(_) | Expected::Execute(_)));
        let is_new = |name: &[u8]| self.mine.get(name).is_some_and(|statement| statement.id == id);
        matches!(first, Some(Expected::Describe(_))) || self.retry_names.iter().any(|name| is_new(name))
    }

    /// In the extended protocol the backend now passes over everything up to Sync. Says whether the client hears of it.
    fn error(&mut self, backend: &mut BackendState, view: &[u8]) -> bool {
        let mut error = PgError::decode(view);
        self.outdated = matches!(self.expected.front(), Some(Expected::Outdated)) && error.code == "26000";
        if self.outdated {
            error.code = "0A000".to_owned();
        }
        let expired = self.expired(backend, &error, view);
        self.taken = match self.expected.front() {
            Some(Expected::Parse(ParseNote::Taken(name))) => Some(name.clone()),
            _ => None,
        };
        // It has failed, and taken the one before along.
        if let Some(Expected::Parse(ParseNote::Unnamed(_, before))) = self.expected.front_mut() {
            *before = None;
        }
        self.fatal |= error.severity == Severity::Fatal;
        if !expired {
            self.figures.errors.push(error.code);
        }
        // What was to be set may have its old value, which is not the client's own doing.
        self.state.doubt.all_parameters |= !self.state.doubt.parameters.is_empty();
        self.copy_in = false;
        self.state.channels.failed(self.mine.answered());
        if self.expected.front().is_some_and(Expected::ends_with_ready) {
            return true;
        }
        let sync = self.expected.iter().position(|expected| matches!(expected, Expected::Sync));
        if sync.is_none() && self.batch == Batch::Open {
            self.batch = Batch::Skipping;
        }
        let passed_over: Vec<Expected> = self.expected.drain(..sync.unwrap_or(self.expected.len())).collect();
        for request in passed_over.into_iter().rev() {
            self.undo(request, backend);
        }
        !expired
    }

    /// COPY data is due. A Sync that was sent before its end is ignored by the backend; an end that was sent already
    /// counts.
    fn copy_begins(&mut self) {
        self.copy_in = true;
        let mut index = 1;
        while let Some(expected) = self.expected.get(index) {
            match expected {
                Expected::Sync => {
                    self.expected.remove(index);
                }
                Expected::CopyEnd => {
                    self.expected.remove(index);
                    self.copy_in = false;
                    return;
                }
                _ => index += 1,
            }
        }
        if matches!(self.expected.front(), Some(Expected::Execute(_))) {
            self.batch = Batch::Open;
        }
    }

    /// Whether only one ReadyForQuery is still to come.
    fn is_last_batch(&self) -> bool {
        self.expected.iter().filter(|expected| expected.ends_with_ready()).count() == 1
    }

    /// Says whether the client gets it.
    fn ready(&mut self, view: &[u8]) -> Result<bool, ReadFault> {
        self.status = match view.first() {
            Some(b'I') => TransactionStatus::Idle,
            Some(b'T') => TransactionStatus::InTransaction,
            Some(b'E') => TransactionStatus::Failed,
            _ => return Err(ReadFault::Unexpected(tag::READY)),
        };
        let answered = loop {
            match self.expected.pop_front() {
                Some(answered) if answered.ends_with_ready() => break answered,
                Some(_) => {}
                None => return Err(ReadFault::Unexpected(tag::READY)),
            }
        };
        self.waits = false;
        let last = self.expected.is_empty();
        let is_ours = matches!(answered, Expected::Ahead | Expected::Behind);
        let fails = !is_ours && self.limit.request_over(self.status, last);
        if !is_ours {
            self.mine.batch_answered();
        }
        while matches!(self.expected.front(), Some(Expected::CopyEnd)) {
            self.expected.pop_front();
        }
        // A simple query also ends a batch that had no Sync.
        if self.expected.is_empty() && !matches!(answered, Expected::Sync) {
            self.batch = Batch::Synced;
        }
        self.copy_in = false;
        if let Retry::Failed(got) = self.retry {
            self.retry = Retry::Due(got);
            self.restore = Restore::No;
            return Ok(false);
        }
        if self.expected.is_empty() && std::mem::replace(&mut self.restore, Restore::No) == Restore::Due {
            // The client gets the next one.
            self.restore = Restore::Now;
            return Ok(false);
        }
        if fails {
            self.restore = Restore::Now;
            return Ok(false);
        }
        self.retry = Retry::No;
        if self.expected.is_empty() {
            self.mine.at_rest();
            self.drops.clear();
            self.in_flight.at_rest();
            self.state.at_rest();
        }
        if self.status == TransactionStatus::Idle {
            self.state.channels.settled();
            self.figures.transactions += 1;
            self.limit.transactions = self.limit.transactions.wrapping_add(1);
            self.state.transaction_over();
            if std::mem::take(&mut self.state.changed_schema) {
                self.shared.schema_changed();
            }
            // The client shall not be told before the shared backend leaves it alone.
            return Ok(!(self.expected.is_empty() && self.state.channels.withhold_ready()));
        }
        Ok(true)
    }
}

/// Whether a command tag tells of DDL.
fn changes_schema(command: &[u8]) -> bool {
    [&b"CREATE "[..], b"ALTER ", b"DROP "].iter().any(|verb| command.starts_with(verb))
}

/// How much of a message's payload has to be in view before it can be forwarded.
fn bytes_needed(tag: u8) -> usize {
    match tag {
        tag::READY => 1,
        tag::COMMAND_COMPLETE => TAG_BOUND,
        tag::ERROR | tag::NOTICE => ERROR_VIEW,
        tag::NOTIFICATION => NOTIFICATION_BOUND,
        tag::PARAMETER_STATUS => PARAMETER_BOUND,
        _ => 0,
    }
}
