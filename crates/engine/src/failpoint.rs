//! Points at which a test can kill the process, to prove that nothing depends on getting past them.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The environment variable: names of points, each with how often it is passed before the process ends, as in
/// `feed.stored=3,revalidation.claimed=0`.
pub const VARIABLE: &str = "CACHEKEEPER_FAIL_AT";

static ARMED: OnceLock<Mutex<HashMap<String, u64>>> = OnceLock::new();

/// Arms the points. Only the first call counts.
pub fn arm(text: &str) {
    let points = text.split(',').filter_map(|part| {
        let (name, passes) = part.split_once('=')?;
        Some((name.trim().to_owned(), passes.trim().parse().ok()?))
    });
    drop(ARMED.set(Mutex::new(points.collect())));
}

/// Ends the process, as SIGKILL would, if this point is armed and was passed often enough.
pub fn reach(point: &str) {
    let Some(armed) = ARMED.get() else { return };
    let mut armed = armed.lock().unwrap_or_else(PoisonError::into_inner);
    match armed.get_mut(point) {
        Some(0) => std::process::abort(),
        Some(passes) => *passes -= 1,
        None => {}
    }
}
