//! Certificate and key of the listener.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, crypto};

use super::problem::FileProblem;
use cachekeeper_config::{Certificate, TlsIdentity};

/// What the two files hold.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Pem {
    certificates: Vec<u8>,
    key: Vec<u8>,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("***")
    }
}

impl Pem {
    /// What is wrong with either.
    pub(super) fn read(identity: &TlsIdentity) -> Result<Self, Vec<FileProblem>> {
        match (content("cert_file", &identity.cert_file), content("key_file", &identity.key_file)) {
            (Ok(certificates), Ok(key)) => Ok(Self { certificates, key }),
            (certificates, key) => Err(certificates.err().into_iter().chain(key.err()).collect()),
        }
    }

    /// What TLS is spoken with.
    pub(super) fn server(&self) -> Result<Arc<ServerConfig>, FileProblem> {
        let certificates = certificates(&self.certificates)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| FileProblem {
            setting: "key_file",
            message: format!("the key cannot be read: {error}"),
            help: "give a key in PEM form that is not encrypted, with -----BEGIN PRIVATE KEY-----",
        })?;
        let begins = Certificate::all_of(&self.certificates);
        let is_authority = begins.first().is_some_and(|first| first.is_authority);
        let authority =
            if is_authority { " (the file begins with the certificate of an authority)" } else { "" };
        let unusable = |error: rustls::Error| FileProblem {
            setting: "cert_file",
            message: format!("certificate and key cannot be used: {error}{authority}"),
            help: "give the certificate of this key, and behind it those that lead to its authority",
        };
        let builder = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(unusable)?;
        let mut config =
            builder.with_no_client_auth().with_single_cert(certificates, key).map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// The certificates of a file, the listener's own first.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileProblem> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let wrong = |message: String| FileProblem {
        setting: "cert_file",
        message,
        help: "give a certificate in PEM form, with -----BEGIN CERTIFICATE-----",
    };
    match found {
        Ok(found) if found.is_empty() => Err(wrong("the file holds no certificate".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(format!("the certificate cannot be read: {error}"))),
    }
}

fn content(setting: &'static str, file: &Path) -> Result<Vec<u8>, FileProblem> {
    std::fs::read(file).map_err(|error| FileProblem {
        setting,
        message: format!("{} cannot be read: {error}", file.display()),
        help: "give a file that this user may read",
    })
}
