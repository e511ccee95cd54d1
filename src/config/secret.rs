//! Secrets: held so that they are neither printed nor left in memory, and written by reference.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A password or verifier. Wiped from memory on drop, printed as `[secret]`.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into().into())
    }

    /// The text itself: for cryptography and the wire, never for messages or logs.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Takes a file's or variable's text without the newline at its end. `from` names the place in errors.
    pub(super) fn from_text(text: &str, from: &str) -> Result<Self, String> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        match text {
            "" => Err(format!("{from} is empty")),
            _ if text.contains('\0') => Err(format!("{from} holds a zero byte, which no password can have")),
            _ => Ok(Secret::new(text)),
        }
    }

    /// Reads a secret file; one that everybody can read is refused, but for those that a container is given.
    pub(super) fn from_file(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let metadata = std::fs::metadata(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
        if !metadata.is_file() {
            return Err(format!("{shown} is not a file"));
        }
        if metadata.permissions().mode() & 0o004 != 0 && !is_given_to_a_container(path) {
            return Err(format!("{shown} can be read by everybody; run: chmod 600 {shown}"));
        }
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
        Self::from_text(&Zeroizing::new(text), &shown.to_string())
    }
}

/// Docker and Kubernetes mount secrets so that all users in a container can read them; nobody else is there.
fn is_given_to_a_container(path: &Path) -> bool {
    path.starts_with("/run/secrets") || path.starts_with("/var/run/secrets")
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Compares in time that depends on the length only.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose().as_bytes().ct_eq(other.expose().as_bytes()).into()
    }
}

impl Eq for Secret {}

/// Where a secret is: `{ file = "path" }` or `{ env = "NAME" }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reference {
    File(PathBuf),
    Env(String),
}

/// A verifier is as good as public when its file is readable by the proxy only: it may stand in the record itself.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verifier {
    Plain(Secret),
    Reference(Reference),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenReference {
    file: Option<PathBuf>,
    env: Option<String>,
}

impl Reference {
    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let written = WrittenReference::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
        match (written.file, written.env) {
            (Some(file), None) => Ok(Reference::File(file)),
            (None, Some(name)) => Ok(Reference::Env(name)),
            _ => Err(A::Error::custom("write one of { file = \"path\" } and { env = \"NAME\" }")),
        }
    }
}

/// Never repeats what it was given: it may be the secret.
fn refuse_plain<E: Error>() -> E {
    E::custom("a password is not written into the configuration; write { file = \"path\" } or { env = \"NAME\" }")
}

struct ReferenceVisitor;

impl<'de> Visitor<'de> for ReferenceVisitor {
    type Value = Reference;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ file = \"path\" } or { env = \"NAME\" }")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Reference, E> {
        Err(refuse_plain())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Reference, E> {
        Err(refuse_plain())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Reference, E> {
        Err(refuse_plain())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Reference, A::Error> {
        Reference::from_map(map)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReferenceVisitor)
    }
}

struct VerifierVisitor;

impl<'de> Visitor<'de> for VerifierVisitor {
    type Value = Verifier;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a verifier, { file = \"path\" } or { env = \"NAME\" }")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Verifier, E> {
        Ok(Verifier::Plain(Secret::new(text)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Verifier, A::Error> {
        Reference::from_map(map).map(Verifier::Reference)
    }
}

impl<'de> Deserialize<'de> for Verifier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VerifierVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_a_container_may_be_readable_there() {
        assert!(is_given_to_a_container(Path::new("/run/secrets/http_token")));
        assert!(!is_given_to_a_container(Path::new("/run/secretsx")));
        assert!(!is_given_to_a_container(Path::new("run/secrets/http_token")));
    }

    #[test]
    fn others_may_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret").unwrap();
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o644)).unwrap();
        assert!(Secret::from_file(file.path()).unwrap_err().contains("chmod 600"));
    }
}
