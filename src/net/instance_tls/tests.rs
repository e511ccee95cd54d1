//! Handshakes in memory, one for each trust an instance may be given.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::net::test_certificates::{Authority, params};

fn instance(tls: InstanceTls, name: &str, ca: Option<&Path>) -> Instance {
    Instance {
        name: "pg1".into(),
        address: InstanceAddress::Tcp { host: name.into(), port: 5432 },
        tls,
        tls_server_name: name.into(),
        tls_ca: ca.map(Path::to_owned),
        max_backends: 1,
        system_identifier: None,
        region: None,
    }
}

type Pair = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// A handshake with a server that shows `pair`; the channel binding on success.
async fn handshake(instance: &Instance, (certificate, key): Pair) -> Result<Option<Vec<u8>>, String> {
    let server = ServerConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let client = InstanceTlsClient::load(instance).map_err(|error| error.to_string())?.expect("TLS is on");
    let (ours, theirs) = tokio::io::duplex(16_384);
    let connector = TlsConnector::from(client.config);
    let (accepted, connected) =
        tokio::join!(TlsAcceptor::from(Arc::new(server)).accept(theirs), connector.connect(client.server_name, ours));
    let connected = connected.map_err(|error| error.to_string())?;
    accepted.map_err(|error| error.to_string())?;
    Ok(channel_binding(connected.get_ref().1))
}

#[tokio::test]
async fn each_mode_trusts_whom_it_says() {
    let (folder, authority, stranger) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, &authority.pem).unwrap();
    let good = || authority.issue("x", &["pg1.internal"]);
    let foreign = || stranger.issue("x", &["pg1.internal"]);
    let ca = Some(ca.as_path());

    let require = instance(InstanceTls::Require, "10.0.0.1", None);
    let (certificate, key) = foreign();
    let hash = Sha256::digest(&certificate).to_vec();
    assert_eq!(handshake(&require, (certificate, key)).await, Ok(Some(hash)));

    let verify_ca = instance(InstanceTls::VerifyCa, "other.internal", ca);
    assert!(handshake(&verify_ca, good()).await.is_ok());
    let unknown = handshake(&verify_ca, foreign()).await.unwrap_err();
    assert!(unknown.contains("UnknownIssuer"), "{unknown}");

    let verify_full = |name| instance(InstanceTls::VerifyFull, name, ca);
    assert!(handshake(&verify_full("pg1.internal"), good()).await.is_ok());
    assert!(handshake(&verify_full("pg1.internal"), foreign()).await.is_err());
    let wrong_name = handshake(&verify_full("pg2.internal"), good()).await.unwrap_err();
    assert!(wrong_name.contains("not valid for name"), "{wrong_name}");
}

#[tokio::test]
async fn a_self_signed_certificate_may_be_its_own_ca() {
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let pair = |expired: bool, file: &Path| -> Pair {
        let mut params = params("pg1", &["pg1.internal"]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained); // as `openssl req -x509` makes them
        if expired {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let certificate = params.self_signed(&key).unwrap();
        fs::write(file, certificate.pem()).unwrap();
        (certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    };
    let file = folder.path().join("server.crt");
    let full = |name| instance(InstanceTls::VerifyFull, name, Some(&file));
    assert!(handshake(&full("pg1.internal"), pair(false, &file)).await.is_ok());
    assert!(handshake(&full("pg2.internal"), pair(false, &file)).await.is_err());
    let expired = handshake(&full("pg1.internal"), pair(true, &file)).await.unwrap_err();
    assert!(expired.contains("Expired"), "{expired}");
}

#[test]
fn off_and_unix_sockets_need_no_tls() {
    assert!(InstanceTlsClient::load(&instance(InstanceTls::Off, "h", None)).unwrap().is_none());
    let mut unix = instance(InstanceTls::VerifyFull, "", None);
    unix.address = InstanceAddress::Unix { dir: "/run/postgresql".into(), port: 5432 };
    assert!(InstanceTlsClient::load(&unix).unwrap().is_none());
}

#[test]
fn errors_say_the_remedy() {
    let error = |tls, name, ca| InstanceTlsClient::load(&instance(tls, name, ca)).unwrap_err().to_string();
    assert!(error(InstanceTls::VerifyFull, "h", None).contains("instance pg1: tls = \"verify-full\" needs tls_ca"));
    let missing = error(InstanceTls::VerifyCa, "h", Some(Path::new("/absent/ca.pem")));
    assert!(missing.contains("/absent/ca.pem: cannot be read"), "{missing}");
    assert!(error(InstanceTls::Require, "not a name", None).contains("set tls_server_name"));
}
