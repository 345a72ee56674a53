//! Settings that are one of a few words.

/// An enum whose variants are written as words in the file.
#[cfg(feature = "file")]
pub trait Words: Copy + 'static {
    /// The words, in the order in which messages list them.
    const NAMES: &'static [&'static str];
    /// The variants, in the same order.
    const ALL: &'static [Self];
    /// Stands in where a wrong word has been noted.
    #[expect(clippy::indexing_slicing, reason = "an enum of no words does not compile")]
    const FIRST: Self = Self::ALL[0];

    /// The variant that this word means.
    fn from_word(word: &str) -> Option<Self> {
        let position = Self::NAMES.iter().position(|name| *name == word)?;
        Self::ALL.get(position).copied()
    }
}

/// Defines such an enum, so that a variant and its word stand side by side, and nowhere else.
macro_rules! words {
    ($(#[$about:meta])* $scope:vis enum $name:ident { $($(#[$variant_about:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        $scope enum $name { $($(#[$variant_about])* $variant,)+ }

        #[cfg(feature = "file")]
        impl $crate::words::Words for $name {
            const NAMES: &'static [&'static str] = &[$($word),+];
            const ALL: &'static [Self] = &[$(Self::$variant),+];
        }
    };
}
pub(crate) use words;

#[cfg(feature = "file")]
words! {
    /// What `format` says. With `numeric` and `value` it becomes a [`super::Format`].
    pub(crate) enum FormatName {
        /// A MessagePack map.
        MessagePack = "msgpack",
        /// A JSON object.
        Json = "json",
        /// The bytes of one column.
        Raw = "raw",
        /// A Redis hash.
        Hash = "hash",
    }
}

#[cfg(feature = "file")]
words! {
    /// What `codec` says: "none" switches off what `[defaults]` switched on.
    pub(crate) enum CodecName {
        /// Values stay as they are.
        None = "none",
        /// RFC 8878.
        Zstd = "zstd",
        /// LZ4 frame format 1.6.
        Lz4 = "lz4",
    }
}
