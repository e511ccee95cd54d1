//! The flow with bytes in and bytes out: what each side gets, and when the backend is free.

use std::sync::Arc;

use proptest::prelude::*;

use super::flow::Expected;
use super::*;
use crate::backend::{StatementId, Statements};
use crate::wire::messages::framed;

const LIMITS: FlowLimits = FlowLimits {
    max_message: 1 << 30,
    max_prepared_per_client: 100,
    max_prepared_per_backend: 2,
    max_prepared_size: 100_000,
    cache_unnamed: true,
};

fn message(tag: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    framed(&mut out, tag, &[payload]);
    out
}

fn all(messages: &[(u8, &[u8])]) -> Vec<u8> {
    messages.iter().flat_map(|(tag, payload)| message(*tag, payload)).collect()
}

/// One client and one backend.
struct Line {
    flow: Flow,
    backend: BackendState,
}

impl Line {
    fn new() -> Self {
        Line::of_session(1, &Arc::default())
    }

    fn of_session(session: u32, shared: &Arc<Statements>) -> Self {
        Line {
            flow: Flow::new(session, LIMITS, false, SessionState::default(), shared.clone()),
            backend: BackendState::default(),
        }
    }

    /// What the backend gets, and what we answer.
    fn client(&mut self, bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut splice, mut replies) = (Splice::new(bytes), Vec::new());
        let taken = self.flow.requests(&mut self.backend, bytes, &mut splice, &mut replies).unwrap();
        assert_eq!(taken.consumed, bytes.len());
        (splice.bytes().to_vec(), replies)
    }

    /// What the client gets.
    fn server(&mut self, messages: &[(u8, &[u8])]) -> Vec<u8> {
        let bytes = all(messages);
        let mut splice = Splice::new(&bytes);
        assert_eq!(self.flow.responses(&mut self.backend, &bytes, &mut splice).unwrap(), bytes.len());
        splice.bytes().to_vec()
    }

    fn switch_backend(&mut self, other: &mut BackendState) {
        assert!(self.flow.is_free());
        std::mem::swap(&mut self.backend, other);
    }
}

const READY: (u8, &[u8]) = (b'Z', b"I");
const SYNC: (u8, &[u8]) = (b'S', b"");
const ERROR: (u8, &[u8]) = (b'E', b"SERROR\0C42601\0Mno\0\0");

/// There may be 131,072 of them for each client.
#[test]
fn what_is_noted_of_an_answer_that_is_due_is_small() {
    assert!(size_of::<Expected>() <= 64, "{} bytes", size_of::<Expected>());
}

#[test]
fn a_simple_query_is_over_at_ready() {
    let mut line = Line::new();
    let query = message(b'Q', b"SELECT 1\0");
    assert_eq!(line.client(&query).0, query);
    assert!(!line.flow.is_free());
    line.server(&[(b'T', b"x"), (b'D', b"y"), (b'C', b"SELECT 1\0")]);
    assert!(!line.flow.is_free());
    line.server(&[READY]);
    assert!(line.flow.is_free());
    assert_eq!(line.flow.take_figures(), Figures { queries: 1, transactions: 1, errors: vec![] });
    assert!(!line.flow.state.opaque);
}

#[test]
fn a_transaction_keeps_its_backend() {
    let mut line = Line::new();
    line.client(&message(b'Q', b"BEGIN\0"));
    line.server(&[(b'C', b"BEGIN\0"), (b'Z', b"T")]);
    assert!(line.flow.at_rest() && !line.flow.is_free());
    line.client(&message(b'Q', b"bad\0"));
    line.server(&[ERROR, (b'Z', b"E")]);
    assert_eq!(line.flow.status(), TransactionStatus::Failed);
    line.client(&message(b'Q', b"ROLLBACK\0"));
    line.server(&[(b'C', b"ROLLBACK\0"), READY]);
    assert!(line.flow.is_free());
    assert_eq!(line.flow.take_figures().errors, ["42601"]);
}

#[test]
fn several_syncs_in_flight_are_counted() {
    let mut line = Line::new();
    line.client(&all(&[(b'P', b"\0SELECT 1\0\0\0"), (b'B', b"\0\0\0\0\0\0\0\0"), (b'E', b"\0\0\0\0\0"), SYNC, SYNC]));
    line.server(&[(b'1', b""), (b'2', b""), (b'C', b"SELECT 1\0"), READY]);
    assert!(!line.flow.is_free());
    line.server(&[READY]);
    assert!(line.flow.is_free());
}

#[test]
fn a_batch_without_sync_keeps_the_backend() {
    let mut line = Line::new();
    line.client(&all(&[(b'P', b"\0SELECT 1\0\0\0"), (b'H', b"")]));
    line.server(&[(b'1', b"")]);
    assert!(!line.flow.at_rest());
    line.client(&message(b'S', b""));
    line.server(&[READY]);
    assert!(line.flow.is_free());
}

#[test]
fn after_an_error_everything_up_to_sync_is_passed_over() {
    let mut line = Line::new();
    line.client(&all(&[(b'P', b"\0bad\0\0\0"), (b'H', b"")]));
    line.server(&[ERROR]);
    line.client(&all(&[(b'B', b"\0\0\0\0\0\0\0\0"), (b'E', b"\0\0\0\0\0"), (b'Q', b"ignored\0")]));
    assert!(!line.flow.at_rest());
    line.client(&message(b'S', b""));
    line.server(&[READY]);
    assert!(line.flow.is_free());
}

#[test]
fn a_named_statement_follows_its_client_to_another_backend() {
    let mut line = Line::new();
    let (to_backend, _) = line.client(&all(&[(b'P', b"mine\0SELECT $1\0\0\0"), SYNC]));
    let name = line.flow.mine.get(b"mine").unwrap().id.server_name();
    assert_eq!(to_backend, all(&[(b'P', format!("{name}\0SELECT $1\0\0\0").as_bytes()), SYNC]));
    line.server(&[(b'1', b""), READY]);

    let mut other = BackendState::default();
    line.switch_backend(&mut other);
    let bind = all(&[(b'B', b"p\0mine\0rest"), (b'E', b"p\0\0\0\0\0"), SYNC]);
    let (to_backend, replies) = line.client(&bind);
    let renamed = format!("p\0{name}\0rest");
    let injected = format!("{name}\0SELECT $1\0\0\0");
    let expected = all(&[(b'P', injected.as_bytes()), (b'B', renamed.as_bytes()), (b'E', b"p\0\0\0\0\0"), SYNC]);
    assert_eq!((to_backend, replies), (expected, vec![]));
    let to_client = line.server(&[(b'1', b""), (b'2', b""), (b'C', b"SELECT 1\0"), READY]);
    assert_eq!(to_client, all(&[(b'2', b""), (b'C', b"SELECT 1\0"), READY]), "the injected Parse is not the client's");
    assert!(line.flow.is_free());

    // Known there now: the next Bind needs no Parse.
    let (to_backend, _) = line.client(&bind);
    assert_eq!(to_backend, all(&[(b'B', renamed.as_bytes()), (b'E', b"p\0\0\0\0\0"), SYNC]));
}

#[test]
fn a_statement_that_the_backend_has_is_answered_by_us_in_turn() {
    let shared = Arc::default();
    let mut first = Line::of_session(1, &shared);
    first.client(&all(&[(b'P', b"a\0SELECT 1\0\0\0"), SYNC]));
    first.server(&[(b'1', b""), READY]);
    let mut second = Line::of_session(2, &shared);
    std::mem::swap(&mut first.backend, &mut second.backend);
    let (to_backend, replies) =
        second.client(&all(&[(b'D', b"Pportal\0"), (b'P', b"b\0SELECT 1\0\0\0"), (b'C', b"Sb\0"), SYNC]));
    assert_eq!((to_backend, replies), (all(&[(b'D', b"Pportal\0"), SYNC]), vec![]));
    let to_client = second.server(&[(b'n', b""), READY]);
    assert_eq!(to_client, all(&[(b'n', b""), (b'1', b""), (b'3', b""), READY]));
    // Before what the backend answers they go along with that; alone they need not wait.
    let (_, replies) = second.client(&all(&[(b'P', b"b\0SELECT 1\0\0\0"), SYNC]));
    assert_eq!(replies, b"");
    assert_eq!(second.server(&[READY]), all(&[(b'1', b""), READY]));
    let (_, replies) = second.client(&all(&[(b'P', b"c\0SELECT 1\0\0\0"), (b'H', b"")]));
    assert_eq!(replies, message(b'1', b""));
}

#[test]
fn an_unnamed_statement_that_recurs_is_prepared_once() {
    let mut line = Line::new();
    let batch = all(&[(b'P', b"\0SELECT $1\0\0\0"), (b'B', b"\0\0v"), (b'E', b"\0\0\0\0\0"), SYNC]);
    let answers = [(b'1', &b""[..]), (b'2', b""), (b'C', b"SELECT 1\0"), READY];
    assert_eq!(line.client(&batch).0, batch, "the first time as it is");
    line.server(&answers);
    let (to_backend, _) = line.client(&batch);
    let name = line.flow.mine.get(b"").unwrap().id.server_name();
    let bind = message(b'B', format!("\0{name}\0v").as_bytes());
    let rest = [bind, all(&[(b'E', b"\0\0\0\0\0"), SYNC])].concat();
    assert_eq!(to_backend, [message(b'P', format!("{name}\0SELECT $1\0\0\0").as_bytes()), rest.clone()].concat());
    assert_eq!(line.server(&answers), all(&answers));
    assert_eq!(line.client(&batch), (rest, vec![]), "and then no more");
    assert_eq!(line.server(&answers[1..]), all(&answers));
    // It is gone as any unnamed statement is, even with a query that no backend gets.
    let is_gone = |line: &Line| line.flow.mine.get(b"").is_none() && line.flow.mine.unnamed().is_none();
    line.client(&message(b'Q', b"DEALLOCATE ALL\0"));
    assert!(is_gone(&line));
    line.client(&batch);
    line.server(&answers[1..]);
    line.client(&message(b'Q', b"SELECT 1\0"));
    line.server(&[(b'C', b"SELECT 1\0"), READY]);
    assert!(is_gone(&line));
    // Neither in a transaction block, nor behind what may fail.
    line.client(&message(b'Q', b"BEGIN; SELECT f()\0"));
    line.server(&[(b'C', b"BEGIN\0"), (b'C', b"SELECT 1\0"), (b'Z', b"T")]);
    assert_eq!(line.client(&batch).0, batch);
    line.server(&answers);
    line.client(&all(&[(b'D', b"Pportal\0")]));
    assert_eq!(line.client(&batch).0, batch);
}

#[test]
fn what_the_backend_passed_over_did_not_happen() {
    let mut line = Line::new();
    line.client(&all(&[(b'P', b"kept\0SELECT 1\0\0\0"), SYNC]));
    line.server(&[(b'1', b""), READY]);
    line.client(&all(&[
        (b'E', b"nosuch\0\0\0\0\0"),
        (b'P', b"new\0SELECT 2\0\0\0"),
        (b'P', b"again\0SELECT 1\0\0\0"),
        (b'C', b"Skept\0"),
        SYNC,
    ]));
    assert_eq!(line.server(&[ERROR, READY]), all(&[ERROR, READY]));
    assert!(line.flow.mine.get(b"new").is_none() && line.flow.mine.get(b"again").is_none());
    let kept = line.flow.mine.get(b"kept").expect("its Close was passed over").id;
    assert!(line.backend.prepared.touch(kept));
    let (to_backend, _) = line.client(&all(&[(b'P', b"new\0SELECT 2\0\0\0"), SYNC]));
    assert_eq!(to_backend[0], b'P', "it has to be prepared after all");
}

#[test]
fn the_least_used_statement_is_closed_on_the_backend_only() {
    let mut line = Line::new();
    for (name, sql) in [("a", "SELECT 1"), ("b", "SELECT 2")] {
        line.client(&all(&[(b'P', format!("{name}\0{sql}\0\0\0").as_bytes()), SYNC]));
        line.server(&[(b'1', b""), READY]);
    }
    let (to_backend, _) = line.client(&all(&[(b'P', b"c\0SELECT 3\0\0\0"), SYNC]));
    let first = line.flow.mine.get(b"a").unwrap().id;
    assert!(to_backend.starts_with(&message(b'C', format!("S{}\0", first.server_name()).as_bytes())));
    assert_eq!(line.server(&[(b'3', b""), (b'1', b""), READY]), all(&[(b'1', b""), READY]));
    let (to_backend, _) = line.client(&all(&[(b'D', b"Sa\0"), SYNC]));
    assert_eq!(to_backend[0], b'C', "room is made for it again");
    assert_eq!(line.server(&[(b'3', b""), (b'1', b""), (b't', b"\0\0"), (b'n', b""), READY])[0], b't');
    assert!(line.flow.is_free());
}

#[test]
fn the_unnamed_statement_survives_a_change_of_backend() {
    let mut line = Line::new();
    line.client(&all(&[(b'P', b"\0SELECT $1\0\0\0"), (b'D', b"S\0"), SYNC]));
    line.server(&[(b'1', b""), (b't', b"\0\0"), (b'T', b""), READY]);
    let bind = all(&[(b'B', b"\0\0rest"), (b'E', b"\0\0\0\0\0"), SYNC]);
    assert_eq!(line.client(&bind).0, bind, "the same backend has it");
    line.server(&[(b'2', b""), (b'C', b"SELECT 1\0"), READY]);
    line.switch_backend(&mut BackendState::default());
    let (to_backend, _) = line.client(&bind);
    assert_eq!(to_backend, [message(b'P', b"\0SELECT $1\0\0\0"), bind.clone()].concat());
    assert_eq!(line.server(&[(b'1', b""), (b'2', b""), (b'C', b"SELECT 1\0"), READY])[0], b'2');
    // A simple query drops it, as in PostgreSQL.
    line.client(&message(b'Q', b"SELECT 1\0"));
    line.server(&[(b'C', b"SELECT 1\0"), READY]);
    line.switch_backend(&mut BackendState::default());
    assert_eq!(line.client(&bind).0, bind);
}

#[test]
fn a_taken_name_is_refused_by_the_backend() {
    let mut line = Line::new();
    line.client(&all(&[(b'P', b"a\0SELECT 1\0\0\0"), SYNC]));
    line.server(&[(b'1', b""), READY]);
    let name = StatementId::TAKEN.server_name();
    let (to_backend, _) = line.client(&all(&[(b'P', b"a\0SELECT 2\0\0\0"), SYNC]));
    let expected = all(&[
        (b'C', format!("S{name}\0").as_bytes()),
        (b'P', format!("{name}\0\0\0\0").as_bytes()),
        (b'P', format!("{name}\0SELECT 2\0\0\0").as_bytes()),
        SYNC,
    ]);
    assert_eq!(to_backend, expected);
    assert_eq!(line.server(&[(b'3', b""), (b'1', b""), ERROR, READY]), all(&[ERROR, READY]));
    assert!(line.flow.is_free() && line.flow.mine.get(b"a").is_some());
}

#[test]
fn a_warning_comes_once_however_often_the_statement_is_prepared() {
    let mut line = Line::new();
    let warning = (b'N', &b"SWARNING\0C22P06\0\0"[..]);
    line.client(&all(&[(b'P', b"a\0SELECT '\\x'\0\0\0"), SYNC]));
    assert_eq!(line.server(&[warning, (b'1', b""), READY]), all(&[warning, (b'1', b""), READY]));
    line.switch_backend(&mut BackendState::default());
    line.client(&all(&[(b'B', b"\0a\0\0\0\0\0\0\0"), (b'E', b"\0\0\0\0\0"), SYNC]));
    let answers = [(b'2', &b""[..]), (b'C', b"SELECT 1\0"), READY];
    assert_eq!(line.server(&[&[warning, (b'1', b"")], &answers[..]].concat()), all(&answers));
}

#[test]
fn copy_in_by_simple_query() {
    let mut line = Line::new();
    line.client(&message(b'Q', b"COPY t FROM STDIN\0"));
    line.server(&[(b'G', b"\0\0\0")]);
    line.client(&all(&[(b'd', b"1\n"), (b'd', b"2\n")]));
    assert!(!line.flow.at_rest());
    line.client(&message(b'c', b""));
    line.server(&[(b'C', b"COPY 2\0"), READY]);
    assert!(line.flow.is_free());
}

#[test]
fn copy_in_by_extended_protocol_swallows_the_first_sync() {
    let mut line = Line::new();
    let copy = [(b'P', &b"\0COPY t FROM STDIN\0\0\0"[..]), (b'B', b"\0\0\0\0\0\0\0\0"), (b'E', b"\0\0\0\0\0"), SYNC];
    line.client(&all(&copy));
    line.server(&[(b'1', b""), (b'2', b""), (b'G', b"\0\0\0")]);
    line.client(&all(&[(b'd', b"1\n"), SYNC, (b'c', b""), SYNC]));
    line.server(&[(b'C', b"COPY 1\0")]);
    assert!(!line.flow.is_free());
    line.server(&[READY]);
    assert!(line.flow.is_free());
    // The same without waiting for the backend to ask.
    line.client(&[all(&copy), all(&[(b'd', b"1\n"), (b'c', b""), SYNC])].concat());
    line.server(&[(b'1', b""), (b'2', b""), (b'G', b"\0\0\0"), (b'C', b"COPY 1\0"), READY]);
    assert!(line.flow.is_free());
}

#[test]
fn copy_data_after_a_failed_copy_is_nobodys() {
    let mut line = Line::new();
    line.client(&all(&[(b'Q', b"COPY nosuch FROM STDIN\0"), (b'd', b"1\n"), (b'c', b"")]));
    line.server(&[ERROR, READY]);
    assert!(line.flow.is_free());
    line.client(&all(&[(b'd', b"1\n"), (b'f', b"why\0")]));
    assert!(line.flow.is_free());
}

#[test]
fn messages_longer_than_a_read_pass_in_pieces() {
    let mut line = Line::new();
    let query = message(b'Q', &[b'x'; 100_000]);
    assert_eq!(line.client(&query[..80_000]).0, query[..80_000]);
    assert!(line.flow.request_rest > 0);
    assert_eq!(line.client(&query[80_000..]).0, query[80_000..]);
    assert_eq!(line.flow.request_rest, 0);
    assert!(line.flow.state.opaque, "a text that was not seen whole is in doubt");
}

#[test]
fn state_that_outlives_a_transaction_is_noticed() {
    let mut line = Line::new();
    line.client(&message(b'Q', b"SELECT f()\0"));
    line.server(&[(b'S', b"TimeZone\0UTC\0"), READY]);
    assert!(line.flow.state.doubt.all_parameters, "something has set a parameter out of sight");
    let mut line = Line::new();
    line.client(&message(b'F', b"\0\0\0\x01\0\0\0\0\0\0"));
    assert!(line.flow.state.opaque);
    let mut line = Line::new();
    line.client(&all(&[(b'P', b"a\0SELECT set_config('x','y',false)\0\0\0"), SYNC]));
    line.server(&[(b'1', b""), READY]);
    assert!(line.flow.state.doubt.is_empty());
    line.switch_backend(&mut BackendState::default());
    line.client(&all(&[(b'B', b"\0a\0"), SYNC]));
    assert_eq!(line.flow.state.doubt.parameters, ["x"]);
}

#[test]
fn deallocate_all_forgets_everything() {
    let mut line = Line::new();
    line.client(&all(&[(b'P', b"a\0SELECT 1\0\0\0"), SYNC]));
    line.server(&[(b'1', b""), READY]);
    line.client(&message(b'Q', b"DISCARD ALL\0"));
    line.server(&[(b'C', b"DISCARD ALL\0"), READY]);
    assert!(line.flow.mine.get(b"a").is_none());
}

#[test]
fn a_statement_too_long_to_remember_pins() {
    let mut line = Line::new();
    let mut text = b"big\0SELECT '".to_vec();
    text.resize(150_000, b'x');
    let parse = message(b'P', &text);
    assert_eq!(line.client(&parse[..10_000]).0, parse[..10_000]);
    assert_eq!(line.client(&[&parse[10_000..], &message(b'S', b"")].concat()).0.len(), parse.len() - 10_000 + 5);
    line.server(&[(b'1', b""), READY]);
    assert!(line.flow.is_free() && line.flow.has_unshared());
    line.client(&all(&[(b'C', b"Sbig\0"), SYNC]));
    line.server(&[(b'3', b""), READY]);
    assert!(line.flow.is_free() && !line.flow.has_unshared());
}

#[test]
fn faults_of_the_client_are_told() {
    for (bytes, text) in [
        (&b"~\0\0\0\x04"[..], "invalid frontend message type 126"),
        (b"Q\0\0\0\x03", "invalid message length 3"),
        (b"S\0\x01\0\0", "longer than the bound"),
        (b"B\0\0\0\x06ab", "malformed message of type \"B\""),
    ] {
        let mut line = Line::new();
        let fault = line.flow.requests(&mut line.backend, bytes, &mut Splice::new(bytes), &mut Vec::new()).unwrap_err();
        assert!(fault.to_string().contains(text), "{fault}");
        assert_eq!(fault.to_error().code, "08P01");
    }
}

#[test]
fn an_answer_nobody_asked_for_is_the_backends_fault() {
    for bytes in [message(b'Z', b"I"), message(b'1', b""), message(b'Z', b"?")] {
        let mut line = Line::new();
        assert!(line.flow.responses(&mut line.backend, &bytes, &mut Splice::new(&bytes)).is_err());
    }
}

#[test]
fn what_the_pool_has_is_prepared_and_closed_without_a_backend() {
    let shared = Arc::default();
    let mut first = Line::of_session(1, &shared);
    let prepare = |name: &str, sql: &str| all(&[(b'P', format!("{name}\0{sql}\0\0\0").as_bytes()), SYNC]);
    let alone = |line: &mut Line, batch: &[u8]| {
        let mut replies = Vec::new();
        assert!([0, batch.len()].contains(&line.flow.answer_alone(batch, &mut replies)));
        replies
    };
    assert_eq!(alone(&mut first, &prepare("a", "SELECT 1")), b"", "nobody knows whether it can be prepared");
    first.client(&prepare("a", "SELECT 1"));
    assert_eq!(alone(&mut Line::of_session(2, &shared), &prepare("b", "SELECT 1")), b"", "not answered yet");
    first.server(&[(b'1', b""), READY]);

    let mut second = Line::of_session(2, &shared);
    assert_eq!(alone(&mut second, &prepare("b", "SELECT 1")), all(&[(b'1', b""), READY]));
    assert_eq!(alone(&mut second, &prepare("b", "SELECT 1")), b"", "the name is taken");
    let close = all(&[(b'C', b"Sb\0"), (b'P', b"c\0SELECT 1\0\0\0"), SYNC]);
    assert_eq!(alone(&mut second, &close[..close.len() - 1]), b"", "not here whole");
    assert_eq!(alone(&mut second, &close), all(&[(b'3', b""), (b'1', b""), READY]));
    assert!(second.flow.mine.get(b"b").is_none() && second.flow.mine.get(b"c").is_some());
    for other in [all(&[SYNC]), all(&[(b'Q', b"SELECT 1\0")]), all(&[(b'C', b"Pc\0"), SYNC]), prepare("", "SELECT 1")] {
        assert_eq!(alone(&mut second, &other), b"");
    }
}

#[test]
fn what_waits_for_a_check_waits_through_the_error_of_an_earlier_batch() {
    let shared = Arc::default();
    let mut line = Line::of_session(1, &shared);
    let row = |name: &str| [b"\0\x01", name.as_bytes(), &[0; 19]].concat();
    line.client(&all(&[(b'P', b"a\0SELECT *\0\0\0"), (b'D', b"Sa\0"), SYNC]));
    line.server(&[(b'1', b""), (b't', b"\0\0"), (b'T', &row("x")), READY]);
    shared.schema_changed();
    line.switch_backend(&mut BackendState::default());
    let bind = all(&[(b'B', b"\0a\0\0\0\0\0\0\0"), (b'E', b"\0\0\0\0\0"), SYNC]);
    let early = all(&[(b'P', b"\0bad\0\0\0"), SYNC]);
    let input = [&early[..], &bind].concat();
    let (mut splice, mut replies) = (Splice::new(&input), Vec::new());
    let taken = line.flow.requests(&mut line.backend, &input, &mut splice, &mut replies).unwrap();
    assert_eq!(taken.consumed, early.len());
    assert!(line.flow.is_full());
    assert_eq!(line.server(&[ERROR, READY]), all(&[ERROR, READY]));
    assert!(line.flow.is_full() && !line.flow.is_free(), "its own answer is still to come");
    assert_eq!(line.server(&[(b'1', b""), (b't', b"\0\0"), (b'T', &row("y"))]), b"");
    let (to_backend, _) = line.client(&bind);
    assert!(to_backend.starts_with(&message(b'B', b"\0pgt_outdated\0\0\0\0\0\0\0")), "{to_backend:?}");
    let told = line.server(&[(b'E', b"SERROR\0C26000\0Mno\0\0"), READY]);
    assert!(memchr::memmem::find(&told, b"C0A000\0Mcached plan must not change").is_some());
    assert!(line.flow.is_free());
}

proptest! {
    /// However the network cuts the bytes up, each side gets the same.
    #[test]
    fn cuts_change_nothing(cuts in proptest::collection::vec(1..40usize, 1..200)) {
        let requests = all(&[
            (b'P', b"a\0SELECT 1\0\0\0"), (b'B', b"\0a\0\0\0\0\0\0\0"), (b'D', b"P\0"), (b'E', b"\0\0\0\0\0"),
            (b'C', b"Sa\0"), SYNC, (b'Q', b"SELECT 2\0"), SYNC, (b'P', b"\0SELECT 3\0\0\0"), SYNC,
        ]);
        let answers = all(&[
            (b'1', b""), (b'2', b""), (b'n', b""), (b'C', b"SELECT 1\0"), READY,
            (b'T', b"row"), (b'D', b"data"), (b'C', b"SELECT 1\0"), READY, READY, (b'1', b""), READY,
        ]);
        let mut whole = Line::new();
        let sent = whole.client(&requests).0;
        let mut splice = Splice::new(&answers);
        whole.flow.responses(&mut whole.backend, &answers, &mut splice).unwrap();
        let received = splice.bytes().to_vec();

        let mut line = Line::new();
        let (mut to_backend, mut to_client) = (Vec::new(), Vec::new());
        let mut pending = Vec::new();
        let mut cut = cuts.iter().cycle();
        let mut rest = &requests[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
            rest = later;
            pending.extend_from_slice(now);
            let mut splice = Splice::new(&pending);
            let taken = line.flow.requests(&mut line.backend, &pending, &mut splice, &mut to_client).unwrap();
            to_backend.extend_from_slice(splice.bytes());
            let consumed = taken.consumed;
            pending.drain(..consumed);
        }
        let mut rest = &answers[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
            rest = later;
            pending.extend_from_slice(now);
            let mut splice = Splice::new(&pending);
            let consumed = line.flow.responses(&mut line.backend, &pending, &mut splice).unwrap();
            to_client.extend_from_slice(splice.bytes());
            pending.drain(..consumed);
        }
        prop_assert_eq!((to_backend, to_client), (sent, received));
        prop_assert!(line.flow.is_free());
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut line = Line::new();
        let _ = line.flow.requests(&mut line.backend, &bytes, &mut Splice::new(&bytes), &mut Vec::new());
        let mut line = Line::new();
        line.flow.expected.extend([Expected::InjectedParse(Some(StatementId(1))), Expected::Sync]);
        let _ = line.flow.responses(&mut line.backend, &bytes, &mut Splice::new(&bytes));
    }
}
