//! Reaching an instance: a socket, and its encryption as the record asks for it.

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::BytesMut;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::InstanceTlsError;
use super::instance_tls::InstanceTlsClient;
use super::stream::{Socket, Stream};
use crate::config::{Instance, InstanceAddress};
use crate::wire::messages;

/// An instance as its connections need it.
#[derive(Debug)]
pub struct Place {
    pub instance: Arc<Instance>,
    tls: Option<InstanceTlsClient>,
    /// The cluster's `system_identifier`: the record's, or the first one seen.
    pub identity: OnceLock<u64>,
}

impl Place {
    /// # Errors
    /// The instance's CA cannot be read, or its name is none.
    pub fn new(instance: Arc<Instance>) -> Result<Self, InstanceTlsError> {
        let tls = InstanceTlsClient::load(&instance)?;
        let identity = instance.system_identifier.map_or_else(OnceLock::new, OnceLock::from);
        Ok(Place { instance, tls, identity })
    }
}

#[derive(Debug, Error)]
pub enum DialError {
    #[error("instance {instance}: cannot connect to {address}: {source}")]
    Connect { instance: String, address: String, source: io::Error },
    #[error("instance {instance}: TLS: {source}")]
    Tls { instance: String, source: io::Error },
    #[error("instance {instance}: TLS: the instance has it switched off (ssl = off)")]
    TlsOff { instance: String },
}

/// Connects and settles the encryption. Takes as long as the peer lets it: put a deadline around it.
///
/// # Errors
/// The address cannot be reached, or TLS cannot be agreed on.
pub async fn dial(place: &Place) -> Result<Stream, DialError> {
    let address = &place.instance.address;
    let socket = connect(address).await.map_err(|source| DialError::Connect {
        instance: place.instance.name.clone(),
        address: address.to_string(),
        source,
    })?;
    match &place.tls {
        Some(tls) => encrypt(socket, tls, &place.instance.name).await,
        None => Ok(Stream::Plain(socket)),
    }
}

async fn connect(address: &InstanceAddress) -> io::Result<Socket> {
    match address {
        InstanceAddress::Tcp { host, port } => {
            let socket = TcpStream::connect((host.as_str(), *port)).await?;
            socket.set_nodelay(true)?;
            Ok(Socket::Tcp(socket))
        }
        InstanceAddress::Unix { dir, port } => {
            UnixStream::connect(dir.join(format!(".s.PGSQL.{port}"))).await.map(Socket::Unix)
        }
    }
}

async fn encrypt(mut socket: Socket, tls: &InstanceTlsClient, instance: &str) -> Result<Stream, DialError> {
    let failed = |source| DialError::Tls { instance: instance.to_owned(), source };
    let mut request = BytesMut::new();
    messages::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(failed)?;
    // Exactly one byte: whatever follows it in the clear must not get into the session.
    if socket.read_u8().await.map_err(failed)? != b'S' {
        return Err(DialError::TlsOff { instance: instance.to_owned() });
    }
    let connecting = TlsConnector::from(tls.config.clone()).connect(tls.server_name.clone(), socket);
    Ok(Stream::Connected(Box::new(connecting.await.map_err(failed)?)))
}
