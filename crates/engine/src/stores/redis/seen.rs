//! What stands under keys for whoever compares: values with what orders them, all of one moment, and never more bytes than were asked for.

use super::advance::parse;
use super::connection::Replies;
use super::entries::NOT_THERE;
use super::hashes::value_of;
use super::list::List;
use super::script::{SEE, SEE_HASH, pack_slots};
use super::{CacheError, Epoch, Redis, Watermark};
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::entry::Shape;
use cachekeeper_protocol::guard::Guard;
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
    /// What Redis calls its type; empty: nothing stands there. Of a hash that no row can be, with how many fields it has.
    pub kind: String,
    /// The length of its value.
    pub bytes: usize,
    /// The value, as it was stored; of a string that is too large its beginning, of such a hash nothing.
    pub value: Vec<u8>,
    /// As Redis says it: -1 without end, -2 nothing.
    pub left_ms: i64,
    /// The newest snapshot that touched a key of its stamp slot.
    pub slot: Stamp,
    /// Whether the watermark holds for it. On a shard of a cluster it does where it covers the cluster slot, and the guard says that it is
    /// this shard's.
    pub is_covered: bool,
}

impl SeenEntry {
    /// Nothing.
    #[must_use]
    pub fn absent() -> Self {
        Self {
            kind: String::new(),
            bytes: 0,
            value: Vec::new(),
            left_ms: NOT_THERE,
            slot: Stamp::ZERO,
            is_covered: true,
        }
    }

    /// Whether anything stands there.
    #[must_use]
    pub fn is_there(&self) -> bool {
        !self.kind.is_empty()
    }

    /// Whether it could be an entry of this shape.
    #[must_use]
    pub fn is(&self, shape: Shape) -> bool {
        self.kind == shape.name()
    }

    /// As what it stands there, if an entry can stand so.
    #[must_use]
    pub fn shape(&self) -> Option<Shape> {
        [Shape::String, Shape::Hash].into_iter().find(|shape| self.is(*shape))
    }

    /// Whether the value is all that stands there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.value.len() == self.bytes
    }
}

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
        if self.adopted.is_some() {
            return self.see_on_shard(keys, most).await;
        }
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
                Some(Kind::Hash) => {
                    pipeline.cmd("EVALSHA").arg(&SEE_HASH.hash).arg(1).arg(key);
                    pipeline.arg(most_of(most)).cmd("PTTL").arg(key);
                    replies += 2;
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

    /// Keys of a shard have no cluster slot in common, so that no transaction reads them, but a script does.
    async fn see_on_shard(&self, keys: &[impl AsRef<str>], most: usize) -> Result<SeenEntries, CacheError> {
        const WHAT: &str = "look at entries";
        let is_unnoticed = self.can_look_unnoticed().await?;
        let on = self.keys.metadata();
        let names = || keys.iter().map(AsRef::as_ref);
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        pipeline.cmd("SCRIPT").arg("LOAD").arg(&SEE.text).ignore();
        if is_unnoticed {
            pipeline.cmd("CLIENT").arg("NO-TOUCH").arg("ON").ignore();
        }
        pipeline.cmd("EVALSHA").arg(&SEE.hash).arg(3).arg(&on.meta).arg(&on.stamps).arg(&on.watermark);
        let slots = || names().map(|name| ClusterSlot::of(name.as_bytes()));
        let guards = List::of_texts(slots().map(|slot| self.keys.guard(slot))).into_bytes();
        pipeline
            .arg(most_of(most))
            .arg(List::of_texts(names()).into_bytes())
            .arg(guards)
            .arg(pack_slots(names()));
        if is_unnoticed {
            pipeline.cmd("CLIENT").arg("NO-TOUCH").arg("OFF").ignore();
        }
        let (kinds, guards, values): (Vec<String>, Vec<String>, Vec<redis::Value>) =
            self.pipeline(WHAT, &pipeline, 1).await?.next()?;
        let kinds = kinds.iter().map(|name| match name.as_str() {
            "" => None,
            name if name == Shape::String.name() => Some(Kind::String),
            name if name == Shape::Hash.name() => Some(Kind::Hash),
            _ => Some(Kind::Other),
        });
        let mut seen = read(Replies::of(WHAT, values), kinds.collect(), Order::Asked)?;
        let covers = seen.watermark.as_ref().and_then(|watermark| watermark.covers.as_ref());
        for ((entry, guard), slot) in seen.entries.iter_mut().zip(guards).zip(slots()) {
            let is_own = guard.parse().is_ok_and(|guard: Guard| guard.shard == on.number);
            entry.is_covered = is_own && covers.is_some_and(|covers| covers.contains(slot));
        }
        Ok(seen)
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
        let mut kinds = keys.iter().map(|_| replies.next().map(kind)).collect::<Result<Vec<_>, _>>()?;
        self.find_hashes(keys, &mut kinds).await?;
        Ok(kinds)
    }

    /// Tells hashes from other types: encodings do not.
    async fn find_hashes(
        &self,
        keys: &[impl AsRef<str>],
        kinds: &mut [Option<Kind>],
    ) -> Result<(), CacheError> {
        let mut others: Vec<(&str, &mut Option<Kind>)> = keys
            .iter()
            .map(AsRef::as_ref)
            .zip(kinds)
            .filter(|(_, kind)| matches!(kind, Some(Kind::Other)))
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        let mut pipeline = redis::pipe();
        // The transaction that follows cannot load it.
        pipeline.cmd("SCRIPT").arg("LOAD").arg(&SEE_HASH.text).ignore();
        for (key, _) in &others {
            pipeline.cmd("TYPE").arg(key);
        }
        let mut replies = self.pipeline("look for entries", &pipeline, others.len()).await?;
        for (_, kind) in &mut others {
            if replies.next::<String>()? == Shape::Hash.name() {
                **kind = Some(Kind::Hash);
            }
        }
        Ok(())
    }
}

/// Most bytes of a value, as scripts are told them. What a number of Lua does not hold exactly is all.
fn most_of(most: usize) -> String {
    u32::try_from(most).map_or_else(|_all| String::new(), |most| most.to_string())
}

enum Kind {
    String,
    Hash,
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
                Shape::String.name().clone_into(&mut entry.kind);
            }
            Some(Kind::Hash) => {
                take_hash(&mut replies, &mut entry)?;
                entry.left_ms = replies.next()?;
            }
            Some(Kind::Other) => (entry.kind, entry.left_ms) = (replies.next()?, replies.next()?),
        }
        // It has gone meanwhile.
        let is_gone = entry.left_ms == NOT_THERE;
        seen.entries.push(if is_gone { SeenEntry { slot, ..SeenEntry::absent() } } else { entry });
    }
    Ok(seen)
}

fn take_hash(replies: &mut Replies, entry: &mut SeenEntry) -> Result<(), CacheError> {
    const WHAT: &str = "look at a hash";
    let (fields, bytes, pairs): (usize, usize, Option<redis::Value>) = match replies.next()? {
        redis::Value::Array(parts) => {
            let mut parts = parts.into_iter();
            let mut number = || parts.next().and_then(|part| redis::from_redis_value(part).ok());
            let (fields, bytes) = (number().unwrap_or_default(), number().unwrap_or_default());
            (fields, bytes, parts.next())
        }
        other => return Err(CacheError::unexpected(WHAT, &format!("{other:?}"))),
    };
    Shape::Hash.name().clone_into(&mut entry.kind);
    match pairs.map(|pairs| value_of(WHAT, pairs)).transpose()? {
        Some(value) => {
            entry.value = value.unwrap_or_default();
            entry.bytes = entry.value.len();
        }
        None if bytes == 0 => entry.kind = format!("hash of {fields} fields"),
        None => entry.bytes = bytes,
    }
    Ok(())
}
