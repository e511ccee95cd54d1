//! Migrations beside others: somebody's lock, an instance that dies halfway, a wave that does badly.

use std::time::Duration;

use serde_json::json;

use crate::harness::fleet::Fleet;

#[tokio::test]
async fn somebodys_lock_is_waited_for_in_small_pieces() {
    let fleet = Fleet::new(3).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);");
    fleet.done(&["migrate", "up", "--waves", "rest"]).await;
    fleet.file("2_a.sql", "ALTER TABLE a ADD y int;");
    let holder = fleet.instances[0].connect("t01").await.unwrap();
    holder.batch_execute("BEGIN; LOCK TABLE a IN ACCESS SHARE MODE").await.unwrap();
    let mut run = fleet.begin(&["migrate", "up", "--waves", "rest", "--lock-timeout", "100ms"]);
    let waits = run.until(|told| told["waits"] == 2).await;
    assert_eq!(waits["tenant"], "t01");
    // Who only reads is not kept waiting for longer than the lock's time.
    let reader = fleet.instances[0].connect("t01").await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(5), reader.simple_query("SELECT * FROM a")).await;
    read.unwrap().unwrap();
    holder.batch_execute("COMMIT").await.unwrap();
    let migrated = run.until(|told| told["tenant"] == "t01" && told["state"] == "migrated").await;
    assert!(migrated["retries"].as_u64().unwrap() >= 1, "{migrated}");
    assert_eq!(run.end().await.0, 0);

    // The lock outlasts all attempts: only this tenant fails, and the next run makes up for it.
    fleet.file("3_a.sql", "ALTER TABLE a ADD z int;");
    holder.batch_execute("BEGIN; LOCK TABLE a IN ACCESS SHARE MODE").await.unwrap();
    let told = fleet
        .ends(
            1,
            &["migrate", "up", "--waves", "rest", "--lock-timeout", "50ms", "--retries", "2", "--max-failures", "1"],
        )
        .await;
    assert!(told.contains("(attempt 3 of 3): canceling statement due to lock timeout [55P03]"), "{told}");
    assert!(told.contains("2 migrated, 1 failed of 3 tenants"), "{told}");
    holder.batch_execute("COMMIT").await.unwrap();
    fleet.done(&["migrate", "resume"]).await;
    assert_eq!(fleet.versions(&fleet.tenants).await, "1,2,3");
    assert_eq!(fleet.roles_left().await, Vec::<String>::new());
}

#[tokio::test]
async fn two_runs_do_not_work_on_the_same_tenant() {
    let fleet = Fleet::new(1).await;
    fleet.file("1_a.sql", "SELECT pg_sleep(1.5);\nCREATE TABLE a (x int);");
    let first = fleet.begin(&["migrate", "up", "--waves", "rest"]);
    crate::eventually!(!fleet.roles_left().await.is_empty());
    let why = fleet.ends(4, &["migrate", "up", "--waves", "rest"]).await;
    assert!(why.contains("another run of pgtenant migrate is at work"), "{why}");
    // From another machine, with another journal, it waits for its turn, and has nothing left to do.
    let other = fleet.path("other.d");
    let journal = format!("lifecycle.journal_dir={}", other.display());
    let (status, last) = fleet.begin(&["migrate", "up", "--waves", "rest", "--set", &journal]).end().await;
    assert_eq!((status, &last["summary"]["up-to-date"]), (0, &json!(1)), "{last}");
    assert_eq!(first.end().await.0, 0);
    assert_eq!(fleet.roles_left().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_instance_that_dies_halfway_stops_the_run_and_resume_does_the_rest() {
    let fleet = Fleet::two(8).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);\nSELECT pg_sleep(0.3);");
    let mut run = fleet.begin(&["migrate", "up", "--waves", "canary:tag=one,rest", "--per-instance", "1"]);
    run.until(|told| told["number"] == 2).await;
    run.until(|told| told["state"] == "migrated" && told["instance"] == "two").await;
    fleet.instances[1].kill().await;
    let (status, last) = run.end().await;
    assert_eq!(status, 1, "{last}");
    assert!(last["stopped"].as_str().unwrap().contains("failed, at most 1%"), "{last}");
    let told = fleet.ends(1, &["migrate", "status"]).await;
    assert!(told.contains("instance two") && told.contains("4 failed"), "{told}");

    fleet.instances[1].restart().await.unwrap();
    let told = fleet.done(&["migrate", "resume"]).await;
    assert!(told.contains("going on with the run of"), "{told}");
    assert_eq!(fleet.versions(&fleet.tenants).await, "1");
    assert_eq!(fleet.roles_left().await, Vec::<String>::new());
    assert!(fleet.done(&["migrate", "up"]).await.contains("8 up to date of 8"), "all is done");
}

#[tokio::test]
async fn a_wave_that_does_badly_is_the_last_one() {
    let fleet = Fleet::new(3).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);");
    let url = fleet.proxy_url();
    let up = ["migrate", "up", "--waves", "canary:tenant=t00,rest", "--bake", "20s", "--proxy-url", &url];
    let mut run = fleet.begin(&up);
    run.until(|told| told["bakes"] == "canary").await;
    // What used to work fails since the migration.
    let mut client = fleet.log_in("t00").await;
    let ends = run.until(|told| told["baked"] == "canary");
    let baked = tokio::select! {
        baked = ends => baked,
        () = async { loop { client.query("SELECT gone FROM a").await.unwrap_err(); tokio::time::sleep(Duration::from_millis(5)).await; } } => unreachable!(),
    };
    assert_eq!(baked["result"], "bad", "{baked}");
    assert!(baked["what"].as_str().unwrap().contains("tenant t00:"), "{baked}");
    let (status, last) = run.end().await;
    assert_eq!((status, &last["summary"]["not-reached"]), (1, &json!(2)), "{last}");
    assert!(last["stopped"].as_str().unwrap().starts_with("after wave canary: tenant t00:"), "{last}");

    // Where all is well, or nobody can be asked, the next wave begins.
    let url = fleet.proxy_url();
    let told = fleet.done(&["migrate", "resume", "--bake", "1s", "--proxy-url", &url]).await;
    assert!(told.contains("2 migrated, 1 up to date"), "{told}");
    fleet.file("2_a.sql", "ALTER TABLE a ADD y int;");
    let told = fleet.done(&["migrate", "up", "--waves", "1,rest", "--bake", "1s", "--proxy-url", &url]).await;
    assert!(told.contains("well: 1 tenant watched, nobody has asked them anything"), "{told}");
    fleet.file("3_a.sql", "ALTER TABLE a ADD z int;");
    let told =
        fleet.done(&["migrate", "up", "--waves", "1,rest", "--bake", "1s", "--proxy-url", "http://127.0.0.1:1"]).await;
    assert!(told.contains("not watched: no answer from http://127.0.0.1:1"), "{told}");
    assert!(told.contains("the proxy was not told of the changed schemas"), "{told}");
}

#[tokio::test]
async fn a_statement_that_outlives_its_run_is_ended_and_the_next_run_begins() {
    let fleet = Fleet::new(1).await;
    // Slow for as long as this table is not there.
    let slow = "SELECT pg_sleep(CASE WHEN to_regclass('public.quick') IS NULL THEN 60 ELSE 0 END)";
    fleet.file("1_a.sql", &format!("{slow};\nCREATE TABLE a (x int);"));
    let run = fleet.begin(&["migrate", "up", "--waves", "rest"]);
    let working = "SELECT 1 FROM pg_stat_activity WHERE usename ~ '^pgtenant_migrate' AND query ~ 'pg_sleep'";
    crate::eventually!(!fleet.sql("t00", working).await.is_empty());
    run.kill().await;
    fleet.sql("t00", "CREATE TABLE quick ()").await;
    let begun = std::time::Instant::now();
    fleet.done(&["migrate", "up", "--waves", "rest"]).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(fleet.versions(&fleet.tenants).await, "1");
}

#[tokio::test]
async fn an_interrupted_run_finishes_what_it_is_at() {
    let fleet = Fleet::new(3).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);\nSELECT pg_sleep(0.5);");
    let mut run = fleet.begin(&["migrate", "up", "--waves", "1,rest", "--bake", "60s"]);
    run.until(|told| told["bakes"] == "1").await;
    run.interrupt();
    let (status, last) = run.end().await;
    assert_eq!((status, &last["stopped"]), (1, &json!("after wave 1: interrupted")), "{last}");
    // Whoever was to be watched is watched first, when the run goes on.
    let mut run = fleet.begin(&["migrate", "resume", "--bake", "60s"]);
    run.until(|told| told["bakes"] == "1").await;
    run.interrupt();
    assert_eq!(run.end().await.1["stopped"], "after wave 1: interrupted");
    let mut run = fleet.begin(&["migrate", "resume", "--parallel", "1", "--bake", "0s"]);
    run.until(|told| told["wave"] == "rest").await;
    crate::eventually!(!fleet.roles_left().await.is_empty());
    run.interrupt();
    let (status, last) = run.end().await;
    assert_eq!((status, &last["summary"]["migrated"]), (1, &json!(1)), "{last}");
    assert_eq!((&last["stopped"], &last["summary"]["not-reached"]), (&json!("interrupted"), &json!(1)), "{last}");
    fleet.done(&["migrate", "resume"]).await;
    assert_eq!(fleet.versions(&fleet.tenants).await, "1");
}
