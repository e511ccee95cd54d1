//! One end of a relay: a stream with what was received but not yet taken, and what could not yet be sent.
//!
//! Bytes are read into a scratch buffer that all connections of a thread share, looked at there, and kept only as far
//! as they cannot be used yet: a connection at rest holds no buffer.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::Stream;

/// As much as a pipe or a loopback socket gives at a time.
const SCRATCH: usize = 64 * 1024;

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// See the module.
#[derive(Debug)]
pub struct Endpoint {
    stream: Stream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    /// TLS holds sealed bytes that the socket has not taken yet.
    unflushed: bool,
}

impl Endpoint {
    pub fn new(stream: Stream, received: Vec<u8>) -> Self {
        Endpoint { stream, received, unsent: Vec::new(), unflushed: false }
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

    /// Received, but not yet taken.
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// Bytes that wait for the socket.
    pub fn unsent(&self) -> usize {
        self.unsent.len()
    }

    pub fn has_unsent(&self) -> bool {
        self.unflushed || !self.unsent.is_empty()
    }

    /// Reads once and adds to what was received; the number of new bytes, 0 at the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        READ.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            self.received.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// Reads once and shows what was received so far; `take` says how much of it is done with. The number of new bytes,
    /// 0 at the end of the stream.
    pub fn poll_take<E: From<io::Error>>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut Context<'_>, &[u8]) -> Result<usize, E>,
    ) -> Poll<Result<usize, E>> {
        if !self.received.is_empty() {
            let new = ready!(self.poll_fill(cx))?;
            return Poll::Ready(if new == 0 { Ok(0) } else { self.take(|received| take(cx, received)).map(|()| new) });
        }
        READ.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            let new = buffer.filled();
            if !new.is_empty() {
                let taken = take(cx, new)?;
                self.received.extend_from_slice(&new[taken..]);
            }
            Poll::Ready(Ok(new.len()))
        })
    }

    /// Shows what was received and not yet taken.
    pub fn take<E>(&mut self, take: impl FnOnce(&[u8]) -> Result<usize, E>) -> Result<(), E> {
        let taken = take(&self.received)?;
        if taken == self.received.len() {
            self.received = Vec::new();
        } else {
            self.received.drain(..taken);
        }
        Ok(())
    }

    /// Takes what was received, to be looked at more than once.
    pub fn take_received(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.received)
    }

    /// Puts the rest of it back.
    pub fn put_back(&mut self, rest: &[u8]) {
        self.received.splice(..0, rest.iter().copied());
    }

    /// Sends as much as the socket takes at once and keeps the rest.
    pub fn send(&mut self, cx: &mut Context<'_>, mut bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.unsent.is_empty() {
            while !bytes.is_empty() {
                match Pin::new(&mut self.stream).poll_write(cx, bytes) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(sent)) => bytes = &bytes[sent..],
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
            }
        }
        self.unsent.extend_from_slice(bytes);
        self.unflushed = self.stream.is_tls();
        match self.poll_send(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Keeps bytes for the next [`Endpoint::poll_send`].
    pub fn queue(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        self.unflushed = self.stream.is_tls();
    }

    /// Sends everything that is left.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        let result = loop {
            if sent == self.unsent.len() {
                break Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.stream).poll_write(cx, &self.unsent[sent..]) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => sent += count,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        if sent == self.unsent.len() {
            self.unsent = Vec::new();
        } else {
            self.unsent.drain(..sent);
        }
        ready!(result)?;
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends our direction and takes what the peer still sends, until it has ended too: it may not read our last words before
    /// we have read its.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn end(&mut self) -> io::Result<()> {
        let mut ended = false;
        poll_fn(|cx| {
            if !ended && let Poll::Ready(result) = self.poll_shutdown(cx) {
                result?;
                ended = true;
            }
            while ready!(self.poll_take(cx, |_, bytes| io::Result::Ok(bytes.len())))? > 0 {}
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Ends our direction: the peer sees the end of the stream (and, under TLS, close_notify before it).
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::net::stream::Socket;

    fn pair() -> (Endpoint, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Endpoint::new(Stream::Plain(Socket::Unix(ours)), Vec::new()), theirs)
    }

    #[tokio::test]
    async fn what_is_not_taken_is_shown_again() {
        let (mut end, mut peer) = pair();
        peer.write_all(b"abc").await.unwrap();
        let taken = poll_fn(|cx| end.poll_take(cx, |_, bytes| io::Result::Ok(bytes.len() - 1))).await.unwrap();
        assert_eq!((taken, end.received()), (3, &b"c"[..]));
        peer.write_all(b"de").await.unwrap();
        poll_fn(|cx| end.poll_take(cx, |_, bytes| io::Result::Ok(usize::from(bytes == b"cde") * 3))).await.unwrap();
        assert_eq!((end.received(), end.received.capacity()), (&b""[..], 0));
        drop(peer);
        assert_eq!(poll_fn(|cx| end.poll_take(cx, |_, _| -> io::Result<usize> { unreachable!() })).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_the_socket_does_not_take_is_sent_later_and_in_order() {
        let (mut end, mut peer) = pair();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
        poll_fn(|cx| {
            end.send(cx, &bytes[..2_000_000]).unwrap();
            end.send(cx, &bytes[2_000_000..]).unwrap();
            Poll::Ready(())
        })
        .await;
        assert!(end.has_unsent());
        let read = tokio::spawn(async move {
            let mut received = vec![0; 3_000_000];
            peer.read_exact(&mut received).await.unwrap();
            received
        });
        poll_fn(|cx| end.poll_send(cx)).await.unwrap();
        assert!(!end.has_unsent());
        assert_eq!(read.await.unwrap(), bytes);
    }
}
