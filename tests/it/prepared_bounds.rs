//! Prepared statements that are many, or long.

use toml::Value;

use crate::eventually;
use crate::harness::frontend::{bind, close_statement, execute, parse, sync};
use crate::harness::postgres;
use crate::harness::proxy::ProxyFiles;
use crate::harness::serve::Served;
use crate::harness::stage::{Stage, client, instance};
use crate::harness::wire::{sqlstates, tags, values};

fn run(statement: &str, parameters: &[Option<&str>]) -> Vec<u8> {
    [bind("", statement, parameters), execute("", 0), sync()].concat()
}

#[tokio::test]
async fn preparing_again_and_again_does_not_fill_our_memory() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let files = ProxyFiles::new().set("limits.max_prepared_per_backend", 1).instance("one", &postgres);
    let served = Served::start(files.tenant_with(&tenant, &[("pool.max_backends", 1.into())])).await;
    let mut wire = client(served.address, &tenant).await;
    wire.deadline = std::time::Duration::from_secs(60);
    let text = "x".repeat(100_000);
    for name in ["a", "b"] {
        let sql = format!("SELECT '{name}{text}' = ''");
        assert_eq!(tags(&wire.exchange(&[parse(name, &sql), sync()]).await), "1Z");
    }
    let before = served.peak_memory();
    let both = [bind("", "a", &[]), execute("", 0), bind("", "b", &[]), execute("", 0)].concat();
    let messages = wire.exchange(&[both.repeat(500), sync()]).await;
    assert_eq!(tags(&messages), "2DC".repeat(1000) + "Z");
    let grown = served.peak_memory() - before;
    assert!(grown < 16 << 20, "{} MiB more than before", grown >> 20);
}

#[tokio::test]
async fn a_client_holds_only_so_many_statements() {
    let limits = |files: ProxyFiles| files.set("limits.max_prepared_per_client", 3);
    let stage = Stage::with(limits, &[("pool.max_backends", 1.into())]).await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    for name in ["a", "b", "c"] {
        assert_eq!(tags(&wire.exchange(&[parse(name, "SELECT 1"), sync()]).await), "1Z");
    }
    assert_eq!(tags(&wire.exchange(&[close_statement("a"), parse("d", "SELECT 1"), sync()]).await), "31Z");
    assert_eq!(tags(&wire.exchange(&[parse("", "SELECT 1"), run("", &[])]).await), "12DCZ", "unnamed ones are free");
    wire.send(&[parse("e", "SELECT 1"), sync()].concat()).await.unwrap();
    let error = wire.expect_error("53400").await;
    assert_eq!(error.severity(), "FATAL");
    assert!(error.fields[&'H'].contains("max_prepared_per_client"), "{error:?}");
    assert!(wire.is_closed().await);
    assert_eq!(other.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_statement_too_long_to_remember_keeps_its_client_on_its_backend() {
    let changes: [(&str, Value); 2] = [("pool.max_backends", 1.into()), ("pool.queue_timeout", "500ms".into())];
    let stage = Stage::with(|files| files.set("limits.max_prepared_size", "10KiB"), &changes).await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    let long = format!("SELECT length('{}')", "x".repeat(20_000));
    assert_eq!(tags(&wire.exchange(&[parse("long", &long), sync()]).await), "1Z");
    assert_eq!(other.failure("SELECT 1").await, "53300");
    assert_eq!(values(&wire.exchange(&[run("long", &[])]).await), ["20000"]);
    assert_eq!(other.failure("SELECT 1").await, "53300");
    assert_eq!(tags(&wire.exchange(&[close_statement("long"), sync()]).await), "3Z");
    assert_eq!(other.value("SELECT 1").await, "1");
    // A client that leaves with one leaves nothing behind.
    assert_eq!(tags(&wire.exchange(&[parse("long", &long), sync()]).await), "1Z");
    drop(wire);
    eventually!(other.query("SELECT 1").await.is_ok());
    assert_eq!(other.value("SELECT count(*) FROM pg_prepared_statements").await, "0");
    // The unnamed one does so until it is replaced, and one that does not parse never does.
    assert_eq!(tags(&other.exchange(&[parse("", &long), run("", &[])]).await), "12DCZ");
    assert_eq!(tags(&other.exchange(&[parse("", "SELECT 1"), run("", &[])]).await), "12DCZ");
    let mut wire = stage.client().await;
    assert_eq!(wire.value("SELECT 1").await, "1");
    let wrong = format!("SELEC '{}'", "x".repeat(20_000));
    assert_eq!(sqlstates(&other.exchange(&[parse("wrong", &wrong), sync()]).await), ["42601"]);
    assert_eq!(wire.value("SELECT 1").await, "1");
    // A simple query drops the unnamed one, too.
    assert_eq!(tags(&other.exchange(&[parse("", &long), sync()]).await), "1Z");
    other.query("SELECT 1").await.unwrap();
    assert_eq!(wire.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn statements_of_any_length() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let (mut wire, mut other) = (stage.client().await, stage.client().await);
    for length in [100, 8_000, 16_000, 17_000, 64_000, 65_536, 70_000, 200_000, 1_048_000, 1_050_000, 3_000_000] {
        let sql = format!("SELECT length('{}')", "x".repeat(length));
        for name in ["", "named"] {
            let batch = [parse(name, &sql), run(name, &[]), close_statement(name), sync()].concat();
            // Whole, and in two pieces: who waits for the second one keeps nobody else waiting.
            let half = batch.len() / 2;
            for pieces in [vec![&batch[..]], vec![&batch[..half], &batch[half..]]] {
                for piece in &pieces {
                    if length < 1_000_000 {
                        assert_eq!(other.value("SELECT 1").await, "1");
                    }
                    wire.send(piece).await.unwrap();
                }
                let messages = wire.read_until_ready().await.unwrap();
                assert_eq!((tags(&messages), values(&messages)), ("12DCZ".to_owned(), vec![length.to_string()]));
                assert_eq!(tags(&wire.read_until_ready().await.unwrap()), "3Z");
            }
        }
    }
    assert_eq!(other.value("SELECT 1").await, "1");
}
