//! PostgreSQL's md5 method (manual 55.2.1, `AuthenticationMD5Password`): verifier, challenge and answer.

use std::fmt;

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::verifier::VerifierError;

/// `md5` and the hash of password and role, as in `pg_authid.rolpassword`.
///
/// It is as good as the password towards any server that has the same one, so it is wiped on drop and never printed.
#[derive(Clone)]
pub struct Md5Verifier(Zeroizing<[u8; 32]>);

impl Md5Verifier {
    pub fn from_password(role: &str, password: &[u8]) -> Self {
        Self(hex_digest(&[password, role.as_bytes()]))
    }

    /// Reads `md5` and 32 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, VerifierError> {
        let digits = text.strip_prefix("md5").ok_or(VerifierError::Unknown)?;
        let digits: [u8; 32] = digits.as_bytes().try_into().map_err(|_| VerifierError::Md5)?;
        if !digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(VerifierError::Md5);
        }
        Ok(Self(Zeroizing::new(digits)))
    }

    /// The content of the PasswordMessage (without its closing zero) that answers `salt`.
    pub fn response(&self, salt: [u8; 4]) -> Zeroizing<String> {
        let digits = hex_digest(&[&*self.0, &salt]);
        let digits = std::str::from_utf8(&*digits).expect("hexadecimal digits are ASCII");
        Zeroizing::new(format!("md5{digits}"))
    }

    /// Whether `answer` (the PasswordMessage without its closing zero) answers `salt`; in constant time.
    pub fn check_response(&self, salt: [u8; 4], answer: &[u8]) -> bool {
        self.response(salt).as_bytes().ct_eq(answer).into()
    }

    /// Whether this is the verifier of `password` for `role`; in constant time.
    pub fn check_password(&self, role: &str, password: &[u8]) -> bool {
        *self == Self::from_password(role, password)
    }
}

/// A challenge for `AuthenticationMD5Password`.
pub fn challenge() -> [u8; 4] {
    super::scram::random()
}

impl PartialEq for Md5Verifier {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&*other.0).into()
    }
}

impl Eq for Md5Verifier {}

impl fmt::Debug for Md5Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Verifier(..)")
    }
}

fn hex_digest(parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut md5 = Md5::new();
    for part in parts {
        md5.update(part);
    }
    let digest = md5.finalize();
    let mut digits = Zeroizing::new([0; 32]);
    for (pair, byte) in digits.chunks_exact_mut(2).zip(digest) {
        pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
        pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_postgresql() {
        // CREATE ROLE md5_role PASSWORD 'hidden' with password_encryption = md5 on PostgreSQL 15.
        let stored = "md590aeda1a121a001adb0304df9d0d00f8";
        let verifier = Md5Verifier::parse(stored).unwrap();
        assert_eq!(verifier, Md5Verifier::from_password("md5_role", b"hidden"));
        assert!(verifier.check_password("md5_role", b"hidden"));
        assert!(!verifier.check_password("md5_role", b"Hidden"));
        assert!(!verifier.check_password("other", b"hidden"));
    }

    #[test]
    fn checks_answers() {
        let verifier = Md5Verifier::from_password("u", b"p");
        let answer = verifier.response([1, 2, 3, 4]);
        assert_eq!(answer.len(), 35);
        assert!(verifier.check_response([1, 2, 3, 4], answer.as_bytes()));
        assert!(!verifier.check_response([1, 2, 3, 5], answer.as_bytes()));
        assert!(!verifier.check_response([1, 2, 3, 4], b""));
        assert!(!verifier.check_response([1, 2, 3, 4], &answer.as_bytes()[..34]));
    }

    #[test]
    fn refuses_what_is_no_verifier() {
        for text in
            ["md5", "md5zz", "md5D41D8CD98F00B204E9800998ECF8427E", "md5d41d8cd98f00b204e9800998ecf8427", "d41d"]
        {
            assert!(Md5Verifier::parse(text).is_err(), "{text}");
        }
        assert!(!format!("{:?}", Md5Verifier::from_password("u", b"p")).contains("md5"));
    }
}
