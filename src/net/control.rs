//! Connections of the control plane: reached as every backend of the instance is, logged in by tokio-postgres.

use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio_postgres::NoTls;
use tokio_postgres::config::SslMode;

use super::{DialError, Place, dial};

/// After this, an idle connection is closed.
const IDLE: Duration = Duration::from_secs(60);

#[derive(Debug, Error)]
pub enum ControlError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{}", with_sources(.0))]
    Postgres(#[from] tokio_postgres::Error),
}

/// One connection. Takes as long as the peer lets it: put a deadline around it.
///
/// # Errors
/// The instance cannot be reached, or refuses the login.
pub async fn control(place: &Place, config: &tokio_postgres::Config) -> Result<tokio_postgres::Client, ControlError> {
    let stream = dial(place).await?;
    let mut config = config.clone();
    // The stream is encrypted already where it has to be.
    config.ssl_mode(SslMode::Disable);
    let (client, connection) = config.connect_raw(stream, NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = with_sources(&error), "connection of the control plane ended");
        }
    });
    Ok(client)
}

/// A driver's error says what failed only together with its sources.
pub fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A few connections to one database, as one role.
#[derive(Debug, Clone)]
pub struct ControlPool {
    connections: bb8::Pool<ControlConnections>,
    failures: Failures,
}

/// Why the last connect failed: bb8 itself would only say, and only in the end, that there was no connection in time.
#[derive(Debug, Clone)]
struct Failures(watch::Sender<String>);

impl bb8::ErrorSink<ControlError> for Failures {
    fn sink(&self, error: ControlError) {
        self.0.send_replace(error.to_string());
    }

    fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<ControlError>> {
        Box::new(self.clone())
    }
}

impl ControlPool {
    /// At most `size` connections; who waits for one longer than `timeout` gets none.
    pub fn new(place: Place, config: tokio_postgres::Config, size: u32, timeout: Duration) -> Self {
        let failures = Failures(watch::Sender::default());
        let connections = bb8::Pool::builder()
            .max_size(size)
            .connection_timeout(timeout)
            .idle_timeout(Some(IDLE))
            .retry_connection(false)
            .error_sink(Box::new(failures.clone()))
            .build_unchecked(ControlConnections { place, config });
        ControlPool { connections, failures }
    }

    /// A connection, or the reason why the next attempt to make one failed.
    pub async fn get(&self) -> Result<bb8::PooledConnection<'_, ControlConnections>, String> {
        let mut failed = self.failures.0.subscribe();
        tokio::select! {
            biased;
            connection = self.connections.get() => connection.map_err(|error| error.to_string()),
            // The sender lives in the pool: there is always a value.
            _ = failed.changed() => Err(failed.borrow().clone()),
        }
    }
}

/// Opens a pool's connections.
#[derive(Debug)]
pub struct ControlConnections {
    place: Place,
    config: tokio_postgres::Config,
}

impl bb8::ManageConnection for ControlConnections {
    type Connection = tokio_postgres::Client;
    type Error = ControlError;

    async fn connect(&self) -> Result<Self::Connection, Self::Error> {
        control(&self.place, &self.config).await
    }

    async fn is_valid(&self, client: &mut Self::Connection) -> Result<(), Self::Error> {
        Ok(client.simple_query("").await.map(drop)?)
    }

    fn has_broken(&self, client: &mut Self::Connection) -> bool {
        client.is_closed()
    }
}
