//! What opens a connection: SSLRequest, GSSENCRequest, CancelRequest or StartupMessage (PostgreSQL manual, 55.7).

use std::collections::BTreeMap;

use bytes::BytesMut;
use pgwire::messages::startup::Startup;
use pgwire::messages::{DecodeContext, Message};
use thiserror::Error;

use super::frame::cstr;
use super::options::StartupOptions;

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// Minor versions of protocol 3: what decides here is whether cancel keys are longer than four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Protocol {
    pub minor: u16,
}

impl Protocol {
    pub const V3_0: Protocol = Protocol { minor: 0 };
    /// The newest that we speak.
    pub const V3_2: Protocol = Protocol { minor: 2 };

    /// The version as NegotiateProtocolVersion carries it: major in the high half.
    pub fn number(self) -> i32 {
        (3 << 16) | i32::from(self.minor)
    }

    /// Bytes of the cancel key's secret part.
    pub fn cancel_key_length(self) -> usize {
        if self >= Protocol::V3_2 { 32 } else { 4 }
    }
}

/// The first message of a connection, or of one after its encryption was settled.
#[derive(Debug, PartialEq, Eq)]
pub enum Opening {
    Ssl,
    Gss,
    Cancel { pid: i32, secret: Vec<u8> },
    Startup(StartupMessage),
}

/// A StartupMessage, with what concerns the protocol itself sorted out.
#[derive(Debug, PartialEq, Eq)]
pub struct StartupMessage {
    /// What will be spoken: the client's wish, or the newest we know.
    pub protocol: Protocol,
    /// The client asked for a newer minor version or for `_pq_.` options: NegotiateProtocolVersion is due.
    pub negotiate: bool,
    /// `_pq_.` options; we know none.
    pub unknown_options: Vec<String>,
    pub parameters: BTreeMap<String, String>,
    /// The same as sent: names and values in the client's order, `options` among them.
    pub sent: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The parameters of a StartupMessage for a backend that is one client's own: what the client sent, but for who it is
/// and what names its tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct StartupParameters {
    /// Names and values, each with its NUL, in the client's order.
    encoded: Vec<u8>,
    /// It asks for replication.
    walsender: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StartupError {
    #[error("invalid length of startup packet")]
    Length,
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    #[error("unsupported frontend protocol {0}.{1}: server supports 3.0 to 3.2")]
    Version(u16, u16),
    #[error("invalid cancel request")]
    Cancel,
}

impl Opening {
    /// The message's whole length from its first four bytes.
    ///
    /// # Errors
    /// Fewer than eight bytes, or more than `max`.
    pub fn length(first: [u8; 4], max: u32) -> Result<usize, StartupError> {
        let length = u32::from_be_bytes(first);
        if !(8..=max).contains(&length) {
            return Err(StartupError::Length);
        }
        Ok(length as usize)
    }

    /// Parses one whole message, length field included.
    ///
    /// # Errors
    /// See [`StartupError`].
    pub fn parse(frame: &[u8]) -> Result<Opening, StartupError> {
        let code = frame.get(4..8).and_then(|code| code.first_chunk::<4>()).ok_or(StartupError::Length)?;
        match u32::from_be_bytes(*code) {
            SSL_REQUEST => Ok(Opening::Ssl),
            GSS_REQUEST => Ok(Opening::Gss),
            CANCEL_REQUEST => Self::cancel(&frame[8..]),
            _ => StartupMessage::parse(frame).map(Opening::Startup),
        }
    }

    /// 3.0 has a secret of four bytes, 3.2 one of up to 256.
    fn cancel(payload: &[u8]) -> Result<Opening, StartupError> {
        let (pid, secret) = payload.split_first_chunk::<4>().ok_or(StartupError::Cancel)?;
        if !(4..=256).contains(&secret.len()) {
            return Err(StartupError::Cancel);
        }
        Ok(Opening::Cancel { pid: i32::from_be_bytes(*pid), secret: secret.to_vec() })
    }
}

impl StartupMessage {
    fn parse(frame: &[u8]) -> Result<StartupMessage, StartupError> {
        let (major, minor) = (u16::from_be_bytes([frame[4], frame[5]]), u16::from_be_bytes([frame[6], frame[7]]));
        if major != 3 {
            return Err(StartupError::Version(major, minor));
        }
        // pgwire takes a packet without its terminator, and one with rubbish behind it: PostgreSQL takes neither.
        let mut sent = pairs(&frame[8..]).ok_or(StartupError::Layout)?;
        let startup = Startup::decode(&mut BytesMut::from(frame), &DecodeContext::default())
            .map_err(|_| StartupError::Layout)?
            .ok_or(StartupError::Layout)?;
        let mut parameters = startup.parameters;
        let unknown_options: Vec<String> =
            parameters.keys().filter(|name| name.starts_with("_pq_.")).cloned().collect();
        parameters.retain(|name, _| !name.starts_with("_pq_."));
        sent.retain(|(name, _)| !name.starts_with(b"_pq_."));
        let protocol = Protocol { minor }.min(Protocol::V3_2);
        Ok(StartupMessage {
            protocol,
            negotiate: protocol.minor != minor || !unknown_options.is_empty(),
            unknown_options,
            parameters,
            sent,
        })
    }

    /// What a backend gets that is this client's own; `options` are those that are left when the tenant is taken out.
    pub fn for_backend(&self, options: &StartupOptions, walsender: bool) -> StartupParameters {
        let mut encoded = Vec::new();
        let text = options.text();
        let last_options = self.sent.iter().rposition(|(name, _)| name == b"options");
        for (at, (name, value)) in self.sent.iter().enumerate() {
            let value = match &name[..] {
                b"user" | b"database" => continue,
                // PostgreSQL takes the last one.
                b"options" if last_options != Some(at) || text.is_empty() => continue,
                b"options" => text.as_bytes(),
                _ => value,
            };
            for part in [&name[..], b"\0", value, b"\0"] {
                encoded.extend_from_slice(part);
            }
        }
        StartupParameters { encoded, walsender }
    }
}

impl StartupParameters {
    /// Names and values, each with its NUL.
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// The backend will be a walsender.
    pub fn is_walsender(&self) -> bool {
        self.walsender
    }
}

/// Names and values, which end with an empty name and with nothing behind it.
fn pairs(mut bytes: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut pairs = Vec::new();
    loop {
        let (name, rest) = cstr(bytes)?;
        if name.is_empty() {
            return rest.is_empty().then_some(pairs);
        }
        let (value, rest) = cstr(rest)?;
        pairs.push((name.to_vec(), value.to_vec()));
        bytes = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn startup(minor: u16, body: &[u8]) -> Vec<u8> {
        let mut frame = ((8 + body.len()) as u32).to_be_bytes().to_vec();
        frame.extend([0, 3]);
        frame.extend(minor.to_be_bytes());
        frame.extend(body);
        frame
    }

    fn parsed(minor: u16, body: &[u8]) -> Result<StartupMessage, StartupError> {
        match Opening::parse(&startup(minor, body))? {
            Opening::Startup(message) => Ok(message),
            other => panic!("not a startup: {other:?}"),
        }
    }

    #[test]
    fn reads_parameters() {
        let message = parsed(0, b"user\0app\0database\0db\0\0").unwrap();
        assert_eq!(message.parameters["user"], "app");
        assert_eq!(message.parameters["database"], "db");
        assert!(!message.negotiate);
        assert_eq!(message.protocol.cancel_key_length(), 4);
    }

    #[test]
    fn a_backend_of_ones_own_gets_what_was_sent() {
        let body = b"options\0-c a=1\0user\0u\0TimeZone\0UTC\0_pq_.x\0y\0timezone\0\xff\0database\0d\0options\0-e -ctenant=t\0\0";
        let message = parsed(0, body).unwrap();
        let mut options = StartupOptions::parse(&message.parameters["options"]);
        assert_eq!(options.take("tenant").as_deref(), Some("t"));
        let parameters = message.for_backend(&options, false);
        assert_eq!(parameters.encoded(), b"TimeZone\0UTC\0timezone\0\xff\0options\0-e\0");
        let message = parsed(0, b"user\0u\0options\0-ctenant=t\0\0").unwrap();
        assert_eq!(message.for_backend(&StartupOptions::default(), false), StartupParameters::default());
    }

    #[test]
    fn newer_versions_and_unknown_options_are_negotiated() {
        let newer = parsed(9999, b"user\0a\0\0").unwrap();
        assert_eq!((newer.protocol, newer.negotiate), (Protocol::V3_2, true));
        assert_eq!(newer.protocol.number(), 196_610);
        let option = parsed(0, b"_pq_.x\0on\0user\0a\0\0").unwrap();
        assert_eq!((option.protocol, option.negotiate), (Protocol::V3_0, true));
        assert_eq!(option.unknown_options, ["_pq_.x"]);
        assert!(!option.parameters.contains_key("_pq_.x"));
        // 3.1 was never released; PostgreSQL 18 goes on with it as asked, and with short keys.
        let between = parsed(1, b"user\0a\0\0").unwrap();
        assert_eq!((between.negotiate, between.protocol.cancel_key_length()), (false, 4));
        assert_eq!(parsed(2, b"user\0a\0\0").unwrap().protocol.cancel_key_length(), 32);
    }

    #[test]
    fn bad_packets_are_refused() {
        assert_eq!(parsed(0, b"user\0app"), Err(StartupError::Layout));
        assert_eq!(parsed(0, b"user\0app\0"), Err(StartupError::Layout));
        assert_eq!(parsed(0, b"user\0\0"), Err(StartupError::Layout));
        assert_eq!(parsed(0, b""), Err(StartupError::Layout));
        assert_eq!(parsed(0, b"user\0app\0\0rubbish\0"), Err(StartupError::Layout));
        assert_eq!(Opening::parse(&[0, 0, 0, 8, 0, 2, 0, 0]), Err(StartupError::Version(2, 0)));
        assert_eq!(Opening::parse(&[0, 0, 0, 4]), Err(StartupError::Length));
        assert_eq!(Opening::length([0, 0, 0, 7], 10_000), Err(StartupError::Length));
        assert_eq!(Opening::length([0xff; 4], 10_000), Err(StartupError::Length));
        assert_eq!(Opening::length([0; 4], 10_000), Err(StartupError::Length));
        assert_eq!(Opening::length([0, 0, 0x27, 0x10], 10_000), Ok(10_000));
    }

    #[test]
    fn requests_are_told_apart() {
        let with_code = |code: u32, rest: &[u8]| {
            let mut frame = ((8 + rest.len()) as u32).to_be_bytes().to_vec();
            frame.extend(code.to_be_bytes());
            frame.extend(rest);
            Opening::parse(&frame)
        };
        assert_eq!(with_code(SSL_REQUEST, b""), Ok(Opening::Ssl));
        assert_eq!(with_code(GSS_REQUEST, b""), Ok(Opening::Gss));
        assert_eq!(
            with_code(CANCEL_REQUEST, &[0, 0, 0, 7, 1, 2, 3, 4]),
            Ok(Opening::Cancel { pid: 7, secret: vec![1, 2, 3, 4] })
        );
        assert_eq!(with_code(CANCEL_REQUEST, &[0, 0, 0, 7, 1]), Err(StartupError::Cancel));
        assert_eq!(with_code(CANCEL_REQUEST, &[0; 300]), Err(StartupError::Cancel));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Opening::parse(&bytes);
            let _ = parsed(0, &bytes);
        }
    }
}
