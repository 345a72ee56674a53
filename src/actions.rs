//! What people had done over the admin listener: the newest, for as long as this process runs. The log has all of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use schemars::JsonSchema;
use serde::Serialize;

/// Actions that are kept; older ones go.
const KEPT_MAX: usize = 200;
/// Characters of each text that are kept.
const CHARACTERS_MAX: usize = 300;

/// An action that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Action {
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// Method and path.
    pub action: String,
    /// What its token allowed: `act` or `read`.
    pub role: &'static str,
    /// The name that came with the token; nothing is decided by it.
    pub user: Option<String>,
    /// Where it came from.
    pub peer: Option<String>,
    /// The code of the answer.
    pub status: u16,
    /// `done`, `refused` or `failed`.
    pub outcome: &'static str,
    /// What was done, in words.
    pub done: Option<String>,
}

/// The newest actions. Cheap to clone; it outlives a reload.
#[derive(Clone, Debug, Default)]
pub struct Actions {
    kept: Arc<Mutex<VecDeque<Action>>>,
}

impl Actions {
    /// Keeps one more.
    pub fn note(&self, action: Action) {
        let short = |text: String| text.chars().take(CHARACTERS_MAX).collect::<String>();
        let Action { action: what, user, done, .. } = action.clone();
        let action = Action { action: short(what), user: user.map(short), done: done.map(short), ..action };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(action);
        if KEPT_MAX < kept.len() {
            kept.pop_front();
        }
    }

    /// Those that are kept, the newest first.
    #[must_use]
    pub fn newest(&self) -> Vec<Action> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_their_texts_are_bounded() {
        let actions = Actions::default();
        let action = |number: u64| Action {
            at_ms: number,
            action: "x".repeat(1_000),
            role: "act",
            user: None,
            peer: None,
            status: 200,
            outcome: "done",
            done: None,
        };
        (0..300).for_each(|number| actions.note(action(number)));
        let newest = actions.newest();
        assert_eq!((newest.len(), newest[0].at_ms, newest[0].action.len()), (200, 299, 300));
    }
}
