//! Transaction pooling that looks like a connection of one's own: parameters follow their client, what cannot follow keeps
//! its backend, a transaction begins with its first statement.

use std::time::Duration;

use crate::eventually;
use crate::harness::frontend::{
    bind, describe_portal, describe_statement, execute, flush, function_call, parse, query, sync,
};
use crate::harness::stage::Stage;
use crate::harness::wire::{Wire, cancel, sqlstates, tags, values};

/// One backend, so that two clients take turns on it.
async fn one_backend() -> Stage {
    Stage::new(&[("pool.max_backends", 1.into()), ("pool.queue_timeout", "500ms".into())]).await
}

/// Another client uses the backend, and finds its own parameters there.
async fn others_turn(other: &mut Wire) {
    assert_eq!(other.value("SELECT current_setting('work_mem') || current_setting('TimeZone')").await, "4MBEtc/UTC");
}

/// A client with a time zone of its own.
async fn other(stage: &Stage) -> Wire {
    stage.client_with(&[("TimeZone", "Etc/UTC")]).await
}

#[tokio::test]
async fn parameters_follow_their_client() {
    let stage = one_backend().await;
    let (mut wire, mut other) = (stage.client().await, other(&stage).await);
    let change = [
        "SET work_mem = '7MB'",
        "SET SESSION my.name = 'it''s \\ \u{e4}'",
        "SELECT set_config('search_path', 'pg_catalog, \"$user\"', false)",
        "SET TIME ZONE 'Asia/Tokyo'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "BEGIN; SET statement_timeout = '1min'; COMMIT",
        "BEGIN; SET lock_timeout = '9s'; ROLLBACK",
        "BEGIN; SAVEPOINT a; SET idle_session_timeout = '9min'; ROLLBACK TO a; SET LOCAL work_mem = '1MB'; COMMIT",
        "DO $$ BEGIN PERFORM set_config('geqo_seed', '0.5', false); END $$",
    ];
    for statement in change {
        wire.query(statement).await.unwrap();
        others_turn(&mut other).await;
    }
    let batch = [
        parse("", "SELECT set_config($1, $2, false)"),
        bind("", "", &[Some("deadlock_timeout"), Some("9s")]),
        execute("", 0),
        sync(),
    ];
    // A superuser's parameter: refused, and nothing is lost by it.
    assert_eq!(sqlstates(&wire.exchange(&batch).await), ["42501"]);
    others_turn(&mut other).await;
    let settings = "SELECT concat_ws('|', current_setting('work_mem'), current_setting('my.name'),
        current_setting('search_path'), current_setting('TimeZone'), current_setting('default_transaction_read_only'),
        current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('idle_session_timeout'),
        current_setting('geqo_seed'))";
    let expected = "7MB|it's \\ \u{e4}|pg_catalog, \"$user\"|Asia/Tokyo|on|1min|0|0|0.5";
    assert_eq!(wire.value(settings).await, expected);
    others_turn(&mut other).await;
    assert_eq!(wire.value(settings).await, expected);
    assert_eq!(wire.parameters["TimeZone"], "Asia/Tokyo");
    assert_eq!(other.parameters["TimeZone"], "Etc/UTC");
    assert_eq!(stage.backends().await, 1, "never another backend, and never pinned");
}

#[tokio::test]
async fn a_reset_goes_back_to_what_the_client_began_with() {
    let stage = one_backend().await;
    let startup = [("TimeZone", "Asia/Tokyo"), ("options", "-c work_mem=9MB -c my.name=mine")];
    let mut wire = stage.client_with(&startup).await;
    let mut other = other(&stage).await;
    let settings = "SELECT concat_ws('|', current_setting('TimeZone'), current_setting('work_mem'),
        current_setting('my.name'), current_setting('lock_timeout'))";
    let all = "SET TimeZone = 'UTC'; SET work_mem = '1MB'; SET my.name = 'x'; SET lock_timeout = '1s'";
    for (reset, expected) in [
        ("RESET TimeZone", "Asia/Tokyo|1MB|x|1s"),
        ("SET work_mem TO DEFAULT", "UTC|9MB|x|1s"),
        ("RESET my.name", "UTC|1MB|mine|1s"),
        ("RESET lock_timeout", "UTC|1MB|x|0"),
        ("RESET ALL", "Asia/Tokyo|9MB|mine|0"),
        ("DISCARD ALL", "Asia/Tokyo|9MB|mine|0"),
    ] {
        wire.query(all).await.unwrap();
        others_turn(&mut other).await;
        let tag = if reset.starts_with("SET") { "SET" } else { reset.split(' ').next().unwrap() };
        let tag = if reset == "DISCARD ALL" { reset } else { tag };
        let messages = wire.exchange(&[query(reset)]).await;
        let told = messages.iter().find(|message| message.tag == b'C').unwrap();
        assert_eq!(told.payload, format!("{tag}\0").as_bytes(), "{reset}");
        assert_eq!(wire.value(settings).await, expected, "{reset}");
        others_turn(&mut other).await;
        assert_eq!(wire.value(settings).await, expected, "{reset}, on the backend once more");
        // As a prepared statement, and seen by what follows it in the same batch.
        if reset != "DISCARD ALL" {
            wire.query(all).await.unwrap();
            let look = [parse("", settings), bind("", "", &[]), execute("", 0), sync()].concat();
            let batch = [parse("r", reset), describe_statement("r"), bind("", "r", &[]), execute("", 0)].concat();
            let messages = wire.exchange(&[batch, look]).await;
            assert_eq!(values(&messages), [expected], "{reset}");
            let told = messages.iter().find(|message| message.tag == b'C').unwrap();
            assert_eq!(told.payload, format!("{tag}\0").as_bytes(), "{reset}");
            wire.query("DEALLOCATE r").await.unwrap();
            let together = format!("{all}; {reset}; {settings}");
            assert_eq!(wire.query(&together).await.unwrap().pop().unwrap()[0].as_deref(), Some(expected), "{reset}");
        }
        wire.query("RESET ALL").await.unwrap();
    }
    // Set to nothing is not reset.
    wire.query("SET my.name = ''").await.unwrap();
    for _ in 0..2 {
        assert_eq!(wire.value("SHOW my.name").await, "");
        wire.query("SET work_mem = '3MB'").await.unwrap();
        others_turn(&mut other).await;
    }
    wire.query("RESET my.name").await.unwrap();
    assert_eq!(wire.value("SHOW my.name").await, "mine");
    // An error behind one tells the place in the client's own text.
    let error = wire.query("SELECT '\u{e4}'; RESET ALL; RESET TimeZone; SELEC").await.unwrap_err();
    assert_eq!((error.sqlstate(), error.fields[&'P'].as_str()), ("42601", "40"));
    let error = wire.query("SELECT '\u{e4}'; RESET ALL; RESET TimeZone; SELECT nothing").await.unwrap_err();
    assert_eq!((error.sqlstate(), error.fields[&'P'].as_str()), ("42703", "47"));
    // One that fails goes back to nothing.
    wire.query("SET TimeZone = 'UTC'; DECLARE c CURSOR WITH HOLD FOR SELECT 1").await.unwrap();
    let batch = [parse("", "DISCARD ALL"), bind("c", "", &[]), execute("c", 0), sync()];
    assert_eq!(sqlstates(&wire.exchange(&batch).await), ["42P03"]);
    assert_eq!((wire.value("SHOW TimeZone").await.as_str(), wire.parameters["TimeZone"].as_str()), ("UTC", "UTC"));
    let batch = [parse("", "DISCARD ALL"), bind("", "", &[]), execute("", 0), sync()];
    wire.send(&[batch.concat(), query("SHOW TimeZone")].concat()).await.unwrap();
    assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "12CSZ");
    assert_eq!(values(&wire.read_until_ready().await.unwrap()), ["Asia/Tokyo"]);
    wire.query("SET TimeZone = 'UTC'").await.unwrap();
    wire.send(&[parse("", "DISCARD ALL"), bind("", "", &[]), execute("", 0), flush()].concat()).await.unwrap();
    while wire.read().await.unwrap().tag != b'C' {}
    assert_eq!(tags(&wire.exchange(&[sync()]).await), "SZ");
    assert_eq!(
        (wire.value("SHOW TimeZone").await.as_str(), wire.parameters["TimeZone"].as_str()),
        ("Asia/Tokyo", "Asia/Tokyo")
    );
    wire.query("SET TimeZone = 'UTC'").await.unwrap();
    wire.query("BEGIN; SET TimeZone = 'America/Lima'").await.unwrap();
    assert_eq!(tags(&wire.exchange(&[query("DISCARD ALL")]).await), "ESZ");
    assert_eq!(wire.parameters["TimeZone"], "UTC", "rolled back");
    wire.query("ROLLBACK").await.unwrap();
    // Behind the end of a transaction, in the same write.
    wire.query("SET TimeZone = 'UTC'").await.unwrap();
    wire.query("BEGIN; SELECT 1").await.unwrap();
    wire.send(&[query("COMMIT"), query("DISCARD ALL")].concat()).await.unwrap();
    wire.read_until_ready().await.unwrap();
    assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "CSZ");
    assert_eq!(wire.parameters["TimeZone"], "Asia/Tokyo");
    // What was sent right behind a reset of everything waits until the client's parameters are back.
    wire.send(&[query(all), query("DISCARD ALL"), query(settings)].concat()).await.unwrap();
    wire.read_until_ready().await.unwrap();
    wire.read_until_ready().await.unwrap();
    assert_eq!(values(&wire.read_until_ready().await.unwrap()), ["Asia/Tokyo|9MB|mine|0"]);
}

#[tokio::test]
async fn a_reset_of_everything_is_no_query() {
    let stage = one_backend().await;
    let startup = [("TimeZone", "Asia/Tokyo"), ("options", "-c work_mem=9MB -c my.name=mine")];
    let mut wire = stage.client_with(&startup).await;
    wire.query("SET TimeZone = 'UTC'; BEGIN").await.unwrap();
    let both = "RESET ALL; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; RESET ALL; SHOW TimeZone; SHOW my.name";
    let messages = wire.exchange(&[query(both)]).await;
    assert_eq!(
        (tags(&messages).as_str(), values(&messages)),
        ("CCCTDCTDCSZ", vec!["Asia/Tokyo".into(), "mine".into()])
    );
    let commands = messages.iter().filter(|message| message.tag == b'C').map(|message| &message.payload[..]);
    assert_eq!(commands.collect::<Vec<_>>(), [&b"RESET\0"[..], b"SET\0", b"RESET\0", b"SHOW\0", b"SHOW\0"]);
    wire.query("COMMIT").await.unwrap();
}

#[tokio::test]
async fn a_role_follows_its_client_and_no_request_runs_without_it() {
    let stage = one_backend().await;
    stage.sql("CREATE ROLE reader; GRANT reader TO app; CREATE ROLE writer; GRANT writer TO app").await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    let who = "SELECT current_user || ' ' || session_user";
    wire.query("SET ROLE reader").await.unwrap();
    other.query("SET ROLE writer; SET work_mem = '7MB'").await.unwrap();
    for _ in 0..3 {
        assert_eq!(wire.value(who).await, "reader app");
        assert_eq!(other.value(who).await, "writer app");
    }
    wire.query("RESET ROLE").await.unwrap();
    assert_eq!(other.value(who).await, "writer app");
    assert_eq!(wire.value(who).await, "app app");
    // The role is taken away: the request that would have run as somebody else does not run at all.
    stage.sql("CREATE TABLE who (who text); GRANT INSERT ON who TO PUBLIC; REVOKE writer FROM app").await;
    assert_eq!(other.failure("INSERT INTO who VALUES (current_user)").await, "42501");
    assert_eq!(stage.sql("SELECT count(*) FROM who").await[0][0].as_deref(), Some("0"));
    assert_eq!(wire.value(who).await, "app app");
}

#[tokio::test]
async fn who_logged_in_with_a_role_goes_back_to_it() {
    let stage = one_backend().await;
    stage.sql("CREATE ROLE reader; GRANT reader TO app; CREATE ROLE writer; GRANT writer TO app").await;
    let mut wire = stage.client_with(&[("options", "-c role=reader")]).await;
    let mut other = other(&stage).await;
    let who = "SELECT current_user || ' ' || session_user";
    for reset in ["RESET SESSION AUTHORIZATION", "SET SESSION AUTHORIZATION DEFAULT", "RESET ROLE"] {
        let batch = [parse("", reset), bind("", "", &[]), execute("", 0), sync()].concat();
        for reset in [query(reset), batch] {
            wire.query("SET ROLE writer").await.unwrap();
            others_turn(&mut other).await;
            assert_eq!(wire.value(who).await, "writer app");
            assert_eq!(tags(&wire.exchange(&[reset]).await).matches('C').count(), 1);
            assert_eq!(wire.value(who).await, "reader app");
            others_turn(&mut other).await;
            assert_eq!(wire.value(who).await, "reader app");
        }
    }
}

/// What pins, how it is told on the metrics, and what ends it.
const PINS: &[(&str, &str, &str)] = &[
    ("CREATE TEMP TABLE mine (x int)", "temporary_object", "DROP TABLE mine"),
    ("CREATE TEMP VIEW mine AS SELECT 1", "temporary_object", "DISCARD TEMP"),
    ("SELECT 1 AS x INTO TEMP mine", "temporary_object", "DISCARD ALL"),
    ("SELECT pg_advisory_lock(1), pg_advisory_lock(2)", "advisory_lock", "SELECT pg_advisory_unlock_all()"),
    ("SELECT pg_try_advisory_lock_shared(1)", "advisory_lock", "SELECT pg_advisory_unlock_shared(1)"),
    ("BEGIN; DECLARE mine CURSOR WITH HOLD FOR SELECT 1; COMMIT", "cursor", "CLOSE mine"),
    ("BEGIN; LISTEN news; COMMIT", "listen", "BEGIN; UNLISTEN *; COMMIT"),
    ("PREPARE mine AS SELECT 1", "prepare", "DEALLOCATE mine"),
    ("PREPARE mine AS SELECT 1", "prepare", "DEALLOCATE ALL"),
];

#[tokio::test]
async fn what_cannot_follow_keeps_its_backend_for_as_long_as_it_is_there() {
    let stage = one_backend().await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    for (begin, reason, end) in PINS {
        wire.query(begin).await.unwrap();
        let metric = format!("pgtenant_pins{{instance_name=\"one\",reason=\"{reason}\"}}");
        eventually!(stage.proxy.metric(&metric).await == 1.0);
        assert_eq!(stage.proxy.metric("pgtenant_tenant_clients_pinned{tenant=\"acme\"").await, 1.0);
        assert_eq!(other.failure("SELECT 1").await, "53300", "{begin}");
        assert_eq!(wire.value("SELECT 1").await, "1");
        wire.query(end).await.unwrap();
        assert_eq!(other.value("SELECT 1").await, "1", "{begin}, {end}");
        assert_eq!(stage.proxy.metric(&metric).await, 0.0);
    }
    // Rolled back, dropped at commit, or never made: no pin.
    let nothing = [
        "BEGIN; CREATE TEMP TABLE mine (x int); ROLLBACK",
        "BEGIN; CREATE TEMP TABLE mine (x int) ON COMMIT DROP; INSERT INTO mine VALUES (1); COMMIT",
        "SELECT pg_advisory_lock(1), pg_advisory_unlock(1)",
        "DROP TABLE IF EXISTS mine",
        "BEGIN; SELECT pg_advisory_xact_lock(1); DECLARE mine CURSOR FOR SELECT 1; FETCH mine; COMMIT",
    ];
    for statement in nothing {
        wire.query(statement).await.unwrap();
        assert_eq!(other.value("SELECT 1").await, "1", "{statement}");
    }
    // Who leaves with something leaves nothing.
    for (begin, ..) in PINS {
        let mut wire = stage.client().await;
        wire.query(begin).await.unwrap();
        drop(wire);
        eventually!(other.query("SELECT 1").await.is_ok());
        let left = "SELECT (SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND pg_table_is_visible(oid)) ||
            (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')::text || (SELECT count(*) FROM pg_cursors WHERE
            is_holdable) || (SELECT count(*) FROM pg_listening_channels()) || (SELECT count(*) FROM
            pg_prepared_statements WHERE from_sql)";
        assert_eq!(other.value(left).await, "00000", "{begin}");
    }
}

#[tokio::test]
async fn a_pinned_client_is_itself() {
    let stage = one_backend().await;
    let mut wire = stage.client().await;
    wire.query("CREATE TEMP TABLE mine (x int); PREPARE add AS INSERT INTO mine VALUES ($1)").await.unwrap();
    for number in 0..3 {
        wire.query(&format!("EXECUTE add({number})")).await.unwrap();
    }
    wire.query("BEGIN; DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT x FROM mine ORDER BY x; COMMIT").await.unwrap();
    assert_eq!(wire.value("FETCH 1 FROM c").await, "0");
    assert_eq!(wire.value("FETCH 1 FROM c").await, "1");
    assert_eq!(values(&wire.exchange(&[bind("", "add", &[Some("7")]), execute("", 0), sync()]).await), [""; 0]);
    assert_eq!(wire.value("SELECT sum(x) FROM mine").await, "10");
    // It hears at once what its backend has to say.
    wire.query("BEGIN; LISTEN news; COMMIT").await.unwrap();
    stage.sql("NOTIFY news, 'x'").await;
    assert_eq!(wire.read().await.unwrap().tag, b'A');
    stage.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'").await;
    wire.expect_error("57P01").await;
    assert!(wire.is_closed().await);
}

#[tokio::test]
async fn pins_are_bounded_in_number_and_time() {
    let changes = [("pool.max_pins", 1.into()), ("pool.max_pin_time", "300ms".into())];
    let stage = Stage::new(&changes).await;
    let (mut one, mut two) = (stage.client().await, stage.client().await);
    one.query("CREATE TEMP TABLE mine (x int)").await.unwrap();
    two.query("CREATE TEMP TABLE mine (x int)").await.unwrap();
    let error = two.expect_error("53400").await;
    assert!(format!("{error:?}").contains("pool.max_pins is 1"), "{error:?}");
    assert!(two.is_closed().await);
    let error = one.expect_error("53400").await;
    assert!(format!("{error:?}").contains("temporary_object"), "{error:?}");
    assert!(one.is_closed().await);
    eventually!(stage.proxy.metric("pgtenant_tenant_clients_pinned{tenant=\"acme\"").await == 0.0);
    // Never in a transaction.
    let mut wire = stage.client().await;
    wire.query("CREATE TEMP TABLE mine (x int)").await.unwrap();
    wire.query("BEGIN; SELECT pg_sleep(0.5)").await.unwrap();
    assert_eq!(wire.value("SELECT 1").await, "1");
    wire.query("COMMIT").await.unwrap();
    wire.expect_error("53400").await;
    eventually!(stage.proxy.metric("pgtenant_tenant_clients_pinned{tenant=\"acme\"").await == 0.0);
}

#[tokio::test]
async fn sequences_are_remembered_where_somebody_asks_for_them() {
    let stage = Stage::new(&[("pool.max_backends", 2.into())]).await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    wire.query("CREATE TABLE t (id serial, x int)").await.unwrap();
    assert_eq!(wire.failure("SELECT lastval()").await, "55000");
    wire.query("INSERT INTO t (x) VALUES (1)").await.unwrap();
    for _ in 0..4 {
        assert_eq!(other.failure("SELECT lastval()").await, "55000");
        assert_eq!(wire.value("SELECT lastval() || ' ' || currval('t_id_seq')").await, "1 1");
    }
    // Advanced again behind a DISCARD, in the same query or before that is answered.
    for discard in ["DISCARD SEQUENCES; SELECT nextval('t_id_seq')", "DISCARD SEQUENCES", "DISCARD ALL"] {
        wire.exchange(&[query(discard), query("SELECT nextval('t_id_seq')")]).await;
        let next = values(&wire.read_until_ready().await.unwrap()).remove(0);
        for _ in 0..4 {
            assert_eq!(other.failure("SELECT lastval()").await, "55000");
            assert_eq!(wire.value("SELECT lastval()").await, next);
        }
    }
    // What was done before anybody asked is not told to others either.
    let stage_of_one = one_backend().await;
    let (mut first, mut second) = (stage_of_one.client().await, stage_of_one.client().await);
    first.query("CREATE TABLE t (id serial, x int); INSERT INTO t (x) VALUES (1)").await.unwrap();
    let batch = [parse("", "SELECT lastval()"), bind("", "", &[]), execute("", 0), sync()];
    assert_eq!(sqlstates(&second.exchange(&batch).await), ["55000"]);
    wire.query("DISCARD SEQUENCES").await.unwrap();
    assert_eq!(wire.failure("SELECT currval('t_id_seq')").await, "55000");
    eventually!(stage.proxy.metric("pgtenant_tenant_clients_pinned{tenant=\"acme\"").await == 0.0);
}

#[tokio::test]
async fn with_pin_check_what_functions_hide_is_found() {
    let stage = Stage::new(&[("pool.max_backends", 2.into()), ("pool.pin_check", true.into())]).await;
    stage
        .sql(
            "CREATE FUNCTION hidden_lock() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(7); END $$;
             CREATE FUNCTION hidden_table() RETURNS void LANGUAGE plpgsql AS
             $$ BEGIN EXECUTE 'CREATE TEMP TABLE mine AS SELECT 5 AS x'; END $$;
             CREATE FUNCTION hidden_set() RETURNS void LANGUAGE plpgsql AS $$ BEGIN SET work_mem = '9MB'; END $$",
        )
        .await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    wire.query("SELECT hidden_set()").await.unwrap();
    for _ in 0..3 {
        assert_eq!(other.value("SHOW work_mem").await, "4MB");
        assert_eq!(wire.value("SHOW work_mem").await, "9MB");
    }
    wire.query("SELECT hidden_table(), hidden_lock()").await.unwrap();
    for _ in 0..3 {
        assert_eq!(other.failure("SELECT x FROM mine").await, "42P01");
        assert_eq!(wire.value("SELECT x FROM mine").await, "5");
        assert_eq!(other.value("SELECT pg_try_advisory_lock(7)").await, "f");
    }
    assert_eq!(stage.proxy.metric("pgtenant_tenant_clients_pinned{tenant=\"acme\"").await, 1.0);
}

#[tokio::test]
async fn a_transaction_takes_its_backend_with_its_first_statement() {
    let stage = one_backend().await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    for begin in ["BEGIN", " begin isolation level repeatable read;", "START TRANSACTION READ ONLY"] {
        let messages = wire.exchange(&[query(begin)]).await;
        let tag = if begin.starts_with('S') { &b"START TRANSACTION\0"[..] } else { b"BEGIN\0" };
        assert_eq!((tags(&messages).as_str(), &messages[0].payload[..], messages[1].status()), ("CZ", tag, 'T'));
        assert_eq!(other.value("SELECT 1").await, "1", "{begin} holds nothing");
        let messages = wire.exchange(&[query("SELECT current_setting('transaction_isolation')")]).await;
        let expected = if begin.contains("repeatable") { "repeatable read" } else { "read committed" };
        assert_eq!((values(&messages), messages.last().unwrap().status()), (vec![expected.to_owned()], 'T'));
        assert_eq!(other.failure("SELECT 1").await, "53300");
        assert_eq!(wire.exchange(&[query("COMMIT")]).await[1].status(), 'I');
        assert_eq!(other.value("SELECT 1").await, "1");
    }
    // Without any statement it never needs one.
    other.query("BEGIN; SELECT 1").await.unwrap();
    for end in ["COMMIT", "END", "ROLLBACK"] {
        wire.query("BEGIN").await.unwrap();
        let messages = wire.exchange(&[query(end)]).await;
        let tag = if end == "ROLLBACK" { &b"ROLLBACK\0"[..] } else { b"COMMIT\0" };
        assert_eq!((&messages[0].payload[..], messages[1].status()), (tag, 'I'));
    }
    // One that gets no backend has failed, until the client ends it.
    wire.query("BEGIN").await.unwrap();
    let messages = wire.exchange(&[query("SELECT 1")]).await;
    assert_eq!((sqlstates(&messages), messages.last().unwrap().status()), (vec!["53300".to_owned()], 'E'));
    other.query("COMMIT").await.unwrap();
    let messages = wire.exchange(&[parse("", "SELECT 1"), bind("", "", &[]), execute("", 0), sync()]).await;
    assert_eq!((sqlstates(&messages), messages.last().unwrap().status()), (vec!["25P02".to_owned()], 'E'));
    let messages = wire.exchange(&[query("COMMIT")]).await;
    assert_eq!((&messages[0].payload[..], messages[1].status()), (&b"ROLLBACK\0"[..], 'I'));
    // With parameters and a transaction before the same request.
    wire.query("SET work_mem = '7MB'").await.unwrap();
    other.query("SET work_mem = '8MB'").await.unwrap();
    wire.query("BEGIN").await.unwrap();
    assert_eq!(other.value("SHOW work_mem").await, "8MB");
    assert_eq!(wire.value("SHOW work_mem").await, "7MB");
    wire.query("ROLLBACK").await.unwrap();
    assert_eq!(wire.value("SHOW work_mem").await, "7MB");
}

#[tokio::test]
async fn a_cancel_does_not_hit_what_is_sent_ahead() {
    let stage = one_backend().await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    wire.query("SET work_mem = '7MB'").await.unwrap();
    let key = wire.key.clone().unwrap();
    let address = stage.proxy.address();
    for _ in 0..20 {
        other.query("SET work_mem = '8MB'").await.unwrap();
        wire.send(&query("SELECT pg_sleep(10)")).await.unwrap();
        cancel(address, &key).await.unwrap();
        let messages = match tokio::time::timeout(Duration::from_millis(300), wire.read_until_ready()).await {
            Ok(messages) => messages.unwrap(),
            // It came before the query: a second one does it, as it would on a direct connection.
            Err(_) => {
                cancel(address, &key).await.unwrap();
                wire.read_until_ready().await.unwrap()
            }
        };
        assert_eq!(sqlstates(&messages), ["57014"]);
        assert_eq!(wire.value("SHOW work_mem").await, "7MB");
    }
}

#[tokio::test]
async fn a_statement_whose_plan_is_out_of_date_is_prepared_again() {
    let stage = one_backend().await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    wire.query("CREATE TABLE t (x int); INSERT INTO t VALUES (1)").await.unwrap();
    let run = |name: &str| [bind("", name, &[]), execute("", 0), sync()].concat();
    assert_eq!(values(&wire.exchange(&[parse("a", "SELECT * FROM t"), run("a")]).await), ["1"]);
    wire.query("ALTER TABLE t ADD y text DEFAULT 'new'").await.unwrap();
    // A client that prepares it only now would see no error from a backend of its own.
    let messages = other.exchange(&[parse("b", "SELECT * FROM t"), describe_statement("b"), run("b")]).await;
    assert_eq!(tags(&messages), "1tT2DCZ");
    assert_eq!(messages[4].row(), [Some("1".to_owned()), Some("new".to_owned())]);
    for number in 0..3 {
        wire.query(&format!("ALTER TABLE t ADD z{number} int")).await.unwrap();
        let described = |name: &str| [bind("", name, &[]), describe_portal(""), execute("", 0), sync()].concat();
        assert_eq!(tags(&wire.exchange(&[described("a")]).await), "2TDCZ");
        // Who does not ask again would take the new result for the old: PostgreSQL's error, and prepared again after that.
        wire.query(&format!("ALTER TABLE t ADD y{number} int")).await.unwrap();
        assert_eq!(sqlstates(&wire.exchange(&[run("a")]).await), ["0A000"]);
        assert_eq!(tags(&other.exchange(&[described("b")]).await), "2TDCZ");
    }
    // In a transaction there is no second try; the next one works.
    assert_eq!(tags(&wire.exchange(&[run("a")]).await), "2DCZ");
    wire.query("ALTER TABLE t DROP y").await.unwrap();
    wire.query("BEGIN; SELECT 1").await.unwrap();
    assert_eq!(sqlstates(&wire.exchange(&[run("a")]).await), ["0A000"]);
    wire.query("ROLLBACK").await.unwrap();
    assert_eq!(tags(&wire.exchange(&[run("a")]).await), "2DCZ");
    // Something dropped it behind our back.
    wire.query("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$").await.unwrap();
    assert_eq!(tags(&wire.exchange(&[run("a")]).await), "2DCZ");
}

#[tokio::test]
async fn statements_are_shared_only_where_they_mean_the_same() {
    let stage = one_backend().await;
    stage.sql("CREATE SCHEMA one; CREATE SCHEMA two; GRANT USAGE ON SCHEMA one, two TO app").await;
    stage.sql("CREATE TABLE one.t AS SELECT 1 AS x; CREATE TABLE two.t AS SELECT 'two' AS x").await;
    stage.sql("GRANT SELECT ON one.t, two.t TO app").await;
    let mut clients = [
        stage.client_with(&[("search_path", "one")]).await,
        stage.client_with(&[("search_path", "two"), ("DateStyle", "ISO, DMY")]).await,
    ];
    let expected = [["1", "2024-01-02"], ["two", "2024-02-01"]];
    for _ in 0..3 {
        for (wire, expected) in clients.iter_mut().zip(expected) {
            let run = |name: &str, sql: &str| [parse(name, sql), bind("", name, &[]), execute("", 0)].concat();
            let batch = [run("a", "SELECT x FROM t"), run("b", "SELECT '01/02/2024'::date"), sync()];
            assert_eq!(values(&wire.exchange(&batch).await), expected);
            wire.query("DEALLOCATE a").await.unwrap();
            wire.query("DEALLOCATE ALL").await.unwrap();
            assert_eq!(sqlstates(&wire.exchange(&[bind("", "b", &[]), execute("", 0), sync()]).await), ["26000"]);
        }
    }
}

#[tokio::test]
async fn what_a_function_call_does_is_found() {
    let stage = one_backend().await;
    let (mut wire, mut other) = (stage.client().await, other(&stage).await);
    let oid = stage.sql("SELECT 'set_config(text,text,bool)'::regprocedure::oid").await.remove(0).remove(0).unwrap();
    wire.exchange(&[function_call(oid.parse().unwrap(), &["lock_timeout", "7s", "f"])]).await;
    others_turn(&mut other).await;
    assert_eq!(wire.value("SHOW lock_timeout").await, "7s");
    wire.exchange(&[function_call(oid.parse().unwrap(), &["My.Called", "mine", "f"])]).await;
    others_turn(&mut other).await;
    assert_eq!(wire.value("SHOW my.called").await, "mine");
}

#[tokio::test]
async fn what_a_client_prepares_after_a_change_of_the_schema_is_analysed_anew() {
    let stage = one_backend().await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    let describe = |name: &str| [parse(name, "INSERT INTO t VALUES ($1)"), describe_statement(name), sync()].concat();
    // ParameterDescription: the number of parameters, and the type of the first.
    let kind = |messages: &[crate::harness::wire::Message]| messages[1].payload[2..6].to_vec();
    wire.query("CREATE TABLE t (x int)").await.unwrap();
    let number = kind(&wire.exchange(&[describe("a")]).await);
    assert_eq!(kind(&other.exchange(&[describe("a")]).await), number);
    wire.query("DROP TABLE t; CREATE TABLE t (x text)").await.unwrap();
    let text = kind(&other.exchange(&[describe("b")]).await);
    assert_ne!(text, number);
    assert_eq!(kind(&wire.exchange(&[describe("b")]).await), text);
    // In the transaction that makes the change, and with temporary tables.
    wire.query("BEGIN; DROP TABLE t; CREATE TABLE t (x int)").await.unwrap();
    assert_eq!(kind(&wire.exchange(&[describe("c")]).await), number);
    wire.query("ROLLBACK").await.unwrap();
    assert_eq!(kind(&wire.exchange(&[describe("d")]).await), text);
    wire.query("CREATE TEMP TABLE t (x int)").await.unwrap();
    assert_eq!(kind(&wire.exchange(&[describe("e")]).await), number);
    wire.query("DROP TABLE t; CREATE TEMP TABLE t (x text)").await.unwrap();
    assert_eq!(kind(&wire.exchange(&[describe("f")]).await), text);
    wire.query("DROP TABLE t").await.unwrap();
    // A string that means the moment of the analysis is nobody else's.
    let now =
        |name: &str| [parse(name, "SELECT 'now'::timestamptz"), bind("", name, &[]), execute("", 0), sync()].concat();
    let earlier = values(&wire.exchange(&[now("now")]).await);
    assert_ne!(values(&other.exchange(&[now("now")]).await), earlier);
    assert_ne!(values(&wire.exchange(&[now("again")]).await), earlier);
}

#[tokio::test]
async fn idle_backends_do_not_stand_in_the_way_of_a_database() {
    let changes = [("databases", toml::Value::Array(vec!["*".into()]))];
    let stage = Stage::new(&changes).await;
    stage.sql("ALTER ROLE app CREATEDB").await;
    let mut wire = stage.client().await;
    wire.query("CREATE DATABASE second").await.unwrap();
    let mut inside = stage.client_with(&[("database", "second")]).await;
    assert_eq!(inside.value("SELECT current_database()").await, "second");
    drop(inside);
    let batch = [parse("", "DROP DATABASE second"), bind("", "", &[]), execute("", 0), sync()];
    assert_eq!(tags(&wire.exchange(&batch).await), "12CZ");
    // Nor in that of a client that keeps its backend, or of what comes behind another request.
    wire.query("CREATE DATABASE second").await.unwrap();
    for prelude in ["SELECT 1", "CREATE TEMP TABLE mine (x int)"] {
        let mut inside = stage.client_with(&[("database", "second")]).await;
        inside.query("SELECT 1").await.unwrap();
        wire.query(prelude).await.unwrap();
        wire.send(&[query("SELECT 1"), query("ALTER DATABASE second RENAME TO third")].concat()).await.unwrap();
        wire.read_until_ready().await.unwrap();
        assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "CZ", "{prelude}");
        wire.query("ALTER DATABASE third RENAME TO second").await.unwrap();
    }
}

#[tokio::test]
async fn nobody_sees_what_another_has_prepared() {
    let stage = one_backend().await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    let run = |name: &str| [bind("", name, &[]), execute("", 0), sync()].concat();
    assert_eq!(values(&wire.exchange(&[parse("a", "SELECT 'secret'"), run("a")]).await), ["secret"]);
    assert_eq!(other.value("SELECT count(*) FROM pg_prepared_statements").await, "0");
    assert_eq!(values(&wire.exchange(&[run("a")]).await), ["secret"]);
}

#[tokio::test]
async fn a_pinned_client_does_not_see_what_others_have_prepared() {
    let stage = one_backend().await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    let run = |name: &str| [bind("", name, &[]), execute("", 0), sync()].concat();
    assert_eq!(values(&wire.exchange(&[parse("a", "SELECT 'secret'"), run("a")]).await), ["secret"]);
    assert_eq!(values(&other.exchange(&[parse("b", "SELECT 'own'"), run("b")]).await), ["own"]);
    let all = "SELECT string_agg(statement, ', ' ORDER BY prepare_time) FROM pg_prepared_statements";
    other.query("PREPARE mine AS SELECT 1").await.unwrap();
    assert_eq!(other.value(all).await, "SELECT 'own', PREPARE mine AS SELECT 1");
    let batch = [parse("", all), bind("", "", &[]), execute("", 0), run("b")];
    assert_eq!(values(&other.exchange(&batch).await), ["SELECT 'own', PREPARE mine AS SELECT 1", "own"]);
    assert_eq!(other.value("EXECUTE mine").await, "1");
    other.query("DEALLOCATE mine").await.unwrap();
    // In a transaction as well, and what is closed there stays so when it fails.
    assert_eq!(values(&wire.exchange(&[run("a")]).await), ["secret"]);
    other.query("BEGIN; SELECT 1").await.unwrap();
    assert_eq!(other.value(all).await, "SELECT 'own'");
    other.query("ROLLBACK").await.unwrap();
    assert_eq!(values(&wire.exchange(&[run("a")]).await), ["secret"]);
    assert_eq!(values(&other.exchange(&[run("b")]).await), ["own"]);
}

/// A literal is read when its statement is prepared: under parameters that are this client's alone, for nobody else.
#[tokio::test]
async fn what_is_prepared_under_other_parameters_is_another_statement() {
    let stage = one_backend().await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    let run = |name: &str| {
        let sql = "SELECT '01/02/2024'::date - '2024-01-01'::date";
        [parse(name, sql), bind("", name, &[]), execute("", 0), sync()].concat()
    };
    let (of_month, of_day) = (["1"], ["31"]);
    // For a transaction, and back to a savepoint in it.
    wire.query("BEGIN; SET LOCAL DateStyle = 'ISO, DMY'").await.unwrap();
    assert_eq!(values(&wire.exchange(&[run("local")]).await), of_day);
    wire.query("SAVEPOINT a; SET LOCAL DateStyle = 'ISO, MDY'").await.unwrap();
    assert_eq!(values(&wire.exchange(&[run("inside")]).await), of_month);
    wire.query("ROLLBACK TO a").await.unwrap();
    assert_eq!(values(&wire.exchange(&[run("back")]).await), of_day);
    wire.query("COMMIT").await.unwrap();
    assert_eq!(values(&other.exchange(&[run("other")]).await), of_month);
    assert_eq!(values(&wire.exchange(&[run("after")]).await), of_month);
    // On a backend that it keeps.
    wire.query("SELECT pg_advisory_lock(1)").await.unwrap();
    assert_eq!(values(&wire.exchange(&[run("kept")]).await), of_month);
    wire.query("SET DateStyle = 'ISO, DMY'").await.unwrap();
    assert_eq!(values(&wire.exchange(&[run("changed")]).await), of_day);
    wire.query("BEGIN; SET LOCAL DateStyle = 'ISO, MDY'").await.unwrap();
    assert_eq!(values(&wire.exchange(&[run("within")]).await), of_month);
    wire.query("COMMIT").await.unwrap();
    assert_eq!(values(&wire.exchange(&[run("again")]).await), of_day);
}

/// A client that has prepared a statement, set a parameter, and got another backend.
#[tokio::test]
async fn what_a_client_makes_of_a_statement_on_another_backend_is_its_own() {
    let stage = Stage::new(&[("pool.max_backends", 2.into())]).await;
    let (mut wire, mut other, mut holder) = (stage.client().await, stage.client().await, stage.client().await);
    let sql = "SELECT '01/02/2024'::date - '2024-01-01'::date";
    let run = [bind("", "s", &[]), execute("", 0), sync()].concat();
    assert_eq!(values(&wire.exchange(&[parse("s", sql), run.clone()]).await), ["1"]);
    wire.query("SET DateStyle = 'ISO, DMY'").await.unwrap();
    holder.query("BEGIN; SELECT 1").await.unwrap();
    wire.exchange(std::slice::from_ref(&run)).await;
    // On the same backend, where nothing was set.
    assert_eq!(values(&other.exchange(&[parse("s", sql), run.clone()]).await), ["1"]);
    assert_eq!(values(&other.exchange(&[run]).await), ["1"]);
}
