//! What the console is asked: text into statements. Pure.

use std::time::Duration;

use super::Shutdown;
use super::reports::{self, Report};
use super::standing::Change;
use crate::config::{TenantState, duration};
use crate::tenant::route::Hints;
use crate::wire::{PgError, StartupOptions};

const SYNTAX_ERROR: &str = "42601";

/// Session parameters that drivers set when they connect: taken, without effect.
const PARAMETERS: [&str; 11] = [
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "extra_float_digits",
    "intervalstyle",
    "search_path",
    "standard_conforming_strings",
    "statement_timeout",
    "timezone",
];

/// One statement.
#[derive(Debug, Clone)]
pub(super) enum Command {
    Show(&'static Report),
    Help,
    ExplainRoute(Route),
    /// SET of a session parameter.
    Set,
    Begin,
    Commit,
    Rollback,
    Act(Act),
}

/// A connection's hints, and its options without the tenant.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub hints: Hints,
    pub options: StartupOptions,
}

/// What changes something: for admins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    Reload,
    Shutdown(Shutdown),
    /// Of tenants' states.
    Change(Change),
    KillClient(u32),
    /// None: all tenants.
    Reconnect(Option<String>),
    /// SET of something that is no session parameter; no value is its default.
    Set {
        name: String,
        value: Option<String>,
    },
}

/// A word, or a character of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// Unquoted.
    Word(String),
    Quoted(String),
    Sign(char),
}

/// The statements of a text, empty ones left out.
///
/// # Errors
/// What PostgreSQL's clients are told of text that is no statement.
pub(super) fn parse(text: &str) -> Result<Vec<Command>, PgError> {
    let tokens = tokens(text)?;
    tokens.split(|token| *token == Token::Sign(';')).filter(|tokens| !tokens.is_empty()).map(statement).collect()
}

fn statement(tokens: &[Token]) -> Result<Command, PgError> {
    let words: Vec<String> = tokens.iter().map(Token::lower).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["show", "help"] | ["show"] => Ok(Command::Help),
        ["show", ..] => show(&words[1..]),
        ["explain", "route", ..] => explain_route(&tokens[2..]),
        ["set", ..] => set(&words[1..], &tokens[1..]),
        ["begin", ..] | ["start", "transaction", ..] => Ok(Command::Begin),
        ["commit", ..] | ["end", ..] => Ok(Command::Commit),
        ["rollback", ..] | ["abort", ..] => Ok(Command::Rollback),
        _ => act(&words, tokens).map(Command::Act),
    }
}

fn show(words: &[&str]) -> Result<Command, PgError> {
    // `SHOW DNS HOSTS` is not PgBouncer's, but what people type.
    let name = words.join("_");
    let report = reports::find(&name);
    report.map(Command::Show).ok_or_else(|| {
        PgError::error(SYNTAX_ERROR, format!("unrecognized parameter \"{name}\"")).with_hint("See SHOW HELP.")
    })
}

fn set(words: &[&str], tokens: &[Token]) -> Result<Command, PgError> {
    let name = match words {
        ["session" | "local", name, ..] | [name, ..] => *name,
        [] => return Err(unknown("SET")),
    };
    if PARAMETERS.contains(&name) || name == "time" {
        return Ok(Command::Set);
    }
    let value: String = match words {
        [_, "=" | "to", _, ..] => tokens[2..].iter().map(Token::text).collect(),
        _ => {
            let hint = "For example: SET pool.queue_timeout = '10s'. SHOW CONFIG has the names.";
            return Err(PgError::error(SYNTAX_ERROR, "SET takes a name and a value").with_hint(hint));
        }
    };
    let is_default = matches!(&tokens[2..], [Token::Word(word)] if word.eq_ignore_ascii_case("default"));
    Ok(Command::Act(Act::Set { name: name.to_owned(), value: (!is_default).then_some(value) }))
}

fn act(words: &[&str], tokens: &[Token]) -> Result<Act, PgError> {
    let tenant = || tokens[1].text();
    if let Some(change) = change(words, tokens)? {
        return Ok(Act::Change(change));
    }
    match words {
        ["reload"] => Ok(Act::Reload),
        ["shutdown"] => Ok(Act::Shutdown(Shutdown::Now)),
        ["shutdown", "wait_for_servers"] => Ok(Act::Shutdown(Shutdown::Transactions)),
        ["shutdown", "wait_for_clients"] => Ok(Act::Shutdown(Shutdown::Clients)),
        ["kill_client", id] => id.parse().map(Act::KillClient).map_err(|_| {
            PgError::error(SYNTAX_ERROR, format!("\"{id}\" is no client")).with_hint("SHOW CLIENTS has their ids.")
        }),
        ["reconnect"] => Ok(Act::Reconnect(None)),
        ["reconnect", _] => Ok(Act::Reconnect(Some(tenant()))),
        _ => Err(unknown(&tokens.iter().map(Token::text).collect::<Vec<_>>().join(" "))),
    }
}

/// A command of tenants' states, if it is one.
fn change(words: &[&str], tokens: &[Token]) -> Result<Option<Change>, PgError> {
    let tenant = || tokens[1].text();
    let state = |state| {
        let reason = tokens.get(2).map(Token::text);
        Some(Change::State(tenant(), state, reason))
    };
    Ok(match words {
        ["kill" | "disable" | "enable" | "read_only" | "maintenance"] => {
            let hint = format!("Write {} <tenant>.", words[0].to_uppercase());
            return Err(PgError::error(SYNTAX_ERROR, "a tenant is required").with_hint(hint));
        }
        ["pause"] => Some(Change::Pause(None, None)),
        ["pause", "within", _] => Some(Change::Pause(None, Some(limit(&tokens[2])?))),
        ["pause", _] => Some(Change::Pause(Some(tenant()), None)),
        ["pause", _, "within", _] => Some(Change::Pause(Some(tenant()), Some(limit(&tokens[3])?))),
        ["resume"] => Some(Change::Resume(None)),
        ["resume", _] => Some(Change::Resume(Some(tenant()))),
        ["suspend"] => Some(Change::SuspendAll),
        ["suspend", _] | ["suspend", _, _] => state(TenantState::Suspended),
        ["maintenance", _] | ["maintenance", _, _] => state(TenantState::Maintenance),
        ["read_only", _] | ["read_only", _, _] => state(TenantState::ReadOnly),
        ["disable", _] => Some(Change::Disable(tenant())),
        ["enable", _] => Some(Change::Enable(tenant())),
        ["kill", _] => Some(Change::Kill(tenant())),
        ["wait_close"] => Some(Change::WaitClose(None)),
        ["wait_close", _] => Some(Change::WaitClose(Some(tenant()))),
        _ => None,
    })
}

/// How long a command may take.
fn limit(token: &Token) -> Result<Duration, PgError> {
    duration(&token.text()).map_err(|wrong| PgError::error(SYNTAX_ERROR, format!("WITHIN: {wrong}")))
}

/// In PgBouncer's words.
fn unknown(command: &str) -> PgError {
    PgError::error(SYNTAX_ERROR, format!("invalid command '{command}', use SHOW HELP;"))
}

/// `name=value` pairs as in a connection string.
fn explain_route(tokens: &[Token]) -> Result<Command, PgError> {
    let usage = || {
        PgError::error(SYNTAX_ERROR, "EXPLAIN ROUTE takes user, database, options, sni and certificate")
            .with_hint("For example: EXPLAIN ROUTE user=app database=app options='-c tenant=acme'")
    };
    let mut hints = Hints::default();
    let mut options = StartupOptions::default();
    let mut rest = tokens;
    while let [name, Token::Sign('='), value, tail @ ..] = rest {
        let text = value.text();
        match name.lower().as_str() {
            "user" => hints.user = text,
            "database" | "dbname" => hints.database = Some(text),
            "sni" => hints.sni = Some(text),
            "certificate" => hints.certificate = Some(text),
            "options" => {
                options = StartupOptions::parse(&text);
                hints.option = options.take("tenant");
            }
            _ => return Err(usage()),
        }
        rest = tail;
    }
    match rest.is_empty() && !tokens.is_empty() {
        true => Ok(Command::ExplainRoute(Route { hints, options })),
        false => Err(usage()),
    }
}

impl Token {
    fn text(&self) -> String {
        match self {
            Token::Word(text) | Token::Quoted(text) => text.clone(),
            Token::Sign(sign) => sign.to_string(),
        }
    }

    fn lower(&self) -> String {
        self.text().to_ascii_lowercase()
    }
}

/// Comments are passed over: monitoring agents put their names there.
fn tokens(text: &str) -> Result<Vec<Token>, PgError> {
    let unfinished = |what| PgError::error(SYNTAX_ERROR, format!("unterminated {what}"));
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").ok_or_else(|| unfinished("comment"))?.1;
        } else if first == '\'' || first == '"' {
            let (quoted, after) = quoted(&rest[1..], first).ok_or_else(|| unfinished("quoted text"))?;
            tokens.push(Token::Quoted(quoted));
            rest = after;
        } else if is_part(first) {
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Sign(first));
            }
            rest = &rest[first.len_utf8()..];
        }
    }
    Ok(tokens)
}

/// Host names and dotted keys are one word.
fn is_part(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '$' | '@')
}

/// Up to the closing quote; a doubled one stands for itself.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once(quote)?;
        value.push_str(part);
        match after.strip_prefix(quote) {
            Some(more) => {
                value.push(quote);
                rest = more;
            }
            None => return Some((value, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn acts(text: &str) -> Vec<Act> {
        let act = |command| match command {
            Command::Act(act) => act,
            other => panic!("{other:?}"),
        };
        parse(text).unwrap().into_iter().map(act).collect()
    }

    #[test]
    fn reads_commands_in_any_case_with_comments_and_quotes() {
        assert_eq!(
            acts("/* agent */ Reload; -- now\n kill \"ac\"\"me\""),
            [Act::Reload, Act::Change(Change::Kill("ac\"me".into()))]
        );
        assert_eq!(acts("SHUTDOWN WAIT_FOR_CLIENTS;"), [Act::Shutdown(Shutdown::Clients)]);
        assert_eq!(acts("RECONNECT; RECONNECT acme"), [Act::Reconnect(None), Act::Reconnect(Some("acme".into()))]);
        let set = |name: &str, value: Option<&str>| Act::Set { name: name.into(), value: value.map(str::to_owned) };
        assert_eq!(acts("SET max_client_conn = 5"), [set("max_client_conn", Some("5"))]);
        assert_eq!(
            acts("set Pool.Queue_Timeout TO '10s'; SET a.b = x, y; SET c = DEFAULT; SET c = 'default'"),
            [
                set("pool.queue_timeout", Some("10s")),
                set("a.b", Some("x,y")),
                set("c", None),
                set("c", Some("default"))
            ]
        );
        let suspended = Change::State("acme".into(), TenantState::Suspended, Some("not paid".into()));
        assert_eq!(
            acts("PAUSE; SUSPEND acme 'not paid'"),
            [Act::Change(Change::Pause(None, None)), Act::Change(suspended)]
        );
        let within =
            |tenant: Option<&str>| Act::Change(Change::Pause(tenant.map(Into::into), Some(Duration::from_secs(9))));
        assert_eq!(acts("PAUSE WITHIN '9s'; PAUSE acme within 9s"), [within(None), within(Some("acme"))]);
        let shown = parse("show stats_totals;").unwrap();
        assert!(matches!(&shown[..], [Command::Show(report)] if report.name == "STATS_TOTALS"));
        assert!(matches!(parse("SET extra_float_digits TO 2").unwrap()[..], [Command::Set]));
        assert!(parse(" ; ;").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_command_is_an_error_in_pgbouncers_words() {
        let message = |text| parse(text).unwrap_err().message;
        assert_eq!(message("SELECT 1"), "invalid command 'SELECT 1', use SHOW HELP;");
        assert_eq!(message("SHOW nonsense"), "unrecognized parameter \"nonsense\"");
        for bad in [
            "KILL",
            "KILL_CLIENT x",
            "RELOAD now",
            "'open",
            "/* open",
            "EXPLAIN ROUTE",
            "EXPLAIN ROUTE x=1",
            "SET",
            "SET x",
            "SET x =",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn explain_route_takes_a_connections_hints() {
        let text = "EXPLAIN ROUTE user=app database='shop' options='-c tenant=acme -c work_mem=1MB' sni=x.db.example";
        let Command::ExplainRoute(route) = parse(text).unwrap().remove(0) else { panic!() };
        assert_eq!((route.hints.user.as_str(), route.hints.option.as_deref()), ("app", Some("acme")));
        assert_eq!((route.hints.database.as_deref(), route.hints.sni.as_deref()), (Some("shop"), Some("x.db.example")));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,80}") {
            let _ = parse(&text);
        }
    }
}
