//! The usual scene: one instance, the tenant acme on it, the proxy in front; and who looks on from the side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use pgtenant::cli::demo::postgres::{Options, Postgres};
use pgtenant::cli::demo::tenant::{Onboarded, Order, onboard};
use secrecy::ExposeSecret;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;
use toml::Value;

use super::frontend;
use super::postgres;
use super::proxy::{Proxy, ProxyFiles};
use super::wire::Wire;

/// Keys of the tenant's record, by their dotted names.
pub type Changes<'a> = &'a [(&'a str, Value)];

/// The proxy runs in this process.
pub struct Stage {
    pub proxy: Proxy,
    pub tenant: Onboarded,
    pub postgres: Postgres,
}

impl Stage {
    pub async fn new(changes: Changes<'_>) -> Stage {
        Stage::with(|files| files, changes).await
    }

    /// With keys of `proxy.toml` set as well.
    pub async fn with(configure: impl FnOnce(ProxyFiles) -> ProxyFiles, changes: Changes<'_>) -> Stage {
        let (postgres, tenant) = instance(postgres::options()).await;
        let files = ProxyFiles::new().instance("one", &postgres).tenant_with(&tenant, changes);
        Stage { proxy: Proxy::start(configure(files)).await, tenant, postgres }
    }

    /// A wire client, logged in.
    pub async fn client(&self) -> Wire {
        client(self.proxy.address(), &self.tenant).await
    }

    /// The same with further startup parameters.
    pub async fn client_with(&self, parameters: &[(&str, &str)]) -> Wire {
        client_with(self.proxy.address(), &self.tenant, parameters).await
    }

    /// tokio-postgres, logged in.
    pub async fn driver(&self) -> tokio_postgres::Client {
        driver(self.proxy.address(), &self.tenant).await
    }

    /// Runs SQL as the superuser in the tenant's database, past the proxy.
    pub async fn sql(&self, text: &str) -> Vec<Vec<Option<String>>> {
        self.postgres.sql(&self.tenant.database, text).await.unwrap()
    }

    /// The tenant's backends at the instance now.
    pub async fn backends(&self) -> i64 {
        backends(&self.postgres, &self.tenant).await
    }

    /// Waits until so many clients wait for a backend.
    pub async fn waiting(&self, clients: f64) {
        crate::eventually!(self.proxy.metric("pgtenant_tenant_clients_waiting{tenant=\"acme\"").await == clients);
    }
}

/// An instance with the tenant acme on it.
pub async fn instance(options: Options) -> (Postgres, Onboarded) {
    let postgres = postgres::start_with(options).await;
    let tenant = onboard(&postgres, &Order::alone("acme", "one")).await.unwrap();
    (postgres, tenant)
}

/// Adds a role to the tenant's database; its password is `secret`. Gives the verifier.
pub async fn add_role(postgres: &Postgres, tenant: &Onboarded, role: &str, attributes: &str) -> String {
    let database = &tenant.database;
    let sql = format!(
        "CREATE ROLE {role} LOGIN {attributes} PASSWORD 'secret';
         GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {role}; GRANT USAGE ON SCHEMA public TO {role};
         SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'"
    );
    let mut rows = postgres.sql(database, &sql).await.unwrap();
    rows.remove(0).remove(0).unwrap()
}

pub async fn client(address: SocketAddr, tenant: &Onboarded) -> Wire {
    client_with(address, tenant, &[]).await
}

pub async fn client_with(address: SocketAddr, tenant: &Onboarded, parameters: &[(&str, &str)]) -> Wire {
    let mut wire = Wire::tcp(address).await.unwrap();
    let user = format!("{}.{}", tenant.role, tenant.tenant);
    let parameters = [&[("user", user.as_str()), ("database", &tenant.database)], parameters].concat();
    wire.login_with(frontend::V3_0, &parameters, tenant.password.expose_secret()).await.unwrap();
    wire
}

/// One more role of the tenant, with the password that [`add_role`] gives.
pub async fn client_as(address: SocketAddr, tenant: &Onboarded, role: &str) -> Wire {
    let mut wire = Wire::tcp(address).await.unwrap();
    wire.login(&format!("{role}.{}", tenant.tenant), &tenant.database, "secret").await.unwrap();
    wire
}

pub async fn driver(address: SocketAddr, tenant: &Onboarded) -> tokio_postgres::Client {
    try_driver(address, tenant).await.unwrap()
}

pub async fn try_driver(
    address: SocketAddr,
    tenant: &Onboarded,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host(address.ip().to_string()).port(address.port()).dbname(&tenant.database);
    config.user(format!("{}.{}", tenant.role, tenant.tenant)).password(tenant.password.expose_secret());
    let (client, connection) = config.connect(NoTls).await?;
    // An error of the connection reaches whoever uses the client.
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    Ok(client)
}

/// The tenant's backends at the instance now.
pub async fn backends(postgres: &Postgres, tenant: &Onboarded) -> i64 {
    let query = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{}'", tenant.database);
    let rows = postgres.sql("postgres", &query).await.unwrap();
    rows[0][0].as_deref().unwrap().parse().unwrap()
}

/// Counts backends in `pg_stat_activity` as often as it can, until it is asked for the most and fewest it has seen.
pub struct Census {
    most: Arc<AtomicI64>,
    fewest: Arc<AtomicI64>,
    counting: JoinHandle<()>,
}

impl Census {
    /// Of the backends that `condition` on `pg_stat_activity` picks.
    pub async fn begin(postgres: &Postgres, condition: &str) -> Census {
        let client = postgres.connect("postgres").await.unwrap();
        let query = format!("SELECT count(*) FROM pg_stat_activity WHERE {condition}");
        let (most, fewest) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(i64::MAX)));
        let (high, low) = (Arc::clone(&most), Arc::clone(&fewest));
        let counting = tokio::spawn(async move {
            let query = client.prepare(&query).await.unwrap();
            loop {
                let count: i64 = client.query_one(&query, &[]).await.unwrap().get(0);
                high.fetch_max(count, Ordering::Relaxed);
                low.fetch_min(count, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Census { most, fewest, counting }
    }

    /// The most at a time so far.
    pub fn most(&self) -> i64 {
        assert!(!self.counting.is_finished(), "the census has failed");
        self.most.load(Ordering::Relaxed)
    }

    /// The fewest at a time so far.
    pub fn fewest(&self) -> i64 {
        assert!(!self.counting.is_finished(), "the census has failed");
        self.fewest.load(Ordering::Relaxed)
    }
}

impl Drop for Census {
    fn drop(&mut self) {
        self.counting.abort();
    }
}
