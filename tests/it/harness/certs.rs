//! Certificates for tests, and the client's side of TLS.

use std::sync::Arc;

use pgtenant::cli::demo::certificates::DevCa;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

/// A client that trusts `ca` and shows no certificate.
pub fn client(ca: &DevCa) -> ClientConfig {
    ClientConfig::builder().with_root_certificates(roots(ca)).with_no_client_auth()
}

/// A client that trusts `ca` and shows this certificate.
pub fn client_with(ca: &DevCa, (certificate, key): &(String, String)) -> ClientConfig {
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    ClientConfig::builder().with_root_certificates(roots(ca)).with_client_auth_cert(chain, key).unwrap()
}

/// A server with a certificate of `ca` for these names.
pub fn server(ca: &DevCa, names: &[&str]) -> TlsAcceptor {
    let (certificate, key) = ca.server(names).unwrap();
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// The same with ALPN `postgresql`, which direct TLS requires.
pub fn direct(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Arc::new(config)
}

fn roots(ca: &DevCa) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.certificate().as_bytes()).unwrap()).unwrap();
    roots
}
