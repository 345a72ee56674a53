//! The file's configuration, checked against the servers, and what it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::check::{Askable, Unasked, of_admin, of_cluster, of_servers};
use crate::control::{ReloadError, Reloaded};
use crate::schedule;
use cachekeeper_config::Config;
use cachekeeper_config::diagnostic::{Diagnostic, Severity, render};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::chain;

/// What counts only for a new process: lines of the log are formatted from its beginning.
const NEEDS_RESTART: [&str; 1] = ["log.format"];
/// How long the servers may take to check it.
const CHECKED_WITHIN: Duration = Duration::from_secs(30);

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// What overrides it.
    pub environment: BTreeMap<String, String>,
}

pub(super) fn unavailable(error: &(dyn std::error::Error + 'static)) -> ReloadError {
    ReloadError::Unavailable(chain(error))
}

/// Loads and checks the configuration.
pub(super) async fn load(place: &Place, old: &Config) -> Result<(Config, Reloaded), ReloadError> {
    let text = tokio::fs::read_to_string(&place.path)
        .await
        .map_err(|error| ReloadError::Wrong(format!("{} cannot be read: {error}", place.path.display())))?;
    let loaded = Config::load_with(&place.path, text, &place.environment, schedule::check);
    let (newer, mut problems) = loaded.map_err(|problems| ReloadError::Wrong(render(&problems)))?;
    let changes = old.changes(&newer);
    if !changes.is_empty() {
        problems.extend(of_admin(&newer));
        problems.extend(of_cluster(&newer));
        check(&newer, &mut problems).await?;
    }
    problems.extend(of_address(old, &newer).await);
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(ReloadError::Wrong(render(&problems)));
    }
    let warnings = problems.iter().map(|problem| problem.to_string().trim_end().to_owned()).collect();
    let needs_restart = |setting: &str| NEEDS_RESTART.contains(&setting);
    let (needs_restart, changes) = changes.into_iter().partition(|change| needs_restart(&change.setting));
    Ok((newer, Reloaded { changes, needs_restart, warnings }))
}

/// Whether this process could listen where it is to. What it listens on already is its own.
async fn of_address(old: &Config, newer: &Config) -> Option<Diagnostic> {
    let listen = newer.admin.listen.as_ref().filter(|_| old.admin.listen != newer.admin.listen)?;
    let error = TcpListener::bind(listen).await.err()?;
    let message = format!("{listen} cannot be listened on: {error}");
    Some(newer.source.problem("admin.listen", message, "free the port, or choose another".to_owned()))
}

async fn check(newer: &Config, problems: &mut Vec<Diagnostic>) -> Result<(), ReloadError> {
    let context = Context::new(newer).map_err(|error| unavailable(&error))?;
    let checked = timeout(CHECKED_WITHIN, of_servers(newer, &context, Askable::BOTH, problems)).await;
    // Whatever it holds open is closed in the background.
    tokio::spawn(async move { context.postgres.close().await });
    match checked {
        Ok(unasked) => match unasked.first() {
            None => Ok(()),
            Some(Unasked { error, .. }) => {
                Err(ReloadError::Unavailable(format!("the servers could not be asked: {}", error.told())))
            }
        },
        Err(_elapsed) => {
            let limit = CHECKED_WITHIN.as_secs();
            Err(ReloadError::Unavailable(format!("the servers did not answer within {limit} s")))
        }
    }
}

/// The datasets that need not be warmed again: nothing about them has changed, and the worker before has warmed them.
pub(super) fn warmed(old: &Config, newer: &Config, not_warmed: &BTreeSet<String>) -> BTreeSet<String> {
    let changes = old.changes(newer);
    let is_changed = |dataset: &str| {
        let own = format!("dataset.{dataset}");
        let of_all = |setting: &str| {
            setting.starts_with("defaults.")
                || setting.starts_with("postgres.")
                || setting.starts_with("redis.")
        };
        changes.iter().any(|change| {
            let rest = change.setting.strip_prefix(&own);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) || of_all(&change.setting)
        }) || changes.iter().any(|change| change.setting == "service.namespace")
    };
    let names = newer.datasets.iter().map(|dataset| &dataset.name);
    names.filter(|name| !not_warmed.contains(*name) && !is_changed(name)).cloned().collect()
}
