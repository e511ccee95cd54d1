//! What we need to know of an X.509 certificate: its names, its validity, its hash for SCRAM channel binding.

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The bytes are no X.509 certificate that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a readable X.509 certificate")]
pub struct Unreadable;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The subject's common name; none where there is not exactly one, or it holds control characters: a name that
    /// can be read in two ways must not log anybody in.
    pub common_name: Option<String>,
    /// DNS names among the subject's alternative names, in lower case.
    pub dns_names: Vec<String>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    /// Channel-binding data of the type `tls-server-end-point` (RFC 5929 section 4.1): the certificate's hash, by the
    /// hash function of its signature, with SHA-256 in the place of MD5 and SHA-1. None for signatures without a
    /// single hash function of that kind (Ed25519, RSA-PSS): PostgreSQL's clients disagree there.
    pub tls_server_end_point: Option<Vec<u8>>,
}

impl CertificateFacts {
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, Unreadable> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| Unreadable)?;
        let validity = parsed.validity();
        Ok(Self {
            common_name: common_name(&parsed),
            dns_names: dns_names(&parsed)?,
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
            tls_server_end_point: end_point(&parsed.signature_algorithm.algorithm.to_id_string(), certificate),
        })
    }

    /// The names a server with this certificate answers to: the DNS names, or without any the common name.
    pub fn server_names(&self) -> Vec<String> {
        match (&self.dns_names[..], &self.common_name) {
            ([], Some(name)) => vec![name.to_ascii_lowercase()],
            (names, _) => names.to_vec(),
        }
    }
}

fn common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let mut names = certificate.subject().iter_common_name();
    let (first, second) = (names.next()?, names.next());
    let name = first.as_str().ok()?;
    (second.is_none() && !name.is_empty() && !name.chars().any(char::is_control)).then(|| name.to_owned())
}

fn dns_names(certificate: &X509Certificate<'_>) -> Result<Vec<String>, Unreadable> {
    let Some(extension) = certificate.subject_alternative_name().map_err(|_| Unreadable)? else {
        return Ok(Vec::new());
    };
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    };
    Ok(extension.value.general_names.iter().filter_map(dns).collect())
}

fn end_point(signature_algorithm: &str, der: &[u8]) -> Option<Vec<u8>> {
    // From RFC 3279, 4055 and 5758.
    Some(match signature_algorithm {
        // MD5 and SHA-1 with RSA, SHA-1 with ECDSA.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => Sha256::digest(der).to_vec(),
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" => Sha256::digest(der).to_vec(),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Sha384::digest(der).to_vec(),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Sha512::digest(der).to_vec(),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => Sha224::digest(der).to_vec(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::net::test_certificates::{Authority, params};

    fn facts(algorithm: &'static rcgen::SignatureAlgorithm) -> (CertificateFacts, Vec<u8>) {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let certificate = params("db.example.com", &["A.example.com"]).self_signed(&key).unwrap();
        (CertificateFacts::read(certificate.der()).unwrap(), certificate.der().to_vec())
    }

    #[test]
    fn end_point_is_the_hash_by_the_signature() {
        let (read, der) = facts(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert_eq!(read.tls_server_end_point, Some(Sha256::digest(der).to_vec()));
        let (read, der) = facts(&rcgen::PKCS_ECDSA_P384_SHA384);
        assert_eq!(read.tls_server_end_point, Some(Sha384::digest(der).to_vec()));
        let (read, _) = facts(&rcgen::PKCS_ED25519);
        assert_eq!(read.tls_server_end_point, None);
    }

    #[test]
    fn the_issuers_signature_counts_not_the_own_key() {
        let authority = Authority::with_algorithm(&rcgen::PKCS_ECDSA_P384_SHA384);
        let (leaf, _) = authority.issue("x", &["x.example.com"]);
        let read = CertificateFacts::read(&leaf).unwrap();
        assert_eq!(read.tls_server_end_point, Some(Sha384::digest(&leaf).to_vec()));
    }

    #[test]
    fn rsa_signatures_of_openssl() {
        // openssl req -x509 -newkey rsa:1024 -nodes -subj /CN=r -days 1 [-sha1 | -sha512 | -sigopt rsa_padding_mode:pss]
        let read = |text: &str| {
            let der = STANDARD.decode(text).unwrap();
            (CertificateFacts::read(&CertificateDer::from(der.clone())).unwrap(), der)
        };
        let (sha1, der) = read(RSA_SHA1);
        assert_eq!(sha1.tls_server_end_point, Some(Sha256::digest(der).to_vec()));
        assert_eq!(sha1.server_names(), ["r"]);
        let (sha512, der) = read(RSA_SHA512);
        assert_eq!(sha512.tls_server_end_point, Some(Sha512::digest(der).to_vec()));
        assert_eq!(read(RSA_PSS).0.tls_server_end_point, None);
    }

    #[test]
    fn names_and_validity() {
        let (read, _) = facts(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert_eq!(read.common_name.as_deref(), Some("db.example.com"));
        assert_eq!(read.server_names(), ["a.example.com"]);
        assert!(read.not_before < read.not_after);
        assert_eq!(CertificateFacts::read(&CertificateDer::from(vec![0x30, 0x80, 1])), Err(Unreadable));
    }

    #[test]
    fn an_ambiguous_common_name_is_none() {
        let key = rcgen::KeyPair::generate().unwrap();
        for name in ["app\u{0}evil", "", "a\nb"] {
            let certificate = params(name, &[]).self_signed(&key).unwrap();
            assert_eq!(CertificateFacts::read(certificate.der()).unwrap().common_name, None, "{name:?}");
        }
    }

    const RSA_SHA1: &str = "MIIB9DCCAV2gAwIBAgIUTfMAOYi5HDMsq7dIK2zgsSiWMTAwDQYJKoZIhvcNAQEFBQAwDDEKMAgGA1UEAwwBcjAeFw0yNjExMjMwNjI2MjdaFw0yNjExMjQwNjI2MjdaMAwxCjAIBgNVBAMMAXIwgZ8wDQYJKoZIhvcNAQEBBQADgY0AMIGJAoGBAObZR/mLRc69wof/ZpheHnIRutntHWBKEgCFi/INKyZ8MojWzkKj7q77rLD+zysrKkCKJ9Iw92RybEqVaKgmktAmjKo5D24QG6o/LanKbtQYcPK7E3MgEd30DPXDSRW1CIPqu1NjPjGNblzvIFNQEL2cSJ4sMZ82slWaHyiQKqoLAgMBAAGjUzBRMB0GA1UdDgQWBBTLcW6q4yaDtqiENhO7Y5IQ0YDCcTAfBgNVHSMEGDAWgBTLcW6q4yaDtqiENhO7Y5IQ0YDCcTAPBgNVHRMBAf8EBTADAQH/MA0GCSqGSIb3DQEBBQUAA4GBALhhCQOZEOAl20k8qz1Ppkl2DOfz6Omj5GJdaWargbXUYjDyagONYR/HP8xHq8G1lYFmSnvpmfv/oaCZk/rKcO/aUgtxpa9igvK7b7Q3SNF4369krKt1wd89TTq3/mV1VkRvyIJVxAfDAInc0mUE52/SFA/QDWdWX9tiNrezsAQS";
    const RSA_SHA512: &str = "MIIB9DCCAV2gAwIBAgIUIptslp9OmLJFh3z/wO4Uc52LRCMwDQYJKoZIhvcNAQENBQAwDDEKMAgGA1UEAwwBcjAeFw0yNjExMjMwNjI2MjdaFw0yNjExMjQwNjI2MjdaMAwxCjAIBgNVBAMMAXIwgZ8wDQYJKoZIhvcNAQEBBQADgY0AMIGJAoGBAMXVTGyTnOGtrTr7U/PzF5bIfITpyIGgkQutpA1BqMRsE7y/jWGvXCNMpHnzEpYK4TIvQ5X5n7vHG8xcEXzXX8A8QZkQKksGsPTdIwd7XxH7T+K66puyNJTp1gG8P2SVqo08E9cVt1pT58n9nClalCB5pqCd/fLZgka8/XXZfl9VAgMBAAGjUzBRMB0GA1UdDgQWBBSlST5b8QcBeMQ0drX0NLr/4HvtEzAfBgNVHSMEGDAWgBSlST5b8QcBeMQ0drX0NLr/4HvtEzAPBgNVHRMBAf8EBTADAQH/MA0GCSqGSIb3DQEBDQUAA4GBALbBrO+Cgb3sukV8YOcLMVpOTN9+WMurK1OPiPVvDAHMskb3Sbl8wckX9TKzfFKei86rsESOl8EnepQkktt5sKUDlggZ8oVnXsZOhTlc3DYSbL8/+h9UysBkcm9zmqytKjhSZIc5jTWyOVYEzUXus/b6KkTD5JRzDmtJbdxLpODk";
    const RSA_PSS: &str = "MIICXDCCAZGgAwIBAgIUFjyE4V2SNMwMVsh4Zp9zVf0JUacwQQYJKoZIhvcNAQEKMDSgDzANBglghkgBZQMEAgEFAKEcMBoGCSqGSIb3DQEBCDANBglghkgBZQMEAgEFAKIDAgFeMAwxCjAIBgNVBAMMAXIwHhcNMjYxMTIzMDYyNjI3WhcNMjYxMTI0MDYyNjI3WjAMMQowCAYDVQQDDAFyMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCi0MsAOyiF+ssAwakkaBa4A3kUZkA0Eo2a3HQBvxnxDkAiu4nOJ3Z/a6cRYcSMjaBROlrafbuMtgN2hRlnUxVspkfaq7yOQUYzd/mTOqTmGAQJg4AIIqbLO/jBO2BmZh0wfxbU1FtYvn7TVDsa+VQm0gr+WWMvotc1QNzTGoOFuwIDAQABo1MwUTAdBgNVHQ4EFgQUQr+O3UuKvQ/syuOXnzZwgfjp4ckwHwYDVR0jBBgwFoAUQr+O3UuKvQ/syuOXnzZwgfjp4ckwDwYDVR0TAQH/BAUwAwEB/zBBBgkqhkiG9w0BAQowNKAPMA0GCWCGSAFlAwQCAQUAoRwwGgYJKoZIhvcNAQEIMA0GCWCGSAFlAwQCAQUAogMCAV4DgYEAlxqytahe5tPKHP7+Q6o3Qj0SldD/unBdWdq4otKz+Zd1ehnM+AzcFS1fi4+ObdQl6S14zhsNxFuqFKp+pvqP7V+OFY3MVE0GigOIADxeMqkRZL/xcy1/4Rxx7/zeQedJo8qcMdg0fgeZOtuQ9bE62NQtIo9b5wNTKUF9ejWyzAQ=";
}
