//! Clients of the proxy while their tenant is migrated: their prepared statements go on.

use crate::harness::fleet::Fleet;
use crate::harness::frontend::{bind, describe_portal, describe_statement, execute, parse, sync};
use crate::harness::wire::{Wire, sqlstates, tags, values};

const ALL: &str = "SELECT * FROM items";
const SELDOM: &str = "SELECT * FROM items LIMIT 5";
const NAMED: &str = "SELECT name FROM items";

async fn run(client: &mut Wire, name: &str) -> Vec<String> {
    let answer = client.exchange(&[bind("", name, &[]), execute("", 0), sync()]).await;
    assert!(sqlstates(&answer).is_empty(), "{name}: {:?}", sqlstates(&answer));
    values(&answer)
}

async fn columns(client: &mut Wire, messages: &[Vec<u8>]) -> u16 {
    let answer = client.exchange(messages).await;
    assert!(sqlstates(&answer).is_empty(), "{:?}", sqlstates(&answer));
    let described = answer.iter().find(|message| message.tag == b'T').expect("a RowDescription");
    u16::from_be_bytes([described.payload[0], described.payload[1]])
}

#[tokio::test]
async fn prepared_statements_survive_a_migration() {
    let fleet = Fleet::new(1).await;
    fleet.file("1_items.sql", "CREATE TABLE items (name text);\nINSERT INTO items VALUES ('nut');");
    let url = fleet.proxy_url();
    let up = ["migrate", "up", "--waves", "rest", "--proxy-url", &url];
    fleet.done(&up).await;
    let mut client = fleet.log_in("t00").await;
    let mut other = fleet.log_in("t00").await;
    for (name, sql) in [("named", NAMED), ("all", ALL), ("seldom", SELDOM)] {
        let answer = client.exchange(&[parse(name, sql), describe_statement(name), sync()]).await;
        assert!(sqlstates(&answer).is_empty(), "{name}");
        assert_eq!(run(&mut client, name).await, ["nut"]);
    }
    // One that comes again and again without a name, which the pool keeps prepared.
    for _ in 0..4 {
        let shape = [parse("", ALL), bind("", "", &[]), describe_portal(""), execute("", 0), sync()];
        assert_eq!(columns(&mut other, &shape).await, 1);
    }

    fleet.file("2_price.sql", "ALTER TABLE items ADD price int DEFAULT 7;");
    let told = fleet.done(&up).await;
    assert!(!told.contains("was not told"), "{told}");
    // Its result is the same: the client notices nothing.
    assert_eq!(run(&mut client, "named").await, ["nut"]);
    // It asks for the shape each time: it is told the new one.
    let shape = [bind("", "all", &[]), describe_portal(""), execute("", 0), sync()];
    assert_eq!(columns(&mut client, &shape).await, 2);
    let shape = [parse("", ALL), bind("", "", &[]), describe_portal(""), execute("", 0), sync()];
    assert_eq!(columns(&mut other, &shape).await, 2);
    // It does not ask: it must not get rows of a shape that it was not told, as with PostgreSQL itself.
    let answer = client.exchange(&[bind("", "seldom", &[]), execute("", 0), sync()]).await;
    assert_eq!(sqlstates(&answer), ["0A000"], "{}", tags(&answer));
    // Prepared again, as drivers do upon that, it goes on; the session was never lost.
    let shape = [parse("again", SELDOM), describe_statement("again"), sync()];
    assert_eq!(columns(&mut client, &shape).await, 2);
    assert_eq!(run(&mut client, "again").await.len(), 1);
    // Somebody else who prepares the same text is told the new shape, too.
    assert_eq!(columns(&mut other, &[parse("mine", ALL), describe_statement("mine"), sync()]).await, 2);
}
