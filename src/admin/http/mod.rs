//! The HTTP endpoint: metrics for Prometheus, health for orchestrators, the API and the page for operators.
//!
//! Its peers are trusted little: the number of connections, the time for a handshake, for a request's head and body,
//! and a connection's life are bounded. `access` says who may use the API, `api` is its routes.

mod access;
mod api;
mod page;
mod plain;

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

pub use access::{Right, closed};
#[cfg(test)]
pub(crate) use api::{DOCUMENT, paths};
pub use api::{error, guarded, routes as api};
pub use plain::{Probe, routes as plain};

use crate::net::CertificateFacts;

/// TLS for the next connection; none for plain HTTP. Asked each time, so that a reload's certificates are shown.
pub type Tls = dyn Fn() -> Option<Arc<ServerConfig>> + Send + Sync;

/// What is known of whoever asks, beside the request.
#[derive(Debug, Clone, Default)]
struct Peer {
    /// It has shown a certificate that `http.client_ca` vouches for.
    has_certificate: bool,
    /// The certificate's common name.
    name: Option<Arc<str>>,
    address: Option<IpAddr>,
}

impl Peer {
    fn of(address: Option<IpAddr>, certificate: Option<&CertificateDer<'_>>) -> Peer {
        let name = certificate.and_then(|certificate| CertificateFacts::read(certificate).ok()?.common_name);
        Peer { has_certificate: certificate.is_some(), name: name.map(Into::into), address }
    }
}

/// Who asks, as the audit log names it: `api (alice)` by the certificate, `api (10.0.0.7)` by the address.
#[derive(Debug, Clone)]
pub struct Caller(pub String);

impl Caller {
    fn of(peer: &Peer) -> Caller {
        Caller(match (&peer.name, peer.address) {
            (Some(name), _) => format!("api ({name})"),
            (None, Some(address)) => format!("api ({address})"),
            (None, None) => "api".to_owned(),
        })
    }
}

/// Bounds of the endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at a time; further ones wait in the kernel's queue.
    pub connections: usize,
    /// For a request's head, and between requests. Longer than a usual scrape interval, so that Prometheus keeps its
    /// connection.
    pub head_timeout: Duration,
    /// A connection takes no new request after this, so that none holds its place for ever.
    pub lifetime: Duration,
    /// For the answer under way at the end of a connection's life or of the process.
    pub grace: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 64,
            head_timeout: Duration::from_secs(20),
            lifetime: Duration::from_secs(600),
            grace: Duration::from_secs(5),
        }
    }
}

/// Longest request head in bytes; hyper wants at least 8 KiB.
const MAX_HEAD: usize = 16 * 1024;

/// Wait after a failed accept, which mostly means that file descriptors have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// Serves until `end`, then finishes the answers under way.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    tls: Arc<Tls>,
    bounds: Bounds,
    end: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(bounds.connections));
    let (ending, _) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut end = pin!(end);
    loop {
        let accepted = tokio::select! {
            () = &mut end => break,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let (routes, tls, ending) = (routes.clone(), tls(), ending.subscribe());
                connections.spawn(async move {
                    enter(stream, routes, tls, bounds, ending).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "HTTP endpoint cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    ending.send_replace(true);
    while connections.join_next().await.is_some() {}
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    // The place comes first: what is not accepted costs no descriptor.
    let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, place))
}

/// The TLS handshake where there is one, then requests.
async fn enter(
    stream: TcpStream,
    routes: Router,
    tls: Option<Arc<ServerConfig>>,
    bounds: Bounds,
    ending: watch::Receiver<bool>,
) {
    let address = stream.peer_addr().ok().map(|address| address.ip().to_canonical());
    let Some(tls) = tls else {
        return connection(stream, routes.layer(Extension(Peer::of(address, None))), bounds, ending).await;
    };
    match tokio::time::timeout(bounds.head_timeout, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => {
            // What was not verified failed the handshake.
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let peer = Peer::of(address, certificate);
            connection(stream, routes.layer(Extension(peer)), bounds, ending).await;
        }
        Ok(Err(error)) => debug!(%error, "HTTPS handshake failed"),
        Err(_) => debug!("HTTPS peer was too slow with its handshake"),
    }
}

async fn connection<S>(stream: S, routes: Router, bounds: Bounds, mut ending: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.head_timeout)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
    );
    let result = tokio::select! {
        result = &mut served => result,
        () = life_ends(&mut ending, bounds.lifetime) => {
            served.as_mut().graceful_shutdown();
            match tokio::time::timeout(bounds.grace, served).await {
                Ok(result) => result,
                Err(_) => return debug!("HTTP peer did not take its answer in time"),
            }
        }
    };
    if let Err(error) = result {
        debug!(%error, "HTTP connection broke");
    }
}

async fn life_ends(ending: &mut watch::Receiver<bool>, lifetime: Duration) {
    tokio::select! {
        // An error means that `serve` itself is gone, which is an end as well.
        _ = ending.wait_for(|ending| *ending) => {}
        () = tokio::time::sleep(lifetime) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::admin::ask::Endpoint as Asked;
    use crate::admin::health::health;

    #[derive(Default)]
    struct Fake {
        reason: Mutex<Option<String>>,
        panics: bool,
    }

    impl Probe for Fake {
        fn metrics(&self) -> String {
            assert!(!self.panics, "metrics fail in this test");
            "up 1\n".to_owned()
        }

        fn tenant_metrics(&self, tenant: &str) -> Option<String> {
            (tenant == "acme").then(|| "acme_up 1\n".to_owned())
        }

        fn ready(&self) -> Result<(), String> {
            self.reason.lock().unwrap().clone().map_or(Ok(()), Err)
        }
    }

    struct Endpoint {
        address: SocketAddr,
        end: oneshot::Sender<()>,
        served: JoinHandle<()>,
    }

    impl Endpoint {
        async fn start(probe: Arc<Fake>, bounds: Bounds) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (end, ended) = oneshot::channel::<()>();
            let served = tokio::spawn(serve(listener, plain(probe), Arc::new(|| None), bounds, async {
                let _ = ended.await;
            }));
            Self { address, end, served }
        }

        async fn ask(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }

        async fn get(&self, path: &str) -> String {
            self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
        }
    }

    #[tokio::test]
    async fn each_path_answers() {
        let probe = Arc::new(Fake::default());
        let endpoint = Endpoint::start(probe.clone(), Bounds::default()).await;
        let metrics = endpoint.get("/metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200") && metrics.ends_with("\r\n\r\nup 1\n"), "{metrics}");
        assert!(metrics.contains("content-type: text/plain; version=0.0.4"));
        assert!(endpoint.get("/metrics/tenant/acme").await.ends_with("acme_up 1\n"));
        assert!(endpoint.get("/metrics/tenant/globex").await.starts_with("HTTP/1.1 404"));
        assert!(endpoint.get("/").await.contains("<!doctype html>"));
        assert!(endpoint.get("/healthz").await.ends_with("alive\n"));
        assert!(endpoint.get("/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(endpoint.get("/metrics/").await.starts_with("HTTP/1.1 404"));
        assert!(endpoint.ask("POST /readyz HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 405"));
        assert!(endpoint.ask("\x16\x03\x01\0\n\r\n\r\n").await.starts_with("HTTP/1.1 400"));

        *probe.reason.lock().unwrap() = Some("draining".to_owned());
        let refused = endpoint.get("/readyz").await;
        assert!(refused.starts_with("HTTP/1.1 503") && refused.ends_with("draining\n"), "{refused}");
        assert!(endpoint.get("/healthz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn the_health_command_sees_ready_draining_and_gone() {
        let probe = Arc::new(Fake::default());
        let endpoint = Endpoint::start(probe.clone(), Bounds::default()).await;
        let address = endpoint.address;
        let ask = || tokio::task::spawn_blocking(move || health(&Asked::at(address)));
        ask().await.unwrap().unwrap();
        *probe.reason.lock().unwrap() = Some("draining".to_owned());
        assert!(ask().await.unwrap().unwrap_err().to_string().contains("draining"));
        endpoint.end.send(()).unwrap();
        endpoint.served.await.unwrap();
        assert!(ask().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_panic_while_writing_metrics_is_a_500() {
        let probe = Arc::new(Fake { panics: true, ..Fake::default() });
        let endpoint = Endpoint::start(probe, Bounds::default()).await;
        assert!(endpoint.get("/metrics").await.starts_with("HTTP/1.1 500"));
        assert!(endpoint.get("/healthz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn silent_peers_are_dropped_and_make_room() {
        let bounds = Bounds { connections: 2, head_timeout: Duration::from_millis(150), ..Bounds::default() };
        let endpoint = Endpoint::start(Arc::default(), bounds).await;
        let mut silent = Vec::new();
        for _ in 0..4 {
            let mut stream = TcpStream::connect(endpoint.address).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost:").await.unwrap();
            silent.push(stream);
        }
        // Behind four that say nothing, two at a time: the answer comes, after their time is up.
        let answer = tokio::time::timeout(Duration::from_secs(5), endpoint.get("/healthz")).await;
        assert!(answer.unwrap().starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn an_endless_head_is_refused() {
        let endpoint = Endpoint::start(Arc::default(), Bounds::default()).await;
        let answer = endpoint.ask(&format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(MAX_HEAD))).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }

    #[tokio::test]
    async fn kept_connections_end_with_the_endpoint_and_with_their_lifetime() {
        for lifetime in [Duration::from_millis(100), Duration::from_secs(600)] {
            let bounds = Bounds { lifetime, ..Bounds::default() };
            let endpoint = Endpoint::start(Arc::default(), bounds).await;
            let mut kept = TcpStream::connect(endpoint.address).await.unwrap();
            kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = vec![0; 1024];
            let read = kept.read(&mut answer).await.unwrap();
            assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
            if lifetime > Duration::from_secs(1) {
                endpoint.end.send(()).unwrap();
                tokio::time::timeout(Duration::from_secs(2), endpoint.served).await.unwrap().unwrap();
            }
            let closed = tokio::time::timeout(Duration::from_secs(2), kept.read_to_end(&mut answer)).await;
            closed.unwrap().unwrap();
        }
    }
}
