//! What is never printed.

use std::path::PathBuf;
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

    /// What a file holds, without the line break at its end.
    #[must_use]
    pub fn of_file(content: &str) -> Self {
        Self(content.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The text itself, for the driver only.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
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
    /// The file cannot be read.
    pub fn read(&self) -> io::Result<Secret> {
        match self {
            Self::Given(secret) => Ok(secret.clone()),
            Self::InFile(file) => {
                let content = std::fs::read_to_string(file)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
                Ok(Secret::of_file(&content))
            }
        }
    }
}
