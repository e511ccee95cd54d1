//! Asks a running proxy over HTTP, for commands in images that have no curl.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::config::Secret;
use crate::net::{crypto_provider, pem};

/// For the whole exchange.
const DEADLINE: Duration = Duration::from_secs(3);

/// Where a proxy's HTTP endpoint is, and what opens it.
pub struct Endpoint {
    /// As people write it, for messages.
    pub url: String,
    authority: String,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    token: Option<Secret>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// The files for HTTPS.
#[derive(Debug, Default, Clone, Copy)]
pub struct Files<'a> {
    /// CA certificates (PEM) that vouch for the proxy's.
    pub ca: Option<&'a Path>,
    /// Our own certificate and its key.
    pub certificate: Option<(&'a Path, &'a Path)>,
}

impl Endpoint {
    /// Plain HTTP. An address for all interfaces (`0.0.0.0`, `::`) is asked over loopback.
    pub fn at(address: SocketAddr) -> Self {
        let authority = reachable(address).to_string();
        Endpoint { url: format!("http://{authority}"), authority, tls: None, token: None }
    }

    /// The same with what opens its API.
    pub fn with_token(self, token: Option<Secret>) -> Self {
        Endpoint { token, ..self }
    }

    /// `http://host:port` or `https://host:port`.
    ///
    /// # Errors
    /// What is wrong with the URL or a file.
    pub fn new(url: &str, files: Files<'_>, token: Option<Secret>) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/');
        let (scheme, authority) = url.split_once("://").with_context(|| format!("{url} is no URL: {EXAMPLE}"))?;
        ensure!(!authority.is_empty() && !authority.contains('/'), "{url} has a path: {EXAMPLE}");
        let authority = match authority.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()) {
            Some(_) => authority.to_owned(),
            None => format!("{authority}:9930"),
        };
        let tls = match scheme {
            "http" => None,
            "https" => Some(tls(&authority, files)?),
            _ => bail!("{url} is neither http nor https"),
        };
        Ok(Endpoint { url: url.to_owned(), authority, tls, token })
    }

    /// One GET, on a connection of its own. The body may have `max` bytes.
    ///
    /// # Errors
    /// Nobody answers within three seconds, or not in HTTP.
    pub fn get(&self, path: &str, max: usize) -> anyhow::Result<Answer> {
        self.ask("GET", path, max)
    }

    /// One POST without a body, likewise.
    ///
    /// # Errors
    /// As [`Endpoint::get`].
    pub fn post(&self, path: &str, max: usize) -> anyhow::Result<Answer> {
        self.ask("POST", path, max)
    }

    fn ask(&self, method: &str, path: &str, max: usize) -> anyhow::Result<Answer> {
        let answer = self.exchange(method, path, max).with_context(|| format!("no answer from {}{path}", self.url))?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.strip_prefix("HTTP/1.").and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        match status {
            Some(status) => Ok(Answer { status, body: body.to_owned() }),
            None => bail!("what listens at {} does not speak HTTP: is it [http] address?", self.url),
        }
    }

    fn exchange(&self, method: &str, path: &str, max: usize) -> anyhow::Result<Vec<u8>> {
        let deadline = Instant::now() + DEADLINE;
        let address = self.authority.to_socket_addrs()?.next().context("the name has no address")?;
        let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let sign = self
            .token
            .as_ref()
            .map_or_else(String::new, |token| format!("Authorization: Bearer {}\r\n", token.expose()));
        // 1.0: the answer comes in one piece, and its end is the connection's.
        let request =
            format!("{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Length: 0\r\n{sign}\r\n", self.authority);
        match &self.tls {
            None => read_all(stream, |stream| stream, &request, max, deadline),
            Some((config, name)) => {
                let connection = ClientConnection::new(config.clone(), name.clone())?;
                read_all(StreamOwned::new(connection, stream), |stream| &stream.sock, &request, max, deadline)
            }
        }
    }
}

const EXAMPLE: &str = "write e.g. http://127.0.0.1:9930";
/// Of an answer's head.
const MAX_HEAD: usize = 8 * 1024;

fn read_all<S: Read + Write>(
    mut stream: S,
    socket: impl Fn(&S) -> &TcpStream,
    request: &str,
    max: usize,
    deadline: Instant,
) -> anyhow::Result<Vec<u8>> {
    socket(&stream).set_read_timeout(Some(DEADLINE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 16 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "the answer took longer than {} s", DEADLINE.as_secs());
        socket(&stream).set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => return Ok(answer),
            read => answer.extend_from_slice(&piece[..read]),
        }
        ensure!(answer.len() <= max + MAX_HEAD, "the answer is longer than {max} bytes");
    }
}

fn tls(authority: &str, files: Files<'_>) -> anyhow::Result<(Arc<ClientConfig>, ServerName<'static>)> {
    let ca = files.ca.context("https needs the CA that vouches for the proxy: name its PEM file with --ca")?;
    let (roots, _) = pem::trust_anchors(ca)?;
    let builder = ClientConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match files.certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            builder.with_client_auth_cert(pem::certificates(certificate)?, pem::private_key(key)?)?
        }
    };
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
    Ok((Arc::new(config), ServerName::try_from(host.to_owned())?))
}

fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_all_interfaces_is_asked_over_loopback() {
        let url = |address: &str| Endpoint::at(address.parse().unwrap()).url;
        assert_eq!(url("0.0.0.0:9930"), "http://127.0.0.1:9930");
        assert_eq!(url("[::]:9930"), "http://[::1]:9930");
        assert_eq!(url("10.0.0.1:9930"), "http://10.0.0.1:9930");
    }

    #[test]
    fn urls_are_read_as_people_write_them() {
        let new = |url| Endpoint::new(url, Files::default(), None);
        assert_eq!(new("http://proxy.internal/").unwrap().authority, "proxy.internal:9930");
        assert_eq!(new("http://[::1]:1234").unwrap().authority, "[::1]:1234");
        for (url, reason) in [
            ("127.0.0.1:9930", "is no URL"),
            ("http://x/metrics", "has a path"),
            ("ftp://x", "neither http nor https"),
            ("https://x", "--ca"),
        ] {
            let error = new(url).err().unwrap().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}
