//! The ground of the hunt: two databases with equal contents on one instance, and a way to each of them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pgtenant::cli::demo::postgres::Postgres;
use pgtenant::cli::demo::tenant::Onboarded;
use secrecy::ExposeSecret;
use toml::Value;

use crate::harness::frontend::V3_0;
use crate::harness::postgres;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::stage::{add_role, instance};
use crate::harness::wire::{ErrorResponse, Wire};

/// How the clients come to the tenant's database; their twins are always connected directly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Direct,
    Session,
    /// In transaction mode.
    Transaction {
        pin_check: bool,
    },
}

pub struct Ground {
    pub postgres: Postgres,
    tenant: Onboarded,
    verifier: String,
}

/// Where to connect: address, what to append to the role's name, and the database.
#[derive(Debug, Clone)]
pub struct Place {
    pub address: SocketAddr,
    suffix: String,
    database: &'static str,
    password: String,
}

impl Ground {
    pub async fn new() -> Ground {
        let mut options = postgres::options();
        // Nothing shall run at times of its own.
        options.settings.push(("autovacuum".to_owned(), "off".to_owned()));
        let (postgres, tenant) = instance(options).await;
        let verifier = add_role(&postgres, &tenant, "batch", "").await;
        let ground = Ground { postgres, tenant, verifier };
        ground.sql("app", include_str!("ground.sql")).await;
        ground
            .sql("app", "CREATE ROLE team; GRANT team TO app, batch; ALTER ROLE app SET IntervalStyle = 'iso_8601'")
            .await;
        ground.sql("postgres", "CREATE DATABASE twin TEMPLATE app OWNER app_owner").await;
        for database in ["app", "twin"] {
            ground.sql("postgres", &settings(database)).await;
            ground.make_temporary_schemas(database).await;
        }
        ground
    }

    /// A new schema makes PostgreSQL analyse all prepared statements of its database again, and read their literals anew: so
    /// those of temporary objects, one for each backend at a time, are made beforehand.
    async fn make_temporary_schemas(&self, database: &str) {
        let mut backends = Vec::new();
        for _ in 0..40 {
            let backend = self.postgres.connect(database).await.expect("fewer than max_connections");
            backend.batch_execute("CREATE TEMP TABLE mine ()").await.expect("a superuser may");
            backends.push(backend);
        }
    }

    /// Makes both databases what they were at first.
    pub async fn clean(&self) {
        let there =
            "SELECT coalesce(string_agg(concat_ws(' ', datname, usename, application_name, backend_start, state,
                            wait_event, query), '; '), '') FROM pg_stat_activity WHERE datname IN ('app', 'twin')";
        let begun = Instant::now();
        loop {
            let there = self.value("postgres", there).await;
            if there.is_empty() {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "backends of the last hunt stay: {there}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for database in ["app", "twin"] {
            let tables = (0..8).map(|client| format!("hunt.own{client}, hunt.serial{client}"));
            let mut sql = format!("TRUNCATE {} RESTART IDENTITY;", tables.collect::<Vec<_>>().join(", "));
            sql += "ALTER SEQUENCE hunt.seq RESTART;";
            sql.extend((0..8).map(|client| format!("ALTER SEQUENCE hunt.seq{client} RESTART;")));
            self.sql(database, &sql).await;
        }
    }

    /// A proxy of its own, where there is one, and the place for the clients behind it.
    pub async fn tenant(&self, way: Way, backends: usize) -> (Option<Proxy>, Place) {
        let mut changes: Vec<(&str, Value)> = vec![
            ("roles.batch.verifier", self.verifier.clone().into()),
            ("pool.max_backends", i64::try_from(backends).expect("a small number").into()),
            ("pool.queue_timeout", "5s".into()),
        ];
        match way {
            Way::Direct => return (None, self.place("app")),
            Way::Session => changes.push(("pool.mode", "session".into())),
            Way::Transaction { pin_check: false } => {}
            Way::Transaction { pin_check: true } => changes.push(("pool.pin_check", true.into())),
        }
        let files = ProxyFiles::new().instance("one", &self.postgres).tenant_with(&self.tenant, &changes);
        let proxy = Proxy::start(files).await;
        let suffix = format!(".{}", self.tenant.tenant);
        let place = Place { address: proxy.address(), suffix, ..self.place("app") };
        (Some(proxy), place)
    }

    pub fn twin(&self) -> Place {
        self.place("twin")
    }

    fn place(&self, database: &'static str) -> Place {
        let password = self.tenant.password.expose_secret().to_owned();
        Place { address: self.postgres.address(), suffix: String::new(), database, password }
    }

    /// Whether, before long, the tenant's backends hold no more of a client that has left than its twin's, which is gone.
    pub async fn is_even(&self) -> bool {
        // A transaction that is only begun needs no backend behind the proxy.
        let held = |database| {
            format!(
                "SELECT concat_ws(' ', (SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
                                        WHERE locktype = 'advisory' AND datname = '{database}'),
                                       (SELECT count(*) FROM pg_stat_activity
                                        WHERE state LIKE 'idle in%' AND datname = '{database}'
                                        AND query !~* '^\\s*(begin|start)[^;]*;?\\s*$'))"
            )
        };
        for _ in 0..500 {
            if self.value("postgres", &held("app")).await == self.value("postgres", &held("twin")).await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    /// Whether, before long, a client and its twin sleep.
    pub async fn two_sleep(&self) -> bool {
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        for _ in 0..200 {
            if self.value("postgres", sleeping).await == "2" {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }

    pub async fn value(&self, database: &str, sql: &str) -> String {
        self.sql(database, sql).await.remove(0).remove(0).unwrap_or_default()
    }

    async fn sql(&self, database: &str, sql: &str) -> Vec<Vec<Option<String>>> {
        self.postgres.sql(database, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }
}

/// What belongs to a database and is not copied with it.
fn settings(database: &str) -> String {
    format!(
        "REVOKE ALL ON DATABASE {database} FROM PUBLIC;
         GRANT CONNECT, TEMPORARY ON DATABASE {database} TO app, batch, team;
         ALTER DATABASE {database} SET lock_timeout = '50s';
         ALTER ROLE app IN DATABASE {database} SET my.base = 'of the role';
         ALTER ROLE app IN DATABASE {database} SET DateStyle = 'ISO, DMY'"
    )
}

impl Place {
    /// Logs in as `role` (`app` or `batch`).
    pub async fn connect(&self, role: &str, parameters: &[(&str, &str)]) -> Result<Wire, ErrorResponse> {
        let mut wire = Wire::tcp(self.address).await.expect("somebody listens");
        let password = if role == "batch" { "secret" } else { &self.password };
        let user = format!("{role}{}", self.suffix);
        let parameters = [&[("user", user.as_str()), ("database", self.database)], parameters].concat();
        wire.login_with(V3_0, &parameters, password).await.map(|()| wire)
    }
}
