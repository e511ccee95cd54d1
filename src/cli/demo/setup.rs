//! What the demo runs on: three instances, a tenant on each, a development CA, `proxy.toml`, and the proxy over it.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use secrecy::ExposeSecret;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::certificates::{DevCa, write_pair};
use super::client::Door;
use super::postgres::{Options, Postgres, free_port, parent_of_socket};
use super::screen::Screen;
use super::template::write_private;
use super::tenant::{Onboarded, Order, onboard};
use crate::app::App;
use crate::config::Log;
use crate::logging;
use crate::reload::Source;

/// In the certificate, but no tenant.
pub(super) const NOBODY: &str = "nosuch";

const NAMES: [&str; 3] = ["acme", "globex", "initech"];
const FOLDER_PREFIX: &str = "pgtenant-demo-";
/// What a user would expect; others are taken where these are not free.
const PORT: u16 = 6432;
const HTTP_PORT: u16 = 9930;
/// Looking for a port and taking it are two steps: somebody may come between them.
const PORT_ATTEMPTS: u32 = 10;
const LOG_LINES: usize = 10;

/// A tenant and the instance that it has to itself.
pub(super) struct Tenant {
    pub(super) onboarded: Onboarded,
    pub(super) postgres: Postgres,
}

impl Tenant {
    pub(super) fn id(&self) -> &str {
        &self.onboarded.tenant
    }
}

/// All of it, running. What [`Site::remove`] does not get to do, dropping does.
pub(super) struct Site {
    app: App,
    pub(super) tenants: Vec<Tenant>,
    ca: DevCa,
    folder: TempDir,
}

impl Site {
    /// Each step undoes itself when it, or one after it, fails or is dropped.
    pub(super) async fn set_up(screen: &Screen) -> anyhow::Result<Site> {
        let instances = screen.step("starting three PostgreSQL instances", start_instances()).await?;
        let what = format!("onboarding {}, one on each", NAMES.join(", "));
        let tenants = screen.step(&what, onboard_all(instances)).await?;
        let folder = folder()?;
        let (app, ca) = screen
            .step("making certificates, starting the proxy", async {
                let ca = write_files(folder.path(), &tenants)?;
                Ok((start_proxy(folder.path(), &tenants).await?, ca))
            })
            .await?;
        let site = Site { app, tenants, ca, folder };
        write_private(&site.service_file(), &site.services(), None)?;
        Ok(site)
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.app.addresses()[0]
    }

    pub(super) fn http_address(&self) -> SocketAddr {
        self.app.http_address().expect("proxy.toml sets http.address")
    }

    /// The proxy as clients with the development CA see it.
    pub(super) fn door(&self) -> anyhow::Result<Door> {
        let database = &self.tenants[0].onboarded.database;
        Door::new(self.address(), self.folder().to_owned(), database, &self.ca.certificate())
    }

    /// A service for each tenant, so that `psql service=acme` is all it takes.
    pub(super) fn service_file(&self) -> PathBuf {
        self.folder().join("pg_service.conf")
    }

    fn services(&self) -> String {
        let mut text = "# PGSERVICEFILE for libpq's programs and drivers: psql service=acme\n".to_owned();
        for Onboarded { tenant, database, role, password, .. } in self.tenants.iter().map(|tenant| &tenant.onboarded) {
            text += &format!(
                "\n[{tenant}]\nhost={tenant}.localhost\nhostaddr={address}\nport={port}\ndbname={database}\n\
                 user={role}\npassword={password}\nsslmode=verify-full\nsslrootcert={folder}/ca.crt\n",
                address = self.address().ip(),
                port = self.address().port(),
                password = password.expose_secret(),
                folder = self.folder().display(),
            );
        }
        text
    }

    /// The last lines of the proxy's log, but for those that every session ends with.
    pub(super) fn log_end(&self) -> String {
        let log = fs::read_to_string(log_file(self.folder())).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains(": session ended ")).collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Drains the proxy, for as long as `hurry` lets it, then ends the instances and removes every folder.
    pub(super) async fn remove(self, hurry: impl Future<Output = ()>) -> anyhow::Result<()> {
        self.app.drain(hurry).await;
        let mut ending = JoinSet::new();
        for tenant in self.tenants {
            ending.spawn_blocking(move || drop(tenant));
        }
        while ending.join_next().await.transpose()?.is_some() {}
        let path = self.folder.path().to_owned();
        self.folder.close().with_context(|| format!("cannot remove {}", path.display()))
    }
}

async fn start_instances() -> anyhow::Result<Vec<Postgres>> {
    let start = || Postgres::start(Options::default());
    let (one, two, three) = tokio::try_join!(start(), start(), start())?;
    Ok(vec![one, two, three])
}

async fn onboard_all(instances: Vec<Postgres>) -> anyhow::Result<Vec<Tenant>> {
    let mut tenants = Vec::new();
    for (name, postgres) in NAMES.iter().zip(instances) {
        let onboarded = onboard(&postgres, &Order::alone(name, &format!("pg-{name}"))).await?;
        tenants.push(Tenant { onboarded, postgres });
    }
    Ok(tenants)
}

fn folder() -> anyhow::Result<TempDir> {
    let parent = parent_of_socket(FOLDER_PREFIX);
    // Passwords and keys are in it.
    let private = fs::Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new().prefix(FOLDER_PREFIX).permissions(private).tempdir_in(&parent);
    folder.with_context(|| format!("cannot create a folder in {}; TMPDIR names another one", parent.display()))
}

/// Everything but `proxy.toml`, which needs ports.
fn write_files(folder: &Path, tenants: &[Tenant]) -> anyhow::Result<DevCa> {
    let ca = DevCa::new()?;
    ca.write(folder)?;
    // Some clients (rustls, for one) take no wildcard right below a top-level domain: each name by itself, too.
    let mut names = vec!["localhost".to_owned(), "*.localhost".to_owned(), format!("{NOBODY}.localhost")];
    names.extend(tenants.iter().map(|tenant| format!("{}.localhost", tenant.id())));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    write_pair(&folder.join("certs"), "localhost", &ca.server(&names)?)?;
    for tenant in tenants {
        tenant.onboarded.write(&folder.join("tenants.d"))?;
    }
    Ok(ca)
}

fn log_file(folder: &Path) -> PathBuf {
    folder.join("proxy.log")
}

async fn start_proxy(folder: &Path, tenants: &[Tenant]) -> anyhow::Result<App> {
    let log = File::create(log_file(folder)).with_context(|| format!("cannot write {}", log_file(folder).display()))?;
    logging::init_in_file(&Log::default(), log)?;
    let path = folder.join("proxy.toml");
    let mut attempts = 0;
    loop {
        let text = proxy_toml(choose_port(PORT)?, choose_port(HTTP_PORT)?, tenants)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        attempts += 1;
        match App::start(Source { path: Some(path.clone()), overrides: Vec::new() }).await {
            Err(error) if attempts < PORT_ATTEMPTS && is_taken(&error) => {}
            result => return result.context("the proxy does not start"),
        }
    }
}

/// The preferred port, or any other when somebody listens there.
fn choose_port(preferred: u16) -> anyhow::Result<u16> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, preferred)) {
        Ok(_) => Ok(preferred),
        Err(_) => free_port().context("cannot find a free port on 127.0.0.1"),
    }
}

fn is_taken(error: &anyhow::Error) -> bool {
    let io = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<io::Error>().map(io::Error::kind);
    error.chain().filter_map(io).any(|kind| kind == io::ErrorKind::AddrInUse)
}

fn proxy_toml(port: u16, http_port: u16, tenants: &[Tenant]) -> anyhow::Result<String> {
    let mut text = format!(
        "# The demo's proxy. It notices changes here and in tenants.d at once.\n\
         [listen]\naddresses = [\"127.0.0.1:{port}\"]\nunix_socket_dir = \".\"\n\n\
         [tls]\nmode = \"required\"\ncertificates = \"certs\"\n\n\
         [routing]\nsni_domains = [\"localhost\"]\n\n\
         [http]\naddress = \"127.0.0.1:{http_port}\"\n\n\
         [drain]\ntimeout = \"5s\"\n"
    );
    for Tenant { onboarded, postgres } in tenants {
        text += &format!(
            "\n[instances.{name}]\nhost = \"127.0.0.1\"\nport = {port}\nsystem_identifier = {identifier}\n",
            name = onboarded.instance,
            port = postgres.port(),
            identifier = postgres.system_identifier()?,
        );
    }
    Ok(text)
}
