//! What stands under keys for whoever compares: values with what orders them, all of one moment, and never more bytes than were asked for.

use super::advance::parse;
use super::connection::Replies;
use super::entries::NOT_THERE;
use super::{CacheError, Epoch, Redis, Watermark};
use cachekeeper_protocol::keyspace::slot;
use cachekeeper_protocol::stamp::Stamp;

/// Looks at keys of which one was replaced by something of another type meanwhile.
const LOOKS: usize = 3;

/// Some keys, with what orders their values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenEntries {
    /// As they were asked for.
    pub entries: Vec<SeenEntry>,
    /// Nothing older than this is stored.
    pub floor: Option<Stamp>,
    /// The epoch.
    pub epoch: Option<Epoch>,
    /// The watermark.
    pub watermark: Option<Watermark>,
}

/// What stands under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenEntry {
    /// What Redis calls its type; empty: nothing stands there.
    pub kind: String,
    /// The length of a string.
    pub bytes: usize,
    /// A string, or its beginning.
    pub value: Vec<u8>,
    /// As Redis says it: -1 without end, -2 nothing.
    pub left_ms: i64,
    /// The newest snapshot that touched a key of its stamp slot.
    pub slot: Stamp,
}

impl SeenEntry {
    /// Nothing.
    #[must_use]
    pub fn absent() -> Self {
        Self { kind: String::new(), bytes: 0, value: Vec::new(), left_ms: NOT_THERE, slot: Stamp::ZERO }
    }

    /// Whether anything stands there.
    #[must_use]
    pub fn is_there(&self) -> bool {
        !self.kind.is_empty()
    }

    /// Whether it could be an entry at all.
    #[must_use]
    pub fn is_string(&self) -> bool {
        self.kind == STRING
    }

    /// Whether the value is all that stands there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.value.len() == self.bytes
    }
}

const STRING: &str = "string";

impl Redis {
    /// Looks at keys, each value up to so many bytes. It is no use of an entry where the server can tell it apart, and nothing that is
    /// missing is a miss that somebody fills.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn see(&self, keys: &[impl AsRef<str>], most: usize) -> Result<SeenEntries, CacheError> {
        self.see_with(keys, most, Order::NotAsked).await
    }

    /// The same with what orders them.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn see_in_order(
        &self,
        keys: &[impl AsRef<str>],
        most: usize,
    ) -> Result<SeenEntries, CacheError> {
        self.see_with(keys, most, Order::Asked).await
    }

    async fn see_with(
        &self,
        keys: &[impl AsRef<str>],
        most: usize,
        order: Order,
    ) -> Result<SeenEntries, CacheError> {
        let mut looks = 1;
        loop {
            match self.see_once(keys, most, order).await {
                Err(error) if !error.is_unreachable() && looks < LOOKS => looks += 1,
                seen => return seen,
            }
        }
    }

    async fn see_once(
        &self,
        keys: &[impl AsRef<str>],
        most: usize,
        order: Order,
    ) -> Result<SeenEntries, CacheError> {
        let kinds = self.kinds(keys).await?;
        let is_unnoticed = self.can_look_unnoticed().await?;
        let on = self.keys.metadata();
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        if is_unnoticed {
            pipeline.cmd("CLIENT").arg("NO-TOUCH").arg("ON").ignore();
        }
        let mut replies = 0;
        if order == Order::Asked {
            pipeline.cmd("HMGET").arg(&on.meta).arg("epoch").arg("floor").cmd("GET").arg(&on.watermark);
            replies += 2;
        }
        for (key, kind) in keys.iter().zip(&kinds) {
            let key = key.as_ref();
            if order == Order::Asked {
                // Behind the epoch, eight bytes for each slot.
                let at = 8 + 8 * i64::from(slot(key.as_bytes()));
                pipeline.cmd("GETRANGE").arg(&on.stamps).arg(at).arg(at + 7);
                replies += 1;
            }
            match kind {
                None => {}
                Some(Kind::String) => {
                    // The last byte of nothing would be that of the whole.
                    let (first, last) = match i64::try_from(most) {
                        Ok(0) => (1, 0),
                        Ok(most) => (0, most - 1),
                        Err(_all) => (0, -1),
                    };
                    pipeline.cmd("GETRANGE").arg(key).arg(first).arg(last);
                    pipeline.cmd("STRLEN").arg(key).cmd("PTTL").arg(key);
                    replies += 3;
                }
                Some(Kind::Other) => {
                    pipeline.cmd("TYPE").arg(key).cmd("PTTL").arg(key);
                    replies += 2;
                }
            }
        }
        if is_unnoticed {
            pipeline.cmd("CLIENT").arg("NO-TOUCH").arg("OFF").ignore();
        }
        if replies == 0 {
            let entries = kinds.iter().map(|_| SeenEntry::absent()).collect();
            return Ok(SeenEntries { entries, ..SeenEntries::default() });
        }
        let replies = self.pipeline("look at entries", &pipeline, replies).await?;
        read(replies, kinds, order)
    }

    /// What is there. Any other command would tell whoever listens that a key is missing.
    async fn kinds(&self, keys: &[impl AsRef<str>]) -> Result<Vec<Option<Kind>>, CacheError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("OBJECT").arg("ENCODING").arg(key.as_ref());
        }
        let mut replies = self.pipeline("look for entries", &pipeline, keys.len()).await?;
        let kind = |encoding: Option<String>| match encoding.as_deref() {
            None => None,
            Some("int" | "embstr" | "raw") => Some(Kind::String),
            Some(_other_type) => Some(Kind::Other),
        };
        keys.iter().map(|_| replies.next().map(kind)).collect()
    }
}

enum Kind {
    String,
    Other,
}

/// Whether what orders values is read too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Asked,
    NotAsked,
}

fn read(mut replies: Replies, kinds: Vec<Option<Kind>>, order: Order) -> Result<SeenEntries, CacheError> {
    let mut seen = SeenEntries { entries: Vec::with_capacity(kinds.len()), ..SeenEntries::default() };
    if order == Order::Asked {
        let (epoch, floor): (Option<Vec<u8>>, Option<Vec<u8>>) = replies.next()?;
        let watermark: Option<Vec<u8>> = replies.next()?;
        seen.floor = floor.and_then(|bytes| bytes.try_into().ok()).map(Stamp::from_bytes);
        seen.epoch = epoch.and_then(|bytes| bytes.try_into().ok()).map(Epoch::from_bytes);
        seen.watermark = watermark.map(|text| parse(&text)).transpose()?;
    }
    for kind in kinds {
        let slot: Vec<u8> = if order == Order::Asked { replies.next()? } else { Vec::new() };
        let slot = slot.try_into().ok().map(Stamp::from_bytes).unwrap_or_default();
        let mut entry = SeenEntry { slot, ..SeenEntry::absent() };
        match kind {
            None => {}
            Some(Kind::String) => {
                (entry.value, entry.bytes) = (replies.next()?, replies.next()?);
                entry.left_ms = replies.next()?;
                STRING.clone_into(&mut entry.kind);
            }
            Some(Kind::Other) => (entry.kind, entry.left_ms) = (replies.next()?, replies.next()?),
        }
        // It has gone meanwhile.
        let is_gone = entry.left_ms == NOT_THERE;
        seen.entries.push(if is_gone { SeenEntry { slot, ..SeenEntry::absent() } } else { entry });
    }
    Ok(seen)
}
