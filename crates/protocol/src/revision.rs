//! Revisions: two definitions of one dataset must not overwrite each other.

use std::hash::Hasher;

use xxhash_rust::xxh3::Xxh3;

/// The revision of a definition: a hash of everything that decides what an entry's bytes are and what touches them.
/// Each part is counted with its length, so that moving text from one part to the next changes the hash.
#[must_use]
pub fn revision<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
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
        assert_eq!(revision(["a", "b"]), revision(["a", "b"]));
        assert_ne!(revision(["ab", ""]), revision(["a", "b"]));
        assert_ne!(revision(["a"]), revision(["a", ""]));
    }
}
