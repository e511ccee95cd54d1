//! Why a connection did not become a session: what the client is told, what the log and the metrics say.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Client, Context, Peer};
use crate::metrics::{AuthMethod, AuthResult, ErrorSource, ProtocolViolation, Refusal};
use crate::net::stream::{ReadError, Socket};
use crate::wire::tag::backend;
use crate::wire::{PgError, StartupError, messages, sqlstate};

/// How long the last words to a client that is turned away may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Rejection {
    tell: Option<Box<PgError>>,
    /// The instance's own words for it, the payload of an ErrorResponse: told instead.
    words: Option<Vec<u8>>,
    count: Count,
    why: String,
}

#[derive(Debug, Clone, Copy)]
enum Count {
    Refused(Refusal),
    Violation(ProtocolViolation),
    Auth(AuthMethod, AuthResult),
}

impl Rejection {
    /// Why, for operators.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Turned away before the login began.
    pub fn refused(refusal: Refusal, tell: PgError) -> Self {
        let why = tell.message.clone();
        Rejection { tell: Some(Box::new(tell)), words: None, count: Count::Refused(refusal), why }
    }

    /// The client broke the protocol.
    pub fn violation(kind: ProtocolViolation, why: impl Into<String>) -> Self {
        let why = why.into();
        let tell = Some(Box::new(PgError::fatal(sqlstate::PROTOCOL_VIOLATION, why.clone())));
        Rejection { tell, words: None, count: Count::Violation(kind), why }
    }

    /// The client broke the protocol in a way that leaves no way to tell it.
    pub fn silent_violation(kind: ProtocolViolation, why: impl Into<String>) -> Self {
        Rejection { tell: None, words: None, count: Count::Violation(kind), why: why.into() }
    }

    /// The login was refused: `why` is for the log alone.
    pub fn login(method: AuthMethod, result: AuthResult, tell: PgError, why: impl Into<String>) -> Self {
        Rejection { tell: Some(Box::new(tell)), words: None, count: Count::Auth(method, result), why: why.into() }
    }

    /// Unknown tenant, unknown role, wrong password and everything that must look like them.
    pub fn password(method: AuthMethod, result: AuthResult, user: &str, why: impl Into<String>) -> Self {
        let tell =
            PgError::fatal(sqlstate::INVALID_PASSWORD, format!("password authentication failed for user \"{user}\""));
        Self::login(method, result, tell, why)
    }

    /// The client is told this in the instance's own words, where there are some.
    pub fn in_the_words(mut self, words: Option<&[u8]>) -> Self {
        self.words = words.map(<[u8]>::to_vec);
        self
    }

    /// The cap on clients is reached.
    pub fn full() -> Self {
        Self::refused(Refusal::Cap, too_many_clients())
    }

    pub fn timeout() -> Self {
        let tell = PgError::fatal(sqlstate::INVALID_AUTHORIZATION, "login timeout");
        let why = "login timeout".to_owned();
        Rejection {
            tell: Some(Box::new(tell)),
            words: None,
            count: Count::Auth(AuthMethod::None, AuthResult::Timeout),
            why,
        }
    }

    pub fn gone(error: &io::Error) -> Self {
        let count = Count::Auth(AuthMethod::None, AuthResult::Aborted);
        Rejection { tell: None, words: None, count, why: format!("the client is gone: {error}") }
    }

    /// Sends the error in the protocol's own form and ends the connection, in a bounded time.
    pub async fn tell(&self, client: &mut Client) {
        let Some(error) = &self.tell else { return };
        match &self.words {
            Some(words) => messages::framed(&mut client.answers, backend::ERROR, &[words]),
            None => client.answers.extend_from_slice(&error.encode()),
        }
        let answers = std::mem::take(&mut client.answers);
        let _ = tokio::time::timeout(LAST_WORDS, async {
            client.stream.write(&answers).await?;
            client.stream.end().await
        })
        .await;
    }

    /// The same on a bare socket.
    pub async fn tell_plain(&self, socket: &mut Socket) {
        let Some(error) = &self.tell else { return };
        let _ = tokio::time::timeout(LAST_WORDS, last_words(socket, error)).await;
    }

    /// Into the log and the metrics.
    pub fn note(&self, peer: Peer, context: &Context) {
        match self.count {
            Count::Refused(refusal) => context.metrics.connections_refused.inc(refusal),
            Count::Violation(kind) => context.metrics.protocol_violations.inc(kind),
            Count::Auth(method, result) => context.metrics.auth(method, result),
        }
        if let Some(error) = &self.tell {
            let source = if self.words.is_some() { ErrorSource::Backend } else { ErrorSource::Proxy };
            context.metrics.error(source, &error.code);
        }
        tracing::info!(client = %peer, reason = self.why, "connection refused");
    }
}

impl From<io::Error> for Rejection {
    fn from(error: io::Error) -> Self {
        Rejection::gone(&error)
    }
}

impl From<StartupError> for Rejection {
    fn from(error: StartupError) -> Self {
        let (kind, code) = match error {
            StartupError::Length => (ProtocolViolation::StartupLength, sqlstate::PROTOCOL_VIOLATION),
            // As PostgreSQL reports it: the message is sound, we just do not speak that.
            StartupError::Version(..) => (ProtocolViolation::StartupMalformed, sqlstate::FEATURE_NOT_SUPPORTED),
            _ => (ProtocolViolation::StartupMalformed, sqlstate::PROTOCOL_VIOLATION),
        };
        let why = error.to_string();
        Rejection {
            tell: Some(Box::new(PgError::fatal(code, why.clone()))),
            words: None,
            count: Count::Violation(kind),
            why,
        }
    }
}

impl From<ReadError> for Rejection {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => Rejection::gone(&error),
            ReadError::Closed => Rejection::gone(&io::ErrorKind::UnexpectedEof.into()),
            ReadError::Frame(fault) => Rejection::violation(ProtocolViolation::MessageLength, fault.to_string()),
        }
    }
}

/// Ends a connection that is told nothing, a cancel request's.
pub(super) async fn close(client: &mut Client) {
    let _ = tokio::time::timeout(LAST_WORDS, client.stream.end()).await;
}

/// What a client beyond the cap is told.
pub fn too_many_clients() -> PgError {
    PgError::fatal(sqlstate::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
        .with_hint("Try again later; limits.max_clients is the proxy's bound.")
}

/// Tells a client that there is no room for it, whatever it may have wanted.
pub async fn turn_away(mut socket: Socket, refusal: Refusal, tell: PgError, context: &Context) {
    context.metrics.connections_refused.inc(refusal);
    context.metrics.error(ErrorSource::Proxy, &tell.code);
    let _ = tokio::time::timeout(LAST_WORDS, async {
        // An SSLRequest or a StartupMessage: drivers take an error for an answer to both.
        let _ = socket.read(&mut [0; 1024]).await;
        last_words(&mut socket, &tell).await;
    })
    .await;
}

async fn last_words(socket: &mut Socket, error: &PgError) {
    if socket.write_all(&error.encode()).await.is_ok() && socket.shutdown().await.is_ok() {
        let mut rest = [0; 1024];
        while socket.read(&mut rest).await.is_ok_and(|read| read > 0) {}
    }
}
