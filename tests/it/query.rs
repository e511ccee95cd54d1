//! One query asked of many tenants: who answers, what a query cannot do, and what is left of it.

use serde_json::Value;

use crate::harness::ground::{Ground, text};

/// Tenants with a table `orders` of so many rows.
async fn with_orders(tenants: &[(&str, u32)]) -> Ground {
    let ground = Ground::with_admin("SUPERUSER", &[("query.region", "eu".into())]).await;
    for (tenant, rows) in tenants {
        ground.done(&["tenant", "create", tenant, "--region", "eu", "--json"]).await;
        let sql = format!(
            "SET ROLE {tenant}_owner; CREATE TABLE orders (id int, total numeric, note text);
             INSERT INTO orders SELECT n, n * 1.5, 'note ' || n FROM generate_series(1, {rows}) n"
        );
        ground.sql(tenant, &sql).await;
    }
    ground
}

/// Standard output and error, and the exit status.
async fn asked(ground: &Ground, arguments: &[&str]) -> (String, String, i32) {
    let output = ground.run(&[&["query"], arguments].concat()).await;
    (text(&output.stdout), text(&output.stderr), output.status.code().expect("an exit status"))
}

/// Roles and databases that a query has made and not taken away.
async fn left(ground: &Ground) -> Vec<String> {
    ground.left().await.into_iter().filter(|name| name.starts_with("pgtenant_query")).collect()
}

#[tokio::test]
async fn every_tenant_answers_and_the_answers_are_merged() {
    let ground = with_orders(&[("acme", 3), ("globex", 2)]).await;
    let (out, _, status) = asked(&ground, &["--select", "all", "select count(*) as n from orders;"]).await;
    let expected =
        "tenant | n\n-------+--\nacme   | 3\nglobex | 2\n2 ok, 0 failed, 0 skipped; not one consistent snapshot\n";
    assert_eq!((out.as_str(), status), (expected, 0));

    let merge =
        ["--merge", "select count(*) as rows, sum(total) as total, max(note) from all_tenants", "--format", "csv"];
    let (out, told, status) = asked(
        &ground,
        &[&["--select", "tenant=acme|globex"], &merge[..], &["select total, note from orders"]].concat(),
    )
    .await;
    assert_eq!((out.as_str(), status), ("rows,total,max\r\n5,13.5,note 3\r\n", 0), "{told}");
    assert_eq!(told, "2 ok, 0 failed, 0 skipped; not one consistent snapshot\n");
    assert_eq!(left(&ground).await, Vec::<String>::new());

    let (out, ..) =
        asked(&ground, &["--select", "all", "--json", "--max-rows", "2", "select id, note from orders order by id"])
            .await;
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["rows"][1], serde_json::json!({ "tenant": "acme", "id": 2, "note": "note 2" }));
    assert_eq!(
        (&json["tenants"]["acme"]["cut_off"], &json["tenants"]["globex"]["cut_off"]),
        (&true.into(), &false.into())
    );
    assert_eq!(json["summary"], "2 ok, 0 failed, 0 skipped; 1 cut off at 2 rows; not one consistent snapshot");

    let file = ground.proxy.files.dir().join("orders.parquet");
    let path = file.to_str().unwrap();
    let (out, told, status) =
        asked(&ground, &["--select", "all", "--format", "parquet", "-o", path, "select id from orders"]).await;
    assert_eq!((out.as_str(), status), ("", 0), "{told}");
    assert!(std::fs::read(&file).unwrap().starts_with(b"PAR1"));

    // Who was asked what stands in the audit log.
    assert!(ground.done(&["audit", "verify"]).await.starts_with("ok "));
    let log = std::fs::read_to_string(ground.proxy.files.dir().join("audit.jsonl")).unwrap();
    let acts: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["what"] == "query")
        .collect();
    assert!(acts[0]["detail"].as_str().unwrap().contains("select count(*) as n from orders"), "{}", acts[0]);
    let of_acme = acts.iter().find(|act| act["tenant"] == "acme").unwrap();
    assert_eq!((&of_acme["result"], &of_acme["detail"]), (&"ok".into(), &"1 row".into()));
}

#[tokio::test]
async fn a_query_can_only_read_and_only_as_the_read_only_role() {
    let ground = with_orders(&[("acme", 1)]).await;
    ground.sql("acme", "CREATE TABLE secrets (x int); REVOKE ALL ON secrets FROM PUBLIC, acme_ro").await;
    ground
        .sql(
            "acme",
            "CREATE FUNCTION try() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
        PERFORM set_config('transaction_read_only', 'off', true); DELETE FROM orders; RETURN 1; END $$",
        )
        .await;
    for (sql, why) in [
        ("delete from orders returning id", "syntax error at or near \"delete\""),
        ("with gone as (delete from orders returning id) select * from gone", "data-modifying"),
        ("select 1; drop table orders", "multiple commands"),
        ("commit", "it gives no columns"),
        ("select nextval('x')", "does not exist"),
        ("select try()", "before any query"),
        ("select * from secrets", "permission denied"),
        ("select set_config('role', 'keeper', true)", "permission denied to set role"),
        (
            "select set_config('session_authorization', 'keeper', true)",
            "permission denied to set session authorization",
        ),
        ("select pg_read_file('/etc/passwd')", "permission denied"),
        ("select $1::int", "has parameters"),
        ("select 1 as tenant", "name it otherwise"),
        ("select nonsense", "column \"nonsense\" does not exist"),
        ("select pg_sleep(60)", "statement timeout"),
    ] {
        let (out, told, status) = asked(&ground, &["--select", "all", "--timeout", "500ms", sql]).await;
        assert!(status == 2 && told.contains(why), "{sql}: {status} {out} {told}");
    }
    // What a role of ours can come back to is itself.
    let (out, told, _) = asked(&ground, &["--select", "all", "--format", "csv",
        "select current_user = session_user, set_config('role', 'none', true), starts_with(current_user, 'pgtenant_query_')"]).await;
    assert!(out.contains("acme,t,none,t"), "{out} {told}");
    assert_eq!(ground.sql("acme", "SELECT count(*) FROM orders").await[0][0].as_deref(), Some("1"));
    assert_eq!(left(&ground).await, Vec::<String>::new());
}

#[tokio::test]
async fn who_did_not_answer_is_told_and_regions_are_kept() {
    let ground = with_orders(&[("acme", 1), ("globex", 1), ("initech", 1)]).await;
    ground.sql("globex", "DROP TABLE orders").await;
    ground.sql("initech", "ALTER TABLE orders ALTER id TYPE bigint").await;
    let (out, told, status) = asked(&ground, &["--select", "all", "select id from orders"]).await;
    assert_eq!(status, 1, "{told}");
    assert!(out.ends_with("1 ok, 2 failed, 0 skipped; not one consistent snapshot\n"), "{out}");
    assert!(told.contains("! globex: ") && told.contains("relation \"orders\" does not exist"), "{told}");
    assert!(told.contains("! initech: its answer has the columns (id int8), most have (id int4)"), "{told}");

    let elsewhere = ["--select", "all", "--region", "us", "select id from orders"];
    let (out, told, status) = asked(&ground, &elsewhere).await;
    assert_eq!((out.as_str(), status), ("0 ok, 0 failed, 3 skipped; not one consistent snapshot\n", 2), "{told}");
    assert!(told.contains("- acme: not asked: it is pinned to region \"eu\", and this is \"us\""), "{told}");
    let planned = ground.done(&["query", "--select", "id=acme", "--dry-run", "--merge", "select 1", "select 1"]).await;
    assert_eq!(planned, "would ask acme on instance one\nwould merge on instance one\n");
    let (_, told, status) = asked(&ground, &["--select", "tier=lead", "select 1"]).await;
    assert!(status == 2 && told.contains("no tenant is meant"), "{told}");

    // A role that may do more is not taken for one that reads.
    ground.sql("postgres", "ALTER ROLE acme_ro CREATEDB").await;
    let (_, told, status) = asked(&ground, &["--select", "id=acme", "select 1"]).await;
    assert!(status == 2 && told.contains("role \"acme_ro\" may do more than read"), "{told}");
    ground.sql("postgres", "DROP OWNED BY acme_ro; ALTER ROLE acme_ro NOCREATEDB").await;
    let (_, told, _) = asked(&ground, &["--select", "id=acme", "select 1"]).await;
    assert!(told.contains("! acme: "), "without CONNECT there is no answer: {told}");
}

#[tokio::test]
async fn what_a_killed_run_has_left_goes_with_the_next() {
    let ground = with_orders(&[("acme", 1)]).await;
    let old = "CREATE ROLE pgtenant_query_0 LOGIN VALID UNTIL '2020-01-01'; CREATE ROLE pgtenant_query_1 LOGIN VALID UNTIL '2099-01-01'";
    ground.sql("postgres", old).await;
    ground.sql("postgres", "CREATE DATABASE pgtenant_query_0 OWNER pgtenant_query_0").await;
    let (_, told, status) = asked(&ground, &["--select", "all", "--merge", "select 1", "select id from orders"]).await;
    assert_eq!((status, left(&ground).await), (0, vec!["pgtenant_query_1".to_owned()]), "{told}");
    let (_, told, status) =
        asked(&ground, &["--select", "all", "--merge", "select nonsense", "select id from orders"]).await;
    assert!(status == 2 && told.contains("column \"nonsense\" does not exist"), "{told}");
    assert_eq!(left(&ground).await, ["pgtenant_query_1"]);
}

#[tokio::test]
async fn an_admin_without_superuser_can_ask() {
    let ground = Ground::with_admin("CREATEROLE CREATEDB", &[]).await;
    ground.done(&["tenant", "create", "acme", "--json"]).await;
    let merge = ["--merge", "select count(*) from all_tenants", "--format", "csv"];
    let (out, told, status) = asked(&ground, &[&["--select", "all"], &merge[..], &["select 1 as x"]].concat()).await;
    assert_eq!((out.as_str(), status), ("count\r\n1\r\n", 0), "{told}");
    assert_eq!(left(&ground).await, Vec::<String>::new());
}
