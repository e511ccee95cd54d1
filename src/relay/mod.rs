//! Bytes from client to backend and back: the pure halves, and the loop that joins them to two sockets.

mod alone;
mod bounds;
mod channels;
mod flow;
mod in_flight;
mod limits;
mod provide;
mod read_only;
mod replaced;
mod requests;
mod responses;
mod splice;
mod state;
mod statements;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use thiserror::Error;

pub use bounds::QUERY_BOUND;
pub use channels::{Ceased, ChannelChange, ListenRequest};
pub use flow::{ClientFault, Figures, Flow, FlowLimits, TransactionStatus};
pub use read_only::ReadOnly;
pub use splice::Splice;
pub use state::SessionState;

use crate::backend::{Backend, BackendState};
use crate::config::PoolMode;
use crate::metrics::TierMetrics;
use crate::net::Endpoint;
use crate::wire::{PgError, ReadFault};

/// Our own answers that wait for a client to take them, in bytes: beyond that we take no more of its requests.
const MAX_REPLIES: usize = 64 * 1024;

/// Why an exchange came to its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every request is answered and no transaction is open.
    Free,
    /// A statement opened a transaction where the pool mode forbids one.
    OpenTransaction,
    /// The client said goodbye, and what it had asked for is answered.
    Terminated,
    /// Somebody wants the session to end now.
    Interrupted,
    /// The client's next transaction has begun to arrive, and has to be asked for ([`Flow::bar`]).
    Asked,
}

/// Why an exchange broke off.
#[derive(Debug, Error)]
pub enum Broken {
    #[error("the client is gone")]
    Client(io::Error),
    #[error("the client broke the protocol: {0}")]
    ClientFault(#[from] ClientFault),
    #[error("the backend is gone")]
    Backend(io::Error),
    #[error("the backend broke the protocol: {0}")]
    BackendFault(#[from] ReadFault),
    #[error("what was sent ahead of the request failed: {0}")]
    Ahead(PgError),
}

/// What an exchange moved.
#[derive(Debug, Default, Clone, Copy)]
pub struct Moved {
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
    /// Time from requests to the end of their answers.
    pub busy: Duration,
}

/// One client joined to one backend, for as long as the client holds it.
#[derive(Debug)]
pub struct Exchange<'a> {
    client: &'a mut Endpoint,
    backend: &'a mut Endpoint,
    state: &'a mut BackendState,
    flow: &'a mut Flow,
    mode: PoolMode,
    metrics: &'a TierMetrics,
    pub moved: Moved,
    /// When the request under way was sent.
    asked: Option<Instant>,
    /// The latest look at the clock: the backend was got, or the last answer ended.
    pub clock: Instant,
    /// The client's next request is here, and not taken.
    barred: bool,
    /// It has to be looked at again for the next request. The first one is here already when a backend is got for it.
    is_late: bool,
    /// Some request was taken.
    worked: bool,
    /// The first requests, as long as they may have to be sent once more.
    first: Vec<u8>,
}

/// How an exchange goes, for whoever looks at time.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// When the request under way was sent.
    pub asked: Option<Instant>,
    /// When the last answer ended, or the backend was got.
    pub rested: Instant,
}

/// What moved in one step.
enum Step {
    Progress,
    Blocked,
}

impl<'a> Exchange<'a> {
    pub fn new(
        client: &'a mut Endpoint,
        backend: &'a mut Backend,
        flow: &'a mut Flow,
        mode: PoolMode,
        metrics: &'a TierMetrics,
        now: Instant,
    ) -> Self {
        Exchange {
            is_late: client.received().is_empty(),
            client,
            backend: &mut backend.endpoint,
            state: &mut backend.state,
            flow,
            mode,
            metrics,
            moved: Moved::default(),
            asked: None,
            clock: now,
            barred: false,
            worked: false,
            first: Vec::new(),
        }
    }

    /// Relays until the backend is free, the session ends, or something breaks. `interrupted` is asked before every wait
    /// and has to see to it that the task is woken when its answer changes. It may take what was counted so far, and tell
    /// the client something while it is at rest.
    ///
    /// # Errors
    /// See [`Broken`]; afterwards the backend must be closed unless the flow is at rest.
    pub async fn run(
        &mut self,
        mut interrupted: impl FnMut(&mut Context<'_>, &mut Flow, &mut Moved, &mut Endpoint, Pace) -> bool,
    ) -> Result<Outcome, Broken> {
        let mut terminated = false;
        let mut begun = false;
        poll_fn(|cx| {
            if !std::mem::replace(&mut begun, true) {
                self.moved.received += self.client.received().len() as u64;
                terminated = self.take_first(cx)?;
            }
            loop {
                if self.flow.takes_retry() {
                    terminated = self.repeat(cx)?;
                }
                if self.flow.restores_now() {
                    self.forward(cx, &[])?;
                }
                self.take_time();
                if let Some(outcome) = self.outcome(terminated) {
                    return Poll::Ready(Ok(outcome));
                }
                self.send_rest(cx)?;
                if let Step::Progress = self.responses(cx)? {
                    continue;
                }
                if !terminated && let Step::Progress = self.requests(cx, &mut terminated)? {
                    continue;
                }
                let pace = Pace { asked: self.asked, rested: self.clock };
                if interrupted(cx, self.flow, &mut self.moved, self.client, pace) {
                    return Poll::Ready(Ok(Outcome::Interrupted));
                }
                return Poll::Pending;
            }
        })
        .await
    }

    fn outcome(&self, terminated: bool) -> Option<Outcome> {
        if terminated && self.flow.waits_for_client() {
            return Some(Outcome::Terminated);
        }
        if self.barred {
            return Some(Outcome::Asked);
        }
        if self.mode == PoolMode::Statement && self.flow.at_rest() && self.flow.status() != TransactionStatus::Idle {
            return Some(Outcome::OpenTransaction);
        }
        // Who is held waits for its next request here, so that it hears what its backend has to say.
        let worked = self.worked || !self.flow.state.held;
        let worked = worked && !self.flow.has_held_back() && !self.backend.has_unsent();
        let free = self.mode != PoolMode::Session && worked && self.flow.is_free();
        free.then_some(Outcome::Free)
    }

    fn take_time(&mut self) {
        match (self.asked, self.flow.at_rest()) {
            (None, false) => {
                if self.is_late {
                    self.clock = Instant::now();
                }
                self.asked = Some(self.clock);
            }
            (Some(asked), true) => {
                self.clock = Instant::now();
                self.is_late = true;
                let took = self.clock.duration_since(asked);
                self.moved.busy += took;
                self.metrics.query.observe(took.as_secs_f64());
                self.asked = None;
            }
            _ => {}
        }
    }

    fn send_rest(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        if self.client.has_unsent()
            && let Poll::Ready(Err(error)) = self.client.poll_send(cx)
        {
            return Err(Broken::Client(error));
        }
        if self.backend.has_unsent()
            && let Poll::Ready(Err(error)) = self.backend.poll_send(cx)
        {
            return Err(Broken::Backend(error));
        }
        Ok(())
    }

    /// Backend to client, unless the client is slow to take what it has.
    fn responses(&mut self, cx: &mut Context<'_>) -> Result<Step, Broken> {
        if self.client.has_unsent() {
            return Ok(Step::Blocked);
        }
        let Exchange { client, backend, state, flow, moved, .. } = self;
        let mut write = Ok(());
        let read = backend.poll_take(cx, |cx, input| {
            let mut splice = Splice::new(input);
            let consumed = flow.responses(state, input, &mut splice).map_err(Failure::Fault)?;
            moved.sent += splice.bytes().len() as u64;
            write = client.send(cx, splice.bytes());
            Ok(consumed)
        });
        write.map_err(Broken::Client)?;
        if let Some(error) = flow.take_ahead_failed() {
            return Err(Broken::Ahead(error));
        }
        match read {
            Poll::Pending => Ok(Step::Blocked),
            Poll::Ready(Ok(0)) => Err(Broken::Backend(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Ok(_)) => Ok(Step::Progress),
            Poll::Ready(Err(Failure::Io(error))) => Err(Broken::Backend(error)),
            Poll::Ready(Err(Failure::Fault(fault))) => Err(Broken::BackendFault(fault)),
        }
    }

    /// Client to backend, unless the backend is slow to take what it has, or the client to take its answers.
    fn requests(&mut self, cx: &mut Context<'_>, terminated: &mut bool) -> Result<Step, Broken> {
        if self.backend.has_unsent() || self.client.unsent() > MAX_REPLIES || self.flow.is_full() {
            return Ok(Step::Blocked);
        }
        if self.flow.is_barred() {
            return self.wait_for_request(cx);
        }
        if self.flow.has_held_back() {
            let received = self.client.take_received();
            let (consumed, said_goodbye) = self.forward(cx, &received)?;
            self.client.put_back(&received[consumed..]);
            *terminated = said_goodbye;
            return Ok(Step::Progress);
        }
        let Exchange { client, backend, state, flow, moved, .. } = self;
        let mut forwarded = Forwarded::default();
        let read = client.poll_take(cx, |cx, input| {
            flow.forbid_retry();
            forwarded.forward(cx, flow, state, backend, input)
        });
        let step = match read {
            Poll::Pending => Step::Blocked,
            Poll::Ready(Ok(0)) => return Err(Broken::Client(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Ok(received)) => {
                moved.received += received as u64;
                Step::Progress
            }
            Poll::Ready(Err(Failure::Io(error))) => return Err(Broken::Client(error)),
            Poll::Ready(Err(Failure::Fault(fault))) => return Err(Broken::ClientFault(fault)),
        };
        self.worked |= forwarded.worked;
        *terminated = forwarded.finish(cx, client, moved)?;
        Ok(step)
    }

    /// The client's next request is left where it is.
    fn wait_for_request(&mut self, cx: &mut Context<'_>) -> Result<Step, Broken> {
        if self.flow.takes_anew() {
            self.barred = true;
            return Ok(Step::Progress);
        }
        match self.client.poll_fill(cx) {
            Poll::Pending => Ok(Step::Blocked),
            Poll::Ready(Ok(0)) => Err(Broken::Client(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Ok(_)) => {
                self.barred = true;
                Ok(Step::Progress)
            }
            Poll::Ready(Err(error)) => Err(Broken::Client(error)),
        }
    }

    /// What the client had sent when it got the backend. It is kept while it may have to be sent once more.
    fn take_first(&mut self, cx: &mut Context<'_>) -> Result<bool, Broken> {
        let first = self.client.take_received();
        self.flow.allow_retry();
        let (consumed, terminated) = self.forward(cx, &first)?;
        if consumed < first.len() {
            self.client.put_back(&first[consumed..]);
            self.flow.forbid_retry();
        } else if self.flow.may_retry() {
            self.first = first;
        }
        Ok(terminated)
    }

    fn repeat(&mut self, cx: &mut Context<'_>) -> Result<bool, Broken> {
        let first = std::mem::take(&mut self.first);
        let (consumed, terminated) = self.forward(cx, &first)?;
        self.client.put_back(&first[consumed..]);
        Ok(terminated)
    }

    /// Sends requests on; gives how many bytes of them, and whether the client said goodbye.
    fn forward(&mut self, cx: &mut Context<'_>, input: &[u8]) -> Result<(usize, bool), Broken> {
        let mut forwarded = Forwarded::default();
        let taken = forwarded.forward(cx, self.flow, self.state, self.backend, input);
        self.worked |= forwarded.worked;
        match taken {
            Ok(consumed) => Ok((consumed, forwarded.finish(cx, self.client, &mut self.moved)?)),
            Err(Failure::Io(error)) => Err(Broken::Client(error)),
            Err(Failure::Fault(fault)) => Err(Broken::ClientFault(fault)),
        }
    }
}

/// A read that failed, or that read something wrong.
enum Failure<F> {
    Io(io::Error),
    Fault(F),
}

impl<F> From<io::Error> for Failure<F> {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

/// What became of one read from the client.
#[derive(Default)]
struct Forwarded {
    write: Option<io::Error>,
    replies: Vec<u8>,
    terminated: bool,
    worked: bool,
}

impl Forwarded {
    fn forward(
        &mut self,
        cx: &mut Context<'_>,
        flow: &mut Flow,
        state: &mut BackendState,
        backend: &mut Endpoint,
        input: &[u8],
    ) -> Result<usize, Failure<ClientFault>> {
        let mut splice = Splice::new(input);
        let taken = flow.requests(state, input, &mut splice, &mut self.replies).map_err(Failure::Fault)?;
        self.write = backend.send(cx, splice.bytes()).err();
        self.terminated = taken.terminated;
        self.worked = taken.consumed > 0;
        Ok(taken.consumed)
    }

    /// Gives the client our own answers; says whether it said goodbye.
    fn finish(self, cx: &mut Context<'_>, client: &mut Endpoint, moved: &mut Moved) -> Result<bool, Broken> {
        if let Some(error) = self.write {
            return Err(Broken::Backend(error));
        }
        moved.sent += self.replies.len() as u64;
        client.send(cx, &self.replies).map_err(Broken::Client)?;
        Ok(self.terminated)
    }
}
