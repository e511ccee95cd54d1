//! A tenant that may only read: what would take its session out of that fails, and errors say why.

use super::flow::{Expected, Flow, ParseNote};
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
        let (name, text) = match message.tag {
            frontend::QUERY => (&b""[..], message.view.strip_suffix(b"\0").unwrap_or(message.view)),
            frontend::PARSE => {
                let Some((name, rest)) = cstr(message.view) else { return false };
                (name, cstr(rest).map_or(rest, |(text, _)| text))
            }
            _ => return false,
        };
        if message.rest > 0 || !sql::asks_to_write(text, self.state.standard_strings()) {
            return false;
        }
        self.forget_unnamed();
        backend.unnamed = None;
        if message.tag == frontend::QUERY {
            self.figures.queries += 1;
            messages::query(splice.insert(), REFUSED);
            self.expected.push_back(Expected::Query);
        } else {
            messages::parse(splice.insert(), b"", &[REFUSED.as_bytes(), b"\0\0\0"].concat());
            let note = if self.plain { ParseNote::Plain } else { ParseNote::Taken(name.into()) };
            self.extended(Expected::Parse(note));
        }
        true
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
