//! What is wrong with a file of the listener.

/// What is wrong with a file of the listener, for `check` and the start of a worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileProblem {
    /// The key of `[admin]` that names it.
    pub setting: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: &'static str,
}
