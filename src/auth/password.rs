//! Prepares a password for SCRAM as PostgreSQL does: SASLprep where it applies, the bytes as they are where not.

use std::borrow::Cow;

use stringprep::tables;
use zeroize::Zeroizing;

/// The bytes that go into PBKDF2 for `password`.
///
/// RFC 4013 would have a password refused that is not UTF-8 or holds prohibited characters; PostgreSQL takes its raw
/// bytes instead (`src/common/saslprep.c`, manual 55.3.1), and so both sides here must as well.
pub fn prepare(password: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(saslprep(password).unwrap_or_else(|| password.to_vec()))
}

fn saslprep(password: &[u8]) -> Option<Vec<u8>> {
    if password.is_ascii() {
        return None;
    }
    let text = std::str::from_utf8(password).ok()?;
    // PostgreSQL looks for unassigned and prohibited characters before it normalizes, the crate afterwards; some
    // (U+0340, U+0341) are gone by then.
    if text.chars().any(refused_before_normalization) {
        return None;
    }
    match stringprep::saslprep(text).ok()? {
        Cow::Owned(prepared) if !prepared.is_empty() => Some(prepared.into_bytes()),
        _ => None,
    }
}

fn refused_before_normalization(c: char) -> bool {
    !tables::commonly_mapped_to_nothing(c)
        && (tables::unassigned_code_point(c) || tables::change_display_properties_or_deprecated(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_postgresql() {
        for (password, prepared) in [
            (&b"pencil"[..], &b"pencil"[..]),
            ("I\u{ad}X".as_bytes(), b"IX"),                 // mapped to nothing
            ("\u{aa}".as_bytes(), b"a"),                    // NFKC
            ("a\u{a0}b".as_bytes(), b"a b"),                // a space that is not ASCII's
            ("\u{fb01}x".as_bytes(), b"fix"),               // ligature
            ("\u{ad}".as_bytes(), "\u{ad}".as_bytes()),     // nothing would be left: raw
            ("\u{627}1".as_bytes(), "\u{627}1".as_bytes()), // bidirectional rule broken: raw
            (b"\x07bell", b"\x07bell"),                     // ASCII is never touched
            (b"\xff\xfe", b"\xff\xfe"),                     // not UTF-8: raw
            (
                "\u{fb01}\u{1f600}".as_bytes(), // unassigned in Unicode 3.2: raw, the ligature stays
                "\u{fb01}\u{1f600}".as_bytes(),
            ),
            ("a\u{340}".as_bytes(), "a\u{340}".as_bytes()), // prohibited before normalization only
        ] {
            assert_eq!(prepare(password).as_slice(), prepared, "{password:?}");
        }
    }
}
