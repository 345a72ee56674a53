//! What only the servers know of a configuration: `cachekeeper check` says it, and a reload refuses what is wrong. Each part is asked by
//! itself, so that nothing that is wrong hides anything else.

mod cluster;
mod dataset;
mod loads;
mod located;
mod notes;
mod postgres;
mod redis;
mod room;
mod write;

use std::collections::BTreeSet;
use std::time::Duration;

pub use self::cluster::of_cluster;
pub use self::notes::notes;
use crate::admin::{self, FileProblem};
use cachekeeper_config::Config;
use cachekeeper_config::diagnostic::{Diagnostic, Severity};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;

/// What is wrong with the files of the admin listener, which nobody reads but the worker.
#[must_use]
pub fn of_admin(config: &Config) -> Vec<Diagnostic> {
    let problems = admin::problems(&config.admin).into_iter();
    let located = problems.map(|FileProblem { setting, message, help }| {
        config.source.problem(&format!("admin.{setting}"), message, help.to_owned())
    });
    located.collect()
}

/// Which servers can be asked at all.
#[derive(Clone, Copy, Debug)]
pub struct Askable {
    /// How Postgres is reached is right.
    pub postgres: bool,
    /// How Redis is reached is right.
    pub redis: bool,
}

impl Askable {
    /// Both.
    pub const BOTH: Self = Self { postgres: true, redis: true };

    /// Those about whose connections nothing is wrong.
    #[must_use]
    pub fn by(config: &Config, problems: &[Diagnostic]) -> Self {
        let errors = || problems.iter().filter(|problem| problem.severity == Severity::Error);
        let can_ask = |section: &str| {
            let is_given =
                ["url", "url_file"].iter().any(|key| config.source.has(&format!("{section}.{key}")));
            let of_section = errors().filter_map(|problem| problem.path.strip_prefix(section));
            // A limit that is wrong keeps nobody from connecting. A key that is not known could have been the URL.
            let mut keys = of_section.filter(|rest| rest.is_empty() || rest.starts_with('.'));
            !keys.any(|key| match key.trim_start_matches('.') {
                "max_connections" | "statement_timeout" | "connect_timeout" | "response_timeout" => false,
                ""
                | "url"
                | "url_file"
                | "password_file"
                | "sentinel_username"
                | "sentinel_password_file"
                | "ca_file"
                | "cert_file"
                | "key_file" => true,
                _unknown => !is_given,
            })
        };
        Self { postgres: can_ask("postgres"), redis: can_ask("redis") }
    }
}

/// A part that could not be asked.
#[derive(Debug)]
pub struct Unasked {
    /// The setting that it is about.
    pub setting: String,
    /// Why not.
    pub error: EngineError,
}

/// Adds everything that the servers find wrong or odd to the problems that are known; what they could not be asked about. Of what is
/// known to be wrong nothing is said again.
pub async fn of_servers(
    config: &Config,
    context: &Context,
    askable: Askable,
    problems: &mut Vec<Diagnostic>,
) -> Vec<Unasked> {
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    let known = errors.map(|problem| problem.path.clone()).collect();
    let mut check = Check {
        config,
        context,
        problems,
        unasked: Vec::new(),
        known,
        read: BTreeSet::new(),
        looks_left: LOOKS_WITHIN,
    };
    let mut has_redis = false;
    if askable.redis {
        let asked = check.redis().await;
        has_redis = check.noted("redis.url", asked).unwrap_or_default();
    }
    if askable.postgres {
        let asked = check.postgres().await;
        check.noted("postgres.url", asked);
    }
    if has_redis {
        let asked = check.namespaces().await;
        check.noted("redis.url", asked);
    }
    check.unasked
}

/// The parts of a check, and what they have found.
struct Check<'a> {
    config: &'a Config,
    context: &'a Context,
    problems: &'a mut Vec<Diagnostic>,
    unasked: Vec<Unasked>,
    /// Settings that were wrong before any server was asked.
    known: BTreeSet<String>,
    /// What the datasets read, as far as it is known.
    read: BTreeSet<String>,
    /// How long rows may still be looked at, of all datasets together.
    looks_left: Duration,
}

/// How long rows are looked at in all. Whoever checks waits for it, and so does a reload.
const LOOKS_WITHIN: Duration = Duration::from_secs(3);

impl Check<'_> {
    fn error(&mut self, setting: &str, message: impl Into<String>, help: impl Into<Option<String>>) {
        let problem = self.config.source.problem(setting, message, help);
        self.add(problem);
    }

    fn warning(&mut self, setting: &str, message: impl Into<String>, help: impl Into<Option<String>>) {
        let problem = self.config.source.problem(setting, message, help);
        self.add(problem.into_warning());
    }

    fn add(&mut self, problem: Diagnostic) {
        if !self.known.contains(&problem.path) {
            self.problems.push(problem);
        }
    }

    /// What was answered; else what was not is noted.
    fn noted<T>(&mut self, setting: &str, asked: Result<T, EngineError>) -> Option<T> {
        match asked {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.unasked.push(Unasked { setting: setting.to_owned(), error });
                None
            }
        }
    }

    /// The same where only this part may have failed; a server that is gone is an error.
    fn noted_unless_gone<T>(
        &mut self,
        setting: &str,
        asked: Result<T, EngineError>,
    ) -> Result<Option<T>, EngineError> {
        match asked {
            Err(EngineError::Source(error)) if error.is_without_answer() => Err(error.into()),
            Err(EngineError::Cache(error)) if error.is_unreachable() => Err(error.into()),
            asked => Ok(self.noted(setting, asked)),
        }
    }

    /// The same of what only adds to other findings: where it cannot be told, nothing is missing.
    fn told_unless_gone<T>(asked: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
        match asked {
            Err(EngineError::Source(error)) if error.is_without_answer() => Err(error.into()),
            Err(EngineError::Cache(error)) if error.is_unreachable() => Err(error.into()),
            asked => Ok(asked.ok()),
        }
    }

    /// Whether something is wrong with a dataset.
    fn is_wrong(&self, dataset: &str) -> bool {
        let errors = self.problems.iter().filter(|problem| problem.severity == Severity::Error);
        let mut below = errors.filter_map(|problem| problem.path.strip_prefix("dataset."));
        below.any(|path| path.split('.').next() == Some(dataset))
    }
}
