//! What is asked only where an entry and its row are not simply the same: why that may be no fault.

use std::time::Duration;

use tokio::time::Instant;

use super::asked::asked;
use super::facts::Explanation;
use super::look::{Looked, Proof};
use crate::audit::sure::clock_of;
use crate::catalog::Dataset;
use crate::context::Context;
use crate::error::EngineError;
use crate::lease::LeaseName;
use crate::stores::postgres::KeyValues;
use cachekeeper_protocol::units::show_duration;

/// Why what looks wrong may be no fault.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// What the query depends on that is no data.
    pub clock: Option<String>,
    /// Why nobody will renew the entry, and what to do.
    pub nobody: Option<String>,
    /// What may hide the row from the worker's role.
    pub hidden: Option<String>,
    /// Why no row can have this key.
    pub impossible: Option<String>,
    /// The entry says the same as its row, in other bytes.
    pub is_same: bool,
}

impl Doubts {
    pub(super) async fn of(
        context: &Context,
        explained: &Explanation,
        dataset: &Dataset,
        (looked, values): (&Looked, &KeyValues),
        until: Instant,
    ) -> Result<Self, EngineError> {
        let mut doubts = Self::default();
        let Ok(row) = &looked.row else { return Ok(doubts) };
        let key = &explained.key;
        let (has_row, is_refused) = (row.values.contains_key(key), row.unreadable.contains_key(key));
        if is_refused {
            let typed = async {
                let source = dataset.source(&context.postgres).await?;
                Ok(context.postgres.no_value(&source, values).await?)
            };
            doubts.impossible = asked(context, until, typed).await?.ok().flatten();
        } else if !has_row {
            let hiding = async { Ok(context.postgres.row_security_of(&dataset.settings.query).await?) };
            doubts.hidden = asked(context, until, hiding).await?.ok().flatten();
        }
        if !looked.entry.is_there() || looked.agrees {
            return Ok(doubts);
        }
        let stored = explained.entry.as_ref().and_then(|entry| entry.value.as_ref());
        doubts.is_same = stored.is_some() && stored == explained.row.value.as_ref();
        if looked.proof == Proof::Sure {
            let clock = async { Ok(clock_of(context, dataset).await) };
            doubts.clock = asked(context, until, clock).await?.ok().flatten();
        }
        if context.feed.is_on {
            doubts.nobody = nobody(context, looked).await?;
        }
        Ok(doubts)
    }
}

/// Whether nobody follows the changes.
async fn nobody(context: &Context, looked: &Looked) -> Result<Option<String>, EngineError> {
    if context.redis.lock_left(&LeaseName::FEED.name).await?.is_none() {
        let what = "nobody follows the changes: no worker leads the feed; start one (`cachekeeper run`), or see the log of the one that runs";
        return Ok(Some(what.to_owned()));
    }
    let age = looked.watermark.as_ref().and_then(|watermark| watermark.age()).unwrap_or_default();
    if age <= context.feed.max_lag {
        return Ok(None);
    }
    let age = show_duration(Duration::from_secs(age.as_secs()));
    Ok(Some(format!(
        "the watermark stands since {age}: the worker that leads the feed does not come on; /readyz and its log say why, often it is a long \
         transaction or a lock in Postgres"
    )))
}
