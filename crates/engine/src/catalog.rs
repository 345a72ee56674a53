//! The datasets as the engine uses them: definition, revision, lifetimes, and what the database said about the query.

mod rivals;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use self::rivals::UsedStream;
use super::error::EngineError;
use crate::stores::postgres::write::WriteStatement;
use crate::stores::postgres::{DatasetSource, KeyValues, Postgres, SourceProblem};
use crate::stores::redis::{Epoch, Precondition};
use cachekeeper_config as config;
use cachekeeper_protocol::freshness::Lifetimes;
use cachekeeper_protocol::keyspace::RESERVED_PREFIX;
use cachekeeper_protocol::revision::{Revision, hash_of};

/// Without refresh-ahead, entries are still kept alive through an outage from this share of their lifetime on.
const AHEAD_WITHOUT_REFRESH: f64 = 0.05;

/// What the database said about a query, and the revision that was known before it was asked.
type DescribedUnder = (Option<Revision>, Arc<DatasetSource>);

/// One dataset.
#[derive(Debug)]
pub struct Dataset {
    /// The definition.
    pub settings: config::Dataset,
    /// Hash of what decides its entries' bytes, what touches them, and which rows have one.
    pub definition: String,
    /// Lifetimes of its entries.
    pub lifetimes: Lifetimes,
    /// As it was last read in Redis; none: not yet, or it is known to be another now.
    revision: RwLock<Option<Revision>>,
    source: RwLock<Option<DescribedUnder>>,
    /// The same, but never forgotten: which dataset a key belongs to must not change while a query is described again.
    described: RwLock<Option<Arc<DatasetSource>>>,
    /// Datasets before it in the configuration, and streams, that only types tell apart from its keys.
    rivals: Vec<Arc<Self>>,
    streams: Vec<UsedStream>,
    /// Whether one of them could have its keys, as was last found.
    is_refused: AtomicBool,
    pub(super) write: RwLock<Option<Arc<WriteStatement>>>,
    /// Whether it is another worker's, followed and never loaded.
    is_foreign: bool,
    is_superseded: AtomicBool,
    is_paused: AtomicBool,
}

impl Dataset {
    /// Prepares a dataset.
    #[must_use]
    pub fn new(settings: config::Dataset) -> Self {
        let lifetimes = Lifetimes {
            ttl: settings.ttl,
            jitter: settings.ttl_jitter,
            max_stale: settings.max_stale,
            ahead: settings.refresh_ahead.unwrap_or(AHEAD_WITHOUT_REFRESH),
        };
        let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
        let mut parts = vec![
            settings.query.clone(),
            settings.key.to_string(),
            text(&settings.rows),
            text(&settings.sort),
            settings.tags.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            text(&settings.watch.iter().map(|rule| (&rule.table, &rule.target)).collect::<Vec<_>>()),
            text(&settings.format),
            text(&settings.compression),
            settings.reads.join("\n"),
            text(&settings.on_change),
            text(&is_filled_whole(&settings)),
        ];
        // Without them the definition is what it was before they were known.
        let sizes = (settings.max_value_size, settings.max_key_size);
        if sizes != (config::Dataset::MAX_VALUE_SIZE, config::Dataset::MAX_KEY_SIZE) {
            parts.push(text(&sizes));
        }
        // Entries that were stored without it outlive what it says.
        if let Some(column) = &settings.ttl_column {
            parts.push(format!("ttl_column {column}"));
        }
        Self {
            definition: hash_of(parts.iter().map(String::as_str)),
            revision: RwLock::default(),
            lifetimes,
            settings,
            source: RwLock::default(),
            described: RwLock::default(),
            rivals: Vec::new(),
            streams: Vec::new(),
            is_refused: AtomicBool::new(false),
            write: RwLock::default(),
            is_foreign: false,
            is_superseded: AtomicBool::new(false),
            is_paused: AtomicBool::new(false),
        }
    }

    /// One that another worker has registered. Its changes are followed by raising and deleting.
    pub(crate) fn foreign(settings: config::Dataset, definition: &str) -> Self {
        let is_superseded = AtomicBool::new(true);
        Self { definition: definition.to_owned(), is_foreign: true, is_superseded, ..Self::new(settings) }
    }

    /// Whether it is another worker's, or a former one.
    pub(crate) fn is_foreign(&self) -> bool {
        self.is_foreign
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Most entries a second that a backfill stores: what bounds revalidations bounds it too, unless it has a bound of its own.
    #[must_use]
    pub fn backfill_rate(&self) -> Option<u64> {
        self.settings.warm.as_ref().and_then(|warm| warm.rate).or(self.settings.revalidation_rate)
    }

    /// Whether Redis is to hold every row, and a backfill stores every row. One with a limit fills the most wanted only.
    #[must_use]
    pub fn is_filled_whole(&self) -> bool {
        is_filled_whole(&self.settings)
    }

    /// The values of this key's placeholders, or none if it is not a key of this dataset.
    #[must_use]
    pub fn read_key(&self, key: &str) -> Option<KeyValues> {
        let values = self.settings.key.read(key)?;
        Some(values.into_iter().map(str::to_owned).collect())
    }

    /// The key with these values.
    #[must_use]
    pub fn key_of(&self, values: &[String]) -> Option<String> {
        let texts: Vec<&str> = values.iter().map(String::as_str).collect();
        (texts.len() == self.settings.key.columns().count())
            .then(|| self.settings.key.render(&texts).ok())
            .flatten()
    }

    /// What the database says about the query; asked once, and again after [`Self::forget_source`].
    ///
    /// # Errors
    /// [`EngineError::Dataset`] where the dataset cannot work as it is configured, also because somebody else could have its keys.
    pub async fn source(&self, postgres: &Postgres) -> Result<Arc<DatasetSource>, EngineError> {
        self.unrivalled(postgres, None).await
    }

    /// The same; each question is given up after a limit of at most a second.
    pub(crate) async fn source_within(
        &self,
        postgres: &Postgres,
        limit: Duration,
    ) -> Result<Arc<DatasetSource>, EngineError> {
        self.unrivalled(postgres, Some(limit)).await
    }

    /// What the database says, where nobody else could have its keys.
    async fn unrivalled(
        &self,
        postgres: &Postgres,
        limit: Option<Duration>,
    ) -> Result<Arc<DatasetSource>, EngineError> {
        let source = self.described(postgres, limit).await?;
        let key = &self.settings.key;
        let mut found = rivals::with_streams(key, &source, &self.streams);
        for rival in &self.rivals {
            match rival.described(postgres, limit).await {
                Ok(theirs) => {
                    let rival = (rival.name(), &rival.settings.key, &*theirs);
                    found = found.or_else(|| rivals::with_dataset((key, &source), rival));
                }
                // It has no entries, and its own trouble is told.
                Err(EngineError::Dataset { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.is_refused.store(found.is_some(), Ordering::Relaxed);
        found.map_or(Ok(source), |problem| Err(self.problem(problem)))
    }

    fn problem(&self, problem: SourceProblem) -> EngineError {
        EngineError::Dataset { dataset: self.name().to_owned(), problem }
    }

    async fn described(
        &self,
        postgres: &Postgres,
        limit: Option<Duration>,
    ) -> Result<Arc<DatasetSource>, EngineError> {
        if let Some(source) = self.current_source() {
            return Ok(source);
        }
        let revision = self.known_revision();
        let described = match limit {
            Some(limit) => postgres.describe_within(&self.settings, limit).await?,
            None => postgres.describe(&self.settings).await?,
        };
        self.note_source(revision, described)
    }

    /// A type that changed leaves the query's columns alone: what was described under another revision is not used.
    fn current_source(&self) -> Option<Arc<DatasetSource>> {
        let known = self.source.read().unwrap_or_else(PoisonError::into_inner).clone();
        known.filter(|(under, _)| *under == self.known_revision()).map(|(_, source)| source)
    }

    fn note_source(
        &self,
        revision: Option<Revision>,
        described: Result<DatasetSource, SourceProblem>,
    ) -> Result<Arc<DatasetSource>, EngineError> {
        let source = described.map_err(|problem| self.problem(problem))?;
        let source = Arc::new(source);
        *self.source.write().unwrap_or_else(PoisonError::into_inner) = Some((revision, Arc::clone(&source)));
        *self.described.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&source));
        Ok(source)
    }

    /// What the database said, if it was asked.
    #[must_use]
    pub fn known_source(&self) -> Option<Arc<DatasetSource>> {
        self.source.read().unwrap_or_else(PoisonError::into_inner).clone().map(|(_, source)| source)
    }

    /// Its revision, as it was last read in Redis. A load takes it before its statement is sent (R14a).
    #[must_use]
    pub(crate) fn known_revision(&self) -> Option<Revision> {
        self.revision.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes the revision that was read, or that the known one is out of date.
    pub(super) fn set_revision(&self, revision: Option<Revision>) {
        *self.revision.write().unwrap_or_else(PoisonError::into_inner) = revision;
    }

    /// Forgets what the database said, because its tables have changed.
    pub(crate) fn forget_source(&self) {
        *self.source.write().unwrap_or_else(PoisonError::into_inner) = None;
        *self.write.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What a script that concerns this dataset's entries must find unchanged, where nothing is stored that was loaded before.
    #[must_use]
    pub fn precondition<'a>(&'a self, epoch: &'a Epoch, incarnation: &'a str) -> Precondition<'a> {
        let is_registered = self.known_revision().is_none_or(|revision| !revision.is_none());
        let revision = if is_registered { &self.definition } else { "" };
        Precondition { epoch, incarnation, dataset: self.name(), revision }
    }

    /// What a script that stores entries must find unchanged: also the revision that was read before they were loaded.
    #[must_use]
    pub fn store_precondition<'a>(
        &'a self,
        epoch: &'a Epoch,
        incarnation: &'a str,
        revision: &'a Revision,
    ) -> Precondition<'a> {
        Precondition { epoch, incarnation, dataset: self.name(), revision: revision.as_str() }
    }

    /// Whether another definition of this dataset is registered than this process has.
    #[must_use]
    pub fn is_superseded(&self) -> bool {
        self.is_superseded.load(Ordering::Relaxed)
    }

    /// Whether somebody else could have its keys, as far as Postgres was asked.
    #[must_use]
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }

    /// Whether this registered revision is the dataset's, and another than the known one.
    pub(super) fn is_news(&self, revision: Option<&Revision>) -> bool {
        revision.is_some_and(|revision| {
            revision.definition() == self.definition && self.known_revision().as_ref() != Some(revision)
        })
    }

    /// Notes whether another definition is registered, and its revision where it is this one.
    /// Whether somebody has paused what fills it for comfort: backfills by schedule, refreshing ahead, the audit.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Relaxed)
    }

    /// Notes whether it is paused; answers whether that is news.
    pub fn note_paused(&self, is_paused: bool) -> bool {
        self.is_paused.swap(is_paused, Ordering::Relaxed) != is_paused
    }

    pub(super) fn note_registered(&self, is_superseded: bool, revision: Option<Revision>) {
        self.is_superseded.store(is_superseded, Ordering::Relaxed);
        self.set_revision(revision);
    }

    pub(super) fn supersede(&self) -> EngineError {
        self.is_superseded.store(true, Ordering::Relaxed);
        EngineError::Superseded { dataset: self.name().to_owned() }
    }
}

fn is_filled_whole(settings: &config::Dataset) -> bool {
    let has_limit = settings.warm.as_ref().is_some_and(|warm| warm.limit.is_some());
    settings.scope == config::Scope::All && !has_limit
}

/// All datasets.
#[derive(Debug, Default)]
pub struct Catalog {
    datasets: Vec<Arc<Dataset>>,
}

impl Catalog {
    /// Prepares all datasets. `streams` are keys that none of them may have: who uses one, and the key.
    #[must_use]
    pub fn new(settings: Vec<config::Dataset>, streams: &[(&'static str, String)]) -> Self {
        let mut datasets: Vec<Arc<Dataset>> = Vec::new();
        for settings in settings {
            let key = &settings.key;
            let rivals = datasets.iter().filter(|other| rivals::is_to_tell_apart(key, &other.settings.key));
            let (rivals, streams) = (rivals.cloned().collect(), rivals::streams_to_tell_apart(key, streams));
            datasets.push(Arc::new(Dataset { rivals, streams, ..Dataset::new(settings) }));
        }
        Self { datasets }
    }

    /// Of these.
    pub(crate) fn of(datasets: Vec<Arc<Dataset>>) -> Self {
        Self { datasets }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Dataset>> {
        self.datasets.iter()
    }

    /// The dataset of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Dataset>> {
        self.datasets.iter().find(|dataset| dataset.name() == name)
    }

    /// The dataset that this key belongs to, with the values of its placeholders.
    #[must_use]
    pub fn of_key(&self, key: &str) -> Option<(&Arc<Dataset>, KeyValues)> {
        let dataset = self.datasets.get(self.position_of_key(key)?)?;
        Some((dataset, dataset.read_key(key)?))
    }

    /// The position of the dataset that this key belongs to. Where the text fits several templates, types decide: the
    /// values must be ones that the columns can hold; a dataset whose keys another one could have has none. Before Postgres was asked for the types, the more literal template
    /// is the likelier one.
    #[must_use]
    pub fn position_of_key(&self, key: &str) -> Option<usize> {
        if key.starts_with(RESERVED_PREFIX) {
            return None;
        }
        let fitting = self.datasets.iter().enumerate().filter_map(|(at, dataset)| {
            if dataset.is_refused() {
                return None;
            }
            let values = dataset.settings.key.read(key)?;
            let source = dataset.described.read().unwrap_or_else(PoisonError::into_inner);
            if source.as_ref().is_some_and(|source| !source.can_hold(&values)) {
                return None;
            }
            // What is left when the values are taken out is the template's own text.
            let literal = key.len() - values.iter().map(|value| value.len()).sum::<usize>();
            Some((literal, std::cmp::Reverse(at)))
        });
        fitting.max().map(|(_, std::cmp::Reverse(at))| at)
    }
}
