//! Builders for the messages we send. Handshake messages are encoded by pgwire; the few that are spliced into the data
//! path are written by hand.

use bytes::{BufMut, Bytes, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::response::{ReadyForQuery, TransactionStatus};
use pgwire::messages::startup::{Authentication, BackendKeyData, NegotiateProtocolVersion, SecretKey, SslRequest};

use super::startup::{Protocol, StartupParameters};
use super::tag::{backend, frontend};

/// PostgreSQL's MAX_STARTUP_PACKET_LENGTH, in bytes.
const MAX_STARTUP: usize = 10_000;

/// Everything that goes through here is short: pgwire refuses only what breaks its length bounds.
fn put<M: Message>(out: &mut BytesMut, message: &M) {
    message.encode(out).expect("a handshake message of ours stays within pgwire's bounds");
}

pub fn authentication_ok(out: &mut BytesMut) {
    put(out, &Authentication::Ok);
}

pub fn authentication_cleartext(out: &mut BytesMut) {
    put(out, &Authentication::CleartextPassword);
}

pub fn authentication_md5(out: &mut BytesMut, salt: [u8; 4]) {
    put(out, &Authentication::MD5Password(salt.to_vec()));
}

pub fn authentication_sasl(out: &mut BytesMut, mechanisms: &[&str]) {
    put(out, &Authentication::SASL(mechanisms.iter().map(|name| (*name).to_owned()).collect()));
}

pub fn authentication_sasl_continue(out: &mut BytesMut, data: Vec<u8>) {
    put(out, &Authentication::SASLContinue(Bytes::from(data)));
}

pub fn authentication_sasl_final(out: &mut BytesMut, data: Vec<u8>) {
    put(out, &Authentication::SASLFinal(Bytes::from(data)));
}

/// `secret` has 4 bytes in protocol 3.0 and up to 256 in 3.2.
pub fn backend_key_data(out: &mut BytesMut, pid: i32, secret: &[u8]) {
    put(out, &BackendKeyData::new(pid, SecretKey::Bytes(Bytes::copy_from_slice(secret))));
}

pub fn negotiate_protocol(out: &mut BytesMut, protocol: Protocol, unknown_options: &[String]) {
    put(out, &NegotiateProtocolVersion::new(protocol.number(), unknown_options.to_vec()));
}

pub fn parameter_status(out: &mut impl BufMut, name: &[u8], value: &[u8]) {
    framed(out, backend::PARAMETER_STATUS, &[name, b"\0", value, b"\0"]);
}

pub fn ready_idle(out: &mut BytesMut) {
    put(out, &ReadyForQuery::new(TransactionStatus::Idle));
}

pub fn ssl_request(out: &mut BytesMut) {
    put(out, &SslRequest::new());
}

/// A NoticeResponse of ours (00000, successful completion).
pub fn notice(out: &mut impl BufMut, message: &str, detail: &str) {
    let text = |text: &str| text.replace('\0', " ");
    let (message, detail) = (text(message), text(detail));
    let parts = [&b"SNOTICE\0VNOTICE\0C00000\0M"[..], message.as_bytes(), b"\0D", detail.as_bytes(), b"\0\0"];
    framed(out, backend::NOTICE, &parts);
}

/// A StartupMessage of protocol 3.0 towards a backend; written by hand, since pgwire sorts the parameters. None when it
/// is longer than PostgreSQL takes.
pub fn startup(user: &str, database: &str, parameters: &StartupParameters) -> Option<BytesMut> {
    let pairs = [b"user\0", user.as_bytes(), b"\0database\0", database.as_bytes(), b"\0", parameters.encoded(), b"\0"];
    let length = 8 + pairs.iter().map(|part| part.len()).sum::<usize>();
    if length > MAX_STARTUP {
        return None;
    }
    let mut out = BytesMut::with_capacity(length);
    out.put_u32(length as u32);
    out.put_u32(Protocol::V3_0.number().cast_unsigned());
    for part in pairs {
        out.put_slice(part);
    }
    Some(out)
}

/// CancelRequest towards a backend.
pub fn cancel_request(out: &mut BytesMut, pid: i32, secret: &[u8]) {
    out.put_u32(12 + secret.len() as u32);
    out.put_u32(80_877_102);
    out.put_i32(pid);
    out.put_slice(secret);
}

/// PasswordMessage: cleartext or md5.
pub fn password(out: &mut BytesMut, text: &[u8]) {
    framed(out, frontend::PASSWORD, &[text, b"\0"]);
}

pub fn sasl_initial(out: &mut BytesMut, mechanism: &str, data: &[u8]) {
    let length = (data.len() as u32).to_be_bytes();
    framed(out, frontend::PASSWORD, &[mechanism.as_bytes(), b"\0", &length, data]);
}

pub fn sasl_response(out: &mut BytesMut, data: &[u8]) {
    framed(out, frontend::PASSWORD, &[data]);
}

pub fn query(out: &mut impl BufMut, sql: &str) {
    framed(out, frontend::QUERY, &[sql.as_bytes(), b"\0"]);
}

pub fn terminate(out: &mut impl BufMut) {
    framed(out, frontend::TERMINATE, &[]);
}

/// Parse of `name` with `rest`: query text, NUL, and the parameter types as the client sent them.
pub fn parse(out: &mut impl BufMut, name: &[u8], rest: &[u8]) {
    framed(out, frontend::PARSE, &[name, b"\0", rest]);
}

pub fn describe_statement(out: &mut impl BufMut, name: &[u8]) {
    framed(out, frontend::DESCRIBE, &[b"S", name, b"\0"]);
}

pub fn close_statement(out: &mut impl BufMut, name: &[u8]) {
    framed(out, frontend::CLOSE, &[b"S", name, b"\0"]);
}

/// One message from the parts of its payload.
pub fn framed(out: &mut impl BufMut, tag: u8, parts: &[&[u8]]) {
    let payload: usize = parts.iter().map(|part| part.len()).sum();
    out.put_u8(tag);
    out.put_u32(payload as u32 + 4);
    for part in parts {
        out.put_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_as_the_manual_says() {
        let mut out = BytesMut::new();
        query(&mut out, "SELECT 1");
        assert_eq!(&out[..], b"Q\0\0\0\x0dSELECT 1\0");
        out.clear();
        ready_idle(&mut out);
        assert_eq!(&out[..], b"Z\0\0\0\x05I");
        out.clear();
        backend_key_data(&mut out, 5, &[9; 32]);
        assert_eq!((out[0], out.len()), (b'K', 1 + 4 + 4 + 32));
        out.clear();
        cancel_request(&mut out, 1, &[0, 0, 0, 2]);
        assert_eq!(&out[..], &[0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2]);
    }
}
