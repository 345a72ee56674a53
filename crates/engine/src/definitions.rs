//! Whose definition of each dataset counts (R16): the newest one that a living worker has. Workers register theirs each second, and
//! one script decides; verbs and libraries go by what is registered. Whoever leads the feed follows every registered definition,
//! also those that it does not have.

pub mod former;
pub mod renamed;
mod text;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::catalog::{Catalog, Dataset};
use super::context::Context;
use super::directory;
use super::error::EngineError;
use super::life;
use super::registrar::{Registrar, RegistrarState};
use crate::stores::postgres::Poll;
use crate::stores::redis::{Answer, CacheError, Declared, Epoch, Metadata, PreconditionFailed, Registered};
use cachekeeper_config::Scope;
use cachekeeper_protocol::revision::Revision;

/// A worker registers this often; whoever looks more often finds what was registered last.
const REGISTER_EVERY: Duration = Duration::from_millis(500);

/// Patterns of the keys of all definitions that are kept, current and former ones: whoever leads follows them.
///
/// # Errors
/// [`CacheError`]
pub async fn registered_keys(context: &Context) -> Result<Vec<String>, CacheError> {
    let texts = context.redis.all_definition_texts().await?;
    Ok(texts.iter().filter_map(|(name, text)| Some(text::read(name, text)?.key.glob())).collect())
}

impl Registrar {
    /// Registers the worker as living, if that is due or something about its datasets is new, and takes note of whose definitions
    /// count. Answers whether another run of Redis has written the metadata: then it was not done, and a new epoch must begin.
    ///
    /// # Errors
    /// [`EngineError`]; then what was known stays.
    pub async fn register(
        &self,
        context: &Context,
        at: (&Epoch, &Poll),
        metadata: &Metadata,
    ) -> Result<bool, EngineError> {
        let mut state = self.state.lock().await;
        let is_recent = state.registered.is_some_and(|at| at.elapsed() < REGISTER_EVERY);
        let is_as_known = |dataset: &Arc<Dataset>| {
            let revision = metadata.revisions.get(dataset.name());
            let is_own = revision.is_some_and(|revision| revision.definition() == dataset.definition);
            is_own != dataset.is_superseded()
        };
        if is_recent && self.catalog.iter().all(is_as_known) {
            let registered = Registered { revisions: metadata.revisions.clone(), ..Registered::default() };
            self.note(context, &registered);
            return Ok(false);
        }
        let mut registered = self.try_register(context, at, false, &mut state).await?;
        if registered.wants_texts {
            registered = self.try_register(context, at, true, &mut state).await?;
        }
        if registered.is_of_another_run {
            return Ok(true);
        }
        state.registered = Some(Instant::now());
        for dataset in &registered.taken {
            info!(dataset, "definition registered, entries are pending");
        }
        self.note(context, &registered);
        context.set_registered(registered);
        Ok(false)
    }

    async fn try_register(
        &self,
        context: &Context,
        (epoch, poll): (&Epoch, &Poll),
        in_full: bool,
        state: &mut RegistrarState,
    ) -> Result<Registered, EngineError> {
        let serials = self.serials(context, poll, state).await?;
        let text_of = |dataset: &Arc<Dataset>| match in_full {
            true => text::write(&dataset.settings, dataset.is_filled_whole()),
            false => String::new(),
        };
        let texts: Vec<String> = self.catalog.iter().map(text_of).collect();
        let told: Vec<String> =
            self.catalog.iter().map(|dataset| directory::of_dataset(&dataset.settings)).collect();
        let declared: Vec<Declared<'_>> = self
            .catalog
            .iter()
            .zip(serials.iter().zip(texts.iter().zip(&told)))
            .map(|(dataset, (serial, (text, told)))| Declared {
                dataset: dataset.name(),
                definition: &dataset.definition,
                order: (self.release, *serial),
                longest_life: dataset.lifetimes.longest(),
                text,
                told,
            })
            .collect();
        let life = context.postgres.life().await?;
        if life.incarnation != poll.incarnation {
            return Err(context.on_precondition_failed(None, PreconditionFailed::Incarnation));
        }
        let at = (epoch, poll.incarnation.as_str());
        let worker = (self.worker.as_str(), &*life::write(life.place.as_ref()));
        match context.redis.register_worker(at, worker, &self.service, &declared).await? {
            Answer::Done(registered) => Ok(registered),
            Answer::Failed(failed) => Err(context.on_precondition_failed(None, failed)),
        }
    }

    async fn serials(
        &self,
        context: &Context,
        poll: &Poll,
        state: &mut RegistrarState,
    ) -> Result<Vec<u64>, EngineError> {
        if let Some((_, serials)) = state.serials.as_ref().filter(|(under, _)| *under == poll.incarnation) {
            return Ok(serials.clone());
        }
        let datasets = self.catalog.iter();
        let definitions: Vec<(&str, &str)> =
            datasets.map(|dataset| (dataset.name(), dataset.definition.as_str())).collect();
        let namespace = context.redis.keys().namespace();
        let serials = context.postgres.definition_serials(namespace, &definitions).await?;
        state.serials = Some((poll.incarnation.clone(), serials.clone()));
        Ok(serials)
    }

    /// Takes note of what is registered of this worker's datasets.
    fn note(&self, context: &Context, registered: &Registered) {
        let revision_of = |dataset: &Dataset| registered.revisions.get(dataset.name());
        renew_where_news(context, &self.catalog, revision_of);
        for dataset in self.catalog.iter() {
            let own = revision_of(dataset).filter(|revision| revision.definition() == dataset.definition);
            match (own, dataset.is_superseded()) {
                (Some(_), true) => {
                    info!(dataset = dataset.name(), "this worker's definition is the registered one again");
                }
                (None, false) => warn!(
                    dataset = dataset.name(),
                    "another definition of this dataset counts, because it is newer: this worker serves the dataset again within \
                     10 s after the last worker with that definition has ended"
                ),
                _ => {}
            }
            // What was just taken is covered for the first time soon, by which its revision changes: the first load reads it.
            let is_new = registered.taken.iter().any(|taken| taken == dataset.name());
            dataset.note_registered(own.is_none(), own.filter(|_| !is_new).cloned());
        }
    }
}

/// Takes note of what workers have registered, in a process that registers nothing itself.
pub(crate) fn note_others(context: &Context, metadata: &Metadata) {
    let revision_of = |dataset: &Dataset| metadata.revisions.get(dataset.name());
    renew_where_news(context, &context.catalog, revision_of);
    for dataset in context.catalog.iter() {
        let revision = revision_of(dataset);
        let is_other = revision.is_some_and(|revision| revision.definition() != dataset.definition);
        if is_other && !dataset.is_superseded() {
            warn!(
                dataset = dataset.name(),
                "workers have another definition of this dataset; nothing is stored under this one"
            );
        }
        let known = revision.cloned().unwrap_or_else(Revision::none);
        dataset.note_registered(is_other, (!is_other).then_some(known));
    }
}

/// What a session knows of settings, names and types may be older than the revision. Before the revision is known, so that nobody
/// loads under it through such a session.
fn renew_where_news<'a>(
    context: &Context,
    catalog: &Catalog,
    revision_of: impl Fn(&Dataset) -> Option<&'a Revision>,
) {
    if catalog.iter().any(|dataset| dataset.is_news(revision_of(dataset))) {
        context.postgres.renew_connections();
    }
}

/// The same context for whoever leads the feed: its catalog has every registered definition. Those of other workers are followed by
/// raising and deleting; so are former ones, of which entries under other keys are left.
///
/// # Errors
/// [`EngineError`] where Redis does not answer.
pub async fn following(context: &Context) -> Result<Context, EngineError> {
    let registered = context.registered();
    let own = |name: &str| context.catalog.get(name);
    let is_own = |name: &str, definition: &str| own(name).is_some_and(|own| own.definition == definition);
    let current = registered.revisions.iter().map(|(name, revision)| (name.as_str(), revision.definition()));
    let others = current.filter(|(name, definition)| !is_own(name, definition));
    let former = registered.former.keys().map(|(name, definition)| (name.as_str(), definition.as_str()));
    let foreign: Vec<(bool, (&str, &str))> =
        others.map(|one| (false, one)).chain(former.map(|one| (true, one))).collect();
    let wanted: Vec<(&str, &str)> = foreign.iter().map(|(_, one)| *one).collect();
    let texts = context.redis.definition_texts(&wanted).await?;
    let lost: BTreeSet<&str> =
        foreign.iter().filter(|(is_former, _)| !is_former).map(|(_, (name, _))| *name).collect();
    let mut datasets: Vec<Arc<Dataset>> =
        context.catalog.iter().filter(|dataset| !lost.contains(dataset.name())).cloned().collect();
    for ((is_former, (name, definition)), text) in foreign.into_iter().zip(texts) {
        let name = if is_former { former_name(name, definition) } else { name.to_owned() };
        let Some(mut settings) = text.as_deref().and_then(|text| text::read(&name, text)) else { continue };
        if is_former {
            // Nothing fills it any more.
            settings.scope = Scope::Cached;
        }
        // Keys that another definition renders too are seen to by the one that is loaded.
        let is_rendered = |other: &Arc<Dataset>| text::form(&other.settings.key) == text::form(&settings.key);
        if !datasets.iter().any(is_rendered) {
            datasets.push(Arc::new(Dataset::foreign(settings, definition)));
        }
    }
    Ok(context.with(Catalog::of(datasets)))
}

/// How a former definition is called among the datasets that are followed.
fn former_name(dataset: &str, definition: &str) -> String {
    format!("{dataset}@{definition}")
}
