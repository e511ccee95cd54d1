//! One client connection, first byte to close: the straight line through the steps.

mod authenticate;
mod console;
mod encrypt;
mod reject;
mod resolve;
mod serve;
mod startup;
mod welcome;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::BytesMut;

pub use reject::{too_many_clients, turn_away};

use crate::admin::console::{self as admin_console, Console, Operator};
use crate::admin::survey::Survey;
use crate::auth::{Backoff, Mock};
use crate::config::Config;
use crate::drain::Drain;
use crate::listen::Hubs;
use crate::metrics::{CancelResult, Held, Metrics};
use crate::net::ServerTls;
use crate::net::stream::{DetachedSocket, MessageStream, Socket};
use crate::pool::Pools;
use crate::sessions::{Cancelled, ClientCap, ClientPlace, Sessions};
use crate::tenant::{Registry, Verifiers};
use crate::trace::{Steps, Tracer, Who};
use crate::wire::Opening;
use crate::workers::Workers;
use reject::Rejection;
use startup::Wish;

/// Everything that sessions share; built once, in `app`.
pub struct Context {
    pub config: ArcSwap<Config>,
    /// What SET on the console has set over the configuration's files, by dotted key.
    pub set: Mutex<BTreeMap<String, String>>,
    pub registry: Registry,
    pub pools: Pools,
    /// Who listens for many clients.
    pub hubs: Arc<Hubs>,
    pub verifiers: Verifiers,
    pub backoff: Backoff,
    /// None where TLS is switched off.
    pub tls: ArcSwapOption<ServerTls>,
    /// Of the HTTP endpoint; none where it speaks plain HTTP.
    pub https: ArcSwapOption<rustls::ServerConfig>,
    pub metrics: Arc<Metrics>,
    pub drain: Drain,
    pub sessions: Arc<Sessions>,
    /// The admin console.
    pub console: Console,
    /// What took how long.
    pub tracer: Tracer,
    /// What the page and the API show.
    pub survey: Survey,
    pub workers: Arc<Workers>,
    /// Sessions, from the StartupMessage on. Connections that only ask for a cancel need no place here.
    pub clients: Arc<ClientCap>,
    /// For the exchanges that cannot succeed.
    pub mock: Mock,
}

impl admin_console::Proxy for Context {
    fn view(&self) -> admin_console::View<'_> {
        admin_console::View {
            config: &self.config,
            registry: &self.registry,
            pools: &self.pools,
            hubs: &self.hubs,
            sessions: &self.sessions,
            drain: &self.drain,
            console: &self.console,
            survey: &self.survey,
        }
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    Unix,
}

impl Peer {
    /// None on a Unix socket.
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Peer::Tcp(address) => Some(address),
            Peer::Unix => None,
        }
    }

    /// The address that counts for allow-lists and back-off.
    pub fn ip(self) -> IpAddr {
        match self {
            Peer::Tcp(address) => address.ip().to_canonical(),
            Peer::Unix => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Unix => f.write_str("unix"),
        }
    }
}

/// A client whose encryption is settled, during its login.
struct Client {
    stream: MessageStream,
    peer: Peer,
    tls: Option<ClientTls>,
    /// Answers that go out with the next write.
    answers: BytesMut,
}

/// What the TLS handshake told.
#[derive(Debug)]
struct ClientTls {
    sni: Option<String>,
    /// `tls-server-end-point` of the certificate that we showed.
    binding: Option<Vec<u8>>,
    /// The tenants whose CA vouches for the client's certificate, and its common name.
    certificate: Option<(Vec<String>, Option<String>)>,
}

/// Takes a connection from its first byte to its end. Runs on the accepting runtime until it is known where the
/// tenant is at home, and there from then on.
pub async fn run(socket: Socket, peer: Peer, place: ClientPlace, context: Arc<Context>) {
    let begun = Instant::now();
    let timeout = context.config.load().auth.login_timeout;
    let held = context.metrics.login();
    let hello = match tokio::time::timeout(timeout, encrypt::hello(socket, &context)).await {
        Ok(Ok(Some(hello))) => hello,
        Ok(Ok(None)) => return,
        Ok(Err(rejection)) => return rejection.note(peer, &context),
        Err(_) => return Rejection::timeout().note(peer, &context),
    };
    let (home, settled) = match hello.tenant(&context) {
        Some(tenant) => (context.workers.home(&tenant).clone(), true),
        None => (context.workers.any().clone(), false),
    };
    let Ok(hello) = hello.detach() else { return };
    let mut steps = context.tracer.login(begun);
    steps.did("accept");
    home.spawn(async move {
        let deadline = begun + timeout;
        on_worker(hello, Arrival { peer, begun, deadline, settled, place, held, steps }, context).await;
    });
}

/// What comes with a connection from the accepting runtime.
struct Arrival {
    peer: Peer,
    begun: Instant,
    deadline: Instant,
    /// It is where its tenant is at home.
    settled: bool,
    place: ClientPlace,
    /// Counts the login while it lasts.
    held: Held,
    steps: Steps,
}

async fn on_worker(hello: encrypt::Hello<DetachedSocket>, mut arrival: Arrival, context: Arc<Context>) {
    let peer = arrival.peer;
    let finished = encrypt::finish(hello, arrival.settled, peer, &context);
    let client = tokio::time::timeout_at(arrival.deadline.into(), finished).await;
    let (mut client, opening) = match client {
        Ok(Ok(finished)) => finished,
        Ok(Err(rejection)) => return rejection.note(peer, &context),
        Err(_) => return Rejection::timeout().note(peer, &context),
    };
    let mut steps = std::mem::take(&mut arrival.steps);
    steps.did("tls");
    let login = login(&mut client, opening, &mut steps, &context);
    let login = tokio::time::timeout_at(arrival.deadline.into(), login).await;
    match login.unwrap_or_else(|_| Err(Rejection::timeout())) {
        Ok(LoggedIn::Tenant(proven, place)) => {
            let home = context.workers.home(proven.tenant.id.as_str()).clone();
            let settled = arrival.settled;
            let rest = at_home(client, proven, place, arrival, steps, context);
            match settled {
                true => Box::pin(rest).await,
                false => drop(home.spawn(rest)),
            }
        }
        Ok(LoggedIn::Console(operator)) => {
            drop(arrival.held);
            admin_console::serve(client.stream, operator, client.answers, context).await;
        }
        Ok(LoggedIn::Nobody) => reject::close(&mut client).await,
        Err(rejection) => refuse(&mut client, &rejection, steps, &context).await,
    }
}

async fn refuse(client: &mut Client, rejection: &Rejection, steps: Steps, context: &Context) {
    rejection.tell(client).await;
    steps.end(&context.tracer, Who::default(), Some(rejection.why().to_owned()));
    rejection.note(client.peer, context);
}

/// Where the tenant's backends are, from the proof on.
async fn at_home(
    mut client: Client,
    proven: Box<authenticate::Proven>,
    place: ClientPlace,
    arrival: Arrival,
    mut steps: Steps,
    context: Arc<Context>,
) {
    if !arrival.settled && client.stream.settle(true).is_err() {
        return;
    }
    let welcomed = match Box::pin(greet(&mut client, *proven, arrival.deadline, &context)).await {
        Ok(welcomed) => *welcomed,
        Err(rejection) => return refuse(&mut client, &rejection, steps, &context).await,
    };
    steps.did("welcome");
    steps.end(&context.tracer, welcomed.who(), None);
    drop(arrival.held);
    let counted = (context.metrics.client(), arrival.place, place);
    // A task of its own, so that an idle session does not keep the room that its login took.
    tokio::spawn(serve::requests(client, welcomed, arrival.begun, context, counted));
}

/// What a connection has become.
enum LoggedIn {
    Tenant(Box<authenticate::Proven>, ClientPlace),
    Console(Operator),
    /// It was a cancel request.
    Nobody,
}

/// From the proof to ReadyForQuery. How long a paused tenant makes its client wait is no fault of the client's, and does not
/// count towards its login's time.
async fn greet(
    client: &mut Client,
    mut proven: authenticate::Proven,
    deadline: Instant,
    context: &Context,
) -> Result<Box<welcome::Welcomed>, Rejection> {
    let begun = Instant::now();
    proven.stay_while_paused(client, context).await?;
    let deadline = deadline + begun.elapsed();
    let welcomed = tokio::time::timeout_at(deadline.into(), welcome::send(client, proven, context)).await;
    welcomed.unwrap_or_else(|_| Err(Rejection::timeout())).map(Box::new)
}

/// From the StartupMessage to the proof.
async fn login(
    client: &mut Client,
    opening: Option<Opening>,
    steps: &mut Steps,
    context: &Arc<Context>,
) -> Result<LoggedIn, Rejection> {
    let startup = match startup::read(client, opening, context).await? {
        Wish::Cancel { pid, secret } => {
            cancel(pid, &secret, context).await;
            return Ok(LoggedIn::Nobody);
        }
        Wish::Session(startup) => startup,
    };
    if console::is_meant(&startup.hints, context) {
        return console::login(client, &startup, context).await.map(LoggedIn::Console);
    }
    let place = context.clients.take().ok_or_else(Rejection::full)?;
    let candidate = resolve::tenant(client, startup, context)?;
    steps.did("route");
    let proven = authenticate::client(client, candidate, context).await?;
    steps.did("auth");
    Ok(LoggedIn::Tenant(Box::new(proven), place))
}

/// PostgreSQL never answers a cancel request: the connection is just closed when it was carried out.
async fn cancel(pid: i32, secret: &[u8], context: &Context) {
    let result = match context.sessions.cancel(pid.cast_unsigned(), secret).await {
        Cancelled::Forwarded => CancelResult::Forwarded,
        Cancelled::UnknownKey => CancelResult::UnknownKey,
        Cancelled::Idle => CancelResult::Idle,
        Cancelled::Failed => CancelResult::Failed,
    };
    context.metrics.cancel_requests.inc(result);
}
