//! The proof's own clients: they name a tenant in each of the ways there are, and keep what they were told.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::DbError;
use tokio_postgres::{CancelToken, Client, Config, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::net::crypto_provider;
use crate::tenant::route::Hints;

/// From the first packet to ReadyForQuery: a proxy that does not answer fails the proof instead of hanging it.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);

/// How a client names its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Sni,
    Options,
    UserSuffix,
}

impl Way {
    pub(super) const ALL: [Way; 3] = [Way::Sni, Way::Options, Way::UserSuffix];

    /// The hints of a connection as `role` of `tenant`.
    pub(super) fn hints(self, tenant: &str, role: &str) -> Hints {
        let hints = Hints { user: role.to_owned(), ..Hints::default() };
        match self {
            Way::Sni => Hints { sni: Some(format!("{tenant}.localhost")), ..hints },
            Way::Options => Hints { option: Some(tenant.to_owned()), ..hints },
            Way::UserSuffix => Hints { user: format!("{role}.{tenant}"), ..hints },
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Sni => "SNI: host=<tenant>.localhost",
            Way::Options => "options=-c tenant=<tenant>",
            Way::UserSuffix => "user=app.<tenant>",
        })
    }
}

/// Why a client did not get in.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The proxy said so.
    Told(Box<DbError>),
    /// No answer that the protocol knows.
    Broken(String),
}

impl Refusal {
    pub(super) fn code(&self) -> &str {
        match self {
            Refusal::Told(error) => error.code().code(),
            Refusal::Broken(_) => "",
        }
    }

    /// Everything that the client was told; its own user name, which it knows, taken out.
    pub(super) fn told(&self, user: &str) -> String {
        match self {
            Refusal::Told(error) => {
                let message = error.message().replace(&format!("\"{user}\""), "<user>");
                format!("{} {} {message} {:?} {:?}", error.severity(), self.code(), error.detail(), error.hint())
            }
            Refusal::Broken(why) => format!("broken: {why}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Told(error) => write!(f, "{} ({})", error.message(), self.code()),
            Refusal::Broken(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<tokio_postgres::Error> for Refusal {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(told) => Refusal::Told(Box::new(told.clone())),
            None => Refusal::Broken(format!("{:#}", anyhow::Error::from(error))),
        }
    }
}

/// The proxy as its clients see it.
pub(super) struct Door {
    address: SocketAddr,
    unix_dir: PathBuf,
    database: String,
    tls: MakeRustlsConnect,
}

impl Door {
    /// Clients trust `ca` (PEM) and nobody else, and check the host name: `sslmode=verify-full`.
    pub(super) fn new(address: SocketAddr, unix_dir: PathBuf, database: &str, ca: &str) -> anyhow::Result<Door> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).context("the development CA")?)?;
        let config = ClientConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Door { address, unix_dir, database: database.to_owned(), tls: MakeRustlsConnect::new(config) })
    }

    /// Connects over TLS.
    pub(super) async fn connect(&self, hints: &Hints, password: &SecretString) -> Result<Client, Refusal> {
        let config = self.config(hints, password, SslMode::Require);
        in_time(async { Ok(run(config.connect(self.tls.clone()).await?)) }).await
    }

    /// Connects in the clear.
    pub(super) async fn connect_without_tls(&self, hints: &Hints, password: &SecretString) -> Result<Client, Refusal> {
        let config = self.config(hints, password, SslMode::Disable);
        in_time(async { Ok(run(config.connect(NoTls).await?)) }).await
    }

    /// Connects to the Unix socket.
    pub(super) async fn connect_unix(&self, hints: &Hints, password: &SecretString) -> Result<Client, Refusal> {
        let mut config = Config::new();
        config.host_path(&self.unix_dir).port(self.address.port());
        self.log_in(&mut config, hints, password);
        in_time(async { Ok(run(config.connect(NoTls).await?)) }).await
    }

    /// Sends a CancelRequest, over TLS.
    pub(super) async fn cancel(&self, token: &CancelToken) -> Result<(), Refusal> {
        in_time(async { Ok(token.cancel_query(self.tls.clone()).await?) }).await
    }

    fn config(&self, hints: &Hints, password: &SecretString, mode: SslMode) -> Config {
        let mut config = Config::new();
        // The name goes into the TLS hello, the address is where to connect: nobody asks a name server.
        config.host(hints.sni.as_deref().unwrap_or("localhost")).hostaddr(self.address.ip());
        config.port(self.address.port()).ssl_mode(mode);
        self.log_in(&mut config, hints, password);
        config
    }

    fn log_in(&self, config: &mut Config, hints: &Hints, password: &SecretString) {
        config.user(&hints.user).password(password.expose_secret()).dbname(&self.database);
        if let Some(tenant) = &hints.option {
            config.options(format!("-c tenant={tenant}"));
        }
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    let timeout = || Refusal::Broken(format!("no answer within {} s", LOGIN_TIMEOUT.as_secs()));
    tokio::time::timeout(LOGIN_TIMEOUT, work).await.unwrap_or_else(|_| Err(timeout()))
}

/// The connection ends when the client is dropped; an error of it reaches whoever uses the client.
fn run<S, T>((client, connection): (Client, Connection<S, T>)) -> Client
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    client
}
