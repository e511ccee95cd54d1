//! Step 1: SSLRequest, GSSENCRequest or direct TLS are answered, and the certificate is picked by SNI.
//!
//! It comes in two halves: `hello` reads as much as tells where the connection is at home, `finish` does the handshake
//! there.

use rustls::ProtocolVersion;
use rustls::server::Accepted;
use tokio::io::AsyncWriteExt;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::{Client, ClientTls, Context, Peer, Rejection};
use crate::auth::in_turn;
use crate::config::TlsMode;
use crate::metrics::{Outcome, ProtocolViolation, Refusal, TlsVersion};
use crate::net::CertificateFacts;
use crate::net::server_tls::ALPN_POSTGRESQL;
use crate::net::stream::{DetachedSocket, MessageStream, Socket, Stream, read_untyped};
use crate::tenant::route::sni_tenant;
use crate::wire::{Opening, PgError, sqlstate};

/// The first byte of a TLS record that holds a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// A connection up to the point where its encryption is known.
pub enum Hello<S> {
    Plain { socket: S, opening: Opening },
    Tls { socket: S, accepted: Box<Accepted>, direct: bool },
}

/// Reads up to the StartupMessage of a plain connection, or the ClientHello of one under TLS. None when the client
/// left without a word, as health checks do.
pub async fn hello(mut socket: Socket, context: &Context) -> Result<Option<Hello<Socket>>, Rejection> {
    let result = negotiate(&mut socket, context).await;
    match result {
        Ok(Some(Agreed::Plain(opening))) => Ok(Some(Hello::Plain { socket, opening })),
        Ok(Some(Agreed::Tls { direct })) => {
            let start = LazyConfigAcceptor::new(Default::default(), socket).await.map_err(|error| {
                context.metrics.tls_handshake(Outcome::Failed, TlsVersion::None);
                match error.kind() {
                    std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset => Rejection::gone(&error),
                    _ => Rejection::silent_violation(
                        ProtocolViolation::BytesBeforeTls,
                        format!("no TLS ClientHello: {error}"),
                    ),
                }
            })?;
            Ok(Some(Hello::Tls { accepted: Box::new(start.accepted), socket: start.io, direct }))
        }
        Ok(None) => Ok(None),
        Err(rejection) => {
            rejection.tell_plain(&mut socket).await;
            Err(rejection)
        }
    }
}

enum Agreed {
    Plain(Opening),
    Tls { direct: bool },
}

async fn negotiate(socket: &mut Socket, context: &Context) -> Result<Option<Agreed>, Rejection> {
    let tls = context.tls.load().is_some();
    if socket.is_tcp() {
        match socket.peek().await? {
            None => return Ok(None),
            Some(TLS_HANDSHAKE) if tls => return Ok(Some(Agreed::Tls { direct: true })),
            Some(_) => {}
        }
    }
    let max = context.config.load().limits.max_startup;
    let (mut ssl_asked, mut gss_asked) = (false, false);
    loop {
        // Nothing beyond the message: bytes that an attacker put behind an SSLRequest stay in the socket, where the TLS
        // handshake fails on them (CVE-2021-23214).
        let frame = read_untyped::<Rejection>(socket, |first| Ok(Opening::length(first, max)?)).await?;
        match Opening::parse(&frame)? {
            // Each may be asked for once, in either order (PostgreSQL manual, 55.2.10 and 55.2.12).
            Opening::Ssl if !ssl_asked => {
                ssl_asked = true;
                if tls && socket.is_tcp() {
                    socket.write_all(b"S").await?;
                    return Ok(Some(Agreed::Tls { direct: false }));
                }
                socket.write_all(b"N").await?;
            }
            Opening::Gss if !gss_asked => {
                gss_asked = true;
                socket.write_all(b"N").await?;
            }
            Opening::Ssl | Opening::Gss => {
                return Err(Rejection::violation(
                    ProtocolViolation::MessageUnexpected,
                    "encryption was already refused on this connection",
                ));
            }
            cancel @ Opening::Cancel { .. } => return Ok(Some(Agreed::Plain(cancel))),
            startup @ Opening::Startup(_) => {
                let required = context.config.load().tls.mode == TlsMode::Required;
                if required && socket.is_tcp() {
                    return Err(tls_required());
                }
                return Ok(Some(Agreed::Plain(startup)));
            }
        }
    }
}

fn tls_required() -> Rejection {
    let error = PgError::fatal(sqlstate::INVALID_AUTHORIZATION, "this server accepts encrypted connections only")
        .with_hint("Connect with sslmode=require, or better sslmode=verify-full.");
    Rejection::refused(Refusal::TlsRequired, error)
}

impl Hello<Socket> {
    /// The tenant as far as it can be told by now: it decides where the connection is at home, nothing else.
    pub fn tenant(&self, context: &Context) -> Option<String> {
        let config = context.config.load();
        match self {
            Hello::Tls { accepted, .. } => sni_tenant(accepted.client_hello().server_name(), &config.routing),
            Hello::Plain { opening: Opening::Startup(startup), .. } => {
                let hints = super::startup::hints(&startup.parameters, None).0;
                let exists = |tenant: &str| context.registry.contains(tenant);
                crate::tenant::route::route(&hints, &config.routing, exists).ok().map(|route| route.tenant)
            }
            Hello::Plain { .. } => None,
        }
    }

    /// Takes it off this runtime.
    pub fn detach(self) -> std::io::Result<Hello<DetachedSocket>> {
        Ok(match self {
            Hello::Plain { socket, opening } => Hello::Plain { socket: socket.detach()?, opening },
            Hello::Tls { socket, accepted, direct } => Hello::Tls { socket: socket.detach()?, accepted, direct },
        })
    }
}

/// A client whose encryption is settled; on a plain one the opening message has been read already.
pub(super) async fn finish(
    hello: Hello<DetachedSocket>,
    settled: bool,
    peer: Peer,
    context: &Context,
) -> Result<(Client, Option<Opening>), Rejection> {
    let attach = |socket: DetachedSocket| if settled { socket.settle() } else { socket.attach() };
    match hello {
        Hello::Plain { socket, opening } => {
            let stream = MessageStream::new(Stream::Plain(attach(socket)?));
            Ok((Client { stream, peer, tls: None, answers: Default::default() }, Some(opening)))
        }
        Hello::Tls { socket, accepted, direct } => {
            let client = handshake(attach(socket)?, *accepted, direct, peer, context).await;
            let version = client.as_ref().map_or(TlsVersion::None, |(_, version)| *version);
            let outcome = if client.is_ok() { Outcome::Ok } else { Outcome::Failed };
            context.metrics.tls_handshake(outcome, version);
            client.map(|(client, _)| (client, None))
        }
    }
}

async fn handshake(
    socket: Socket,
    accepted: Accepted,
    direct: bool,
    peer: Peer,
    context: &Context,
) -> Result<(Client, TlsVersion), Rejection> {
    let tls = context.tls.load_full().ok_or_else(tls_required)?;
    let sni = accepted.client_hello().server_name().map(str::to_owned);
    let tenant = sni_tenant(sni.as_deref(), &context.config.load().routing);
    let choice = tls.choose(sni.as_deref(), tenant.as_deref());
    let start = StartHandshake::from_parts(accepted, socket);
    let applicant = context.backoff.applicant(peer.ip(), tenant.as_deref());
    // The key exchange and the signature are made with the first flight; the rest of the handshake is cheap.
    let stream = in_turn(applicant, || start.into_stream(choice.config)).await.await?;
    let connection = stream.get_ref().1;
    if direct && connection.alpn_protocol() != Some(ALPN_POSTGRESQL) {
        return Err(Rejection::silent_violation(
            ProtocolViolation::Alpn,
            "direct TLS without the application protocol \"postgresql\"",
        ));
    }
    let version = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => TlsVersion::V1_3,
        _ => TlsVersion::V1_2,
    };
    let certificate = connection.peer_certificates().filter(|chain| !chain.is_empty()).map(|chain| {
        let common_name = CertificateFacts::read(&chain[0]).ok().and_then(|facts| facts.common_name);
        (tls.tenants_of(chain), common_name)
    });
    let binding = choice.certificate.tls_server_end_point().map(<[u8]>::to_vec);
    let facts = ClientTls { sni, binding, certificate };
    let stream = MessageStream::new(Stream::Accepted(Box::new(stream)));
    Ok((Client { stream, peer, tls: Some(facts), answers: Default::default() }, version))
}
