//! The configuration file, as it lies there.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cachekeeper_config::check::find;
use cachekeeper_config::diagnostic::Diagnostic;

/// The configuration file, and what it holds.
pub(super) fn read(
    explicit: Option<PathBuf>,
    environment: &BTreeMap<String, String>,
) -> Result<(PathBuf, String), Box<Diagnostic>> {
    let path = find(explicit, environment)?;
    let shown = path.display();
    let bytes = std::fs::read(&path).map_err(|error| {
        let help =
            "give the file with -c FILE; `cachekeeper schema --toml` prints one with every key".to_owned();
        Box::new(Diagnostic::error(format!("{shown} cannot be read: {error}"), help))
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let message = format!("{shown} is not UTF-8: line {line} has other bytes");
        Box::new(Diagnostic::error(message, "save the file as UTF-8".to_owned()))
    })?;
    Ok((path, text))
}
