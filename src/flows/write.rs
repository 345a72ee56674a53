//! Write-through: Postgres first, then Redis (DESIGN 2.6).
//!
//! What a transaction touched is what its triggers captured: its own rows of the outbox. After the commit those entries are
//! loaded on another connection and stored under that load's stamp. Whatever happens after the commit, the feed finishes
//! it, because the rows are in the outbox.

pub mod parameters;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sqlx::PgConnection;
use tracing::debug;

use super::catalog::Dataset;
use super::context::Context;
use super::coverage;
use super::error::{FlowError, chain};
use super::fill::fill;
use super::follow::apply_own;
use super::followed::Coverage;
use super::reload::with_current_order;
use crate::domain::token::Token;
use crate::stores::postgres::write::{WriteStatement, captured_here, has_outbox, note_keys};
use crate::stores::postgres::{Change, KeyValues, SourceError, Trouble};
use parameters::{Parameters, bind};

/// Why a write was not carried out. Then nothing of it is in Postgres, and Redis is as it was.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is no such dataset.
    #[error("there is no dataset {0:?}")]
    Dataset(String),
    /// The dataset has no write statement.
    #[error("dataset {0} has no write statement; give it one as [dataset.{0}.write] statement")]
    NoStatement(String),
    /// A parameter is wrong.
    #[error("parameter {name}: {problem}")]
    Parameter {
        /// Which.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Postgres refused it: a constraint, a value of a wrong type, a missing right.
    #[error("postgres refused it: {0}")]
    Refused(String),
    /// No row fits.
    #[error("the statement touched no row")]
    NothingTouched,
    /// Postgres could not be asked, or others were in the way again and again; trying again helps.
    #[error("{0}")]
    Unavailable(SourceError),
    /// The connection broke while it was being committed: it may or may not be in Postgres.
    #[error("it is not known whether it was committed: {0}")]
    Unknown(SourceError),
}

impl WriteError {
    /// Whether the same write would be refused again.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Unavailable(_) | Self::Unknown(_))
    }
}

impl From<SourceError> for WriteError {
    fn from(error: SourceError) -> Self {
        match error.refusal() {
            Some(text) => Self::Refused(text),
            None => Self::Unavailable(error),
        }
    }
}

/// What a write touched; to be settled after the commit.
#[derive(Debug, Default)]
pub struct Touched {
    /// The datasets that were written.
    pub datasets: Vec<String>,
    /// Rows.
    pub rows: u64,
    /// What the triggers captured of the whole transaction.
    changes: Vec<Change>,
    /// Entries that the parameters or a `returning` list name: dataset, key, values.
    named: Vec<(String, String, KeyValues)>,
}

/// Whether Redis has what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheState {
    /// It has.
    Stored,
    /// Not yet: the feed, or the end of the entry's life, sees to it. The write is durable.
    Pending,
}

/// A write that is committed.
#[derive(Debug)]
pub struct Written {
    /// Rows that were touched.
    pub rows: u64,
    /// The entries of the written datasets, by key, as they are now; none: deleted.
    pub values: HashMap<String, Option<Vec<u8>>>,
    /// Whoever reads with it sees the write (R18); none where it could not be taken.
    pub token: Option<Token>,
    /// Whether Redis has it.
    pub cache: CacheState,
}

/// Attempts of a write that others are in the way of.
const ATTEMPTS: u32 = 5;

/// Carries out a dataset's write statement and stores what it touched.
///
/// # Errors
/// [`WriteError`].
pub async fn write(context: &Context, dataset: &str, given: &Parameters) -> Result<Written, WriteError> {
    let mut attempt = 0;
    let touched = loop {
        attempt += 1;
        match commit(context, dataset, given).await {
            Err(WriteError::Unavailable(error)) if error.is_conflict() && attempt < ATTEMPTS => {
                tokio::time::sleep(Duration::from_millis(2 << attempt)).await;
            }
            other => break other?,
        }
    };
    Ok(settle(context, touched).await)
}

async fn commit(context: &Context, dataset: &str, given: &Parameters) -> Result<Touched, WriteError> {
    let mut transaction = context.postgres.begin_write().await?;
    let touched = write_in(context, &mut transaction, dataset, given).await?;
    match transaction.commit().await {
        Ok(()) => Ok(touched),
        Err(error) => {
            let error = SourceError::of_commit(error);
            // A server that answers has refused it; silence says nothing.
            Err(if error.trouble == Trouble::Unavailable { WriteError::Unknown(error) } else { error.into() })
        }
    }
}

/// Carries out a dataset's write statement in the caller's transaction. Call [`settle`] with the answer after the commit;
/// without that, the feed does it.
///
/// # Errors
/// [`WriteError`]; the transaction must be rolled back.
pub async fn write_in(
    context: &Context,
    connection: &mut PgConnection,
    dataset: &str,
    given: &Parameters,
) -> Result<Touched, WriteError> {
    let dataset = context.catalog.get(dataset).ok_or_else(|| WriteError::Dataset(dataset.to_owned()))?;
    let statement = statement_of(context, dataset).await?;
    let values = bind(&statement, given)?;
    let executed = statement.execute(connection, &values).await.inspect_err(|error| {
        if error.trouble == Trouble::Changed {
            dataset.forget_source();
        }
    })?;
    if executed.rows == 0 {
        return Err(WriteError::NothingTouched);
    }
    let mut touched = Touched { rows: executed.rows, ..Touched::default() };
    touched.datasets.push(dataset.name().to_owned());
    let mut keys: Vec<(String, KeyValues)> = key_of(dataset, &statement, &values).into_iter().collect();
    for row in &executed.returned {
        let value = |column: &str| Some(row.iter().find(|(name, _)| name == column)?.1.clone());
        let found: Option<KeyValues> = dataset.settings.key.columns().map(value).collect();
        keys.extend(found.and_then(|values| Some((dataset.key_of(&values)?, values))));
    }
    if has_outbox(connection).await? {
        touched.changes = captured_here(connection).await?;
        if touched.changes.is_empty() && context.feed.is_on && !keys.is_empty() {
            let names: Vec<String> = keys.iter().map(|(key, _)| key.clone()).collect();
            note_keys(connection, dataset.name(), &names).await?;
        }
    }
    touched.named = keys.into_iter().map(|(key, values)| (dataset.name().to_owned(), key, values)).collect();
    Ok(touched)
}

/// The key that the parameters give, where they hold all of it.
pub fn key_of(
    dataset: &Dataset,
    statement: &WriteStatement,
    values: &[Option<String>],
) -> Option<(String, KeyValues)> {
    let value = |column: &str| {
        let position = statement.places.iter().position(|(name, _)| name == column)?;
        values.get(position).cloned().flatten()
    };
    let values: KeyValues = dataset.settings.key.columns().map(value).collect::<Option<_>>()?;
    Some((dataset.key_of(&values)?, values))
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

impl Touched {
    /// Adds what another write of the same transaction touched.
    pub fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.datasets.extend(other.datasets);
        self.datasets.sort_unstable();
        self.datasets.dedup();
        self.named.extend(other.named);
        // Each look sees all of the transaction so far.
        if self.changes.len() <= other.changes.len() {
            self.changes = other.changes;
        }
    }

    /// Adds what another transaction touched.
    pub fn join(&mut self, mut other: Self) {
        let changes = std::mem::take(&mut other.changes);
        self.changes.extend(changes);
        let own = std::mem::take(&mut self.changes);
        self.add(other);
        self.changes = own;
    }

    /// Entries that were written before, by a command that came again.
    pub fn again(dataset: &str, key: Option<(String, KeyValues)>) -> Self {
        let named = key.map(|(key, values)| (dataset.to_owned(), key, values)).into_iter().collect();
        Self { datasets: vec![dataset.to_owned()], named, ..Self::default() }
    }
}

/// Loads and stores what was touched, after the commit. What cannot be done now is the feed's.
pub async fn settle(context: &Context, touched: Touched) -> Written {
    let mut written =
        Written { rows: touched.rows, values: HashMap::new(), token: None, cache: CacheState::Stored };
    let coverage = match context.coverage() {
        Some(coverage) => coverage,
        None => Arc::new(coverage::look(context, false).await.unwrap_or_else(|_later| Coverage::default())),
    };
    let applied =
        with_current_order(context, || apply_own(context, &coverage, &touched.changes, &touched.datasets));
    let mut keys = match applied.await {
        Ok(keys) => keys,
        Err(error) => {
            debug!(error = %chain(&error), "what a write touched is left to the feed");
            written.cache = CacheState::Pending;
            HashMap::new()
        }
    };
    for (dataset, key, values) in touched.named {
        keys.entry(dataset).or_default().insert(key, values);
    }
    for (name, keys) in keys {
        let Some(dataset) = context.catalog.get(&name) else { continue };
        let keys: Vec<(String, KeyValues)> = keys.into_iter().collect();
        for part in keys.chunks(dataset.settings.batch) {
            store_part(context, dataset, part, &mut written).await;
        }
    }
    if written.token.is_none() {
        written.token = super::fresh::token(context).await.ok();
    }
    written
}

async fn store_part(
    context: &Context,
    dataset: &Dataset,
    part: &[(String, KeyValues)],
    written: &mut Written,
) {
    let filled: Result<_, FlowError> =
        with_current_order(context, || fill(context, dataset, part, true)).await;
    match filled {
        Ok(filled) => {
            if !filled.is_stored {
                written.cache = CacheState::Pending;
            }
            written.values.extend(filled.values);
            let token = Token { incarnation: filled.poll.incarnation, snapshot: filled.poll.snapshot };
            written.token.get_or_insert(token);
        }
        Err(error) => {
            debug!(dataset = dataset.name(), error = %chain(&error), "what was written is stored by the feed");
            written.cache = CacheState::Pending;
        }
    }
}
