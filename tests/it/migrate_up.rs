//! Migrations over many tenants: all of them get all of it, wave by wave, and nothing twice.

use serde_json::json;

use crate::harness::fleet::Fleet;

/// One file in the manner of each tool.
fn of_four_tools(fleet: &Fleet) {
    fleet.file("0001_items.up.sql", "CREATE TABLE items (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);");
    fleet.file("0001_items.down.sql", "DROP TABLE items;");
    fleet.file(
        "0002_note.sql",
        "-- migrate:up\nALTER TABLE items ADD note text;\n-- migrate:down\nALTER TABLE items DROP note;\n",
    );
    fleet.file(
        "0003_one.sql",
        "-- +goose Up\n-- +goose StatementBegin\nCREATE FUNCTION one() RETURNS int AS $$ BEGIN RETURN 1; END $$ LANGUAGE plpgsql;\n\
         -- +goose StatementEnd\n-- +goose Down\nDROP FUNCTION one();\n",
    );
    fleet.file(
        "0004_index.sql",
        "-- no-transaction\nCREATE INDEX CONCURRENTLY by_name ON items (name);\nVACUUM items;\n",
    );
    fleet.file("0005_wrapped.up.sql", "BEGIN;\nINSERT INTO items (name) VALUES ('nut; bolt');\nCOMMIT;\n");
}

#[tokio::test]
async fn all_tenants_get_all_migrations_wave_by_wave() {
    let fleet = Fleet::new(6).await;
    of_four_tools(&fleet);
    let planned = fleet.done(&["migrate", "plan", "--waves", "canary:1,50%,rest"]).await;
    assert!(
        planned.contains("6 tenants, up:\n  1_items\n  2_note\n  3_one\n  4_index  (without a transaction)"),
        "{planned}"
    );
    assert!(planned.contains("wave canary: 1 tenant") && planned.contains("wave 50%: 3 tenants"), "{planned}");
    assert!(fleet.sql("t00", "SELECT 1 FROM pg_namespace WHERE nspname = 'pgtenant'").await.is_empty());

    let up = ["migrate", "up", "--waves", "canary:1,50%,rest"];
    let (status, last) = fleet.begin(&up).end().await;
    assert_eq!((status, &last["summary"]["migrated"]), (0, &json!(6)), "{last}");
    assert_eq!(fleet.versions(&fleet.tenants).await, "1,2,3,4,5");
    for tenant in &fleet.tenants {
        let mut app = fleet.log_in(tenant).await;
        for (sql, value) in [
            ("SELECT name || one()::text FROM items", "nut; bolt1"),
            (
                "SELECT string_agg(DISTINCT relowner::regrole::text, ',') FROM pg_class WHERE relname IN ('items', 'by_name')",
                &format!("{tenant}_owner"),
            ),
            (
                "SELECT count(*)::text FROM pgtenant.migrations WHERE applied_by <> '' AND checksum ~ '^[0-9a-f]{64}$'",
                "5",
            ),
        ] {
            assert_eq!(app.value(sql).await, value, "{tenant}: {sql}");
        }
        for sql in [
            "DELETE FROM pgtenant.migrations",
            "UPDATE pgtenant.migration_set SET hash = ''",
            "CREATE TABLE pgtenant.t ()",
        ] {
            assert_eq!(app.query(sql).await.unwrap_err().sqlstate(), "42501", "{sql}");
        }
    }
    assert_eq!(fleet.roles_left().await, Vec::<String>::new());

    // Nothing twice.
    let again = fleet.done(&up).await;
    assert!(again.contains("6 up to date of 6 tenants"), "{again}");
    assert_eq!(fleet.value("t00", "SELECT count(*) FROM items").await, "1");
    let shown = fleet.done(&["migrate", "status"]).await;
    assert!(shown.contains("5_wrapped") && shown.contains("6 tenants"), "{shown}");
    assert!(fleet.done(&["audit", "verify"]).await.starts_with("ok "));
}

#[tokio::test]
async fn a_migration_that_fails_stops_the_run_at_the_canary() {
    let fleet = Fleet::new(4).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);");
    fleet.file("2_b.sql", "CREATE TABLE b (x int);\nINSERT INTO b SELECT no_such_column FROM a;");
    let told = fleet.ends(2, &["migrate", "up", "--waves", "canary:1,rest"]).await;
    assert!(told.contains("run 2_b, line 2: column \"no_such_column\" does not exist [42703]"), "{told}");
    assert!(told.contains("stopped: 1 failed, at most 1% of all and of each wave may"), "{told}");
    assert!(told.contains("3 not reached, 1 failed of 4 tenants"), "{told}");
    // What was done before stays, the failed one left nothing.
    let shown = fleet.ends(2, &["migrate", "status"]).await;
    assert!(shown.contains("4 pending"), "{shown}");
    let tables = "SELECT count(*) FROM pg_class WHERE relname IN ('a', 'b')";
    let mut counts = Vec::new();
    for tenant in &fleet.tenants {
        counts.push(fleet.value(tenant, tables).await);
    }
    counts.sort();
    assert_eq!(counts, ["0", "0", "0", "1"]);

    // Corrected, it is another run.
    let told = fleet.ends(2, &["migrate", "resume"]).await;
    assert!(told.contains("going on with the run of") && told.contains("3 not reached, 1 failed"), "{told}");
    fleet.file("2_b.sql", "CREATE TABLE b (x int);");
    let why = fleet.ends(4, &["migrate", "resume"]).await;
    assert!(why.contains("the files in") && why.contains("are not those"), "{why}");
    let told = fleet.done(&["migrate", "up", "--waves", "canary:1,rest"]).await;
    assert!(told.contains("which did not finish, is given up") && told.contains("4 migrated of 4"), "{told}");
    assert_eq!(fleet.versions(&fleet.tenants).await, "1,2");
    let why = fleet.ends(4, &["migrate", "resume"]).await;
    assert!(why.contains("there is no run to go on with"), "{why}");
}

#[tokio::test]
async fn some_failures_are_gone_on_with_where_that_is_allowed() {
    let fleet = Fleet::new(4).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);");
    fleet.sql("t02", "CREATE TABLE public.a (y text)").await;
    let told = fleet.ends(1, &["migrate", "up", "--waves", "rest", "--max-failures", "1"]).await;
    assert!(told.contains("3 migrated, 1 failed of 4 tenants"), "{told}");
    assert!(
        told.contains("failed: t02: instance one: cannot run 1_a, line 1: relation \"a\" already exists [42P07]"),
        "{told}"
    );
    fleet.sql("t02", "DROP TABLE public.a").await;
    let told = fleet.done(&["migrate", "resume"]).await;
    assert!(told.contains("going on with the run of") && told.contains("1 migrated, 3 up to date of 4"), "{told}");
}

#[tokio::test]
async fn tenants_that_come_while_a_run_goes_on_are_migrated_as_well() {
    let mut fleet = Fleet::new(3).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);\nSELECT pg_sleep(0.5);");
    let mut run = fleet.begin(&["migrate", "up", "--waves", "1,rest", "--parallel", "1"]);
    run.until(|told| told["state"] == "migrated").await;
    fleet.add(2).await;
    let (status, last) = run.end().await;
    assert_eq!((status, &last["summary"]["migrated"]), (0, &json!(5)), "{last}");
    assert_eq!(fleet.versions(&fleet.tenants).await, "1");
}

#[tokio::test]
async fn new_tenants_begin_with_all_migrations() {
    let mut fleet = Fleet::new(0).await;
    std::fs::write(fleet.path("proxy.toml"), std::fs::read_to_string(fleet.path("proxy.toml")).unwrap() + "\n")
        .unwrap();
    fleet.file("1_a.sql", "CREATE TABLE a (x int);");
    let wanted = fleet.path("wanted/t00.toml");
    std::fs::write(wanted, "instance = \"one\"\n").unwrap();
    fleet.tenants.push("t00".to_owned());
    let dir = fleet.path("migrations");
    let planned = fleet.done(&["tenant", "create", "t00", "--migrations", dir.to_str().unwrap(), "--dry-run"]).await;
    assert!(planned.contains("migrations 1 of "), "{planned}");
    let credentials = fleet.path("credentials/t00.credentials");
    fleet
        .done(&[
            "tenant",
            "create",
            "t00",
            "--migrations",
            dir.to_str().unwrap(),
            "--credentials",
            credentials.to_str().unwrap(),
        ])
        .await;
    fleet.proxy.reload().unwrap();
    let mut app = fleet.log_in("t00").await;
    app.query("INSERT INTO a VALUES (1)").await.unwrap();
    assert!(fleet.done(&["migrate", "up"]).await.contains("1 up to date"), "nothing is left to do");
}

#[tokio::test]
async fn what_is_not_right_is_said_before_anything_is_begun() {
    let fleet = Fleet::new(1).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);");
    for (arguments, reason) in [
        (&["migrate", "up", "--select", "teir=gold"][..], "did you mean tier?"),
        (&["migrate", "up", "--select", "tier=gold"], "no tenant is meant"),
        (&["migrate", "up", "--waves", "1,5%"], "rest has to be the last"),
        (&["migrate", "up", "--max-failures", "many"], "write a number"),
        (&["migrate", "up", "--bake", "30"], "has no unit"),
        (&["migrate", "up", "--parallel", "0"], "--parallel"),
        (&["migrate", "up", "--to", "7"], "there is no migration 7"),
        (&["migrate", "up", "--no-such-option"], "unexpected argument"),
        (&["migrate", "repair"], "required"),
        (&["migrate", "down"], "--to"),
    ] {
        let told = fleet.ends(4, arguments).await;
        assert!(told.contains(reason), "{arguments:?}: {told}");
    }
    fleet.file("add.sql", "");
    let told = fleet.ends(4, &["migrate", "up"]).await;
    assert!(told.contains("add.sql: its name says no version"), "{told}");
    assert!(fleet.sql("t00", "SELECT 1 FROM pg_namespace WHERE nspname = 'pgtenant'").await.is_empty());
}

/// `--nocapture` shows it as an operator sees it.
#[tokio::test]
async fn a_terminal_shows_a_bar_for_each_wave() {
    if !std::path::Path::new("/usr/bin/script").exists() {
        eprintln!("skipped: there is no script (Debian: bsdutils)");
        return;
    }
    let fleet = Fleet::two(6).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);\nSELECT pg_sleep(0.3);");
    fleet.sql("t03", "CREATE TABLE a (y int)").await;
    let command =
        fleet.command(&["migrate", "up", "--waves", "canary:tenant=t00,2,rest", "--max-failures", "2", "--bake", "1s"]);
    let command = command.as_std();
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let mut script = tokio::process::Command::new("script");
    script
        .args(["-qec", &format!("stty cols 110; {}", words.join(" ")), "/dev/null"])
        .stdin(std::process::Stdio::null());
    let output = script.output().await.unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    println!("{shown}");
    assert_eq!(output.status.code(), Some(1), "{shown}");
    for part in [
        "canary (1/3) [==============================]    1/1",
        "wave canary: not watched",
        "rest (3/3)",
        "5 migrated, 1 failed",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}
