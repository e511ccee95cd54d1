//! A console's session: simple and extended protocol (PostgreSQL manual, 55.2) around commands.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::response::NoticeResponse;

use super::command::{self, Command};
use super::reports;
use super::table::{self, Columns, Format, Formats, Row};
use super::{Proxy, act};
use crate::config::Access;
use crate::drain::Phase;
use crate::net::stream::{MessageStream, ReadError};
use crate::sessions::ClientPlace;
use crate::tenant::explain;
use crate::wire::tag::{backend, frontend};
use crate::wire::{PgError, cstr, messages, sqlstate};

/// Longest message, in bytes: a command is short.
const MAX_MESSAGE: usize = 64 * 1024;
/// Statements and portals that one client may hold, each.
const MAX_HELD: usize = 100;
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The columns of EXPLAIN ROUTE.
const ROUTE: Columns = &[("what", table::Kind::Text), ("value", table::Kind::Text)];

/// A client of the console that has proved itself; its place is given back when it goes.
#[derive(Debug)]
pub struct Operator {
    pub role: String,
    place: ClientPlace,
}

impl Operator {
    /// None when the console has as many clients as it may.
    pub fn new(role: String, proxy: &dyn Proxy) -> Option<Operator> {
        let place = proxy.view().console.places.take()?;
        Some(Operator { role, place })
    }
}

/// AuthenticationOk is in `answers`; what follows it, up to ReadyForQuery, as PgBouncer sends it.
fn greet(answers: &mut BytesMut, access: Access) {
    let version = concat!(env!("CARGO_PKG_VERSION"), "/pgtenant");
    let superuser = if access == Access::Admin { "on" } else { "off" };
    for (name, value) in [
        ("server_version", version),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", superuser),
    ] {
        messages::parameter_status(answers, name.as_bytes(), value.as_bytes());
    }
    messages::ready_idle(answers);
}

/// Why a console's session ended.
enum End {
    Terminated,
    Gone,
    Told(PgError),
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> Self {
        End::Gone
    }
}

/// Serves a client of the console to its end; `answers` are what the login has still to say.
pub async fn serve(mut stream: MessageStream, operator: Operator, mut answers: BytesMut, proxy: Arc<dyn Proxy>) {
    let Some(role) = proxy.view().console.role(&operator.role) else { return };
    greet(&mut answers, role.access);
    let mut session = Session {
        role: operator.role,
        proxy: proxy.clone(),
        out: answers,
        status: b'I',
        skipping: false,
        statements: HashMap::new(),
        portals: HashMap::new(),
    };
    tracing::info!(operator = session.role, "console opened");
    let end = tokio::select! {
        end = session.run(&mut stream) => end,
        () = ended(&*proxy) => {
            End::Told(PgError::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection due to administrator command"))
        }
    };
    if let End::Told(error) = end {
        let _ = tokio::time::timeout(LAST_WORDS, async {
            stream.write(&error.encode()).await?;
            stream.end().await
        })
        .await;
    }
    tracing::info!(operator = session.role, "console closed");
    drop(operator.place);
}

/// What a command gives; nothing once its client has left, who would wait for ever otherwise in a PAUSE.
async fn while_there<T>(stream: &mut MessageStream, result: impl Future<Output = T>) -> Result<T, End> {
    tokio::select! {
        biased;
        result = result => Ok(result),
        () = stream.gone(MAX_MESSAGE) => Err(End::Gone),
    }
}

async fn ended(proxy: &dyn Proxy) {
    proxy.view().drain.reached(Phase::Ended).await;
}

struct Session {
    role: String,
    proxy: Arc<dyn Proxy>,
    /// Goes out before the next read.
    out: BytesMut,
    /// As ReadyForQuery has it. Nothing is transactional here, but drivers that send BEGIN expect to be in one.
    status: u8,
    /// After an error in the extended protocol, up to the next Sync.
    skipping: bool,
    statements: HashMap<Vec<u8>, Option<Command>>,
    portals: HashMap<Vec<u8>, Portal>,
}

/// A statement that was bound.
struct Portal {
    command: Option<Command>,
    formats: Formats,
    /// What is left of its answer, once it has run.
    answer: Option<Answer>,
}

/// What a command gives.
struct Answer {
    columns: Option<Columns>,
    rows: std::vec::IntoIter<Row>,
    tag: &'static str,
    notice: Option<String>,
}

impl Answer {
    fn tag(tag: &'static str) -> Self {
        Answer { columns: None, rows: Vec::new().into_iter(), tag, notice: None }
    }

    fn table(columns: Columns, rows: Vec<Row>, tag: &'static str) -> Self {
        Answer { columns: Some(columns), rows: rows.into_iter(), tag, notice: None }
    }
}

impl Session {
    async fn run(&mut self, stream: &mut MessageStream) -> End {
        loop {
            if let Err(end) = self.next(stream).await {
                return end;
            }
        }
    }

    async fn next(&mut self, stream: &mut MessageStream) -> Result<(), End> {
        if !self.out.is_empty() {
            let out = self.out.split();
            stream.write(&out).await?;
        }
        let (tag, payload) = stream.read(MAX_MESSAGE).await.map_err(|error| match error {
            ReadError::Frame(fault) => End::Told(PgError::fatal(sqlstate::PROTOCOL_VIOLATION, fault.to_string())),
            ReadError::Closed | ReadError::Io(_) => End::Gone,
        })?;
        match tag {
            frontend::TERMINATE => return Err(End::Terminated),
            frontend::QUERY => {
                let result = while_there(stream, self.query(&payload)).await?;
                self.tell(result)?;
                self.ready();
            }
            frontend::SYNC => {
                self.skipping = false;
                self.portals.clear();
                self.ready();
            }
            frontend::FLUSH => {}
            _ if self.skipping => {}
            _ => {
                let result = while_there(stream, self.extended(tag, &payload)).await?;
                self.skipping = result.is_err();
                self.tell(result)?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, result: Result<(), PgError>) -> Result<(), End> {
        match result {
            Err(error) if error.severity == crate::wire::Severity::Fatal => Err(End::Told(error)),
            Err(error) => {
                self.out.extend_from_slice(&error.encode());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn ready(&mut self) {
        messages::framed(&mut self.out, backend::READY, &[&[self.status]]);
    }

    async fn query(&mut self, payload: &[u8]) -> Result<(), PgError> {
        let (text, _) = text(payload)?;
        let commands = command::parse(text)?;
        if commands.is_empty() {
            messages::framed(&mut self.out, backend::EMPTY_QUERY, &[]);
        }
        for command in commands {
            let mut answer = self.carry_out(command).await?;
            let formats = Formats::default();
            if let Some(columns) = answer.columns {
                table::row_description(&mut self.out, columns, &formats);
            }
            self.give(&mut answer, &formats, usize::MAX);
        }
        Ok(())
    }

    async fn extended(&mut self, tag: u8, payload: &[u8]) -> Result<(), PgError> {
        match tag {
            frontend::PARSE => self.parse(payload),
            frontend::BIND => self.bind(payload),
            frontend::DESCRIBE => self.describe(payload),
            frontend::EXECUTE => self.execute(payload).await,
            frontend::CLOSE => {
                let (kind, name) = payload.split_first().ok_or_else(malformed)?;
                let (name, _) = cstr(name).ok_or_else(malformed)?;
                match kind {
                    b'S' => _ = self.statements.remove(name),
                    _ => _ = self.portals.remove(name),
                }
                messages::framed(&mut self.out, backend::CLOSE_COMPLETE, &[]);
                Ok(())
            }
            other => {
                let text = format!("the console takes no message of type \"{}\"", char::from(other));
                Err(PgError::fatal(sqlstate::PROTOCOL_VIOLATION, text))
            }
        }
    }

    fn parse(&mut self, payload: &[u8]) -> Result<(), PgError> {
        let (name, rest) = cstr(payload).ok_or_else(malformed)?;
        let mut commands = command::parse(text(rest)?.0)?;
        if commands.len() > 1 {
            return Err(PgError::error("42601", "cannot insert multiple commands into a prepared statement"));
        }
        if !name.is_empty() && self.statements.contains_key(name) {
            let text = format!("prepared statement \"{}\" already exists", String::from_utf8_lossy(name));
            return Err(PgError::error("42P05", text));
        }
        bounded(self.statements.len())?;
        self.statements.insert(name.to_vec(), commands.pop());
        messages::framed(&mut self.out, backend::PARSE_COMPLETE, &[]);
        Ok(())
    }

    fn bind(&mut self, payload: &[u8]) -> Result<(), PgError> {
        let (portal, rest) = cstr(payload).ok_or_else(malformed)?;
        let (statement, mut rest) = cstr(rest).ok_or_else(malformed)?;
        let command = self.statements.get(statement).ok_or_else(|| no_statement(statement))?.clone();
        for _ in 0..count(&mut rest)? {
            count(&mut rest)?;
        }
        if count(&mut rest)? > 0 {
            return Err(PgError::error(sqlstate::PROTOCOL_VIOLATION, "the console's commands take no parameters"));
        }
        let mut formats = Formats::default();
        for _ in 0..count(&mut rest)? {
            formats.0.push(if count(&mut rest)? == 1 { Format::Binary } else { Format::Text });
        }
        bounded(self.portals.len())?;
        self.portals.insert(portal.to_vec(), Portal { command, formats, answer: None });
        messages::framed(&mut self.out, backend::BIND_COMPLETE, &[]);
        Ok(())
    }

    fn describe(&mut self, payload: &[u8]) -> Result<(), PgError> {
        let (kind, name) = payload.split_first().ok_or_else(malformed)?;
        let (name, _) = cstr(name).ok_or_else(malformed)?;
        let none = Formats::default();
        let (command, formats) = match kind {
            b'S' => {
                let command = self.statements.get(name).ok_or_else(|| no_statement(name))?;
                messages::framed(&mut self.out, backend::PARAMETER_DESCRIPTION, &[&[0, 0]]);
                (command, &none)
            }
            _ => {
                let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
                (&portal.command, &portal.formats)
            }
        };
        match command.as_ref().and_then(Command::columns) {
            Some(columns) => table::row_description(&mut self.out, columns, formats),
            None => messages::framed(&mut self.out, backend::NO_DATA, &[]),
        }
        Ok(())
    }

    async fn execute(&mut self, payload: &[u8]) -> Result<(), PgError> {
        let (name, mut most) = cstr(payload).ok_or_else(malformed)?;
        if most.remaining() < 4 {
            return Err(malformed());
        }
        let most = match most.get_i32() {
            some @ 1.. => some as usize,
            _ => usize::MAX,
        };
        let mut portal = self.portals.remove(name).ok_or_else(|| no_portal(name))?;
        let Some(command) = portal.command.clone() else {
            messages::framed(&mut self.out, backend::EMPTY_QUERY, &[]);
            return Ok(());
        };
        let mut answer = match portal.answer.take() {
            Some(rest) => rest,
            None => self.carry_out(command).await?,
        };
        self.give(&mut answer, &portal.formats, most);
        portal.answer = Some(answer);
        self.portals.insert(name.to_vec(), portal);
        Ok(())
    }

    async fn carry_out(&mut self, command: Command) -> Result<Answer, PgError> {
        // The role may have been taken away meanwhile.
        let Some(role) = self.proxy.view().console.role(&self.role) else {
            let text = format!("role \"{}\" may not use the console any more", self.role);
            return Err(PgError::fatal(sqlstate::INVALID_AUTHORIZATION, text));
        };
        match command {
            Command::Show(report) => {
                let proxy = self.proxy.clone();
                // Thousands of rows take a while: not on a thread that serves others.
                let rows = tokio::task::spawn_blocking(move || report.rows(proxy.view())).await;
                let rows = rows.map_err(|_| PgError::error("XX000", format!("SHOW {} failed", report.name)))?;
                Ok(Answer::table(report.columns, rows, "SHOW"))
            }
            Command::Help => Ok(Answer { notice: Some(reports::help()), ..Answer::tag("SHOW") }),
            Command::ExplainRoute(route) => {
                let config = self.proxy.view().config.load_full();
                let pairs = explain::explain(&route.hints, &route.options, &config)
                    .map_err(|error| PgError::error("22023", error.to_string()))?;
                let rows = pairs.into_iter().map(|(what, value)| table::row![what, value]).collect();
                Ok(Answer::table(ROUTE, rows, "EXPLAIN"))
            }
            Command::Set => Ok(Answer::tag("SET")),
            Command::Begin => {
                self.status = b'T';
                Ok(Answer::tag("BEGIN"))
            }
            Command::Commit => {
                self.status = b'I';
                Ok(Answer::tag("COMMIT"))
            }
            Command::Rollback => {
                self.status = b'I';
                Ok(Answer::tag("ROLLBACK"))
            }
            Command::Act(_) if role.access != Access::Admin => {
                Err(PgError::error("42501", "admin access needed").with_hint("This role may only SHOW and EXPLAIN."))
            }
            Command::Act(act) => act::run(act, &self.role, self.proxy.view()).await.map(Answer::tag),
        }
    }

    /// At most so many rows; then CommandComplete, or PortalSuspended where there are more.
    fn give(&mut self, answer: &mut Answer, formats: &Formats, most: usize) {
        if let Some(columns) = answer.columns {
            for row in answer.rows.by_ref().take(most) {
                table::data_row(&mut self.out, columns, &row, formats);
            }
        }
        if let Some(text) = answer.notice.take() {
            notice(&mut self.out, text);
        }
        match answer.rows.len() {
            0 => messages::framed(&mut self.out, backend::COMMAND_COMPLETE, &[answer.tag.as_bytes(), b"\0"]),
            _ => messages::framed(&mut self.out, backend::PORTAL_SUSPENDED, &[]),
        }
    }
}

impl Command {
    /// None for those that give no rows.
    fn columns(&self) -> Option<Columns> {
        match self {
            Command::Show(report) => Some(report.columns),
            Command::ExplainRoute(_) => Some(ROUTE),
            _ => None,
        }
    }
}

fn notice(out: &mut BytesMut, text: String) {
    let fields = [(b'S', "NOTICE"), (b'V', "NOTICE"), (b'C', "00000")].map(|(field, text)| (field, text.to_owned()));
    let fields = fields.into_iter().chain([(b'M', text)]).collect();
    NoticeResponse::new(fields).encode(out).expect("a text of ours stays below pgwire's 2 GiB bound");
}

fn text(bytes: &[u8]) -> Result<(&str, &[u8]), PgError> {
    let (text, rest) = cstr(bytes).ok_or_else(malformed)?;
    let text = str::from_utf8(text).map_err(|_| PgError::error("22021", "invalid byte sequence for encoding UTF8"))?;
    Ok((text, rest))
}

/// Takes an Int16.
fn count(bytes: &mut &[u8]) -> Result<u16, PgError> {
    let (number, rest) = bytes.split_first_chunk::<2>().ok_or_else(malformed)?;
    *bytes = rest;
    Ok(u16::from_be_bytes(*number))
}

fn bounded(held: usize) -> Result<(), PgError> {
    if held < MAX_HELD {
        return Ok(());
    }
    Err(PgError::error("53000", format!("more than {MAX_HELD} statements or portals")).with_hint("Close some."))
}

fn malformed() -> PgError {
    PgError::fatal(sqlstate::PROTOCOL_VIOLATION, "malformed message")
}

fn no_statement(name: &[u8]) -> PgError {
    PgError::error("26000", format!("prepared statement \"{}\" does not exist", String::from_utf8_lossy(name)))
}

fn no_portal(name: &[u8]) -> PgError {
    PgError::error("34000", format!("portal \"{}\" does not exist", String::from_utf8_lossy(name)))
}
