//! What a migration may do: everything in its tenant's database, and nothing outside of it.

use crate::harness::fleet::Fleet;
use crate::harness::ground::{Ground, password};

#[tokio::test]
async fn a_migration_cannot_reach_beyond_its_tenant() {
    let fleet = Fleet::new(2).await;
    for (number, sql) in [
        "CREATE ROLE evil",
        "RESET ROLE;\nCREATE ROLE evil",
        "SET SESSION AUTHORIZATION keeper",
        "SET ROLE keeper",
        "RESET SESSION AUTHORIZATION;\nALTER ROLE t01_app SUPERUSER",
        "DROP DATABASE t01",
        "COPY (SELECT 1) TO PROGRAM 'true'",
    ]
    .into_iter()
    .enumerate()
    {
        fleet.file("1_evil.sql", &format!("-- no-transaction\nSELECT {number};\n{sql};"));
        let told = fleet.ends(2, &["migrate", "up", "--waves", "rest", "--select", "tenant=t00"]).await;
        assert!(["[42501]", "permission denied", "must be"].iter().any(|why| told.contains(why)), "{sql}: {told}");
        fleet.done(&["migrate", "repair", "--forget", "1", "--select", "tenant=t00"]).await;
    }
    // A login that was reset to makes things of the owner's all the same.
    fleet.file("1_evil.sql", "SET ROLE NONE;\nCREATE TABLE mine (x int);");
    fleet.done(&["migrate", "up", "--waves", "rest"]).await;
    assert_eq!(fleet.value("t00", "SELECT relowner::regrole FROM pg_class WHERE relname = 'mine'").await, "t00_owner");
    assert_eq!(fleet.roles_left().await, Vec::<String>::new());
}

#[tokio::test]
async fn nothing_of_a_tenants_is_run_with_the_admins_rights() {
    let fleet = Fleet::new(1).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);");
    fleet.done(&["migrate", "up", "--waves", "rest"]).await;
    // What an owner could put in the place of the history, for the admin to run.
    let trap = "CREATE FUNCTION trap() RETURNS text LANGUAGE plpgsql AS $$ BEGIN
                  IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
                    INSERT INTO sprung VALUES (current_user); END IF; RETURN ''; END $$;
                CREATE TABLE sprung (who text);
                SET ROLE t00_owner;
                ALTER TABLE pgtenant.migrations RENAME TO kept;
                ALTER TABLE pgtenant.migration_set RENAME TO kept_set;
                CREATE VIEW pgtenant.migrations AS SELECT version, name, public.trap() AS checksum, unfinished, done, running
                  FROM pgtenant.kept;
                CREATE VIEW pgtenant.migration_set AS SELECT public.trap() AS hash;
                ALTER DATABASE t00 SET search_path = public, pg_catalog;
                CREATE FUNCTION public.quote_ident(text) RETURNS text LANGUAGE sql AS 'SELECT public.trap()'";
    fleet.sql("t00", "GRANT ALL ON SCHEMA public TO t00_owner").await;
    fleet.sql("t00", trap).await;
    for arguments in [&["migrate", "status"][..], &["migrate", "up"], &["migrate", "verify"]] {
        let told = fleet.ends(2, arguments).await;
        assert!(told.contains("cannot copy from view") || told.contains("42809"), "{arguments:?}: {told}");
    }
    assert_eq!(fleet.value("t00", "SELECT count(*) FROM public.sprung").await, "0");
}

#[tokio::test]
async fn an_owner_who_could_reach_others_is_refused() {
    let fleet = Fleet::new(2).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);");
    let up = ["migrate", "up", "--waves", "rest", "--max-failures", "100%", "--retries", "0"];
    fleet.sql("t00", "ALTER DATABASE t00 OWNER TO postgres").await;
    fleet.sql("t00", "ALTER DATABASE t01 OWNER TO t00_owner").await;
    fleet.sql("t00", "CREATE DATABASE other OWNER t00_owner").await;
    let told = fleet.ends(2, &up).await;
    assert!(told.contains("\"postgres\", who has the rights of"), "{told}");
    assert!(told.contains("as the owner of other as well"), "{told}");
    fleet.sql("t00", "ALTER DATABASE t00 OWNER TO t00_owner").await;
    fleet.done(&[&up[..], &["--set", "migrate.shared_owners=true"]].concat()).await;
    assert_eq!(fleet.versions(&fleet.tenants).await, "1");
}

#[tokio::test]
async fn what_the_database_sets_does_not_stop_a_migration() {
    let fleet = Fleet::new(1).await;
    fleet.file("1_a.sql", "CREATE TABLE a (x int);\nSET search_path = pg_catalog;\nSET lock_timeout = '1ms';");
    fleet.file("2_b.sql", "CREATE TABLE b (x int);\nSELECT pg_sleep(0.1);");
    fleet
        .sql("t00", "ALTER DATABASE t00 SET default_transaction_read_only = on; ALTER DATABASE t00 SET statement_timeout = '50ms'")
        .await;
    fleet.done(&["migrate", "up", "--waves", "rest"]).await;
    assert_eq!(
        fleet
            .value(
                "t00",
                "SELECT string_agg(relnamespace::regnamespace::text, ',') FROM pg_class WHERE relname IN ('a', 'b')"
            )
            .await,
        "public,public"
    );
}

#[tokio::test]
async fn an_admin_who_is_no_superuser_migrates_what_it_has_made() {
    let ground = Ground::with_admin("CREATEROLE CREATEDB", &[("migrate.bake", "0s".into())]).await;
    let migrations = ground.proxy.files.dir().join("migrations");
    std::fs::create_dir(&migrations).unwrap();
    std::fs::write(migrations.join("1_a.sql"), "CREATE TABLE a (x int)").unwrap();
    let migrations = migrations.to_str().unwrap();
    ground.done(&["tenant", "create", "acme", "--migrations", migrations]).await;
    std::fs::write(format!("{migrations}/2_b.sql"), "RESET ROLE; SET ROLE NONE; CREATE TABLE b (x int)").unwrap();
    ground.done(&["migrate", "up", "--dir", migrations]).await;
    ground.done(&["migrate", "verify", "--dir", migrations]).await;
    let owners =
        ground.sql("acme", "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname IN ('a', 'b')").await;
    assert_eq!(owners, [[Some("acme_owner".to_owned())]]);
    assert_eq!(ground.left().await, ["acme", "acme_app", "acme_owner", "acme_ro"]);
}

#[tokio::test]
async fn a_template_with_a_history_is_gone_on_from() {
    let ground = Ground::with_admin("SUPERUSER", &[("migrate.bake", "0s".into())]).await;
    let migrations = ground.proxy.files.dir().join("migrations");
    std::fs::create_dir(&migrations).unwrap();
    std::fs::write(migrations.join("1_a.sql"), "CREATE TABLE a (x int)").unwrap();
    let migrations = migrations.to_str().unwrap();
    ground.done(&["tenant", "create", "first", "--migrations", migrations]).await;
    // The smoke test's backend waits in the pool.
    let sessions = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'first'";
    ground.sql("postgres", sessions).await;
    ground.sql("postgres", "CREATE DATABASE app_v1 TEMPLATE first").await;
    std::fs::write(format!("{migrations}/2_b.sql"), "CREATE TABLE b (x int)").unwrap();
    let printed =
        ground.done(&["tenant", "create", "acme", "--template", "app_v1", "--migrations", migrations, "--json"]).await;
    let mut app = ground.log_in("acme", "acme_app", &password(&printed, "acme_app")).await;
    assert_eq!(
        app.value("SELECT string_agg(version::text, ',' ORDER BY version) FROM pgtenant.migrations").await,
        "1,2"
    );
    app.query("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)").await.unwrap();
    assert_eq!(app.query("DELETE FROM pgtenant.migrations").await.unwrap_err().sqlstate(), "42501");
}
