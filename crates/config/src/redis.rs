//! How Redis is reached.

use std::path::PathBuf;
use std::time::Duration;

use super::{AddressFlaw, ClusterNodes, Password, Secret, Sentinels};

/// `[redis]`
#[derive(Clone, Debug)]
pub struct Redis {
    /// Where Redis is, the sentinels that know it, or nodes of a cluster. May hold a password.
    pub url: Secret,
    /// Overrides the password of the URL.
    pub password: Option<Password>,
    /// The user of the sentinels; none: their default user.
    pub sentinel_username: Option<String>,
    /// The password of the sentinels; none: they ask for none.
    pub sentinel_password: Option<Password>,
    /// Certificates, where the URL asks for TLS.
    pub tls: Tls,
    /// Time limit for a connection attempt.
    pub connect_timeout: Duration,
    /// Time limit for the reply to one command.
    pub response_timeout: Duration,
}

/// Files of certificates (PEM). They are read for each new connection, so they may be replaced at any time.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Tls {
    /// The authorities that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate with those that lead to its authority, and its key.
    pub identity: Option<TlsIdentity>,
}

/// A client's certificate and its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsIdentity {
    /// The certificate, and behind it those that lead to its authority.
    pub cert_file: PathBuf,
    /// The key, not encrypted.
    pub key_file: PathBuf,
}

impl Redis {
    /// A server, or sentinels, at this URL, with the limits that the file has by default, and no files.
    #[must_use]
    pub fn new(url: Secret) -> Self {
        Self {
            url,
            password: None,
            sentinel_username: None,
            sentinel_password: None,
            tls: Tls::default(),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(5),
        }
    }

    /// The sentinels of the URL; none: it names a server.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn sentinels(&self) -> Result<Option<Sentinels>, AddressFlaw> {
        Sentinels::parse(self.url.reveal())
    }

    /// The nodes of the URL; none: it names no cluster.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn cluster(&self) -> Result<Option<ClusterNodes>, AddressFlaw> {
        ClusterNodes::parse(self.url.reveal())
    }
}
