//! The admin listener.

use std::path::PathBuf;

use super::TlsIdentity;

/// `[admin]`
///
/// The files are read by the worker alone: applications share the configuration, and need not be able to read them.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Admin {
    /// Address of `/livez`, `/readyz`, `/metrics` and the API; none: off.
    pub listen: Option<String>,
    /// Names by which it is reached, beside addresses and `localhost`.
    pub hosts: Vec<String>,
    /// The token that may read and act.
    pub token_file: Option<PathBuf>,
    /// The token that may only read.
    pub read_token_file: Option<PathBuf>,
    /// Whether every action is refused.
    pub is_read_only: bool,
    /// Whether no value of an entry or a row is shown.
    pub hides_values: bool,
    /// For TLS.
    pub tls: Option<TlsIdentity>,
    /// Most connections at a time; 0: the default of the file.
    pub max_connections: usize,
}

impl Admin {
    /// Whether whoever asks must show a token.
    #[must_use]
    pub fn asks_for_token(&self) -> bool {
        self.token_file.is_some() || self.read_token_file.is_some()
    }
}
