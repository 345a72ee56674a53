//! A certificate authority of its own, by the `openssl` program.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ServerError, failed};

/// An authority; its directory is gone with it.
#[derive(Debug)]
pub struct Certificates {
    directory: PathBuf,
}

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub cert: PathBuf,
    /// The key, which every user may read.
    pub key: PathBuf,
}

impl Certificates {
    /// A new authority.
    pub fn new() -> Result<Self, ServerError> {
        let name = format!("cachekeeper-certificates-{:016x}", rand::random::<u64>());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).map_err(|error| failed("making a directory", error))?;
        let authority = Self { directory };
        let subject = format!("/CN=authority {:08x}", rand::random::<u32>());
        let mut arguments = KEY.to_vec();
        arguments.extend(["-x509", "-days", "2", "-subj", &subject, "-keyout", "ca.key", "-out", "ca.pem"]);
        authority.openssl(&arguments)?;
        Ok(authority)
    }

    /// The authority's own certificate.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// A certificate for hosts, such as `DNS:localhost,IP:127.0.0.1`, that is valid for two days. An older one of this name is
    /// replaced.
    pub fn issue(&self, name: &str, hosts: &str) -> Result<Certificate, ServerError> {
        self.issue_until(name, hosts, &["-days", "2"])
    }

    /// The same, but its time is over.
    pub fn issue_expired(&self, name: &str, hosts: &str) -> Result<Certificate, ServerError> {
        self.issue_until(name, hosts, &["-startdate", "20200101000000Z", "-enddate", "20210101000000Z"])
    }

    fn issue_until(&self, name: &str, hosts: &str, valid: &[&str]) -> Result<Certificate, ServerError> {
        let file = |ending: &str| format!("{name}.{ending}");
        let (key, request, cert) = (file("key"), file("csr"), file("pem"));
        let subject = format!("/CN={name}");
        let mut arguments = KEY.to_vec();
        arguments.extend(["-subj", &subject, "-keyout", &key, "-out", &request]);
        self.openssl(&arguments)?;
        // `openssl x509` of Debian 12 cannot set both ends of a time; `openssl ca` can, and wants a database.
        for (file, text) in [
            (
                "ca.cnf",
                "[ca]\ndefault_ca = own\n[own]\ndatabase = index\nnew_certs_dir = .\nrand_serial = yes\n\
                 default_md = sha256\npolicy = any\nunique_subject = no\n[any]\ncommonName = supplied\n",
            ),
            ("index", ""),
            ("hosts", &format!("subjectAltName = {hosts}\n")),
        ] {
            std::fs::write(self.directory.join(file), text)
                .map_err(|error| failed("writing a file", error))?;
        }
        let mut arguments = vec!["ca", "-batch", "-notext", "-config", "ca.cnf", "-extfile", "hosts"];
        arguments.extend(["-cert", "ca.pem", "-keyfile", "ca.key", "-in", &request, "-out", &cert]);
        arguments.extend(valid);
        self.openssl(&arguments)?;
        Ok(Certificate { cert: self.directory.join(cert), key: self.directory.join(key) })
    }

    /// The directory, for files that tests put beside.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn openssl(&self, arguments: &[&str]) -> Result<(), ServerError> {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(&self.directory)
            .output()
            .map_err(|_missing| ServerError::Missing { program: "openssl" })?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(format!("openssl {}", arguments.join(" ")), String::from_utf8_lossy(&output.stderr)))
    }
}

const KEY: [&str; 6] = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

impl Drop for Certificates {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.directory));
    }
}
