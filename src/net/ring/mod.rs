//! Sockets through io_uring: what a thread's connections receive and send goes to the kernel in one call for all of
//! them, instead of one or two for each.
//!
//! A ring belongs to a thread, and a socket to the ring of its thread. When all tasks have run, [`before_sleep`] takes a turn:
//! it gives the kernel what they wrote, and wakes those for whom something came. The runtime sleeps in epoll as ever; an eventfd
//! wakes it and the task [`drive`], which also takes turns when much is waiting while tasks still run.

mod buffers;
mod connection;
#[cfg(test)]
mod tests;
mod turn;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use connection::MAX_UNSENT;
use turn::{Ring, Shared, send_now};

/// So many bytes at once go to the socket directly: copying them costs more than the call.
const DIRECT: usize = 8 * 1024;

thread_local! {
    static RING: RefCell<Option<Ring>> = const { RefCell::new(None) };
}

/// Whether the kernel has what it takes, and lets us.
///
/// # Errors
/// Why not.
pub fn probe() -> io::Result<()> {
    Ring::new().map(drop)
}

/// Gives this thread a ring.
///
/// # Errors
/// As [`probe`]; or the locked memory is used up.
pub fn enter() -> io::Result<()> {
    let ring = Ring::new()?;
    RING.with(|cell| *cell.borrow_mut() = Some(ring));
    Ok(())
}

/// Ends this thread's ring. Its sockets are gone by then.
pub fn leave() {
    drop(RING.with(|cell| cell.borrow_mut().take()));
}

/// Whether this thread has a ring.
pub fn is_here() -> bool {
    RING.with(|cell| cell.borrow().is_some())
}

/// Takes this thread's turns, for as long as it lives.
pub async fn drive() {
    let Some(shared) = RING.with(|cell| cell.borrow().as_ref().map(|ring| ring.shared.clone())) else { return };
    // SAFETY: the descriptor is `shared`'s for as long as the AsyncFd has it.
    let bell = match unsafe { AsyncFd::register_with_interest(Bell(shared), Interest::READABLE) } {
        Ok(bell) => bell,
        Err(error) => return tracing::error!(error = %error.into_parts().1, "io_uring: no eventfd"),
    };
    poll_fn(|cx| {
        // It is edge-triggered: nobody has to take from it what it counts.
        while let Poll::Ready(Ok(mut rung)) = bell.poll_read_ready(cx) {
            rung.clear_ready();
        }
        RING.with(|cell| {
            if let Some(ring) = cell.borrow_mut().as_mut() {
                if !ring.driver.as_ref().is_some_and(|driver| driver.will_wake(cx.waker())) {
                    ring.driver = Some(cx.waker().clone());
                }
                ring.turn();
            }
        });
        Poll::<()>::Pending
    })
    .await;
}

/// What the runtime of a thread that may have a ring calls before it sleeps: the turn for all that the tasks left behind.
pub fn before_sleep() {
    RING.with(|cell| {
        if let Some(ring) = cell.borrow_mut().as_mut() {
            ring.turn();
        }
    });
}

struct Bell(Arc<Shared>);

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.bell.as_raw_fd()
    }
}

/// A connected stream socket in the ring of the thread that made it. Used on another thread it fails; it may be dropped on any.
#[derive(Debug)]
pub struct RingSocket {
    key: u32,
    shared: Arc<Shared>,
    /// Some until it is dropped.
    fd: Option<OwnedFd>,
}

impl RingSocket {
    /// # Errors
    /// The thread has no ring.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        RING.with(|cell| {
            let mut ring = cell.borrow_mut();
            let ring = ring.as_mut().ok_or_else(elsewhere)?;
            Ok(RingSocket { key: ring.add(fd.as_raw_fd()), shared: ring.shared.clone(), fd: Some(fd) })
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Ring, u32) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        RING.with(|cell| match cell.borrow_mut().as_mut() {
            Some(ring) if Arc::ptr_eq(&ring.shared, &self.shared) => act(ring, self.key),
            _ => Poll::Ready(Err(elsewhere())),
        })
    }
}

fn elsewhere() -> io::Error {
    io::Error::other("a socket is used on a thread that is not its own")
}

impl AsyncRead for RingSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|ring, key| {
            let Ring { connections, buffers, .. } = ring;
            let connection = &mut connections[key as usize];
            let read = connection.read(buffers, buf);
            if read == 0 && buf.remaining() > 0 {
                if let Some(end) = connection.end() {
                    return Poll::Ready(end);
                }
                connection.wait_to_read(cx);
            }
            if connection.wants_to_receive() {
                ring.list(key);
            }
            if read > 0 || buf.remaining() == 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
    }
}

impl AsyncWrite for RingSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|ring, key| {
            let connection = &mut ring.connections[key as usize];
            if let Some(code) = connection.failed {
                return Poll::Ready(Err(io::Error::from_raw_os_error(code)));
            }
            if bytes.len() >= DIRECT && !connection.is_sending() && connection.unsent.is_empty() {
                match send_now(connection.fd, bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    sent => return Poll::Ready(sent),
                }
            }
            match ring.write(key, bytes, MAX_UNSENT) {
                0 if !bytes.is_empty() => {
                    ring.connections[key as usize].wait_to_write(cx);
                    Poll::Pending
                }
                count => Poll::Ready(Ok(count)),
            }
        })
    }

    /// What was written is on its way: nobody has to wait for it.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.with(|ring, key| {
            let connection = &mut ring.connections[key as usize];
            match connection.failed {
                Some(code) => Poll::Ready(Err(io::Error::from_raw_os_error(code))),
                None if connection.is_sending() || !connection.unsent.is_empty() => {
                    connection.wait_to_write(cx);
                    Poll::Pending
                }
                None => Poll::Ready(Ok(())),
            }
        }))?;
        let fd = self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        // SAFETY: no memory is touched.
        match unsafe { libc::shutdown(fd, libc::SHUT_WR) } {
            0 => Poll::Ready(Ok(())),
            _ => Poll::Ready(Err(io::Error::last_os_error())),
        }
    }
}

impl Drop for RingSocket {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        let mut fd = Some(fd);
        let _ = RING.try_with(|cell| {
            let Ok(mut ring) = cell.try_borrow_mut() else { return };
            if let Some(ring) = ring.as_mut().filter(|ring| Arc::ptr_eq(&ring.shared, &self.shared))
                && let Some(fd) = fd.take()
            {
                ring.leave(self.key, fd);
            }
        });
        if let Some(fd) = fd {
            self.shared.leave(self.key, fd);
        }
    }
}
