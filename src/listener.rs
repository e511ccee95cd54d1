//! Accepting connections: TCP and Unix sockets, each client counted before anything is done for it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket as RawSocket, Type};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::config::Listen;
use crate::drain::Phase;
use crate::metrics::Refusal;
use crate::net::stream::Socket;
use crate::session::{self, Context, Peer};
use crate::sessions::ClientCap;

/// Connections beyond the cap that are told so at a time; more are closed without a word.
const TURNED_AWAY: usize = 256;
/// A connection shows once its client has said something, which it does first: what it says is then read without waiting. One
/// that says nothing shows after this time.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// After an accept that failed for want of file descriptors or memory.
const BREATH: Duration = Duration::from_millis(100);

#[derive(Debug, Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {source} (listen.addresses)")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("cannot listen on {path}: {source} (listen.unix_socket_dir)")]
    Unix { path: PathBuf, source: io::Error },
    #[error("cannot listen on {path}: another server does (listen.unix_socket_dir)")]
    UnixInUse { path: PathBuf },
}

/// Bound sockets, before anything is accepted.
#[derive(Debug)]
pub struct Listeners {
    tcp: Vec<AsyncFd<TcpListener>>,
    unix: Option<(UnixListener, UnixPath)>,
}

/// The socket's file, removed on drop.
#[derive(Debug)]
struct UnixPath(PathBuf);

impl Drop for UnixPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listeners {
    /// # Errors
    /// An address cannot be bound.
    pub fn bind(listen: &Listen) -> Result<Self, ListenError> {
        let tcp: Vec<_> = listen
            .addresses
            .iter()
            .map(|address| {
                bind_tcp(*address, listen.backlog).map_err(|source| ListenError::Tcp { address: *address, source })
            })
            .collect::<Result<_, _>>()?;
        let port = tcp
            .first()
            .and_then(|listener: &AsyncFd<TcpListener>| listener.get_ref().local_addr().ok())
            .map_or(5432, |address| address.port());
        let unix = match &listen.unix_socket_dir {
            Some(dir) => Some(bind_unix(&dir.join(format!(".s.PGSQL.{port}")), listen.unix_socket_mode)?),
            None => None,
        };
        Ok(Listeners { tcp, unix })
    }

    /// The addresses in use, with the ports that were free where 0 was asked for.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.get_ref().local_addr().ok()).collect()
    }

    /// Accepts on every socket until the drain begins.
    pub fn spawn(self, context: &Arc<Context>) {
        let max_clients = context.config.load().limits.max_clients;
        let door = Arc::new(Door {
            // Room for logins under way and for cancel requests when the clients' own cap is reached.
            connections: ClientCap::new(max_clients + max_clients / 8 + 64),
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY)),
            context: context.clone(),
        });
        for listener in self.tcp {
            let door = door.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = door.context.drain.reached(Phase::Draining) => {}
                    () = accept_tcp(&listener, &door) => {}
                }
            });
        }
        if let Some((listener, path)) = self.unix {
            tokio::spawn(async move {
                tokio::select! {
                    () = door.context.drain.reached(Phase::Draining) => {}
                    () = accept_unix(&listener, &door) => {}
                }
                drop(path);
            });
        }
    }
}

fn bind_tcp(address: SocketAddr, backlog: u32) -> io::Result<AsyncFd<TcpListener>> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    // What is accepted has these as well. They are for the clients' good; a system that refuses them still works.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_keepalive(true);
    let _ = defer_accept(&socket);
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    // SAFETY: the descriptor is the listener's own for as long as it lives.
    unsafe { AsyncFd::register_with_interest(socket.into(), Interest::READABLE) }.map_err(|error| error.into_parts().1)
}

/// See [`FIRST_WORD`]; tcp(7).
fn defer_accept(socket: &RawSocket) -> io::Result<()> {
    let seconds = FIRST_WORD.as_secs() as libc::c_int;
    // SAFETY: the value is a c_int, and its length that of one.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One connection that does not block; the standard library takes a call more for that.
fn accept_now(listener: &TcpListener) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    // SAFETY: the kernel fills in at most as much of the address as there is room for, and its length.
    let (fd, address) = unsafe {
        SockAddr::try_init(|address, length| {
            match libc::accept4(listener.as_raw_fd(), address.cast(), length, libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)
            {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(OwnedFd::from_raw_fd(fd)),
            }
        })
    }?;
    let address = address.as_socket().ok_or_else(|| io::Error::other("a client without an address"))?;
    Ok((fd.into(), address))
}

/// A file left by a server that died is replaced; one that still answers is not.
fn bind_unix(path: &Path, mode: u32) -> Result<(UnixListener, UnixPath), ListenError> {
    let failed = |source| ListenError::Unix { path: path.to_owned(), source };
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ListenError::UnixInUse { path: path.to_owned() });
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let owned = UnixPath(path.to_owned());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok((listener, owned))
}

/// Where everybody comes in.
struct Door {
    connections: Arc<ClientCap>,
    turned_away: Arc<Semaphore>,
    context: Arc<Context>,
}

impl Door {
    fn enter(&self, socket: Socket, peer: Peer) {
        let context = self.context.clone();
        context.metrics.connections_accepted.inc();
        match self.connections.take() {
            Some(place) => {
                tokio::spawn(session::run(socket, peer, place, context));
            }
            None => match self.turned_away.clone().try_acquire_owned() {
                Ok(permit) => {
                    tokio::spawn(async move {
                        session::turn_away(socket, Refusal::Cap, session::too_many_clients(), &context).await;
                        drop(permit);
                    });
                }
                Err(_) => context.metrics.connections_refused.inc(Refusal::Cap),
            },
        }
    }
}

async fn accept_tcp(listener: &AsyncFd<TcpListener>, door: &Door) {
    loop {
        match listener.async_io(Interest::READABLE, accept_now).await {
            Ok((socket, address)) => door.enter(Socket::Fresh(socket), Peer::Tcp(address)),
            Err(error) => take_breath(&error).await,
        }
    }
}

async fn accept_unix(listener: &UnixListener, door: &Door) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => door.enter(Socket::Unix(socket), Peer::Unix),
            Err(error) => take_breath(&error).await,
        }
    }
}

/// Out of file descriptors, most often: those who are connected go on, the next ones wait in the kernel's queue.
async fn take_breath(error: &io::Error) {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tracing::warn!(%error, "cannot accept a connection");
        tokio::time::sleep(BREATH).await;
    }
}
