//! Session state: what one client sets, locks or makes is never seen by another; what it asked for at startup stays.

use secrecy::ExposeSecret;
use toml::Value;

use crate::harness::frontend::{V3_0, bind, execute, function_call, parse, query, sync};
use crate::harness::postgres;
use crate::harness::proxy::Proxy;
use crate::harness::proxy::ProxyFiles;
use crate::harness::stage::{Stage, add_role, client, client_as, client_with, instance};
use crate::harness::wire::Wire;

/// Everything that could be seen of another client's session, in one row.
const TRACES: &str = "SELECT concat_ws(' ',
    current_setting('work_mem'), current_setting('search_path'), current_setting('TimeZone'),
    coalesce(current_setting('my.variable', true), ''), current_setting('role'), current_setting('default_transaction_read_only'),
    (SELECT count(*) FROM pg_listening_channels()),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND pg_table_is_visible(oid)),
    (SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE 'pgt\\_%' AND name <> ''),
    (SELECT count(*) FROM pg_cursors WHERE name <> ''))";

/// What leaves state behind, each in a way of its own.
const MESSES: &[&str] = &[
    "SET work_mem = '7MB'",
    "SET SESSION search_path = pg_catalog",
    "SET TIME ZONE 'Asia/Tokyo'",
    "SELECT set_config('my.variable', 'secret', false)",
    "SELECT SET_CONFIG('work_mem', '9MB', false) FROM generate_series(1, 3)",
    "WITH x AS (SELECT pg_catalog.set_config('work_mem', '9MB', false)) SELECT * FROM x",
    "DO $$ BEGIN PERFORM set_config('work_mem', '9MB', false); END $$",
    "DO $$ BEGIN EXECUTE 'SET work_mem = ''9MB'''; END $$",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "BEGIN; SET work_mem = '7MB'; COMMIT",
    "BEGIN; SET LOCAL work_mem = '7MB'; SET work_mem = '8MB'; COMMIT; SELECT 1",
    "SELECT 1; SET work_mem = '7MB'; SELECT 2",
    "RESET ALL; SET work_mem = '7MB'",
    "LISTEN news",
    "BEGIN; LISTEN news; SELECT 1; COMMIT",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_lock(2), pg_advisory_lock_shared(3)",
    "CREATE TEMP TABLE mine (x int)",
    "CREATE TEMPORARY TABLE IF NOT EXISTS mine AS SELECT 1",
    "SELECT 1 AS x INTO TEMP mine",
    "CREATE TABLE pg_temp.mine (x int)",
    "CREATE TEMP VIEW mine AS SELECT 1",
    "CREATE TEMP SEQUENCE mine",
    "PREPARE mine AS SELECT 1",
    "BEGIN; DECLARE mine CURSOR WITH HOLD FOR SELECT 1; COMMIT",
    "SELECT change_settings()",
    "CALL change_more()",
];

async fn stage(changes: &[(&str, Value)]) -> (Stage, String) {
    let changes = [&[("pool.max_backends", 1.into())], changes].concat();
    let stage = Stage::new(&changes).await;
    let functions = "CREATE FUNCTION change_settings() RETURNS void LANGUAGE sql AS
                     $$ SELECT set_config('work_mem', '9MB', false) $$;
                     CREATE PROCEDURE change_more() LANGUAGE plpgsql AS
                     $$ BEGIN SET work_mem = '9MB'; END $$";
    stage.sql(functions).await;
    let clean = stage.client().await.value(TRACES).await;
    assert!(clean.ends_with(" 0 0 0 0 0"), "{clean}");
    (stage, clean)
}

/// Ends what keeps a client on its backend, and nothing else.
const TIDY: &[&str] = &["UNLISTEN *", "SELECT pg_advisory_unlock_all()", "DISCARD TEMP", "DEALLOCATE ALL", "CLOSE ALL"];

/// Lets a client make each mess, by the simple and the extended protocol, and looks for traces with another.
async fn nobody_sees(stage: &Stage, clean: &str, messes: &[&str]) {
    let mut looker = stage.client().await;
    for mess in messes {
        let mut messy = stage.client().await;
        messy.query(mess).await.unwrap_or_else(|error| panic!("{mess}: {error:?}"));
        let made = messy.value(TRACES).await;
        assert_ne!(made, clean, "{mess}");
        tidy(&mut messy).await;
        assert_eq!(looker.value(TRACES).await, clean, "after {mess}");
        // The same client goes on after another has had the backend.
        messy.query("SELECT 1").await.unwrap();
        if !mess.contains(';') {
            for name in ["", "named"] {
                let batch = [parse(name, mess), bind("", name, &[]), execute("", 0), sync()];
                let messages = messy.exchange(&batch).await;
                assert!(messages.iter().all(|message| message.tag != b'E'), "{mess}: {messages:?}");
                assert_eq!(messy.value(TRACES).await, made, "{mess} as statement {name:?}");
                tidy_but_statements(&mut messy).await;
                assert_eq!(looker.value(TRACES).await, clean, "after {mess} as statement {name:?}");
            }
            // The named one is there already: only Bind and Execute tell.
            messy.exchange(&[bind("", "named", &[]), execute("", 0), sync()]).await;
            assert_eq!(messy.value(TRACES).await, made, "{mess} once more");
            tidy(&mut messy).await;
            assert_eq!(looker.value(TRACES).await, clean, "after {mess} once more");
        }
        // A client that leaves without cleaning up.
        messy.query(mess).await.unwrap_or_else(|error| panic!("{mess}: {error:?}"));
        drop(messy);
        assert_eq!(looker.value(TRACES).await, clean, "after {mess} and goodbye");
    }
}

async fn tidy(messy: &mut Wire) {
    for statement in TIDY {
        messy.query(statement).await.unwrap();
    }
}

/// The same, with the SQL-level statement dropped by its name.
async fn tidy_but_statements(messy: &mut Wire) {
    for statement in TIDY.iter().filter(|statement| !statement.starts_with("DEALLOCATE")) {
        messy.query(statement).await.unwrap();
    }
    let _ = messy.query("DEALLOCATE mine").await;
}

#[tokio::test]
async fn nobody_sees_what_another_client_left() {
    let (stage, clean) = stage(&[]).await;
    // A function that changes settings hides it from us: that takes reset = always.
    let visible: Vec<&str> = MESSES.iter().copied().filter(|mess| !mess.contains("change_settings")).collect();
    nobody_sees(&stage, &clean, &visible).await;
    assert_eq!(stage.backends().await, 1);
}

#[tokio::test]
async fn with_reset_always_even_hidden_changes_are_gone() {
    let (stage, clean) = stage(&[("pool.reset", "always".into())]).await;
    nobody_sees(&stage, &clean, MESSES).await;
    assert_eq!(stage.backends().await, 1);
}

#[tokio::test]
async fn session_mode_leaves_nothing_to_the_next_client_either() {
    let (stage, clean) = stage(&[("pool.mode", "session".into())]).await;
    for mess in MESSES {
        let mut messy = stage.client().await;
        messy.query(mess).await.unwrap_or_else(|error| panic!("{mess}: {error:?}"));
        drop(messy);
        assert_eq!(stage.client().await.value(TRACES).await, clean, "after {mess}");
    }
}

#[tokio::test]
async fn a_failed_transaction_leaves_nothing() {
    let (stage, clean) = stage(&[]).await;
    let (mut messy, mut looker) = (stage.client().await, stage.client().await);
    for end in ["ROLLBACK", "COMMIT"] {
        messy.query("BEGIN; SET work_mem = '7MB'; CREATE TEMP TABLE mine (x int)").await.unwrap();
        messy.failure("SELECT 1/0").await;
        messy.query(end).await.unwrap();
        assert_eq!(looker.value(TRACES).await, clean);
    }
    // SET behind an error that PostgreSQL never ran, and one before it that it rolled back.
    messy.failure("SELECT 1/0; SET work_mem = '7MB'").await;
    assert_eq!(looker.value(TRACES).await, clean);
    messy.failure("SET work_mem = '7MB'; SELECT 1/0").await;
    assert_eq!(looker.value(TRACES).await, clean);
    // A function call cannot be looked into: set_config by its OID.
    let oid = stage.sql("SELECT 'set_config'::regproc::oid").await.remove(0).remove(0).unwrap();
    messy.exchange(&[function_call(oid.parse().unwrap(), &["work_mem", "7MB", "f"])]).await;
    assert_eq!(looker.value(TRACES).await, clean);
}

#[tokio::test]
async fn startup_parameters_are_each_clients_own() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let settings = "SELECT concat_ws('|', current_setting('application_name'), current_setting('TimeZone'),
                    current_setting('search_path'), current_setting('DateStyle'),
                    coalesce(current_setting('my.variable', true), ''), current_setting('statement_timeout'))";
    let defaults = stage.client().await.value(settings).await;
    let [_, zone, path, style, ..] = &defaults.split('|').collect::<Vec<_>>()[..] else { panic!("{defaults}") };
    let one = [("application_name", "it's \\one\""), ("TimeZone", "Asia/Tokyo"), ("options", "-c my.variable=1\\ 2")];
    let two = [("application_name", "two"), ("search_path", "pg_catalog, \"$user\""), ("datestyle", "German")];
    let three = [("options", "--statement-timeout=30s -c TimeZone=UTC -c search_path=one,two")];
    let expected = [
        format!("it's \\one\"|Asia/Tokyo|{path}|{style}|1 2|0"),
        format!("two|{zone}|pg_catalog, \"$user\"|German, DMY||0"),
        format!("|UTC|one,two|{style}||30s"),
        defaults.clone(),
    ];
    let mut clients = [
        stage.client_with(&one).await,
        stage.client_with(&two).await,
        stage.client_with(&three).await,
        stage.client().await,
    ];
    assert_eq!(clients[0].parameters["TimeZone"], "Asia/Tokyo");
    assert_eq!(clients[1].parameters["application_name"], "two");
    assert_eq!(clients[2].parameters["TimeZone"], "UTC");
    assert_eq!(clients[3].parameters["TimeZone"], *zone);
    // A second client with equal parameters is welcomed without a backend, and told the same.
    assert_eq!(stage.client_with(&one).await.parameters, clients[0].parameters);
    // They take turns on one backend, also when somebody has made a mess.
    let mut messy = stage.client().await;
    for round in 0..6 {
        for (index, wire) in clients.iter_mut().enumerate() {
            assert_eq!(wire.value(settings).await, expected[index], "client {index} in round {round}");
            if (index + round) % 3 == 0 {
                messy.query("SET TimeZone = 'America/Lima'; SET application_name = 'messy'").await.unwrap();
            }
        }
    }
    let mut driver = tokio_postgres::Config::new();
    driver.host("127.0.0.1").port(stage.proxy.address().port()).user("app.acme").dbname("app");
    driver.password(secrecy::ExposeSecret::expose_secret(&stage.tenant.password)).application_name("driver");
    let (driver, connection) = driver.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let row = driver.query_one("SELECT current_setting('application_name')", &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), "driver");
        assert_eq!(clients[1].value(settings).await, expected[1]);
    }
}

#[tokio::test]
async fn a_wrong_startup_parameter_is_told_and_harms_nobody() {
    let stage = Stage::new(&[("pool.max_backends", 1.into())]).await;
    let mut other = stage.client().await;
    for (name, value, sqlstate) in [
        ("TimeZone", "Nowhere/Land", "22023"),
        ("no_such_parameter", "1", "42704"),
        ("shared_buffers", "1GB", "55P02"),
        ("session_authorization", "postgres", "42501"),
        ("role", "postgres", "42501"),
    ] {
        let mut wire = Wire::tcp(stage.proxy.address()).await.unwrap();
        let password = secrecy::ExposeSecret::expose_secret(&stage.tenant.password).to_owned();
        let parameters = [("user", "app.acme"), ("database", "app"), ("application_name", "wrong"), (name, value)];
        let error = wire.login_with(crate::harness::frontend::V3_0, &parameters, &password).await.unwrap_err();
        assert_eq!((error.severity(), error.sqlstate()), ("FATAL", sqlstate), "{name}: {error:?}");
        assert!(wire.is_closed().await);
        assert_eq!(other.value("SELECT current_setting('application_name') || current_user").await, "app");
    }
    assert_eq!(stage.backends().await, 1);
}

#[tokio::test]
async fn roles_share_no_backend() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let verifier = add_role(&postgres, &tenant, "batch", "").await;
    let changes: [(&str, Value); 2] = [("pool.max_backends", 2.into()), ("roles.batch.verifier", verifier.into())];
    let proxy = Proxy::start(ProxyFiles::new().instance("one", &postgres).tenant_with(&tenant, &changes)).await;
    let (mut app, mut batch) =
        (client(proxy.address(), &tenant).await, client_as(proxy.address(), &tenant, "batch").await);
    for _ in 0..3 {
        assert_eq!(app.value("SELECT current_user || session_user").await, "appapp");
        assert_eq!(batch.value("SELECT current_user || session_user").await, "batchbatch");
    }
    let mut named = client_with(proxy.address(), &tenant, &[("application_name", "x")]).await;
    assert_eq!(named.exchange(&[query("SHOW application_name")]).await[1].row(), [Some("x".to_owned())]);
}

#[tokio::test]
async fn what_the_instance_says_at_a_login_is_told_to_every_client() {
    let (stage, _) = stage(&[]).await;
    let long = "x".repeat(70);
    let parameters = [("application_name", long.as_str())];
    let direct = [&[("user", &*stage.tenant.role), ("database", &*stage.tenant.database)], &parameters[..]].concat();
    let mut wire = Wire::tcp(stage.postgres.address()).await.unwrap();
    wire.login_with(V3_0, &direct, stage.tenant.password.expose_secret()).await.unwrap();
    let notices = |wire: &Wire| -> Vec<_> {
        wire.greeting
            .iter()
            .filter(|message| message.tag == b'N')
            .map(|notice| notice.error().message().to_owned())
            .collect()
    };
    let expected = notices(&wire);
    assert_eq!(expected.len(), 1);
    // From a backend, from memory, and with another client in between.
    for _ in 0..2 {
        assert_eq!(notices(&stage.client_with(&parameters).await), expected);
        assert_eq!(notices(&stage.client().await), [""; 0]);
    }
}

/// It shows in `search_path = pg_temp`, which makes PREPARE TRANSACTION fail for who had none before.
#[tokio::test]
async fn a_whole_session_begins_without_the_temporary_schema_of_another() {
    let stage = Stage::new(&[("pool.mode", "session".into()), ("pool.max_backends", 1.into())]).await;
    let mut pids = Vec::new();
    for sql in ["SELECT 1", "CREATE TEMP TABLE mine (x int); DROP TABLE mine", "SELECT 1"] {
        let mut wire = stage.client().await;
        assert_eq!(wire.value("SELECT pg_my_temp_schema()").await, "0");
        wire.query(sql).await.unwrap();
        pids.push(wire.value("SELECT pg_backend_pid()").await);
    }
    assert!(pids[0] == pids[1] && pids[1] != pids[2], "{pids:?}");
}
