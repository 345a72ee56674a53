//! How Postgres is reached.

use std::path::PathBuf;
use std::time::Duration;

use super::Secret;

/// `[postgres]`
#[derive(Clone, Debug)]
pub struct Postgres {
    /// Where the primary is. May hold a password.
    pub url: Secret,
    /// The file that the URL came from, which is read again for each new connection.
    pub url_file: Option<PathBuf>,
    /// A file whose content overrides the password of the URL. It is read again for each new connection.
    pub password_file: Option<PathBuf>,
    /// Most connections of one process.
    pub max_connections: u32,
    /// Time limit for a load by key.
    pub statement_timeout: Duration,
    /// Time limit for a connection attempt.
    pub connect_timeout: Duration,
}
