//! TLS towards clients: the rustls configuration and certificate for each handshake, swapped whole on reload.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};

use super::certificates::{Certificate, Certificates, CertificatesError};
use super::crypto_provider;
use super::pem::{self, PemError};
use crate::config;

/// The application protocol of direct TLS (PostgreSQL manual 55.2.11). A client that opens TLS without an SSLRequest
/// must have negotiated it, or another protocol's traffic could be turned on us; after an SSLRequest it is optional.
pub const ALPN_POSTGRESQL: &[u8] = b"postgresql";

#[derive(Debug, thiserror::Error)]
pub enum ServerTlsError {
    #[error("tls.certificates is not set: name the folder of certificates, or set tls.mode to \"off\"")]
    NoFolder,
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    #[error("tenant {tenant}: client_ca: {source}")]
    ClientCa { tenant: String, source: PemError },
    #[error("tenant {tenant}: client_ca: {source}")]
    Verifier { tenant: String, source: VerifierBuilderError },
    #[error("the tenants' client CAs together: {0}")]
    Verifiers(VerifierBuilderError),
    #[error("http.client_ca: {0}")]
    HttpClientCa(PemError),
    #[error("http.client_ca: {0}")]
    HttpVerifier(VerifierBuilderError),
    #[error("the TLS library refuses its own defaults: {0}")]
    Library(#[from] rustls::Error),
}

/// What every client's handshake needs. A reload makes another one.
pub struct ServerTls {
    certificates: Arc<Certificates>,
    shared: Arc<ServerConfig>,
    by_tenant: HashMap<String, OfTenant>,
}

/// What a tenant with a client CA of its own has.
struct OfTenant {
    config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// For one handshake: the configuration, and the certificate that it will show to this client.
///
/// Both come from the same reading of the files, so the certificate's channel-binding data is right even when a reload
/// happens in the middle of the handshake.
pub struct Choice {
    pub config: Arc<ServerConfig>,
    pub certificate: Arc<Certificate>,
}

impl ServerTls {
    /// For a client that asks for `server_name` (SNI) and, as far as that name tells, belongs to `tenant`.
    ///
    /// A tenant without `client_ca` and a tenant that only later hints name get the shared configuration, which asks
    /// for a client certificate where any tenant has a `client_ca`, and requires none: where one is required, the login
    /// must be refused then.
    pub fn choose(&self, server_name: Option<&str>, tenant: Option<&str>) -> Choice {
        let own = tenant.and_then(|tenant| self.by_tenant.get(tenant));
        Choice {
            config: own.map_or(&self.shared, |own| &own.config).clone(),
            certificate: self.certificates.choose(server_name).clone(),
        }
    }

    /// The tenants whose CA vouches for a client's chain, which begins with the client's own certificate.
    pub fn tenants_of(&self, chain: &[CertificateDer<'_>]) -> Vec<String> {
        let Some((own, intermediates)) = chain.split_first() else { return Vec::new() };
        let vouches = |of: &OfTenant| of.verifier.verify_client_cert(own, intermediates, UnixTime::now()).is_ok();
        self.by_tenant.iter().filter(|(_, of)| vouches(of)).map(|(tenant, _)| tenant.clone()).collect()
    }

    /// The certificates in use, for the metric of their expiry.
    pub fn certificates(&self) -> Arc<Certificates> {
        self.certificates.clone()
    }
}

impl ServerTls {
    /// Reads the certificates and the tenants' client CAs. One file that cannot be used fails it all.
    ///
    /// # Errors
    /// What is wrong, with the file.
    pub fn load(tls: &config::Tls, tenants: &BTreeMap<String, Arc<config::Tenant>>) -> Result<Self, ServerTlsError> {
        let folder = tls.certificates.as_deref().ok_or(ServerTlsError::NoFolder)?;
        let provider = crypto_provider();
        let certificates = Arc::new(Certificates::load(folder, tls.default_certificate.as_deref(), &provider)?);
        let mut by_tenant = HashMap::new();
        let mut every_root = RootCertStore::empty();
        for (id, tenant) in tenants {
            let Some(ca) = &tenant.client_ca else { continue };
            let (roots, _) =
                pem::trust_anchors(ca).map_err(|source| ServerTlsError::ClientCa { tenant: id.clone(), source })?;
            every_root.extend(roots.roots.iter().cloned());
            let verifier = client_verifier(roots, tenant.client_certificate_required, &provider)
                .map_err(|source| ServerTlsError::Verifier { tenant: id.clone(), source })?;
            let config = Arc::new(server_config(&certificates, &provider, Some(verifier.clone()))?);
            by_tenant.insert(id.clone(), OfTenant { config, verifier });
        }
        let anyone = match every_root.is_empty() {
            true => None,
            false => Some(client_verifier(every_root, false, &provider).map_err(ServerTlsError::Verifiers)?),
        };
        let shared = Arc::new(server_config(&certificates, &provider, anyone)?);
        Ok(Self { certificates, shared, by_tenant })
    }
}

impl ServerTls {
    /// For HTTPS with the same certificates. A client certificate is asked for where there is a `client_ca`, and not
    /// required: who shows none may still have the token.
    ///
    /// # Errors
    /// The CA's file cannot be used.
    pub fn https(&self, client_ca: Option<&Path>) -> Result<ServerConfig, ServerTlsError> {
        let provider = crypto_provider();
        let verifier = match client_ca {
            None => None,
            Some(ca) => {
                let (roots, _) = pem::trust_anchors(ca).map_err(ServerTlsError::HttpClientCa)?;
                Some(client_verifier(roots, false, &provider).map_err(ServerTlsError::HttpVerifier)?)
            }
        };
        let mut config = server_config(&self.certificates, &provider, verifier)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// The names of the trusted CAs are not sent: they would tell one tenant of the others.
fn client_verifier(
    roots: RootCertStore,
    required: bool,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).clear_root_hint_subjects();
    if required { verifier.build() } else { verifier.allow_unauthenticated().build() }
}

fn server_config(
    certificates: &Arc<Certificates>,
    provider: &Arc<CryptoProvider>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, ServerTlsError> {
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match verifier {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut config = builder.with_cert_resolver(certificates.clone());
    config.alpn_protocols = vec![ALPN_POSTGRESQL.to_vec()];
    // PostgreSQL's drivers never resume, and a cache would cost 32 KB for each tenant's configuration.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

#[cfg(test)]
mod tests;
