//! Certificates for tests, made by the `openssl` program.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::servers::{ServerError, is_root};

/// An authority of certificates, whose files go with it.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
}

/// A certificate and its key, as files that only their owner may read.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key, not encrypted.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// [`ServerError`] where `openssl` does not.
    pub fn new() -> Result<Self, ServerError> {
        let directory = std::env::temp_dir().join(format!("cachekeeper-ca-{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(&directory).map_err(|error| failed(&error.to_string()))?;
        let authority = Self { directory };
        openssl(
            &authority.directory,
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=test-authority",
        )?;
        std::fs::write(authority.directory.join("index.txt"), "")
            .map_err(|error| failed(&error.to_string()))?;
        Ok(authority)
    }

    /// Its own certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// Makes a certificate for a common name and alternative names such as `DNS:localhost,IP:127.0.0.1`.
    ///
    /// # Errors
    /// [`ServerError`] where `openssl` does not.
    pub fn issue(&self, name: &str, alternatives: &str) -> Result<Certificate, ServerError> {
        self.issue_between(name, alternatives, ("20200101000000Z", "20491231235959Z"))
    }

    /// The same, of which the validity is over.
    ///
    /// # Errors
    /// [`ServerError`] where `openssl` does not.
    pub fn issue_expired(&self, name: &str, alternatives: &str) -> Result<Certificate, ServerError> {
        self.issue_between(name, alternatives, ("20200101000000Z", "20210101000000Z"))
    }

    fn issue_between(
        &self,
        name: &str,
        alternatives: &str,
        (from, to): (&str, &str),
    ) -> Result<Certificate, ServerError> {
        let serial = rand::random::<u64>();
        let file = format!("{name}-{serial:016x}");
        let configuration = format!(
            "[ca]\ndefault_ca = own\n[own]\ndatabase = index.txt\nnew_certs_dir = .\nrand_serial = yes\n\
             default_md = sha256\npolicy = any\nunique_subject = no\nx509_extensions = ext\n\
             [any]\ncommonName = supplied\n[ext]\nbasicConstraints = CA:FALSE\nsubjectAltName = {alternatives}\n"
        );
        std::fs::write(self.directory.join(format!("{file}.cnf")), configuration)
            .map_err(|error| failed(&error.to_string()))?;
        openssl(
            &self.directory,
            &format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {file}.key -out {file}.csr -subj /CN={name}"
            ),
        )?;
        openssl(
            &self.directory,
            &format!(
                "ca -batch -notext -config {file}.cnf -cert ca.crt -keyfile ca.key -in {file}.csr -out {file}.crt \
                 -startdate {from} -enddate {to}"
            ),
        )?;
        let path = |end: &str| self.directory.join(format!("{file}.{end}"));
        Ok(Certificate { certificate: path("crt"), key: path("key") })
    }
}

impl Certificate {
    /// Lets the servers that the kit starts read them, who run as another user where this is root.
    ///
    /// # Errors
    /// [`ServerError`] where that cannot be.
    pub fn for_server(self) -> Result<Self, ServerError> {
        if is_root() {
            for file in [&self.certificate, &self.key] {
                let status = Command::new("chown").arg("postgres:postgres").arg(file).status();
                if !status.is_ok_and(|status| status.success()) {
                    return Err(failed("chown postgres failed"));
                }
            }
        }
        Ok(self)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

fn failed(detail: &str) -> ServerError {
    ServerError::Failed { what: "making certificates".to_owned(), detail: detail.to_owned() }
}

fn openssl(directory: &Path, arguments: &str) -> Result<(), ServerError> {
    let output = Command::new("openssl").args(arguments.split_whitespace()).current_dir(directory).output();
    let output = output.map_err(|_missing| ServerError::Missing { program: "openssl" })?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(&format!("{arguments}: {}", String::from_utf8_lossy(&output.stderr))))
}
