//! Handshakes in memory as the listener makes them: read the hello, choose, finish.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::server::Acceptor;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use super::*;
use crate::config::{
    Databases, Instance, InstanceAddress, InstanceTls, PoolMode, Quota, Reset, Tenant, TenantBackup, TenantPool,
    TenantState, Tls, TlsMode,
};
use crate::net::test_certificates::Authority;
use crate::net::x509::CertificateFacts;

fn tls(folder: &TempDir) -> Tls {
    Tls { mode: TlsMode::Required, certificates: Some(folder.path().to_owned()), default_certificate: None }
}

fn tenant(id: &str, client_ca: Option<PathBuf>, required: bool) -> (String, Arc<Tenant>) {
    let instance = Instance {
        name: "pg1".into(),
        address: InstanceAddress::Tcp { host: "h".into(), port: 5432 },
        tls: InstanceTls::Off,
        tls_server_name: "h".into(),
        tls_ca: None,
        max_backends: 1,
        system_identifier: None,
        region: None,
    };
    let pool = TenantPool {
        mode: PoolMode::Transaction,
        max_backends: 1,
        max_backends_per_role: 1,
        min_backends: 0,
        guaranteed_backends: 0,
        guaranteed_backends_per_role: 0,
        weight: 1,
        queue_timeout: Duration::ZERO,
        idle_timeout: Duration::ZERO,
        lifetime: Duration::ZERO,
        reset: Reset::WhenDirty,
        pin_check: false,
        cache_unnamed: true,
        max_pins: None,
        max_pin_time: None,
    };
    let tenant = Tenant {
        region: None,
        credentials: None,
        id: id.into(),
        source: PathBuf::new(),
        instance: Arc::new(instance),
        tier: None,
        state: TenantState::Active,
        state_reason: None,
        maintenance_roles: Vec::new(),
        database: "app".into(),
        databases: Databases::Named(Vec::new()),
        roles: BTreeMap::new(),
        auth_query: None,
        service: None,
        allow: Vec::new(),
        client_ca,
        client_certificate_required: required,
        pool,
        quota: Quota::default(),
        backup: TenantBackup::default(),
        secret_files: Vec::new(),
    };
    (id.into(), Arc::new(tenant))
}

struct Client {
    roots: rustls::RootCertStore,
    identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    alpn: Vec<Vec<u8>>,
}

impl Client {
    fn new(authority: &Authority) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.der.clone()).unwrap();
        Self { roots, identity: None, alpn: Vec::new() }
    }

    fn with_identity(mut self, identity: (CertificateDer<'static>, PrivateKeyDer<'static>)) -> Self {
        self.identity = Some(identity);
        self
    }

    fn with_alpn(mut self, protocol: &str) -> Self {
        self.alpn.push(protocol.into());
        self
    }

    fn config(self) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots);
        let mut config = match self.identity {
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn;
        Arc::new(config)
    }
}

/// What the two ends know after a handshake.
struct Seen {
    /// SHA-256 of the certificate that the client got, and the channel binding that we would use.
    shown: Vec<u8>,
    binding: Option<Vec<u8>>,
    client_name: Option<String>,
    alpn: Option<Vec<u8>>,
}

async fn handshake(server: &ServerTls, client: Client, name: &str, tenant: Option<&str>) -> Result<Seen, String> {
    let (ours, theirs) = tokio::io::duplex(16_384);
    let accept = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), ours).await?;
        let choice = server.choose(start.client_hello().server_name(), tenant);
        let mut stream = start.into_stream(choice.config).await?;
        stream.write_all(b"x").await?;
        let connection = stream.get_ref().1;
        let peer = connection.peer_certificates().and_then(|chain| chain.first().cloned());
        let binding = choice.certificate.tls_server_end_point().map(<[u8]>::to_vec);
        std::io::Result::Ok((peer, binding, connection.alpn_protocol().map(<[u8]>::to_vec), stream))
    };
    let connect = async {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut stream = TlsConnector::from(client.config()).connect(name, theirs).await?;
        // With TLS 1.3 a client learns only now that its certificate was refused.
        stream.read_u8().await?;
        std::io::Result::Ok(Sha256::digest(&stream.get_ref().1.peer_certificates().unwrap()[0]).to_vec())
    };
    let (accepted, connected) = tokio::join!(accept, connect);
    let (peer, binding, alpn, _stream) = accepted.map_err(|error| error.to_string())?;
    let shown = connected.map_err(|error| error.to_string())?;
    let client_name = peer.and_then(|peer| CertificateFacts::read(&peer).unwrap().common_name);
    Ok(Seen { shown, binding, client_name, alpn })
}

fn setup() -> (TempDir, Authority) {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.write(folder.path(), "acme", "x", &["acme.db.example.com"]);
    authority.write(folder.path(), "wild", "x", &["*.db.example.com", "localhost"]);
    (folder, authority)
}

#[tokio::test]
async fn shows_the_certificate_whose_binding_it_gives() {
    let (folder, authority) = setup();
    let server = ServerTls::load(&tls(&folder), &BTreeMap::new()).unwrap();
    let mut shown = Vec::new();
    for name in ["acme.db.example.com", "globex.db.example.com"] {
        let seen = handshake(&server, Client::new(&authority), name, None).await.unwrap();
        assert_eq!(seen.binding.as_ref(), Some(&seen.shown));
        shown.push(seen.shown);
    }
    assert_ne!(shown[0], shown[1]);
}

#[tokio::test]
async fn alpn_is_negotiated_but_not_needed() {
    let (folder, authority) = setup();
    let server = ServerTls::load(&tls(&folder), &BTreeMap::new()).unwrap();
    let connect = |client| handshake(&server, client, "localhost", None);
    assert_eq!(connect(Client::new(&authority)).await.unwrap().alpn, None);
    let direct = connect(Client::new(&authority).with_alpn("postgresql")).await.unwrap();
    assert_eq!(direct.alpn.as_deref(), Some(ALPN_POSTGRESQL));
    assert!(connect(Client::new(&authority).with_alpn("h2")).await.is_err());
}

#[tokio::test]
async fn client_certificates_by_tenant() {
    let (folder, authority) = setup();
    let (theirs, stranger) = (Authority::new(), Authority::new());
    let ca = folder.path().join("acme-clients.pem");
    fs::write(&ca, &theirs.pem).unwrap();
    let tenants = BTreeMap::from([
        tenant("strict", Some(ca.clone()), true),
        tenant("open", Some(ca), false),
        tenant("none", None, false),
    ]);
    let server = ServerTls::load(&tls(&folder), &tenants).unwrap();
    let connect = |client, tenant| handshake(&server, client, "localhost", Some(tenant));
    let plain = || Client::new(&authority);
    let known = || plain().with_identity(theirs.issue("app", &[]));
    let unknown = || plain().with_identity(stranger.issue("app", &[]));

    assert!(connect(plain(), "strict").await.is_err());
    assert!(connect(unknown(), "strict").await.is_err());
    assert!(connect(unknown(), "open").await.is_err());
    for tenant in ["strict", "open"] {
        assert_eq!(connect(known(), tenant).await.unwrap().client_name.as_deref(), Some("app"), "{tenant}");
    }
    assert_eq!(connect(plain(), "open").await.unwrap().client_name, None);
    for tenant in ["none", "absent"] {
        assert!(connect(plain(), tenant).await.is_ok(), "{tenant} requires none");
        assert!(connect(unknown(), tenant).await.is_err(), "{tenant} takes none of a stranger");
        assert_eq!(connect(known(), tenant).await.unwrap().client_name.as_deref(), Some("app"), "{tenant}");
    }
}

#[test]
fn errors_name_tenant_and_file() {
    let (folder, _) = setup();
    let tenants = BTreeMap::from([tenant("acme", Some("/absent/ca.pem".into()), true)]);
    let error = ServerTls::load(&tls(&folder), &tenants).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("tenant acme: client_ca: /absent/ca.pem: cannot be read"), "{error}");
    let none = Tls { certificates: None, ..tls(&folder) };
    assert!(ServerTls::load(&none, &BTreeMap::new()).map(|_| ()).unwrap_err().to_string().contains("tls.certificates"));
}
