//! What both sides of SCRAM-SHA-256 share: the keys, the primitives and the attribute syntax (RFC 5802, RFC 7677).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::password;
use super::verifier::ScramVerifier;

pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Longest SASL message that is read, in bytes; PostgreSQL's own bound (`PG_MAX_SASL_MESSAGE_LENGTH`).
pub const MAX_MESSAGE: usize = 1024;

/// Most PBKDF2 iterations that are accepted in a verifier or from an instance.
///
/// 4,096 cost about half a millisecond, so this bound about 0.15 s of one core: above every published advice (OWASP:
/// 600,000), and still not enough for a wrong or hostile peer to stop a worker thread.
pub const MAX_ITERATIONS: u32 = 1_000_000;

/// The gs2 header of a client that binds to the TLS channel.
pub(super) const GS2_TLS_SERVER_END_POINT: &str = "p=tls-server-end-point,,";

pub(super) type Key = Zeroizing<[u8; 32]>;

/// What proves a password without the password: enough for a SCRAM login at a server that has the same verifier.
///
/// Wiped from memory on drop; `Debug` shows no key.
#[derive(Clone)]
pub struct ScramKeys {
    pub(super) salt: Vec<u8>,
    pub(super) iterations: u32,
    pub(super) client_key: Key,
    pub(super) server_key: Key,
}

impl PartialEq for ScramKeys {
    fn eq(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq;
        self.iterations == other.iterations
            && self.salt == other.salt
            && bool::from(self.client_key.ct_eq(&*other.client_key) & self.server_key.ct_eq(&*other.server_key))
    }
}

impl ScramKeys {
    /// Derives the keys of `password`; costs `iterations` rounds of HMAC (about 0.5 ms for 4,096).
    pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let mut salted = Zeroizing::new([0u8; 32]);
        pbkdf2::pbkdf2_hmac::<Sha256>(&password::prepare(password), salt, iterations, &mut *salted);
        Self {
            salt: salt.to_vec(),
            iterations,
            client_key: hmac(&*salted, &[b"Client Key"]),
            server_key: hmac(&*salted, &[b"Server Key"]),
        }
    }

    /// The verifier of the same password; equal to a role's verifier exactly when these keys log the role in.
    pub fn verifier(&self) -> ScramVerifier {
        ScramVerifier::of(self)
    }

    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    pub fn iterations(&self) -> u32 {
        self.iterations
    }
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramKeys").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// HMAC-SHA-256 over the parts one after the other.
pub(super) fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

pub(super) fn sha256(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

/// `a XOR b`: ClientProof from ClientKey and ClientSignature, and back.
pub(super) fn xor(a: &[u8; 32], b: &[u8; 32]) -> Key {
    Zeroizing::new(std::array::from_fn(|i| a[i] ^ b[i]))
}

pub(super) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

pub(super) fn decode_key(text: &str) -> Option<Key> {
    let bytes = Zeroizing::new(decode(text)?);
    Some(Zeroizing::new(bytes.as_slice().try_into().ok()?))
}

/// `N` bytes from the system's random source.
///
/// Panics where the system has none: nothing that follows could be secure.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes).expect("the system's random source works");
    bytes
}

/// Our part of a nonce: 18 random bytes, 24 characters, as PostgreSQL's.
pub(super) fn fresh_nonce() -> String {
    encode(&random::<18>())
}

/// Printable ASCII without the comma (RFC 5802 section 7).
pub(super) fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b',')
}

/// Reads `a=value,b=value,…` from the left.
pub(super) struct Attributes<'a>(Option<&'a str>);

impl<'a> Attributes<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self(Some(text))
    }

    /// The value of the next attribute, if it is called `name`; everything else is a syntax error to the caller.
    pub(super) fn take(&mut self, name: char) -> Option<&'a str> {
        let rest = self.0?;
        let (attribute, rest) = match rest.split_once(',') {
            Some((attribute, rest)) => (attribute, Some(rest)),
            None => (rest, None),
        };
        let value = attribute.strip_prefix(name)?.strip_prefix('=')?;
        self.0 = rest;
        Some(value)
    }

    /// Whether the next attribute is `m`, an extension that the receiver must know or refuse.
    pub(super) fn is_mandatory_extension(&self) -> bool {
        self.0.is_some_and(|rest| rest.starts_with("m="))
    }

    /// Whether all that is left are optional extensions, which are to be ignored.
    pub(super) fn only_optional_extensions(self) -> bool {
        self.0.is_none_or(|rest| {
            rest.split(',').all(|attribute| {
                matches!(attribute.as_bytes(), [name, b'=', ..] if name.is_ascii_alphabetic() && *name != b'm')
            })
        })
    }
}
