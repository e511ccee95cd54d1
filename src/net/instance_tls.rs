//! TLS towards instances: libpq's `sslmode` from `require` to `verify-full` as a rustls configuration.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::crypto_provider;
use super::pem::{self, PemError};
use super::x509::CertificateFacts;
use crate::config::{Instance, InstanceAddress, InstanceTls};

#[derive(Debug, thiserror::Error)]
pub enum InstanceTlsError {
    #[error(
        "instance {instance}: tls = \"{mode}\" needs tls_ca, a PEM file with the CA that signed the instance's certificate (or that certificate itself)"
    )]
    NoCa { instance: String, mode: &'static str },
    #[error("instance {instance}: tls_ca: {source}")]
    Ca { instance: String, source: PemError },
    #[error(
        "instance {instance}: `{name}` is neither a DNS name nor an IP address: set tls_server_name to a name in the instance's certificate"
    )]
    ServerName { instance: String, name: String },
    #[error("the TLS library refuses its own defaults: {0}")]
    Library(#[from] rustls::Error),
}

/// What a backend's TLS handshake with one instance needs.
#[derive(Debug, Clone)]
pub struct InstanceTlsClient {
    pub config: Arc<ClientConfig>,
    pub server_name: ServerName<'static>,
}

impl InstanceTlsClient {
    /// None where the instance is reached without TLS: `off`, and a Unix socket, as in libpq.
    pub fn load(instance: &Instance) -> Result<Option<Self>, InstanceTlsError> {
        if matches!(instance.address, InstanceAddress::Unix { .. }) {
            return Ok(None);
        }
        let trust = match instance.tls {
            InstanceTls::Off => return Ok(None),
            InstanceTls::Require => Trust::Anyone,
            InstanceTls::VerifyCa => Trust::anchored(instance, "verify-ca", false)?,
            InstanceTls::VerifyFull => Trust::anchored(instance, "verify-full", true)?,
        };
        let name = instance.tls_server_name.clone();
        let server_name = ServerName::try_from(name.clone())
            .map_err(|_| InstanceTlsError::ServerName { instance: instance.name.clone(), name })?;

        let provider = crypto_provider();
        let verifier = Arc::new(InstanceVerifier { trust, provider: provider.clone() });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        // PostgreSQL gives no tickets; without a cache nothing is kept for each instance.
        config.resumption = Resumption::disabled();
        Ok(Some(Self { config: Arc::new(config), server_name }))
    }
}

/// `tls-server-end-point` of the instance's certificate for SCRAM-SHA-256-PLUS, once the handshake is over; none for
/// certificates that have none, see [`CertificateFacts::tls_server_end_point`].
pub fn channel_binding(connection: &ClientConnection) -> Option<Vec<u8>> {
    let certificate = connection.peer_certificates()?.first()?;
    CertificateFacts::read(certificate).ok()?.tls_server_end_point
}

/// Whom a handshake trusts.
#[derive(Debug)]
enum Trust {
    /// Encryption only.
    Anyone,
    /// A chain up to one of `roots`. `tls_ca` may hold the instance's own, self-signed certificate as well, which
    /// webpki would refuse at the end of a chain and libpq takes.
    Anchored { roots: RootCertStore, listed: Vec<CertificateDer<'static>>, check_name: bool },
}

impl Trust {
    fn anchored(instance: &Instance, mode: &'static str, check_name: bool) -> Result<Self, InstanceTlsError> {
        let path: &PathBuf =
            instance.tls_ca.as_ref().ok_or_else(|| InstanceTlsError::NoCa { instance: instance.name.clone(), mode })?;
        let (roots, listed) = pem::trust_anchors(path)
            .map_err(|source| InstanceTlsError::Ca { instance: instance.name.clone(), source })?;
        Ok(Self::Anchored { roots, listed, check_name })
    }
}

#[derive(Debug)]
struct InstanceVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for InstanceVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::Anchored { roots, listed, check_name } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if listed.contains(end_entity) {
            check_validity(end_entity, now)?;
        } else {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        }
        if *check_name {
            verify_server_name(&parsed, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    // Without trust in the certificate its key still has to sign the handshake: SCRAM's channel binding rests on it.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn check_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let facts = CertificateFacts::read(certificate).map_err(|_| CertificateError::BadEncoding)?;
    // Seconds since 1970 fit an i64 for longer than there will be certificates.
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < facts.not_before.unix_timestamp() {
        return Err(CertificateError::NotValidYet);
    }
    if now > facts.not_after.unix_timestamp() {
        return Err(CertificateError::Expired);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
