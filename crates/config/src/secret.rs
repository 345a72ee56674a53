//! What is never printed.

use std::path::{Path, PathBuf};
use std::{fmt, io};

use super::postgres_url::PostgresUrl;
use super::redis_url;

/// A password, or a URL that may hold one. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The one line that a file holds, without the line break at its end.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else. The file is named, and nothing of it is repeated.
    pub fn of_file(file: &Path) -> io::Result<Self> {
        let name = file.display();
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{name} {what}"));
        let content = std::fs::read(file)
            .map_err(|error| io::Error::new(error.kind(), format!("{name} cannot be read: {error}")))?;
        let content = String::from_utf8(content).map_err(|_not_repeated| wrong("holds no text in UTF-8"))?;
        let line = content.trim_end_matches(['\r', '\n']);
        match line {
            "" => Err(wrong("holds nothing")),
            line if line.contains(['\r', '\n']) => Err(wrong("holds several lines instead of one")),
            line => Ok(Self(line.to_owned())),
        }
    }

    /// The text itself, for the driver only.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether this is a URL with a password in it.
    #[cfg(feature = "file")]
    #[must_use]
    pub(crate) fn has_password(&self) -> bool {
        if let Ok(Some(sentinels)) = redis_url::Sentinels::parse(&self.0) {
            return sentinels.has_password();
        }
        if let Ok(Some(cluster)) = redis_url::ClusterNodes::parse(&self.0) {
            return cluster.has_password();
        }
        if let Ok(url) = PostgresUrl::parse(&self.0) {
            return url.has_password();
        }
        let of_socket = |url: &url::Url| url.query_pairs().any(|(name, _)| name == "pass");
        url::Url::parse(&self.0).is_ok_and(|url| url.password().is_some() || of_socket(&url))
    }

    /// A URL without its password and query, for logs; `***` where it is not a URL.
    #[must_use]
    pub fn redacted(&self) -> String {
        if let Some(sentinels) = redis_url::redacted(&self.0) {
            return sentinels;
        }
        if let Ok(url) = PostgresUrl::parse(&self.0) {
            return url.shown();
        }
        let Ok(mut url) = url::Url::parse(&self.0) else {
            return "***".to_owned();
        };
        if url.password().is_some() && url.set_password(Some("***")).is_err() {
            return "***".to_owned();
        }
        url.set_query(None);
        url.to_string()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// A password. Never printed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Password {
    /// As it is.
    Given(Secret),
    /// In a file that is read for each new connection, so that another password needs no restart.
    InFile(PathBuf),
}

impl Password {
    /// The password as it is now. Line breaks at the end of a file are not part of it.
    ///
    /// # Errors
    /// Those of [`Secret::of_file`].
    pub fn read(&self) -> io::Result<Secret> {
        match self {
            Self::Given(secret) => Ok(secret.clone()),
            Self::InFile(file) => Secret::of_file(file),
        }
    }
}
