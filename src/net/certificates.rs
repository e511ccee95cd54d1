//! The certificates shown to clients: read from a folder, chosen by the name the client asks for (SNI).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::pem::{self, PemError};
use super::x509::CertificateFacts;

/// Why a folder of certificates cannot be used. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    #[error("{}: the folder of certificates cannot be read: {source}", folder.display())]
    Folder { folder: PathBuf, source: io::Error },
    #[error("{}: there is no certificate in the folder; put <name>.crt and <name>.key there", folder.display())]
    Empty { folder: PathBuf },
    #[error("{}: there is no {name}.crt, which tls.default_certificate names", folder.display())]
    NoDefault { folder: PathBuf, name: String },
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("{}: the first certificate cannot be read as X.509", path.display())]
    Unreadable { path: PathBuf },
    #[error("{}: has no DNS name and no common name, so no client could ask for it", path.display())]
    Nameless { path: PathBuf },
    #[error("{}: is not the key of {}: {reason}", key.display(), certificate.display())]
    Key { key: PathBuf, certificate: PathBuf, reason: rustls::Error },
}

/// One certificate with its chain and key.
#[derive(Debug)]
pub struct Certificate {
    /// The file's name without its ending.
    pub name: String,
    /// DNS names it is served for, lower case; `*.domain` for all names one label below.
    pub server_names: Vec<String>,
    pub facts: CertificateFacts,
    key: Arc<CertifiedKey>,
}

/// A set of certificates as read at one time. It never changes: a reload makes a new one.
#[derive(Debug)]
pub struct Certificates {
    all: Vec<Arc<Certificate>>,
    by_name: HashMap<String, Arc<Certificate>>,
    default: Arc<Certificate>,
}

impl Certificates {
    /// Reads every `<name>.crt` with its `<name>.key` in `folder`. One that cannot be used fails the whole set.
    ///
    /// Of two certificates with the same DNS name the one that expires later is served. `default` is the file name of
    /// the one for clients without or with an unknown SNI; without it `default` where that exists, else the first.
    pub fn load(folder: &Path, default: Option<&str>, provider: &CryptoProvider) -> Result<Self, CertificatesError> {
        let mut all = Vec::new();
        for path in certificate_files(folder)? {
            all.push(Arc::new(Certificate::load(&path, provider)?));
        }
        let wanted = default.unwrap_or("default");
        let found = all.iter().find(|certificate| certificate.name == wanted);
        let default = match (found, default) {
            (Some(found), _) => found.clone(),
            (None, Some(name)) => {
                return Err(CertificatesError::NoDefault { folder: folder.to_owned(), name: name.to_owned() });
            }
            (None, None) => {
                all.first().cloned().ok_or_else(|| CertificatesError::Empty { folder: folder.to_owned() })?
            }
        };

        let mut by_name: HashMap<String, Arc<Certificate>> = HashMap::new();
        for certificate in &all {
            for name in &certificate.server_names {
                let known = by_name.entry(name.clone()).or_insert_with(|| certificate.clone());
                if known.facts.not_after < certificate.facts.not_after {
                    *known = certificate.clone();
                }
            }
        }
        Ok(Self { all, by_name, default })
    }

    /// The certificate for a client that asks for `server_name`: by the exact name, by `*.` and its parent domain, or
    /// the default one.
    pub fn choose(&self, server_name: Option<&str>) -> &Arc<Certificate> {
        let found = server_name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            self.by_name.get(&name).or_else(|| {
                let (_, domain) = name.split_once('.')?;
                self.by_name.get(&format!("*.{domain}"))
            })
        });
        found.unwrap_or(&self.default)
    }

    /// Every certificate, ordered by file name.
    pub fn all(&self) -> &[Arc<Certificate>] {
        &self.all
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.choose(client_hello.server_name()).key.clone())
    }
}

impl Certificate {
    fn load(path: &Path, provider: &CryptoProvider) -> Result<Self, CertificatesError> {
        let chain = pem::certificates(path)?;
        let key_path = path.with_extension("key");
        let key = pem::private_key(&key_path)?;
        let unreadable = || CertificatesError::Unreadable { path: path.to_owned() };
        let facts = chain.first().and_then(|leaf| CertificateFacts::read(leaf).ok()).ok_or_else(unreadable)?;
        let server_names = facts.server_names();
        if server_names.is_empty() {
            return Err(CertificatesError::Nameless { path: path.to_owned() });
        }
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|reason| CertificatesError::Key {
            key: key_path,
            certificate: path.to_owned(),
            reason,
        })?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, server_names, facts, key: Arc::new(key) })
    }

    /// Channel-binding data for SCRAM-SHA-256-PLUS; none where the mechanism must not be offered.
    pub fn tls_server_end_point(&self) -> Option<&[u8]> {
        self.facts.tls_server_end_point.as_deref()
    }
}

fn certificate_files(folder: &Path) -> Result<Vec<PathBuf>, CertificatesError> {
    let failed = |source| CertificatesError::Folder { folder: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "crt") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use rcgen::date_time_ymd;

    use super::*;
    use crate::net::crypto_provider;
    use crate::net::test_certificates::{Authority, params};

    fn load(folder: &Path, default: Option<&str>) -> Result<Certificates, CertificatesError> {
        Certificates::load(folder, default, &crypto_provider())
    }

    #[test]
    fn exact_name_then_wildcard_then_default() {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        authority.write(folder.path(), "a-wild", "x", &["*.db.example.com"]);
        authority.write(folder.path(), "b-exact", "x", &["acme.db.example.com", "acme.example.org"]);
        authority.write(folder.path(), "c-common", "Plain.Example.net", &[]);
        let chosen = |set: &Certificates, name| set.choose(name).name.clone();

        let set = load(folder.path(), None).unwrap();
        for (name, file) in [
            (Some("acme.db.example.com"), "b-exact"),
            (Some("ACME.example.org"), "b-exact"),
            (Some("globex.db.example.com"), "a-wild"),
            (Some("deep.globex.db.example.com"), "a-wild"), // the default: a wildcard is one label
            (Some("plain.example.net"), "c-common"),
            (None, "a-wild"),
        ] {
            assert_eq!(chosen(&set, name), file, "{name:?}");
        }
        let set = load(folder.path(), Some("c-common")).unwrap();
        for name in [None, Some("deep.globex.db.example.com"), Some("db.example.com"), Some("com"), Some("")] {
            assert_eq!(chosen(&set, name), "c-common", "{name:?}");
        }
        authority.write(folder.path(), "default", "x", &["d.example.com"]);
        assert_eq!(chosen(&load(folder.path(), None).unwrap(), None), "default");
        assert_eq!(set.all().len(), 3);
    }

    #[test]
    fn the_later_expiry_wins() {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        for (file, year) in [("a", 2090), ("b", 2095), ("c", 2080)] {
            let mut params = params("x", &["acme.example.com"]);
            params.not_after = date_time_ymd(year, 1, 1);
            authority.write_params(folder.path(), file, params);
        }
        let set = load(folder.path(), None).unwrap();
        assert_eq!(set.choose(Some("acme.example.com")).name, "b");
        assert_eq!(set.choose(Some("acme.example.com")).facts.not_after.year(), 2095);
    }

    #[test]
    fn errors_name_the_file() {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let folder = folder.path();
        let message = |default| load(folder, default).unwrap_err().to_string();
        assert!(message(None).contains("no certificate in the folder"));
        authority.write(folder, "good", "x", &["a.example.com"]);
        assert!(message(Some("other")).contains("no other.crt"));

        let (certificate, key) = (folder.join("bad.crt"), folder.join("bad.key"));
        fs::write(&certificate, "nothing").unwrap();
        assert!(message(None).contains("bad.crt: not a PEM file of certificates: there is none in it"));
        fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        fs::copy(folder.join("good.key"), &key).unwrap();
        assert!(message(None).contains("bad.crt: the first certificate cannot be read"));
        authority.write(folder, "bad", "x", &["b.example.com"]);
        fs::copy(folder.join("good.key"), &key).unwrap();
        assert!(message(None).contains("bad.key: is not the key of"));
        fs::write(&key, "-----BEGIN PRIVATE KEY-----\nsecret!\n-----END PRIVATE KEY-----\n").unwrap();
        let text = message(None);
        assert!(text.contains("bad.key: not a PEM file of a private key") && !text.contains("secret"), "{text}");
        fs::remove_file(&key).unwrap();
        assert!(message(None).contains("bad.key: cannot be read"));
        authority.write(folder, "bad", "", &[]);
        assert!(message(None).contains("bad.crt: has no DNS name and no common name"));
        assert!(load(&folder.join("absent"), None).unwrap_err().to_string().contains("absent: the folder"));
    }
}
