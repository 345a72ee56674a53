//! What is to be thought of an entry.

use serde::Serialize;

/// What is to be thought of an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// In one word.
    pub state: State,
    /// In one sentence.
    pub sentence: String,
}

/// In one word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Redis has what Postgres says.
    Right,
    /// Redis has nothing, and nothing is promised.
    Absent,
    /// It differs, and that is known: it will be seen to.
    Behind,
    /// It differs, and nothing says that it will be seen to.
    Wrong,
    /// It is not known: a server did not tell, or the row changes too often.
    #[default]
    Unknown,
    /// It belongs to no dataset.
    Foreign,
}

impl Verdict {
    pub(super) fn new(state: State, sentence: impl Into<String>) -> Self {
        Self { state, sentence: sentence.into() }
    }

    pub(super) fn of_no_dataset(exists: bool) -> Self {
        let what = if exists { "Whoever stored it sees to it" } else { "There is nothing" };
        Self::new(State::Foreign, format!("The key belongs to no dataset of this configuration. {what}."))
    }

    pub(super) fn of_own_key() -> Self {
        let sentence = "The key is one of Cachekeeper's own (docs/protocol.md says what they hold): nobody else may change it.";
        Self::new(State::Foreign, sentence)
    }

    pub(super) fn of_foreign_unseen() -> Self {
        let sentence =
            "The key belongs to no dataset of this configuration, and the user in Redis may not look at it.";
        Self::new(State::Foreign, sentence)
    }

    pub(super) fn of_no_value(dataset: &str) -> Self {
        let sentence = format!(
            "The key has the form of {dataset}'s keys, but its text is not how a value of their columns' types is written (7 and not 07): no row can have this key."
        );
        Self::new(State::Foreign, sentence)
    }
}
