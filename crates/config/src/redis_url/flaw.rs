//! What is wrong with an address.

/// What is wrong with an address of Redis. It repeats nothing of it: a password may have slipped anywhere.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct AddressFlaw {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: &'static str,
    /// At which byte; none where that would tell how long a password is.
    pub offset: Option<usize>,
}
