//! `pgtenant health`: asks a running proxy's `/readyz`, for health checks in images that have no curl.

use anyhow::bail;

use super::ask::Endpoint;

/// The answer is a line; anything longer is not from us.
const MAX_ANSWER: usize = 8 * 1024;

/// Asks whether the proxy is ready.
///
/// # Errors
/// When nobody answers within three seconds, or with the proxy's own reason when it is not ready.
pub fn health(endpoint: &Endpoint) -> anyhow::Result<()> {
    let answer = endpoint.get("/readyz", MAX_ANSWER)?;
    if answer.status != 200 {
        bail!("not ready: {} (HTTP {} from {})", answer.body.trim(), answer.status, endpoint.url);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};
    use std::time::{Duration, Instant};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(3);

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
    fn another_service_on_the_port_is_named_as_such() {
        let error = health(&Endpoint::at(listen(b"SSH-2.0-OpenSSH_9.2\r\n", false))).unwrap_err();
        assert!(error.to_string().contains("does not speak HTTP"), "{error}");
    }

    #[test]
    fn a_peer_that_never_ends_its_answer_is_given_up() {
        let start = Instant::now();
        assert!(health(&Endpoint::at(listen(b"HTTP/1.1 200 OK\r\n", true))).is_err());
        assert!(start.elapsed() < DEADLINE * 2);
    }
}
