//! A TCP relay that misbehaves on request: between client and proxy, or proxy and PostgreSQL.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pgtenant::cli::demo::postgres::free_port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the link does to traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every chunk is this late, in each direction.
    Latency(Duration),
    /// Nothing passes, nothing is lost: what was sent goes on when the fault is lifted, as TCP sends again what a
    /// firewall dropped. New connections are accepted and get no answer.
    BlackHole,
    /// New connections are refused; those that exist go on.
    Refuse,
    /// A connection is closed once this many bytes, both directions together, have passed through it since it began.
    CutAfter(usize),
}

/// Ends its connections and its listener when dropped.
pub struct FaultyLink {
    address: SocketAddr,
    control: Arc<watch::Sender<Control>>,
    accepting: JoinHandle<()>,
}

#[derive(Clone, Copy)]
struct Control {
    fault: Fault,
    /// Where new connections lead.
    target: SocketAddr,
    /// Connections of an older generation close.
    generation: u64,
}

impl FaultyLink {
    /// A link to `target` without a fault.
    pub async fn start(target: SocketAddr) -> io::Result<FaultyLink> {
        let listener = loop {
            match TcpListener::bind((Ipv4Addr::LOCALHOST, free_port()?)).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                result => break result?,
            }
        };
        let address = listener.local_addr()?;
        let control = Arc::new(watch::Sender::new(Control { fault: Fault::None, target, generation: 0 }));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&control)));
        Ok(FaultyLink { address, control, accepting })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the fault in place of the one before, for present and future connections. Returns when a refusal holds, or
    /// is lifted.
    pub async fn set(&self, fault: Fault) {
        let before = self.control.borrow().fault;
        self.control.send_modify(|control| control.fault = fault);
        if (before == Fault::Refuse) != (fault == Fault::Refuse) {
            let refuses = fault == Fault::Refuse;
            crate::eventually!(TcpStream::connect(self.address).await.is_err() == refuses);
        }
    }

    /// Closes all present connections; new ones lead elsewhere, as when an address is given to another machine.
    pub fn redirect(&self, target: SocketAddr) {
        self.control.send_modify(|control| control.target = target);
        self.close();
    }

    /// Closes all present connections.
    pub fn close(&self) {
        self.control.send_modify(|control| control.generation += 1);
    }
}

impl Drop for FaultyLink {
    fn drop(&mut self) {
        self.accepting.abort();
        self.close();
    }
}

async fn accept(listener: TcpListener, control: Arc<watch::Sender<Control>>) {
    let address = listener.local_addr().expect("a bound listener has an address");
    let mut listener = Some(listener);
    let mut changes = control.subscribe();
    loop {
        let refuse = changes.borrow_and_update().fault == Fault::Refuse;
        if refuse {
            listener = None;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind(address).await.expect("nobody else takes the link's port"));
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            accepted = accept_one(listener.as_ref()) => if let Ok(client) = accepted {
                tokio::spawn(relay(client, control.subscribe()));
            },
        }
    }
}

async fn accept_one(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(client, _)| client),
        None => std::future::pending().await,
    }
}

/// Relays one connection until a side ends it or the link closes it: then both sockets are dropped.
async fn relay(client: TcpStream, mut changes: watch::Receiver<Control>) {
    let Control { target, generation, .. } = *changes.borrow_and_update();
    let passed = Arc::new(AtomicUsize::new(0));
    let traffic = async {
        passable(&mut changes.clone()).await;
        let backend = TcpStream::connect(target).await?;
        client.set_nodelay(true)?;
        backend.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_backend, to_backend) = backend.into_split();
        tokio::try_join!(
            pump(from_client, to_backend, changes.clone(), Arc::clone(&passed)),
            pump(from_backend, to_client, changes.clone(), Arc::clone(&passed)),
        )
    };
    let mut closing = changes.clone();
    tokio::select! {
        _ = traffic => {}
        _ = closing.wait_for(|control| control.generation != generation) => {}
    }
}

/// Waits while the link is a black hole.
async fn passable(changes: &mut watch::Receiver<Control>) {
    // An error means that the link is gone, and this task with it.
    changes.wait_for(|control| control.fault != Fault::BlackHole).await.map(drop).unwrap_or_default();
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut changes: watch::Receiver<Control>,
    passed: Arc<AtomicUsize>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        let fault = changes.borrow().fault;
        if let Fault::Latency(latency) = fault {
            tokio::time::sleep(latency).await;
        }
        passable(&mut changes).await;
        if read == 0 {
            return to.shutdown().await;
        }
        let fault = changes.borrow().fault;
        let before = passed.fetch_add(read, Ordering::Relaxed);
        match fault {
            Fault::CutAfter(bytes) if before + read >= bytes => {
                to.write_all(&buffer[..bytes.saturating_sub(before)]).await?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            _ => to.write_all(&buffer[..read]).await?,
        }
    }
}
