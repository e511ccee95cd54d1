//! The admin console: who gets in, what it answers and in which form, what its commands do.

use std::sync::Arc;

use pgtenant::cli::demo::certificates::DevCa;
use tokio::process::Command;

use crate::eventually;
use crate::harness::frontend::{V3_0, bind, describe_portal, describe_statement, execute, parse, query, sync};
use crate::harness::proxy::{Proxy, ProxyFiles, http_get};
use crate::harness::scene::{Scene, connect, log_in, password, secret, tenant, value};
use crate::harness::serve::Served;
use crate::harness::wire::{ErrorResponse, Message, Wire, sqlstates, tags};
use crate::harness::{certs, frontend};

const SECRET: &str = "s3cret of the console";

/// An admin `ops` and a `watcher` who may only look.
fn with_console(files: ProxyFiles) -> ProxyFiles {
    secret(&files, "console.password", SECRET);
    files
        .set("admin.roles.ops.access", "admin")
        .set("admin.roles.ops.password.file", "console.password")
        .set("admin.roles.watcher.password.file", "console.password")
}

async fn log_in_as(address: std::net::SocketAddr, role: &str, password: &str) -> Result<Wire, ErrorResponse> {
    let mut wire = Wire::tcp(address).await.unwrap();
    wire.login(role, "pgbouncer", password).await.map(|()| wire)
}

async fn ops(proxy: &Proxy) -> Wire {
    log_in_as(proxy.address(), "ops", SECRET).await.unwrap()
}

/// Names and type oids of a RowDescription.
fn columns(messages: &[Message]) -> Vec<(String, u32)> {
    let description = messages.iter().find(|message| message.tag == b'T').expect("a RowDescription");
    let mut rest = &description.payload[2..];
    let mut columns = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let oid = u32::from_be_bytes(rest[end + 7..end + 11].try_into().unwrap());
        columns.push((String::from_utf8_lossy(&rest[..end]).into_owned(), oid));
        rest = &rest[end + 19..];
    }
    columns
}

fn names(messages: &[Message]) -> String {
    columns(messages).into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(", ")
}

/// A cell of the row whose first column is `row`, by its column's name.
async fn cell(console: &mut Wire, show: &str, row: &str, column: &str) -> String {
    let answer = console.exchange(&[query(show)]).await;
    let at = columns(&answer).iter().position(|(name, _)| name == column).unwrap_or_else(|| panic!("{show}: {column}"));
    let rows = answer.iter().filter(|message| message.tag == b'D').map(Message::row);
    let mut found = rows.filter(|cells| cells[0].as_deref() == Some(row));
    let cells = found.next().unwrap_or_else(|| panic!("{show}: no {row}"));
    cells[at].clone().unwrap_or_default()
}

#[tokio::test]
async fn only_its_own_roles_get_in_and_the_rest_looks_alike() {
    let scene = Scene::new().await;
    let files = with_console(scene.files()).set("auth.free_attempts", 100);
    let proxy = Proxy::start(files).await;
    assert_eq!(ops(&proxy).await.query("SHOW VERSION").await.unwrap().len(), 1);
    let refused = async |role: &str, password: &str| match log_in_as(proxy.address(), role, password).await {
        Ok(_) => panic!("{role} got in"),
        Err(error) => error.fields.into_iter().map(|(k, v)| (k, v.replace(role, "USER"))).collect::<Vec<_>>(),
    };
    let wrong = refused("ops", "wrong").await;
    assert_eq!(wrong, refused("nobody", "wrong").await);
    assert_eq!(wrong, refused("acme", password(&scene.acme)).await, "a tenant's role is nobody here");
    let mut at_tenant = Wire::tcp(proxy.address()).await.unwrap();
    let options = [("user", "ops"), ("options", "-c tenant=acme")];
    let of_tenant = at_tenant.login_with(V3_0, &options, SECRET).await.unwrap_err();
    let of_tenant: Vec<_> = of_tenant.fields.into_iter().map(|(k, v)| (k, v.replace("ops", "USER"))).collect();
    assert_eq!(wrong, of_tenant, "and a role of the console is nobody at a tenant");
}

#[tokio::test]
async fn guessing_at_the_console_gets_slow() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(with_console(scene.files()).set("auth.free_attempts", 1)).await;
    for _ in 0..2 {
        assert!(log_in_as(proxy.address(), "ops", "wrong").await.is_err());
    }
    let error = log_in_as(proxy.address(), "ops", SECRET).await.err().unwrap();
    assert!(error.message().contains("too many failed logins"), "{error:?}");
    // Of no matter to the tenants.
    connect(&proxy, &scene.acme).await;
}

#[tokio::test]
async fn there_is_none_without_a_role_and_a_tenants_database_of_that_name_is_reached_by_its_hints() {
    let scene = Scene::new().await;
    let off = Proxy::start(scene.files()).await;
    let error = log_in_as(off.address(), "ops", SECRET).await.err().unwrap();
    assert_eq!((error.sqlstate(), error.message()), ("28000", "the connection names no tenant"));

    scene.postgres.sql("postgres", "CREATE DATABASE pgbouncer").await.unwrap();
    let files = scene.instance().tenant_with(&scene.acme, &[("databases", vec!["pgbouncer"].into())]);
    let proxy = Proxy::start(with_console(files)).await;
    let mut client = Wire::tcp(proxy.address()).await.unwrap();
    let hints = [("user", "acme"), ("database", "pgbouncer"), ("options", "-c tenant=acme")];
    client.login_with(V3_0, &hints, password(&scene.acme)).await.unwrap();
    assert_eq!(value(&mut client, "SELECT current_database()").await, "pgbouncer");
    let mut client = Wire::tcp(proxy.address()).await.unwrap();
    client.login("acme.acme", "pgbouncer", password(&scene.acme)).await.unwrap();
    assert_eq!(value(&mut client, "SELECT current_database()").await, "pgbouncer");
    // By both of its names, without any hint.
    let mut console = Wire::tcp(proxy.address()).await.unwrap();
    console.login("watcher", "pgtenant", SECRET).await.unwrap();
    assert_eq!(cell(&mut console, "SHOW POOLS", "acme/pgbouncer", "cl_active").await, "2");
}

#[tokio::test]
async fn where_tls_is_required_the_console_needs_it_too() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let files = with_console(scene.files()).certificate(&ca, &["localhost", "acme.localhost"]);
    let proxy = Proxy::start(files.set("routing.sni_domains", vec!["localhost"])).await;
    let error = log_in_as(proxy.address(), "ops", SECRET).await.err().unwrap();
    assert!(error.message().contains("encrypted"), "{error:?}");
    let config = Arc::new(certs::client(&ca));
    let mut console = Wire::tls(proxy.address(), config.clone(), "localhost").await.unwrap();
    console.login("ops", "pgbouncer", SECRET).await.unwrap();
    assert_eq!(console.mechanism, Some("SCRAM-SHA-256-PLUS"));
    let mut client = Wire::tls(proxy.address(), config, "acme.localhost").await.unwrap();
    client.login(&scene.acme.role, "acme", password(&scene.acme)).await.unwrap();
    let row = console.query("SHOW CLIENTS").await.unwrap().remove(0);
    assert!(row[17].as_deref().unwrap().starts_with("TLSv1.3/TLS_"), "{row:?}");
}

/// The reference's columns, and the types that PgBouncer gives them: text, int4, int8, numeric.
#[tokio::test]
async fn answers_have_pgbouncers_columns() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(with_console(scene.files())).await;
    value(&mut connect(&proxy, &scene.acme).await, "SELECT 1").await;
    let mut console = ops(&proxy).await;
    let connections = "type, user, database, replication, state, addr, port, local_addr, local_port, connect_time, \
                       request_time, wait, wait_us, close_needed, ptr, link, remote_pid, tls, application_name, \
                       prepared_statements, id";
    for (show, expected) in [
        (
            "STATS",
            "database, total_server_assignment_count, total_xact_count, total_query_count, total_received, \
             total_sent, total_xact_time, total_query_time, total_wait_time, total_client_parse_count, \
             total_server_parse_count, total_bind_count, avg_server_assignment_count, avg_xact_count, \
             avg_query_count, avg_recv, avg_sent, avg_xact_time, avg_query_time, avg_wait_time, \
             avg_client_parse_count, avg_server_parse_count, avg_bind_count",
        ),
        (
            "STATS_TOTALS",
            "database, server_assignment_count, xact_count, query_count, bytes_received, bytes_sent, xact_time, \
             query_time, wait_time, client_parse_count, server_parse_count, bind_count",
        ),
        (
            "POOLS",
            "database, user, cl_active, cl_waiting, cl_active_cancel_req, cl_waiting_cancel_req, sv_active, \
             sv_active_cancel, sv_being_canceled, sv_idle, sv_used, sv_tested, sv_login, maxwait, maxwait_us, \
             pool_mode, load_balance_hosts",
        ),
        ("CLIENTS", connections),
        ("SERVERS", connections),
        (
            "DATABASES",
            "name, host, port, database, force_user, pool_size, min_pool_size, reserve_pool_size, server_lifetime, \
             pool_mode, load_balance_hosts, max_connections, current_connections, max_client_connections, \
             current_client_connections, paused, disabled",
        ),
        (
            "USERS",
            "name, pool_size, reserve_pool_size, pool_mode, max_user_connections, current_connections, \
             max_user_client_connections, current_client_connections",
        ),
        ("LISTS", "list, items"),
        ("CONFIG", "key, value, default, changeable"),
        ("VERSION", "version"),
        ("PEERS", "peer_id, host, port, pool_size"),
    ] {
        let answer = console.exchange(&[query(&format!("SHOW {show};"))]).await;
        assert_eq!(names(&answer), expected, "{show}");
        assert_eq!(answer.iter().rev().nth(1).unwrap().payload, b"SHOW\0", "{show}");
    }
    let lists = console.query("SHOW LISTS").await.unwrap();
    let lists: Vec<&str> = lists.iter().map(|row| row[0].as_deref().unwrap()).collect();
    assert_eq!(
        lists.join(", "),
        "databases, users, peers, pools, peer_pools, free_clients, used_clients, login_clients, free_servers, \
         used_servers, dns_names, dns_zones, dns_queries, dns_pending"
    );
    let version = console.value("SHOW VERSION").await;
    assert!(version.split(['.', ' ']).filter(|part| part.parse::<u32>().is_ok()).count() == 3, "{version}");
    let oids = |answer: &[Message]| columns(answer).iter().map(|(_, oid)| *oid).collect::<Vec<_>>();
    assert!(oids(&console.exchange(&[query("SHOW STATS")]).await)[1..].iter().all(|oid| *oid == 1700));
    assert!(oids(&console.exchange(&[query("SHOW POOLS")]).await)[2..15].iter().all(|oid| *oid == 23));
    assert_eq!(oids(&console.exchange(&[query("SHOW CONFIG")]).await), [25; 4]);
}

#[tokio::test]
async fn every_show_of_the_help_answers_by_both_protocols() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(with_console(scene.files())).await;
    let mut client = connect(&proxy, &scene.acme).await;
    client.query("CREATE TEMP TABLE t (x int)").await.unwrap();
    let mut console = ops(&proxy).await;
    // What the transaction left is looked for when its answer is out: from then on nothing moves.
    eventually!(console.query("SHOW PINS").await.unwrap().len() == 1);
    let help = console.exchange(&[query("SHOW HELP")]).await;
    assert_eq!(tags(&help), "NCZ");
    let text = help[0].error().message().to_owned();
    let names = text.lines().nth(1).unwrap().trim().trim_start_matches("SHOW HELP|").to_owned();
    assert!(names.split('|').count() > 20, "{names}");
    for name in names.split('|') {
        let simple = console.exchange(&[query(&format!("SHOW {name}"))]).await;
        let extended =
            [parse("", &format!("SHOW {name}")), bind("", "", &[]), describe_portal(""), execute("", 0), sync()];
        let extended = console.exchange(&extended).await;
        assert!(tags(&simple).starts_with('T') && tags(&simple).ends_with("CZ"), "{name}: {simple:?}");
        assert_eq!(tags(&extended), format!("12{}", tags(&simple)), "{name}");
        let count = columns(&simple).len();
        assert!(simple.iter().filter(|it| it.tag == b'D').all(|row| row.row().len() == count), "{name}");
    }
}

#[tokio::test]
async fn the_extended_protocol_is_postgresqls() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(with_console(scene.files())).await;
    let mut console = ops(&proxy).await;
    // Described before it runs, as drivers that prepare do, and rows by portions.
    let answer = console.exchange(&[parse("s", "SHOW LISTS"), describe_statement("s"), sync()]).await;
    assert_eq!((tags(&answer).as_str(), names(&answer).as_str()), ("1tTZ", "list, items"));
    let rows = [bind("p", "s", &[]), execute("p", 10), execute("p", 10), execute("p", 10), sync()];
    assert_eq!(tags(&console.exchange(&rows).await), format!("2{}s{}CCZ", "D".repeat(10), "D".repeat(4)));
    // Numbers in binary form.
    let binary = [b"p\0s\0".to_vec(), vec![0, 0, 0, 0, 0, 1, 0, 1]].concat();
    let answer = console.exchange(&[frontend::message(b'B', &binary), execute("p", 1), sync()]).await;
    assert!(answer[1].payload.ends_with(b"\0\0\0\x04\0\0\0\x01"), "databases is 1: {answer:?}");
    // After an error everything up to Sync is passed over.
    let answer = console.exchange(&[parse("", "SELECT 1"), bind("", "", &[]), execute("", 0), sync()]).await;
    assert_eq!((tags(&answer).as_str(), sqlstates(&answer)), ("EZ", vec!["42601".to_owned()]));
    let cases = [
        (vec![parse("", "SHOW LISTS; SHOW LISTS")], "42601"),
        (vec![parse("s", "SHOW LISTS")], "42P05"),
        (vec![bind("", "nosuch", &[])], "26000"),
        (vec![execute("nosuch", 0)], "34000"),
        (vec![bind("", "s", &[Some("x")])], "08P01"),
    ];
    for (messages, expected) in cases {
        let answer = console.exchange(&[messages, vec![sync()]].concat()).await;
        assert_eq!(sqlstates(&answer), [expected]);
    }
    let empty =
        console.exchange(&[parse("", ""), bind("", "", &[]), describe_portal(""), execute("", 0), sync()]).await;
    assert_eq!(tags(&empty), "12nIZ");
    assert_eq!(tags(&console.exchange(&[query(";")]).await), "IZ", "lib/pq's ping");
    console.send(&frontend::function_call(1, &[])).await.unwrap();
    assert_eq!(console.expect_error("08P01").await.severity(), "FATAL");
}

#[tokio::test]
async fn what_drivers_send_around_their_queries_is_taken() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(with_console(scene.files())).await;
    let mut console = Wire::tcp(proxy.address()).await.unwrap();
    let startup = [
        ("user", "watcher"),
        ("database", "pgbouncer"),
        ("extra_float_digits", "2"),
        ("client_encoding", "UTF8"),
        ("datestyle", "ISO, MDY"),
        ("application_name", "exporter"),
    ];
    console.login_with(V3_0, &startup, SECRET).await.unwrap();
    assert_eq!(console.parameters["client_encoding"], "UTF8");
    assert_eq!(console.parameters["standard_conforming_strings"], "on");
    let begin = console.exchange(&[query("BEGIN")]).await;
    assert_eq!((tags(&begin).as_str(), begin[1].status()), ("CZ", 'T'));
    console.query("SET extra_float_digits = 3; SET TIME ZONE 'UTC'").await.unwrap();
    assert_eq!(console.query("/* agent */ show stats_totals").await.unwrap().len(), 1);
    assert_eq!(console.exchange(&[query("COMMIT")]).await[1].status(), 'I');
    for act in ["RELOAD", "KILL acme", "SHUTDOWN", "SET max_client_conn = 5", "PAUSE"] {
        assert_eq!(console.failure(act).await, "42501", "{act}: may only look");
    }
}

#[tokio::test]
async fn figures_are_those_of_the_tenants() {
    let scene = Scene::new().await;
    let globex = tenant(&scene.postgres, "globex").await;
    let files = scene.instance().tenant_with(&scene.acme, &[("pool.max_backends", 1.into())]).tenant(&globex);
    let proxy = Proxy::start(with_console(files)).await;
    let mut console = ops(&proxy).await;
    let (mut busy, mut waiting) = (connect(&proxy, &scene.acme).await, connect(&proxy, &scene.acme).await);
    busy.query("BEGIN; SELECT 1").await.unwrap();
    waiting.send(&query("SELECT 2")).await.unwrap();
    eventually!(cell(&mut console, "SHOW POOLS", "acme", "cl_waiting").await == "1");
    assert_eq!(cell(&mut console, "SHOW POOLS", "acme", "cl_active").await, "1");
    assert_eq!(cell(&mut console, "SHOW POOLS", "acme", "sv_active").await, "1");
    eventually!(cell(&mut console, "SHOW POOLS", "acme", "maxwait_us").await != "0");
    let states = console.query("SHOW CLIENTS").await.unwrap();
    let states: Vec<_> = states.iter().map(|row| row[4].clone().unwrap()).collect();
    assert_eq!(states, ["active", "waiting"]);
    let servers = console.query("SHOW SERVERS").await.unwrap();
    assert_eq!((servers.len(), servers[0][4].as_deref()), (1, Some("active")));
    assert_ne!(servers[0][16].as_deref(), Some("0"), "the pid");
    // Agents take them apart: `2026-01-31 12:00:00 UTC`.
    let (connected, asked) = (servers[0][9].clone().unwrap(), servers[0][10].clone().unwrap());
    assert!(connected.starts_with("20") && connected.len() == 23 && asked == connected, "{connected}");
    busy.query("COMMIT").await.unwrap();
    waiting.read_until_ready().await.unwrap();
    assert_eq!(cell(&mut console, "SHOW DATABASES", "acme", "current_client_connections").await, "2");
    assert_eq!(cell(&mut console, "SHOW DATABASES", "acme", "pool_size").await, "1");
    assert_eq!(cell(&mut console, "SHOW DATABASES", "globex", "current_connections").await, "0");
    eventually!(cell(&mut console, "SHOW STATS_TOTALS", "acme", "xact_count").await == "2");
    assert_ne!(cell(&mut console, "SHOW STATS", "acme", "total_sent").await, "0");
    assert_eq!(cell(&mut console, "SHOW LISTS", "databases", "items").await, "2");
    assert_eq!(cell(&mut console, "SHOW LISTS", "used_clients", "items").await, "2");
    assert_eq!(cell(&mut console, "SHOW USERS", "acme.acme", "current_client_connections").await, "2");
    assert_eq!(cell(&mut console, "SHOW INSTANCES", "one", "tenants").await, "2");
    assert_eq!(cell(&mut console, "SHOW TENANTS", "acme", "max_backends").await, "1");
    assert_eq!(cell(&mut console, "SHOW STATE", "active", "value").await, "yes");
    busy.query("CREATE TEMP TABLE t (x int)").await.unwrap();
    // What the transaction left is looked for when its answer is out.
    eventually!(console.query("SHOW PINS").await.unwrap().len() == 1);
    let row = console.query("SHOW PINS").await.unwrap().remove(0);
    assert!(row[6].as_deref().unwrap().contains("temp"), "{row:?}");
    let servers = console.query("SHOW SERVERS").await.unwrap();
    let kept = format!("client-{}", row[3].as_deref().unwrap());
    assert_eq!(servers[0][15].as_deref(), Some(kept.as_str()), "the one that is kept: {servers:?}");
    drop(busy);
    eventually!(console.query("SHOW PINS").await.unwrap().is_empty());
    assert_eq!(cell(&mut console, "SHOW CONFIG", "max_client_conn", "value").await, "10000");
    assert_eq!(cell(&mut console, "SHOW CONFIG", "drain.timeout", "value").await, "5s");
    assert_eq!(cell(&mut console, "SHOW CONFIG", "drain.timeout", "default").await, "30s");
    let config = console.query("SHOW CONFIG").await.unwrap();
    assert!(!format!("{config:?}").contains("console.password"), "no word of secrets");
}

#[tokio::test]
async fn set_changes_what_can_change_until_the_next_reload() {
    let scene = Scene::new().await;
    let proxy =
        Proxy::start(with_console(scene.files()).set("quota.max_clients", 9).set("pool.max_backends_per_role", 9))
            .await;
    let mut console = ops(&proxy).await;
    console.query("SET default_pool_size = 3; SET quota.max_clients TO 4; SET log.slow_wait = '2s'").await.unwrap();
    assert_eq!(cell(&mut console, "SHOW CONFIG", "default_pool_size", "value").await, "3");
    assert_eq!(cell(&mut console, "SHOW CONFIG", "log.slow_wait", "value").await, "2s");
    assert_eq!(cell(&mut console, "SHOW DATABASES", "acme", "max_client_connections").await, "4");
    // A changed file takes nothing of it away.
    proxy.files.rewrite_tenant(&scene.acme, &[("state", "read-only".into())]);
    eventually!(cell(&mut console, "SHOW TENANTS", "acme", "state").await == "read-only");
    assert_eq!(cell(&mut console, "SHOW DATABASES", "acme", "max_client_connections").await, "4");
    console.query("SET quota.max_clients = DEFAULT").await.unwrap();
    assert_eq!(cell(&mut console, "SHOW DATABASES", "acme", "max_client_connections").await, "9", "as written");
    let wrong = console.query("SET pool.max_backends = none").await.unwrap_err();
    assert_eq!(wrong.sqlstate(), "22023");
    assert!(wrong.fields[&'D'].starts_with("SET: pool.max_backends: "), "{wrong:?}");
    for (fixed, code) in [("max_client_conn", "55P02"), ("tls.certificates", "0A000"), ("pool.nonsense", "42704")] {
        assert_eq!(console.failure(&format!("SET {fixed} = 5")).await, code, "{fixed}");
    }
    assert_eq!(cell(&mut console, "SHOW CONFIG", "log.slow_wait", "value").await, "2s", "errors change nothing");
    console.query("RELOAD").await.unwrap();
    assert_eq!(cell(&mut console, "SHOW CONFIG", "log.slow_wait", "value").await, "");
    assert_eq!(cell(&mut console, "SHOW CONFIG", "default_pool_size", "value").await, "9");
}

#[tokio::test]
async fn explain_route_says_what_would_become_of_a_connection() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(with_console(scene.files())).await;
    let mut console = log_in_as(proxy.address(), "watcher", SECRET).await.unwrap();
    let route = "EXPLAIN ROUTE user=app options='-c tenant=acme'";
    assert_eq!(cell(&mut console, route, "tenant", "value").await, "acme");
    assert_eq!(cell(&mut console, route, "rule", "value").await, "options");
    let error = console.query("EXPLAIN ROUTE user=app.nosuch").await.unwrap_err();
    assert!(error.message().contains("there is no such tenant"), "{error:?}");
}

#[tokio::test]
async fn commands_act_on_the_tenant_that_they_name() {
    let scene = Scene::new().await;
    let globex = tenant(&scene.postgres, "globex").await;
    let proxy = Proxy::start(with_console(scene.files().tenant(&globex))).await;
    let mut console = ops(&proxy).await;
    let (mut one, mut two) = (connect(&proxy, &scene.acme).await, connect(&proxy, &scene.acme).await);
    let mut other = connect(&proxy, &globex).await;
    let pid = "SELECT pg_backend_pid()";
    let before = (value(&mut one, pid).await, value(&mut other, pid).await);
    console.query("RECONNECT acme").await.unwrap();
    assert_ne!(value(&mut one, pid).await, before.0);
    assert_eq!(value(&mut other, pid).await, before.1);
    console.query("RECONNECT").await.unwrap();
    assert_ne!(value(&mut other, pid).await, before.1);

    let clients = console.query("SHOW CLIENTS").await.unwrap();
    let id = clients[0][20].clone().unwrap();
    console.query(&format!("KILL_CLIENT {id}")).await.unwrap();
    one.expect_error("57P01").await;
    assert_eq!(console.failure(&format!("KILL_CLIENT {id}0000")).await, "22023");
    two.query("BEGIN; SELECT 1").await.unwrap();
    console.query("KILL acme").await.unwrap();
    two.expect_error("57P01").await;
    assert_eq!(value(&mut other, "SELECT 1").await, "1");
    // Its clients may come again, and wait until it is resumed.
    console.query("RESUME acme").await.unwrap();
    connect(&proxy, &scene.acme).await;
    assert_eq!(console.failure("KILL nosuch").await, "3D000");
}

#[tokio::test]
async fn reload_takes_changes_over_and_tells_what_is_wrong() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(with_console(scene.files())).await;
    let mut console = ops(&proxy).await;
    proxy.files.rewrite_tenant(&scene.acme, &[("pool.max_backends", 7.into())]);
    console.query("RELOAD").await.unwrap();
    assert_eq!(cell(&mut console, "SHOW DATABASES", "acme", "max_connections").await, "7");
    proxy.files.rewrite_tenant(&scene.acme, &[("pool.max_backends", 0.into())]);
    let error = console.query("RELOAD").await.unwrap_err();
    assert!(error.fields[&'D'].contains("pool.max_backends: at least 1"), "{error:?}");
    assert_eq!(cell(&mut console, "SHOW DATABASES", "acme", "max_connections").await, "7");
    // A role that is taken away is gone at its next command.
    let mut watcher = log_in_as(proxy.address(), "watcher", SECRET).await.unwrap();
    proxy.files.rewrite_tenant(&scene.acme, &[]);
    let text = std::fs::read_to_string(proxy.files.dir().join("proxy.toml")).unwrap();
    let text = text.replace("roles.watcher", "roles.other");
    std::fs::write(proxy.files.dir().join("proxy.toml"), text).unwrap();
    console.query("RELOAD").await.unwrap();
    watcher.send(&query("SHOW VERSION")).await.unwrap();
    assert_eq!(watcher.expect_error("28000").await.severity(), "FATAL");
}

#[tokio::test]
async fn shutdown_waits_for_whom_it_says() {
    let scene = Scene::new().await;
    for (command, waits_for_idle, waits_for_transaction) in [
        ("SHUTDOWN", false, false),
        ("SHUTDOWN WAIT_FOR_SERVERS", false, true),
        ("SHUTDOWN WAIT_FOR_CLIENTS", true, true),
    ] {
        let mut served = Served::start(with_console(scene.files()).set("drain.timeout", "60s")).await;
        let mut console = log_in_as(served.address, "ops", SECRET).await.unwrap();
        let mut idle = Wire::tcp(served.address).await.unwrap();
        log_in(&mut idle, &scene.acme).await.unwrap();
        let mut open = Wire::tcp(served.address).await.unwrap();
        log_in(&mut open, &scene.acme).await.unwrap();
        open.query("BEGIN; SELECT 1").await.unwrap();
        console.query(command).await.unwrap();
        eventually!(Wire::tcp(served.address).await.is_err(), "{command}: nobody new");
        if waits_for_idle {
            assert_eq!(value(&mut idle, "SELECT 1").await, "1", "{command}");
            idle.send(&frontend::terminate()).await.unwrap();
        } else {
            idle.expect_error("57P01").await;
        }
        if waits_for_transaction {
            assert_eq!(http_get(served.http, "/healthz").await.0, 200);
            assert_eq!(cell(&mut console, "SHOW STATE", "active", "value").await, "no");
            open.query("COMMIT").await.unwrap();
            open.send(&frontend::terminate()).await.unwrap();
        } else {
            open.expect_error("57P01").await;
        }
        assert!(served.ended().await.success(), "{command}:\n{}", served.log());
        console.expect_error("57P01").await;
    }
}

#[tokio::test]
async fn a_stronger_shutdown_hurries_one_that_waits() {
    let scene = Scene::new().await;
    let mut served = Served::start(with_console(scene.files()).set("drain.timeout", "60s")).await;
    let mut console = log_in_as(served.address, "ops", SECRET).await.unwrap();
    let mut open = Wire::tcp(served.address).await.unwrap();
    log_in(&mut open, &scene.acme).await.unwrap();
    open.query("BEGIN; SELECT 1").await.unwrap();
    console.query("SHUTDOWN WAIT_FOR_CLIENTS").await.unwrap();
    console.query("SHUTDOWN WAIT_FOR_SERVERS").await.unwrap();
    assert_eq!(value(&mut open, "SELECT 1").await, "1");
    console.query("SHUTDOWN").await.unwrap();
    open.expect_error("57P01").await;
    assert!(served.ended().await.success());
}

/// What the prometheus-community exporter does with its answers: its labels have to be unique, and its figures numbers.
#[tokio::test]
async fn the_exporter_finds_unique_labels_and_numbers() {
    let scene = Scene::new().await;
    scene.postgres.sql("postgres", "CREATE DATABASE acme_more").await.unwrap();
    let changes = [("databases", vec!["acme_more"].into()), ("pool.mode", "session".into())];
    let proxy = Proxy::start(with_console(scene.instance().tenant_with(&scene.acme, &changes))).await;
    // Pools of one role that differ in what their backends were opened with, and one of another database.
    let mut clients = Vec::new();
    for (database, application_name) in [("acme", "one"), ("acme", "two"), ("acme_more", "one")] {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        let hints = [("options", "-c tenant=acme"), ("database", database), ("application_name", application_name)];
        client.login_with(V3_0, &[&[("user", "acme")], &hints[..]].concat(), password(&scene.acme)).await.unwrap();
        clients.push(client);
    }
    let mut console = log_in_as(proxy.address(), "watcher", SECRET).await.unwrap();
    for (show, labels) in [
        ("SHOW STATS_TOTALS;", &["database"][..]),
        ("SHOW POOLS;", &["database", "user", "pool_mode", "load_balance_hosts"]),
        ("SHOW DATABASES;", &["name", "host", "port", "database", "force_user", "pool_mode", "load_balance_hosts"]),
    ] {
        let answer = console.exchange(&[query(show)]).await;
        let names: Vec<String> = columns(&answer).into_iter().map(|(name, _)| name).collect();
        let mut seen = std::collections::HashSet::new();
        for row in answer.iter().filter(|message| message.tag == b'D').map(Message::row) {
            let (label, figures): (Vec<_>, Vec<_>) =
                names.iter().zip(row).partition(|(name, _)| labels.contains(&name.as_str()));
            for (name, figure) in figures {
                assert!(figure.as_deref().is_some_and(|it| it.parse::<f64>().is_ok()), "{show} {name}: {figure:?}");
            }
            assert!(seen.insert(format!("{label:?}")), "{show}: {label:?} twice");
        }
        assert!(!seen.is_empty(), "{show}");
    }
    assert_eq!(cell(&mut console, "SHOW POOLS;", "acme", "cl_active").await, "2");
    assert_eq!(cell(&mut console, "SHOW POOLS;", "acme/acme_more", "sv_active").await, "1");
    let servers = console.query("SHOW SERVERS").await.unwrap();
    assert!(servers.iter().all(|row| row[15].as_deref().unwrap().starts_with("client-")), "{servers:?}");
}

#[tokio::test]
async fn psql_just_works() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(with_console(scene.files())).await;
    let psql = async |commands: &[&str]| {
        let address = proxy.address();
        let mut command = Command::new("psql");
        command.args(["-X", "-A", "-t", "-h", &address.ip().to_string(), "-p", &address.port().to_string()]);
        command.args(["-U", "ops", "pgbouncer"]).env("PGPASSWORD", SECRET).kill_on_drop(true);
        commands.iter().for_each(|text| _ = command.args(["-c", text]));
        let output = command.output().await.expect("psql is there");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    };
    let (out, err) = psql(&["SHOW DATABASES", "SHOW HELP", "RELOAD", "SELECT 1"]).await;
    assert!(out.starts_with("acme|127.0.0.1|"), "{out}");
    assert!(out.contains("RELOAD"), "{out}");
    assert!(err.contains("Console usage") && err.contains("invalid command 'SELECT 1', use SHOW HELP;"), "{err}");
}
