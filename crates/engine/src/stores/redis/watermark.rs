//! The cursor of the feed and the watermark, which move together (R12).

use serde::{Deserialize, Serialize};

use super::script::{ADVANCE, Answer, Call, Standing};
use super::{CacheError, Debt, Epoch, Redis};
use cachekeeper_protocol::stamp::Snapshot;

/// What every entry is at least as fresh as, but for the datasets it names. This is the JSON that stands in Redis
/// under `ck:{<namespace>}:watermark`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// The epoch.
    pub epoch: String,
    /// The life of the database that the snapshot belongs to.
    pub incarnation: String,
    /// The snapshot, as `pg_current_snapshot()` prints it.
    pub snapshot: String,
    /// The database's clock when the snapshot was taken (RFC 3339).
    pub as_of: String,
    /// Datasets that this does not hold for.
    pub not_covered: Vec<String>,
}

/// A move of the cursor.
#[derive(Debug)]
pub struct Advance<'a> {
    /// The feed's counted job and how many of its scripts have run.
    pub job: (&'a str, u64),
    /// Where the cursor was read.
    pub from: &'a str,
    /// Where it goes.
    pub to: &'a Snapshot,
    /// The database's clock then.
    pub as_of: &'a str,
    /// The datasets that are followed, each with a mark of what follows it.
    pub followed: &'a [(String, String)],
    /// What a dataset owes that was not followed, or by something else.
    pub debt: &'a Debt,
}

/// How a move ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advanced {
    /// The cursor and the watermark have moved.
    Done,
    /// Scripts of the batch are missing: Redis went back.
    WentBack,
    /// Another worker leads.
    Moved,
}

impl Redis {
    /// Moves the cursor and the watermark, if every script of the batch is still there and nobody else moved it.
    ///
    /// # Errors
    /// [`CacheError`]; after [`super::Refusal::Unknown`] it may have moved.
    pub async fn advance(
        &self,
        epoch: &Epoch,
        incarnation: &str,
        advance: &Advance<'_>,
    ) -> Result<Answer<Advanced>, CacheError> {
        let mut call = Call::fenced(&ADVANCE, self, 1);
        call.arg(self.keys.watermark.as_bytes());
        call.standing(&Standing { epoch, incarnation, dataset: "", revision: "" });
        call.arg(advance.job.0.as_bytes()).number(advance.job.1);
        call.arg(advance.from.as_bytes()).arg(advance.to.as_str().as_bytes()).arg(advance.as_of.as_bytes());
        call.arg(advance.debt.0.as_bytes()).arg(epoch.to_string().as_bytes());
        for (dataset, mark) in advance.followed {
            call.arg(dataset.as_bytes()).arg(mark.as_bytes());
        }
        match call.run_fenced(self).await? {
            Answer::Gone(gone) => Ok(Answer::Gone(gone)),
            Answer::Done(reply) => match call.read::<String>(reply)?.as_str() {
                "DONE" => Ok(Answer::Done(Advanced::Done)),
                "BACK" => Ok(Answer::Done(Advanced::WentBack)),
                "MOVED" => Ok(Answer::Done(Advanced::Moved)),
                other => Err(CacheError::unexpected("advance", other)),
            },
        }
    }

    /// The watermark; none: there is none (yet, or any more).
    pub async fn watermark(&self) -> Result<Option<Watermark>, CacheError> {
        let command = redis::cmd("GET").arg(&self.keys.watermark).to_owned();
        let text: Option<Vec<u8>> = self.command("read the watermark", &command).await?;
        text.map(|text| parse(&text)).transpose()
    }

    /// A value and the watermark of the same moment.
    pub async fn read_with_watermark(
        &self,
        key: &str,
    ) -> Result<(Option<Vec<u8>>, Option<Watermark>), CacheError> {
        let command = redis::cmd("MGET").arg(key).arg(&self.keys.watermark).to_owned();
        let (value, text): (Option<Vec<u8>>, Option<Vec<u8>>) =
            self.command("read a value with the watermark", &command).await?;
        Ok((value, text.map(|text| parse(&text)).transpose()?))
    }
}

fn parse(text: &[u8]) -> Result<Watermark, CacheError> {
    serde_json::from_slice(text)
        .map_err(|error| CacheError::unexpected("read the watermark", &error.to_string()))
}
