//! A tenant that may only read: what would take its session out of that fails, and errors say why.

use std::ops::Range;

use super::bounds::TEXT_BOUND;
use super::flow::{Expected, Flow, ParseNote, TransactionStatus};
use super::requests::Message;
use super::splice::Splice;
use crate::backend::BackendState;
use crate::sql;
use crate::wire::tag::{backend as tag, frontend};
use crate::wire::{PgError, cstr, messages, sqlstate};

/// Stands for a text that asks to write: PostgreSQL refuses it when it is parsed, wherever it stands, and with it all that
/// depends on it. The client hears of it in our words.
const REFUSED: &str = "SELECT pgtenant_read_only";
const UNDEFINED_COLUMN: &str = "42703";

/// Why a tenant may only read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadOnly {
    pub detail: String,
}

const HINT: &str = "Try again when the operator has made the tenant active.";

impl Flow {
    /// From now on the client may only read, or no longer.
    pub fn set_read_only(&mut self, read_only: Option<ReadOnly>) {
        self.limit.read_only = read_only.map(Box::new);
    }

    pub fn is_read_only(&self) -> bool {
        self.limit.read_only.is_some()
    }

    /// Puts a text that fails in the place of one that asks to write; says whether it did.
    pub(super) fn refuses_to_write(
        &mut self,
        backend: &mut BackendState,
        message: &Message<'_>,
        splice: &mut Splice<'_>,
    ) -> bool {
        if !self.has_to_fail(message) {
            return false;
        }
        self.limit.drops_request = message.rest > 0;
        self.forget_unnamed();
        backend.unnamed = None;
        if message.tag == frontend::QUERY {
            self.figures.queries += 1;
            messages::query(splice.insert(), REFUSED);
            self.expected.push_back(Expected::Query);
        } else {
            messages::parse(splice.insert(), b"", &[REFUSED.as_bytes(), b"\0\0\0"].concat());
            let note = match cstr(message.view) {
                Some((name, _)) if message.tag == frontend::PARSE && !self.plain => ParseNote::Taken(name.into()),
                _ => ParseNote::Plain,
            };
            self.extended(Expected::Parse(note));
        }
        true
    }

    /// Lets the rest of a message go where its beginning went.
    pub(super) fn pass_rest(&self, rest: Range<usize>, splice: &mut Splice<'_>) {
        if !self.limit.drops_request {
            splice.pass(rest.start, rest.end);
        }
    }

    /// Whether a message asks to write. What is too long to be looked at is taken to do so.
    fn has_to_fail(&mut self, message: &Message<'_>) -> bool {
        if matches!(message.tag, frontend::QUERY | frontend::SYNC) {
            self.limit.ended = false;
        }
        let text = match message.tag {
            frontend::QUERY => Some(message.view.strip_suffix(b"\0").unwrap_or(message.view)),
            frontend::PARSE => cstr(message.view).map(|(_, rest)| cstr(rest).map_or(rest, |(text, _)| text)),
            frontend::BIND if !self.plain => self.bound_text(message.view),
            _ => None,
        };
        let too_long = message.tag != frontend::BIND && message.rest > 0 && message.view.len() >= TEXT_BOUND;
        let Some(text) = text else { return false };
        // Who has its backend to itself may prepare in a transaction block what runs outside of it.
        let runs_now = message.tag == frontend::QUERY || !self.plain;
        let in_block = runs_now && self.status != TransactionStatus::Idle;
        let standard_strings = self.state.standard_strings();
        let fails = self.limit.ended || too_long || sql::asks_to_write(text, standard_strings, in_block);
        let runs = message.tag == if self.plain { frontend::PARSE } else { frontend::BIND };
        let ends = runs && sql::ends_transaction(text, standard_strings);
        self.limit.ended |= ends;
        fails
    }

    /// The text of the statement that a Bind is for, where it is known.
    fn bound_text(&self, view: &[u8]) -> Option<&[u8]> {
        let (name, _) = cstr(cstr(view)?.1)?;
        let rest = match self.mine.get(name) {
            Some(statement) => &statement.rest,
            None if name.is_empty() => &self.mine.unnamed()?.rest,
            None => return None,
        };
        Some(cstr(rest).map_or(rest, |(text, _)| text))
    }

    /// Whether the answer to what was sent has to come first, since a transaction may begin behind it: that has to be told
    /// anew that it may only read.
    pub(super) fn paces(&self) -> bool {
        let due = |expected: &Expected| expected.ends_with_ready() && !matches!(expected, Expected::Ahead);
        self.is_read_only() && !self.copy_in && self.expected.iter().any(due)
    }

    /// Whether what is left of the client's bytes begins a transaction; true once.
    pub fn takes_anew(&mut self) -> bool {
        std::mem::take(&mut self.limit.anew)
    }

    /// An error of the backend's with the reason for it; none where it has none of these.
    pub(super) fn with_reason(&self, view: &[u8]) -> Option<Vec<u8>> {
        let ReadOnly { detail } = self.limit.read_only.as_deref()?;
        let error = PgError::decode(view);
        if error.code == UNDEFINED_COLUMN && error.message.contains("pgtenant_read_only") {
            let text = "a transaction that writes cannot be begun";
            let ours = PgError::error(sqlstate::READ_ONLY_TRANSACTION, text).with_detail(detail).with_hint(HINT);
            return Some(ours.encode().to_vec());
        }
        if error.code != sqlstate::READ_ONLY_TRANSACTION || error.detail.is_some() || self.response_rest > 0 {
            return None;
        }
        let fields = view.strip_suffix(b"\0")?;
        let detail = detail.replace('\0', " ");
        let mut whole = Vec::new();
        let parts = [fields, b"D", detail.as_bytes(), b"\0H", HINT.as_bytes(), b"\0\0"];
        messages::framed(&mut whole, tag::ERROR, &parts);
        Some(whole)
    }
}
