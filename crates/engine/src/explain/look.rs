//! What both servers say of an entry.

use std::time::Duration;

use tokio::time::Instant;

use super::asked::{NotAsked, asked};
use super::facts::RowFacts;
use crate::audit::sure::{Moment, is_null};
use crate::audit::{Expected, expect, is_covered};
use crate::catalog::Dataset;
use crate::context::Context;
use crate::decoded::decoded_aside;
use crate::error::EngineError;
use crate::stores::postgres::{ErrorKind, KeyValues};
use crate::stores::redis::{SeenEntries, SeenEntry, Watermark};
use crate::tokens::{self, WaitError};
use cachekeeper_protocol::stamp::Stamp;
use cachekeeper_protocol::token::Token;

/// How long the watermark is waited for where the entry differs.
const WATERMARK_WITHIN: Duration = Duration::from_secs(2);
/// Looks at an entry that is touched while it is looked at.
const LOOKS: usize = 4;
/// The largest value that is compared.
const COMPARED_MAX: usize = 64 << 20;

/// What may be said of an entry that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// Nothing: the watermark has not passed the snapshot of the row.
    Late,
    /// Nothing: it has, but something newer has touched the entry.
    Touched,
    /// It is wrong.
    Sure,
}

/// What both servers say of an entry.
pub(super) struct Looked {
    pub entry: SeenEntry,
    /// Why Postgres could not be asked.
    pub row: Result<Expected, NotAsked>,
    /// The entry is what the row says.
    pub agrees: bool,
    /// The entry is an explicit null of this dataset.
    pub is_null: bool,
    /// What may be said of an entry that differs.
    pub proof: Proof,
    pub watermark: Option<Watermark>,
    pub floor: Option<Stamp>,
}

impl Looked {
    fn new(dataset: &Dataset, seen: SeenEntries, row: Result<Expected, NotAsked>, key: &str) -> Self {
        let moment = row.as_ref().ok().map(|row| Moment::of(&seen, row, dataset));
        let entry = seen.entries.into_iter().next().unwrap_or_else(SeenEntry::absent);
        let proof = match moment.filter(|moment| moment.is_past) {
            None => Proof::Late,
            Some(moment) if entry.is_whole() && moment.is_sure_of(&entry) => Proof::Sure,
            Some(_) => Proof::Touched,
        };
        let is_same = |row: &Expected| match row.values.get(key) {
            Some(value) => {
                entry.is(dataset.settings.format.shape()) && entry.is_whole() && *value == entry.value
            }
            None => !entry.is_there(),
        };
        Self {
            agrees: row.as_ref().is_ok_and(is_same),
            is_null: is_null(dataset, &entry),
            proof,
            watermark: seen.watermark,
            floor: seen.floor,
            entry,
            row,
        }
    }

    /// Whether both say the same, also of a row that is not there.
    fn is_settled(&self, key: &str) -> bool {
        let Ok(row) = &self.row else { return true };
        let has_nothing = !row.values.contains_key(key) && !row.unreadable.contains_key(key);
        self.agrees || !self.entry.is_there() || has_nothing && self.is_null
    }

    /// The key of the row that was found, where the values are spelled in another way there (a uuid in capitals).
    pub(super) fn spelled(&self, key: &str) -> Option<&str> {
        let row = self.row.as_ref().ok()?;
        let mut found = row.values.keys().chain(row.unreadable.keys()).map(String::as_str);
        let first = found.next()?;
        (first != key && found.all(|other| other != key)).then_some(first)
    }

    /// What is told of the row.
    pub(super) async fn row(&self, key: &str, dataset: &Dataset) -> RowFacts {
        let expected = match &self.row {
            Ok(expected) => expected,
            Err(reason) => return RowFacts { not_asked: Some(reason.clone()), ..RowFacts::default() },
        };
        let mut facts = RowFacts {
            exists: Some(expected.values.contains_key(key) || expected.unreadable.contains_key(key)),
            tags: expected.tags.get(key).cloned().unwrap_or_default(),
            refused: expected.unreadable.get(key).cloned(),
            spelled: self.spelled(key).map(str::to_owned),
            ..RowFacts::default()
        };
        if let Some(value) = expected.values.get(key) {
            match decoded_aside(value.clone(), Some(dataset.settings.format.clone())).await {
                Ok(shown) => facts.value = Some(shown),
                Err(reason) => facts.not_shown = Some(reason),
            }
        }
        facts
    }
}

/// Looks at an entry and its row; where they differ, again until the watermark has passed the row's snapshot and nothing has touched the
/// entry since ([`crate::audit::sure`]).
pub(super) async fn look(
    context: &Context,
    dataset: &Dataset,
    key: &str,
    values: &KeyValues,
    until: Instant,
) -> Result<Looked, EngineError> {
    let mut look = 0;
    loop {
        look += 1;
        let row = expected(context, dataset, key, values, until).await?;
        let is_first = look == 1;
        if let Ok(row) = &row
            && !is_first
        {
            let (incarnation, snapshot) = (row.poll.incarnation.clone(), row.poll.snapshot.clone());
            let left = until.saturating_duration_since(Instant::now()).min(WATERMARK_WITHIN);
            let token = Token { incarnation, snapshot };
            match tokens::wait(context, &token, Some(dataset.name()), left).await {
                Ok(_) | Err(WaitError::TooMany) => {}
                Err(WaitError::Flow(error)) => return Err(error),
            }
        }
        let seen = context.redis.see_in_order(&[key], COMPARED_MAX).await?;
        let looked = Looked::new(dataset, seen, row, key);
        if looked.is_settled(key) || looked.proof == Proof::Sure || !is_covered(context, dataset).await? {
            return Ok(looked);
        }
        let is_late = !is_first && looked.proof == Proof::Late;
        if is_late || look == LOOKS || until <= Instant::now() {
            return Ok(looked);
        }
    }
}

/// What the row says, or why Postgres could not be asked.
async fn expected(
    context: &Context,
    dataset: &Dataset,
    key: &str,
    values: &KeyValues,
    until: Instant,
) -> Result<Result<Expected, NotAsked>, EngineError> {
    let wanted = [(key.to_owned(), values.clone())];
    let read = async {
        let source = dataset.source(&context.postgres).await?;
        let read = expect(context, dataset, &source, &wanted).await;
        if matches!(&read, Err(EngineError::Source(error)) if error.kind == ErrorKind::Changed) {
            dataset.forget_source();
        }
        read
    };
    asked(context, until, read).await
}
