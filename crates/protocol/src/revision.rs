//! Revisions: two definitions of one dataset must not overwrite each other, nor what was loaded before and after a change that
//! no snapshot orders.

use std::hash::Hasher;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

/// A dataset's revision, as it is registered in Redis: the hash of its definition, and a nonce that changes with each cause by
/// which its query may return something else without a captured row. A load under another revision is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(Arc<str>);

impl Revision {
    /// That of a dataset that no worker has registered: what is stored under it is pending as soon as one does.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::from(""))
    }

    /// Whether no worker has registered the dataset.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// The whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hash of the definition.
    #[must_use]
    pub fn definition(&self) -> &str {
        self.0.split_once(' ').map_or(&*self.0, |(definition, _)| definition)
    }
}

impl From<String> for Revision {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

/// A hash of the parts of a definition: of everything that decides what an entry's bytes are and what touches them.
/// Each part is counted with its length, so that moving text from one part to the next changes the hash.
#[must_use]
pub fn hash_of<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Xxh3::new();
    for part in parts {
        hasher.write_u64(part.len() as u64);
        hasher.write(part.as_bytes());
    }
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts_and_so_does_where_it_ends() {
        assert_eq!(hash_of(["a", "b"]), hash_of(["a", "b"]));
        assert_ne!(hash_of(["ab", ""]), hash_of(["a", "b"]));
        assert_ne!(hash_of(["a"]), hash_of(["a", ""]));
    }

    #[test]
    fn a_revision_begins_with_its_definition() {
        for text in ["abc", "abc 07f3"] {
            assert_eq!(Revision::from(text.to_owned()).definition(), "abc");
        }
    }
}
