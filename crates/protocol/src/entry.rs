//! Entries on their way to Redis: keys, values and tags in a few growing buffers that are used again, so that a
//! backfill of a million rows allocates nothing for each row.

use std::collections::HashMap;

/// A lifetime that does not end.
pub const LIFE_WITHOUT_END: u64 = u64::MAX;

/// As what an entry stands in Redis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// A string: its value is the bytes of it.
    #[default]
    String,
    /// A hash: its value is the names and values of its fields ([`crate::fields`]).
    Hash,
}

impl Shape {
    /// As Redis calls the type.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Hash => "hash",
        }
    }
}

/// A batch of entries that one script stores.
#[derive(Debug, Default)]
pub struct EntryBatch {
    shape: Shape,
    keys: String,
    values: Vec<u8>,
    ends: Vec<End>,
    tag_text: String,
    tagged: Vec<Tagged>,
}

#[derive(Debug, Clone, Copy)]
struct End {
    key: usize,
    value: usize,
    life_ms: u64,
    ends_at_ms: Option<u64>,
}

/// A tag of an entry; the tag's text ends here.
#[derive(Debug, Clone, Copy)]
struct Tagged {
    end: usize,
    position: u32,
}

/// One entry of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// Its key.
    pub key: &'a str,
    /// Its value; empty and without meaning where `life_ms` is 0.
    pub value: &'a [u8],
    /// Its lifetime in milliseconds, or [`LIFE_WITHOUT_END`]; 0: the row is gone, the entry is to be deleted.
    pub life_ms: u64,
    /// When it ends at the latest, in milliseconds of the clock of whoever stores it.
    pub ends_at_ms: Option<u64>,
}

impl EntryRef<'_> {
    /// Its lifetime where it is stored now.
    #[must_use]
    pub fn life_at(&self, now_ms: u64) -> u64 {
        self.ends_at_ms.map_or(self.life_ms, |end| self.life_ms.min(end.saturating_sub(now_ms)))
    }
}

impl EntryBatch {
    /// Adds an entry with what `write` appends to the buffers; nothing is added if it fails.
    ///
    /// # Errors
    /// What `write` answers.
    pub fn push_with<E>(
        &mut self,
        life_ms: u64,
        write: impl FnOnce(&mut String, &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<u32, E> {
        let (key_start, value_start) = (self.keys.len(), self.values.len());
        if let Err(error) = write(&mut self.keys, &mut self.values) {
            self.keys.truncate(key_start);
            self.values.truncate(value_start);
            return Err(error);
        }
        self.ends.push(End { key: self.keys.len(), value: self.values.len(), life_ms, ends_at_ms: None });
        Ok(u32::try_from(self.ends.len() - 1).unwrap_or(u32::MAX))
    }

    /// Adds an entry and answers its position.
    pub fn push(&mut self, key: &str, value: &[u8], life_ms: u64) -> u32 {
        self.push_until(key, value, life_ms, None)
    }

    /// The same with an end, in milliseconds of this machine's clock.
    pub fn push_until(&mut self, key: &str, value: &[u8], life_ms: u64, ends_at_ms: Option<u64>) -> u32 {
        self.keys.push_str(key);
        self.values.extend_from_slice(value);
        self.ends.push(End { key: self.keys.len(), value: self.values.len(), life_ms, ends_at_ms });
        u32::try_from(self.ends.len() - 1).unwrap_or(u32::MAX)
    }

    /// Adds the deletion of an entry whose row is gone.
    pub fn push_gone(&mut self, key: &str) -> u32 {
        self.push(key, &[], 0)
    }

    /// Says as what its entries are stored. Those of one dataset all are the same.
    pub fn store_as(&mut self, shape: Shape) {
        self.shape = shape;
    }

    /// As what its entries are stored; a deletion is the same for all.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Gives the entry at this position a tag.
    pub fn tag(&mut self, position: u32, tag: &str) {
        self.tag_text.push_str(tag);
        self.tagged.push(Tagged { end: self.tag_text.len(), position });
    }

    /// The entry at this position.
    #[must_use]
    pub fn get(&self, position: usize) -> Option<EntryRef<'_>> {
        let end = self.ends.get(position)?;
        let start = position.checked_sub(1).and_then(|before| self.ends.get(before));
        let (key_start, value_start) = start.map_or((0, 0), |start| (start.key, start.value));
        Some(EntryRef {
            key: self.keys.get(key_start..end.key)?,
            value: self.values.get(value_start..end.value)?,
            life_ms: end.life_ms,
            ends_at_ms: end.ends_at_ms,
        })
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = EntryRef<'_>> {
        (0..self.ends.len()).filter_map(|position| self.get(position))
    }

    /// A copy with the entries of these keys alone.
    #[must_use]
    pub fn only(&self, is_wanted: impl Fn(&str) -> bool) -> Self {
        let mut kept = Self { shape: self.shape, ..Self::default() };
        let mut places: HashMap<u32, u32> = HashMap::new();
        for (position, entry) in (0..).zip(self.iter()) {
            if is_wanted(entry.key) {
                let place = kept.push_until(entry.key, entry.value, entry.life_ms, entry.ends_at_ms);
                places.insert(position, place);
            }
        }
        for (tag, position) in self.tagged() {
            if let Some(place) = places.get(&position) {
                kept.tag(*place, tag);
            }
        }
        kept
    }

    /// Each tag of each entry, with the entry's position; in the order in which they were given.
    pub fn tagged(&self) -> impl Iterator<Item = (&str, u32)> {
        let mut start = 0;
        self.tagged.iter().filter_map(move |tagged| {
            let tag = self.tag_text.get(start..tagged.end)?;
            start = tagged.end;
            Some((tag, tagged.position))
        })
    }

    /// The tags, each with the positions of its entries.
    #[must_use]
    pub fn tags(&self) -> Vec<(&str, Vec<u32>)> {
        let mut tags: Vec<(&str, Vec<u32>)> = Vec::new();
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (tag, position) in self.tagged() {
            let place = *places.entry(tag).or_insert(tags.len());
            match tags.get_mut(place) {
                Some((_, positions)) if positions.last() == Some(&position) => {}
                Some((_, positions)) => positions.push(position),
                None => tags.push((tag, vec![position])),
            }
        }
        tags
    }

    /// Whether any entry has a tag.
    #[must_use]
    pub fn has_tags(&self) -> bool {
        !self.tagged.is_empty()
    }

    /// How many entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many bytes of keys, values and tags.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.keys.len() + self.values.len() + self.tag_text.len() + self.tagged.len() * size_of::<Tagged>()
    }

    /// Forgets the entries and keeps the buffers.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
        self.ends.clear();
        self.tag_text.clear();
        self.tagged.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_in_order_and_a_failed_one_leaves_no_trace() {
        let mut batch = EntryBatch::default();
        let first = batch.push("a", b"1", 10);
        let failed = batch.push_with(10, |keys, values| {
            keys.push_str("broken");
            values.push(0);
            Err("broken")
        });
        assert_eq!(failed, Err("broken"));
        let second = batch.push_gone("bb");
        batch.tag(first, "t");
        batch.tag(second, "t");
        batch.tag(second, "t");
        assert_eq!(batch.get(0), Some(EntryRef { key: "a", value: b"1", life_ms: 10, ends_at_ms: None }));
        assert_eq!(batch.get(1), Some(EntryRef { key: "bb", value: b"", life_ms: 0, ends_at_ms: None }));
        batch.tag(first, "u");
        assert_eq!(batch.tags(), vec![("t", vec![0, 1]), ("u", vec![0])]);
        assert_eq!(batch.len(), 2);
        batch.clear();
        assert_eq!((batch.len(), batch.bytes(), batch.has_tags()), (0, 0, false));
    }
}
