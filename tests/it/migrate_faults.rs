//! Migrations that are killed at any point, and the same command again.

use crate::harness::fleet::Fleet;

#[tokio::test]
async fn a_run_that_is_killed_anywhere_goes_on() {
    let fleet = Fleet::new(2).await;
    let places =
        ["role", "history", "before-commit", "applied", "begun", "alone", "group", "left", "tenant", "wave", "ended"];
    for (number, place) in places.into_iter().enumerate() {
        let (first, second) = (2 * number + 1, 2 * number + 2);
        fleet.file(
            &format!("{first}_a.sql"),
            &format!("CREATE TABLE a{number} (x int); INSERT INTO a{number} VALUES (1);"),
        );
        fleet.file(
            &format!("{second}_b.sql"),
            &format!(
                "-- no-transaction\nINSERT INTO a{number} VALUES (2);\nCREATE INDEX CONCURRENTLY by_x{number} ON a{number} (x);\n\
                 VACUUM a{number};\nINSERT INTO a{number} VALUES (3);\n"
            ),
        );
        let up = ["migrate", "up", "--waves", "canary:1,rest"];
        // The tables of the history are there from the first round on.
        if place == "history" && number > 1 {
            continue;
        }
        fleet.struck(&format!("migrate:{place}"), &up).await;
        let told = fleet.done(&up).await;
        assert!(told.contains("going on with the run of"), "{place}: {told}");
        for tenant in &fleet.tenants {
            let rows = format!("SELECT string_agg(x::text, ',' ORDER BY x) FROM a{number}");
            assert_eq!(fleet.value(tenant, &rows).await, "1,2,3", "{place} {tenant}");
            let valid = format!("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_x{number}'::regclass");
            assert_eq!(fleet.value(tenant, &valid).await, "t", "{place} {tenant}");
        }
        assert_eq!(fleet.roles_left().await, Vec::<String>::new(), "{place}");
        let told = fleet.done(&up).await;
        assert!(told.contains("2 up to date of 2"), "{place}: {told}");
    }
    fleet.done(&["migrate", "verify"]).await;
    assert!(fleet.done(&["audit", "verify"]).await.starts_with("ok "));
}

#[tokio::test]
async fn what_nobody_can_know_is_asked() {
    let fleet = Fleet::new(1).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);");
    // It ends a transaction of its own, so that it cannot be noted together with what it does.
    fleet.file(
        "2_b.sql",
        "-- no-transaction\nDO $$ BEGIN INSERT INTO a VALUES (1); COMMIT; END $$;\nINSERT INTO a VALUES (2);",
    );
    let up = ["migrate", "up", "--waves", "rest"];
    fleet.struck("migrate:alone", &up).await;
    let told = fleet.ends(2, &up).await;
    assert!(told.contains("2_b, line 2: it was cut off, and it may have run or not"), "{told}");
    assert!(told.contains("--retry 2") && told.contains("--mark-applied 2"), "{told}");
    assert_eq!(fleet.value("t00", "SELECT count(*) FROM a").await, "1");
    fleet.sql("t00", "DELETE FROM a").await;
    fleet.done(&["migrate", "repair", "--retry", "2"]).await;
    fleet.done(&up).await;
    assert_eq!(fleet.value("t00", "SELECT string_agg(x::text, ',' ORDER BY x) FROM a").await, "1,2");
}

#[tokio::test]
async fn an_index_that_was_cut_off_is_built_again() {
    let fleet = Fleet::new(1).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);\nINSERT INTO a SELECT 1 FROM generate_series(1, 2);");
    fleet.file("2_b.sql", "CREATE UNIQUE INDEX CONCURRENTLY by_x ON a (x);");
    let up = ["migrate", "up", "--waves", "rest"];
    let told = fleet.ends(2, &up).await;
    assert!(told.contains("could not create unique index \"by_x\" [23505]"), "{told}");
    assert!(
        fleet.sql("t00", "SELECT 1 FROM pg_class WHERE relname = 'by_x'").await.is_empty(),
        "no invalid index is left"
    );
    fleet.sql("t00", "DELETE FROM a WHERE ctid = '(0,1)'").await;
    // Somebody's transaction is in its way: each attempt would leave an invalid index behind.
    let holder = fleet.instances[0].connect("t00").await.unwrap();
    holder.batch_execute("BEGIN; LOCK TABLE a IN ROW EXCLUSIVE MODE").await.unwrap();
    let mut run = fleet.begin(&["migrate", "up", "--waves", "rest", "--lock-timeout", "100ms"]);
    run.until(|told| told["waits"] == 2 && told["attempt"] == 2).await;
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(run.end().await.0, 0);
    assert_eq!(fleet.value("t00", "SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_x'::regclass").await, "t");
}
