//! Limits on a statement under way: its answer ends with an error of ours where it gets too large, and the backend's word
//! for a cancelled statement is put in ours where we have cancelled it.
//!
//! Rows beyond the limit are dropped while the backend is told to stop. What the client sees is what PostgreSQL sends
//! when a statement fails: rows, ErrorResponse, and in the end ReadyForQuery with the true status.

use super::flow::{Flow, TransactionStatus};
use super::read_only::ReadOnly;
use super::splice::Splice;
use crate::wire::tag::backend as tag;
use crate::wire::{HEADER, PgError, Severity, sqlstate};

/// Fails, and with it an open transaction.
pub(super) const FAIL: &str = "ROLLBACK TO SAVEPOINT pgtenant_max_result";
/// PostgreSQL's code for a statement that was cancelled.
const CANCELED: &str = "57014";
const TOO_LATE: &str = "The statement was over before it could be cancelled: what it has changed stays.";

/// How far an answer was let through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Cut {
    #[default]
    No,
    /// Rows are dropped; the error is due.
    Due,
    /// The client has the error, and gets nothing more before ReadyForQuery.
    Told,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// Rows of one answer, in bytes.
    max_result: Option<u64>,
    size: u64,
    cut: Cut,
    /// The statement that was cut has come to its end.
    completed: bool,
    /// What the client is told of the statement that we cancel.
    words: Option<Box<PgError>>,
    /// The session has to send a cancel request.
    cancels: bool,
    /// Answers that were cut, since the last look.
    cuts: u64,
    /// It is on its way: it must not hit what the client asks for next.
    pub holds: bool,
    /// The rest of the message at hand is not for the client.
    pub drops_rest: bool,
    /// An open transaction has to fail as it would have by an error of the backend's.
    pub fails: bool,
    /// The client may only read.
    pub read_only: Option<Box<ReadOnly>>,
    /// Then: more of its bytes are here, and not taken, because they may begin a transaction.
    pub anew: bool,
    /// A statement that ends a transaction was sent, and no Sync behind it.
    pub ended: bool,
    /// The rest of its message at hand is not for the backend.
    pub drops_request: bool,
    /// The client's next request is not taken before the session has said so.
    pub barred: bool,
    /// Count up, for whoever looks at time.
    pub statements: u32,
    pub transactions: u32,
}

/// What the client gets instead of further rows.
fn too_large(max: u64) -> PgError {
    PgError::error(sqlstate::CONFIGURATION_LIMIT, "tenant quota exceeded: max_result")
        .with_detail(format!("Quota max_result: limit {max} bytes of rows in one answer."))
        .with_hint("Ask for less at a time: with LIMIT, a cursor, or a fetch size.")
}

impl Limits {
    fn is_on(&self) -> bool {
        self.max_result.is_some() || self.words.is_some() || self.cut != Cut::No || self.read_only.is_some()
    }

    /// One row, or one message of COPY data: whether it is one too many.
    pub fn drops(&mut self, payload: usize) -> bool {
        let Some(max) = self.max_result else { return self.cut != Cut::No };
        self.size += (HEADER + payload) as u64;
        if self.size > max && self.cut == Cut::No {
            self.cut = Cut::Due;
            self.cancels = true;
            self.cuts += 1;
            self.words = Some(Box::new(too_large(max)));
        }
        self.cut != Cut::No
    }

    /// A ReadyForQuery has come for what the client asked for; says whether an open transaction has to be failed.
    pub fn request_over(&mut self, status: TransactionStatus, last: bool) -> bool {
        let cut = std::mem::take(&mut self.cut) != Cut::No;
        let completed = std::mem::take(&mut self.completed);
        self.size = 0;
        if cut || last {
            self.words = None;
            self.cancels = false;
        }
        self.fails = cut && completed && last && status == TransactionStatus::InTransaction;
        self.fails
    }

    /// Nothing that the client is to see: the rest of a batch behind an error that we have made.
    pub fn hides(&self) -> bool {
        self.cut != Cut::No
    }

    fn tell(&mut self, splice: &mut Splice<'_>) {
        if let Some(mut error) = self.words.take() {
            if self.completed {
                error.detail = Some(match error.detail {
                    Some(detail) => format!("{detail} {TOO_LATE}"),
                    None => TOO_LATE.to_owned(),
                });
            }
            splice.insert().extend_from_slice(&error.encode());
        }
        self.cut = Cut::Told;
    }
}

impl Flow {
    /// Answers with more bytes of rows than this end with an error.
    pub fn set_max_result(&mut self, max: Option<u64>) {
        self.limit.max_result = max;
    }

    /// Whether the statement under way has to be cancelled because its answer is too large; true once. Until
    /// [`Flow::cancel_arrived`] nothing more is sent, so that nothing else is hit.
    pub fn takes_cancel(&mut self) -> bool {
        let cancels = std::mem::take(&mut self.limit.cancels);
        self.limit.holds |= cancels;
        cancels
    }

    /// The statement under way is being cancelled by us, likewise: the client is told this.
    pub fn cancels_with(&mut self, words: PgError) {
        self.limit.words = Some(Box::new(words));
        self.limit.holds = true;
    }

    /// Something was set here that may have to be taken back.
    pub fn has_limits(&self) -> bool {
        let Limits { barred, holds, cancels, max_result, read_only, .. } = &self.limit;
        *barred || *holds || *cancels || max_result.is_some() || read_only.is_some()
    }

    /// How many answers were cut since the last call.
    pub fn takes_cuts(&mut self) -> u64 {
        std::mem::take(&mut self.limit.cuts)
    }

    /// Whether a cancel request of ours is on its way.
    pub fn awaits_cancel(&self) -> bool {
        self.limit.holds
    }

    pub fn cancel_arrived(&mut self) {
        self.limit.holds = false;
    }

    /// Whether the client's next transaction has to be asked for first: then the exchange ends with
    /// `Outcome::Asked` when its first request is here.
    pub fn bar(&mut self, barred: bool) {
        self.limit.barred = barred;
    }

    /// A request that would come now is held back.
    pub fn is_barred(&self) -> bool {
        self.limit.barred && self.is_free() && !self.has_held_back()
    }

    /// Statements and transactions that ended so far; they wrap.
    pub fn ended(&self) -> (u32, u32) {
        (self.limit.statements, self.limit.transactions)
    }

    /// The backend has something to do for the client, or waits for its COPY data.
    pub fn is_working(&self) -> bool {
        !self.expected.is_empty() || self.copy_in
    }

    /// Whether a message that was noted passes a limit; what takes its place is put in.
    pub(super) fn passes_limits(&mut self, tag: u8, view: &[u8], splice: &mut Splice<'_>) -> bool {
        if !self.limit.is_on() {
            return true;
        }
        let is_fatal = || PgError::decode(view).severity == Severity::Fatal;
        let passes = match (self.limit.cut, tag) {
            (Cut::No, tag::COMMAND_COMPLETE | tag::PORTAL_SUSPENDED) => {
                self.limit.size = 0;
                true
            }
            (Cut::No, tag::ERROR) => match self.limit.words.take_if(|_| PgError::decode(view).code == CANCELED) {
                Some(words) => {
                    splice.insert().extend_from_slice(&words.encode());
                    false
                }
                None => match self.with_reason(view) {
                    Some(whole) => {
                        splice.insert().extend_from_slice(&whole);
                        false
                    }
                    None => true,
                },
            },
            (Cut::Due, tag::ERROR) if !is_fatal() => {
                self.limit.tell(splice);
                false
            }
            (Cut::Due, tag::COMMAND_COMPLETE | tag::PORTAL_SUSPENDED) => {
                self.limit.completed = true;
                self.limit.tell(splice);
                false
            }
            (_, tag::NOTICE | tag::NOTIFICATION | tag::PARAMETER_STATUS | tag::READY) => true,
            (Cut::No, _) => true,
            (_, tag::ERROR) => is_fatal(),
            (Cut::Due | Cut::Told, _) => false,
        };
        if !passes {
            self.retagged = None;
            self.outdated = false;
            self.limit.drops_rest = self.response_rest > 0;
        }
        passes
    }
}
