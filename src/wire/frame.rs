//! Message framing: one type byte, four bytes of length that count themselves, the payload (55.2.2 in the manual).

use thiserror::Error;

/// Bytes before a payload.
pub const HEADER: usize = 5;

/// A message's type and the length of its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub tag: u8,
    /// In bytes, without the length field.
    pub payload: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("invalid message length {0}")]
    Length(i32),
    #[error("message of {length} bytes is longer than the bound of {max}")]
    TooLong { length: usize, max: usize },
}

/// What is wrong with a message that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReadFault {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("unexpected message of type \"{}\"", char::from(*.0))]
    Unexpected(u8),
}

impl Header {
    /// Reads a header from the beginning of `bytes`; none when there are fewer than five.
    ///
    /// # Errors
    /// A length below four, or a payload above `max`.
    #[inline]
    pub fn read(bytes: &[u8], max: usize) -> Result<Option<Header>, FrameError> {
        let Some(&[tag, a, b, c, d]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let length = i32::from_be_bytes([a, b, c, d]);
        if length < 4 {
            return Err(FrameError::Length(length));
        }
        let payload = length as usize - 4;
        if payload > max {
            return Err(FrameError::TooLong { length: payload, max });
        }
        Ok(Some(Header { tag, payload }))
    }
}

/// Splits off a NUL-terminated string; none where the NUL is missing.
#[inline]
pub fn cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_headers_and_refuses_bad_lengths() {
        assert_eq!(Header::read(b"Q\0\0\0", 10), Ok(None));
        assert_eq!(Header::read(b"Q\0\0\0\x04", 10), Ok(Some(Header { tag: b'Q', payload: 0 })));
        assert_eq!(Header::read(b"Q\0\0\0\x03", 10), Err(FrameError::Length(3)));
        assert_eq!(Header::read(b"Q\xff\xff\xff\xff", 10), Err(FrameError::Length(-1)));
        assert_eq!(Header::read(b"Q\0\0\0\x0f", 10), Err(FrameError::TooLong { length: 11, max: 10 }));
    }

    #[test]
    fn splits_c_strings() {
        assert_eq!(cstr(b"ab\0c"), Some((&b"ab"[..], &b"c"[..])));
        assert_eq!(cstr(b"ab"), None);
    }
}
