//! Migrations taken back.

use crate::harness::fleet::Fleet;

#[tokio::test]
async fn the_newest_are_taken_back_and_nothing_more() {
    let fleet = Fleet::new(3).await;
    fleet.file("1_a.up.sql", "CREATE TABLE a (x int);");
    fleet.file("1_a.down.sql", "DROP TABLE a;");
    fleet.file(
        "2_b.sql",
        "-- migrate:up transaction:false\nCREATE INDEX CONCURRENTLY by_x ON a (x);\n\
                           -- migrate:down transaction:false\nDROP INDEX CONCURRENTLY by_x;\nVACUUM a;\n",
    );
    fleet.file("3_c.sql", "CREATE TABLE c (x int);");
    fleet.done(&["migrate", "up", "--to", "2", "--waves", "rest"]).await;
    let told = fleet.done(&["migrate", "down", "--steps", "2", "--dry-run", "--waves", "rest"]).await;
    assert!(told.contains("3 tenants, down:\n  2_b  (without a transaction)\n"), "{told}");
    for _ in 0..2 {
        // Given again it takes back nothing more.
        fleet.done(&["migrate", "down", "--steps", "2", "--waves", "canary:1,rest"]).await;
        assert_eq!(fleet.versions(&fleet.tenants).await, "1");
    }
    assert!(fleet.sql("t00", "SELECT 1 FROM pg_class WHERE relname = 'by_x'").await.is_empty());
    fleet.done(&["migrate", "up", "--waves", "rest"]).await;
    let told = fleet.ends(3, &["migrate", "down", "--to", "1", "--waves", "rest"]).await;
    assert!(told.contains("3_c has no way down"), "{told}");
    std::fs::remove_file(fleet.path("migrations/3_c.sql")).unwrap();
    fleet.file("3_c.up.sql", "CREATE TABLE c (x int);");
    fleet.file("3_c.down.sql", "DROP TABLE c;");
    fleet.done(&["migrate", "down", "--to", "0", "--waves", "rest"]).await;
    assert!(fleet.sql("t00", "SELECT 1 FROM pg_class WHERE relname IN ('a', 'c')").await.is_empty());
    assert_eq!(fleet.value("t00", "SELECT count(*) FROM pgtenant.migrations").await, "0");
    fleet.done(&["migrate", "up", "--waves", "rest"]).await;
    assert_eq!(fleet.versions(&fleet.tenants).await, "1,2,3");
}
