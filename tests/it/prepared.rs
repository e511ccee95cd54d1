//! Protocol-level prepared statements in transaction mode: a client's statements are there, whatever backend it gets.

use std::collections::BTreeSet;

use crate::eventually;
use crate::harness::frontend::{
    bind, close_statement, describe_portal, describe_statement, execute, flush, message, parse, query, sync,
};
use crate::harness::proxy::ProxyFiles;
use crate::harness::stage::Stage;
use crate::harness::wire::{Wire, sqlstates, tags, values};

/// A stage with two backends, and two clients that can keep one of them busy.
struct Two {
    stage: Stage,
    holders: [Wire; 2],
    backends: [String; 2],
}

impl Two {
    async fn new() -> Two {
        let stage = Stage::new(&[("pool.max_backends", 2.into())]).await;
        let mut holders = [stage.client().await, stage.client().await];
        let mut backends = [String::new(), String::new()];
        for (holder, backend) in holders.iter_mut().zip(&mut backends) {
            holder.query("BEGIN; SELECT 1").await.unwrap();
            *backend = holder.value("SELECT pg_backend_pid()").await;
        }
        for holder in &mut holders {
            holder.query("COMMIT").await.unwrap();
        }
        Two { stage, holders, backends }
    }

    /// Leaves only this backend free.
    async fn hold_all_but(&mut self, backend: usize) {
        for holder in &mut self.holders {
            holder.query("BEGIN; SELECT 1").await.unwrap();
        }
        let mut free = 0;
        for (number, holder) in self.holders.iter_mut().enumerate() {
            if holder.value("SELECT pg_backend_pid()").await == self.backends[backend] {
                holder.query("COMMIT").await.unwrap();
                free = number;
            }
        }
        // The one that holds comes first.
        if free == 0 {
            self.holders.swap(0, 1);
        }
    }

    async fn hold_none(&mut self) {
        self.holders[0].query("COMMIT").await.unwrap();
    }

    /// Runs messages while only this backend is free.
    async fn on(&mut self, backend: usize, client: &mut Wire, messages: &[Vec<u8>]) -> String {
        self.hold_all_but(backend).await;
        let answer = client.exchange(messages).await;
        self.hold_none().await;
        let details = [sqlstates(&answer), values(&answer)].concat().join(",");
        format!("{} {details}", tags(&answer))
    }
}

fn run(statement: &str, parameters: &[Option<&str>]) -> Vec<u8> {
    [bind("", statement, parameters), execute("", 0), sync()].concat()
}

#[tokio::test]
async fn eight_clients_share_statements_on_two_backends() {
    let stage = Stage::new(&[("pool.max_backends", 2.into())]).await;
    let sql = "SELECT $1::int4 + 1, pg_backend_pid() FROM pg_sleep(0.001)";
    let mut tasks = Vec::new();
    for number in 0..8_i32 {
        let (mut wire, driver) = (stage.client().await, stage.driver().await);
        tasks.push(tokio::spawn(async move {
            assert_eq!(tags(&wire.exchange(&[parse("same", sql), sync()]).await), "1Z");
            let mut backends = BTreeSet::new();
            for round in 0..30 {
                let value = (number * 100 + round).to_string();
                let messages = wire.exchange(&[run("same", &[Some(&value)])]).await;
                let row = messages.iter().find(|message| message.tag == b'D').unwrap_or_else(|| panic!("{messages:?}"));
                assert_eq!(row.row()[0], Some((number * 100 + round + 1).to_string()));
                backends.insert(row.row()[1].clone());
            }
            backends
        }));
        tasks.push(tokio::spawn(async move {
            let statement = driver.prepare(sql).await.unwrap();
            let mut backends = BTreeSet::new();
            for round in 0..30 {
                let row = driver.query_one(&statement, &[&round]).await.unwrap();
                assert_eq!(row.get::<_, i32>(0), round + 1);
                backends.insert(Some(row.get::<_, i32>(1).to_string()));
            }
            backends
        }));
    }
    let mut moved = 0;
    for task in tasks {
        moved += usize::from(task.await.unwrap().len() == 2);
    }
    assert!(moved > 0, "every client stayed on one backend: nothing was tested");
    // Equal statements of all clients are one on the backend.
    let mut wire = stage.client().await;
    count_out_of_sight(&stage).await;
    let same = "SELECT prepared_like('%pg_sleep(0.001)')";
    assert_eq!(wire.value(same).await, "1");
    eventually!(stage.backends().await == 2);
}

#[tokio::test]
async fn a_statement_is_there_on_a_backend_that_never_saw_it() {
    let mut two = Two::new().await;
    let mut wire = two.stage.client().await;
    assert_eq!(two.on(0, &mut wire, &[parse("s", "SELECT $1::int * 2"), sync()]).await, "1Z ");
    assert_eq!(two.on(1, &mut wire, &[run("s", &[Some("4")])]).await, "2DCZ 8");
    assert_eq!(two.on(0, &mut wire, &[run("s", &[Some("5")])]).await, "2DCZ 10");
    assert_eq!(two.on(1, &mut wire, &[describe_statement("s"), sync()]).await, "tTZ ");
    // Prepared and described on one, first used on the other in the middle of a batch.
    assert_eq!(two.on(0, &mut wire, &[parse("t", "SELECT 't'"), describe_statement("t"), sync()]).await, "1tTZ ");
    let batch = [bind("", "s", &[Some("1")]), execute("", 0), describe_statement("t"), run("t", &[])];
    assert_eq!(two.on(1, &mut wire, &batch).await, "2DCtT2DCZ 2,t");
    // Closed on one, gone on the other; the name can be used again for something else.
    assert_eq!(two.on(0, &mut wire, &[close_statement("s"), sync()]).await, "3Z ");
    assert_eq!(two.on(1, &mut wire, &[run("s", &[Some("1")])]).await, "EZ 26000");
    assert_eq!(two.on(1, &mut wire, &[describe_statement("s"), sync()]).await, "EZ 26000");
    assert_eq!(two.on(0, &mut wire, &[parse("s", "SELECT 'new'"), sync()]).await, "1Z ");
    assert_eq!(two.on(1, &mut wire, &[run("s", &[])]).await, "2DCZ new");
    // Closing what was never there is fine, as PostgreSQL has it.
    assert_eq!(two.on(1, &mut wire, &[close_statement("nowhere"), sync()]).await, "3Z ");
}

#[tokio::test]
async fn names_that_are_taken_and_names_that_are_not() {
    let mut two = Two::new().await;
    let (mut wire, mut other) = (two.stage.client().await, two.stage.client().await);
    assert_eq!(two.on(0, &mut wire, &[parse("s", "SELECT 1"), sync()]).await, "1Z ");
    for backend in [0, 1] {
        // The same text again, and another one.
        for sql in ["SELECT 1", "SELECT 2"] {
            assert_eq!(two.on(backend, &mut wire, &[parse("s", sql), sync()]).await, "EZ 42P05");
        }
        assert_eq!(two.on(backend, &mut wire, &[run("s", &[])]).await, "2DCZ 1");
        // Names are each client's own.
        assert_eq!(two.on(backend, &mut other, &[run("s", &[])]).await, "EZ 26000");
    }
    assert_eq!(two.on(0, &mut other, &[parse("s", "SELECT 'other'"), sync()]).await, "1Z ");
    assert_eq!(two.on(0, &mut wire, &[run("s", &[])]).await, "2DCZ 1");
    assert_eq!(two.on(1, &mut other, &[run("s", &[])]).await, "2DCZ other");
    // One client's Close takes nothing from another that has the same text.
    assert_eq!(two.on(0, &mut other, &[parse("twin", "SELECT 1"), close_statement("twin"), sync()]).await, "13Z ");
    assert_eq!(two.on(0, &mut wire, &[run("s", &[])]).await, "2DCZ 1");
    // A text that does not parse takes no name.
    assert_eq!(two.on(0, &mut wire, &[parse("bad", "SELEC"), sync()]).await, "EZ 42601");
    assert_eq!(two.on(1, &mut wire, &[parse("bad", "SELECT 3"), sync()]).await, "1Z ");
    assert_eq!(two.on(0, &mut wire, &[run("bad", &[])]).await, "2DCZ 3");
}

#[tokio::test]
async fn equal_texts_with_other_parameter_types_are_other_statements() {
    let mut two = Two::new().await;
    let mut wire = two.stage.client().await;
    let typed = |name: &str, oid: u32| {
        let body = [name.as_bytes(), b"\0SELECT pg_typeof($1)\0\0\x01", &oid.to_be_bytes()].concat();
        message(b'P', &body)
    };
    // int4 and text, by their OIDs.
    assert_eq!(two.on(0, &mut wire, &[typed("a", 23), typed("b", 25), sync()]).await, "11Z ");
    for backend in [0, 1] {
        assert_eq!(two.on(backend, &mut wire, &[run("a", &[Some("1")])]).await, "2DCZ integer");
        assert_eq!(two.on(backend, &mut wire, &[run("b", &[Some("1")])]).await, "2DCZ text");
    }
}

#[tokio::test]
async fn the_unnamed_statement_moves_with_its_client() {
    let mut two = Two::new().await;
    let (mut one, mut other) = (two.stage.client().await, two.stage.client().await);
    assert_eq!(two.on(0, &mut one, &[parse("", "SELECT $1 || ' one'"), sync()]).await, "1Z ");
    assert_eq!(two.on(1, &mut one, &[run("", &[Some("of")])]).await, "2DCZ of one");
    assert_eq!(two.on(1, &mut other, &[parse("", "SELECT 'other'"), sync()]).await, "1Z ");
    assert_eq!(two.on(1, &mut one, &[describe_statement(""), run("", &[Some("still")])]).await, "tT2DCZ still one");
    assert_eq!(two.on(1, &mut other, &[run("", &[])]).await, "2DCZ other");
    // A simple query drops it, on whatever backend it runs.
    assert_eq!(two.on(0, &mut one, &[query("SELECT 1")]).await, "TDCZ 1");
    assert_eq!(two.on(1, &mut one, &[run("", &[Some("x")])]).await, "EZ 26000");
    // So does Close; a Parse that fails leaves none.
    assert_eq!(two.on(1, &mut other, &[close_statement(""), sync()]).await, "3Z ");
    assert_eq!(two.on(0, &mut other, &[run("", &[])]).await, "EZ 26000");
    assert_eq!(two.on(0, &mut other, &[parse("", "SELEC"), sync()]).await, "EZ 42601");
    assert_eq!(two.on(1, &mut other, &[run("", &[])]).await, "EZ 26000");
}

#[tokio::test]
async fn unnamed_statements_that_recur_are_parsed_once_for_each_backend() {
    let mut two = Two::new().await;
    count_out_of_sight(&two.stage).await;
    let (mut wire, mut admin) = (two.stage.client().await, two.stage.client().await);
    admin.query("CREATE TABLE t (x int); INSERT INTO t VALUES (1)").await.unwrap();
    let once = |sql: &str| {
        [parse("", sql), describe_statement(""), bind("", "", &[]), describe_portal(""), execute("", 0), sync()]
            .concat()
    };
    for round in 0..8 {
        for backend in [0, 1] {
            assert_eq!(two.on(backend, &mut wire, &[once("SELECT * FROM t")]).await, "1tT2TDCZ 1", "{round}");
            assert_eq!(two.on(backend, &mut wire, &[run("", &[])]).await, "2DCZ 1", "{round}");
        }
    }
    for backend in [0, 1] {
        assert_eq!(two.on(backend, &mut admin, &[query("SELECT prepared_like('SELECT * FROM t')")]).await, "TDCZ 1");
    }
    // To its client it is the unnamed one all the same.
    let messages = wire.exchange(&[parse("", "SELECT * FROM t"), bind("", "", &[Some("1")]), sync()]).await;
    let error = messages.iter().find(|message| message.tag == b'E').unwrap().error();
    assert!(error.fields[&'M'].contains("prepared statement \"\" requires 0"), "{error:?}");
    assert_eq!(wire.value("SELECT count(*) FROM pg_prepared_statements").await, "0");
    assert_eq!(sqlstates(&wire.exchange(&[run("", &[])]).await), ["26000"], "a simple query has dropped it");
    // Another result, another statement; whoever has changed the table.
    admin.query("ALTER TABLE t ALTER x TYPE text USING 'new'").await.unwrap();
    assert_eq!(two.on(0, &mut wire, &[once("SELECT * FROM t")]).await, "1tT2TDCZ new");
    two.stage.sql("ALTER TABLE t ALTER x TYPE int USING 2").await;
    for backend in [0, 1, 0] {
        assert_eq!(two.on(backend, &mut wire, &[once("SELECT * FROM t")]).await, "1tT2TDCZ 2");
    }
    // One that fails leaves none behind.
    assert_eq!(sqlstates(&wire.exchange(&[once("SELECT * FROM nowhere")]).await), ["42P01"]);
    assert_eq!(sqlstates(&wire.exchange(&[once("SELECT * FROM nowhere")]).await), ["42P01"]);
    assert_eq!(sqlstates(&wire.exchange(&[run("", &[])]).await), ["26000"]);
}

#[tokio::test]
async fn unnamed_statements_are_left_alone_where_the_tenant_wants_it() {
    let stage = Stage::new(&[("pool.max_backends", 1.into()), ("pool.cache_unnamed", false.into())]).await;
    count_out_of_sight(&stage).await;
    let mut wire = stage.client().await;
    for _ in 0..3 {
        assert_eq!(values(&wire.exchange(&[parse("", "SELECT 'left'"), run("", &[])]).await), ["left"]);
    }
    assert_eq!(wire.value("SELECT prepared_like('SELECT ''left''')").await, "0");
}

#[tokio::test]
async fn nobody_binds_anothers_unnamed_statement() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let (mut one, mut other) = (stage.client().await, stage.client().await);
    let own = [parse("", "SELECT 'one'"), run("", &[])];
    assert_eq!(tags(&one.exchange(&own).await), "12DCZ");
    assert_eq!(sqlstates(&other.exchange(&[run("", &[])]).await), ["26000"]);
    assert_eq!(tags(&one.exchange(&own).await), "12DCZ");
    assert_eq!(sqlstates(&other.exchange(&[describe_statement(""), sync()]).await), ["26000"]);
    assert_eq!(values(&one.exchange(&[run("", &[])]).await), ["one"]);
    // The first of two batches in flight fails before its Parse: the second finds nobody else's statement.
    other.send(&[run("nowhere", &[]), run("", &[])].concat()).await.unwrap();
    assert_eq!(sqlstates(&other.read_until_ready().await.unwrap()), ["26000"]);
    assert_eq!(sqlstates(&other.read_until_ready().await.unwrap()), ["26000"]);
    assert_eq!(tags(&one.exchange(&own).await), "12DCZ");
    let first = [bind("", "nowhere", &[]), parse("", "SELECT 'other'"), sync()].concat();
    other.send(&[first, run("", &[])].concat()).await.unwrap();
    assert_eq!(sqlstates(&other.read_until_ready().await.unwrap()), ["26000"]);
    let messages = other.read_until_ready().await.unwrap();
    assert!(!values(&messages).contains(&"one".to_owned()), "{messages:?}");
}

#[tokio::test]
async fn a_failed_batch_undoes_what_it_did_not_do() {
    let mut two = Two::new().await;
    let mut wire = two.stage.client().await;
    assert_eq!(two.on(0, &mut wire, &[parse("s", "SELECT 'old'"), sync()]).await, "1Z ");
    // Close and Parse behind the error did not happen.
    let batch =
        [bind("", "nowhere", &[]), close_statement("s"), parse("s", "SELECT 'new'"), parse("t", "SELECT 't'"), sync()];
    for backend in [0, 1] {
        assert_eq!(two.on(backend, &mut wire, &batch).await, "EZ 26000");
        assert_eq!(two.on(backend, &mut wire, &[run("s", &[])]).await, "2DCZ old");
        assert_eq!(two.on(backend, &mut wire, &[run("t", &[])]).await, "EZ 26000");
    }
    // Those before it did.
    let batch =
        [close_statement("s"), parse("s", "SELECT 'new'"), bind("", "nowhere", &[]), parse("", "SELEC"), sync()];
    assert_eq!(two.on(1, &mut wire, &batch).await, "31EZ 26000");
    assert_eq!(two.on(0, &mut wire, &[run("s", &[])]).await, "2DCZ new");
    // In a failed transaction nothing is prepared; what is there already can be used after it.
    let batch = [query("BEGIN"), query("SELECT 1/0")].concat();
    wire.send(&batch).await.unwrap();
    wire.read_until_ready().await.unwrap();
    wire.read_until_ready().await.unwrap();
    assert_eq!(sqlstates(&wire.exchange(&[parse("u", "SELECT 'u'"), sync()]).await), ["25P02"]);
    assert_eq!(sqlstates(&wire.exchange(&[run("s", &[])]).await), ["25P02"]);
    wire.query("ROLLBACK").await.unwrap();
    assert_eq!(two.on(0, &mut wire, &[parse("u", "SELECT 'u'"), run("u", &[])]).await, "12DCZ u");
    assert_eq!(two.on(1, &mut wire, &[run("u", &[])]).await, "2DCZ u");
}

#[tokio::test]
async fn a_statement_is_there_for_the_batch_behind_a_failed_one() {
    let mut two = Two::new().await;
    let mut wire = two.stage.client().await;
    assert_eq!(two.on(0, &mut wire, &[parse("s", "SELECT 's'"), parse("", "SELECT 'unnamed'"), sync()]).await, "11Z ");
    // On the other backend nothing is prepared; the first batch fails before its first use of the statements.
    let fails = [bind("", "nowhere", &[]), run("s", &[])].concat();
    let fails_too = [bind("", "nowhere", &[]), run("", &[])].concat();
    for holder in &mut two.holders {
        holder.query("BEGIN; SELECT 1").await.unwrap();
        if holder.value("SELECT pg_backend_pid()").await == two.backends[1] {
            holder.query("COMMIT").await.unwrap();
        }
    }
    wire.send(&[fails.clone(), run("s", &[]), fails_too, run("", &[]), fails, run("s", &[])].concat()).await.unwrap();
    let mut found = Vec::new();
    for _ in 0..6 {
        let messages = wire.read_until_ready().await.unwrap();
        found.push([sqlstates(&messages), values(&messages)].concat().join(","));
    }
    assert_eq!(found, ["26000", "s", "26000", "unnamed", "26000", "s"]);
    assert_eq!(tags(&wire.exchange(&[run("s", &[])]).await), "2DCZ");
}

#[tokio::test]
async fn a_rollback_can_be_a_prepared_statement() {
    let mut two = Two::new().await;
    let mut wire = two.stage.client().await;
    assert_eq!(two.on(0, &mut wire, &[parse("begin", "BEGIN"), parse("rollback", "ROLLBACK"), sync()]).await, "11Z ");
    for holder in &mut two.holders {
        holder.query("BEGIN; SELECT 1").await.unwrap();
        if holder.value("SELECT pg_backend_pid()").await == two.backends[1] {
            holder.query("COMMIT").await.unwrap();
        }
    }
    assert_eq!(wire.exchange(&[run("begin", &[])]).await.last().unwrap().status(), 'T');
    assert_eq!(wire.failure("SELECT 1/0").await, "22012");
    let messages = wire.exchange(&[run("rollback", &[])]).await;
    assert_eq!((tags(&messages), messages[2].status()), ("2CZ".to_owned(), 'I'));
}

/// A function that counts a backend's statements: asked in the open, a client sees none but its own.
async fn count_out_of_sight(stage: &Stage) {
    let function = "CREATE FUNCTION prepared_like(text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RETURN
        (SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE $1 AND name <> ''); END $$";
    stage.sql(function).await;
}

#[tokio::test]
async fn a_backend_keeps_only_so_many_statements() {
    let limits = |files: ProxyFiles| files.set("limits.max_prepared_per_backend", 3);
    let stage = Stage::with(limits, &[("pool.max_backends", 1.into())]).await;
    let mut clients = [stage.client().await, stage.client().await];
    count_out_of_sight(&stage).await;
    let prepared = "SELECT prepared_like('%')";
    for (number, client) in clients.iter_mut().enumerate() {
        for name in 0..10 {
            let sql = format!("SELECT '{number}.{name}'");
            assert_eq!(tags(&client.exchange(&[parse(&name.to_string(), &sql), sync()]).await), "1Z");
        }
        assert_eq!(client.value(prepared).await, "3");
    }
    for round in 0..3 {
        for (number, client) in clients.iter_mut().enumerate() {
            for name in 0..10 {
                let name = if round == 1 { 9 - name } else { name };
                let messages = client.exchange(&[run(&name.to_string(), &[])]).await;
                assert_eq!(values(&messages), [format!("{number}.{name}")]);
            }
            assert_eq!(client.value(prepared).await, "3");
        }
    }
    // All of them in one batch, and twice.
    let batch = |name: u32| [bind("", &name.to_string(), &[]), execute("", 0)].concat();
    let mut all: Vec<Vec<u8>> = (0..10).chain(0..10).map(batch).collect();
    all.push(sync());
    let messages = clients[0].exchange(&all).await;
    assert_eq!(tags(&messages), "2DC".repeat(20) + "Z");
    assert_eq!(clients[0].value(prepared).await, "3");
}

#[tokio::test]
async fn discarding_everything_takes_the_statements_along() {
    let mut two = Two::new().await;
    let (mut wire, mut other) = (two.stage.client().await, two.stage.client().await);
    for sql in ["DISCARD ALL", "DEALLOCATE ALL"] {
        for client in [&mut wire, &mut other] {
            for backend in [0, 1] {
                two.on(backend, client, &[parse("s", "SELECT 1"), run("s", &[])]).await;
            }
        }
        assert_eq!(two.on(0, &mut wire, &[query(sql)]).await, "CZ ");
        for backend in [0, 1] {
            assert_eq!(two.on(backend, &mut wire, &[run("s", &[])]).await, "EZ 26000");
            assert_eq!(two.on(backend, &mut other, &[run("s", &[])]).await, "2DCZ 1");
        }
    }
}

#[tokio::test]
async fn preparing_with_flush_and_in_one_go() {
    let mut two = Two::new().await;
    let mut wire = two.stage.client().await;
    // As asyncpg and JDBC do it: Parse and Describe with Flush, then the rest.
    wire.send(&[parse("s", "SELECT $1::int"), describe_statement("s"), flush()].concat()).await.unwrap();
    for tag in ["1", "t", "T"] {
        assert_eq!(char::from(wire.read().await.unwrap().tag).to_string(), tag);
    }
    assert_eq!(tags(&wire.exchange(&[run("s", &[Some("1")])]).await), "2DCZ");
    let all = [parse("t", "SELECT 't'"), describe_statement("t"), run("t", &[])];
    assert_eq!(two.on(1, &mut wire, &all).await, "1tT2DCZ t");
    assert_eq!(two.on(0, &mut wire, &[run("t", &[])]).await, "2DCZ t");
}

#[tokio::test]
async fn a_statement_keeps_what_its_client_was_told_of_it_when_the_schema_changes() {
    let mut two = Two::new().await;
    let (mut wire, mut other, mut admin) =
        (two.stage.client().await, two.stage.client().await, two.stage.client().await);
    admin.query("CREATE TABLE t (x int); INSERT INTO t VALUES (1)").await.unwrap();
    let prepare = |name: &str, sql: &str| [parse(name, sql), describe_statement(name), sync()].concat();
    let described = |name: &str| [bind("", name, &[]), describe_portal(""), execute("", 0), sync()].concat();
    for client in [&mut wire, &mut other] {
        for (name, sql) in [("all", "SELECT * FROM t"), ("one", "SELECT x FROM t"), ("learns", "SELECT * FROM t")] {
            assert_eq!(two.on(0, client, &[prepare(name, sql)]).await, "1tTZ ");
        }
    }
    assert_eq!(two.on(0, &mut other, &[parse("untold", "SELECT * FROM t"), sync()]).await, "1Z ");
    assert_eq!(two.on(0, &mut wire, &[prepare("", "SELECT * FROM t")]).await, "1tTZ ");
    assert_eq!(two.on(0, &mut wire, &[prepare("insert", "INSERT INTO t (x) VALUES ($1)")]).await, "1tnZ ");
    admin.query("ALTER TABLE t ADD y text DEFAULT 'new', ALTER x TYPE bigint").await.unwrap();
    admin.query("ALTER TABLE t ALTER x TYPE int").await.unwrap();
    // On a backend that has not seen them: what PostgreSQL would say, once for each client, and nothing was run.
    for client in [&mut wire, &mut other] {
        assert_eq!(two.on(1, client, &[run("all", &[])]).await, "EZ 0A000");
        assert_eq!(two.on(1, client, &[run("all", &[])]).await, "2DCZ 1");
        assert_eq!(two.on(1, client, &[run("one", &[])]).await, "2DCZ 1", "the same result");
        assert_eq!(two.on(1, client, &[described("learns")]).await, "2TDCZ 1");
    }
    assert_eq!(two.on(1, &mut other, &[run("untold", &[])]).await, "2DCZ 1");
    assert_eq!(two.on(1, &mut wire, &[prepare("", "SELECT * FROM t")]).await, "1tTZ ");
    admin.query("ALTER TABLE t DROP y").await.unwrap();
    assert_eq!(two.on(0, &mut wire, &[run("", &[])]).await, "EZ 0A000");
    // The types of parameters stay.
    admin.query("ALTER TABLE t ALTER x TYPE text").await.unwrap();
    let messages = [describe_statement("insert"), sync()].concat();
    two.hold_all_but(1).await;
    let answer = wire.exchange(&[messages]).await;
    two.hold_none().await;
    assert_eq!((tags(&answer).as_str(), &answer[0].payload[2..]), ("tnZ", &23_u32.to_be_bytes()[..]));
}

#[tokio::test]
async fn a_statement_out_of_date_fails_its_transaction_and_its_batch() {
    let mut two = Two::new().await;
    let (mut wire, mut admin) = (two.stage.client().await, two.stage.client().await);
    admin.query("CREATE TABLE t (x int); INSERT INTO t VALUES (1); CREATE TABLE log (x int)").await.unwrap();
    let messages = [parse("s", "SELECT * FROM t"), describe_statement("s"), sync()];
    assert_eq!(two.on(0, &mut wire, &messages).await, "1tTZ ");
    admin.query("ALTER TABLE t ADD y int").await.unwrap();
    // What precedes it in its batch is undone with it, what follows it there is passed over.
    let insert = [parse("", "INSERT INTO log VALUES (1)"), bind("", "", &[]), execute("", 0)].concat();
    let batch = [insert.clone(), bind("", "s", &[]), execute("", 0), insert, sync()];
    assert_eq!(two.on(1, &mut wire, &batch).await, "12CEZ 0A000");
    assert_eq!(wire.value("SELECT count(*) FROM log").await, "0");
    assert_eq!(two.on(1, &mut wire, &[run("s", &[])]).await, "2DCZ 1");
    let messages = [parse("t", "SELECT * FROM t"), describe_statement("t"), sync()];
    assert_eq!(two.on(0, &mut wire, &messages).await, "1tTZ ");
    admin.query("ALTER TABLE t ADD z int").await.unwrap();
    assert_eq!(two.on(1, &mut wire, &[query("BEGIN; INSERT INTO log VALUES (1)")]).await, "CCZ ");
    let messages = wire.exchange(&[run("t", &[])]).await;
    assert_eq!((sqlstates(&messages), messages.last().unwrap().status()), (vec!["0A000".to_owned()], 'E'));
    assert_eq!(messages[0].error().fields[&'R'], "RevalidateCachedQuery");
    assert_eq!(wire.failure("SELECT 1").await, "25P02");
    wire.query("ROLLBACK").await.unwrap();
    assert_eq!(wire.value("SELECT count(*) FROM log").await, "0");
    // In the transaction that makes the change.
    let messages = [parse("u", "SELECT * FROM t"), describe_statement("u"), sync()];
    assert_eq!(two.on(0, &mut wire, &messages).await, "1tTZ ");
    assert_eq!(two.on(1, &mut wire, &[query("BEGIN; ALTER TABLE t ADD u int")]).await, "CCZ ");
    assert_eq!(sqlstates(&wire.exchange(&[run("u", &[])]).await), ["0A000"]);
    wire.query("ROLLBACK").await.unwrap();
    // A table that is gone is another error.
    let messages = [parse("v", "SELECT * FROM t"), describe_statement("v"), sync()];
    assert_eq!(two.on(0, &mut wire, &messages).await, "1tTZ ");
    admin.query("DROP TABLE t").await.unwrap();
    assert_eq!(two.on(1, &mut wire, &[run("v", &[])]).await, "EZ 42P01");
    assert_eq!(wire.value("SELECT 1").await, "1");
}
