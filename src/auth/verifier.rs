//! Verifiers as PostgreSQL stores them in `pg_authid.rolpassword`, and what a successful login proves.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::md5::Md5Verifier;
use super::scram::{Key, MAX_ITERATIONS, ScramKeys, decode, decode_key, encode, hmac, random, sha256};

/// PostgreSQL's default (`scram_iterations`).
const DEFAULT_ITERATIONS: u32 = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verifier {
    Scram(ScramVerifier),
    Md5(Md5Verifier),
}

/// Why a text is no verifier. It never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifierError {
    #[error("a verifier begins with `SCRAM-SHA-256$` or `md5`; copy `rolpassword` from `pg_authid` as it is")]
    Unknown,
    #[error("an md5 verifier is `md5` and 32 lower-case hexadecimal digits")]
    Md5,
    #[error(
        "a SCRAM verifier is `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, the last three in base64"
    )]
    Scram,
    #[error(
        "a SCRAM verifier with more than {MAX_ITERATIONS} iterations is refused; set the password again with fewer"
    )]
    Iterations,
}

/// What a successful client login proved, and with what a backend login can be made.
#[derive(Debug, Clone)]
pub enum Proven {
    Scram(ScramKeys),
    Md5(Md5Verifier),
}

impl Verifier {
    pub fn parse(text: &str) -> Result<Self, VerifierError> {
        if text.starts_with("SCRAM-SHA-256$") {
            ScramVerifier::parse(text).map(Self::Scram)
        } else {
            Md5Verifier::parse(text).map(Self::Md5)
        }
    }

    /// Checks a cleartext password, in constant time but for PBKDF2's cost with SCRAM.
    pub fn check_password(&self, role: &str, password: &[u8]) -> Option<Proven> {
        match self {
            Self::Scram(verifier) => verifier.check_password(password).map(Proven::Scram),
            Self::Md5(verifier) => verifier.check_password(role, password).then(|| Proven::Md5(verifier.clone())),
        }
    }
}

/// Makes the verifiers of roles that do not exist; holds the process's own random secret.
#[derive(Clone)]
pub struct Mock {
    secret: Zeroizing<[u8; 32]>,
    iterations: u32,
}

impl std::fmt::Debug for Mock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mock").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

impl Mock {
    /// Exchanges will show `iterations`.
    pub fn new(iterations: u32) -> Self {
        Mock { secret: Zeroizing::new(random::<32>()), iterations }
    }

    /// See [`ScramVerifier::mock`].
    pub fn verifier(&self, tenant: &str, role: &str) -> ScramVerifier {
        ScramVerifier::mock(&self.secret, tenant, role, self.iterations)
    }
}

/// The server's half of a SCRAM password.
#[derive(Clone)]
pub struct ScramVerifier {
    pub(super) iterations: u32,
    pub(super) salt: Vec<u8>,
    pub(super) stored_key: [u8; 32],
    pub(super) server_key: Key,
    /// Those of a password that is good as well, for a while: with the same salt and iterations, so that the exchange
    /// is the same until the client's proof.
    pub(super) former: Option<Box<FormerKeys>>,
}

/// See [`ScramVerifier::with_former`].
#[derive(Clone)]
pub(super) struct FormerKeys {
    pub(super) stored_key: [u8; 32],
    pub(super) server_key: Key,
}

impl ScramVerifier {
    pub fn parse(text: &str) -> Result<Self, VerifierError> {
        let parts = || {
            let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
            let (iterations, salt) = parameters.split_once(':')?;
            let (stored, server) = keys.split_once(':')?;
            let iterations: u32 = iterations.parse().ok().filter(|&i| i > 0)?;
            Some((iterations, decode(salt)?, *decode_key(stored)?, decode_key(server)?))
        };
        let (iterations, salt, stored_key, server_key) = parts().ok_or(VerifierError::Scram)?;
        if iterations > MAX_ITERATIONS {
            return Err(VerifierError::Iterations);
        }
        Ok(Self { iterations, salt, stored_key, server_key, former: None })
    }

    pub fn from_password(password: &str, salt: &[u8], iterations: u32) -> (Self, ScramKeys) {
        let keys = ScramKeys::derive(password.as_bytes(), salt, iterations);
        (Self::of(&keys), keys)
    }

    /// A new verifier, with a random salt of 16 bytes and 4,096 iterations as PostgreSQL's own.
    pub fn generate(password: &str) -> (Self, ScramKeys) {
        Self::from_password(password, &random::<16>(), DEFAULT_ITERATIONS)
    }

    /// The verifier of no password, for a role that does not exist or has none: the same for every attempt, so that
    /// its salt tells nothing (PostgreSQL's `mock_scram_secret`). `secret` is the process's own random value.
    pub fn mock(secret: &[u8; 32], tenant: &str, role: &str, iterations: u32) -> Self {
        let tenant_length = (tenant.len() as u64).to_be_bytes();
        let derive = |what: &[u8]| hmac(secret, &[what, &tenant_length, tenant.as_bytes(), role.as_bytes()]);
        Self {
            iterations: iterations.clamp(1, MAX_ITERATIONS),
            salt: derive(b"salt")[..16].to_vec(),
            stored_key: *derive(b"stored key"),
            server_key: derive(b"server key"),
            former: None,
        }
    }

    /// The keys of `password`, if it is the right one.
    pub fn check_password(&self, password: &[u8]) -> Option<ScramKeys> {
        let keys = ScramKeys::derive(password, &self.salt, self.iterations);
        let former =
            self.former.as_ref().is_some_and(|former| bool::from(Self::of(&keys).stored_key.ct_eq(&former.stored_key)));
        (Self::of(&keys) == *self || former).then_some(keys)
    }

    /// This verifier, which takes the former one's password as well; none where their salts or iterations differ.
    pub fn with_former(mut self, former: &ScramVerifier) -> Option<Self> {
        let alike = self.salt == former.salt && self.iterations == former.iterations;
        let keys = FormerKeys { stored_key: former.stored_key, server_key: former.server_key.clone() };
        self.former = Some(Box::new(keys));
        alike.then_some(self)
    }

    /// Whether these are its keys, and not a former password's.
    pub fn is_of(&self, keys: &ScramKeys) -> bool {
        Self::of(keys) == *self
    }

    pub fn iterations(&self) -> u32 {
        self.iterations
    }

    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    pub(super) fn of(keys: &ScramKeys) -> Self {
        Self {
            iterations: keys.iterations,
            salt: keys.salt.clone(),
            stored_key: sha256(&*keys.client_key),
            server_key: keys.server_key.clone(),
            former: None,
        }
    }

    /// PostgreSQL's text form, to be stored as a secret.
    pub fn to_text(&self) -> Zeroizing<String> {
        let [salt, stored, server] = [&self.salt[..], &self.stored_key, &*self.server_key].map(encode);
        Zeroizing::new(format!("SCRAM-SHA-256${}:{salt}${stored}:{server}", self.iterations))
    }
}

impl PartialEq for ScramVerifier {
    fn eq(&self, other: &Self) -> bool {
        let keys = self.stored_key.ct_eq(&other.stored_key) & self.server_key.ct_eq(&*other.server_key);
        self.iterations == other.iterations && self.salt == other.salt && bool::from(keys)
    }
}

impl Eq for ScramVerifier {}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramVerifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // CREATE ROLE … PASSWORD … with password_encryption = scram-sha-256 on PostgreSQL 15.
    const PLAIN: &str = "SCRAM-SHA-256$4096:lXfgsMEtGP0s0Zbvzpk9rg==$LxG4xOJh45em2j7re/1ejv9Fe/Zr4M0XX5UNrc9v+WI=:R1DTPb+fAjXfZWsoWkcsMAI0jd/WFFtifST5PnPEDtM=";
    const UNICODE: &str = "SCRAM-SHA-256$4096:eZxQPsMlTmobojG1A7J4ig==$extAPgjLIVLCht97WMnHhBoJ4XAKuJ/+iQP0xxoPWe0=:CCq0e7xBOSmgQ3HYB8UD6s0kblZirCOPm6FmmfN4ydI=";
    const EMOJI: &str = "SCRAM-SHA-256$4096:gsV6uAaC1S/KU0himsxoIg==$KuKkeDOuYlZoAqTlES1nyT//2jXe1M+iod+d1b9Wds8=:OrJ2/+P9KPg+WozejiI7I2caW1Wf8/LOeP8WCxqe5LM=";

    #[test]
    fn reads_what_postgresql_wrote() {
        for (text, password) in
            [(PLAIN, "hidden"), (UNICODE, "pa\u{df}w\u{f6}rt \u{fb01}\u{a0}x"), (EMOJI, "\u{fb01}\u{1f600}")]
        {
            let verifier = Verifier::parse(text).unwrap();
            let Verifier::Scram(scram) = &verifier else { panic!("{verifier:?}") };
            assert_eq!(*scram.to_text(), text);
            assert_eq!(scram.iterations(), 4096);
            let Some(Proven::Scram(keys)) = verifier.check_password("any", password.as_bytes()) else {
                panic!("{password} is right")
            };
            assert_eq!(keys.verifier(), *scram);
            assert!(verifier.check_password("any", b"wrong").is_none());
            assert!(verifier.check_password("any", b"").is_none());
        }
    }

    #[test]
    fn refuses_what_is_no_verifier() {
        let (_, keys) = PLAIN.rsplit_once('$').unwrap();
        for (text, error) in [
            (String::new(), VerifierError::Unknown),
            ("hidden".into(), VerifierError::Unknown),
            ("SCRAM-SHA-1$4096:AAAA$x:y".into(), VerifierError::Unknown),
            ("SCRAM-SHA-256$".into(), VerifierError::Scram),
            (format!("SCRAM-SHA-256$0:AAAA${keys}"), VerifierError::Scram),
            (format!("SCRAM-SHA-256$-1:AAAA${keys}"), VerifierError::Scram),
            (format!("SCRAM-SHA-256$x:AAAA${keys}"), VerifierError::Scram),
            (format!("SCRAM-SHA-256$4096:A*AA${keys}"), VerifierError::Scram),
            (format!("SCRAM-SHA-256$4096:AAAA${keys}x"), VerifierError::Scram),
            ("SCRAM-SHA-256$4096:AAAA$AAAA:AAAA".into(), VerifierError::Scram),
            (format!("SCRAM-SHA-256$1000001:AAAA${keys}"), VerifierError::Iterations),
        ] {
            assert_eq!(Verifier::parse(&text), Err(error), "{text}");
        }
    }

    #[test]
    fn mock_is_stable_and_its_own() {
        let mock = |tenant, role| ScramVerifier::mock(&[7; 32], tenant, role, 4096);
        assert_eq!(mock("acme", "app"), mock("acme", "app"));
        assert_ne!(mock("acme", "app").salt, mock("acme", "ap").salt);
        assert_ne!(mock("acme", "app").salt, mock("acmea", "pp").salt);
        assert_ne!(mock("acme", "app").salt, ScramVerifier::mock(&[8; 32], "acme", "app", 4096).salt);
        assert_eq!(mock("acme", "app").salt.len(), 16);
    }

    #[test]
    fn debug_shows_no_key() {
        let (verifier, keys) = ScramVerifier::generate("x");
        let shown = format!("{verifier:?} {keys:?} {:?}", Proven::Scram(keys.clone()));
        assert!(!shown.contains('['), "{shown}");
    }
}
