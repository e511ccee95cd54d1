//! The client's side of a SCRAM login, towards instances: with a password, or with the keys that our client proved.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::scram::{
    Attributes, GS2_TLS_SERVER_END_POINT, MAX_ITERATIONS, MAX_MESSAGE, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramKeys,
    decode, decode_key, encode, fresh_nonce, hmac, is_nonce, sha256, xor,
};

/// With what a backend logs in.
pub enum ClientSecret {
    Password(Zeroizing<Vec<u8>>),
    /// The keys of a client's own login: they fit only an instance that has the same verifier.
    Keys(ScramKeys),
}

impl ClientSecret {
    pub fn password(password: impl AsRef<[u8]>) -> Self {
        Self::Password(Zeroizing::new(password.as_ref().to_vec()))
    }
}

/// Why a SCRAM login at an instance failed. Meant for the log; the instance's own words are not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramClientError {
    #[error("malformed SCRAM message from the instance: {0}")]
    Malformed(&'static str),
    #[error(
        "the instance asks for {0} SCRAM iterations; at most {MAX_ITERATIONS} are done: lower its scram_iterations and set the password again"
    )]
    Iterations(u64),
    #[error(
        "the role's verifier in the tenant's record is not the instance's (other salt or iterations): copy rolpassword from pg_authid into the record, or use auth_query"
    )]
    OtherVerifier,
    #[error(
        "the instance refused the SCRAM login: wrong password, or the verifier in the tenant's record is not the instance's"
    )]
    Refused,
    #[error("the instance did not prove that it knows the role's verifier: is it the right one?")]
    ServerSignature,
}

/// A login before its first message.
pub struct ScramClient {
    secret: ClientSecret,
    mechanism: &'static str,
    binding_input: Vec<u8>,
    nonce: String,
}

/// A login whose client-final-message is on its way.
pub struct ClientFinalSent {
    server_signature: Zeroizing<[u8; 32]>,
    keys: ScramKeys,
}

impl ScramClient {
    /// `binding` is the `tls-server-end-point` hash of the instance's certificate: none without TLS, or where that
    /// has none. `plus_offered` says whether the instance listed SCRAM-SHA-256-PLUS.
    pub fn new(secret: ClientSecret, binding: Option<Vec<u8>>, plus_offered: bool) -> Self {
        Self::with_nonce(secret, binding, plus_offered, fresh_nonce())
    }

    fn with_nonce(secret: ClientSecret, binding: Option<Vec<u8>>, plus_offered: bool, nonce: String) -> Self {
        let (mechanism, binding_input) = match binding {
            Some(hash) if plus_offered => (SCRAM_SHA_256_PLUS, [GS2_TLS_SERVER_END_POINT.as_bytes(), &hash].concat()),
            // Says that we could: an instance that did offer it sees that somebody in between took it out.
            Some(_) => (SCRAM_SHA_256, b"y,,".to_vec()),
            None => (SCRAM_SHA_256, b"n,,".to_vec()),
        };
        Self { secret, mechanism, binding_input, nonce }
    }

    /// The mechanism and the client-first-message for the SASLInitialResponse. The user stays empty: PostgreSQL takes
    /// the one of the StartupMessage.
    pub fn first(&self) -> (&'static str, Vec<u8>) {
        let gs2_header = match self.mechanism {
            SCRAM_SHA_256_PLUS => GS2_TLS_SERVER_END_POINT.as_bytes(),
            _ => &self.binding_input,
        };
        (self.mechanism, [gs2_header, self.first_bare().as_bytes()].concat())
    }

    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// Takes the server-first-message of `AuthenticationSASLContinue`; gives the client-final-message for the
    /// SASLResponse.
    pub fn server_first(self, data: &[u8]) -> Result<(ClientFinalSent, Vec<u8>), ScramClientError> {
        let message = text(data)?;
        let (nonce, salt, iterations) = self.read_server_first(message)?;
        let without_proof = format!("c={},r={nonce}", encode(&self.binding_input));
        let auth_message = format!("{},{message},{without_proof}", self.first_bare());

        let keys = self.secret.into_keys(&salt, iterations)?;
        let client_signature = hmac(&sha256(&*keys.client_key), &[auth_message.as_bytes()]);
        let proof = xor(&keys.client_key, &client_signature);
        let server_signature = hmac(&*keys.server_key, &[auth_message.as_bytes()]);
        let client_final = format!("{without_proof},p={}", encode(&*proof));
        Ok((ClientFinalSent { server_signature, keys }, client_final.into_bytes()))
    }

    /// Reads `r=nonce,s=salt,i=iterations[,extensions]`.
    fn read_server_first<'a>(&self, message: &'a str) -> Result<(&'a str, Vec<u8>, u32), ScramClientError> {
        let malformed = ScramClientError::Malformed;
        let mut attributes = Attributes::new(message);
        if attributes.is_mandatory_extension() {
            return Err(malformed("a mandatory extension"));
        }
        let nonce = attributes.take('r').ok_or(malformed("no nonce"))?;
        let theirs = nonce.strip_prefix(self.nonce.as_str()).ok_or(malformed("the nonce does not extend ours"))?;
        if !is_nonce(theirs) {
            return Err(malformed("the nonce has no part of the instance's, or not in printable characters"));
        }
        let salt = attributes.take('s').and_then(decode).ok_or(malformed("no salt in base64"))?;
        let iterations: u64 =
            attributes.take('i').and_then(|i| i.parse().ok()).filter(|&i| i > 0).ok_or(malformed("no iterations"))?;
        if !attributes.only_optional_extensions() {
            return Err(malformed("text or mandatory extensions at the end"));
        }
        match u32::try_from(iterations) {
            Ok(allowed) if allowed <= MAX_ITERATIONS => Ok((nonce, salt, allowed)),
            _ => Err(ScramClientError::Iterations(iterations)),
        }
    }
}

impl ClientSecret {
    fn into_keys(self, salt: &[u8], iterations: u32) -> Result<ScramKeys, ScramClientError> {
        match self {
            Self::Keys(keys) if keys.salt == salt && keys.iterations == iterations => Ok(keys),
            Self::Keys(_) => Err(ScramClientError::OtherVerifier),
            Self::Password(password) => Ok(ScramKeys::derive(&password, salt, iterations)),
        }
    }
}

impl ClientFinalSent {
    /// Takes the server-final-message of `AuthenticationSASLFinal`. Returns the keys, which the next login at this
    /// instance can use instead of the password.
    pub fn server_final(self, data: &[u8]) -> Result<ScramKeys, ScramClientError> {
        let message = text(data)?;
        let mut attributes = Attributes::new(message);
        if message.starts_with("e=") {
            return Err(ScramClientError::Refused);
        }
        let signature = attributes
            .take('v')
            .and_then(decode_key)
            .ok_or(ScramClientError::Malformed("server-final-message has no signature of 32 bytes in base64"))?;
        if !attributes.only_optional_extensions() {
            return Err(ScramClientError::Malformed("text or mandatory extensions at the end"));
        }
        match bool::from(signature.ct_eq(&*self.server_signature)) {
            true => Ok(self.keys),
            false => Err(ScramClientError::ServerSignature),
        }
    }
}

fn text(data: &[u8]) -> Result<&str, ScramClientError> {
    if data.len() > MAX_MESSAGE {
        return Err(ScramClientError::Malformed("the message is too long"));
    }
    std::str::from_utf8(data).map_err(|_| ScramClientError::Malformed("the message is not UTF-8"))
}

#[cfg(test)]
mod tests;
