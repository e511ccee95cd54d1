//! A byte stream to a peer, plain or under TLS, and the exact reads of the handshake phases.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::ring::{self, RingSocket};
use crate::wire::{FrameError, HEADER, Header};

/// A socket as the kernel gives it.
#[derive(Debug)]
pub enum Socket {
    /// Just accepted. No reactor knows it until something has to be waited for.
    Fresh(std::net::TcpStream),
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Either, on the thread that it stays on.
    Ring(RingSocket),
    /// While it is moved.
    Nowhere,
}

/// A socket taken off its runtime, on its way to another one.
#[derive(Debug)]
pub enum DetachedSocket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Socket {
    pub fn is_tcp(&self) -> bool {
        matches!(self, Socket::Fresh(_) | Socket::Tcp(_))
    }

    /// The first byte, which stays where it is; None on a connection that was ended without one.
    ///
    /// # Errors
    /// The connection is broken, or it is none over TCP.
    pub async fn peek(&mut self) -> io::Result<Option<u8>> {
        let mut first = [0];
        let count = loop {
            match self {
                Socket::Fresh(stream) => match stream.peek(&mut first) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.register()?,
                    peeked => break peeked?,
                },
                Socket::Tcp(stream) => break stream.peek(&mut first).await?,
                Socket::Unix(_) | Socket::Ring(_) | Socket::Nowhere => return Err(io::ErrorKind::Unsupported.into()),
            }
        };
        Ok((count > 0).then_some(first[0]))
    }

    /// A fresh socket has to be waited for: from here on the current runtime's reactor knows it.
    fn register(&mut self) -> io::Result<()> {
        if let Socket::Fresh(_) = self {
            *self = std::mem::replace(self, Socket::Nowhere).detach()?.attach()?;
        }
        Ok(())
    }

    /// Takes the socket off its runtime's reactor.
    pub fn detach(self) -> io::Result<DetachedSocket> {
        Ok(match self {
            Socket::Fresh(stream) => DetachedSocket::Tcp(stream),
            Socket::Tcp(stream) => DetachedSocket::Tcp(stream.into_std()?),
            Socket::Unix(stream) => DetachedSocket::Unix(stream.into_std()?),
            Socket::Ring(_) | Socket::Nowhere => return Err(io::ErrorKind::Unsupported.into()),
        })
    }

    /// From now on the socket is used on this thread only. `moved`: until now it was used on another one.
    fn settle(&mut self, moved: bool) -> io::Result<()> {
        if moved || ring::is_here() {
            *self = std::mem::replace(self, Socket::Nowhere).detach()?.settle()?;
        }
        Ok(())
    }
}

impl DetachedSocket {
    /// Registers the socket with the current runtime's reactor.
    pub fn attach(self) -> io::Result<Socket> {
        Ok(match self {
            DetachedSocket::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream)?),
            DetachedSocket::Unix(stream) => Socket::Unix(UnixStream::from_std(stream)?),
        })
    }

    /// The same for one that stays on this thread: it is in the thread's ring, where there is one.
    pub fn settle(self) -> io::Result<Socket> {
        if !ring::is_here() {
            return self.attach();
        }
        RingSocket::new(match self {
            DetachedSocket::Tcp(stream) => stream.into(),
            DetachedSocket::Unix(stream) => stream.into(),
        })
        .map(Socket::Ring)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let socket = self.get_mut();
        if let Socket::Fresh(stream) = socket {
            match io::Read::read(stream, buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.register()?,
                read => return Poll::Ready(read.map(|count| buf.advance(count))),
            }
        }
        match socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Ring(socket) => Pin::new(socket).poll_read(cx, buf),
            Socket::Fresh(_) | Socket::Nowhere => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let socket = self.get_mut();
        if let Socket::Fresh(stream) = socket {
            match io::Write::write(stream, buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.register()?,
                written => return Poll::Ready(written),
            }
        }
        match socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Ring(socket) => Pin::new(socket).poll_write(cx, buf),
            Socket::Fresh(_) | Socket::Nowhere => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Fresh(stream) => Poll::Ready(stream.shutdown(std::net::Shutdown::Write)),
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Ring(socket) => Pin::new(socket).poll_shutdown(cx),
            Socket::Nowhere => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

/// A TLS connection's version and cipher suite; shown as PgBouncer does, `TLSv1.3/TLS_AES_256_GCM_SHA384`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsFacts {
    version: rustls::ProtocolVersion,
    suite: rustls::CipherSuite,
}

impl std::fmt::Display for TlsFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let version = match self.version {
            rustls::ProtocolVersion::TLSv1_3 => "TLSv1.3",
            _ => "TLSv1.2",
        };
        match self.suite.as_str() {
            Some(suite) => write!(f, "{version}/{}", suite.replace("TLS13_", "TLS_")),
            None => f.write_str(version),
        }
    }
}

/// A socket with its encryption settled.
#[derive(Debug)]
pub enum Stream {
    Plain(Socket),
    /// From a client.
    Accepted(Box<tokio_rustls::server::TlsStream<Socket>>),
    /// To an instance.
    Connected(Box<tokio_rustls::client::TlsStream<Socket>>),
}

impl Stream {
    /// From now on it is used on this thread only. `moved`: until now it was used on another one.
    ///
    /// # Errors
    /// It is settled already, or the reactor of the thread does not take it.
    pub fn settle(&mut self, moved: bool) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.settle(moved),
            Stream::Accepted(stream) => stream.get_mut().0.settle(moved),
            Stream::Connected(stream) => stream.get_mut().0.settle(moved),
        }
    }

    pub fn is_tls(&self) -> bool {
        !matches!(self, Stream::Plain(_))
    }

    /// What was agreed on with a client.
    pub fn tls_facts(&self) -> Option<TlsFacts> {
        let Stream::Accepted(stream) = self else { return None };
        let connection = stream.get_ref().1;
        Some(TlsFacts { version: connection.protocol_version()?, suite: connection.negotiated_cipher_suite()?.suite() })
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Stream::Accepted(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            Stream::Connected(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Stream::Accepted(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
            Stream::Connected(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Stream::Accepted(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            Stream::Connected(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Stream::Accepted(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Stream::Connected(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

/// Why a message could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    #[error("the connection was closed")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Bytes that the messages of a login seldom exceed.
const ROOM: usize = 512;

/// A stream during a handshake: whole messages in, whole messages out.
#[derive(Debug)]
pub struct MessageStream {
    stream: Stream,
    received: BytesMut,
}

impl MessageStream {
    pub fn new(stream: Stream) -> Self {
        MessageStream { stream, received: BytesMut::new() }
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// See [`Stream::settle`].
    ///
    /// # Errors
    /// As there.
    pub fn settle(&mut self, moved: bool) -> io::Result<()> {
        self.stream.settle(moved)
    }

    /// The stream, and what the peer sent beyond the messages taken so far.
    pub fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, self.received)
    }

    /// One message with a payload of at most `max` bytes. Cancel safe: what was read stays for the next call.
    pub async fn read(&mut self, max: usize) -> Result<(u8, BytesMut), ReadError> {
        loop {
            if let Some(header) = Header::read(&self.received, max)? {
                let whole = HEADER + header.payload;
                if self.received.len() >= whole {
                    let mut message = self.received.split_to(whole);
                    message.advance(HEADER);
                    return Ok((header.tag, message));
                }
                self.received.reserve(whole - self.received.len());
            } else {
                self.received.reserve(ROOM);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(ReadError::Closed);
            }
        }
    }

    /// Returns when the peer is gone; what it sends meanwhile stays for [`Self::read`]. With `max` bytes there nothing more
    /// is read, and it never returns. Cancel safe.
    pub async fn gone(&mut self, max: usize) {
        while self.received.len() < max {
            self.received.reserve(ROOM);
            if !matches!(self.stream.read_buf(&mut self.received).await, Ok(1..)) {
                return;
            }
        }
        std::future::pending().await
    }

    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Ends our direction and reads what the peer still sends: closing over unread bytes would take our last words away
    /// from it. Takes as long as the peer lets it: put a deadline around it.
    pub async fn end(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        let mut rest = [0; 1024];
        while self.stream.read(&mut rest).await? > 0 {}
        Ok(())
    }

    /// See [`read_untyped`].
    pub async fn read_untyped<E>(&mut self, length: impl FnOnce([u8; 4]) -> Result<usize, E>) -> Result<Vec<u8>, E>
    where
        E: From<io::Error>,
    {
        read_untyped(&mut self.stream, length).await
    }
}

/// Exactly one untyped message (startup phase): `length` tells the whole length from the first four bytes. Nothing
/// beyond it is taken from the stream.
pub async fn read_untyped<E>(
    stream: &mut (impl AsyncRead + Unpin),
    length: impl FnOnce([u8; 4]) -> Result<usize, E>,
) -> Result<Vec<u8>, E>
where
    E: From<io::Error>,
{
    let mut first = [0; 4];
    stream.read_exact(&mut first).await?;
    let mut message = vec![0; length(first)?];
    message[..4].copy_from_slice(&first);
    stream.read_exact(&mut message[4..]).await?;
    Ok(message)
}
