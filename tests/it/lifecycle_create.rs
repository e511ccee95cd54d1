//! Tenants made by command: what is there in the end, whatever happened in between.

use tokio::process::Command;

use crate::harness::ground::{Ground, password, text};
use crate::harness::postgres::{self, Options};
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::scene::{path_value, secret};

const ACME: [&str; 3] = ["acme", "acme_app", "acme_owner"];

#[tokio::test]
async fn a_tenant_is_made_and_its_application_logs_in() {
    let ground = Ground::new().await;
    ground.sql("postgres", "CREATE DATABASE app_v1").await;
    let schema = "CREATE TABLE items (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);
                  CREATE SCHEMA extra; CREATE VIEW extra.names AS SELECT name FROM items;
                  CREATE TYPE mood AS ENUM ('fine'); CREATE DOMAIN short AS varchar(5);
                  CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'";
    ground.sql("app_v1", schema).await;
    let order = [
        "tenant",
        "create",
        "acme",
        "--region",
        "eu",
        "--tier",
        "gold",
        "--template",
        "app_v1",
        "--extension",
        "pgcrypto",
        "--setting",
        "statement_timeout=30s",
        "--setting",
        "search_path=public, extra",
        "--set-key",
        "quota.max_clients=7",
    ];
    let planned = ground.done(&[&order[..], &["--dry-run"]].concat()).await;
    assert!(
        planned.contains("would make tenant acme on instance one") && planned.contains("a copy of app_v1"),
        "{planned}"
    );
    assert_eq!(ground.left().await, Vec::<String>::new());

    let printed = ground.done(&[&order[..], &["--json"]].concat()).await;
    assert!(printed.contains("logged in through the proxy at"), "{printed}");
    assert_eq!(ground.left().await, ["acme", "acme_app", "acme_owner", "acme_ro"]);
    assert_eq!(ground.files_left(), ["acme.toml"]);
    let mut app = ground.log_in("acme", "acme_app", &password(&printed, "acme_app")).await;
    app.query("INSERT INTO items (name) VALUES ('nut')").await.unwrap();
    app.query("CREATE TABLE own (x int); INSERT INTO own VALUES (1)").await.unwrap();
    for (sql, value) in [
        ("SELECT name FROM names", "nut"),
        ("SHOW statement_timeout", "30s"),
        ("SELECT length(gen_random_bytes(4))", "4"),
        (
            "SELECT count(DISTINCT relowner)::text || min(relowner::regrole::text) FROM pg_class
           WHERE relname IN ('items', 'items_id_seq', 'names')",
            "1acme_owner",
        ),
        (
            "SELECT string_agg(typowner::regrole::text, ',') FROM pg_type WHERE typname IN ('mood', 'short')",
            "acme_owner,acme_owner",
        ),
        ("SELECT proowner::regrole::text FROM pg_proc WHERE proname = 'one'", "acme_owner"),
        ("SELECT datacl::text !~ '[{,]=' FROM pg_database WHERE datname = 'acme'", "t"),
    ] {
        assert_eq!(
            app.query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"))[0][0].as_deref(),
            Some(value),
            "{sql}"
        );
    }
    let mut reader = ground.log_in("acme", "acme_ro", &password(&printed, "acme_ro")).await;
    assert_eq!(reader.query("SELECT count(*) FROM items, own").await.unwrap()[0][0].as_deref(), Some("1"));
    let refused = reader.query("INSERT INTO items (name) VALUES ('bolt')").await.unwrap_err();
    assert_eq!(refused.fields[&'C'], "25006");

    // It shows, without a secret; it is not made twice; the log holds.
    let shown = ground.done(&["tenant", "show", "acme"]).await;
    assert!(shown.contains("acme_app, acme_ro") && !shown.contains("SCRAM"), "{shown}");
    let listed = ground.done(&["tenant", "list"]).await;
    assert!(
        listed.contains("acme                     one              eu           gold       active      acme"),
        "{listed}"
    );
    let (status, why) = ground.refused(&order).await;
    assert!(status == 4 && why.contains("its record exists already"), "{status} {why}");
    let verified = ground.done(&["audit", "verify"]).await;
    assert!(verified.starts_with("ok ") && verified.contains(": 2 lines"), "{verified}");
}

#[tokio::test]
async fn a_run_that_is_killed_after_any_step_goes_on() {
    let ground = Ground::new().await;
    let migrations = ground.proxy.files.dir().join("migrations");
    std::fs::create_dir(&migrations).unwrap();
    std::fs::write(migrations.join("1_items.sql"), "CREATE TABLE items (x int)").unwrap();
    for step in [
        "reserve",
        "roles",
        "database",
        "grants",
        "extensions",
        "settings",
        "migrations",
        "record",
        "smoke",
        "active",
        "handed-over",
    ] {
        let migrations = migrations.to_str().unwrap();
        let order = ["tenant", "create", "acme", "--region", "eu", "--json", "--migrations", migrations];
        let (status, why) = ground.struck(&format!("create:{step}"), &order).await;
        assert_eq!(status, None, "{step}: killed: {why}");
        let (status, why) = ground.refused(&["tenant", "create", "acme", "--tier", "gold"]).await;
        assert!(status == 2 && why.contains("a create with other options is not finished"), "{step}: {why}");
        let printed = ground.done(&order).await;
        assert!(printed.contains("\"resumed\":true"), "{step}: {printed}");
        let mut app = ground.log_in("acme", "acme_app", &password(&printed, "acme_app")).await;
        app.query("CREATE TABLE t (x int); INSERT INTO items VALUES (1)").await.unwrap();
        assert_eq!(ground.files_left(), ["acme.toml"], "{step}");
        drop(app);
        // Away with it by hand.
        std::fs::remove_file(ground.proxy.files.tenants_dir().join("acme.toml")).unwrap();
        ground.proxy.reload().unwrap();
        ground.sql("postgres", "DROP DATABASE acme WITH (FORCE)").await;
        ground.sql("postgres", "DROP ROLE acme_app, acme_ro, acme_owner").await;
    }
    assert!(ground.done(&["audit", "verify"]).await.starts_with("ok "));
}

#[tokio::test]
async fn a_step_that_fails_takes_back_what_was_done() {
    let ground = Ground::new().await;
    let file = ground.proxy.files.dir().join("acme.credentials");
    let order = ["tenant", "create", "acme", "--region", "eu", "--credentials", file.to_str().unwrap()];
    for step in ["reserve", "roles", "database", "grants", "extensions", "settings", "migrations", "record", "smoke"] {
        let (status, why) = ground.struck(&format!("create:{step}:fail"), &order).await;
        assert!(status == Some(1) && why.contains("what was done before is taken back"), "{step}: {status:?} {why}");
        assert_eq!((ground.left().await, ground.files_left(), file.exists()), (vec![], vec![], false), "{step}");
    }
    let (status, why) = ground.refused(&[&order[..], &["--extension", "no_such_thing"]].concat()).await;
    assert!(status == 1 && why.contains("cannot create extension no_such_thing"), "{why}");
    assert_eq!((ground.left().await, ground.files_left()), (vec![], vec![]));

    // Killed on the way back: the next run finishes that, and begins anew.
    for place in ["undo-record", "undo-database", "undo-roles"] {
        let mut command = ground.command(&[&order[..], &["--extension", "no_such_thing"]].concat());
        let output = command.env("PGTENANT_FAULT", format!("create:{place}")).output().await.unwrap();
        assert_eq!(output.status.code(), None, "{place}: killed");
        let (status, _) = ground.refused(&[&order[..], &["--extension", "no_such_thing"]].concat()).await;
        assert_eq!((status, ground.left().await, ground.files_left()), (1, vec![], vec![]), "{place}");
    }

    // What belongs to somebody else is not touched.
    ground.sql("postgres", "CREATE ROLE acme_ro").await;
    let (status, why) = ground.refused(&order).await;
    assert!(status == 4 && why.contains("role \"acme_ro\" on instance one exists already"), "{why}");
    assert_eq!((ground.left().await, ground.files_left()), (vec!["acme_ro".to_owned()], vec![]));
    ground.sql("postgres", "DROP ROLE acme_ro").await;
    ground.done(&order).await;
    let written = std::fs::read_to_string(&file).unwrap();
    let credentials: toml::Table = written.parse().unwrap();
    ground.log_in("acme", "acme_app", credentials["roles"]["acme_app"]["password"].as_str().unwrap()).await;
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file).unwrap()) & 0o777, 0o600);
}

#[tokio::test]
async fn an_admin_need_not_be_a_superuser() {
    let ground = Ground::with_admin("CREATEROLE CREATEDB", &[]).await;
    let printed = ground.done(&["tenant", "create", "acme", "--extension", "pgcrypto", "--json"]).await;
    let mut app = ground.log_in("acme", "acme_app", &password(&printed, "acme_app")).await;
    app.query("CREATE TABLE t (x int)").await.unwrap();
    let (status, _) = ground.struck("create:record:fail", &["tenant", "create", "globex"]).await;
    assert_eq!((status, ground.left().await.len()), (Some(1), ACME.len() + 1));
}

#[tokio::test]
async fn a_tenant_is_placed_where_it_may_be_only() {
    let ground = Ground::with_admin("SUPERUSER", &[("instances.one.max_tenants", 1.into())]).await;
    let (status, why) = ground.refused(&["tenant", "create", "acme", "--region", "us"]).await;
    assert!(status == 2 && why.contains("one has region \"eu\", not \"us\""), "{why}");
    let (status, why) = ground.refused(&["tenant", "create", "acme", "--instance", "one", "--region", "us"]).await;
    assert!(status == 2 && why.contains("instance one has region"), "{why}");
    ground.done(&["tenant", "create", "acme", "--region", "eu"]).await;
    let (status, why) = ground.refused(&["tenant", "create", "globex"]).await;
    assert!(status == 2 && why.contains("one is full (max_tenants = 1)"), "{why}");

    // A record that is pinned elsewhere is refused; the proxy's own check says so as well.
    let (status, why) = ground.refused(&["tenant", "set", "acme", "region=us"]).await;
    assert!(status == 2 && why.contains("not changed by set"), "{why}");
    ground.done(&["tenant", "set", "acme", "pool.max_backends=4", "tier=gold"]).await;
    assert!(ground.done(&["tenant", "show", "acme"]).await.contains("max_backends   4"));
    let (status, why) = ground.refused(&["tenant", "set", "acme", "pool.max_backend=4"]).await;
    assert!(status == 2 && why.contains("did you mean pool.max_backends?"), "{why}");
    assert!(ground.done(&["tenant", "show", "acme"]).await.contains("gold"));
}

#[tokio::test]
async fn fifty_tenants_are_made_by_one_apply() {
    let ground = Ground::with_admin("SUPERUSER", &[("listen.workers", 1.into())]).await;
    let wanted = ground.proxy.files.dir().join("wanted");
    let credentials = ground.proxy.files.dir().join("credentials");
    std::fs::create_dir(&wanted).unwrap();
    for number in 0..50 {
        let tenant = format!("region = \"eu\"\ntier = \"gold\"\n[record.quota]\nmax_clients = {}\n", number + 1);
        std::fs::write(wanted.join(format!("t{number:02}.toml")), tenant).unwrap();
    }
    let (wanted_path, credentials_path) = (wanted.to_str().unwrap(), credentials.to_str().unwrap());
    let apply = ["tenant", "apply", "-f", wanted_path, "--credentials-dir", credentials_path];
    let planned = ground.done(&[&apply[..], &["--dry-run"]].concat()).await;
    assert_eq!(planned.matches("make it on instance one").count(), 50, "{planned}");
    let begun = std::time::Instant::now();
    let done = ground.done(&apply).await;
    eprintln!("50 tenants by apply: {:.1} s", begun.elapsed().as_secs_f64());
    assert!(done.contains("50 made, 0 changed, 0 unchanged, 0 failed"), "{done}");
    assert!(done.matches("logged in through the proxy").count() == 50, "{done}");
    for number in [0, 49] {
        let text = std::fs::read_to_string(credentials.join(format!("t{number:02}.credentials"))).unwrap();
        let table: toml::Table = text.parse().unwrap();
        let (tenant, role) = (format!("t{number:02}"), format!("t{number:02}_app"));
        ground.log_in(&tenant, &role, table["roles"][&role]["password"].as_str().unwrap()).await;
    }
    std::fs::write(wanted.join("t07.toml"), "region = \"eu\"\ntier = \"gold\"\n[record.quota]\nmax_clients = 99\n")
        .unwrap();
    std::fs::write(wanted.join("t08.toml"), "region = \"us\"\n").unwrap();
    let output = ground.run(&apply).await;
    let (printed, why) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(3), "{printed}{why}");
    assert!(printed.contains("~ t07: quota.max_clients = 99"), "{printed}");
    assert!(printed.contains("0 made, 1 changed, 48 unchanged, 1 failed"), "{printed}");
    assert!(why.contains("t08: tenant t08: it is in eu, not us; apply moves no tenant"), "{why}");
}

#[tokio::test]
async fn further_databases_are_not_left_out_in_silence() {
    let ground = Ground::new().await;
    ground.done(&["tenant", "create", "acme"]).await;
    let migrations = ground.proxy.files.dir().join("migrations");
    std::fs::create_dir(&migrations).unwrap();
    std::fs::write(migrations.join("1_items.sql"), "CREATE TABLE items (x int)").unwrap();
    let status = ["migrate", "status", "--json", "--dir", migrations.to_str().unwrap()];
    let output = ground.run(&status).await;
    assert!(!text(&output.stderr).contains("further databases"), "{}", text(&output.stderr));

    ground.sql("postgres", "CREATE DATABASE acme_archive OWNER acme_owner").await;
    let path = ground.proxy.files.tenants_dir().join("acme.toml");
    let record = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("databases = [\"acme_archive\"]\n{record}")).unwrap();
    let output = ground.run(&status).await;
    let said = text(&output.stderr);
    assert!(said.contains("further databases of tenants are not migrated: acme (acme_archive)"), "{said}");
    let bundle = ground.proxy.files.dir().join("acme.pgt");
    let (status, why) = ground.refused(&["export", "acme", "-o", bundle.to_str().unwrap()]).await;
    assert!(status == 2 && why.contains("has further databases (acme_archive)") && !bundle.exists(), "{status} {why}");
    let (status, why) = ground.refused(&["backup", "run", "acme"]).await;
    assert!(status == 2 && why.contains("has further databases (acme_archive)"), "{status} {why}");
}

/// More tenants than the instance has connections left: what their first logins took is given back.
#[tokio::test]
async fn many_are_made_on_an_instance_that_has_few_connections_left() {
    let postgres = postgres::start_with(Options { max_connections: 24, ..postgres::options() }).await;
    let bounds = [("instances.one.max_backends", 12.into()), ("lifecycle.per_instance", 2.into())];
    let ground = Ground::on(postgres, "SUPERUSER", &bounds).await;
    // Half of it is used by others.
    let mut others = Vec::new();
    for _ in 0..10 {
        others.push(ground.postgres.connect("postgres").await.unwrap());
    }
    let wanted = ground.proxy.files.dir().join("wanted");
    std::fs::create_dir(&wanted).unwrap();
    for number in 0..16 {
        std::fs::write(wanted.join(format!("t{number:02}.toml")), "").unwrap();
    }
    let credentials = ground.proxy.files.dir().join("credentials");
    let apply = ["tenant", "apply", "-f", wanted.to_str().unwrap(), "--credentials-dir", credentials.to_str().unwrap()];
    let done = ground.done(&apply).await;
    assert!(done.contains("16 made, 0 changed, 0 unchanged, 0 failed"), "{done}");
    assert_eq!(done.matches("logged in through the proxy").count(), 16, "{done}");
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE usename ~ '^t[0-9]+_app$'";
    crate::eventually!(ground.sql("postgres", idle).await[0][0].as_deref() == Some("0"));
}

/// The folder of the tenants comes with the first one, and goes on being watched.
#[tokio::test]
async fn the_first_tenant_makes_the_folder_of_the_tenants() {
    let postgres = postgres::start().await;
    postgres.sql("postgres", "CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 'k'").await.unwrap();
    let files = ProxyFiles::new().instance("one", &postgres);
    std::fs::remove_dir(files.tenants_dir()).unwrap();
    let password = path_value(secret(&files, "keeper.password", "k"));
    let files = files
        .unset("tenants_dir")
        .set("instances.one.admin.user", "keeper")
        .set("instances.one.admin.password.file", password);
    let proxy = Proxy::start(files).await;
    for tenant in ["acme", "globex"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
        command.args(["tenant", "create", tenant, "--proxy", &proxy.address().to_string(), "--config"]);
        let output = command.arg(proxy.files.dir().join("proxy.toml")).output().await.unwrap();
        let (printed, why) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && printed.contains("logged in through the proxy"), "{tenant}: {printed}{why}");
    }
}
