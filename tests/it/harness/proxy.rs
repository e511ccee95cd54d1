//! The proxy under test: a builder for its configuration in a private folder, and the proxy itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pgtenant::app::App;
use pgtenant::cli::demo::certificates::{DevCa, write_pair};
use pgtenant::cli::demo::postgres::Postgres;
use pgtenant::cli::demo::tenant::Onboarded;
use pgtenant::lifecycle::record;
use pgtenant::reload::Source;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use toml::{Table, Value};

/// `proxy.toml`, `tenants.d` and `certs`, removed on drop. Defaults of a test: TLS off, free ports, a quick drain.
pub struct ProxyFiles {
    dir: TempDir,
    proxy: Table,
}

impl ProxyFiles {
    pub fn new() -> ProxyFiles {
        let dir = tempfile::Builder::new().prefix("pgtenant-it-").tempdir().expect("a temporary folder");
        let proxy = toml::toml! {
            tenants_dir = "tenants.d"
            [listen]
            addresses = ["127.0.0.1:0"]
            [tls]
            mode = "off"
            [http]
            address = "127.0.0.1:0"
            [drain]
            timeout = "5s"
        };
        let files = ProxyFiles { dir, proxy };
        std::fs::create_dir(files.tenants_dir()).expect("a folder in a new one");
        files
    }

    /// Sets a key of `proxy.toml` by its dotted name, such as `pool.queue_timeout`.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> ProxyFiles {
        set_key(&mut self.proxy, key, value.into());
        self
    }

    /// Leaves a key of the first level to its default.
    pub fn unset(mut self, key: &str) -> ProxyFiles {
        self.proxy.remove(key);
        self
    }

    /// An instance as `[instances.<name>]`, over TCP.
    pub fn instance(self, name: &str, postgres: &Postgres) -> ProxyFiles {
        self.instance_at(name, postgres.address())
    }

    /// The same at another address, a [`super::faulty_link::FaultyLink`]'s for one.
    pub fn instance_at(self, name: &str, address: SocketAddr) -> ProxyFiles {
        self.set(&format!("instances.{name}.host"), address.ip().to_string())
            .set(&format!("instances.{name}.port"), i64::from(address.port()))
    }

    /// Writes a server certificate as `certs/<first name>.crt` and requires TLS; may be called again for more names.
    pub fn certificate(self, ca: &DevCa, names: &[&str]) -> ProxyFiles {
        let certs = self.dir.path().join("certs");
        let file = names.first().expect("a certificate has a name").replace('*', "_wildcard");
        write_pair(&certs, &file, &ca.server(names).expect("a certificate")).expect("files in a new folder");
        self.set("tls.mode", "required").set("tls.certificates", "certs")
    }

    /// Writes a tenant's record as it is.
    pub fn tenant(self, tenant: &Onboarded) -> ProxyFiles {
        self.tenant_with(tenant, &[])
    }

    /// Writes a tenant's record with keys changed by their dotted names.
    pub fn tenant_with(self, tenant: &Onboarded, changes: &[(&str, Value)]) -> ProxyFiles {
        self.rewrite_tenant(tenant, changes);
        self
    }

    /// The same later on, while the proxy runs.
    pub fn rewrite_tenant(&self, tenant: &Onboarded, changes: &[(&str, Value)]) {
        let mut written = tenant.record();
        for (key, value) in changes {
            set_key(&mut written, key, value.clone());
        }
        record::write(&self.tenants_dir(), &tenant.tenant, &written).expect("a file in the tenants' folder");
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn tenants_dir(&self) -> PathBuf {
        self.dir.path().join("tenants.d")
    }

    /// Writes `proxy.toml` and returns its path.
    pub fn write(&self) -> PathBuf {
        let path = self.dir.path().join("proxy.toml");
        std::fs::write(&path, self.proxy.to_string()).expect("a file in a new folder");
        path
    }
}

fn set_key(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((first, rest)) => {
            let entry = table.entry(first).or_insert_with(|| Table::new().into());
            set_key(entry.as_table_mut().expect("a table, since the key goes on"), rest, value);
        }
    }
}

/// A running proxy over its files; ended when dropped.
pub struct Proxy {
    pub files: ProxyFiles,
    app: Option<App>,
}

impl Proxy {
    pub async fn start(files: ProxyFiles) -> Proxy {
        let source = Source { path: Some(files.write()), overrides: Vec::new() };
        let app = App::start(source).await.unwrap_or_else(|error| panic!("the proxy does not start: {error:#}"));
        Proxy { files, app: Some(app) }
    }

    fn app(&self) -> &App {
        self.app.as_ref().expect("taken only by drain")
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.app().addresses()[0]
    }

    pub fn http_address(&self) -> SocketAddr {
        self.app().http_address().expect("http.address is set")
    }

    /// Reads the configuration again at once.
    pub fn reload(&self) -> Result<(), pgtenant::reload::LoadError> {
        self.app().reload()()
    }

    /// Drains as SIGTERM does; `hurry` stands for the second signal.
    pub async fn drain(mut self, hurry: impl Future<Output = ()>) {
        self.app.take().expect("drained once").drain(hurry).await;
    }

    /// The value of a series on `/metrics`, all lines that begin with `series` summed.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = http_get(self.http_address(), "/metrics").await.1;
        text.lines()
            .filter(|line| line.starts_with(series))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

/// A GET over plain HTTP: the status and the body.
pub async fn http_get(address: SocketAddr, path: &str) -> (u16, String) {
    http_get_with(address, path, &[]).await
}

/// The same with further headers.
pub async fn http_get_with(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    http_ask(TcpStream::connect(address).await.expect("the HTTP endpoint"), "GET", path, headers, "").await
}

/// A request over any connection: the status and the body.
pub async fn http_ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| *name == "Host") {
        request += "Host: localhost\r\n";
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{request}\r\n{body}").as_bytes()).await.expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned()))
}
