//! Instances: those of `[instances.*]`, and the files of the folder where provisioners put what they have made.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::document::Document;
use super::lifecycle::{self, Host};
use super::problem::{Problem, Scope};
use super::{Instance, InstanceAddress, InstanceTls, file, read, tenants};

/// By name; `dir` is as written in `proxy.toml`, whose scope is given.
pub(super) fn resolve(
    dir: &Path,
    inline: BTreeMap<String, file::Instance>,
    proxy: &mut Scope<'_, '_>,
) -> BTreeMap<String, Host> {
    let mut tables = proxy.enter("instances");
    let hosts = inline.into_iter().map(|(name, written)| {
        let host = host(&name, written, tables.enter(&name));
        (name, host)
    });
    let mut hosts: BTreeMap<String, Host> = hosts.collect();
    for path in tenants::record_files("instances_dir", dir, file::INSTANCES_DIR, proxy) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if hosts.contains_key(&name) {
            let message =
                format!("instance {name:?} is in {} already; keep one of them", proxy.document.path.display());
            proxy.gathered.add(Problem::of_file(&path, message));
            continue;
        }
        let document = match Document::read(&path) {
            Ok(document) => document,
            Err(problem) => {
                proxy.gathered.add(problem);
                continue;
            }
        };
        let written: file::Instance = read::read(&document, proxy.gathered);
        let scope = Scope { document: &document, table: String::new(), gathered: proxy.gathered };
        let host = host(&name, written, scope);
        hosts.insert(name, host);
    }
    hosts
}

fn host(name: &str, mut written: file::Instance, mut scope: Scope<'_, '_>) -> Host {
    let instance = Arc::new(instance(name.to_owned(), &mut written, &mut scope));
    lifecycle::host(&written, instance, scope)
}

fn instance(name: String, written: &mut file::Instance, scope: &mut Scope<'_, '_>) -> Instance {
    if let Err(message) = tenants::check_id(&name) {
        scope.problem("", format!("an instance's name {message}"));
    }
    if written.host.is_none() {
        scope.problem("host", "missing; write a host name, an address or a socket's folder");
    }
    let host = written.host.take().unwrap_or_default();
    let ip: Option<IpAddr> = host.parse().ok();
    let folder = host.starts_with('/');
    if !folder && ip.is_none() && host.contains([':', ' ', '/', '[']) {
        scope
            .problem("host", format!("{host:?} is no host; a port goes into `port`, further settings into their keys"));
    }
    scope.require(written.port != 0, "port", "must not be 0");
    scope.require(written.max_backends > 0, "max_backends", "at least 1 is needed");
    let tls_ca = written.tls_ca.take().map(|ca| scope.file("tls_ca", &ca));
    let local = folder || host == "localhost" || ip.is_some_and(|ip| ip.is_loopback());
    let tls = written.tls.unwrap_or(match (&tls_ca, local) {
        (Some(_), _) => InstanceTls::VerifyFull,
        (None, false) => InstanceTls::Require,
        (None, true) => InstanceTls::Off,
    });
    let verifies = matches!(tls, InstanceTls::VerifyCa | InstanceTls::VerifyFull);
    if folder && tls != InstanceTls::Off {
        scope.problem("tls", "PostgreSQL has no TLS on Unix sockets; leave out tls and tls_ca");
    } else if verifies && tls_ca.is_none() {
        scope.problem("tls_ca", "needed to verify the instance's certificate; name the CA's PEM file");
    } else if !verifies && tls_ca.is_some() {
        scope.problem("tls", "does not look at certificates, but tls_ca is set; use verify-full or verify-ca");
    }
    let port = written.port;
    let address = match folder {
        true => InstanceAddress::Unix { dir: PathBuf::from(&host), port },
        false => InstanceAddress::Tcp { host: host.clone(), port },
    };
    Instance {
        name,
        address,
        tls,
        tls_server_name: written.tls_server_name.take().unwrap_or(host),
        tls_ca,
        max_backends: written.max_backends,
        system_identifier: written.system_identifier.take().map(|id| id.0),
        region: written.region.take(),
    }
}
