//! A wire client that sends exactly what a test tells it to and shows every message that comes back.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::frontend;

trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// One client connection. Reads fail the test when nothing comes within `deadline`.
pub struct Wire {
    stream: BufReader<Box<dyn Transport>>,
    /// Longest wait for a message; 10 s unless changed.
    pub deadline: Duration,
    /// ParameterStatus as received.
    pub parameters: BTreeMap<String, String>,
    /// What the last login was sent but for authentication requests, in order.
    pub greeting: Vec<Message>,
    /// BackendKeyData as received: process id and secret key.
    pub key: Option<(u32, Vec<u8>)>,
    /// NegotiateProtocolVersion as received: newest minor version and the options not known.
    pub negotiated: Option<(u32, Vec<String>)>,
    /// The mechanism that the last SCRAM login used.
    pub mechanism: Option<&'static str>,
    /// `tls-server-end-point` data (RFC 5929): the hash of the server's certificate.
    end_point: Option<Vec<u8>>,
}

/// A backend message: tag and payload without the length.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub payload: Vec<u8>,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", char::from(self.tag), String::from_utf8_lossy(&self.payload))
    }
}

/// An ErrorResponse, field by field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorResponse {
    pub fields: BTreeMap<char, String>,
}

impl ErrorResponse {
    pub fn sqlstate(&self) -> &str {
        self.fields.get(&'C').map_or("", String::as_str)
    }

    pub fn severity(&self) -> &str {
        self.fields.get(&'V').map_or("", String::as_str)
    }

    pub fn message(&self) -> &str {
        self.fields.get(&'M').map_or("", String::as_str)
    }
}

impl Message {
    /// The fields of an ErrorResponse or a NoticeResponse.
    pub fn error(&self) -> ErrorResponse {
        let texts = self.payload.split(|&byte| byte == 0).filter(|field| !field.is_empty());
        let fields = texts.map(|field| (char::from(field[0]), String::from_utf8_lossy(&field[1..]).into_owned()));
        ErrorResponse { fields: fields.collect() }
    }

    /// The columns of a DataRow as text.
    pub fn row(&self) -> Vec<Option<String>> {
        assert_eq!(self.tag, b'D', "a DataRow, not {self:?}");
        let mut rest = &self.payload[2..];
        let mut row = Vec::new();
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let length = usize::try_from(i32::from_be_bytes(*length)).ok();
            let (column, tail) = tail.split_at(length.unwrap_or(0));
            row.push(length.map(|_| String::from_utf8_lossy(column).into_owned()));
            rest = tail;
        }
        row
    }

    /// The transaction status of a ReadyForQuery: `I`, `T` or `E`.
    pub fn status(&self) -> char {
        assert_eq!(self.tag, b'Z', "ReadyForQuery, not {self:?}");
        char::from(self.payload[0])
    }
}

impl Wire {
    pub async fn tcp(address: SocketAddr) -> io::Result<Wire> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Wire::over(Box::new(stream), None))
    }

    /// From another address of this machine, such as 127.0.0.2.
    pub async fn tcp_from(local: IpAddr, address: SocketAddr) -> io::Result<Wire> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((local, 0).into())?;
        Ok(Wire::over(Box::new(socket.connect(address).await?), None))
    }

    pub async fn unix(path: &Path) -> io::Result<Wire> {
        Ok(Wire::over(Box::new(UnixStream::connect(path).await?), None))
    }

    /// TLS after an SSLRequest, which must be answered with `S`.
    pub async fn tls(address: SocketAddr, config: Arc<ClientConfig>, sni: &str) -> io::Result<Wire> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(&frontend::ssl_request()).await?;
        match stream.read_u8().await? {
            b'S' => Wire::handshake(stream, config, sni).await,
            other => Err(io::Error::other(format!("SSLRequest answered with {:?}", char::from(other)))),
        }
    }

    /// TLS from the first byte.
    pub async fn direct_tls(address: SocketAddr, config: Arc<ClientConfig>, sni: &str) -> io::Result<Wire> {
        Wire::handshake(TcpStream::connect(address).await?, config, sni).await
    }

    /// TLS on a connection that has said what comes before it.
    pub async fn handshake(stream: TcpStream, config: Arc<ClientConfig>, sni: &str) -> io::Result<Wire> {
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(sni.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        // The development CA signs with ECDSA and SHA-256, so the hash is SHA-256.
        let end_point = certificate.map(|certificate| Sha256::digest(certificate).to_vec());
        Ok(Wire::over(Box::new(stream), end_point))
    }

    fn over(stream: Box<dyn Transport>, end_point: Option<Vec<u8>>) -> Wire {
        Wire {
            stream: BufReader::new(stream),
            deadline: Duration::from_secs(10),
            parameters: BTreeMap::new(),
            greeting: Vec::new(),
            key: None,
            negotiated: None,
            mechanism: None,
            end_point,
        }
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Sends nothing more: the other side reads an end of file.
    pub async fn leave(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// The next byte, before messages begin (the answer to an SSLRequest).
    pub async fn byte(&mut self) -> io::Result<u8> {
        timeout(self.deadline, self.stream.read_u8()).await.expect("a byte within the deadline")
    }

    /// The next message; an error when the connection ends before or within one.
    pub async fn read(&mut self) -> io::Result<Message> {
        self.read_in_time().await.expect("a message within the deadline")
    }

    /// The same; nothing when none comes within the deadline, after which the connection is of no more use.
    pub async fn read_in_time(&mut self) -> Option<io::Result<Message>> {
        timeout(self.deadline, self.read_unbounded()).await.ok()
    }

    async fn read_unbounded(&mut self) -> io::Result<Message> {
        let tag = self.stream.read_u8().await?;
        let length = self.stream.read_u32().await?;
        let length = length.checked_sub(4).ok_or_else(|| io::Error::other("a message shorter than its length"))?;
        let mut payload = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.stream.read_exact(&mut payload).await?;
        let message = Message { tag, payload };
        self.note(&message);
        Ok(message)
    }

    /// Remembers what concerns the whole session.
    fn note(&mut self, message: &Message) {
        let payload = &message.payload;
        match message.tag {
            b'S' => {
                let mut texts = payload.split(|&byte| byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
                self.parameters.insert(texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
            }
            b'K' => self.key = payload.split_first_chunk().map(|(id, key)| (u32::from_be_bytes(*id), key.to_vec())),
            b'v' => {
                let version = payload.first_chunk().map(|version| u32::from_be_bytes(*version)).unwrap_or_default();
                let names = payload[8..].split(|&byte| byte == 0).filter(|name| !name.is_empty());
                let names = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
                self.negotiated = Some((version, names));
            }
            _ => {}
        }
    }

    /// Whether the other side has closed the connection: end of file or reset, within the deadline, without a message.
    pub async fn is_closed(&mut self) -> bool {
        matches!(timeout(self.deadline, self.stream.read_u8()).await, Ok(Err(_)))
    }

    /// Whether the connection stays silent for this long.
    pub async fn is_silent(&mut self, duration: Duration) -> bool {
        timeout(duration, self.stream.read_u8()).await.is_err()
    }

    /// All messages up to and with ReadyForQuery.
    pub async fn read_until_ready(&mut self) -> io::Result<Vec<Message>> {
        let mut messages = Vec::new();
        loop {
            let message = self.read().await?;
            let ready = message.tag == b'Z';
            messages.push(message);
            if ready {
                return Ok(messages);
            }
        }
    }

    /// The next message has to be an ErrorResponse with this SQLSTATE.
    pub async fn expect_error(&mut self, sqlstate: &str) -> ErrorResponse {
        let message = self.read().await.expect("an ErrorResponse before the connection ends");
        assert_eq!(message.tag, b'E', "an ErrorResponse, not {message:?}");
        let error = message.error();
        assert_eq!(error.sqlstate(), sqlstate, "{error:?}");
        error
    }

    /// Sends messages in one write and reads up to and with ReadyForQuery.
    pub async fn exchange(&mut self, messages: &[Vec<u8>]) -> Vec<Message> {
        self.send(&messages.concat()).await.expect("a connection that takes messages");
        self.read_until_ready().await.expect("an answer that ends with ReadyForQuery")
    }

    /// The first column of a simple query's only row.
    pub async fn value(&mut self, sql: &str) -> String {
        let mut rows = self.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        assert_eq!(rows.len(), 1, "{sql}");
        rows.remove(0).remove(0).unwrap_or_default()
    }

    /// Runs a simple query that has to fail; gives the SQLSTATE.
    pub async fn failure(&mut self, sql: &str) -> String {
        let error = self.query(sql).await.expect_err(sql);
        error.sqlstate().to_owned()
    }

    /// Runs a simple query and returns the rows, or the error after which the session was ready again.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, ErrorResponse> {
        self.send(&frontend::query(sql)).await.expect("a connection that takes a query");
        let messages = self.read_until_ready().await.expect("an answer that ends with ReadyForQuery");
        match messages.iter().find(|message| message.tag == b'E') {
            Some(error) => Err(error.error()),
            None => Ok(messages.iter().filter(|message| message.tag == b'D').map(Message::row).collect()),
        }
    }

    /// Logs in with protocol 3.0.
    pub async fn login(&mut self, user: &str, database: &str, password: &str) -> Result<(), ErrorResponse> {
        let parameters = [("user", user), ("database", database)];
        self.login_with(frontend::V3_0, &parameters, password).await
    }

    /// Sends the StartupMessage and answers whatever authentication is asked for (SCRAM, md5, cleartext, none) up to
    /// ReadyForQuery; the error is the one the server sent.
    pub async fn login_with(
        &mut self,
        protocol: u32,
        parameters: &[(&str, &str)],
        password: &str,
    ) -> Result<(), ErrorResponse> {
        let user = parameters.iter().find(|(name, _)| *name == "user").map_or("", |(_, user)| user);
        self.send(&frontend::startup(protocol, parameters)).await.expect("a connection that takes a StartupMessage");
        let mut scram = None;
        self.greeting.clear();
        loop {
            let message = self.read().await.expect("ReadyForQuery or an error before the connection ends");
            if message.tag != b'R' {
                self.greeting.push(message.clone());
            }
            match message.tag {
                b'E' => return Err(message.error()),
                b'Z' => return Ok(()),
                b'R' => self.authenticate(&message.payload, user, password, &mut scram).await,
                _ => {}
            }
        }
    }

    async fn authenticate(&mut self, payload: &[u8], user: &str, password: &str, scram: &mut Option<ScramSha256>) {
        let (code, data) = payload.split_first_chunk().expect("an authentication message has a code");
        let answer = match u32::from_be_bytes(*code) {
            0 => return,
            3 => frontend::password(password),
            5 => {
                let salt = data.try_into().expect("four bytes of salt");
                frontend::password(&md5_hash(user.as_bytes(), password.as_bytes(), salt))
            }
            10 => {
                let (mechanism, exchange) = self.scram(data, password);
                self.mechanism = Some(mechanism);
                let answer = frontend::sasl_initial(mechanism, exchange.message());
                *scram = Some(exchange);
                answer
            }
            11 => {
                let exchange = scram.as_mut().expect("SASL begins with AuthenticationSASL");
                exchange.update(data).expect("a valid server-first-message");
                frontend::sasl_response(exchange.message())
            }
            12 => {
                let exchange = scram.as_mut().expect("SASL begins with AuthenticationSASL");
                return exchange.finish(data).expect("a server that knows the verifier");
            }
            other => panic!("authentication method {other} is not known here"),
        };
        self.send(&answer).await.expect("a connection that takes the answer");
    }

    /// The best mechanism of those offered: PLUS over TLS.
    fn scram(&self, offered: &[u8], password: &str) -> (&'static str, ScramSha256) {
        let plus = offered.split(|&byte| byte == 0).any(|name| name == b"SCRAM-SHA-256-PLUS");
        let (mechanism, binding) = match &self.end_point {
            Some(data) if plus => ("SCRAM-SHA-256-PLUS", ChannelBinding::tls_server_end_point(data.clone())),
            Some(_) => ("SCRAM-SHA-256", ChannelBinding::unrequested()),
            None => ("SCRAM-SHA-256", ChannelBinding::unsupported()),
        };
        (mechanism, ScramSha256::new(password.as_bytes(), binding))
    }
}

/// The types of messages, one character each.
pub fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.tag)).collect()
}

/// The SQLSTATEs of the errors among messages.
pub fn sqlstates(messages: &[Message]) -> Vec<String> {
    messages.iter().filter(|message| message.tag == b'E').map(|message| message.error().sqlstate().to_owned()).collect()
}

/// The first column of the rows among messages.
pub fn values(messages: &[Message]) -> Vec<String> {
    messages.iter().filter(|message| message.tag == b'D').map(|row| row.row().remove(0).unwrap_or_default()).collect()
}

/// Sends a CancelRequest on a connection of its own and waits until it is closed, as libpq does.
pub async fn cancel(address: SocketAddr, (process_id, key): &(u32, Vec<u8>)) -> io::Result<()> {
    let mut wire = Wire::tcp(address).await?;
    wire.send(&frontend::cancel_request(*process_id, key)).await?;
    assert!(wire.is_closed().await, "a CancelRequest gets no answer");
    Ok(())
}
