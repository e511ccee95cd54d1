//! Bundles become tenants: on the same major and on a later one, whole or not at all, and also after a kill.

use std::path::Path;

use crate::harness::ground::{Ground, password, text};
use crate::harness::postgres::bin_dir_18;
use crate::harness::site::{Site, furnish};

/// What the tests ask both databases; roles are told by their parts. `m`, MAINTAIN, is a right since 17.
const QUESTIONS: &[&str] = &[
    "SELECT n, sum FROM shop.third",
    "SELECT id, name, email, attributes, gross, weight, photo, document, tags FROM shop.customers ORDER BY id",
    "SELECT y, count FROM shop.per_year ORDER BY y",
    "SELECT convert_from(lo_get(4711), 'UTF8'), length(lo_get(4713)), obj_description(4711, 'pg_largeobject')",
    "SELECT last_value, is_called FROM shop.numbers",
    "SELECT last_value, is_called FROM shop.untouched",
    "SELECT obj_description('shop.customers'::regclass), col_description('shop.customers'::regclass, 8),
            obj_description('shop'::regnamespace)",
    "SELECT relname, relrowsecurity, replace(pg_get_userbyid(relowner), current_database(), ''),
            replace(replace(relacl::text, current_database(), ''), 'Dxtm', 'Dxt')
       FROM pg_class WHERE relnamespace IN ('shop'::regnamespace, 'public'::regnamespace)
        AND relname <> 'of_a_superuser' ORDER BY 1",
    "SELECT nspname, replace(nspacl::text, current_database(), '') FROM pg_namespace
      WHERE nspname IN ('shop', 'public') ORDER BY 1",
    "SELECT attname, replace(attacl::text, current_database(), '') FROM pg_attribute WHERE attacl IS NOT NULL
        AND attrelid = 'shop.events'::regclass ORDER BY 1",
    "SELECT polname, replace(polroles::regrole[]::text, current_database(), '') FROM pg_policy",
    "SELECT defaclobjtype, replace(defaclrole::regrole::text, current_database(), ''),
            replace(replace(defaclacl::text, current_database(), ''), 'Dxtm', 'Dxt') FROM pg_default_acl ORDER BY 1, 2, 3",
    "SELECT replace(COALESCE(setrole::regrole::text, '-'), current_database(), ''), setconfig FROM pg_db_role_setting
      WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1",
    "SELECT replace(datacl::text, current_database(), ''), pg_encoding_to_char(encoding), datcollate
       FROM pg_database WHERE datname = current_database()",
];

async fn answers(postgres: &crate::harness::postgres::Postgres, database: &str) -> Vec<Vec<Vec<Option<String>>>> {
    let mut answers = Vec::new();
    for question in QUESTIONS {
        answers.push(postgres.sql(database, question).await.unwrap_or_else(|error| panic!("{question}: {error}")));
    }
    answers
}

/// Exports `acme` from instance one, imports it into `two` as `acme2`, and compares them.
async fn there_and_compared(site: &Site) {
    let ground = &site.ground;
    furnish(ground, 3000).await;
    let bundle = site.path("acme.pgt/");
    let exported = ground.done(&["export", "acme", "-o", &bundle, "--jobs", "3"]).await;
    assert!(exported.contains("9 tables, 3007 rows"), "{exported}");
    let import = ["import", &bundle, "--as", "acme2", "--instance", "two", "--verify", "full", "--jobs", "3", "--json"];
    let planned = ground.done(&[&import[..10], &["--dry-run"]].concat()).await;
    assert!(planned.contains("the bundle is whole") && planned.contains("acme_app becomes acme2_app"), "{planned}");
    let printed = ground.done(&import).await;
    assert!(
        printed.contains("verified: 9 tables, 3007 rows by their checksums; 4 sequences, 3 large objects"),
        "{printed}"
    );
    assert!(printed.contains("logged in through the proxy"), "{printed}");

    let (before, after) = (answers(&ground.postgres, "acme").await, answers(&site.two, "acme2").await);
    for (question, (before, after)) in QUESTIONS.iter().zip(before.iter().zip(&after)) {
        assert_eq!(before, after, "{question}");
    }
    // Nothing in the new database needs a role of the old one.
    let strangers = "SELECT pg_get_userbyid(refobjid) FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass
        AND dbid = (SELECT oid FROM pg_database WHERE datname = 'acme2') AND pg_get_userbyid(refobjid) ~ '^acme_'";
    assert_eq!(site.two.sql("postgres", strangers).await.unwrap(), Vec::<Vec<Option<String>>>::new());
    let left = "SELECT datname FROM pg_database WHERE datname ~ '~'";
    assert!(site.two.sql("postgres", left).await.unwrap().is_empty());

    // The application works, and row-level security shows it its own row only.
    let mut app = ground.log_in("acme2", "acme2_app", &password(&printed, "acme2_app")).await;
    app.query("INSERT INTO public.made_by_the_application (t) VALUES ('three')").await.unwrap();
    let record = std::fs::read_to_string(site.path("tenants.d/acme2.toml")).unwrap();
    assert!(record.contains("tier = \"gold\"") && record.contains("max_clients = 77"), "{record}");
    let added = "SELECT max(n) FROM made_by_the_application";
    assert_eq!(site.two.sql("acme2", added).await.unwrap()[0][0].as_deref(), Some("3"));
    assert!(ground.done(&["audit", "verify"]).await.contains(": 6 lines"));
}

#[tokio::test]
async fn a_tenant_of_15_comes_out_whole_on_18() {
    let Some(bin_dir) = bin_dir_18() else { return };
    there_and_compared(&Site::new(Some(bin_dir), &[]).await).await;
}

#[tokio::test]
async fn a_tenant_comes_out_whole_on_the_same_major() {
    there_and_compared(&Site::new(None, &[]).await).await;
}

/// Everything that an import could leave.
async fn nothing_is_left(site: &Site, of: &str) {
    let sql = "SELECT datname FROM pg_database WHERE datname ~ '^acme'
               UNION ALL SELECT rolname FROM pg_roles WHERE rolname ~ '^acme' OR rolname ~ '^pgtenant'";
    let left = site.two.sql("postgres", sql).await.unwrap();
    assert!(left.is_empty(), "{of}: {left:?}");
    assert_eq!(site.ground.files_left(), ["acme.copies", "acme.toml"], "{of}");
}

#[tokio::test]
async fn a_damaged_bundle_and_a_lost_row_are_found() {
    let site = Site::new(None, &[]).await;
    let ground = &site.ground;
    furnish(ground, 300).await;
    let bundle = site.path("acme.pgt");
    ground.done(&["export", "acme", "-o", &bundle]).await;
    let import = ["import", &bundle, "--as", "acme2", "--instance", "two"];
    let mut files = vec!["manifest.json".to_owned(), "SHA256SUMS".to_owned()];
    let dump = std::fs::read_dir(Path::new(&bundle).join("dump")).unwrap();
    files.extend(dump.map(|entry| format!("dump/{}", entry.unwrap().file_name().to_string_lossy())));
    assert!(files.len() > 8, "{files:?}");
    for name in &files {
        let path = Path::new(&bundle).join(name);
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        let (status, why) = ground.refused(&import).await;
        assert!(status == 1 && why.contains(&bundle), "{name}: {status} {why}");
        std::fs::write(&path, &whole).unwrap();
    }
    nothing_is_left(&site, "flipped bytes").await;

    // Sums that fit, and a manifest that tells of another database.
    let path = Path::new(&bundle).join("manifest.json");
    let manifest = std::fs::read_to_string(&path).unwrap();
    for (found, instead, told) in [
        ("\"rows\": 2,", "\"rows\": 3,", "has 2 rows instead of 3"),
        ("\"xor\": \"", "\"xor\": \"1", "its checksum differs"),
        ("\"value\": -6,", "\"value\": -7,", "sequence shop.numbers is at -6 instead of -7"),
        ("\"count\": 3,", "\"count\": 4,", "there are 3 large objects instead of 4"),
        ("\"policies\": 1", "\"policies\": 2", "there are 1 policies instead of 2"),
    ] {
        assert!(manifest.contains(found), "{found} in {manifest}");
        std::fs::write(&path, manifest.replacen(found, instead, 1)).unwrap();
        resum(&bundle).await;
        let (status, why) = ground.refused(&import).await;
        assert!(status == 1 && why.contains("verify: ") && why.contains(told), "{told}: {why}");
        nothing_is_left(&site, told).await;
    }
    // Who does not look does not see.
    std::fs::write(&path, manifest.replacen("\"xor\": \"", "\"xor\": \"1", 1)).unwrap();
    resum(&bundle).await;
    let printed = ground.done(&[&import[..], &["--verify", "counts"]].concat()).await;
    assert!(printed.contains("verified: 9 tables, 307 rows; 4 sequences"), "{printed}");
}

/// The sums of what is there now, by the usual program.
async fn resum(bundle: &str) {
    let sums = "find . -type f ! -name SHA256SUMS -printf '%P\\n' | sort | xargs -d '\\n' sha256sum > SHA256SUMS";
    let status = tokio::process::Command::new("sh").args(["-c", sums]).current_dir(bundle).status().await.unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn an_import_that_is_killed_before_its_database_has_its_name_goes_on() {
    killed_after("reserve roles database restore verify rename").await;
}

#[tokio::test]
async fn an_import_that_is_killed_after_its_database_has_its_name_goes_on() {
    killed_after("grants settings record smoke active handed-over").await;
}

async fn killed_after(steps: &str) {
    let site = Site::new(None, &[]).await;
    let ground = &site.ground;
    furnish(ground, 200).await;
    let bundle = site.path("acme.pgt");
    ground.done(&["export", "acme", "-o", &bundle]).await;
    let import = ["import", &bundle, "--as", "acme2", "--instance", "two", "--json"];
    let receipt = site.path("r.json");
    let expected = answers(&ground.postgres, "acme").await;
    for step in steps.split(' ') {
        let (status, why) = ground.struck(&format!("import:{step}"), &import).await;
        assert_eq!(status, None, "{step}: killed: {why}");
        assert!(ground.done(&["tenant", "list"]).await.contains("unfinished"), "{step}");
        let (status, why) = ground.refused(&["import", &bundle, "--as", "acme2", "--instance", "one"]).await;
        assert!(status == 2 && why.contains("is not finished"), "{step}: {status} {why}");
        let printed = ground.done(&import).await;
        ground.log_in("acme2", "acme2_app", &password(&printed, "acme2_app")).await;
        assert_eq!(answers(&site.two, "acme2").await, expected, "{step}");
        let erase = ["tenant", "erase", "acme2", "--confirm", "acme2", "--receipt", &receipt];
        ground.done(&erase).await;
        nothing_is_left(&site, step).await;
    }
}

/// And the way back is killed at any point, too.
#[tokio::test]
async fn an_import_that_fails_takes_everything_back() {
    let site = Site::new(None, &[]).await;
    let ground = &site.ground;
    furnish(ground, 10).await;
    let bundle = site.path("acme.pgt");
    ground.done(&["export", "acme", "-o", &bundle]).await;
    let import = ["import", &bundle, "--as", "acme2", "--instance", "two"];
    for (step, point) in [("restore", "undo-record"), ("settings", "undo-database"), ("smoke", "undo-roles")] {
        let (status, why) = ground.struck(&format!("import:{step}:fail,import:{point}"), &import).await;
        assert_eq!(status, None, "{point}: {why}");
        let (status, why) = ground.struck("import:record:fail", &import).await;
        assert!(status == Some(1) && why.contains("what was done before is taken back"), "{point}: {why}");
        nothing_is_left(&site, point).await;
    }
}

#[tokio::test]
async fn nothing_that_is_there_is_overwritten() {
    let site = Site::new(None, &[]).await;
    let ground = &site.ground;
    furnish(ground, 10).await;
    let bundle = site.path("acme.pgt");
    ground.done(&["export", "acme", "-o", &bundle]).await;
    let (status, why) = ground.refused(&["export", "acme", "-o", &bundle]).await;
    assert!(status == 4 && why.contains("acme.pgt exists already"), "{why}");
    let empty = site.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let (status, why) = ground.refused(&["export", "acme", "-o", &empty]).await;
    assert!(status == 4 && why.contains("empty exists already"), "{why}");

    let (status, why) = ground.refused(&["import", &bundle, "--instance", "two"]).await;
    assert!(status == 4 && why.contains("its record exists already"), "{why}");
    let import = ["import", &bundle, "--as", "acme2", "--instance", "two"];
    for (make, drop, told) in [
        ("CREATE DATABASE acme2", "DROP DATABASE acme2", "database \"acme2\" on instance two exists already"),
        ("CREATE DATABASE \"acme2~new\"", "DROP DATABASE \"acme2~new\"", "database \"acme2~new\" on instance two"),
        ("CREATE ROLE acme2_ro", "DROP ROLE acme2_ro", "role \"acme2_ro\" on instance two exists already"),
    ] {
        site.two.sql("postgres", make).await.unwrap();
        let (status, why) = ground.refused(&import).await;
        assert!(status == 4 && why.contains(told), "{why}");
        site.two.sql("postgres", drop).await.unwrap();
    }
    // Roles that are no part of the tenant need a successor.
    ground.sql("acme", "CREATE ROLE report; GRANT SELECT ON shop.third TO report").await;
    let bundle = site.path("with_report.pgt");
    ground.done(&["export", "acme", "-o", &bundle]).await;
    let import = ["import", &bundle, "--as", "acme2", "--instance", "two"];
    let (status, why) = ground.refused(&import).await;
    assert!(status == 2 && why.contains("--map-role report=app"), "{why}");
    ground.done(&[&import[..], &["--map-role", "report=ro"]].concat()).await;
    let output = ground.run(&["import", "/nowhere"]).await;
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("no bundle /nowhere"));
}

/// What a tenant can leave in its database for those who come with more rights.
const TRAPS: &str = "
CREATE ROLE trapper; GRANT acme_app TO trapper; SET ROLE acme_app;
CREATE FUNCTION public.a_spring(what text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
  EXECUTE 'CREATE ROLE intruder_' || what || ' SUPERUSER'; RETURN 'x';
  EXCEPTION WHEN OTHERS THEN RETURN 'x'; END $$;
CREATE FUNCTION public.spring(what text) RETURNS text LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT public.a_spring(what); END;
CREATE TABLE public.trap (a int CHECK (public.spring('check') = 'x'), b text GENERATED ALWAYS AS (public.spring('generated')) STORED);
INSERT INTO public.trap VALUES (1), (2);
CREATE FUNCTION public.as_text(public.trap) RETURNS text LANGUAGE sql AS $$ SELECT public.spring('cast') $$;
CREATE CAST (public.trap AS text) WITH FUNCTION public.as_text(public.trap);
CREATE INDEX ON public.trap ((public.spring('index')));
CREATE MATERIALIZED VIEW public.trapped AS SELECT public.spring('view') FROM public.trap;
CREATE FUNCTION public.pg_table_size(oid) RETURNS bigint LANGUAGE sql AS $$ SELECT length(public.spring('path')) $$;
RESET ROLE; SET ROLE acme_owner;
ALTER DATABASE acme SET search_path = public, pg_catalog;
RESET ROLE; DROP ROLE trapper";

#[tokio::test]
async fn nothing_that_a_tenant_has_written_runs_with_the_admins_rights() {
    let site = Site::new(None, &[("backup.verify_instance", "two".into())]).await;
    let ground = &site.ground;
    ground.done(&["tenant", "create", "acme"]).await;
    ground.sql("acme", TRAPS).await;
    let intruders =
        "SELECT rolname FROM pg_roles WHERE rolname ~ '^intruder' OR rolname ~ '^pgtenant_restore' ORDER BY 1";
    // They work: a superuser who is careless springs them all.
    let careless = "SET search_path = public, pg_catalog; INSERT INTO public.trap VALUES (3);
        SELECT trap::text, pg_table_size(0) FROM public.trap; DELETE FROM public.trap WHERE a = 3";
    ground.sql("acme", careless).await;
    let sprung = ground.sql("postgres", intruders).await;
    let sprung: Vec<&str> = sprung.iter().filter_map(|row| row[0].as_deref()).collect();
    assert_eq!(sprung, ["intruder_cast", "intruder_check", "intruder_generated", "intruder_index", "intruder_path"]);
    for role in sprung {
        ground.sql("postgres", &format!("DROP ROLE {role}")).await;
    }
    let bundle = site.path("acme.pgt");
    ground.done(&["export", "acme", "-o", &bundle]).await;
    ground.done(&["backup", "run", "acme"]).await;
    ground.done(&["backup", "verify", "acme"]).await;
    let printed = ground.done(&["import", &bundle, "--as", "acme2", "--instance", "two"]).await;
    assert!(printed.contains("verified: 1 table, 2 rows by their checksums"), "{printed}");
    for postgres in [&ground.postgres, &site.two] {
        let found = postgres.sql("postgres", intruders).await.unwrap();
        assert!(found.is_empty(), "{found:?}");
    }
}

#[tokio::test]
async fn an_admin_who_is_no_superuser_copies_a_tenant() {
    let ground = Ground::with_admin("CREATEROLE CREATEDB", &[]).await;
    let bundle = ground.proxy.files.dir().join("acme.pgt").display().to_string();
    let printed = ground.done(&["tenant", "create", "acme", "--extension", "hstore", "--json"]).await;
    let mut app = ground.log_in("acme", "acme_app", &password(&printed, "acme_app")).await;
    app.query(
        "CREATE TABLE public.t (n serial PRIMARY KEY, h public.hstore); INSERT INTO public.t (h) VALUES ('a=>1')",
    )
    .await
    .unwrap();
    app.query("ALTER TABLE public.t ENABLE ROW LEVEL SECURITY; SELECT lo_from_bytea(0, 'x')").await.unwrap();
    drop(app);
    ground.done(&["export", "acme", "-o", &bundle]).await;
    let printed = ground.done(&["import", &bundle, "--as", "acme2", "--json"]).await;
    let mut app = ground.log_in("acme2", "acme2_app", &password(&printed, "acme2_app")).await;
    assert_eq!(app.value("SELECT count(*) FROM public.t").await, "1");
    ground.done(&["backup", "run", "acme2"]).await;
    ground.done(&["backup", "verify", "acme2"]).await;
    assert!(ground.left().await.iter().all(|name| !name.starts_with("pgtenant")));
}
