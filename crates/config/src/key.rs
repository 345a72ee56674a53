//! What the table of keys is made of.

use std::time::Duration;

use super::forms::Form;

/// What a key may hold.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Text in a form of its own.
    Text(Form),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Text such as `"30s"`, from the first to the second.
    Duration(Duration, Duration),
    /// Text such as `"1KiB"`, in bytes from the first to the second.
    Size(u64, u64),
    /// Text such as `"20%"`, in percent from the first to the second.
    Share(u8, u8),
    /// A whole number from the first to the second.
    Integer(u64, u64),
    /// `true` or `false`.
    Boolean,
    /// A list of texts.
    Texts(Form),
    /// A table from names that the user chooses to texts.
    Mapping,
    /// A table with these keys.
    Table(&'static [Key]),
    /// Tables with names that the user chooses, each with these keys.
    Named(&'static [Key]),
    /// A list of tables with these keys.
    Tables(&'static [Key]),
}

/// A key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// What holds without it, as an environment variable would say it.
    pub default: Option<&'static str>,
    /// Whether its table makes no sense without it.
    pub is_required: bool,
    /// Whether a dataset without it takes what `[defaults]` says.
    pub is_inherited: bool,
    /// A value as TOML, for people, where there is no default.
    pub example: Option<&'static str>,
    /// What it means, in sentences.
    pub help: &'static str,
}

impl Key {
    pub(crate) const fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, kind, default: None, is_required: false, is_inherited: false, example: None, help }
    }

    pub(crate) const fn default(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    pub(crate) const fn required(self) -> Self {
        Self { is_required: true, ..self }
    }

    pub(crate) const fn inherited(self) -> Self {
        Self { is_inherited: true, default: None, ..self }
    }

    pub(crate) const fn example(self, example: &'static str) -> Self {
        Self { example: Some(example), ..self }
    }
}
