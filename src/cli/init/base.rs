//! What the proposals stand in: a configuration that is there, or a new one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::toml::{comment, quoted};
use crate::cli::output::{Exit, Output};
use cachekeeper_config::diagnostic::Diagnostic;
use cachekeeper_config::postgres_url::PostgresUrl;
use cachekeeper_config::{Config, Postgres, Secret, check as config_check};

/// The variable that overrides where Postgres is.
const URL_VARIABLE: &str = "CACHEKEEPER__POSTGRES__URL";
/// What a new file is called in messages.
const NEW: &str = "cachekeeper.toml";

/// A configuration without the proposals.
pub struct Base {
    /// Its text.
    text: String,
    /// The file, where there is one.
    pub file: Option<PathBuf>,
    environment: BTreeMap<String, String>,
    /// How Postgres is reached.
    postgres: Postgres,
}

impl Base {
    /// The configuration that is there, unless a URL is given.
    ///
    /// # Errors
    /// What is wrong was said.
    pub fn find(
        explicit: Option<PathBuf>,
        url: Option<&str>,
        environment: &BTreeMap<String, String>,
        out: &Output,
    ) -> Result<Self, Exit> {
        if let Some(url) = url {
            return Self::anew(url, out);
        }
        let problems = match config_check::find(explicit, environment) {
            Ok(path) => match std::fs::read_to_string(&path) {
                Ok(text) => return Self::beside(&path, text, environment, out),
                Err(error) => {
                    let message = format!("{} cannot be read: {error}", path.display());
                    Diagnostic::error(message, help_of_url())
                }
            },
            // Whoever has set the variable has said where Postgres is.
            Err(missing) => match environment.get(URL_VARIABLE) {
                Some(url) => return Self::anew(url, out),
                None => Diagnostic::error(missing.message, help_of_url()),
            },
        };
        out.problems(&[problems]);
        Err(Exit::Configuration)
    }

    fn beside(
        path: &Path,
        text: String,
        environment: &BTreeMap<String, String>,
        out: &Output,
    ) -> Result<Self, Exit> {
        let loaded = Config::load_with(path, text.clone(), environment, crate::schedule::check);
        let (config, _warnings) = loaded.map_err(|problems| {
            out.problems(&problems);
            Exit::Configuration
        })?;
        let (environment, postgres) = (environment.clone(), config.postgres);
        Ok(Self { text, file: Some(path.to_owned()), environment, postgres })
    }

    fn anew(url: &str, out: &Output) -> Result<Self, Exit> {
        if let Err(problem) = PostgresUrl::parse(url) {
            out.failure(&format!("the URL of Postgres cannot be used: {problem}"));
            return Err(Exit::Usage);
        }
        let text = header(url);
        let loaded =
            Config::load_with(Path::new(NEW), text.clone(), &BTreeMap::new(), crate::schedule::check);
        let (config, _no_datasets_yet) = loaded.map_err(|problems| {
            out.problems(&problems);
            Exit::Failed
        })?;
        // With its password.
        let postgres = Postgres { url: Secret::new(url.to_owned()), ..config.postgres };
        Ok(Self { text, file: None, environment: BTreeMap::new(), postgres })
    }

    /// What stands before the proposals in what is printed.
    pub fn head(&self) -> &str {
        if self.file.is_some() { "" } else { &self.text }
    }

    /// The configuration with these proposals.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn with(&self, proposals: &str) -> Result<Config, Box<Diagnostic>> {
        let path = self.file.as_deref().unwrap_or(Path::new(NEW));
        let text = format!("{}\n{proposals}", self.text);
        match Config::load_with(path, text, &self.environment, crate::schedule::check) {
            Ok((config, _warnings)) => Ok(Config { postgres: self.postgres.clone(), ..config }),
            Err(problems) => {
                let first = problems.into_iter().next();
                Err(Box::new(first.unwrap_or_else(|| Diagnostic::error("", None))))
            }
        }
    }
}

fn help_of_url() -> Option<String> {
    Some("name it with -c FILE, or say where Postgres is: --url postgres://…".to_owned())
}

/// A configuration that has everything but datasets.
fn header(url: &str) -> String {
    let (shown, had_password) = PostgresUrl::without_password(url);
    let database = PostgresUrl::parse(url).map(|url| url.shown()).unwrap_or_default();
    let database = database.rsplit('/').next().unwrap_or_default();
    let plain = |one: char| if one.is_alphanumeric() || matches!(one, '-' | '_' | '.') { one } else { '-' };
    let namespace: String = database.chars().map(plain).collect();
    let namespace = if namespace.is_empty() { "cache".to_owned() } else { namespace };
    let mut text = comment(
        "Made by `cachekeeper init`. What is not here has its default; `cachekeeper schema --toml` prints every key. \
         Next: `cachekeeper plan`, `cachekeeper migrate`, `cachekeeper check`, `cachekeeper run`.",
    );
    let service = "A name for this installation, which Cachekeeper's own keys in Redis contain.";
    text.push_str(&format!("\n[service]\n{}namespace = {}\n", comment(service), quoted(&namespace)));
    text.push_str(&format!("\n[postgres]\nurl = {}\n", quoted(&shown)));
    if had_password {
        text.push_str(&comment(
            "The password is not written here. Put it into a file, or set CACHEKEEPER__POSTGRES__URL.",
        ));
        text.push_str("# password_file = \"/run/secrets/postgres_password\"\n");
    }
    text.push_str("\n[redis]\nurl = \"redis://localhost:6379/0\"\n");
    text
}
