//! The trace that a query belongs to, from a comment in its text (sqlcommenter; W3C Trace Context, section 3.2).

use crate::wire::tag::frontend;
use crate::wire::{HEADER, Header};

/// The caller's span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    /// The caller records it, and expects that we do.
    pub sampled: bool,
}

/// The text of the request that `received` begins with, as far as it is here: a simple query's, or a Parse's.
pub(super) fn text(received: &[u8]) -> Option<&[u8]> {
    let header = Header::read(received, usize::MAX).ok()??;
    let payload = &received[HEADER.min(received.len())..];
    let payload = &payload[..header.payload.min(payload.len())];
    let rest = match header.tag {
        frontend::QUERY => payload,
        frontend::PARSE => &payload[memchr::memchr(0, payload)? + 1..],
        _ => return None,
    };
    Some(&rest[..memchr::memchr(0, rest).unwrap_or(rest.len())])
}

/// From the comment at the beginning or at the end of `sql`.
pub(super) fn parent(sql: &[u8]) -> Option<Parent> {
    const KEY: &[u8] = b"traceparent='";
    let of = |comment: &[u8]| {
        let at = memchr::memmem::find(comment, KEY)? + KEY.len();
        read(comment.get(at..at + 55)?).filter(|_| comment.get(at + 55) == Some(&b'\''))
    };
    let sql = sql.trim_ascii();
    let end = sql.iter().rposition(|byte| !byte.is_ascii_whitespace() && *byte != b';').map_or(0, |last| last + 1);
    let trailing = sql[..end].strip_suffix(b"*/").and_then(|before| {
        let begin = memchr::memmem::rfind(before, b"/*")?;
        of(&before[begin..])
    });
    trailing.or_else(|| {
        let rest = sql.strip_prefix(b"/*")?;
        of(&rest[..memchr::memmem::find(rest, b"*/")?])
    })
}

/// `00-<trace>-<span>-<flags>`, in lower-case hexadecimal.
fn read(text: &[u8]) -> Option<Parent> {
    let text = text.strip_prefix(b"00-").filter(|rest| rest.len() == 52 && rest[32] == b'-' && rest[49] == b'-')?;
    let (mut trace, mut span, mut flags) = ([0; 16], [0; 8], [0; 1]);
    decode(&text[..32], &mut trace)?;
    decode(&text[33..49], &mut span)?;
    decode(&text[50..], &mut flags)?;
    (trace != [0; 16] && span != [0; 8]).then_some(Parent { trace, span, sampled: flags[0] & 1 == 1 })
}

fn decode(text: &[u8], out: &mut [u8]) -> Option<()> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    for (pair, byte) in text.chunks_exact(2).zip(out) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_parent_is_found_in_a_leading_or_trailing_comment() {
        let good = [
            format!("SELECT 1 /*action='x',traceparent='{VALUE}'*/"),
            format!("SELECT 1 /* {{}} */ /*traceparent='{VALUE}',tracestate='a%3D1'*/ ; \n"),
            format!("/*traceparent='{VALUE}'*/ SELECT 1"),
            format!("/*traceparent='{VALUE}'*/ SELECT 1 -- and"),
        ];
        for sql in &good {
            let parent = parent(sql.as_bytes()).unwrap_or_else(|| panic!("{sql}"));
            assert_eq!((parent.trace[0], parent.span[7], parent.sampled), (0x4b, 0xb7, true), "{sql}");
        }
        let unsampled = format!("SELECT 1/*traceparent='{}00'*/", &VALUE[..53]);
        assert!(!parent(unsampled.as_bytes()).unwrap().sampled);
    }

    #[test]
    fn what_is_no_parent_is_none() {
        let bad = [
            "SELECT 1".to_owned(),
            String::new(),
            "*/".to_owned(),
            "/*".to_owned(),
            "/*/".to_owned(),
            format!("SELECT 'traceparent=''{VALUE}'''"),
            format!("SELECT 1 /*traceparent='{VALUE}"),
            format!("SELECT 1 /*traceparent='{}'*/", &VALUE[..54]),
            format!("SELECT 1 /*traceparent='{VALUE}0'*/"),
            format!("SELECT 1 /*traceparent='ff{}'*/", &VALUE[2..]),
            format!("SELECT 1 /*traceparent='{}'*/", VALUE.to_uppercase()),
            format!("SELECT 1 /*traceparent='00-{}-00f067aa0ba902b7-01'*/", "0".repeat(32)),
            format!("SELECT 1 /*traceparent='{}'*/", VALUE.replace('-', "_")),
        ];
        for sql in &bad {
            assert_eq!(parent(sql.as_bytes()), None, "{sql}");
        }
    }

    #[test]
    fn the_text_of_a_request_is_found_as_far_as_it_is_there() {
        let message = |tag: u8, payload: &[u8]| {
            let length = u32::try_from(payload.len() + 4).unwrap().to_be_bytes();
            [&[tag][..], &length, payload].concat()
        };
        assert_eq!(text(&message(b'Q', b"SELECT 1\0")), Some(&b"SELECT 1"[..]));
        assert_eq!(text(&message(b'P', b"s1\0SELECT 2\0\0\0")), Some(&b"SELECT 2"[..]));
        assert_eq!(text(&message(b'Q', b"SELECT 1\0")[..9]), Some(&b"SELE"[..]));
        assert_eq!(text(&message(b'B', b"\0\0")), None);
        assert_eq!(text(b"Q\0"), None);
        assert_eq!(text(b""), None);
    }
}
