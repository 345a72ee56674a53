//! Where in the file a setting stands.

/// The file's path and text, and where each setting stands in it.
#[derive(Clone, Debug, Default)]
pub struct Source {}
