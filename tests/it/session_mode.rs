//! Session mode is the plain truth: message for message, a client sees what it would see on a direct connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use pgtenant::cli::demo::tenant::Onboarded;
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use toml::Value;

use crate::eventually;
use crate::harness::frontend::{self, bind, execute, message, parse, query, sync};
use crate::harness::postgres;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::stage::{Stage, add_role, client, client_as, client_with, driver, instance};
use crate::harness::wire::{Message, Wire, cancel, sqlstates, tags};

type Parameters<'a> = &'a [(&'a str, &'a str)];

async fn stage(changes: &[(&str, Value)]) -> Stage {
    Stage::new(&[&[("pool.mode", "session".into())], changes].concat()).await
}

/// A client of the proxy, and one with the same parameters that is connected directly.
struct Twins {
    ours: Wire,
    direct: Wire,
}

impl Twins {
    async fn new(stage: &Stage, parameters: Parameters<'_>) -> Twins {
        let Onboarded { role, tenant, .. } = &stage.tenant;
        let ours = greeted(stage, stage.proxy.address(), &format!("{role}.{tenant}"), parameters).await;
        let direct = greeted(stage, stage.postgres.address(), role, parameters).await;
        assert_eq!(visible(&ours.greeting), visible(&direct.greeting), "{parameters:?}");
        Twins { ours, direct }
    }

    /// Both send the same and get the same.
    async fn agree(&mut self, messages: &[Vec<u8>]) -> Vec<Message> {
        let (ours, direct) = (self.ours.exchange(messages).await, self.direct.exchange(messages).await);
        assert_eq!(ours, direct);
        ours
    }

    async fn agree_on(&mut self, statements: &[&str]) {
        for sql in statements {
            self.agree(&[query(sql)]).await;
        }
    }

    /// Both see the same until their connections end.
    async fn die_alike(&mut self) -> Vec<Message> {
        let (ours, direct) = (last_words(&mut self.ours).await, last_words(&mut self.direct).await);
        assert_eq!(ours, direct);
        ours
    }
}

/// Logs in; what came of it is in the greeting.
async fn greeted(stage: &Stage, address: SocketAddr, user: &str, parameters: Parameters<'_>) -> Wire {
    let mut wire = Wire::tcp(address).await.unwrap();
    let parameters = [&[("user", user), ("database", &*stage.tenant.database)], parameters].concat();
    let result = wire.login_with(frontend::V3_0, &parameters, stage.tenant.password.expose_secret()).await;
    if result.is_err() {
        assert!(wire.is_closed().await);
    }
    wire
}

/// A greeting but for the numbers of BackendKeyData.
fn visible(greeting: &[Message]) -> Vec<Message> {
    let mut greeting = greeting.to_vec();
    for message in greeting.iter_mut().filter(|message| message.tag == b'K') {
        message.payload = message.payload.len().to_string().into_bytes();
    }
    greeting
}

async fn last_words(wire: &mut Wire) -> Vec<Message> {
    let mut words = Vec::new();
    while let Ok(message) = wire.read().await {
        words.push(message);
    }
    words
}

const GIVEN: &str = "SELECT name, setting, source, reset_val, boot_val, sourcefile FROM pg_settings
                     WHERE source = 'client' OR reset_val <> boot_val OR setting <> reset_val ORDER BY name";

#[tokio::test]
async fn startup_parameters_are_in_force_as_on_a_direct_connection() {
    let stage = stage(&[]).await;
    stage.sql("CREATE ROLE friend; GRANT friend TO app; ALTER ROLE app SET lock_timeout = '7s'").await;
    let all: [Parameters<'_>; 10] = [
        &[],
        &[("application_name", "it's \\ mine"), ("client_encoding", "latin1")],
        &[
            ("client_encoding", "utf8"),
            ("DateStyle", "German"),
            ("TimeZone", "asia/tokyo"),
            ("IntervalStyle", "iso_8601"),
        ],
        &[("client_encoding", "SQL_ASCII"), ("standard_conforming_strings", "off"), ("extra_float_digits", "3")],
        &[
            ("search_path", "one, \"Two\", pg_catalog"),
            ("statement_timeout", "70s"),
            ("my.own", "1 2"),
            ("lock_timeout", "0"),
        ],
        &[("options", "-c work_mem=5MB --geqo=off -c my.own=a\\ b -c default_transaction_isolation=serializable")],
        &[("options", "-e -S 2345 -fh -c search_path=a,\\\\b"), ("work_mem", "6MB")],
        &[("TimeZone", "UTC"), ("timezone", "Europe/Paris"), ("options", "-c timezone=Asia/Tokyo")],
        &[("role", "friend"), ("default_transaction_read_only", "on"), ("replication", "of")],
        &[("session_authorization", "app"), ("client_min_messages", "error"), ("options", "")],
    ];
    for parameters in all {
        // The second time on the same backend.
        for _ in 0..2 {
            let mut twins = Twins::new(&stage, parameters).await;
            twins
                .agree_on(&[
                    GIVEN,
                    "SELECT current_user, session_user",
                    "SHOW client_encoding",
                    "SELECT 'a\\b', now() > 'epoch'",
                ])
                .await;
            twins.agree_on(&["SHOW my.own", "SELECT current_setting('my.own', true)", "SHOW ALL"]).await;
            twins.agree(&[parse("", GIVEN), bind("", "", &[]), execute("", 0), sync()]).await;
            twins.ours.send(&frontend::terminate()).await.unwrap();
            eventually!(idle(&stage).await >= 1.0);
        }
    }
}

async fn idle(stage: &Stage) -> f64 {
    stage.proxy.metric("pgtenant_tenant_backends{tenant=\"acme\",instance_name=\"one\",state=\"idle\"").await
}

#[tokio::test]
async fn parameters_are_told_in_the_servers_spelling_and_order_in_every_mode() {
    for mode in ["session", "transaction", "statement"] {
        let stage = Stage::new(&[("pool.mode", mode.into())]).await;
        for encoding in ["utf8", "Utf-8", "unicode", "latin1", "SQL_ASCII"] {
            for _ in 0..2 {
                let parameters = [("client_encoding", encoding), ("timezone", "utc"), ("datestyle", "sql, dmy")];
                let twins = Twins::new(&stage, &parameters).await;
                assert!(!twins.ours.parameters["client_encoding"].eq(encoding) || encoding == "SQL_ASCII");
            }
        }
    }
}

#[tokio::test]
async fn a_refused_startup_parameter_is_told_in_the_backends_own_words() {
    let stage = stage(&[("pool.max_backends", 1.into())]).await;
    let bad: [Parameters<'_>; 20] = [
        &[("DateStyle", "nonsense")],
        &[("client_encoding", "nonsense")],
        &[("work_mem", "nonsense")],
        &[("work_mem", "1kB")],
        &[("no_such_parameter", "1")],
        &[("my.1", "1")],
        &[("TimeZone", "Mars/Olympus"), ("work_mem", "nonsense")],
        &[("work_mem", "nonsense"), ("TimeZone", "Mars/Olympus")],
        &[("shared_buffers", "1GB")],
        &[("log_min_messages", "debug1")],
        &[("session_authorization", "postgres")],
        &[("role", "postgres")],
        &[("role", "nobody_at_all")],
        &[("replication", "sometimes")],
        &[("replication", "database")],
        &[("options", "-c")],
        &[("options", "-c work_mem")],
        &[("options", "-e nonsense --work_mem=5MB")],
        &[("options", "-d 5")],
        &[("options", "-x --work-mem=5MB")],
    ];
    for parameters in bad {
        // The second time by what is remembered.
        for _ in 0..2 {
            let twins = Twins::new(&stage, parameters).await;
            assert_eq!(tags(&twins.ours.greeting), "E", "{parameters:?}");
        }
        // Nobody else suffers, nor the same client with better ones.
        assert_eq!(tags(&Twins::new(&stage, &[("application_name", "good")]).await.ours.greeting).pop(), Some('Z'));
    }
    // With the tenant among the options, which the instance must not see.
    let mut wire = Wire::tcp(stage.proxy.address()).await.unwrap();
    let parameters = [("user", "app"), ("database", "app"), ("options", "-ec tenant=acme -c work_mem=nonsense")];
    let password = stage.tenant.password.expose_secret();
    let error = wire.login_with(frontend::V3_0, &parameters, password).await.unwrap_err();
    assert_eq!(error.message(), "invalid value for parameter \"work_mem\": \"nonsense\"");
}

#[tokio::test]
async fn a_timeout_of_the_clients_own_does_not_keep_it_out() {
    let stage = stage(&[]).await;
    for _ in 0..5 {
        let mut twins = Twins::new(&stage, &[("statement_timeout", "1"), ("lock_timeout", "1")]).await;
        for wire in [&mut twins.ours, &mut twins.direct] {
            assert_eq!(wire.failure("SELECT pg_sleep(1)").await, "57014");
        }
    }
}

#[tokio::test]
async fn what_the_instance_says_at_login_reaches_the_client() {
    let stage = stage(&[]).await;
    // A setting of the role that is wrong is a warning, for every new session.
    stage.sql("ALTER ROLE app SET default_text_search_config = 'no_such'").await;
    for _ in 0..2 {
        assert_eq!(Twins::new(&stage, &[]).await.ours.greeting[0].tag, b'N');
    }
    stage.sql("ALTER ROLE app RESET default_text_search_config").await;
    let refusals = [
        ("ALTER ROLE app CONNECTION LIMIT 0", "ALTER ROLE app CONNECTION LIMIT -1", "53300"),
        ("ALTER DATABASE app CONNECTION LIMIT 0", "ALTER DATABASE app CONNECTION LIMIT -1", "53300"),
        ("ALTER ROLE app NOLOGIN", "ALTER ROLE app LOGIN", "28000"),
        ("REVOKE CONNECT ON DATABASE app FROM app, PUBLIC", "GRANT CONNECT ON DATABASE app TO app", "42501"),
    ];
    for (index, (refuse, allow, sqlstate)) in refusals.into_iter().enumerate() {
        // A name of its own, so that nobody is given a backend from before.
        let name = index.to_string();
        stage.sql(refuse).await;
        let twins = Twins::new(&stage, &[("application_name", &name)]).await;
        assert_eq!(sqlstates(&twins.ours.greeting), [sqlstate], "{refuse}");
        stage.sql(allow).await;
        eventually!(
            greeted(&stage, stage.proxy.address(), "app.acme", &[("application_name", &name)]).await.key.is_some()
        );
    }
}

#[tokio::test]
async fn an_instance_that_is_full_or_goes_says_so_itself() {
    let settings = vec![
        ("max_connections".to_owned(), "8".to_owned()),
        ("superuser_reserved_connections".to_owned(), "3".to_owned()),
    ];
    let options = pgtenant::cli::demo::postgres::Options { settings, ..postgres::options() };
    let (postgres, tenant) = instance(options).await;
    let files = ProxyFiles::new().instance("one", &postgres);
    let files = files.tenant_with(&tenant, &[("pool.mode", "session".into())]);
    let stage = Stage { proxy: Proxy::start(files).await, tenant, postgres };
    let mut guests = Vec::new();
    let refused = loop {
        let wire = greeted(&stage, stage.postgres.address(), "app", &[]).await;
        if wire.key.is_none() {
            break wire;
        }
        guests.push(wire);
    };
    assert_eq!(sqlstates(&refused.greeting), ["53300"]);
    let ours = greeted(&stage, stage.proxy.address(), "app.acme", &[]).await;
    assert_eq!(ours.greeting, refused.greeting);
    drop(guests);
    eventually!(greeted(&stage, stage.proxy.address(), "app.acme", &[]).await.key.is_some());
}

#[tokio::test]
async fn statements_are_answered_as_on_a_direct_connection() {
    let stage = stage(&[]).await;
    let sql = "CREATE TABLE t (x int PRIMARY KEY CHECK (x > 0)); GRANT ALL ON t TO app;
               CREATE FUNCTION talk() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
                 RAISE NOTICE 'hello' USING DETAIL = 'd', HINT = 'h', SCHEMA = 's', DATATYPE = 't';
                 RAISE WARNING SQLSTATE '01XYZ' USING MESSAGE = 'hm'; PERFORM 1/0; END $$";
    stage.sql(sql).await;
    let startup = [("application_name", "given"), ("options", "-c work_mem=5MB"), ("TimeZone", "UTC"), ("my.own", "1")];
    let mut twins = Twins::new(&stage, &startup).await;
    let shown = "SELECT current_setting('work_mem'), current_setting('TimeZone'), current_setting('application_name'),
                 current_setting('my.own'), current_user";
    let changes = [
        "SET work_mem = '7MB'",
        "SET TimeZone = 'Asia/Tokyo'",
        "SET my.own = 2",
        "SET application_name = other",
        "SET client_encoding = latin1",
        "RESET work_mem",
        "RESET TimeZone",
        "RESET ALL",
        "SET LOCAL work_mem = '8MB'",
        "BEGIN; SET work_mem = '9MB'; SET TimeZone = 'Asia/Tokyo'; ROLLBACK",
        "SET work_mem = '9MB'; DISCARD ALL",
        "DISCARD ALL",
        "SET work_mem TO DEFAULT",
        "SET SESSION AUTHORIZATION app",
        "SET ROLE none",
        "RESET ROLE",
    ];
    for change in changes {
        twins.agree_on(&[change, shown, GIVEN]).await;
    }
    twins
        .agree_on(&[
            "SELECT 1/0",
            "SELECT * FROM nowhere",
            "SELEKT",
            "SELECT talk()",
            "INSERT INTO t VALUES (1), (1)",
            "INSERT INTO t VALUES (0)",
            "",
            ";",
            "SELECT 1; SELECT 2; SELECT 1/0; SELECT 3",
            "CREATE TABLE IF NOT EXISTS t ()",
            "BEGIN",
            "BEGIN",
            "SELECT 1/0",
            "SELECT 1",
            "COMMIT",
            "COMMIT",
            "SET bytea_output = nonsense",
            "LISTEN news",
            "CREATE TEMP TABLE mine (x int)",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            "EXECUTE q",
            "DEALLOCATE ALL",
        ])
        .await;
    for batch in [
        vec![parse("", "SELECT $1::int / 0"), bind("", "", &[Some("1")]), execute("", 0), sync()],
        vec![parse("", "SELECT nowhere"), bind("", "", &[]), execute("", 0), sync()],
        vec![bind("", "missing", &[]), execute("", 0), sync()],
        vec![frontend::function_call(177, &["1", "2"])],
    ] {
        twins.agree(&batch).await;
    }
}

#[tokio::test]
async fn prepared_statements_have_the_clients_own_names() {
    let stage = stage(&[]).await;
    let mut twins = Twins::new(&stage, &[]).await;
    let prepared = "SELECT name, statement, from_sql FROM pg_prepared_statements ORDER BY name";
    let run = |name: &str| vec![bind("", name, &[]), frontend::describe_portal(""), execute("", 0), sync()];
    let prepare = |name: &str, sql: &str| vec![parse(name, sql), frontend::describe_statement(name), sync()];
    twins.agree(&prepare("s", "SELECT 1 AS x")).await;
    twins.agree_on(&[prepared, "EXECUTE s", "PREPARE p AS SELECT 2", prepared]).await;
    for batch in [run("s"), run("p"), prepare("s", "SELECT 3"), prepare("bad", "SELEKT"), run("bad")] {
        twins.agree(&batch).await;
    }
    twins.agree_on(&["DEALLOCATE s", prepared]).await;
    for batch in [run("s"), prepare("", "SELECT 4"), run(""), vec![frontend::close_statement("p"), sync()], run("p")] {
        twins.agree(&batch).await;
    }
    twins.agree_on(&[prepared, "DISCARD ALL", prepared]).await;
}

#[tokio::test]
async fn equal_parameters_share_backends_and_others_make_room() {
    let stage = stage(&[("pool.max_backends", 2.into()), ("pool.max_backends_per_role", 1.into())]).await;
    let (one, two) = ([("application_name", "one")], [("application_name", "two")]);
    let mut first = stage.client_with(&one).await;
    let pid = first.value("SELECT pg_backend_pid()").await;
    first.query("SET work_mem = '7MB'; SET application_name = messy; LISTEN news").await.unwrap();
    drop(first);
    let mut second = stage.client_with(&one).await;
    assert_eq!(second.value("SELECT pg_backend_pid()").await, pid);
    assert_eq!(second.value("SHOW application_name").await, "one");
    assert_eq!(second.value("SHOW work_mem").await, "4MB");
    // The bound of the role holds for all of its clients together.
    let other = tokio::spawn({
        let (address, tenant) = (stage.proxy.address(), stage.tenant.clone());
        async move { client_with(address, &tenant, &[("application_name", "two")]).await }
    });
    stage.waiting(1.0).await;
    assert_eq!(stage.backends().await, 1);
    drop(second);
    let mut other = other.await.unwrap();
    assert_ne!(other.value("SELECT pg_backend_pid()").await, pid);
    assert_eq!((other.value("SHOW application_name").await.as_str(), stage.backends().await), ("two", 1));
    drop(other);
    for parameters in [&one, &two, &one] {
        assert_eq!(stage.client_with(parameters).await.value("SHOW application_name").await, parameters[0].1);
    }
}

#[tokio::test]
async fn pools_of_many_different_parameters_do_not_pile_up() {
    let stage = stage(&[("pool.max_backends", 3.into())]).await;
    let mut most: f64 = 0.0;
    for number in 0..300 {
        let (good, bad) = (format!("name {number}"), format!("{number}xyz"));
        let mut wire = stage.client_with(&[("application_name", &good)]).await;
        assert_eq!(wire.value("SHOW application_name").await, good);
        drop(wire);
        let wire = greeted(&stage, stage.proxy.address(), "app.acme", &[("work_mem", &bad)]).await;
        assert_eq!(sqlstates(&wire.greeting), ["22023"]);
        if number % 10 == 0 {
            most = most.max(stage.proxy.metric("pgtenant_pools").await);
        }
    }
    assert!(most < 200.0, "{most} pools");
    assert!(stage.backends().await <= 3);
    eventually!(stage.proxy.metric("pgtenant_pools").await <= 3.0);
}

#[tokio::test]
async fn many_clients_with_parameters_of_their_own_all_get_their_turn() {
    let stage = stage(&[("pool.max_backends", 2.into())]).await;
    let clients = (0..24).map(|number| {
        let (address, tenant) = (stage.proxy.address(), stage.tenant.clone());
        tokio::spawn(async move {
            for _ in 0..3 {
                let name = (number % 8).to_string();
                let mut wire = client_with(address, &tenant, &[("application_name", &name)]).await;
                assert_eq!(wire.value("SHOW application_name").await, name);
                wire.send(&frontend::terminate()).await.unwrap();
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert!(stage.backends().await <= 2);
}

#[tokio::test]
async fn the_pid_is_the_backends_and_cancels_and_terminates() {
    let stage = stage(&[]).await;
    let mut wires = Vec::new();
    for _ in 0..3 {
        let mut wire = stage.client_with(&[("application_name", "pid")]).await;
        assert_eq!(wire.value("SELECT pg_backend_pid()").await, wire.key.as_ref().unwrap().0.to_string());
        wires.push(wire);
    }
    for index in [1, 0, 2] {
        for wire in &mut wires {
            wire.send(&query("SELECT pg_sleep(60)")).await.unwrap();
        }
        let asleep = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pid' AND wait_event = 'PgSleep'";
        eventually!(stage.sql(asleep).await[0][0].as_deref() == Some("3"));
        // The pid alone does nothing: the secret is ours.
        let (pid, secret) = wires[index].key.clone().unwrap();
        cancel(stage.proxy.address(), &(pid, vec![1, 2, 3, 4])).await.unwrap();
        cancel(stage.proxy.address(), &(pid, secret)).await.unwrap();
        assert_eq!(sqlstates(&wires[index].read_until_ready().await.unwrap()), ["57014"]);
        for other in (0..3).filter(|other| *other != index) {
            let key = wires[other].key.clone().unwrap();
            cancel(stage.proxy.address(), &key).await.unwrap();
            assert_eq!(sqlstates(&wires[other].read_until_ready().await.unwrap()), ["57014"]);
        }
    }
    let (pid, _) = wires[1].key.clone().unwrap();
    assert_eq!(wires[0].value(&format!("SELECT pg_terminate_backend({pid})")).await, "t");
    assert_eq!(sqlstates(&last_words(&mut wires[1]).await), ["57P01"]);
    assert_eq!(wires[2].value("SELECT 1").await, "1");
}

#[tokio::test]
async fn an_old_key_of_the_same_backend_cancels_nothing() {
    let stage = stage(&[("pool.max_backends", 1.into())]).await;
    let first = stage.client().await;
    let old = first.key.clone().unwrap();
    drop(first);
    let mut second = stage.client().await;
    let new = second.key.clone().unwrap();
    assert_eq!(old.0, new.0);
    assert_ne!(old.1, new.1);
    second.send(&query("SELECT pg_sleep(60)")).await.unwrap();
    eventually!(!stage.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'").await.is_empty());
    cancel(stage.proxy.address(), &old).await.unwrap();
    assert!(second.is_silent(std::time::Duration::from_millis(100)).await);
    cancel(stage.proxy.address(), &new).await.unwrap();
    assert_eq!(sqlstates(&second.read_until_ready().await.unwrap()), ["57014"]);
}

#[tokio::test]
async fn sessions_on_backends_with_equal_pids_are_told_apart() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let sevens = Sevens::start(postgres.system_identifier().unwrap()).await;
    let files = ProxyFiles::new().instance_at("one", sevens.address);
    let proxy = Proxy::start(files.tenant_with(&tenant, &[("pool.mode", "session".into())])).await;
    let mut wires = Vec::new();
    for _ in 0..3 {
        wires.push(client(proxy.address(), &tenant).await);
    }
    let keys: Vec<_> = wires.iter().map(|wire| wire.key.clone().unwrap()).collect();
    assert!(keys.iter().all(|(pid, _)| *pid == 7));
    for index in [1, 0, 2] {
        cancel(proxy.address(), &keys[index]).await.unwrap();
    }
    assert_eq!(*sevens.cancelled.lock().unwrap(), [2, 1, 3]);
    // One that ends takes none of the others with it.
    drop(wires.remove(1));
    eventually!(proxy.metric("pgtenant_clients ").await == 2.0);
    for index in [1, 0, 2] {
        cancel(proxy.address(), &keys[index]).await.unwrap();
    }
    assert_eq!(*sevens.cancelled.lock().unwrap(), [2, 1, 3, 1, 3]);
}

/// An instance on many machines, as it were: every backend has the pid 7, with its number as the secret. It lets everybody
/// in and notes the secrets of cancel requests.
struct Sevens {
    address: SocketAddr,
    cancelled: Arc<Mutex<Vec<u32>>>,
    accepting: JoinHandle<()>,
}

impl Sevens {
    async fn start(system_identifier: u64) -> Sevens {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cancelled = Arc::new(Mutex::new(Vec::new()));
        let (noted, last) = (cancelled.clone(), Arc::new(AtomicU32::new(0)));
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(Sevens::serve(stream, system_identifier, last.clone(), noted.clone()));
            }
        });
        Sevens { address, cancelled, accepting }
    }

    async fn serve(
        mut stream: TcpStream,
        system_identifier: u64,
        last: Arc<AtomicU32>,
        cancelled: Arc<Mutex<Vec<u32>>>,
    ) -> std::io::Result<()> {
        let length = stream.read_u32().await? as usize;
        let mut packet = vec![0; length - 4];
        stream.read_exact(&mut packet).await?;
        if packet.starts_with(&frontend::cancel_request(7, &[])[4..8]) {
            cancelled.lock().unwrap().push(u32::from_be_bytes(packet[8..12].try_into().unwrap()));
            return Ok(());
        }
        let number = last.fetch_add(1, Ordering::Relaxed) + 1;
        let (ready, pid) = (message(b'Z', b"I"), 7_u32.to_be_bytes());
        let key = message(b'K', &[pid, number.to_be_bytes()].concat());
        stream.write_all(&[message(b'R', &[0; 4]), key, ready.clone()].concat()).await?;
        let mut buffer = [0; 1024];
        let _ = stream.read(&mut buffer).await?;
        let column = |text: &str| [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
        let row = [&[0, 2][..], &column(&system_identifier.to_string()), &column("app")].concat();
        stream.write_all(&[message(b'D', &row), message(b'C', b"SELECT 1\0"), ready].concat()).await?;
        while stream.read(&mut buffer).await? > 0 {
            // The reset between two clients.
            stream.write_all(&[message(b'C', b"DISCARD ALL\0"), message(b'Z', b"I")].concat()).await?;
        }
        Ok(())
    }
}

impl Drop for Sevens {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[tokio::test]
async fn a_terminated_backends_last_words_are_the_only_ones() {
    let stage = stage(&[]).await;
    let deaths: [(&str, Vec<Vec<u8>>, &str); 5] = [
        ("idle", vec![], "state = 'idle'"),
        ("in a transaction", vec![query("BEGIN")], "state = 'idle in transaction'"),
        ("in a query", vec![query("SELECT pg_sleep(60)")], "wait_event = 'PgSleep'"),
        (
            "in a COPY",
            vec![query("CREATE TEMP TABLE t (x int); COPY t FROM STDIN"), frontend::copy_data(b"1\n")],
            "state = 'active'",
        ),
        ("in a batch", vec![parse("", "SELECT pg_sleep(60)"), bind("", "", &[]), execute("", 0)], "state = 'active'"),
    ];
    for (when, sent, condition) in deaths {
        let mut twins = Twins::new(&stage, &[("application_name", "twin")]).await;
        for message in &sent {
            twins.ours.send(message).await.unwrap();
            twins.direct.send(message).await.unwrap();
        }
        let killed = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'twin'
             AND {condition} AND (SELECT count(*) = 2 FROM pg_stat_activity WHERE application_name = 'twin' AND {condition})"
        );
        eventually!(stage.sql(&killed).await.len() == 2, "{when}");
        // Without asking for anything.
        let words = twins.die_alike().await;
        assert_eq!(sqlstates(&words), ["57P01"], "{when}");
        eventually!(stage.backends().await == 0, "{when}");
    }
    // A client that asks in this very moment hears the reason as well.
    for _ in 0..20 {
        let mut wire = stage.client().await;
        let pid = wire.key.as_ref().unwrap().0;
        stage.sql(&format!("SELECT pg_terminate_backend({pid})")).await;
        let _ = wire.send(&query("SELECT 1")).await;
        assert_eq!(sqlstates(&last_words(&mut wire).await), ["57P01"]);
    }
    let driver = driver(stage.proxy.address(), &stage.tenant).await;
    assert_eq!(driver.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
}

#[tokio::test]
async fn a_killed_backend_ends_the_connection_without_a_word_of_ours() {
    let stage = stage(&[]).await;
    for request in [
        None,
        Some("BEGIN"),
        Some("SELECT pg_sleep(60)"),
        Some("SELECT repeat('x', 100), pg_sleep(0.001) FROM generate_series(1, 100000)"),
    ] {
        let mut bystanders = Twins::new(&stage, &[]).await;
        let mut wire = stage.client().await;
        let pid = wire.key.as_ref().unwrap().0;
        if let Some(request) = request {
            wire.send(&query(request)).await.unwrap();
            let at_work = format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND state <> 'idle'");
            eventually!(!stage.sql(&at_work).await.is_empty());
        }
        // SAFETY: kill has no memory effects; the process is the test's own instance's.
        assert_eq!(unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) }, 0);
        let words = tags(&last_words(&mut wire).await);
        assert!(!words.contains(['E', 'N']), "{request:?}: {words}");
        // PostgreSQL then restarts all others, with a word to each; now and then one is gone before it is said.
        for bystander in [&mut bystanders.ours, &mut bystanders.direct] {
            let words = last_words(bystander).await;
            assert!(words.len() <= 1, "{words:?}");
            assert!(words.iter().all(|word| word.tag == b'N' && word.error().sqlstate() == "57P02"), "{words:?}");
        }
        eventually!(greeted(&stage, stage.proxy.address(), "app.acme", &[]).await.key.is_some());
        eventually!(stage.postgres.sql("app", "SELECT 1").await.is_ok());
    }
}

#[tokio::test]
async fn a_shutdown_is_told_in_the_instances_words() {
    let stage = stage(&[]).await;
    let mut twins = [Twins::new(&stage, &[]).await, Twins::new(&stage, &[]).await];
    twins[1].agree(&[query("BEGIN")]).await;
    stage.postgres.stop().await;
    for twins in &mut twins {
        assert_eq!(sqlstates(&twins.die_alike().await), ["57P01"]);
    }
}

#[tokio::test]
async fn in_transaction_mode_the_proxy_still_says_what_happened() {
    let stage = Stage::new(&[]).await;
    let mut wire = stage.client().await;
    let told = wire.key.as_ref().unwrap().0.to_string();
    wire.query("BEGIN").await.unwrap();
    let pid = wire.value("SELECT pg_backend_pid()").await;
    assert_ne!(pid, told, "a backend of nobody's own has no pid to tell");
    // SAFETY: kill has no memory effects; the process is the test's own instance's.
    assert_eq!(unsafe { libc::kill(pid.parse().unwrap(), libc::SIGKILL) }, 0);
    assert_eq!(sqlstates(&last_words(&mut wire).await), ["08006"]);
}

#[tokio::test]
async fn another_role_gets_its_share_beside_many_parameters() {
    let (postgres, tenant) = instance(postgres::options()).await;
    let verifier = add_role(&postgres, &tenant, "batch", "").await;
    let changes: [(&str, Value); 3] =
        [("pool.mode", "session".into()), ("pool.max_backends", 2.into()), ("roles.batch.verifier", verifier.into())];
    let files = ProxyFiles::new().instance("one", &postgres).tenant_with(&tenant, &changes);
    let proxy = Proxy::start(files).await;
    for number in 0..4 {
        drop(client_with(proxy.address(), &tenant, &[("application_name", &number.to_string())]).await);
    }
    let mut batch = client_as(proxy.address(), &tenant, "batch").await;
    assert_eq!(batch.value("SELECT current_user").await, "batch");
    assert_eq!(client(proxy.address(), &tenant).await.value("SELECT current_user").await, "app");
}

#[tokio::test]
async fn idle_backends_do_not_stand_in_the_way_of_a_database() {
    let stage = stage(&[("databases", Value::Array(vec!["*".into()]))]).await;
    stage.sql("ALTER ROLE app CREATEDB").await;
    let mut wire = stage.client().await;
    for parameters in [&[("database", "second")][..], &[("database", "second"), ("work_mem", "5MB")]] {
        wire.query("CREATE DATABASE second").await.unwrap();
        let mut inside = stage.client_with(parameters).await;
        assert_eq!(inside.value("SELECT current_database()").await, "second");
        inside.send(&frontend::terminate()).await.unwrap();
        eventually!(idle(&stage).await >= 1.0);
        wire.query("CREATE DATABASE third TEMPLATE second").await.unwrap();
        let mut inside = stage.client_with(parameters).await;
        inside.query("SELECT 1").await.unwrap();
        // Nobody waits for who has just gone.
        drop(inside);
        let batch = [parse("", "drop database second"), bind("", "", &[]), execute("", 0), sync()];
        assert_eq!(tags(&wire.exchange(&batch).await), "12CZ");
        wire.query(" DROP  DATABASE IF EXISTS third").await.unwrap();
    }
    // In a transaction PostgreSQL refuses it, as it does without us.
    assert_eq!(wire.failure("BEGIN; SELECT 1; DROP DATABASE second").await, "25001");
    wire.query("ROLLBACK").await.unwrap();
    wire.query("BEGIN").await.unwrap();
    assert_eq!(wire.failure("DROP DATABASE second").await, "25001");
}
