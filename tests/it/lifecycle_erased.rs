//! A tenant with traffic, backups and bundles is erased, and looked for wherever it was: what is still there is what the
//! receipt says remains.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::harness::frontend;
use crate::harness::ground::{password, text};
use crate::harness::postgres::{self, Options, Postgres};
use crate::harness::proxy::{ProxyFiles, http_ask, http_get};
use crate::harness::scene::{path_value, secret};
use crate::harness::serve::Served;
use crate::harness::wire::Wire;

/// No other word has these letters in it.
const TENANT: &str = "zanzibar";
/// In its rows.
const ROWS: &str = "sesame-4711";

/// An instance, and the proxy as a process of its own, so that it has a log.
struct Place {
    postgres: Postgres,
    served: Served,
}

impl Place {
    async fn new() -> Place {
        let options = postgres::options();
        // What an operator would have written, so that PostgreSQL's own log is searched in earnest.
        let settings =
            vec![("log_connections".to_owned(), "on".to_owned()), ("log_statement".to_owned(), "ddl".to_owned())];
        let postgres = postgres::start_with(Options { settings, ..options }).await;
        postgres.sql("postgres", "CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 'k'").await.unwrap();
        let files = ProxyFiles::new().instance("one", &postgres);
        let password = path_value(secret(&files, "keeper.password", "k"));
        secret(&files, "console.password", "c");
        let files = files
            .set("instances.one.admin.user", "keeper")
            .set("instances.one.admin.password.file", password)
            .set("instances.one.wal_retention", "35d")
            .set("tier.gold.pool.max_backends", 3)
            .set("backup.every", "24h")
            .set("admin.roles.ops.password.file", "console.password");
        Place { postgres, served: Served::start(files).await }
    }

    fn dir(&self) -> &Path {
        self.served.files.dir()
    }

    fn path(&self, name: &str) -> String {
        self.dir().join(name).display().to_string()
    }

    async fn done(&self, arguments: &[&str]) -> String {
        let (status, printed) = self.ends(arguments).await;
        assert_eq!(status, 0, "{arguments:?}: {printed}");
        printed
    }

    /// Exit status, and all that was printed.
    async fn ends(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
        command.args(arguments).arg("--config").arg(self.dir().join("proxy.toml"));
        if arguments.get(1) == Some(&"create") {
            command.args(["--proxy", &self.served.address.to_string()]);
        }
        let output: Output = command.stdin(Stdio::null()).output().await.unwrap();
        (output.status.code().expect("an exit status"), text(&output.stdout) + &text(&output.stderr))
    }

    async fn log_in(&self, password: &str) -> Result<Wire, String> {
        let mut client = Wire::tcp(self.served.address).await.unwrap();
        let (user, options) = (format!("{TENANT}_app"), format!("-c tenant={TENANT}"));
        let parameters = [("user", user.as_str()), ("options", options.as_str())];
        let result = client.login_with(frontend::V3_0, &parameters, password).await;
        result.map(|()| client).map_err(|error| error.sqlstate().to_owned())
    }

    async fn drive(&self, password: &str) -> tokio_postgres::Client {
        let mut login = tokio_postgres::Config::new();
        login.host(self.served.address.ip().to_string()).port(self.served.address.port()).password(password);
        login.user(format!("{TENANT}_app")).dbname(TENANT).options(format!("-c tenant={TENANT}"));
        let (client, connection) = login.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(async move { connection.await.unwrap_or_default() });
        client
    }

    /// Shared catalogues and what the server shows of its work, with the columns that hold no more than a number.
    async fn in_catalogues(&self) -> Vec<String> {
        let mut found = Vec::new();
        for relation in [
            "pg_database",
            "pg_authid",
            "pg_auth_members",
            "pg_shdescription",
            "pg_shseclabel",
            "pg_db_role_setting",
            "pg_tablespace",
            "pg_subscription",
            "pg_replication_slots",
            "(SELECT * FROM pg_stat_activity WHERE pid <> pg_backend_pid())",
            "pg_stat_database",
            "pg_prepared_xacts",
            "pg_hba_file_rules",
        ] {
            let sql = format!("SELECT count(*) FROM {relation} it WHERE it::text ~* '{TENANT}|{ROWS}'");
            if self.count(&sql).await != 0 {
                found.push(relation.to_owned());
            }
        }
        for (name, sql) in [
            (
                "settings of what is gone",
                "SELECT count(*) FROM pg_db_role_setting WHERE setdatabase <> 0 AND setdatabase NOT IN (SELECT oid FROM pg_database)
                    OR setrole <> 0 AND setrole NOT IN (SELECT oid FROM pg_authid)",
            ),
            (
                "dependencies of what is gone",
                "SELECT count(*) FROM pg_shdepend WHERE dbid <> 0 AND dbid NOT IN (SELECT oid FROM pg_database)",
            ),
            (
                "memberships of what is gone",
                "SELECT count(*) FROM pg_auth_members WHERE member NOT IN (SELECT oid FROM pg_authid)",
            ),
            ("roles of acts", "SELECT count(*) FROM pg_authid WHERE rolname ~ '^pgtenant_'"),
            (
                "statistics of what is gone",
                "SELECT count(*) FROM pg_stat_database WHERE datid <> 0 AND datid NOT IN (SELECT oid FROM pg_database)",
            ),
        ] {
            if self.count(sql).await != 0 {
                found.push(name.to_owned());
            }
        }
        found
    }

    async fn count(&self, sql: &str) -> u64 {
        let rows = self.postgres.sql("postgres", sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        rows[0][0].as_deref().unwrap().parse().unwrap()
    }

    /// What the proxy tells programs and people, by where it tells it.
    async fn in_proxy(&self) -> Vec<String> {
        let mut found = Vec::new();
        for path in ["/metrics", "/api/v1/tenants?limit=1000", "/api/v1/instances", "/readyz", "/"] {
            let (status, told) = http_get(self.served.http, path).await;
            assert!(status == 200, "{path}: {status}");
            if told.contains(TENANT) {
                found.push(path.to_owned());
            }
        }
        let mut console = Wire::tcp(self.served.address).await.unwrap();
        console.login("ops", "pgbouncer", "c").await.unwrap();
        for what in [
            "DATABASES",
            "POOLS",
            "CLIENTS",
            "SERVERS",
            "SOCKETS",
            "STATS",
            "STATS_TOTALS",
            "STATS_AVERAGES",
            "LISTS",
            "USERS",
            "CONFIG",
            "TENANTS",
            "PINS",
            "QUOTAS",
            "INSTANCES",
        ] {
            let rows = console.query(&format!("SHOW {what}")).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            if rows.iter().flatten().flatten().any(|cell| cell.contains(TENANT)) {
                found.push(format!("SHOW {what}"));
            }
        }
        found
    }

    /// Files below the proxy's folder that contain one of these, by their names there.
    async fn in_files(&self, words: &[&str]) -> BTreeSet<String> {
        let mut grep = Command::new("grep");
        grep.args(["-rliaF"]).args(words.iter().flat_map(|word| ["-e", word])).arg(".").current_dir(self.dir());
        let mut found: BTreeSet<String> =
            text(&grep.output().await.unwrap().stdout).lines().map(|line| line[2..].to_owned()).collect();
        let mut find = Command::new("find");
        find.args([".", "-iname", &format!("*{TENANT}*")]).current_dir(self.dir());
        found.extend(text(&find.output().await.unwrap().stdout).lines().map(|line| line[2..].to_owned()));
        found
    }
}

/// Queries without a pause until the session ends; how many were answered.
async fn traffic(client: tokio_postgres::Client) -> u64 {
    let mut answered = 0;
    while client.batch_execute(&format!("INSERT INTO t VALUES (DEFAULT, '{ROWS}')")).await.is_ok() {
        answered += 1;
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_an_erased_tenant_is_what_the_receipt_says() {
    let place = Place::new().await;
    let credentials = place.path("zanzibar.credentials");
    let key = age::x25519::Identity::generate();
    let private = age::secrecy::ExposeSecret::expose_secret(&key.to_string()).to_owned();
    secret(&place.served.files, "tenants.d/zanzibar.age-key", &private);
    place.done(&["tenant", "create", "globex"]).await;
    let recipients = format!("backup.age_recipients=[\"{}\"]", key.to_public());
    let create =
        ["tenant", "create", TENANT, "--tier", "gold", "--credentials", &credentials, "--setting", "work_mem=5MB"];
    let own = ["--set-key", &recipients, "--set-key", "backup.age_identity=zanzibar.age-key"];
    place.done(&[&create[..], &own].concat()).await;
    let table: toml::Table = std::fs::read_to_string(&credentials).unwrap().parse().unwrap();
    let password_of = |role: &str| table["roles"][role]["password"].as_str().unwrap().to_owned();
    let (app, reader) = (password_of("zanzibar_app"), password_of("zanzibar_ro"));
    let verifiers =
        place.postgres.sql("postgres", "SELECT rolpassword FROM pg_authid WHERE rolname ~ 'zanzibar_(app|ro)'").await;
    let verifiers: Vec<String> = verifiers.unwrap().into_iter().filter_map(|mut row| row.remove(0)).collect();
    assert_eq!(verifiers.len(), 2);
    let furnish = "COMMENT ON DATABASE zanzibar IS 'of zanzibar'; COMMENT ON ROLE zanzibar_app IS 'of zanzibar';
        ALTER ROLE zanzibar_app IN DATABASE zanzibar SET application_name = 'zanzibar';
        ALTER ROLE zanzibar_app SET search_path = public, zanzibar;
        CREATE TABLE t (n serial, x text); GRANT ALL ON t, t_n_seq TO zanzibar_app";
    place.postgres.sql(TENANT, furnish).await.unwrap();

    // Everything that leaves something: clients, a rotation, migrations, a query, backups, a proof, bundles.
    let busy: Vec<_> = {
        let clients = [place.drive(&app).await, place.drive(&app).await];
        clients.into_iter().map(|client| tokio::spawn(traffic(client))).collect()
    };
    assert_eq!(place.log_in("wrong").await.err().unwrap(), "28P01");
    let state = http_ask(
        TcpStream::connect(place.served.http).await.unwrap(),
        "PUT",
        "/api/v1/tenants/zanzibar/state",
        &[("Content-Type", "application/json")],
        r#"{"state": "active", "reason": "zanzibar was looked at"}"#,
    )
    .await;
    assert_eq!(state.0, 200, "{}", state.1);
    std::fs::create_dir(place.dir().join("migrations")).unwrap();
    std::fs::write(place.dir().join("migrations/1_more.sql"), "CREATE TABLE more (x int)").unwrap();
    place
        .done(&["migrate", "up", "--dir", &place.path("migrations"), "--bake", "0s", "--select", "tenant=zanzibar"])
        .await;
    // One that fails: the run's journal keeps the tenant until the next run.
    std::fs::write(place.dir().join("migrations/2_bad.sql"), "SELECT 1 / 0").unwrap();
    let failed = place
        .ends(&["migrate", "up", "--dir", &place.path("migrations"), "--bake", "0s", "--select", "tenant=zanzibar"])
        .await;
    assert_eq!(failed.0, 2, "{}", failed.1);
    place.done(&["query", "--select", "tenant=zanzibar", "select 1"]).await;
    place.done(&["backup", "run", TENANT]).await;
    place.done(&["backup", "verify", TENANT]).await;
    place.done(&["export", TENANT, "-o", &place.path("bundles/plain.pgt")]).await;
    place
        .done(&[
            "export",
            TENANT,
            "-o",
            &place.path("bundles/sealed.pgt"),
            "--age-recipient",
            &key.to_public().to_string(),
        ])
        .await;
    place.done(&["tenant", "rotate-credentials", TENANT]).await;
    let before = (place.in_catalogues().await, place.in_proxy().await, place.in_files(&[TENANT]).await);
    assert!(before.0.len() >= 5 && before.1.len() >= 6 && before.2.len() >= 10, "the search finds it: {before:#?}");

    let receipt = place.path("receipt.json");
    place.done(&["tenant", "erase", TENANT, "--confirm", TENANT, "--receipt", &receipt]).await;
    for client in busy {
        assert!(client.await.unwrap() > 0, "it worked until then");
    }
    crate::eventually!(place.log_in(&app).await.err().as_deref() == Some("28P01"));
    assert_eq!(place.in_catalogues().await, Vec::<String>::new());
    crate::eventually!(place.in_proxy().await.is_empty(), "{:?}", place.in_proxy().await);
    assert_eq!(http_get(place.served.http, "/metrics/tenant/zanzibar").await.0, 404);
    assert_eq!(http_get(place.served.http, "/api/v1/tenants/zanzibar").await.0, 404);

    // Its name stands where the receipt says; nothing has rows, passwords, verifiers or keys.
    let told: Value = serde_json::from_str(&std::fs::read_to_string(&receipt).unwrap()).unwrap();
    let remains: Vec<&str> =
        told["remains"].as_array().unwrap().iter().map(|it| it["what"].as_str().unwrap()).collect();
    let left = place.in_files(&[TENANT]).await;
    let expected = ["audit.jsonl", "lifecycle.d/migrate/run.jsonl", "log", "receipt.json"].map(str::to_owned);
    let unexpected: Vec<_> = left.iter().filter(|name| !expected.contains(name)).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    for word in ["audit.jsonl", "run.jsonl", "logs of the proxy and of instance one", "WAL archives and base backups"] {
        assert!(remains.iter().any(|what| what.contains(word)), "{word}: {remains:#?}");
    }
    let mut secrets = vec![ROWS, &app, &reader, "AGE-SECRET-KEY", "SCRAM-SHA-256$"];
    secrets.extend(verifiers.iter().map(String::as_str));
    let globex = "tenants.d/globex.toml".to_owned();
    let mut with_secrets = place.in_files(&secrets).await;
    with_secrets.retain(|name| !left.contains(name) && *name != globex);
    assert_eq!(with_secrets, BTreeSet::new());
    for name in &left {
        let text = text(&std::fs::read(place.dir().join(name)).unwrap());
        assert!(!secrets.iter().any(|secret| text.contains(secret)), "{name}");
    }
    let log = place.postgres.log();
    // That one has statements where it is told to: verifiers of roles that are gone, but no password.
    assert!(![&app, &reader, &private].iter().any(|secret| log.contains(*secret)), "PostgreSQL's log has a secret");

    // One of the same name is another one: no old password, no state, no figures.
    let printed = place.done(&["tenant", "create", TENANT, "--json"]).await;
    place.log_in(&password(&printed, "zanzibar_app")).await.unwrap().query("CREATE TABLE t (x int)").await.unwrap();
    assert_eq!(place.log_in(&app).await.err().unwrap(), "28P01");
    let shown = http_get(place.served.http, "/api/v1/tenants/zanzibar").await.1;
    assert!(!shown.contains("was looked at"), "{shown}");
    let queries = place.served.metric("pgtenant_tenant_queries_total{tenant=\"zanzibar\"").await;
    assert!(queries < 20.0, "{queries}");
}
