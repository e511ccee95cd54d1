//! Histories and schemas that are not what they should be: found, refused, repaired.

use crate::harness::fleet::Fleet;

#[tokio::test]
async fn an_edited_history_is_refused_until_it_is_repaired() {
    let fleet = Fleet::new(3).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);");
    fleet.file("2_b.sql", "CREATE TABLE b (x int);");
    fleet.done(&["migrate", "up", "--to", "1", "--waves", "rest"]).await;
    fleet
        .sql("t01", "UPDATE pgtenant.migrations SET checksum = 'other'; UPDATE pgtenant.migration_set SET hash = 'x'")
        .await;
    let told = fleet.ends(3, &["migrate", "up", "--waves", "canary:1,rest"]).await;
    assert!(told.contains("drift: t01: 1_a was edited after it was applied"), "{told}");
    assert!(told.contains("2 migrated, 1 drift of 3 tenants"), "{told}");
    assert!(fleet.sql("t01", "SELECT 1 FROM pg_class WHERE relname = 'b'").await.is_empty(), "nothing was done to it");

    let only = ["--select", "tenant=t01"];
    let planned = fleet.done(&[&["migrate", "repair", "--accept-edited", "--dry-run"][..], &only].concat()).await;
    assert!(planned.contains("t01: 1_a: taken as it is now"), "{planned}");
    fleet.ends(3, &["migrate", "status"]).await;
    fleet.done(&[&["migrate", "repair", "--accept-edited"][..], &only].concat()).await;
    assert!(fleet.done(&["migrate", "repair", "--accept-edited"]).await.contains("t01: nothing to repair"));
    fleet.done(&["migrate", "resume"]).await;
    assert_eq!(fleet.versions(&fleet.tenants).await, "1,2");

    // A file that was edited is drift everywhere, one that is gone as well.
    fleet.file("1_a.sql", "CREATE TABLE a (x bigint);");
    std::fs::remove_file(fleet.path("migrations/2_b.sql")).unwrap();
    let told = fleet.ends(3, &["migrate", "status"]).await;
    assert!(told.contains("3 drift of 3") && told.contains("2_b is applied, and there is no file of it"), "{told}");
}

#[tokio::test]
async fn older_migrations_are_applied_only_when_that_is_said() {
    let fleet = Fleet::new(2).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);");
    fleet.file("3_c.sql", "CREATE TABLE c (x int);");
    fleet.done(&["migrate", "up", "--waves", "rest"]).await;
    fleet.file("2_b.sql", "CREATE TABLE b (x int);");
    let told = fleet.ends(3, &["migrate", "up", "--waves", "rest"]).await;
    assert!(told.contains("2_b is not applied, but the newer 3 is"), "{told}");
    fleet.done(&["migrate", "up", "--waves", "rest", "--allow-out-of-order"]).await;
    assert_eq!(fleet.versions(&fleet.tenants).await, "1,2,3");
}

#[tokio::test]
async fn schemas_that_differ_are_found_and_grouped() {
    let fleet = Fleet::new(4).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int); CREATE VIEW v AS SELECT x FROM a;");
    fleet.done(&["migrate", "up", "--waves", "rest"]).await;
    let told = fleet.done(&["migrate", "verify"]).await;
    assert!(told.contains("at 1: one schema"), "{told}");
    // Somebody has been there by hand.
    fleet.sql("t02", "ALTER TABLE a ADD extra text; CREATE INDEX by_x ON a (x)").await;
    let told = fleet.ends(3, &["migrate", "verify"]).await;
    assert!(told.contains("at 1: 2 distinct schemas"), "{told}");
    assert!(told.contains("1 tenants  t02\n      + column public.a.extra\n      + index public.by_x"), "{told}");
    assert!(told.contains("4 up to date of 4 tenants"), "{told}");
}

#[tokio::test]
async fn databases_of_another_tool_get_a_history() {
    let fleet = Fleet::new(2).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);");
    fleet.file("2_b.sql", "CREATE TABLE b (x int);");
    for tenant in &fleet.tenants {
        fleet.sql(tenant, "CREATE TABLE a (x int)").await;
    }
    fleet.done(&["migrate", "repair", "--baseline", "1"]).await;
    let told = fleet.ends(2, &["migrate", "repair", "--baseline", "1"]).await;
    assert!(told.contains("it has a history already"), "{told}");
    fleet.done(&["migrate", "up", "--waves", "rest"]).await;
    assert_eq!(fleet.versions(&fleet.tenants).await, "1,2");
    fleet.done(&["migrate", "repair", "--forget", "2", "--select", "tenant=t00"]).await;
    assert_eq!(fleet.versions(&fleet.tenants[..1]).await, "1");
    fleet.done(&["migrate", "repair", "--mark-applied", "2", "--select", "tenant=t00"]).await;
    assert!(fleet.done(&["migrate", "status"]).await.contains("2 up to date of 2"));
}
