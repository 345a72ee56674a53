//! The configuration as an application reads it: one call, one error.

use std::fmt;
use std::path::Path;

use super::Config;
use super::diagnostic::{Diagnostic, render};
use super::environment::variables;

/// Every problem of a configuration, each with file, line, excerpt and help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The problems, warnings too.
    pub problems: Vec<Diagnostic>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&render(&self.problems))
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the worker's file, with the overrides of this process's environment (`CACHEKEEPER__REDIS__URL`). Warnings are
    /// left out; [`Self::load`] has them.
    ///
    /// # Errors
    /// [`ConfigError`]: the file cannot be read, or every problem in it.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|error| {
            let message = format!("{} cannot be read: {error}", path.display());
            let help = "give the path of the worker's configuration file".to_owned();
            ConfigError { problems: vec![Diagnostic::error(message, help)] }
        })?;
        let loaded = Self::load(path, text, &variables(std::env::vars_os()));
        loaded.map(|(config, _warnings)| config).map_err(|problems| ConfigError { problems })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_or_wrong_says_so_as_one_error() {
        let missing = Config::from_file("/nowhere/cachekeeper.toml").unwrap_err();
        assert!(missing.to_string().contains("/nowhere/cachekeeper.toml cannot be read"), "{missing}");
        let path = std::env::temp_dir().join(format!("cachekeeper-from-file-{}.toml", std::process::id()));
        std::fs::write(&path, "[redis]\nurl = 7\n").unwrap();
        let wrong: Box<dyn std::error::Error> = Config::from_file(&path).unwrap_err().into();
        std::fs::remove_file(&path).unwrap();
        assert!(wrong.to_string().contains(":2:7"), "{wrong}");
    }
}
