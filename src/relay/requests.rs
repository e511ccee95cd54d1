//! The client's half of the relay: what its messages ask for, and how they are forwarded.

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use super::flow::{Batch, ClientFault, Described, Expected, Flow, ParseNote, Restore, Retry, TransactionStatus, Wait};
use super::limits::FAIL;
use super::splice::Splice;
use super::statements::look_into;
use crate::backend::{BackendState, Settings, StatementId, UnnamedOwner};
use crate::sql::{self, Alone, Look, Marks};
use crate::wire::tag::{backend as backend_tag, frontend};
use crate::wire::{HEADER, Header, cstr, messages};

/// Answers that may be due to one client at a time, and bytes made from one read: beyond these it has to wait, or a few
/// bytes of its would fill our memory.
const MAX_EXPECTED: usize = 1 << 17;
const MAX_FORWARDED: usize = 1 << 18;
/// The name of no statement.
const NO_STATEMENT: &[u8] = b"pgt_outdated";

/// How far a series of bytes was taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of the input that are done with; the rest has to be shown again, with more behind it.
    pub consumed: usize,
    /// The client said goodbye (Terminate).
    pub terminated: bool,
}

/// One message that is in view at least as far as its kind needs.
pub(super) struct Message<'a> {
    pub tag: u8,
    /// Where it begins in the input.
    at: usize,
    /// Where what is in view of it ends.
    end: usize,
    /// Payload bytes in view.
    pub view: &'a [u8],
    /// Payload bytes still to come.
    pub rest: usize,
    /// What is in view behind it.
    behind: &'a [u8],
}

impl Message<'_> {
    fn is_whole(&self) -> bool {
        self.rest == 0
    }

    /// Whether the client asks for the description of a portal next.
    fn is_described(&self) -> bool {
        self.is_whole() && self.behind.first() == Some(&frontend::DESCRIBE) && self.behind.get(HEADER) == Some(&b'P')
    }
}

impl Flow {
    /// Takes client bytes; `splice` gets what goes to the backend, `replies` what we answer ourselves.
    ///
    /// # Errors
    /// The client's fault: nothing of the offending message was forwarded.
    pub fn requests(
        &mut self,
        backend: &mut BackendState,
        input: &[u8],
        splice: &mut Splice<'_>,
        replies: &mut Vec<u8>,
    ) -> Result<Taken, ClientFault> {
        let (mut at, mut terminated) = (0, false);
        (self.held_back, self.limit.anew) = (false, false);
        if self.state.channels.owes_ready() {
            // It has not waited for that.
            messages::framed(replies, backend_tag::READY, &[b"I"]);
        }
        for sql in std::mem::take(&mut self.ahead) {
            self.ours(backend, &sql, Expected::Ahead, splice);
        }
        if self.restores_now() {
            self.restore = Restore::No;
            if std::mem::take(&mut self.limit.fails) {
                self.ours(backend, FAIL, Expected::Behind, splice);
            } else if let Some(change) = Settings::default().change_to(&self.state.startup) {
                self.ours(backend, &change.sql, Expected::Behind, splice);
            }
        } else if !matches!(self.expected.front(), Some(Expected::Ahead)) {
            self.tell(backend, replies);
        }
        loop {
            if self.request_rest > 0 {
                let length = self.request_rest.min(input.len() - at);
                self.pass_rest(at..at + length, splice);
                at += length;
                self.request_rest -= length;
            }
            if at < input.len() && self.expected.len() >= MAX_EXPECTED {
                // Without a Sync in sight the backend would keep its answers to itself.
                messages::framed(splice.insert(), frontend::FLUSH, &[]);
            }
            if at < input.len() && (self.is_full() || splice.bytes().len() >= MAX_FORWARDED) {
                self.limit.anew = self.paces();
                self.held_back = !self.limit.anew;
                break;
            }
            let Some(header) = Header::read(&input[at..], self.limits.max_message)? else { break };
            self.check(header)?;
            if header.tag == frontend::TERMINATE {
                terminated = true;
                break;
            }
            let available = input.len() - at - HEADER;
            if available < header.payload.min(self.bytes_needed(header)) {
                break;
            }
            let in_view = available.min(header.payload);
            let end = at + HEADER + in_view;
            let message = Message {
                tag: header.tag,
                at,
                end,
                view: &input[at + HEADER..end],
                rest: header.payload - in_view,
                behind: &input[end..],
            };
            if self.mine.is_behind() && self.depends_on_answers(&message) {
                (self.held_back, self.waits) = (true, true);
                break;
            }
            (self.request_rest, self.limit.drops_request) = (message.rest, false);
            self.request(backend, &message, splice)?;
            if self.held_back {
                self.request_rest = 0;
                break;
            }
            at = end;
        }
        // Where the backend has something to answer, ours goes along in the same write.
        if self.expected.iter().all(Expected::is_known) {
            self.answer_known(&mut |tag, parts| messages::framed(replies, tag, parts));
        }
        Ok(Taken { consumed: at, terminated })
    }

    /// No more requests are taken before there are answers: so many are due, or what failed has to be sent again first, or
    /// they tell what becomes of the next request.
    pub fn is_full(&self) -> bool {
        matches!(self.retry, Retry::Failed(_))
            || matches!(self.wait, Wait::Check | Wait::Database)
            || (self.waits && !self.copy_in)
            || self.restore != Restore::No
            || self.limit.holds
            || self.paces()
            || self.expected.len() >= MAX_EXPECTED
    }

    /// Whether a message means a statement that an error in an earlier batch could keep there, or keep from being there; or
    /// the earlier batch may end what the client hears from a shared backend, which has to come first.
    fn depends_on_answers(&self, message: &Message<'_>) -> bool {
        let name = match message.tag {
            frontend::PARSE => cstr(message.view).map(|(name, _)| name),
            frontend::BIND => cstr(message.view).and_then(|(_, rest)| cstr(rest)).map(|(name, _)| name),
            frontend::DESCRIBE | frontend::CLOSE => named_statement(message).ok().flatten(),
            _ => None,
        };
        let passes_anyway = self.plain || self.copy_in || self.batch == Batch::Skipping;
        if self.state.channels.is_changing() && self.batch == Batch::Synced {
            return !matches!(message.tag, frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL);
        }
        let Some(name) = name.filter(|name| !name.is_empty() && !passes_anyway) else {
            return false;
        };
        let unsettled = self.mine.is_unsettled(name, matches!(message.tag, frontend::PARSE | frontend::CLOSE))
            || self.is_going(name) && self.in_flight.is_earlier_drop();
        unsettled && self.expected.iter().any(Expected::ends_with_ready)
    }

    /// The last call to [`Flow::requests`] left something that it could have taken, had there been room for it.
    pub fn has_held_back(&self) -> bool {
        let goes_on = self.limit.anew && !(self.is_read_only() && self.is_free());
        (self.held_back || goes_on) && !self.state.channels.withholds_ready()
    }

    fn request(
        &mut self,
        backend: &mut BackendState,
        message: &Message<'_>,
        splice: &mut Splice<'_>,
    ) -> Result<(), ClientFault> {
        if self.batch == Batch::Skipping && message.tag != frontend::SYNC {
            splice.pass(message.at, message.end);
            return Ok(());
        }
        if self.is_read_only() && self.refuses_to_write(backend, message, splice) {
            return Ok(());
        }
        if matches!(message.tag, frontend::QUERY | frontend::PARSE) && self.has_to_wait(message) {
            self.wait = Wait::Database;
            self.held_back = true;
            return Ok(());
        }
        match message.tag {
            frontend::PARSE if self.plain => self.extended(Expected::Parse(ParseNote::Plain)),
            frontend::BIND if self.plain => self.extended(Expected::Bind(None)),
            frontend::DESCRIBE if self.plain => self.extended(Expected::Describe(None)),
            frontend::CLOSE if self.plain => self.extended(Expected::Close(false)),
            frontend::QUERY if self.plain => {
                self.figures.queries += 1;
                self.expected.push_back(Expected::Query);
            }
            frontend::PARSE => return self.parse(backend, message, splice),
            frontend::BIND => return self.bind(backend, message, splice),
            frontend::DESCRIBE => return self.describe(backend, message, splice),
            frontend::CLOSE => return self.close(backend, message, splice),
            frontend::EXECUTE => {
                self.figures.queries += 1;
                let tag = self.portal_tag(message.view);
                self.extended(Expected::Execute(tag));
            }
            frontend::FLUSH => self.batch = Batch::Open,
            frontend::QUERY => {
                self.query(backend, message, splice);
                if !matches!(self.expected.back(), Some(Expected::KnownQuery(_))) {
                    self.end_batch();
                }
                self.restore_behind();
                return Ok(());
            }
            frontend::SYNC => {
                self.sync();
                splice.pass(message.at, message.end);
                self.restore_behind();
                return Ok(());
            }
            frontend::FUNCTION_CALL => {
                self.state.note_call(message.view);
                self.expected.push_back(Expected::FunctionCall);
                self.end_batch();
            }
            frontend::COPY_DONE | frontend::COPY_FAIL => self.copy_end(),
            _ => {}
        }
        splice.pass(message.at, message.end);
        Ok(())
    }

    /// Whether a text is about a database in which idle backends may be.
    fn has_to_wait(&mut self, message: &Message<'_>) -> bool {
        let text = match message.tag {
            frontend::PARSE => cstr(message.view).map_or(message.view, |(_, text)| text),
            _ => message.view,
        };
        sql::touches_a_database(text) && std::mem::replace(&mut self.wait, Wait::No) != Wait::Free
    }

    fn query(&mut self, backend: &mut BackendState, message: &Message<'_>, splice: &mut Splice<'_>) {
        self.figures.queries += 1;
        let text = message.view.strip_suffix(b"\0").unwrap_or(message.view);
        let look = sql::look(text, self.state.standard_strings());
        // A simple query drops the unnamed statement.
        self.forget_unnamed();
        if let Some(tag) = look.as_ref().and_then(|look| self.deallocate(look)) {
            return self.expected.push_back(Expected::KnownQuery(tag));
        }
        self.forget_others(backend, look.as_deref(), text, splice);
        backend.unnamed = None;
        self.note(backend, look.as_deref(), text);
        if !message.is_whole() {
            self.state.note_opaque();
        }
        let resets = look.as_ref().map_or(&[][..], |look| &look.resets);
        if message.is_whole()
            && let Some((restored, replaced)) =
                self.state.restore(text, resets, self.status == TransactionStatus::Idle, true)
        {
            messages::framed(splice.insert(), frontend::QUERY, &[&restored, b"\0"]);
            return self.expected.push_back(Expected::Restored(replaced));
        }
        self.expected.push_back(Expected::Query);
        splice.pass(message.at, message.end);
    }

    /// Whether it matters that a statement may advance a sequence, and it may.
    pub(super) fn counts_advance(&self, text: &[u8]) -> bool {
        self.shared.reads_sequences.load(Ordering::Relaxed) && sql::may_advance_sequence(text)
    }

    /// A simple query of ours among the client's requests.
    pub(super) fn ours(&mut self, backend: &mut BackendState, sql: &str, expected: Expected, splice: &mut Splice<'_>) {
        messages::query(splice.insert(), sql);
        backend.unnamed = None;
        self.expected.push_back(expected);
    }

    fn restore_behind(&mut self) {
        let discarded = std::mem::take(&mut self.discarded);
        if std::mem::take(&mut self.restores) && self.state.startup.iter().next().is_some() {
            self.restore = if discarded { Restore::Due } else { Restore::Asked };
        }
    }

    /// Notes what a statement that is about to run may do.
    fn note(&mut self, backend: &mut BackendState, look: Option<&Look>, text: &[u8]) {
        if let Some(look) = look {
            self.state.note(look);
            self.state.channels.asked(look, self.mine.batch());
            if look.marks.contains(Marks::SEQUENCE_READ) {
                self.shared.reads_sequences.store(true, Ordering::Relaxed);
            }
            if let Some(Alone::DeallocateAll | Alone::DiscardAll) = look.alone {
                self.drops.push_back(self.mine.clock());
                self.in_flight.sent_drop();
            }
            self.restores |= look.alone == Some(Alone::DiscardAll);
        }
        if self.counts_advance(text) {
            self.state.advances_sequence();
            backend.sequences_of_others = false;
        }
    }

    /// Whether a simple query does nothing but drop statements that only we know by their names: then its command tag.
    fn deallocate(&mut self, look: &Look) -> Option<&'static str> {
        if self.status == TransactionStatus::Failed {
            return None;
        }
        match look.alone.as_ref()? {
            Alone::Deallocate(name) => self.mine.remove(name.as_bytes()).map(|_| "DEALLOCATE"),
            Alone::DeallocateAll if !self.state.held && self.unshared.is_empty() && self.state.doubt.is_empty() => {
                self.mine.clear(u64::MAX);
                Some("DEALLOCATE ALL")
            }
            _ => None,
        }
    }

    /// The command tag that the client expects for a portal, where it is not its statement's own.
    fn portal_tag(&mut self, view: &[u8]) -> Option<&'static str> {
        if self.portals.is_empty() {
            return None;
        }
        let (portal, _) = cstr(view)?;
        self.portals.iter().find(|(name, _)| **name == *portal).map(|(_, tag)| *tag)
    }

    /// A statement is bound to a portal, and runs soon.
    fn bound(
        &mut self,
        backend: &mut BackendState,
        portal: &[u8],
        look: Option<&Look>,
        tag: Option<&'static str>,
        rest: &[u8],
    ) {
        self.portals.retain(|(name, _)| **name != *portal);
        self.portals.extend(tag.map(|tag| (portal.into(), tag)));
        // What stands for a reset advances nothing.
        let text = if tag.is_none() { cstr(rest).map_or(rest, |(text, _)| text) } else { b"" };
        self.note(backend, look, text);
    }

    pub(super) fn extended(&mut self, expected: Expected) {
        self.batch = Batch::Open;
        self.expected.push_back(expected);
    }

    fn sync(&mut self) {
        // During COPY IN the backend ignores it (PostgreSQL manual, 55.2.6).
        if !self.copy_in {
            self.batch = Batch::Synced;
            self.end_batch();
            self.expected.push_back(Expected::Sync);
        }
    }

    fn end_batch(&mut self) {
        self.in_flight.next_batch();
        self.mine.end_batch();
    }

    fn copy_end(&mut self) {
        if self.copy_in {
            self.copy_in = false;
        } else if !self.expected.is_empty() {
            self.expected.push_back(Expected::CopyEnd);
        }
    }

    fn parse(
        &mut self,
        backend: &mut BackendState,
        message: &Message<'_>,
        splice: &mut Splice<'_>,
    ) -> Result<(), ClientFault> {
        let (name, rest) = cstr(message.view).ok_or(ClientFault::Malformed(message.tag))?;
        let mut before = None;
        if name.is_empty() {
            // Nothing precedes it that could fail and keep it from being replaced.
            if !self.expected.is_empty() {
                before = self.mine.take_unnamed().map(Box::new);
            }
            self.forget_unnamed();
        }
        if !message.is_whole() || message.view.len() > self.limits.max_prepared_size {
            self.parse_unshared(backend, name);
            splice.pass(message.at, message.end);
            return Ok(());
        }
        if name.is_empty()
            && let Some(statement) = self.recurring(rest)
        {
            self.prepare_first(backend, name, statement, splice);
            return Ok(());
        }
        let (rest, tag, look) = look_into(rest, &self.state, self.status == TransactionStatus::Idle);
        self.forget_others(backend, look.as_deref(), cstr(&rest).map_or(b"", |(text, _)| text), splice);
        if name.is_empty() {
            let unnamed = self.mine.set_unnamed(&rest, tag, look, self.shared.schema());
            let version = unnamed.version;
            backend.unnamed = Some(UnnamedOwner { session: self.session, version });
            self.in_flight.sent(None, true);
            self.extended(Expected::Parse(ParseNote::Unnamed(version, before)));
            match rest {
                Cow::Borrowed(_) => splice.pass(message.at, message.end),
                Cow::Owned(restored) => messages::parse(splice.insert(), b"", &restored),
            }
            return Ok(());
        }
        if self.is_unshared(name) {
            self.extended(Expected::Parse(ParseNote::Taken(name.into())));
            splice.pass(message.at, message.end);
            return Ok(());
        }
        if self.is_going(name)
            && let Some(statement) = self.mine.remove(name)
        {
            self.extended(Expected::Renewed(name.into(), statement));
        }
        if self.mine.get(name).is_some() {
            // PostgreSQL answers 42P05, or that this text cannot be prepared: so will it under a name that is surely taken.
            self.inject_taken(splice);
            messages::parse(splice.insert(), StatementId::TAKEN.server_name().as_bytes(), &rest);
            self.extended(Expected::Parse(ParseNote::Taken(name.into())));
            return Ok(());
        }
        if self.mine.len() >= self.limits.max_prepared_per_client {
            return Err(ClientFault::TooManyStatements(self.limits.max_prepared_per_client));
        }
        let context = self.state.parse_context(self.session, look.as_deref());
        let statement = self.shared.intern(&rest, context, tag, || look);
        self.prepare_first(backend, name, statement, splice);
        Ok(())
    }

    /// A statement that is not remembered goes on under the client's name for it, and keeps the client on its backend.
    fn parse_unshared(&mut self, backend: &mut BackendState, name: &[u8]) {
        self.state.note_opaque();
        if name.is_empty() {
            backend.unnamed = Some(UnnamedOwner::SOMEBODY);
        } else if self.is_unshared(name) {
            return self.extended(Expected::Parse(ParseNote::Taken(name.into())));
        }
        self.unshared.push(name.into());
        self.extended(Expected::Parse(ParseNote::Unshared(name.into())));
    }

    /// Whether a drop of all statements is under way that this one will not survive, unless it fails: the backend knows.
    fn is_going(&self, name: &[u8]) -> bool {
        self.drops.back().is_some_and(|sent| self.mine.is_older(name, *sent))
    }

    pub(super) fn is_unshared(&self, name: &[u8]) -> bool {
        self.unshared.iter().any(|unshared| **unshared == *name)
    }

    pub(super) fn forget_unnamed(&mut self) {
        self.mine.forget_unnamed();
        self.unshared.retain(|unshared| !unshared.is_empty());
    }

    fn bind(
        &mut self,
        backend: &mut BackendState,
        message: &Message<'_>,
        splice: &mut Splice<'_>,
    ) -> Result<(), ClientFault> {
        let malformed = || ClientFault::Malformed(message.tag);
        let (portal, after_portal) = cstr(message.view).ok_or_else(malformed)?;
        let (name, values) = cstr(after_portal).ok_or_else(malformed)?;
        if self.wait == Wait::Outdated {
            self.wait = Wait::No;
            rename_bind(message, splice, [portal, name, values], NO_STATEMENT);
            self.extended(Expected::Outdated);
            return Ok(());
        }
        if let Some((statement, mut unchecked)) = self.mine.find(name) {
            let text = cstr(&statement.rest).map_or(&b""[..], |(text, _)| text);
            self.forget_others(backend, statement.look.as_deref(), text, splice);
            let mut statement = statement;
            if !self.is_going(name) && !self.has(backend, statement.id) {
                (statement, unchecked) = self.ensure(backend, name, statement, splice);
            }
            if unchecked && !message.is_described() {
                self.check_result(Some(statement.id), name, splice);
                return Ok(());
            }
            self.bound(backend, portal, statement.look.as_deref(), statement.tag, &statement.rest);
            rename_bind(message, splice, [portal, name, values], statement.id.server_name().as_bytes());
            self.extended(Expected::Bind(Some(statement.id)));
            return Ok(());
        }
        if name.is_empty() {
            if self.ensure_unnamed(backend, splice) && !message.is_described() {
                self.check_result(None, name, splice);
                return Ok(());
            }
            if let Some(unnamed) = self.mine.take_unnamed() {
                self.bound(backend, portal, unnamed.look.as_deref(), unnamed.tag, &unnamed.rest);
                self.mine.replace_unnamed(Some(unnamed));
            }
        } else {
            // Made by SQL, or too long to be remembered.
            self.note(backend, Some(&Look { marks: Marks::EXECUTE, ..Look::default() }), b"");
        }
        self.extended(Expected::Bind(None));
        splice.pass(message.at, message.end);
        Ok(())
    }

    fn describe(
        &mut self,
        backend: &mut BackendState,
        message: &Message<'_>,
        splice: &mut Splice<'_>,
    ) -> Result<(), ClientFault> {
        let mut described = None;
        if let Some(name) = named_statement(message)? {
            let mut id = None;
            if let Some((statement, _)) = self.mine.find(name) {
                id = Some(match self.is_going(name) {
                    true => statement.id,
                    false => self.ensure(backend, name, statement, splice).0.id,
                });
            } else if name.is_empty() {
                self.ensure_unnamed(backend, splice);
            }
            // What it takes from now on is what it is told now.
            if let Some(Some(told)) = self.mine.told(name) {
                told.unchecked = false;
            }
            described = (id.is_some() || name.is_empty()).then(|| Box::new(Described { id, name: name.into() }));
        }
        match described.as_ref().and_then(|described| described.id) {
            Some(id) => messages::describe_statement(splice.insert(), id.server_name().as_bytes()),
            None => splice.pass(message.at, message.end),
        }
        self.extended(Expected::Describe(described));
        Ok(())
    }

    fn close(
        &mut self,
        backend: &mut BackendState,
        message: &Message<'_>,
        splice: &mut Splice<'_>,
    ) -> Result<(), ClientFault> {
        if let Some(name) = named_statement(message)? {
            self.unshared.retain(|unshared| **unshared != *name);
            if name.is_empty() {
                self.forget_unnamed();
                backend.unnamed = None;
            } else if let Some(statement) = self.mine.remove(name) {
                self.extended(Expected::KnownClose(name.into(), statement));
                return Ok(());
            }
        }
        self.extended(Expected::Close(named_statement(message)? == Some(b"")));
        splice.pass(message.at, message.end);
        Ok(())
    }
}

/// Puts in a Bind of another statement's name. Of its values only those in view follow: the others come behind.
fn rename_bind(message: &Message<'_>, splice: &mut Splice<'_>, [portal, name, values]: [&[u8]; 3], server_name: &[u8]) {
    let payload = message.view.len() + message.rest + server_name.len() - name.len();
    let out = splice.insert();
    out.push(frontend::BIND);
    out.extend((payload as u32 + 4).to_be_bytes());
    for part in [portal, b"\0", server_name, b"\0", values] {
        out.extend_from_slice(part);
    }
}

/// The statement's name in a Describe or Close; none for a portal.
fn named_statement<'a>(message: &Message<'a>) -> Result<Option<&'a [u8]>, ClientFault> {
    let malformed = || ClientFault::Malformed(message.tag);
    let (kind, name) = message.view.split_first().ok_or_else(malformed)?;
    let (name, _) = cstr(name).ok_or_else(malformed)?;
    Ok((*kind == b'S').then_some(name))
}
