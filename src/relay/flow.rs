//! What is under way between one client and its backend: which answers are due, and when the backend is free again.
//!
//! Pure: `requests` feeds it the client's bytes, `responses` the backend's. It lives as long as the session.

use std::collections::VecDeque;
use std::sync::Arc;

use thiserror::Error;

use super::in_flight::InFlight;
use super::statements::ClientStatements;
use crate::backend::{BackendState, Statement, StatementId, Statements, UnnamedOwner};
use crate::wire::{FrameError, PgError, sqlstate};

/// Bounds on what one client can make us hold.
#[derive(Debug, Clone, Copy)]
pub struct FlowLimits {
    pub max_message: usize,
    pub max_prepared_per_client: usize,
    pub max_prepared_per_backend: usize,
    pub max_prepared_size: usize,
}

/// The transaction status that the last ReadyForQuery told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionStatus {
    Idle,
    InTransaction,
    Failed,
}

/// Where the client is in a series of extended-protocol messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Batch {
    /// Nothing since the last Sync.
    Synced,
    /// Messages without their Sync yet.
    Open,
    /// The backend reported an error and passes over everything until Sync.
    Skipping,
}

/// An answer that is due, in the order of the requests.
#[derive(Debug)]
pub(super) enum Expected {
    /// ParseComplete for a client's Parse: undone when the backend passes over it.
    Parse(ParseNote),
    /// ParseComplete that the client knows nothing of.
    InjectedParse(Option<StatementId>),
    /// ParseComplete that we answer ourselves: the backend has the statement already.
    KnownParse(Box<[u8]>),
    Bind,
    Describe,
    Execute,
    /// CloseComplete for a portal, or for a name that is not one of ours.
    Close,
    /// CloseComplete that the client knows nothing of.
    InjectedClose(Option<StatementId>),
    /// CloseComplete that we answer ourselves: other clients may use the statement.
    KnownClose(Box<[u8]>, Arc<Statement>),
    /// The end of COPY data that was sent before the backend asked for it.
    CopyEnd,
    /// ReadyForQuery.
    Sync,
    Query,
    FunctionCall,
}

/// What a client's Parse changed on our side.
#[derive(Debug)]
pub(super) enum ParseNote {
    Unnamed,
    Named(Box<[u8]>, StatementId),
    /// Too long to be remembered.
    Unshared(Box<[u8]>),
    /// It will fail: the name is taken.
    Taken,
}

/// The client broke the protocol or one of our bounds; the session ends with this.
#[derive(Debug, Error)]
pub enum ClientFault {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("invalid frontend message type {0}")]
    Type(u8),
    #[error("malformed message of type \"{}\"", char::from(*.0))]
    Malformed(u8),
    #[error("more than {0} prepared statements")]
    TooManyStatements(usize),
}

impl ClientFault {
    /// What the client is told.
    pub fn to_error(&self) -> PgError {
        match self {
            ClientFault::TooManyStatements(max) => PgError::fatal("53400", self.to_string()).with_hint(format!(
                "Close statements that are no longer needed; limits.max_prepared_per_client is {max}."
            )),
            fault => PgError::fatal(sqlstate::PROTOCOL_VIOLATION, fault.to_string()),
        }
    }
}

/// Figures since the last look; the caller takes them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Figures {
    pub queries: u64,
    pub transactions: u64,
    /// SQLSTATEs of the backend's errors.
    pub errors: Vec<String>,
}

/// See the module.
#[derive(Debug)]
pub struct Flow {
    pub(super) session: u32,
    pub(super) limits: FlowLimits,
    pub(super) expected: VecDeque<Expected>,
    pub(super) status: TransactionStatus,
    pub(super) batch: Batch,
    /// The backend takes COPY data, and ignores Sync, until the client ends it.
    pub(super) copy_in: bool,
    pub(super) held_back: bool,
    /// Payload bytes of the client's current message still to be forwarded.
    pub(super) request_rest: usize,
    /// The same of the backend's.
    pub(super) response_rest: usize,
    pub(super) mine: ClientStatements,
    pub(super) shared: Arc<Statements>,
    pub(super) in_flight: InFlight,
    /// Statements too long to be remembered, by the client's names, which the backend knows as well: they pin.
    pub(super) unshared: Vec<Box<[u8]>>,
    /// The backend has announced its own end.
    pub(super) fatal: bool,
    pub(super) figures: Figures,
}

impl Flow {
    pub fn new(session: u32, limits: FlowLimits, shared: Arc<Statements>) -> Self {
        Flow {
            session,
            limits,
            expected: VecDeque::new(),
            status: TransactionStatus::Idle,
            batch: Batch::Synced,
            copy_in: false,
            held_back: false,
            request_rest: 0,
            response_rest: 0,
            mine: ClientStatements::default(),
            shared,
            in_flight: InFlight::default(),
            unshared: Vec::new(),
            fatal: false,
            figures: Figures::default(),
        }
    }

    pub fn status(&self) -> TransactionStatus {
        self.status
    }

    /// Nothing is under way in either direction: every answer was given, every message ended at its end.
    pub fn at_rest(&self) -> bool {
        self.expected.is_empty()
            && self.batch == Batch::Synced
            && !self.copy_in
            && self.request_rest == 0
            && self.response_rest == 0
    }

    /// The backend can serve somebody else.
    pub fn is_free(&self) -> bool {
        self.status == TransactionStatus::Idle && self.at_rest() && self.unshared.is_empty()
    }

    /// No answer comes unless the client asks for more: it has to end its COPY or its batch first.
    pub fn waits_for_client(&self) -> bool {
        let ends = |expected: &Expected| matches!(expected, Expected::Sync | Expected::Query | Expected::FunctionCall);
        self.copy_in || !self.expected.iter().any(ends)
    }

    /// The client is in the middle of a message from the backend: nothing can be told in between.
    pub fn mid_response(&self) -> bool {
        self.response_rest > 0
    }

    /// The backend has told the client that it ends.
    pub fn backend_said_goodbye(&self) -> bool {
        self.fatal
    }

    /// The figures since the last call.
    pub fn take_figures(&mut self) -> Figures {
        std::mem::take(&mut self.figures)
    }

    /// Adds to `replies` the answers of ours whose turn has come.
    pub(super) fn answer_known(&mut self, replies: &mut impl FnMut(u8)) {
        use crate::wire::tag::backend;
        loop {
            match self.expected.front() {
                Some(Expected::KnownParse(_)) => replies(backend::PARSE_COMPLETE),
                Some(Expected::KnownClose(..)) => replies(backend::CLOSE_COMPLETE),
                _ => return,
            }
            self.expected.pop_front();
        }
    }

    /// The backend passes over a request: what we noted for it did not happen. Call it for the latest one first.
    pub(super) fn undo(&mut self, passed_over: Expected, backend: &mut BackendState) {
        match passed_over {
            Expected::Parse(ParseNote::Named(name, id)) => {
                self.mine.remove(&name);
                self.settle(backend, Some(id), None);
            }
            Expected::Parse(ParseNote::Unnamed) => {
                self.mine.forget_unnamed();
                self.settle(backend, None, None);
            }
            Expected::Parse(ParseNote::Unshared(name)) => self.unshared.retain(|unshared| *unshared != name),
            Expected::InjectedParse(statement) | Expected::InjectedClose(statement) => {
                self.settle(backend, statement, None);
            }
            Expected::KnownParse(name) => {
                self.mine.remove(&name);
            }
            Expected::KnownClose(name, statement) => self.mine.insert(&name, statement),
            // Either may have been meant to drop the unnamed statement.
            Expected::Close | Expected::Query => backend.unnamed = Some(UnnamedOwner::SOMEBODY),
            _ => {}
        }
    }

    /// A statement was prepared (true) or closed (false) on the backend, or neither after all.
    pub(super) fn settle(&mut self, backend: &mut BackendState, statement: Option<StatementId>, there: Option<bool>) {
        let last = self.in_flight.settled(statement);
        match statement {
            Some(id) => backend.prepared.settle(id, there, last),
            None if last && there.is_none() => backend.unnamed = Some(UnnamedOwner::SOMEBODY),
            None => {}
        }
    }
}
