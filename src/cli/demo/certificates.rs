//! A development CA and the certificates it signs, made at run time: checked-in ones expire.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// Long enough for a demo that is left running, short enough that nobody takes these for real ones.
const VALIDITY: Duration = Duration::days(90);

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot make a certificate for {name}: {source}")]
    Make { name: String, source: rcgen::Error },
    #[error("cannot write {path}: {source}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// A certificate authority for one demo or one test; its key never leaves memory.
pub struct DevCa {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl DevCa {
    /// A new CA with an ECDSA P-256 key.
    pub fn new() -> Result<DevCa, CertificateError> {
        let name = "pgtenant development CA";
        let mut params = params(&[], name)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed(name))?;
        let certificate = params.self_signed(&key).map_err(failed(name))?;
        Ok(DevCa { certificate, issuer: Issuer::new(params, key) })
    }

    /// The CA's certificate, PEM.
    pub fn certificate(&self) -> String {
        self.certificate.pem()
    }

    /// Certificate and key (PEM) of a server with these DNS names (wildcards too) and IP addresses; the first one is
    /// the common name.
    ///
    /// # Panics
    ///
    /// When `names` is empty.
    pub fn server(&self, names: &[&str]) -> Result<(String, String), CertificateError> {
        let name = names.first().expect("a server has a name");
        self.sign(params(names, name)?, name, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Certificate and key (PEM) of a client with this common name.
    pub fn client(&self, common_name: &str) -> Result<(String, String), CertificateError> {
        self.sign(params(&[], common_name)?, common_name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(String, String), CertificateError> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed(name))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed(name))?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// Writes `ca.crt` into `dir`, which is made where it is missing; returns the file's path.
    pub fn write(&self, dir: &Path) -> Result<PathBuf, CertificateError> {
        let path = dir.join("ca.crt");
        write_file(&path, &self.certificate(), 0o644)?;
        Ok(path)
    }
}

/// Writes `<name>.crt` and `<name>.key` (mode 0600) into `dir`, which is made where it is missing.
pub fn write_pair(dir: &Path, name: &str, (certificate, key): &(String, String)) -> Result<(), CertificateError> {
    // The key first: whoever watches for a new .crt finds its key.
    write_file(&dir.join(format!("{name}.key")), key, 0o600)?;
    write_file(&dir.join(format!("{name}.crt")), certificate, 0o644)
}

fn params(names: &[&str], common_name: &str) -> Result<CertificateParams, CertificateError> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).map_err(failed(common_name))?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = OffsetDateTime::now_utc();
    // A little earlier, for clocks that differ between a container and its host.
    params.not_before = now - Duration::minutes(5);
    params.not_after = now + VALIDITY;
    Ok(params)
}

fn failed(name: &str) -> impl FnOnce(rcgen::Error) -> CertificateError {
    move |source| CertificateError::Make { name: name.to_owned(), source }
}

/// A new file in place of an old one, so that the mode holds for both.
fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), CertificateError> {
    let write = || {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(text.as_bytes())
    };
    write().map_err(|source| CertificateError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    use std::os::unix::fs::PermissionsExt;
    use x509_parser::prelude::*;

    #[test]
    fn a_server_certificate_has_its_names_and_the_ca_behind_it() {
        let ca = DevCa::new().unwrap();
        let (pem, _) = ca.server(&["db.localhost", "*.db.localhost", "127.0.0.1"]).unwrap();
        let ca_der = CertificateDer::from_pem_slice(ca.certificate().as_bytes()).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, ca_certificate) = X509Certificate::from_der(&ca_der).unwrap();
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(certificate.issuer(), ca_certificate.subject());
        let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
        assert_eq!(
            names,
            [
                GeneralName::DNSName("db.localhost"),
                GeneralName::DNSName("*.db.localhost"),
                GeneralName::IPAddress(&[127, 0, 0, 1])
            ]
        );
        assert!(ca_certificate.is_ca());
        assert!(!certificate.is_ca());
    }

    #[test]
    fn keys_are_private_also_when_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("certs");
        let ca = DevCa::new().unwrap();
        ca.write(&certs).unwrap();
        for _ in 0..2 {
            write_pair(&certs, "app", &ca.client("app").unwrap()).unwrap();
            let mode = fs::metadata(certs.join("app.key")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(certs.join("ca.crt").exists() && certs.join("app.crt").exists());
    }
}
