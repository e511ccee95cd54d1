//! The server's side of a SCRAM login, for clients: two steps, each takes a client message and returns the answer.

use subtle::ConstantTimeEq;

use super::scram::{
    Attributes, GS2_TLS_SERVER_END_POINT, MAX_MESSAGE, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramKeys, decode,
    decode_key, encode, fresh_nonce, hmac, is_nonce, sha256, xor,
};
use super::verifier::ScramVerifier;

/// Why a SCRAM login ended. The text may go to the client, with [`ScramError::sqlstate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The client does not speak the protocol.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The client wants what the protocol has and neither PostgreSQL nor we do.
    #[error("unsupported SCRAM message: {0}")]
    Unsupported(&'static str),
    /// The client sees other TLS parameters than we do: somebody may stand between.
    #[error("SCRAM channel binding failed: {0}")]
    Binding(&'static str),
    /// Wrong password or, indistinguishable, no such role. Report it as every other failed login.
    #[error("password authentication failed")]
    Failed,
}

impl ScramError {
    /// As PostgreSQL reports the same case.
    pub fn sqlstate(self) -> &'static str {
        match self {
            Self::Malformed(_) => "08P01",
            Self::Unsupported(_) => "0A000",
            Self::Binding(_) => "28000",
            Self::Failed => "28P01",
        }
    }
}

/// A login before the client's first message.
pub struct ScramServer {
    verifier: ScramVerifier,
    genuine: bool,
    binding: Option<Vec<u8>>,
}

/// A login whose server-first-message is on its way.
pub struct ServerFirstSent {
    verifier: ScramVerifier,
    genuine: bool,
    /// What the client's `c` attribute must decode to.
    binding_input: Vec<u8>,
    bound: bool,
    nonce: String,
    /// client-first-message-bare and server-first-message, with commas.
    exchanged: String,
}

impl ScramServer {
    /// `genuine` is false for a mock verifier: the same exchange and the same work, and a certain failure.
    ///
    /// `binding` is the `tls-server-end-point` hash of the certificate that this client was shown (RFC 5929); none
    /// without TLS and where the certificate's signature has no hash of its own.
    pub fn new(verifier: ScramVerifier, genuine: bool, binding: Option<Vec<u8>>) -> Self {
        Self { verifier, genuine, binding }
    }

    /// The mechanisms for `AuthenticationSASL`, best first.
    pub fn mechanisms(&self) -> &'static [&'static str] {
        if self.binding.is_some() { &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256] } else { &[SCRAM_SHA_256] }
    }

    /// Takes the SASLInitialResponse's mechanism and client-first-message; gives the server-first-message for
    /// `AuthenticationSASLContinue`.
    pub fn client_first(self, mechanism: &str, data: &[u8]) -> Result<(ServerFirstSent, Vec<u8>), ScramError> {
        self.client_first_with_nonce(mechanism, data, &fresh_nonce())
    }

    fn client_first_with_nonce(
        self,
        mechanism: &str,
        data: &[u8],
        our_nonce: &str,
    ) -> Result<(ServerFirstSent, Vec<u8>), ScramError> {
        let message = text(data)?;
        let bound = self.choose(mechanism)?;
        let (gs2_header, bare) = split_gs2_header(message)?;
        let mut binding_input = gs2_header.as_bytes().to_vec();
        check_binding_flag(gs2_header, bound, self.binding.is_some())?;
        if bound {
            binding_input.extend(self.binding.unwrap_or_default());
        }

        let client_nonce = read_client_first_bare(bare)?;
        let nonce = format!("{client_nonce}{our_nonce}");
        let salt = encode(&self.verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", self.verifier.iterations);
        let exchanged = format!("{bare},{server_first},");
        let Self { verifier, genuine, .. } = self;
        let next = ServerFirstSent { verifier, genuine, binding_input, bound, nonce, exchanged };
        Ok((next, server_first.into_bytes()))
    }

    /// Whether the chosen mechanism binds to the channel.
    fn choose(&self, mechanism: &str) -> Result<bool, ScramError> {
        match mechanism {
            SCRAM_SHA_256 => Ok(false),
            SCRAM_SHA_256_PLUS if self.binding.is_some() => Ok(true),
            _ => Err(ScramError::Malformed("the client selected a SASL mechanism that was not offered")),
        }
    }
}

impl ServerFirstSent {
    /// Takes the SASLResponse's client-final-message. After a right password: the keys that the client proved, and
    /// the server-final-message for `AuthenticationSASLFinal`.
    pub fn client_final(self, data: &[u8]) -> Result<(ScramKeys, Vec<u8>), ScramError> {
        let message = text(data)?;
        let (without_proof, proof) =
            message.rsplit_once(",p=").ok_or(ScramError::Malformed("client-final-message has no proof"))?;
        self.check_client_final(without_proof)?;
        let proof = decode_key(proof).ok_or(ScramError::Malformed("the proof is not 32 bytes in base64"))?;

        let auth_message = format!("{}{without_proof}", self.exchanged);
        let ScramVerifier { salt, iterations, stored_key, server_key, former } = self.verifier;
        let proves = |stored_key: &[u8; 32]| {
            let client_key = xor(&proof, &hmac(stored_key, &[auth_message.as_bytes()]));
            let right = sha256(&*client_key).ct_eq(stored_key) & u8::from(self.genuine).into();
            bool::from(right).then_some(client_key)
        };
        let proven = proves(&stored_key).map(|client_key| (client_key, server_key));
        let of_former = || former.and_then(|keys| Some((proves(&keys.stored_key)?, keys.server_key)));
        let (client_key, server_key) = proven.or_else(of_former).ok_or(ScramError::Failed)?;
        let server_signature = hmac(&*server_key, &[auth_message.as_bytes()]);
        let keys = ScramKeys { salt, iterations, client_key, server_key };
        Ok((keys, format!("v={}", encode(&*server_signature)).into_bytes()))
    }

    fn check_client_final(&self, without_proof: &str) -> Result<(), ScramError> {
        let mut attributes = Attributes::new(without_proof);
        let binding = attributes
            .take('c')
            .and_then(decode)
            .ok_or(ScramError::Malformed("client-final-message does not begin with channel binding data in base64"))?;
        if !bool::from(binding.ct_eq(&self.binding_input)) {
            return Err(match self.bound {
                true => ScramError::Binding("the client saw another certificate than the one it was sent"),
                false => ScramError::Malformed("unexpected channel binding data in client-final-message"),
            });
        }
        let nonce = attributes.take('r').ok_or(ScramError::Malformed("client-final-message has no nonce"))?;
        if !bool::from(nonce.as_bytes().ct_eq(self.nonce.as_bytes())) {
            return Err(ScramError::Malformed("the nonce does not match"));
        }
        refuse_extensions(attributes)
    }
}

fn text(data: &[u8]) -> Result<&str, ScramError> {
    if data.len() > MAX_MESSAGE {
        return Err(ScramError::Malformed("the message is too long"));
    }
    std::str::from_utf8(data).map_err(|_| ScramError::Malformed("the message is not UTF-8"))
}

/// Splits `n,,bare`; an authorization identity is refused, as PostgreSQL does.
fn split_gs2_header(message: &str) -> Result<(&str, &str), ScramError> {
    let malformed = ScramError::Malformed("client-first-message has no gs2 header");
    let (flag, rest) = message.split_once(',').ok_or(malformed)?;
    let (identity, bare) = rest.split_once(',').ok_or(malformed)?;
    if identity.starts_with("a=") {
        return Err(ScramError::Unsupported("the client uses an authorization identity"));
    }
    if !identity.is_empty() {
        return Err(malformed);
    }
    Ok((&message[..flag.len() + 2], bare))
}

/// The rules of RFC 5802 section 6 for the channel binding flag.
fn check_binding_flag(gs2_header: &str, bound: bool, offered: bool) -> Result<(), ScramError> {
    match gs2_header {
        GS2_TLS_SERVER_END_POINT if bound => Ok(()),
        "n,," if !bound => Ok(()),
        "y,," if !bound && !offered => Ok(()),
        "y,," if !bound => Err(ScramError::Binding(
            "the client supports channel binding but thinks that it was not offered, and it was",
        )),
        "n,," | "y,," => Err(ScramError::Malformed("SCRAM-SHA-256-PLUS selected without channel binding data")),
        _ if !gs2_header.starts_with("p=") => Err(ScramError::Malformed("unknown channel binding flag")),
        _ if bound => Err(ScramError::Malformed("unsupported channel binding type: only tls-server-end-point is")),
        _ => Err(ScramError::Malformed("SCRAM-SHA-256 selected with channel binding data")),
    }
}

/// Reads `n=user,r=nonce[,extensions]` and returns the nonce. The user is ignored, as by PostgreSQL: the one of the
/// StartupMessage counts.
fn read_client_first_bare(bare: &str) -> Result<&str, ScramError> {
    let mut attributes = Attributes::new(bare);
    if attributes.is_mandatory_extension() {
        return Err(ScramError::Unsupported("the client requires a SCRAM extension"));
    }
    attributes.take('n').ok_or(ScramError::Malformed("client-first-message has no user attribute"))?;
    let nonce = attributes.take('r').ok_or(ScramError::Malformed("client-first-message has no nonce"))?;
    if !is_nonce(nonce) {
        return Err(ScramError::Malformed("the nonce is empty or has characters that are not printable"));
    }
    refuse_extensions(attributes)?;
    Ok(nonce)
}

fn refuse_extensions(attributes: Attributes<'_>) -> Result<(), ScramError> {
    if attributes.is_mandatory_extension() {
        return Err(ScramError::Unsupported("the client requires a SCRAM extension"));
    }
    match attributes.only_optional_extensions() {
        true => Ok(()),
        false => Err(ScramError::Malformed("the message has text where extensions may stand")),
    }
}

#[cfg(test)]
mod tests;
