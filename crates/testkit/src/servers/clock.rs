//! A time of day that can be set, for single processes.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use super::{ServerError, failed};

const SOURCE: &str = include_str!("clock.c");

/// The time of day of the processes that are started with its environment.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// A clock that is right.
    ///
    /// # Errors
    /// [`ServerError`]: there is no C compiler, though a Rust one needs it to link.
    pub fn new() -> Result<Self, ServerError> {
        let library = library()?;
        let file = std::env::temp_dir().join(format!("cachekeeper-clock-{:016x}", rand::random::<u64>()));
        let clock = Self { library, file };
        std::fs::write(&clock.file, 0_i64.to_ne_bytes()).map_err(|error| failed("making a clock", error))?;
        Ok(clock)
    }

    /// What a process is started with, so that this is its clock.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let text = |path: &PathBuf| path.display().to_string();
        [("LD_PRELOAD", text(&self.library)), ("CACHEKEEPER_CLOCK", text(&self.file))]
    }

    /// Sets it to so many seconds ahead of the right time, or behind where that is negative.
    ///
    /// # Errors
    /// [`ServerError`], where the file cannot be written.
    pub fn set(&self, seconds: i64) -> Result<(), ServerError> {
        let shift = seconds.saturating_mul(1_000_000_000).to_ne_bytes();
        // In place: the processes have it mapped.
        let file = std::fs::OpenOptions::new().write(true).open(&self.file);
        let written = file.and_then(|mut file| file.write_all(&shift));
        written.map_err(|error| failed("setting a clock", error))
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.file));
    }
}

/// Compiled once for each version of its source.
fn library() -> Result<PathBuf, ServerError> {
    let version = cachekeeper_protocol::keyspace::key_hash(SOURCE.as_bytes());
    let library = std::env::temp_dir().join(format!("cachekeeper-clock-{version:016x}.so"));
    if library.exists() {
        return Ok(library);
    }
    let fresh = std::env::temp_dir().join(format!("cachekeeper-clock-{:016x}", rand::random::<u64>()));
    let source = fresh.with_extension("c");
    std::fs::write(&source, SOURCE).map_err(|error| failed("writing the clock", error))?;
    let compiler =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&fresh, &source]).output();
    drop(std::fs::remove_file(&source));
    let output = compiler.map_err(|error| failed("cc", error))?;
    if !output.status.success() {
        return Err(failed("cc", String::from_utf8_lossy(&output.stderr)));
    }
    std::fs::rename(&fresh, &library).map_err(|error| failed("making a clock", error))?;
    Ok(library)
}
