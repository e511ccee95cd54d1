//! `pgtenant health`: asks a running proxy's `/readyz`, for health checks in images that have no curl.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// For the whole exchange.
const DEADLINE: Duration = Duration::from_secs(3);

/// The answer is a line; anything longer is not from us.
const MAX_ANSWER: usize = 8 * 1024;

/// Asks the HTTP endpoint at `address` whether the proxy is ready. An address for all interfaces (`0.0.0.0`, `::`) is
/// asked over loopback.
///
/// # Errors
/// When nobody answers within three seconds, or with the proxy's own reason when it is not ready.
pub fn health(address: SocketAddr) -> anyhow::Result<()> {
    let address = reachable(address);
    let answer = ask(address).with_context(|| format!("no answer from http://{address}/readyz"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.strip_prefix("HTTP/1.").and_then(|line| line.split_whitespace().nth(1));
    match status {
        Some("200") => Ok(()),
        Some(status) => bail!("not ready: {} (HTTP {status} from {address})", body.trim()),
        None => bail!("what listens at {address} does not speak HTTP: is it [http] address?"),
    }
}

fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn ask(address: SocketAddr) -> anyhow::Result<String> {
    let deadline = Instant::now() + DEADLINE;
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "the answer took longer than {} s", DEADLINE.as_secs());
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => break,
            read => answer.extend_from_slice(&piece[..read]),
        }
        ensure!(answer.len() <= MAX_ANSWER, "the answer is longer than {MAX_ANSWER} bytes");
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one connection with `answer`, then keeps it open as long as the peer does where `hold` is set.
    fn listen(answer: &'static [u8], hold: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(answer);
            while hold && stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
        });
        address
    }

    #[test]
    fn an_address_for_all_interfaces_is_asked_over_loopback() {
        assert_eq!(reachable("0.0.0.0:9930".parse().unwrap()).to_string(), "127.0.0.1:9930");
        assert_eq!(reachable("[::]:9930".parse().unwrap()).to_string(), "[::1]:9930");
        assert_eq!(reachable("10.0.0.1:9930".parse().unwrap()).to_string(), "10.0.0.1:9930");
    }

    #[test]
    fn another_service_on_the_port_is_named_as_such() {
        let error = health(listen(b"SSH-2.0-OpenSSH_9.2\r\n", false)).unwrap_err();
        assert!(error.to_string().contains("does not speak HTTP"), "{error}");
    }

    #[test]
    fn a_peer_that_never_ends_its_answer_is_given_up() {
        let start = Instant::now();
        assert!(health(listen(b"HTTP/1.1 200 OK\r\n", true)).is_err());
        assert!(start.elapsed() < DEADLINE * 2);
    }
}
