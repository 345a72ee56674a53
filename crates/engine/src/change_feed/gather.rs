//! What the changes of one poll touch, gathered in portions while the portion before is applied.

use std::borrow::Cow;

use crate::context::Context;
use crate::coverage::{AffectedKeys, Captures};
use crate::error::EngineError;
use crate::stores::postgres::FeedPoll;

/// Keys that are gathered before they are applied.
pub(super) const GATHERED: usize = 16_384;
/// Changes of one poll whose delay is observed.
const TIMES_MAX: usize = 65_536;

/// The changes of one poll on their way.
pub(super) struct Gatherer<'a> {
    context: &'a Context,
    captures: Cow<'a, Captures>,
    /// Captured statements or rows so far.
    pub(super) changes: u64,
    /// When the first of them were captured, in microseconds of the database's clock.
    pub(super) times: Vec<i64>,
    /// Whether a capture came that was installed since the coverage was computed.
    pub(super) met_unknown: bool,
}

impl<'a> Gatherer<'a> {
    pub(super) fn new(context: &'a Context, captures: &'a Captures) -> Self {
        let captures = Cow::Borrowed(captures);
        Self { context, captures, changes: 0, times: Vec::new(), met_unknown: false }
    }

    /// The next portion; none when all changes came.
    ///
    /// # Errors
    /// [`EngineError`] where not all of them can be had.
    pub(super) async fn next(&mut self, found: &mut FeedPoll) -> Result<Option<AffectedKeys>, EngineError> {
        let mut affected = AffectedKeys::default();
        while let Some(group) = found.changes.recv().await {
            let group = group?;
            if !self.captures.can_read(&group) {
                // Only what changes carry is read here; the cursor waits for no more.
                let installed = self.context.postgres.captures().await?;
                self.captures = Cow::Owned(self.captures.as_installed(&installed));
                self.met_unknown = true;
            }
            self.changes += group.len() as u64;
            for change in &group {
                if self.times.len() < TIMES_MAX {
                    self.times.push(change.at_us);
                }
                affected.add(&self.context.catalog, &self.captures, change);
            }
            if GATHERED <= affected.key_count {
                return Ok(Some(affected));
            }
        }
        Ok((!affected.is_empty()).then_some(affected))
    }
}
