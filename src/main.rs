//! The `cachekeeper` command.
fn main() {}
