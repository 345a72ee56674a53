//! A dataset's write statement with its values, and what it touches.

use std::sync::{Arc, PoisonError};

use sqlx::PgConnection;

use super::WriteError;
use super::identity::canonical;
use super::parameters::{Parameters, bind};
use crate::flows::catalog::Dataset;
use crate::flows::context::Context;
use crate::stores::postgres::write::{WriteStatement, captured_here, has_outbox, note_keys};
use crate::stores::postgres::{Change, KeyValues, SourceError, Trouble};

/// A statement that can be carried out.
#[derive(Debug)]
pub struct Prepared {
    dataset: Arc<Dataset>,
    statement: Arc<WriteStatement>,
    values: Vec<Option<String>>,
    /// The entry that the parameters name, where they hold all of its key.
    key: Option<(String, KeyValues)>,
    has_one_spelling: bool,
}

/// What writes touched; to be settled after the commit.
#[derive(Debug, Default)]
pub struct Touched {
    /// The datasets that were written.
    pub datasets: Vec<String>,
    /// Rows.
    pub rows: u64,
    /// What the triggers captured of the transaction.
    pub(super) changes: Vec<Change>,
    /// Entries that the parameters or a `returning` list name: dataset, key, values.
    pub(super) named: Vec<(String, String, KeyValues)>,
    /// Datasets of which more rows were written than entries are named: only triggers can tell which.
    pub(super) unnamed: Vec<String>,
}

/// The dataset's statement as Postgres has described it; asked once, and again after its tables have changed.
///
/// # Errors
/// [`WriteError`].
pub async fn statement_of(context: &Context, dataset: &Dataset) -> Result<Arc<WriteStatement>, WriteError> {
    if let Some(known) = dataset.write.read().unwrap_or_else(PoisonError::into_inner).clone() {
        return Ok(known);
    }
    let text = dataset.settings.write.as_ref();
    let text = text.ok_or_else(|| WriteError::NoStatement(dataset.name().to_owned()))?;
    let described = Arc::new(context.postgres.describe_write(text).await?);
    *dataset.write.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&described));
    Ok(described)
}

impl Prepared {
    /// Finds the statement and binds the values; nothing is carried out yet.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn new(context: &Context, dataset: &str, given: &Parameters) -> Result<Self, WriteError> {
        let dataset = context.catalog.get(dataset).ok_or_else(|| WriteError::Dataset(dataset.to_owned()))?;
        let statement = statement_of(context, dataset).await?;
        let values = bind(&statement, given)?;
        let (mut parts, mut has_one_spelling) = (Some(KeyValues::new()), true);
        for column in dataset.settings.key.columns() {
            let place = statement.places.iter().zip(&values).find(|((name, _), _)| name == column);
            let Some(((_, kind), Some(text))) = place else {
                parts = None;
                break;
            };
            let part = match canonical(text, kind) {
                Some(Ok(part)) => part,
                Some(Err(problem)) => return Err(WriteError::Parameter { name: column.to_owned(), problem }),
                None => {
                    has_one_spelling = false;
                    text.clone()
                }
            };
            parts.get_or_insert_default().push(part);
        }
        let key = parts.and_then(|values| Some((dataset.key_of(&values)?, values)));
        Ok(Self { dataset: Arc::clone(dataset), statement, values, key, has_one_spelling })
    }

    /// The queue in which it waits for its turn: of its key, where the parameters hold all of it in one spelling, else of
    /// its dataset.
    #[must_use]
    pub fn queue(&self) -> &str {
        let key = self.key.as_ref().filter(|_| self.has_one_spelling);
        key.map_or(self.dataset.name(), |(key, _)| key)
    }

    /// Carries it out. Call [`Touched::seal`] before the commit.
    ///
    /// # Errors
    /// [`WriteError`]; what was done since the last savepoint must be rolled back.
    pub async fn execute(&self, connection: &mut PgConnection) -> Result<Touched, WriteError> {
        let executed = self.statement.execute(connection, &self.values).await.inspect_err(|error| {
            if error.trouble == Trouble::Changed {
                self.dataset.forget_source();
            }
        })?;
        if executed.rows == 0 {
            return Err(WriteError::NothingTouched);
        }
        let mut keys: Vec<(String, KeyValues)> = self.key.iter().cloned().collect();
        for row in &executed.returned {
            let value = |column: &str| Some(row.iter().find(|(name, _)| name == column)?.1.clone());
            let found: Option<KeyValues> = self.dataset.settings.key.columns().map(value).collect();
            keys.extend(found.and_then(|values| Some((self.dataset.key_of(&values)?, values))));
        }
        keys.sort_unstable();
        keys.dedup();
        let name = self.dataset.name();
        let is_named = executed.rows <= keys.len() as u64;
        let named = keys.into_iter().map(|(key, values)| (name.to_owned(), key, values)).collect();
        let unnamed = if is_named { Vec::new() } else { vec![name.to_owned()] };
        let datasets = vec![name.to_owned()];
        Ok(Touched { datasets, rows: executed.rows, changes: Vec::new(), named, unnamed })
    }

    /// What it touched, as far as that is known without carrying it out: for one that was carried out before.
    #[must_use]
    pub fn touched_before(&self) -> Touched {
        let name = self.dataset.name();
        let named = self.key.iter().map(|(key, values)| (name.to_owned(), key.clone(), values.clone()));
        let named: Vec<_> = named.collect();
        let unnamed = if named.is_empty() { vec![name.to_owned()] } else { Vec::new() };
        Touched { datasets: vec![name.to_owned()], named, unnamed, ..Touched::default() }
    }
}

impl Touched {
    /// Adds what another write of the same transaction touched.
    pub fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.datasets.extend(other.datasets);
        self.datasets.sort_unstable();
        self.datasets.dedup();
        self.named.extend(other.named);
        self.unnamed.extend(other.unnamed);
        self.unnamed.sort_unstable();
        self.unnamed.dedup();
        // Each look sees all of the transaction so far.
        if self.changes.len() <= other.changes.len() {
            self.changes = other.changes;
        }
    }

    /// Whether there is nothing to settle.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.datasets.is_empty()
    }

    /// Whether what the triggers captured tells which entries of the dataset were written.
    pub(super) fn is_followed(&self, context: &Context, dataset: &str) -> bool {
        let coverage = context.coverage();
        let mark = coverage.as_ref().and_then(|coverage| coverage.datasets.get(dataset));
        !self.changes.is_empty() && mark.is_some_and(Result::is_ok)
    }

    /// Reads, at the end of the transaction, what its triggers captured. Entries of which no trigger tells are noted in the
    /// outbox, so that the feed sees to them if this process does not.
    ///
    /// # Errors
    /// [`SourceError`]; the transaction must be rolled back.
    pub async fn seal(
        &mut self,
        context: &Context,
        connection: &mut PgConnection,
    ) -> Result<(), SourceError> {
        if !context.has_outbox() {
            if !has_outbox(connection).await? {
                return Ok(());
            }
            context.set_has_outbox();
        }
        self.changes = captured_here(connection).await?;
        if !context.feed.is_on {
            return Ok(());
        }
        let named = self.named.iter().map(|(dataset, key, _)| (dataset.as_str(), Some(key.as_str())));
        // Where nobody knows which entries, all of them are looked at again.
        let unnamed = self.unnamed.iter().map(|dataset| (dataset.as_str(), None));
        let unseen: Vec<(&str, Option<&str>)> =
            named.chain(unnamed).filter(|(dataset, _)| !self.is_followed(context, dataset)).collect();
        if !unseen.is_empty() {
            note_keys(connection, &unseen, context.feed.limits.max_outbox).await?;
        }
        Ok(())
    }
}
