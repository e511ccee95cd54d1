//! The usual scene: a tenant `acme` on an instance `one`, and the few steps that most tests take there.

use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use pgtenant::cli::demo::tenant::{Onboarded, Order, onboard};
use secrecy::ExposeSecret;

use super::frontend;
use super::postgres::{self, Postgres};
use super::proxy::{Proxy, ProxyFiles};
use super::wire::{ErrorResponse, Wire};

pub struct Scene {
    pub postgres: Postgres,
    pub acme: Onboarded,
}

impl Scene {
    pub async fn new() -> Scene {
        Scene::on(postgres::start().await).await
    }

    pub async fn on(postgres: Postgres) -> Scene {
        let acme = tenant(&postgres, "acme").await;
        Scene { postgres, acme }
    }

    /// The instance, and no tenant yet.
    pub fn instance(&self) -> ProxyFiles {
        ProxyFiles::new().instance("one", &self.postgres)
    }

    pub fn files(&self) -> ProxyFiles {
        self.instance().tenant(&self.acme)
    }

    /// SQL as the superuser in acme's database.
    pub async fn sql(&self, text: &str) -> Vec<Vec<Option<String>>> {
        self.postgres.sql(&self.acme.database, text).await.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// A further tenant on the instance `one`.
pub async fn tenant(postgres: &Postgres, name: &str) -> Onboarded {
    onboard(postgres, &Order::shared(name, "one")).await.unwrap_or_else(|error| panic!("{error}"))
}

pub fn password(tenant: &Onboarded) -> &str {
    tenant.password.expose_secret()
}

/// Logs in with the tenant named by `options`, and no database.
pub async fn log_in(client: &mut Wire, tenant: &Onboarded) -> Result<(), ErrorResponse> {
    log_in_as(client, &tenant.role, &tenant.tenant, password(tenant)).await
}

/// The same with role and password of the test's own.
pub async fn log_in_as(client: &mut Wire, user: &str, tenant: &str, password: &str) -> Result<(), ErrorResponse> {
    let options = format!("-c tenant={tenant}");
    client.login_with(frontend::V3_0, &[("user", user), ("options", &options)], password).await
}

/// A plain connection, logged in.
pub async fn connect(proxy: &Proxy, tenant: &Onboarded) -> Wire {
    let mut client = Wire::tcp(proxy.address()).await.expect("the proxy listens");
    log_in(&mut client, tenant).await.expect("the right password");
    client
}

/// The text of the marker row in the database that the client has reached.
pub async fn marker(client: &mut Wire) -> String {
    value(client, "SELECT tenant FROM marker").await
}

/// The one value that a query gives.
pub async fn value(client: &mut Wire, sql: &str) -> String {
    let mut rows = client.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    assert_eq!(rows.len(), 1, "{sql} gives one row");
    rows.remove(0).remove(0).unwrap_or_else(|| panic!("{sql} gives a value"))
}

/// The error that ends a query which was sent already.
pub async fn failure(client: &mut Wire) -> ErrorResponse {
    let messages = client.read_until_ready().await.expect("an answer that ends with ReadyForQuery");
    let error = messages.iter().find(|message| message.tag == b'E');
    error.unwrap_or_else(|| panic!("an error among {messages:?}")).error()
}

/// Writes a secret's file into the proxy's folder, readable by its owner only.
pub fn secret(files: &ProxyFiles, name: &str, text: &str) -> PathBuf {
    use std::io::Write;
    let path = files.dir().join(name);
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("a file in the test's folder");
    path
}

/// A path as a value of a record.
pub fn path_value(path: PathBuf) -> toml::Value {
    path.to_str().expect("a temporary folder's name is text").into()
}
