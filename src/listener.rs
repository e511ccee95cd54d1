//! Accepting connections: TCP and Unix sockets, each client counted before anything is done for it.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::config::Listen;
use crate::drain::Phase;
use crate::metrics::Refusal;
use crate::net::stream::Socket;
use crate::session::{self, Context, Peer};
use crate::sessions::ClientCap;

/// Connections beyond the cap that are told so at a time; more are closed without a word.
const TURNED_AWAY: usize = 256;
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
    tcp: Vec<TcpListener>,
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
        let tcp: Vec<TcpListener> = listen
            .addresses
            .iter()
            .map(|address| {
                bind_tcp(*address, listen.backlog).map_err(|source| ListenError::Tcp { address: *address, source })
            })
            .collect::<Result<_, _>>()?;
        let port = tcp.first().and_then(|listener| listener.local_addr().ok()).map_or(5432, |address| address.port());
        let unix = match &listen.unix_socket_dir {
            Some(dir) => Some(bind_unix(&dir.join(format!(".s.PGSQL.{port}")), listen.unix_socket_mode)?),
            None => None,
        };
        Ok(Listeners { tcp, unix })
    }

    /// The addresses in use, with the ports that were free where 0 was asked for.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
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

fn bind_tcp(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    TcpListener::from_std(socket.into())
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

async fn accept_tcp(listener: &TcpListener, door: &Door) {
    loop {
        match listener.accept().await {
            Ok((socket, address)) => {
                // Both are for the client's good; a socket that refuses them still works.
                let _ = socket.set_nodelay(true);
                let _ = SockRef::from(&socket).set_keepalive(true);
                door.enter(Socket::Tcp(socket), Peer::Tcp(address));
            }
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
