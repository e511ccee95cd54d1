//! What is under way between one client and its backend: which answers are due, and when the backend is free again.
//!
//! Pure: `requests` feeds it the client's bytes, `responses` the backend's. It lives as long as the session.

use std::collections::VecDeque;
use std::sync::Arc;

use thiserror::Error;

use super::in_flight::InFlight;
use super::limits::Limits;
use super::replaced::Replaced;
use super::state::SessionState;
use super::statements::{ClientStatements, Unnamed};
use crate::backend::{BackendState, Statement, StatementId, Statements, UnnamedOwner};
use crate::wire::{FrameError, PgError, sqlstate};

/// Bounds on what one client can make us hold.
#[derive(Debug, Clone, Copy)]
pub struct FlowLimits {
    pub max_message: usize,
    pub max_prepared_per_client: usize,
    pub max_prepared_per_backend: usize,
    pub max_prepared_size: usize,
    /// Unnamed statements that recur are prepared under a name.
    pub cache_unnamed: bool,
}

/// The transaction status that the last ReadyForQuery told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionStatus {
    Idle,
    InTransaction,
    Failed,
}

impl TransactionStatus {
    /// As ReadyForQuery tells it.
    pub fn byte(self) -> u8 {
        match self {
            TransactionStatus::Idle => b'I',
            TransactionStatus::InTransaction => b'T',
            TransactionStatus::Failed => b'E',
        }
    }
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
    /// The whole answer to a simple query of ours, sent ahead of the client's request.
    Ahead,
    /// The same, sent behind a request that resets the session: the client gets the ReadyForQuery of this one.
    Behind,
    /// ParseComplete for a client's Parse: undone when the backend passes over it.
    Parse(ParseNote),
    /// ParseComplete that the client knows nothing of.
    InjectedParse(Option<StatementId>),
    /// ParseComplete that we answer ourselves: the backend has the statement already.
    KnownParse(Box<[u8]>),
    /// BindComplete for a portal of this statement, or of one that is not ours.
    Bind(Option<StatementId>),
    /// The description of this statement, or of what is not ours.
    Describe(Option<Box<Described>>),
    /// The same, that the client knows nothing of: whether it is still what the client was told.
    Check(Box<Described>),
    /// Stands for the BindComplete of a statement that is not: PostgreSQL's error for it is put in other words.
    Outdated,
    /// With the command tag that the client expects, where it is another.
    Execute(Option<&'static str>),
    /// CloseComplete for a portal, or for a name that is not one of ours; true for the unnamed statement.
    Close(bool),
    /// CloseComplete that the client knows nothing of.
    InjectedClose(Option<StatementId>),
    /// CloseComplete that we answer ourselves: other clients may use the statement.
    KnownClose(Box<[u8]>, Arc<Statement>),
    /// No answer is due: a name that is about to be dropped was given to another statement, and gets this one back if that
    /// fails.
    Renewed(Box<[u8]>, Arc<Statement>),
    /// The end of COPY data that was sent before the backend asked for it.
    CopyEnd,
    /// ReadyForQuery.
    Sync,
    Query,
    /// A simple query in which statements stand for others.
    Restored(Replaced),
    /// A simple query that we answer ourselves: its command tag.
    KnownQuery(&'static str),
    FunctionCall,
}

impl Expected {
    /// What we answer ourselves.
    pub fn is_known(&self) -> bool {
        matches!(self, Expected::KnownParse(_) | Expected::KnownClose(..) | Expected::KnownQuery(_))
    }

    /// A ReadyForQuery will come for it.
    pub fn ends_with_ready(&self) -> bool {
        matches!(
            self,
            Expected::Ahead
                | Expected::Behind
                | Expected::Sync
                | Expected::Query
                | Expected::Restored(_)
                | Expected::FunctionCall
        )
    }
}

/// A client's statement whose description is due. The unnamed one has no identity.
#[derive(Debug)]
pub(super) struct Described {
    pub id: Option<StatementId>,
    pub name: Box<[u8]>,
}

/// What keeps the client's next message from being sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    No,
    /// An answer that tells whether a statement is still what the client was told.
    Check,
    /// It tells that it is not: the next message is a Bind that must not work.
    Outdated,
    /// Idle backends have to leave the database that it is about.
    Database,
    /// They have.
    Free,
}

/// A batch that fails because a statement's plan is out of date (after a migration) is sent once more, and the client
/// knows nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    No,
    /// It could be: it is all that is under way, nothing precedes it in its transaction, and its bytes are kept. The client
    /// has got so many messages of its answer.
    Possible(u32),
    /// It failed: its answer is dropped up to ReadyForQuery. As many messages as the client has got are not repeated.
    Failed(u32),
    /// To be sent again now.
    Due(u32),
    /// Sent again; so many messages of the answer are still to be dropped.
    Repeating(u32),
}

/// DISCARD ALL goes back to the login's parameters: the client's own are put back behind it, before it hears that it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restore {
    No,
    /// It was sent, and nothing behind it.
    Asked,
    /// It has run.
    Due,
    /// Its batch is over.
    Now,
}

/// What a client's Parse changed on our side.
#[derive(Debug)]
pub(super) enum ParseNote {
    /// Which one it is, and the one before: it stays when this is passed over.
    Unnamed(u64, Option<Box<Unnamed>>),
    Named(Box<[u8]>, StatementId),
    /// Too long to be remembered.
    Unshared(Box<[u8]>),
    /// It will fail: this name is taken.
    Taken(Box<[u8]>),
    /// The backend's own business.
    Plain,
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
    /// The client has its backend for itself: nothing is renamed, and nothing looked into.
    pub(super) plain: bool,
    /// Beyond the transaction.
    pub state: SessionState,
    /// SQL of ours that goes out before the client's next request.
    pub(super) ahead: Vec<String>,
    /// Why it failed.
    pub(super) ahead_failed: Option<PgError>,
    /// The client's own parameters have to be put back behind the request at hand.
    pub(super) restores: bool,
    /// When statements were sent that drop all prepared ones, and are not answered yet.
    pub(super) drops: VecDeque<u64>,
    /// Portals of statements whose command tag is not what the client expects.
    pub(super) portals: Vec<(Box<[u8]>, &'static str)>,
    /// What the backend cannot do because a statement's plan is out of date.
    pub(super) retry: Retry,
    /// Statements that the client has prepared in what could be sent once more.
    pub(super) retry_names: Vec<Box<[u8]>>,
    /// The name that the error in hand is about.
    pub(super) taken: Option<Box<[u8]>>,
    /// The error in hand is to say that a statement's plan is out of date.
    pub(super) outdated: bool,
    /// The parameter types in the description that is just coming.
    pub(super) types: Vec<u8>,
    pub(super) wait: Wait,
    /// The command tag for the message in hand.
    pub(super) retagged: Option<&'static str>,
    pub(super) expected: VecDeque<Expected>,
    pub(super) status: TransactionStatus,
    pub(super) batch: Batch,
    /// The backend takes COPY data, and ignores Sync, until the client ends it.
    pub(super) copy_in: bool,
    pub(super) held_back: bool,
    /// What is held back is judged when the next batch is answered.
    pub(super) waits: bool,
    pub(super) restore: Restore,
    /// DISCARD ALL has run, and its Sync was not sent yet.
    pub(super) discarded: bool,
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
    pub(super) limit: Limits,
    pub(super) figures: Figures,
}

impl Flow {
    /// `plain` is for a client that has its backend for itself.
    pub fn new(session: u32, limits: FlowLimits, plain: bool, state: SessionState, shared: Arc<Statements>) -> Self {
        Flow {
            session,
            limits,
            plain,
            state,
            ahead: Vec::new(),
            ahead_failed: None,
            restores: false,
            drops: VecDeque::new(),
            portals: Vec::new(),
            retry: Retry::No,
            retry_names: Vec::new(),
            taken: None,
            outdated: false,
            types: Vec::new(),
            wait: Wait::No,
            retagged: None,
            expected: VecDeque::new(),
            status: TransactionStatus::Idle,
            batch: Batch::Synced,
            copy_in: false,
            held_back: false,
            waits: false,
            restore: Restore::No,
            discarded: false,
            request_rest: 0,
            response_rest: 0,
            mine: ClientStatements::default(),
            shared,
            in_flight: InFlight::default(),
            unshared: Vec::new(),
            fatal: false,
            limit: Limits::default(),
            figures: Figures::default(),
        }
    }

    /// The longest message that a client may send, in bytes of payload.
    pub fn max_message(&self) -> usize {
        self.limits.max_message
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
        self.status == TransactionStatus::Idle && self.at_rest()
    }

    /// A statement that is not remembered ties the client to its backend.
    pub fn has_unshared(&self) -> bool {
        !self.unshared.is_empty()
    }

    /// Has this SQL run on the backend before the client's next request.
    pub fn send_ahead(&mut self, sql: String) {
        self.ahead.push(sql);
    }

    /// What was sent ahead is not answered yet: a cancel request would hit that.
    pub fn is_ahead(&self) -> bool {
        !self.ahead.is_empty() || matches!(self.expected.front(), Some(Expected::Ahead))
    }

    /// Why what was sent ahead failed, if it did: the request behind it ran under the wrong parameters, if it ran at all.
    pub fn take_ahead_failed(&mut self) -> Option<PgError> {
        self.ahead_failed.take()
    }

    /// What is sent next could be sent once more: the caller keeps its bytes.
    pub fn allow_retry(&mut self) {
        if self.status == TransactionStatus::Idle && !self.plain {
            self.retry = Retry::Possible(0);
            self.retry_names.clear();
        }
    }

    /// Whether it still could, now that it was sent: if it was one batch and nothing else.
    pub fn may_retry(&mut self) -> bool {
        let ends = self.expected.iter().filter(|expected| expected.ends_with_ready()).count();
        let ahead = self.expected.iter().filter(|expected| matches!(expected, Expected::Ahead)).count();
        if ends != ahead + 1 || !matches!(self.expected.back(), Some(Expected::Sync)) {
            self.forbid_retry();
        }
        self.retry != Retry::No
    }

    /// More was sent behind it.
    pub fn forbid_retry(&mut self) {
        if let Retry::Possible(_) = self.retry {
            self.retry = Retry::No;
        }
    }

    /// Whether the client's own parameters have to be put back now: [`Flow::requests`] does it.
    pub fn restores_now(&self) -> bool {
        self.restore == Restore::Now
    }

    /// Whether they have to be sent again now.
    pub fn takes_retry(&mut self) -> bool {
        let Retry::Due(got) = self.retry else { return false };
        self.retry = Retry::Repeating(got);
        for name in std::mem::take(&mut self.retry_names) {
            self.mine.undo_insert(&name);
        }
        true
    }

    /// A message for the client: whether it gets it, or has got it before.
    pub(super) fn passes(&mut self) -> bool {
        match &mut self.retry {
            Retry::Possible(got) => *got += 1,
            Retry::Failed(_) | Retry::Due(_) => return false,
            Retry::Repeating(0) | Retry::No => {}
            Retry::Repeating(left) => {
                *left -= 1;
                return false;
            }
        }
        true
    }

    /// What we tell the client about its transaction without a backend's word for it.
    pub fn set_status(&mut self, status: TransactionStatus) {
        self.status = status;
    }

    /// The client's next request is about a database as a whole: no idle backend must be in its way.
    pub fn waits_for_database(&self) -> bool {
        self.wait == Wait::Database
    }

    /// None is any more.
    pub fn database_is_free(&mut self) {
        self.wait = Wait::Free;
    }

    /// No answer comes unless the client asks for more: it has to end its COPY or its batch first.
    pub fn waits_for_client(&self) -> bool {
        self.copy_in || !self.expected.iter().any(Expected::ends_with_ready)
    }

    /// The client is in the middle of a message from the backend: nothing can be told in between.
    pub fn mid_response(&self) -> bool {
        self.response_rest > 0 && !self.limit.drops_rest
    }

    /// The backend has told the client that it ends.
    pub fn backend_said_goodbye(&self) -> bool {
        self.fatal
    }

    /// The figures since the last call.
    pub fn take_figures(&mut self) -> Figures {
        std::mem::take(&mut self.figures)
    }

    /// A simple query was answered without a backend; as every one, it drops the unnamed statement.
    pub fn answered_query(&mut self, transactions: u64) {
        self.mine.forget_unnamed();
        self.count(1, transactions);
    }

    /// Counts what was answered without a backend.
    pub fn count(&mut self, queries: u64, transactions: u64) {
        self.figures.queries += queries;
        self.figures.transactions += transactions;
    }

    /// Adds to `replies` the answers of ours whose turn has come.
    pub(super) fn answer_known(&mut self, replies: &mut impl FnMut(u8, &[&[u8]])) {
        use crate::wire::tag::backend;
        loop {
            match self.expected.front() {
                Some(Expected::KnownParse(_)) => self.reply(replies, backend::PARSE_COMPLETE, &[]),
                Some(Expected::KnownClose(..)) => self.reply(replies, backend::CLOSE_COMPLETE, &[]),
                Some(Expected::Renewed(..)) => {}
                Some(Expected::KnownQuery(command)) => {
                    let command = *command;
                    self.reply(replies, backend::COMMAND_COMPLETE, &[command.as_bytes(), b"\0"]);
                    self.reply(replies, backend::READY, &[&[self.status.byte()]]);
                    self.mine.at_rest();
                }
                _ => return,
            }
            self.expected.pop_front();
        }
    }

    fn reply(&mut self, replies: &mut impl FnMut(u8, &[&[u8]]), tag: u8, parts: &[&[u8]]) {
        if self.passes() && !self.limit.hides() {
            replies(tag, parts);
        }
    }

    /// The backend passes over a request: what we noted for it did not happen. Call it for the latest one first.
    pub(super) fn undo(&mut self, passed_over: Expected, backend: &mut BackendState) {
        match passed_over {
            Expected::Parse(ParseNote::Named(name, id)) => {
                self.mine.undo_insert(&name);
                self.settle(backend, Some(id), None);
            }
            Expected::Parse(ParseNote::Unnamed(version, before)) => {
                self.bring_back(version, before);
                self.settle(backend, None, None);
            }
            Expected::Parse(ParseNote::Unshared(name)) => self.unshared.retain(|unshared| *unshared != name),
            Expected::InjectedParse(statement) | Expected::InjectedClose(statement) => {
                self.settle(backend, statement, None);
            }
            Expected::KnownParse(name) => self.mine.undo_insert(&name),
            Expected::Check(_) => self.wait = Wait::No,
            Expected::KnownClose(name, statement) | Expected::Renewed(name, statement) => {
                self.mine.undo_remove(&name, statement);
            }
            // They were meant to drop the unnamed statement.
            Expected::Close(true) | Expected::Query | Expected::Restored(_) => {
                backend.unnamed = Some(UnnamedOwner::SOMEBODY)
            }
            _ => {}
        }
    }

    /// The unnamed statement of this version was not prepared after all: the one before is still there, for the client or
    /// for what was sent behind it.
    fn bring_back(&mut self, version: u64, before: Option<Box<Unnamed>>) {
        let is_meant = |unnamed: &Unnamed| unnamed.version == version;
        if self.mine.unnamed().is_some_and(is_meant) {
            return self.mine.replace_unnamed(before.map(|unnamed| *unnamed));
        }
        let later = self.expected.iter_mut().find_map(|expected| match expected {
            Expected::Parse(ParseNote::Unnamed(_, Some(later))) if is_meant(later) => Some(expected),
            _ => None,
        });
        if let Some(Expected::Parse(ParseNote::Unnamed(_, later))) = later {
            *later = before;
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
