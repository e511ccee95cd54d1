//! Reads certificates, keys and CA bundles from PEM files; each error names the file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem};
use zeroize::Zeroizing;

#[derive(Debug, thiserror::Error)]
pub enum PemError {
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: not a PEM file of {expected}: {reason}", path.display())]
    Content { path: PathBuf, expected: &'static str, reason: String },
}

/// The certificates of a file, at least one, in the file's order.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(certificates) if certificates.is_empty() => Err(content(path, "certificates", "there is none in it")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(content(path, "certificates", describe(error))),
    }
}

/// The first private key of a file: PKCS#8, PKCS#1 (RSA) or SEC 1 (EC), not encrypted.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    let bytes = Zeroizing::new(read(path)?);
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        let reason = match error {
            pem::Error::NoItemsFound => "there is no unencrypted PKCS#8, PKCS#1 or SEC 1 key in it",
            error => describe(error),
        };
        content(path, "a private key", reason)
    })
}

/// The CA certificates of a file as trust anchors, together with their encoding.
pub fn trust_anchors(path: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), PemError> {
    let certificates = certificates(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|error| content(path, "CA certificates", &error.to_string()))?;
    }
    Ok((roots, certificates))
}

fn read(path: &Path) -> Result<Vec<u8>, PemError> {
    fs::read(path).map_err(|source| PemError::Read { path: path.to_owned(), source })
}

fn content(path: &Path, expected: &'static str, reason: &str) -> PemError {
    PemError::Content { path: path.to_owned(), expected, reason: reason.to_owned() }
}

/// In our words: the library's repeat the offending line, which in a key file may be part of the key.
fn describe(error: pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no END line",
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line is malformed",
        pem::Error::Base64Decode(_) => "a section is not base64",
        _ => "it cannot be parsed",
    }
}
