//! Random actions: who does what next, and in which messages.

use super::frames::Frame;
use super::hunt::{Action, Hunt, Newcomer, Rules};
use super::statements::{self, Maker, Topic};
use crate::harness::random::Random;

type Parameters = &'static [(&'static str, &'static str)];

/// What clients ask for at startup.
const STARTUPS: &[Parameters] = &[
    &[],
    &[],
    &[("application_name", "my app"), ("client_encoding", "UTF8")],
    &[("TimeZone", "Asia/Tokyo"), ("DateStyle", "German")],
    &[("search_path", "one, public"), ("extra_float_digits", "2"), ("application_name", "psql")],
    &[("options", "-c my.var=from\\ options -c search_path=two --work_mem=6MB")],
    &[("options", "-c datestyle=sql,dmy"), ("my.base", "asked for")],
    &[("client_encoding", "latin1"), ("default_transaction_read_only", "on")],
    &[("role", "team"), ("IntervalStyle", "postgres_verbose")],
    &[("TimeZone", "America/Lima"), ("my.other", "1"), ("options", "-c standard_conforming_strings=off")],
];
const STATEMENTS: &[&str] = &["s1", "s2", "s3", "S 4"];
const PORTALS: &[&str] = &["", "", "p1", "c"];
/// `set_config` and `pg_try_advisory_lock(bigint)` in `pg_proc`.
const SET_CONFIG: u32 = 2078;
const TRY_LOCK: u32 = 2882;

pub struct Chooser {
    random: Random,
    rules: Rules,
    /// The client that acted last: it may look at itself now.
    last: Option<usize>,
    /// What each client is busy with for a while.
    topics: Vec<Topic>,
}

impl Chooser {
    pub fn new(seed: u64, rules: Rules) -> Chooser {
        Chooser { random: Random::new(seed), rules, last: None, topics: vec![Topic::default(); rules.clients] }
    }

    pub fn newcomer(&mut self) -> Newcomer {
        let role = if self.random.chance(85) { "app" } else { "batch" };
        let parameters = STARTUPS[self.random.below(STARTUPS.len())].to_vec();
        Newcomer { role, parameters, politely: self.random.chance(70) }
    }

    pub fn next(&mut self, hunt: &Hunt<'_>) -> Action {
        if let Some(last) = self.last.take()
            && self.random.chance(40)
        {
            return Action::View(last);
        }
        if let Some(ended) = hunt.known.iter().position(|known| known.ended) {
            return Action::Replace(ended, self.newcomer());
        }
        // Where nobody else can have a backend any more, those who have one give it back sooner or later.
        if hunt.holds && (hunt.free() == 0 || self.random.chance(30)) {
            return Action::LetGo;
        }
        if hunt.free() > 1 && !hunt.holds && self.random.chance(20) {
            return Action::Hold;
        }
        let able: Vec<usize> = (0..self.rules.clients).filter(|&client| hunt.may_act(client)).collect();
        let client = able[self.random.below(able.len())];
        if self.random.chance(1) {
            return Action::Replace(client, self.newcomer());
        }
        if self.random.chance(10) {
            return Action::View(client);
        }
        self.last = Some(client);
        let known = &hunt.known[client];
        if known.is_stuck() && self.random.chance(if hunt.free() == 0 { 25 } else { 6 }) {
            let must_look = known.suspected && !known.in_transaction && !known.doubtful;
            if must_look {
                return Action::View(client);
            }
            if known.stays {
                return Action::Replace(client, self.newcomer());
            }
            return Action::Say(client, vec![Frame::Query(statements::ending(&mut self.random, known))]);
        }
        if self.random.chance(8) {
            self.topics[client] = Topic::any(&mut self.random);
        }
        if !known.failed && self.random.chance(1) {
            return Action::Cancel(client, statements::sleeping(&mut self.random));
        }
        let topic = self.topics[client];
        let frames = step(&mut Maker { random: &mut self.random, client, known, topic, rules: self.rules });
        Action::Say(client, frames)
    }
}

/// What is sent in one write, with the answers read to the last ReadyForQuery.
fn step(maker: &mut Maker<'_>) -> Vec<Frame> {
    match maker.random.below(100) {
        0..42 => vec![Frame::Query(maker.statement())],
        42..54 => vec![several(maker)],
        54..68 => [unnamed(maker), vec![Frame::Sync]].concat(),
        68..82 => [named(maker, &[]), vec![Frame::Sync]].concat(),
        82..90 => pipeline(maker),
        90..93 => portal(maker),
        93..95 => flushed(maker),
        95..97 => copy(maker),
        97 => vec![call(maker)],
        _ => part(maker),
    }
}

/// Several statements in one simple query.
fn several(maker: &mut Maker<'_>) -> Frame {
    maker.topic = Topic::any(maker.random);
    let statements: Vec<String> = (0..2 + maker.random.below(3)).map(|_| maker.statement()).collect();
    Frame::Query(statements.join("; "))
}

fn unnamed(maker: &mut Maker<'_>) -> Vec<Frame> {
    prepare_and_run(maker, "")
}

fn prepare_and_run(maker: &mut Maker<'_>, name: &str) -> Vec<Frame> {
    let sql = maker.with_values();
    let values = statements::values(&sql);
    let mut frames = vec![Frame::Parse { name: name.to_owned(), sql }];
    if maker.random.chance(30) {
        frames.push(Frame::DescribeStatement(name.to_owned()));
    }
    frames.extend(run(maker, name, values));
    frames
}

fn run(maker: &mut Maker<'_>, name: &str, values: Vec<Option<String>>) -> Vec<Frame> {
    // Where the portal is there already, and the statement's table is not any more, either error may be told: not both.
    let finds = |sql: &String| sql.contains("thing") || sql.contains("place()");
    let may_be_lost = maker.known.statements.get(name).is_some_and(finds);
    let portal = if may_be_lost { "" } else { maker.random.pick(PORTALS) }.to_owned();
    let rows = if maker.random.chance(85) { 0 } else { 1 };
    let mut frames = vec![Frame::Bind { portal: portal.clone(), name: name.to_owned(), values }];
    if maker.random.chance(50) {
        frames.push(Frame::DescribePortal(portal.clone()));
    }
    frames.push(Frame::Execute { portal: portal.clone(), rows });
    if maker.random.chance(15) {
        frames.push(Frame::ClosePortal(portal));
    }
    frames
}

/// Prepares, runs, describes or closes one of a few names, behind these frames in the same write.
fn named(maker: &mut Maker<'_>, before: &[Frame]) -> Vec<Frame> {
    let name = maker.random.pick(STATEMENTS).to_owned();
    let sql = maker.known.statements.get(&name).cloned();
    let usual = maker.random.chance(90);
    // A backend that lacks the statement cannot prepare it then, to describe it (docs/POOLING.md).
    let may_have_failed = maker.known.failed || may_fail_a_transaction(maker, before);
    match maker.random.below(10) {
        0..2 => vec![Frame::CloseStatement(name)],
        2 if !may_have_failed && is_describable(maker, &name, before) => vec![Frame::DescribeStatement(name)],
        3 => [vec![Frame::CloseStatement(name.clone())], prepare_and_run(maker, &name)].concat(),
        // Nor one that another backend would read otherwise by now (docs/POOLING.md).
        _ if maker.known.misread.contains(&name)
            || sql.as_deref().is_some_and(statements::is_read_by_parameters)
                && any_runs(maker, before, statements::changes_reading) =>
        {
            vec![Frame::CloseStatement(name)]
        }
        _ if sql.is_some() != usual => prepare_and_run(maker, &name),
        _ => run(maker, &name, statements::values(sql.as_deref().unwrap_or_default())),
    }
}

/// PostgreSQL 15.18 crashes when it describes a FETCH that was prepared while its cursor was there, and is not any more.
fn is_describable(maker: &Maker<'_>, name: &str, before: &[Frame]) -> bool {
    let fetches =
        |frame: &Frame| matches!(frame, Frame::Parse { name: it, sql } if it == name && sql.contains("FETCH"));
    !maker.known.fetching.contains(name) && !before.iter().any(fetches)
}

/// Whether these frames run something in a transaction.
fn may_fail_a_transaction(maker: &Maker<'_>, frames: &[Frame]) -> bool {
    let begins = |sql: &str| sql.contains("BEGIN") || sql.contains("START");
    !frames.is_empty() && maker.known.in_transaction || any_runs(maker, frames, begins)
}

/// Whether any of these frames runs a statement like that.
fn any_runs(maker: &Maker<'_>, frames: &[Frame], is_like_that: impl Fn(&str) -> bool) -> bool {
    frames.iter().any(|frame| match frame {
        Frame::Bind { name, .. } => maker.known.statements.get(name).is_some_and(|sql| is_like_that(sql)),
        frame => frame.sql().is_some_and(&is_like_that),
    })
}

/// Whether the batch that these frames end with has to end here: behind DISCARD ALL the client's own parameters are back
/// with its Sync only, and RESET ALL is a query to a SET TRANSACTION behind it (docs/POOLING.md).
fn has_to_end(maker: &Maker<'_>, frames: &[Frame]) -> bool {
    let batch = frames.rsplit(|frame| *frame == Frame::Sync).next().unwrap_or_default();
    any_runs(maker, batch, |sql| sql.contains("DISCARD ALL") || sql.contains("RESET ALL"))
}

/// Several batches at once, each of several statements, with a Sync after most of them.
fn pipeline(maker: &mut Maker<'_>) -> Vec<Frame> {
    let mut frames = Vec::new();
    for _ in 0..2 + maker.random.below(4) {
        match maker.random.below(10) {
            0..5 => frames.extend(unnamed(maker)),
            5..9 => frames.extend(named(maker, &frames)),
            _ => frames.extend([Frame::Sync, Frame::Query(maker.statement())]),
        }
        if maker.random.chance(60) || has_to_end(maker, &frames) {
            frames.push(Frame::Sync);
        }
    }
    frames.push(Frame::Sync);
    frames
}

/// A portal that is read bit by bit, sometimes across Syncs: which only a transaction allows. Never the unnamed one:
/// PostgreSQL 15.18 crashes when that is executed again after a simple query has failed in the transaction.
fn portal(maker: &mut Maker<'_>) -> Vec<Frame> {
    let portal = maker.random.pick(&["p1", "p2"]).to_owned();
    let more = Frame::Execute { portal: portal.clone(), rows: 2 };
    let sql = maker.random.pick(&["SELECT generate_series(1, 5)", "SELECT x, d FROM thing ORDER BY x"]).to_owned();
    let name = maker.random.pick(&["", "s1"]).to_owned();
    let bind = Frame::Bind { portal: portal.clone(), name: name.clone(), values: vec![] };
    match maker.random.below(4) {
        0 => vec![more, Frame::Sync],
        1 => vec![Frame::ClosePortal(portal), Frame::Sync],
        2 => vec![Frame::Parse { name, sql }, bind, more.clone(), Frame::Sync, more, Frame::Sync],
        _ => {
            vec![Frame::query("BEGIN"), Frame::Parse { name, sql }, bind, more.clone(), Frame::Sync, more, Frame::Sync]
        }
    }
}

fn flushed(maker: &mut Maker<'_>) -> Vec<Frame> {
    let mut frames = unnamed(maker);
    frames.push(Frame::Flush);
    if maker.random.chance(50) && !has_to_end(maker, &frames) {
        frames.extend(named(maker, &frames));
        frames.push(Frame::Flush);
    }
    frames.push(Frame::Sync);
    frames
}

fn copy(maker: &mut Maker<'_>) -> Vec<Frame> {
    let (client, id) = (maker.client, maker.random.below(50));
    let into = Frame::Query(format!("COPY hunt.own{client} (id, note) FROM STDIN"));
    let rows = Frame::CopyData(format!("{id}\tcopied\n"));
    match maker.random.below(6) {
        0..2 => vec![into, rows, Frame::CopyDone],
        2 => vec![into, rows, Frame::CopyFail("enough".to_owned())],
        3 => vec![into, Frame::CopyData("no number\tcopied\n".to_owned()), Frame::CopyDone],
        4 => vec![Frame::query("COPY (SELECT '01/02/2024'::date, note FROM thing ORDER BY x) TO STDOUT")],
        _ => vec![Frame::query("SET work_mem = '16MB'; COPY (SELECT 1) TO STDOUT; SET work_mem = '17MB'")],
    }
}

fn call(maker: &mut Maker<'_>) -> Frame {
    let text = |arguments: &[&str]| arguments.iter().map(|&argument| argument.to_owned()).collect();
    match maker.random.below(3) {
        0 => Frame::Call { function: SET_CONFIG, arguments: text(&["work_mem", "18MB", "f"]) },
        1 => Frame::Call { function: SET_CONFIG, arguments: text(&["lock_timeout", "9s", "f"]) },
        _ => Frame::Call { function: TRY_LOCK, arguments: text(&["1"]) },
    }
}

/// A bit of a conversation: what it begins goes on in another step, or never.
fn part(maker: &mut Maker<'_>) -> Vec<Frame> {
    let sql = maker.with_values();
    let values = statements::values(&sql);
    match maker.random.below(4) {
        0 => vec![Frame::Parse { name: String::new(), sql }, Frame::Sync],
        1 => [run(maker, "", values), vec![Frame::Sync]].concat(),
        3 if !maker.known.failed && is_describable(maker, "", &[]) => {
            vec![Frame::DescribeStatement(String::new()), Frame::Sync]
        }
        _ => vec![Frame::Sync],
    }
}
