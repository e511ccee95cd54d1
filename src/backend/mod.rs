//! One connection to PostgreSQL: connect, log in, prove the identity, reset, cancel, close.

mod cancel;
mod census;
mod connect;
mod error;
mod parameters;
mod recurring;
mod settings;
mod state;
mod statements;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;

pub use cancel::CancelKey;
pub use census::{Census, Doubt, Pins};
pub use connect::{Login, Target, connect};
pub use error::ConnectError;
pub use parameters::Parameters;
pub use settings::{Change, Settings, set_command, set_config};
pub use state::{BackendState, Prepared, ServerName, StatementId, UnnamedOwner};
pub use statements::{Statement, Statements};

use crate::net::Endpoint;
use crate::wire::tag::backend as tag;
use crate::wire::{HEADER, Header, PgError, messages};

/// How long a backend may take to answer our own few commands, and to end when told to.
const OWN_COMMAND: Duration = Duration::from_secs(10);
const GOODBYE: Duration = Duration::from_secs(5);
/// Our own commands have short answers.
const OWN_ANSWER: usize = 1 << 20;
/// Notices for the client that are kept, in bytes.
const MAX_NOTICES: usize = 1 << 16;

/// A logged-in, identified connection.
#[derive(Debug)]
pub struct Backend {
    pub endpoint: Endpoint,
    pub state: BackendState,
    pub cancel: Arc<CancelKey>,
    /// NoticeResponses of its login, whole messages: for every client that logs in.
    pub notices: Box<[u8]>,
    /// The session parameters in force, beyond those of the login.
    pub in_force: Arc<Settings>,
    /// Who the session is after the login: `role` and `session_authorization`.
    baseline: Settings,
    /// The session that used it last.
    last_session: u32,
    /// Notifications for its client that came while we asked for something.
    notifications: Vec<Vec<u8>>,
}

/// Why one of our own commands failed; the backend has to be closed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("the backend is gone: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Refused(PgError),
    #[error("no answer within {} s", OWN_COMMAND.as_secs())]
    Timeout,
    #[error("unexpected answer")]
    Unexpected,
}

impl Backend {
    /// Makes it fit to serve `session`: what another client left, and nobody can put right one by one, is discarded. Costs
    /// nothing when there is nothing to do. `reads_sequences` says that who advances one keeps its backend.
    ///
    /// # Errors
    /// The backend is gone.
    pub async fn serve(&mut self, session: u32, always_reset: bool, reads_sequences: bool) -> Result<(), CommandError> {
        if self.last_session != session {
            if self.state.dirty || always_reset {
                Box::pin(self.reset()).await?;
            } else if self.last_session != 0 && !reads_sequences {
                self.state.sequences_of_others = true;
            }
            self.last_session = session;
        }
        Ok(())
    }

    /// What has to be run before these settings are in force.
    pub fn change_to(&self, wanted: &Arc<Settings>) -> Option<Change> {
        if Arc::ptr_eq(&self.in_force, wanted) {
            return None;
        }
        self.in_force.change_to(wanted)
    }

    /// Puts settings in force.
    ///
    /// # Errors
    /// The backend is gone, or it refuses a parameter's value: then nothing was changed, and it can be released.
    pub async fn adopt(&mut self, wanted: &Arc<Settings>) -> Result<(), CommandError> {
        self.adopt_aloud(wanted).await.map(drop)
    }

    /// The same; gives the NoticeResponses, whole messages.
    pub async fn adopt_aloud(&mut self, wanted: &Arc<Settings>) -> Result<Vec<u8>, CommandError> {
        let notices = match self.change_to(wanted) {
            Some(change) => self.answer(&change.sql).await?.notices,
            None => Vec::new(),
        };
        self.in_force = wanted.clone();
        Ok(notices)
    }

    /// Discards everything a client may have left.
    pub async fn reset(&mut self) -> Result<(), CommandError> {
        self.command("DISCARD ALL").await?;
        self.state.discarded();
        self.notifications = Vec::new();
        self.in_force = Arc::default();
        Ok(())
    }

    /// Whether it has ever had temporary objects.
    ///
    /// # Errors
    /// The backend is gone.
    pub async fn has_temporary_schema(&mut self) -> Result<bool, CommandError> {
        let rows = self.rows("SELECT 1 WHERE pg_catalog.pg_my_temp_schema() <> 0").await?;
        Ok(!rows.is_empty())
    }

    /// Ends an open transaction whose client is gone.
    pub async fn roll_back(&mut self) -> Result<(), CommandError> {
        self.command("ROLLBACK").await
    }

    /// What came for the client while we asked for something: whole messages.
    pub fn take_notifications(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.notifications)
    }

    /// Runs a command of ours, outside of any exchange.
    ///
    /// # Errors
    /// The backend is gone, or refuses it.
    pub async fn command(&mut self, sql: &str) -> Result<(), CommandError> {
        self.rows(sql).await.map(drop)
    }

    /// The same; gives the rows, their columns as text.
    async fn rows(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, CommandError> {
        self.answer(sql).await.map(|answer| answer.rows)
    }

    async fn answer(&mut self, sql: &str) -> Result<Answer, CommandError> {
        let mut bytes = BytesMut::new();
        messages::query(&mut bytes, sql);
        // As every simple query does.
        self.state.unnamed = None;
        tokio::time::timeout(OWN_COMMAND, async {
            self.endpoint.queue(&bytes);
            poll_fn(|cx| self.endpoint.poll_send(cx)).await?;
            let mut refused = None;
            let mut answer = Answer::default();
            loop {
                let (tag, payload) = self.next_message().await?;
                match tag {
                    tag::READY => break,
                    tag::DATA_ROW => answer.rows.push(columns(&payload).ok_or(CommandError::Unexpected)?),
                    tag::ERROR => refused = Some(CommandError::Refused(PgError::decode(&payload))),
                    _ => self.note_news(tag, &payload, &mut answer.notices),
                }
            }
            // What came in the same read would else wait there for the next one.
            while let Some((tag, _)) = self.received_message()?
                && matches!(tag, tag::NOTICE | tag::PARAMETER_STATUS | tag::NOTIFICATION)
            {
                let (tag, payload) = self.next_message().await?;
                self.note_news(tag, &payload, &mut answer.notices);
            }
            refused.map_or(Ok(answer), Err)
        })
        .await
        .map_err(|_| CommandError::Timeout)?
    }

    /// What may come at any time.
    fn note_news(&mut self, tag: u8, payload: &[u8], notices: &mut Vec<u8>) {
        match tag {
            tag::NOTICE => keep_notice(notices, payload),
            tag::PARAMETER_STATUS => self.state.reported(payload),
            tag::NOTIFICATION => {
                let mut frame = Vec::new();
                messages::framed(&mut frame, tag, &[payload]);
                self.notifications.push(frame);
            }
            _ => {}
        }
    }

    async fn next_message(&mut self) -> Result<(u8, Vec<u8>), CommandError> {
        loop {
            if let Some((tag, whole)) = self.received_message()? {
                let payload = self.endpoint.received()[HEADER..whole].to_vec();
                self.endpoint.take(|_| io::Result::Ok(whole))?;
                return Ok((tag, payload));
            }
            if poll_fn(|cx| self.endpoint.poll_fill(cx)).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// Type and length of the first message, if it has been received whole.
    fn received_message(&self) -> Result<Option<(u8, usize)>, CommandError> {
        let received = self.endpoint.received();
        let header = Header::read(received, OWN_ANSWER).map_err(|_| CommandError::Unexpected)?;
        let whole = |header: Header| (header.tag, HEADER + header.payload);
        Ok(header.map(whole).filter(|(_, length)| received.len() >= *length))
    }

    /// Whether an idle backend is still there. One that was told to go (restart, `pg_terminate_backend`) has something
    /// to read. No system call unless there is.
    pub fn is_alive(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match self.endpoint.poll_fill(&mut cx) {
                Poll::Pending => return self.passes_over_notices(),
                Poll::Ready(Ok(0) | Err(_)) => return false,
                Poll::Ready(Ok(_)) if self.endpoint.received().len() > OWN_ANSWER => return false,
                Poll::Ready(Ok(_)) => {}
            }
        }
    }

    /// Between two clients only notices and parameter changes (a reload of the instance's configuration) may come.
    fn passes_over_notices(&mut self) -> bool {
        while let Ok(Some(header)) = Header::read(self.endpoint.received(), OWN_ANSWER) {
            let whole = HEADER + header.payload;
            let received = self.endpoint.received();
            if received.len() < whole || !matches!(header.tag, tag::NOTICE | tag::PARAMETER_STATUS | tag::NOTIFICATION)
            {
                return false;
            }
            let payload = received[HEADER..whole].to_vec();
            if header.tag == tag::PARAMETER_STATUS {
                self.state.reported(&payload);
            }
            if self.endpoint.take(|_| io::Result::Ok(whole)).is_err() {
                return false;
            }
        }
        self.endpoint.received().is_empty()
    }

    /// Ends the connection and waits, for a bounded time, until the instance has ended it too. A query under way is
    /// cancelled first.
    pub async fn close(mut self, mid_query: bool) {
        let ended = async {
            if mid_query {
                self.cancel.send().await?;
            } else {
                let mut goodbye = BytesMut::new();
                messages::terminate(&mut goodbye);
                self.endpoint.queue(&goodbye);
                poll_fn(|cx| self.endpoint.poll_send(cx)).await?;
            }
            self.endpoint.end().await
        };
        if tokio::time::timeout(GOODBYE, ended).await.is_err() {
            tracing::warn!(
                instance = self.cancel.instance(),
                pid = self.cancel.pid(),
                "backend does not end; socket closed"
            );
        }
    }
}

/// The answer to a command of ours.
#[derive(Default)]
struct Answer {
    rows: Vec<Vec<Option<String>>>,
    /// Whole messages.
    notices: Vec<u8>,
}

/// Adds a NoticeResponse to those that a client will get, as long as they are not too many.
fn keep_notice(notices: &mut Vec<u8>, payload: &[u8]) {
    if notices.len() + payload.len() <= MAX_NOTICES {
        messages::framed(notices, tag::NOTICE, &[payload]);
    }
}

/// A DataRow's columns in text format.
fn columns(payload: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = payload.split_first_chunk::<2>()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, value) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        if length < 0 {
            columns.push(None);
            rest = value;
        } else {
            let (value, after) = value.split_at_checked(length as usize)?;
            columns.push(Some(String::from_utf8_lossy(value).into_owned()));
            rest = after;
        }
    }
    Some(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_within_their_bounds() {
        let row = b"\0\x02\0\0\0\x02ab\xff\xff\xff\xff";
        assert_eq!(columns(row).unwrap(), [Some("ab".to_owned()), None]);
        assert_eq!(columns(&row[..8]), None);
        assert_eq!(columns(b"\0\x01\x7f\xff\xff\xff"), None);
    }
}
