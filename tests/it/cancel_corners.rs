//! A cancel request in every corner of the protocol: it ends the query that runs, and neither the next one of that client
//! nor anybody else's.

use crate::eventually;
use crate::harness::frontend::{bind, copy_data, copy_done, execute, flush, function_call, parse, query, sync};
use crate::harness::stage::Stage;
use crate::harness::wire::{Message, Wire, cancel, sqlstates, tags, values};

const SLEEP: &str = "SELECT pg_sleep(60)";
/// Two rows, and then nothing for long.
const STOPS: &str = "SELECT g FROM generate_series(1, 3) g WHERE g < 3 OR pg_sleep(60) IS NULL";
/// `pg_sleep` in `pg_proc`.
const PG_SLEEP: u32 = 2626;

/// A client that is cancelled again and again, one that sleeps all the time, and one that works.
struct Corner {
    stage: Stage,
    wire: Wire,
    sleeper: Wire,
    bystander: Wire,
}

impl Corner {
    async fn new() -> Corner {
        let stage = Stage::new(&[("pool.max_backends", 3.into())]).await;
        let (wire, mut sleeper, bystander) = (stage.client().await, stage.client().await, stage.client().await);
        sleeper.send(&query(SLEEP)).await.unwrap();
        Corner { stage, wire, sleeper, bystander }
    }

    async fn send(&mut self, messages: &[Vec<u8>]) {
        self.wire.send(&messages.concat()).await.unwrap();
    }

    /// Cancels when the client's query sleeps as well.
    async fn cancel_its_sleep(&self) {
        self.cancel_when("wait_event = 'PgSleep'", "2").await;
    }

    async fn cancel_when(&self, condition: &str, count: &str) {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND {condition}");
        eventually!(self.stage.sql(&sql).await[0][0].as_deref() == Some(count));
        self.cancel().await;
    }

    async fn cancel(&self) {
        cancel(self.stage.proxy.address(), self.wire.key.as_ref().unwrap()).await.unwrap();
    }

    async fn answer(&mut self) -> Vec<Message> {
        self.wire.read_until_ready().await.unwrap()
    }

    /// The answer is the cancelled query's.
    async fn expect_cancelled(&mut self, expected: &str) {
        let messages = self.answer().await;
        assert_eq!((tags(&messages).as_str(), sqlstates(&messages)), (expected, vec!["57014".to_owned()]));
    }

    /// What comes next is not meant, whoever sends it.
    async fn nobody_else_was_meant(&mut self) {
        for client in [&mut self.wire, &mut self.bystander] {
            assert_eq!(client.value("SELECT 1 FROM pg_sleep(0.01)").await, "1");
        }
        let asleep = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'PgSleep'";
        assert_eq!(self.stage.sql(asleep).await[0][0].as_deref(), Some("1"));
    }

    async fn end(mut self) {
        cancel(self.stage.proxy.address(), self.sleeper.key.as_ref().unwrap()).await.unwrap();
        assert_eq!(sqlstates(&self.sleeper.read_until_ready().await.unwrap()), ["57014"]);
    }
}

fn run(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", "", &[]), execute("", 0)].concat()
}

#[tokio::test]
async fn in_pipelines() {
    let mut corner = Corner::new().await;
    // The second batch of three. Nothing behind it may take long: PostgreSQL signals a backend and then its process group, and
    // where the second signal is late it hits what the backend does by then (signal_child in postmaster.c).
    let batches = ["SELECT 1", SLEEP, "SELECT 3"].map(|sql| [run(sql), sync()].concat());
    corner.send(&batches).await;
    corner.cancel_its_sleep().await;
    assert_eq!(values(&corner.answer().await), ["1"]);
    corner.expect_cancelled("12EZ").await;
    assert_eq!(values(&corner.answer().await), ["3"]);
    corner.nobody_else_was_meant().await;
    // Simple queries, one behind the other.
    corner.send(&[query(SLEEP), query("SELECT 2")]).await;
    corner.cancel_its_sleep().await;
    corner.expect_cancelled("TEZ").await;
    assert_eq!(values(&corner.answer().await), ["2"]);
    corner.nobody_else_was_meant().await;
    // Several statements in one batch: the rest is passed over.
    corner.send(&[run("SELECT 1"), run(SLEEP), run("SELECT 3"), sync()]).await;
    corner.cancel_its_sleep().await;
    corner.expect_cancelled("12DC12EZ").await;
    corner.nobody_else_was_meant().await;
    // With Flush, and the Sync later.
    corner.send(&[run(SLEEP), flush()]).await;
    corner.cancel_its_sleep().await;
    let mut told = String::new();
    while !told.ends_with('E') {
        told.push(corner.wire.read().await.unwrap().tag.into());
    }
    assert_eq!(told, "12E");
    corner.send(&[run("SELECT 2"), sync()]).await;
    assert_eq!(tags(&corner.answer().await), "Z", "passed over until Sync");
    corner.nobody_else_was_meant().await;
    corner.end().await;
}

#[tokio::test]
async fn in_transactions_and_portals() {
    let mut corner = Corner::new().await;
    // Begun, and nothing done: a cancel hits nothing, now or later.
    corner.wire.query("BEGIN").await.unwrap();
    corner.cancel().await;
    assert_eq!(corner.wire.value("SELECT 1 FROM pg_sleep(0.01)").await, "1");
    corner.cancel().await;
    assert_eq!(corner.wire.value("SELECT 1 FROM pg_sleep(0.01)").await, "1");
    // A portal that is read across Syncs: a cancel in between hits nothing.
    corner.send(&[parse("s", STOPS), bind("p", "s", &[]), execute("p", 1), sync()]).await;
    assert_eq!(tags(&corner.answer().await), "12DsZ");
    corner.cancel().await;
    corner.send(&[execute("p", 1), sync()]).await;
    assert_eq!(tags(&corner.answer().await), "DsZ");
    corner.send(&[execute("p", 1), sync()]).await;
    corner.cancel_its_sleep().await;
    corner.expect_cancelled("EZ").await;
    corner.wire.query("ROLLBACK").await.unwrap();
    corner.nobody_else_was_meant().await;
    // To a savepoint, and on.
    corner.wire.query("BEGIN; SAVEPOINT a").await.unwrap();
    corner.send(&[bind("p", "s", &[]), execute("p", 0), sync()]).await;
    corner.cancel_its_sleep().await;
    corner.expect_cancelled("2DDEZ").await;
    corner.wire.query("ROLLBACK TO a").await.unwrap();
    assert_eq!(corner.wire.value("SELECT 1").await, "1");
    corner.wire.query("COMMIT").await.unwrap();
    corner.nobody_else_was_meant().await;
    corner.end().await;
}

#[tokio::test]
async fn in_queries_of_several_statements_and_function_calls() {
    let mut corner = Corner::new().await;
    corner.wire.query("SET work_mem = '7MB'").await.unwrap();
    corner.send(&[query(&format!("SET work_mem = '8MB'; SELECT 1; {SLEEP}; SET work_mem = '9MB'"))]).await;
    corner.cancel_its_sleep().await;
    corner.expect_cancelled("CTDCTEZ").await;
    corner.nobody_else_was_meant().await;
    assert_eq!(corner.wire.value("SHOW work_mem").await, "7MB", "rolled back");
    corner.send(&[query(&format!("SET work_mem = '8MB'; COMMIT; {SLEEP}"))]).await;
    corner.cancel_its_sleep().await;
    corner.answer().await;
    corner.nobody_else_was_meant().await;
    assert_eq!(corner.wire.value("SHOW work_mem").await, "8MB", "committed before");
    corner.send(&[function_call(PG_SLEEP, &["60"])]).await;
    corner.cancel_its_sleep().await;
    corner.expect_cancelled("EZ").await;
    corner.nobody_else_was_meant().await;
    // A client that keeps its backend.
    corner.wire.query("CREATE TEMP TABLE mine (x int)").await.unwrap();
    corner.cancel().await;
    corner.send(&[query(SLEEP)]).await;
    corner.cancel_its_sleep().await;
    corner.expect_cancelled("TEZ").await;
    assert_eq!(corner.wire.value("SELECT count(*) FROM mine").await, "0");
    corner.nobody_else_was_meant().await;
    corner.end().await;
}

#[tokio::test]
async fn in_copy() {
    let mut corner = Corner::new().await;
    corner.wire.query("CREATE TABLE t (x int)").await.unwrap();
    // In: PostgreSQL notices when it gets the next piece.
    for extended in [false, true] {
        let copy = "COPY t FROM STDIN";
        corner.send(&[if extended { [run(copy), flush()].concat() } else { query(copy) }, copy_data(b"1\n")]).await;
        while corner.wire.read().await.unwrap().tag != b'G' {}
        corner.cancel_when("query LIKE 'COPY t%' AND state = 'active' AND wait_event = 'ClientRead'", "1").await;
        corner.send(&[copy_data(b"2\n"), copy_data(b"3\n"), copy_done()]).await;
        if extended {
            corner.send(&[sync()]).await;
        }
        corner.expect_cancelled("EZ").await;
        corner.nobody_else_was_meant().await;
    }
    assert_eq!(corner.wire.value("SELECT count(*) FROM t").await, "0");
    // Out.
    let copy = format!("COPY ({STOPS}) TO STDOUT");
    for extended in [false, true] {
        corner.send(&[if extended { [run(&copy), sync()].concat() } else { query(&copy) }, query("SELECT 2")]).await;
        corner.cancel_its_sleep().await;
        corner.expect_cancelled(if extended { "12HddEZ" } else { "HddEZ" }).await;
        assert_eq!(values(&corner.answer().await), ["2"]);
        corner.nobody_else_was_meant().await;
    }
    corner.end().await;
}
