//! Protocol-level prepared statements where something fails: a pipeline's later batches, and a failed transaction, find the
//! names as PostgreSQL has them.

use crate::eventually;
use crate::harness::frontend::{bind, close_portal, close_statement, describe_statement, execute, parse, query, sync};
use crate::harness::stage::Stage;
use crate::harness::wire::{Wire, sqlstates, tags, values};

/// What a pipeline says behind DISCARD ALL, before that is answered, is about statements that are gone by then.
#[tokio::test]
async fn names_are_free_behind_a_drop_of_all_in_the_same_pipeline() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    let run = |name: &str| [bind("", name, &[]), execute("", 0), sync()].concat();
    for drop in [query("DISCARD ALL"), [parse("", "DISCARD ALL"), bind("", "", &[]), execute("", 0)].concat()] {
        assert_eq!(values(&other.exchange(&[parse("a", "SELECT 'one'"), run("a")]).await), ["one"]);
        assert_eq!(values(&wire.exchange(&[parse("a", "SELECT 'one'"), run("a")]).await), ["one"]);
        wire.send(&[drop.clone(), parse("a", "SELECT 'two'"), run("a")].concat()).await.unwrap();
        let mut told = Vec::new();
        while told.last() != Some(&"two".to_owned()) {
            let messages = wire.read_until_ready().await.unwrap();
            assert_eq!(sqlstates(&messages), [""; 0]);
            told.extend(values(&messages));
        }
        assert_eq!(values(&wire.exchange(&[run("a")]).await), ["two"]);
        assert_eq!(values(&other.exchange(&[run("a")]).await), ["one"], "nobody else's");
        // Prepared by others, and so on the backend until it is dropped there.
        wire.send(&[drop, parse("b", "SELECT 'one'"), run("b")].concat()).await.unwrap();
        while told.last() != Some(&"one".to_owned()) {
            told.extend(values(&wire.read_until_ready().await.unwrap()));
        }
        // One that fails drops nothing.
        let failing = [bind("", "b", &[]), execute("", 0), parse("", "DISCARD ALL"), bind("", "", &[]), execute("", 0)];
        let messages = wire.exchange(&[failing.concat(), parse("b", "SELECT 'new'"), sync()]).await;
        assert_eq!(sqlstates(&messages), ["25001"]);
        assert_eq!(values(&wire.exchange(&[run("b")]).await), ["one"]);
        // And what was there before is not there any more.
        wire.send(&[query("DISCARD ALL"), run("b")].concat()).await.unwrap();
        wire.read_until_ready().await.unwrap();
        assert_eq!(sqlstates(&wire.read_until_ready().await.unwrap()), ["26000"]);
        wire.query("DEALLOCATE ALL").await.unwrap();
        other.query("DEALLOCATE ALL").await.unwrap();
    }
}

/// An unnamed statement stays when the next one is passed over, and is gone when the next one fails.
#[tokio::test]
async fn an_unnamed_statement_outlives_a_parse_that_is_passed_over() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let mut wire = stage.client().await;
    let again = [bind("", "", &[]), execute("", 0), sync()].concat();
    let fails = execute("nowhere", 0);
    wire.exchange(&[parse("", "SELECT 'one'"), sync()]).await;
    let messages =
        wire.exchange(&[fails.clone(), parse("", "SELECT 'two'"), parse("", "SELECT 'three'"), sync()]).await;
    assert_eq!(sqlstates(&messages), ["34000"]);
    assert_eq!(values(&wire.exchange(std::slice::from_ref(&again)).await), ["one"]);
    // The next batch is sent before the first has failed.
    let batches = [fails.clone(), parse("", "SELECT 'two'"), sync(), parse("", "SELECT 'three'"), sync()];
    assert_eq!(tags(&wire.exchange(&batches).await), "EZ");
    assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "1Z");
    assert_eq!(values(&wire.exchange(std::slice::from_ref(&again)).await), ["three"]);
    let batches = [fails.clone(), parse("", "SELECT 'two'"), sync(), fails, parse("", "SELECT 'four'"), sync()];
    assert_eq!(tags(&wire.exchange(&batches).await), "EZ");
    assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "EZ");
    assert_eq!(values(&wire.exchange(std::slice::from_ref(&again)).await), ["three"]);
    assert_eq!(sqlstates(&wire.exchange(&[parse("", "SELEC"), sync()]).await), ["42601"]);
    assert_eq!(sqlstates(&wire.exchange(&[again]).await), ["26000"]);
}

/// In a pipeline an error passes over the rest of its batch: the next one finds names as the backend does.
#[tokio::test]
async fn a_batch_behind_one_that_fails_finds_the_names_as_they_are() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    let again = |name: &str| [bind("", name, &[]), execute("", 0), sync()].concat();
    let fails = execute("nowhere", 0);
    let two = async |wire: &mut Wire, batches: [&[Vec<u8>]; 2]| {
        wire.send(&batches.concat().concat()).await.unwrap();
        let first = wire.read_until_ready().await.unwrap();
        [sqlstates(&first), sqlstates(&wire.read_until_ready().await.unwrap())].concat()
    };
    // Not prepared, so that the name is free; and what got it is nobody else's.
    let batches = [fails.clone(), parse("s", "SELECT 'one'"), sync()];
    assert_eq!(two(&mut wire, [&batches, &[parse("s", "SELECT 'two'"), sync()]]).await, ["34000"]);
    assert_eq!(values(&wire.exchange(&[again("s")]).await), ["two"]);
    assert_eq!(values(&other.exchange(&[parse("s", "SELECT 'one'"), again("s")]).await), ["one"]);
    // Another name for the same text.
    let batches = [fails.clone(), parse("u", "SELECT 'seven'"), sync()];
    assert_eq!(two(&mut wire, [&batches, &[parse("v", "SELECT 'seven'"), again("v")]]).await, ["34000"]);
    assert_eq!(values(&wire.exchange(&[again("v")]).await), ["seven"]);
    // Not closed, so that it is taken, and can be run.
    let batches = [fails.clone(), close_statement("s"), sync()];
    assert_eq!(two(&mut wire, [&batches, &[parse("s", "SELECT 'three'"), sync()]]).await, ["34000", "42P05"]);
    assert_eq!(two(&mut wire, [&batches, &[again("s")]]).await, ["34000"]);
    assert_eq!(values(&wire.exchange(&[again("s")]).await), ["two"]);
    let batches = [fails.clone(), parse("", "DISCARD ALL"), bind("", "", &[]), execute("", 0), sync()];
    assert_eq!(two(&mut wire, [&batches, &[parse("s", "SELECT 'four'"), sync()]]).await, ["34000", "42P05"]);
    // Neither prepared nor closed.
    let (first, second) = ([fails.clone(), parse("t", "SELECT 1"), sync()], [fails, close_statement("t"), sync()]);
    assert_eq!(two(&mut wire, [&first, &second]).await, ["34000", "34000"]);
    assert_eq!(sqlstates(&wire.exchange(&[again("t")]).await), ["26000"]);
    // Closed, and prepared anew: in one go.
    let batches = [close_statement("s"), sync()];
    assert_eq!(two(&mut wire, [&batches, &[parse("s", "SELECT 'five'"), sync()]]).await, [""; 0]);
    assert_eq!(values(&wire.exchange(&[again("s")]).await), ["five"]);
}

#[tokio::test]
async fn a_failed_transaction_prepares_only_what_ends_it() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let mut wire = stage.client().await;
    for (name, sql) in [("a", "SELECT 1"), ("b", "ROLLBACK")] {
        assert_eq!(tags(&wire.exchange(&[parse(name, sql), sync()]).await), "1Z");
    }
    // Begun and failed in the same write.
    wire.send(&[query("BEGIN"), query("SELECT 1/0"), parse("c", "SELECT 1"), sync()].concat()).await.unwrap();
    wire.read_until_ready().await.unwrap();
    wire.read_until_ready().await.unwrap();
    assert_eq!(sqlstates(&wire.read_until_ready().await.unwrap()), ["25P02"]);
    assert_eq!(sqlstates(&wire.exchange(&[parse("c", "SELECT 1"), sync()]).await), ["25P02"]);
    let messages = wire.exchange(&[parse("d", "ROLLBACK"), bind("", "d", &[]), execute("", 0), sync()]).await;
    assert_eq!(tags(&messages), "12CZ");
    assert_eq!(values(&wire.exchange(&[bind("", "a", &[]), execute("", 0), sync()]).await), ["1"]);
}

/// Under other parameters, on another backend, or in a failed transaction.
#[tokio::test]
async fn a_name_is_taken_wherever_its_statement_cannot_be_prepared() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let mut wire = stage.client().await;
    wire.query("CREATE TABLE t AS SELECT 1 AS x").await.unwrap();
    assert_eq!(tags(&wire.exchange(&[parse("s", "SELECT x FROM t"), sync()]).await), "1Z");
    stage.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'").await;
    eventually!(stage.sql("SELECT FROM pg_stat_activity WHERE usename = 'app'").await.is_empty());
    wire.query("SET search_path = 'nowhere'").await.unwrap();
    for _ in 0..2 {
        let error = wire.exchange(&[parse("s", "SELECT 2"), sync()]).await.remove(0).error();
        assert_eq!((error.sqlstate(), error.message()), ("42P05", "prepared statement \"s\" already exists"));
        assert_eq!(sqlstates(&wire.exchange(&[parse("s", "SELEC"), sync()]).await), ["42601"]);
    }
    wire.query("BEGIN; SELECT 1/0").await.unwrap_err();
    assert_eq!(sqlstates(&wire.exchange(&[parse("s", "ROLLBACK"), sync()]).await), ["42P05"]);
    assert_eq!(sqlstates(&wire.exchange(&[parse("s", "SELECT 3"), sync()]).await), ["25P02"]);
    wire.query("ROLLBACK; RESET search_path").await.unwrap();
    assert_eq!(values(&wire.exchange(&[bind("", "s", &[]), execute("", 0), sync()]).await), ["1"]);
}

#[tokio::test]
async fn a_portal_that_is_not_closed_leaves_the_unnamed_statement_alone() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let mut wire = stage.client().await;
    wire.query("BEGIN; SELECT 1").await.unwrap();
    let batch = [parse("", "SAVEPOINT a"), execute("nowhere", 0), close_portal("nowhere"), sync()];
    assert_eq!(sqlstates(&wire.exchange(&batch).await), ["34000"]);
    assert_eq!(
        tags(&wire.exchange(&[describe_statement(""), sync()]).await),
        "tnZ",
        "though the transaction has failed"
    );
}
