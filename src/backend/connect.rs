//! From an address to a backend that has proved what it is. The caller's list of steps is [`connect`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};

use super::{Backend, BackendState, CancelKey, CommandError, ConnectError, Settings, keep_notice};
use crate::auth::{ClientSecret, Md5Verifier, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramClient, ScramKeys};
use crate::config::Secret;
use crate::net::instance_tls::channel_binding;
use crate::net::stream::{MessageStream, ReadError, Stream};
use crate::net::{Endpoint, Place, dial};
use crate::wire::tag::backend as tag;
use crate::wire::{PgError, ReadFault, StartupParameters, messages, sqlstate};

/// Messages of a login are short; an error may carry some text.
const MAX_MESSAGE: usize = 1 << 20;
/// So often is the identity asked for where the client's own statement_timeout may stop the answer.
const IDENTIFY_ATTEMPTS: u32 = 5;

/// With what a backend logs in. Not shown by Debug.
#[derive(Clone, PartialEq)]
pub enum Login {
    /// The keys that the client proved.
    Keys(ScramKeys),
    Md5(Md5Verifier),
    Password(Secret),
    /// The instance trusts us.
    Nothing,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Login::Keys(_) => "keys",
            Login::Md5(_) => "md5",
            Login::Password(_) => "password",
            Login::Nothing => "nothing",
        })
    }
}

/// Where to connect, and as whom.
#[derive(Clone)]
pub struct Target {
    pub place: Arc<Place>,
    pub database: String,
    pub role: String,
    pub login: Login,
    /// Of the one client that will have the backend to itself.
    pub startup: Option<Arc<StartupParameters>>,
    pub timeout: Duration,
}

/// Connects, logs in and checks the identity. The backend is used on the calling thread from then on.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(target: &Target) -> Result<Backend, ConnectError> {
    let steps = async {
        let stream = dial(&target.place).await?;
        let messages = startup(stream, target).await?;
        let messages = authenticate(messages, target).await?;
        let greeted = greeting(messages, target).await?;
        let mut backend = identify(greeted, target).await?;
        backend.endpoint.settle(false).map_err(|error| target.io(error))?;
        Ok(backend)
    };
    tokio::time::timeout(target.timeout, steps)
        .await
        .map_err(|_| ConnectError::Timeout { instance: target.instance(), seconds: target.timeout.as_secs() })?
}

impl Target {
    fn instance(&self) -> String {
        self.place.instance.name.clone()
    }

    fn io(&self, source: io::Error) -> ConnectError {
        ConnectError::Io { instance: self.instance(), source }
    }

    fn read(&self, error: ReadError) -> ConnectError {
        match error {
            ReadError::Io(source) => self.io(source),
            ReadError::Closed => self.io(io::ErrorKind::UnexpectedEof.into()),
            ReadError::Frame(fault) => self.protocol(ReadFault::Frame(fault)),
        }
    }

    fn protocol(&self, source: ReadFault) -> ConnectError {
        ConnectError::Protocol { instance: self.instance(), source }
    }

    /// `logged_in`: what is refused is the client's wish, not our login.
    fn refused(&self, payload: &[u8], logged_in: bool) -> ConnectError {
        let error = PgError::decode(payload);
        let words = (logged_in || !error.code.starts_with("28")).then(|| payload.to_vec());
        self.refusal(error, words)
    }

    fn refusal(&self, error: PgError, words: Option<Vec<u8>>) -> ConnectError {
        let (role, database) = (self.role.clone(), self.database.clone());
        ConnectError::Refused { instance: self.instance(), role, database, error, words }
    }

    fn is_walsender(&self) -> bool {
        self.startup.as_ref().is_some_and(|startup| startup.is_walsender())
    }

    fn login(&self, reason: &'static str) -> ConnectError {
        ConnectError::Login { instance: self.instance(), role: self.role.clone(), reason }
    }
}

async fn startup(stream: Stream, target: &Target) -> Result<MessageStream, ConnectError> {
    let none = StartupParameters::default();
    let parameters = target.startup.as_deref().unwrap_or(&none);
    let packet = messages::startup(&target.role, &target.database, parameters)
        .ok_or_else(|| target.login("the startup parameters are too long"))?;
    let mut stream = MessageStream::new(stream);
    stream.write(&packet).await.map_err(|error| target.io(error))?;
    Ok(stream)
}

/// PostgreSQL manual, 55.2.1 and 55.3.
async fn authenticate(mut stream: MessageStream, target: &Target) -> Result<MessageStream, ConnectError> {
    loop {
        let (method, mut payload) = authentication_request(&mut stream, target).await?;
        let mut answer = BytesMut::new();
        match method {
            0 => return Ok(stream),
            3 => match &target.login {
                Login::Password(password) if stream.stream().is_tls() => {
                    messages::password(&mut answer, password.expose().as_bytes());
                }
                Login::Password(_) => return Err(target.login("asks for a cleartext password without TLS")),
                _ => return Err(target.login("asks for a cleartext password, and we have none")),
            },
            5 if payload.len() >= 4 => {
                let salt = payload.get_u32().to_be_bytes();
                let response = match &target.login {
                    Login::Md5(verifier) => verifier.response(salt),
                    Login::Password(password) => {
                        Md5Verifier::from_password(&target.role, password.expose().as_bytes()).response(salt)
                    }
                    _ => return Err(target.login("asks for an md5 password, and we have SCRAM keys only")),
                };
                messages::password(&mut answer, response.as_bytes());
            }
            10 => {
                scram(&mut stream, &payload, target).await?;
                continue;
            }
            _ => return Err(target.login("asks for an authentication method that we do not have")),
        }
        stream.write(&answer).await.map_err(|error| target.io(error))?;
    }
}

/// The next authentication request: its code and what follows it.
async fn authentication_request(stream: &mut MessageStream, target: &Target) -> Result<(u32, BytesMut), ConnectError> {
    loop {
        match stream.read(MAX_MESSAGE).await.map_err(|error| target.read(error))? {
            (tag::AUTHENTICATION, mut payload) if payload.len() >= 4 => return Ok((payload.get_u32(), payload)),
            (tag::ERROR, payload) => return Err(target.refused(&payload, false)),
            (tag::NOTICE, _) => {}
            (other, _) => return Err(target.protocol(ReadFault::Unexpected(other))),
        }
    }
}

async fn scram(stream: &mut MessageStream, mechanisms: &[u8], target: &Target) -> Result<(), ConnectError> {
    let offered = |name: &str| mechanisms.split(|byte| *byte == 0).any(|mechanism| mechanism == name.as_bytes());
    if !offered(SCRAM_SHA_256) {
        return Err(target.login("offers no SASL mechanism that we have"));
    }
    let secret = match &target.login {
        Login::Keys(keys) => ClientSecret::Keys(keys.clone()),
        Login::Password(password) => ClientSecret::password(password.expose()),
        Login::Md5(_) => return Err(target.login("asks for SCRAM, and the record has an md5 verifier")),
        Login::Nothing => return Err(target.login("asks for SCRAM, and the record has no password")),
    };
    let binding = match stream.stream() {
        Stream::Connected(tls) => channel_binding(tls.get_ref().1),
        _ => None,
    };
    let failed = |source| ConnectError::Scram { instance: target.instance(), role: target.role.clone(), source };
    let client = ScramClient::new(secret, binding, offered(SCRAM_SHA_256_PLUS));
    let (mechanism, first) = client.first();
    let mut answer = BytesMut::new();
    messages::sasl_initial(&mut answer, mechanism, &first);
    stream.write(&answer).await.map_err(|error| target.io(error))?;

    let (_, server_first) = authentication_request(stream, target).await?;
    let (client, last) = client.server_first(&server_first).map_err(failed)?;
    answer.clear();
    messages::sasl_response(&mut answer, &last);
    stream.write(&answer).await.map_err(|error| target.io(error))?;

    let (_, server_final) = authentication_request(stream, target).await?;
    client.server_final(&server_final).map_err(failed)?;
    Ok(())
}

/// Reads on to the first ReadyForQuery.
async fn greeting(mut stream: MessageStream, target: &Target) -> Result<Backend, ConnectError> {
    let mut state = BackendState::default();
    let mut notices = Vec::new();
    let mut key = None;
    loop {
        let (tag, payload) = stream.read(MAX_MESSAGE).await.map_err(|error| target.read(error))?;
        match tag {
            tag::PARAMETER_STATUS => state.reported(&payload),
            tag::BACKEND_KEY_DATA if payload.len() >= 8 => {
                let (pid, secret) = payload.split_first_chunk::<4>().expect("eight bytes or more");
                key = Some(CancelKey::new(target.place.clone(), i32::from_be_bytes(*pid), secret.to_vec()));
            }
            tag::READY => break,
            tag::ERROR => return Err(target.refused(&payload, true)),
            tag::NOTICE => keep_notice(&mut notices, &payload),
            other => return Err(target.protocol(ReadFault::Unexpected(other))),
        }
    }
    let (stream, received) = stream.into_parts();
    Ok(Backend {
        endpoint: Endpoint::new(stream, received.to_vec()),
        state,
        cancel: Arc::new(key.unwrap_or_else(|| CancelKey::new(target.place.clone(), 0, Vec::new()))),
        notices: notices.into(),
        in_force: Arc::default(),
        baseline: Settings::default(),
        last_session: 0,
        notifications: Vec::new(),
    })
}

/// Compares the cluster and the database with the record.
async fn identify(mut backend: Backend, target: &Target) -> Result<Backend, ConnectError> {
    let walsender = target.is_walsender();
    let sql = match walsender {
        false => {
            "SELECT system_identifier, pg_catalog.current_database(), pg_catalog.current_setting('role'), session_user \
             FROM pg_catalog.pg_control_system()"
        }
        true => "IDENTIFY_SYSTEM",
    };
    let mut attempts = 0;
    let rows = loop {
        attempts += 1;
        match backend.rows(sql).await {
            Err(CommandError::Refused(error))
                if error.code == sqlstate::QUERY_CANCELED && attempts < IDENTIFY_ATTEMPTS => {}
            answer => break answer,
        }
    };
    let rows = rows.map_err(|error| match error {
        CommandError::Refused(error) => target.refusal(error, None),
        CommandError::Io(source) => target.io(source),
        _ => target.login("does not answer the question for its identity"),
    })?;
    let row = rows.into_iter().next().unwrap_or_default();
    let database = row.get(if walsender { 3 } else { 1 }).cloned().flatten();
    if let [_, _, Some(role), Some(user)] = &row[..]
        && !walsender
    {
        backend.baseline.set("role", role);
        backend.baseline.set("session_authorization", user);
    }
    let found = row.first().cloned().flatten().and_then(|text| text.parse::<u64>().ok());
    let Some(found) = found else { return Err(target.login("does not tell its system_identifier")) };
    let expected = *target.place.identity.get_or_init(|| found);
    let mismatch = |what, found: String, expected: String| ConnectError::Identity {
        instance: target.instance(),
        what,
        found,
        expected,
    };
    if found != expected {
        return Err(mismatch("system_identifier", found.to_string(), expected.to_string()));
    }
    match database {
        Some(name) if name != target.database => Err(mismatch("database", name, target.database.clone())),
        _ => Ok(backend),
    }
}
