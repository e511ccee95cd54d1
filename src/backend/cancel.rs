//! Cancelling a backend's query: PostgreSQL takes the request on a connection of its own (manual, 55.2.8).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::net::{Place, dial};
use crate::wire::messages;

const TIMEOUT: Duration = Duration::from_secs(5);

/// The address of one backend's cancel requests. `Debug` does not show the secret.
pub struct CancelKey {
    place: Arc<Place>,
    pid: i32,
    secret: Vec<u8>,
    opened: SystemTime,
}

impl fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelKey").field("instance", &self.instance()).field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl CancelKey {
    pub fn new(place: Arc<Place>, pid: i32, secret: Vec<u8>) -> Self {
        CancelKey { place, pid, secret, opened: SystemTime::now() }
    }

    /// The process id that the instance gave the backend.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// When the backend was opened, nearly: its key comes at the end of its login.
    pub fn opened(&self) -> SystemTime {
        self.opened
    }

    pub fn instance(&self) -> &str {
        &self.place.instance.name
    }

    /// Sends the request and waits until the instance has closed the connection: by then the signal is on its way, so
    /// that it cannot hit a query that the backend is given later.
    ///
    /// # Errors
    /// The instance cannot be reached within five seconds.
    pub async fn send(&self) -> io::Result<()> {
        let sent = async {
            let mut stream = dial(&self.place).await.map_err(io::Error::other)?;
            let mut request = BytesMut::new();
            messages::cancel_request(&mut request, self.pid, &self.secret);
            stream.write_all(&request).await?;
            stream.flush().await?;
            let mut end = [0; 64];
            while stream.read(&mut end).await.unwrap_or(0) > 0 {}
            Ok(())
        };
        tokio::time::timeout(TIMEOUT, sent).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}
