//! The backend's half of the relay: which request its messages answer, and when everything is answered.

use super::flow::{Batch, Expected, Flow, ParseNote, TransactionStatus};
use super::scan;
use super::splice::Splice;
use crate::backend::{BackendState, UnnamedOwner};
use crate::wire::tag::backend as tag;
use crate::wire::{HEADER, Header, PgError, ReadFault, Severity, messages};

/// An ErrorResponse's severity and SQLSTATE come first: this much of it is looked at.
const ERROR_VIEW: usize = 256;
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
                splice.pass(at, at + length);
                at += length;
                self.response_rest -= length;
            }
            let Some(header) = Header::read(&input[at..], i32::MAX as usize)? else { break };
            let available = input.len() - at - HEADER;
            if available < header.payload.min(bytes_needed(header.tag)) {
                break;
            }
            let in_view = available.min(header.payload);
            let end = at + HEADER + in_view;
            if self.response(backend, header.tag, &input[at + HEADER..end])? {
                splice.pass(at, end);
            }
            self.response_rest = header.payload - in_view;
            at = end;
            self.answer_known(&mut |tag| messages::framed(splice.insert(), tag, &[]));
        }
        Ok(at)
    }

    /// Notes one message; says whether the client gets it.
    fn response(&mut self, backend: &mut BackendState, tag: u8, view: &[u8]) -> Result<bool, ReadFault> {
        match (tag, self.expected.front()) {
            (tag::DATA_ROW | tag::COPY_DATA, _) => {}
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
                    ParseNote::Unnamed => Some(None),
                    ParseNote::Unshared(_) | ParseNote::Taken => None,
                };
                self.expected.pop_front();
                if let Some(statement) = statement {
                    self.settle(backend, statement, Some(true));
                }
            }
            (tag::BIND_COMPLETE, Some(Expected::Bind))
            | (tag::CLOSE_COMPLETE, Some(Expected::Close))
            | (tag::ROW_DESCRIPTION | tag::NO_DATA, Some(Expected::Describe))
            | (tag::EMPTY_QUERY | tag::PORTAL_SUSPENDED, Some(Expected::Execute)) => {
                self.expected.pop_front();
            }
            (tag::PARSE_COMPLETE | tag::BIND_COMPLETE | tag::CLOSE_COMPLETE, _) => {
                return Err(ReadFault::Unexpected(tag));
            }
            (tag::COMMAND_COMPLETE, front) => {
                if matches!(front, Some(Expected::Execute)) {
                    self.expected.pop_front();
                }
                self.command_complete(backend, view);
            }
            (tag::PARAMETER_STATUS, _) => backend.dirty = true,
            (tag::ERROR, _) => self.error(backend, view),
            (tag::COPY_IN | tag::COPY_BOTH, _) => self.copy_begins(),
            (tag::READY, _) => self.ready(view)?,
            _ => {}
        }
        Ok(true)
    }

    fn command_complete(&mut self, backend: &mut BackendState, view: &[u8]) {
        let command = view.strip_suffix(b"\0").unwrap_or(view);
        backend.dirty |= scan::tag_leaves_state(command);
        if scan::tag_drops_statements(command) {
            self.mine.clear();
            self.unshared.clear();
            backend.prepared.clear();
            // DEALLOCATE ALL leaves the unnamed statement alone.
            backend.unnamed = Some(UnnamedOwner::SOMEBODY);
        }
    }

    /// In the extended protocol the backend now passes over everything up to Sync.
    fn error(&mut self, backend: &mut BackendState, view: &[u8]) {
        let error = PgError::decode(view);
        self.fatal |= error.severity == Severity::Fatal;
        self.figures.errors.push(error.code);
        self.copy_in = false;
        if matches!(self.expected.front(), Some(Expected::Query | Expected::FunctionCall | Expected::Sync)) {
            return;
        }
        let sync = self.expected.iter().position(|expected| matches!(expected, Expected::Sync));
        if sync.is_none() && self.batch == Batch::Open {
            self.batch = Batch::Skipping;
        }
        let passed_over: Vec<Expected> = self.expected.drain(..sync.unwrap_or(self.expected.len())).collect();
        for request in passed_over.into_iter().rev() {
            self.undo(request, backend);
        }
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
        if matches!(self.expected.front(), Some(Expected::Execute)) {
            self.batch = Batch::Open;
        }
    }

    fn ready(&mut self, view: &[u8]) -> Result<(), ReadFault> {
        self.status = match view.first() {
            Some(b'I') => TransactionStatus::Idle,
            Some(b'T') => TransactionStatus::InTransaction,
            Some(b'E') => TransactionStatus::Failed,
            _ => return Err(ReadFault::Unexpected(tag::READY)),
        };
        let answered = loop {
            match self.expected.pop_front() {
                Some(answered @ (Expected::Sync | Expected::Query | Expected::FunctionCall)) => break answered,
                Some(_) => {}
                None => return Err(ReadFault::Unexpected(tag::READY)),
            }
        };
        while matches!(self.expected.front(), Some(Expected::CopyEnd)) {
            self.expected.pop_front();
        }
        // A simple query also ends a batch that had no Sync.
        if self.expected.is_empty() && !matches!(answered, Expected::Sync) {
            self.batch = Batch::Synced;
        }
        self.copy_in = false;
        if self.status == TransactionStatus::Idle {
            self.figures.transactions += 1;
        }
        Ok(())
    }
}

/// How much of a message's payload has to be in view before it can be forwarded.
fn bytes_needed(tag: u8) -> usize {
    match tag {
        tag::READY => 1,
        tag::COMMAND_COMPLETE => TAG_BOUND,
        tag::ERROR => ERROR_VIEW,
        _ => 0,
    }
}
