//! TLS towards servers on the web, whose name their certificate has to bear.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_native_certs::load_native_certs;

use super::crypto_provider;
use super::pem::{self, PemError};
use crate::config::Trust;

#[derive(Debug, thiserror::Error)]
pub enum WebTlsError {
    #[error(transparent)]
    Ca(#[from] PemError),
    #[error(
        "this machine trusts no CA: install its ca-certificates, name a PEM file by SSL_CERT_FILE, or set `ca`{reason}"
    )]
    NoSystemCa { reason: String },
    #[error("the TLS library refuses its own defaults: {0}")]
    Library(#[from] rustls::Error),
}

/// A client's side that trusts these CAs, and shows no certificate.
///
/// # Errors
/// They cannot be read, or there are none.
pub fn web_tls(trust: &Trust) -> Result<Arc<ClientConfig>, WebTlsError> {
    let roots = match trust {
        Trust::File(path) => pem::trust_anchors(path)?.0,
        Trust::System => system()?,
    };
    let config = ClientConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn system() -> Result<RootCertStore, WebTlsError> {
    let found = load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some machines have certificates that nobody can use: the others do.
    let (used, _) = roots.add_parsable_certificates(found.certs);
    if used > 0 {
        return Ok(roots);
    }
    let reason = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
    Err(WebTlsError::NoSystemCa { reason })
}
