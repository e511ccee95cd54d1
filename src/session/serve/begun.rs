//! A transaction that the client has begun and done nothing in: it needs no backend until its first statement.

use std::io;

use bytes::BytesMut;

use super::Serving;
use crate::config::PoolMode;
use crate::net::Endpoint;
use crate::relay::{Flow, TransactionStatus};
use crate::sql::{self, Alone};
use crate::wire::tag::{backend, frontend};
use crate::wire::{HEADER, Header, PgError, messages};

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Begun {
    #[default]
    No,
    /// With these words.
    Yes(String),
    /// Its first statement got no backend.
    Failed,
}

/// Longer statements are none of those that begin or end a transaction.
const LONGEST: usize = 256;

impl Serving {
    /// Whether transactions of this session can wait for their first statement.
    pub(super) fn begins_late(&self) -> bool {
        self.session.mode == PoolMode::Transaction
    }
}

impl Begun {
    /// Answers a request at the beginning of what was received, if it needs no backend; says whether it did.
    pub(super) fn answer(&mut self, client: &mut Endpoint, flow: &mut Flow) -> bool {
        let Some((answer, length)) = self.answer_to(client.received(), flow) else { return false };
        client.queue(&answer);
        client.take(|_| io::Result::Ok(length)).is_ok()
    }

    fn answer_to(&mut self, received: &[u8], flow: &mut Flow) -> Option<(BytesMut, usize)> {
        let header = Header::read(received, LONGEST).ok()??;
        if header.tag != frontend::QUERY {
            return None;
        }
        let length = HEADER + header.payload;
        let text = received.get(HEADER..length)?.strip_suffix(b"\0")?;
        if !sql::may_be_command(text) || !may_begin_or_end(text) {
            return None;
        }
        let alone = sql::look(text, flow.state.standard_strings())?.alone?;
        let command = match (&*self, alone) {
            (Begun::No, Alone::Begin) if flow.status() == TransactionStatus::Idle && !may_fail(text) => {
                *self = Begun::Yes(String::from_utf8(text.to_vec()).ok()?);
                flow.set_status(TransactionStatus::InTransaction);
                let command = if sql::first_word(text) == *b"start\0\0\0" { "START TRANSACTION" } else { "BEGIN" };
                flow.answered_query(0);
                command
            }
            (Begun::Yes(_), end @ (Alone::Commit | Alone::Rollback)) => {
                self.end(flow);
                if end == Alone::Commit { "COMMIT" } else { "ROLLBACK" }
            }
            (Begun::Failed, Alone::Commit | Alone::Rollback) => {
                self.end(flow);
                "ROLLBACK"
            }
            _ => return None,
        };
        let mut answer = BytesMut::new();
        messages::framed(&mut answer, backend::COMMAND_COMPLETE, &[command.as_bytes(), b"\0"]);
        messages::framed(&mut answer, backend::READY, &[&[flow.status().byte()]]);
        Some((answer, length))
    }

    fn end(&mut self, flow: &mut Flow) {
        *self = Begun::No;
        flow.set_status(TransactionStatus::Idle);
        flow.answered_query(1);
    }

    /// The words for the backend that now takes over.
    pub(super) fn take(&mut self) -> Option<String> {
        match std::mem::take(self) {
            Begun::Yes(words) => Some(words),
            _ => None,
        }
    }

    /// The first statement got no backend: the transaction has failed.
    pub(super) fn fail(&mut self, flow: &mut Flow) {
        if *self != Begun::No {
            *self = Begun::Failed;
            flow.set_status(TransactionStatus::Failed);
        }
    }

    /// What every request gets until the client ends a failed transaction.
    pub(super) fn refusal(&self) -> Option<PgError> {
        (*self == Begun::Failed).then(|| {
            PgError::error("25P02", "current transaction is aborted, commands ignored until end of transaction block")
        })
    }
}

/// A quick look at the first letters.
fn may_begin_or_end(text: &[u8]) -> bool {
    matches!(
        &sql::first_word(text),
        b"begin\0\0\0" | b"start\0\0\0" | b"commit\0\0" | b"end\0\0\0\0\0" | b"rollback" | b"abort\0\0\0"
    )
}

/// Whether a BEGIN asks for what the instance may refuse: serializable transactions or writing, on a standby.
fn may_fail(text: &[u8]) -> bool {
    let asks = |word: &[u8]| text.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
    asks(b"SERIALIZABLE") || asks(b"WRITE")
}
