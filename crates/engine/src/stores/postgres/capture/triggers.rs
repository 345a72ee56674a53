//! Which triggers the tables of a captured tree have, and what makes them so.

use super::function::{name, truncate_name};
use super::{DELETE, FOR_EACH_ROW, INSERT, TRUNCATE, TreeMember, TriggerState, UPDATE};

/// The functions that triggers are to call, those of rows and of an emptied table, where both are there.
pub(super) type Functions = Option<(u32, u32)>;

/// Which triggers a tree is to have.
pub(super) struct Plan {
    pub id: i32,
    pub root: u32,
    pub by_statement: bool,
    pub is_foreign: bool,
    pub calls: Functions,
}

/// A trigger as it is to be.
struct WantedTrigger {
    name: String,
    /// As in `pg_trigger.tgtype`.
    events: i16,
    event: &'static str,
    how: &'static str,
    run: String,
}

impl Plan {
    /// The names hold the root's oid: a table that is attached to a tree may have triggers of its own.
    fn triggers(&self) -> Vec<WantedTrigger> {
        let base = self.base();
        let one = |suffix: &str, events, event, how| WantedTrigger {
            name: format!("{base}{suffix}"),
            events,
            event,
            how,
            run: if events == TRUNCATE { truncate_name(self.id) } else { name(self.id) },
        };
        let truncate = one("_truncate", TRUNCATE, "truncate", "for each statement");
        let (new, both, old) = (
            "referencing new table as new_rows for each statement",
            "referencing old table as old_rows new table as new_rows for each statement",
            "referencing old table as old_rows for each statement",
        );
        match (self.is_foreign, self.by_statement) {
            (true, _) => Vec::new(),
            (false, true) => vec![
                one("_insert", INSERT, "insert", new),
                one("_update", UPDATE, "update", both),
                one("_delete", DELETE, "delete", old),
                truncate,
            ],
            (false, false) => {
                let events = FOR_EACH_ROW | INSERT | UPDATE | DELETE;
                vec![one("", events, "insert or update or delete", "for each row"), truncate]
            }
        }
    }

    fn base(&self) -> String {
        format!("cachekeeper_{}", self.root)
    }

    fn is_right(&self, found: &TriggerState, wanted: &WantedTrigger) -> bool {
        found.name == wanted.name
            && found.events == wanted.events
            && found.mode == 'A'
            && !found.is_conditional
            && self.calls.is_some_and(|(rows, truncate)| {
                found.function == if wanted.events == TRUNCATE { truncate } else { rows }
            })
    }

    /// Whether a trigger is this capture's to judge, and not one of another tree that the table was attached to or detached from.
    /// Earlier versions named theirs after the event.
    fn is_of_this(&self, found: &TriggerState) -> bool {
        let base = self.base();
        let is_named_after_event =
            !found.name.trim_start_matches("cachekeeper_").starts_with(|first: char| first.is_ascii_digit());
        found.name == base
            || found.name.starts_with(&format!("{base}_"))
            || self.calls.is_some_and(|(rows, _)| rows == found.function)
            || is_named_after_event
    }

    /// What makes a member's triggers as they are to be; nothing where they are.
    pub(super) fn statements(&self, member: &TreeMember) -> Vec<String> {
        let table = &member.path;
        let wanted = self.triggers();
        let mut statements = Vec::new();
        for found in member.triggers.iter().filter(|found| !found.is_clone && self.is_of_this(found)) {
            if !wanted.iter().any(|wanted| self.is_right(found, wanted)) {
                statements.push(format!("drop trigger if exists {} on {table}", found.name));
            }
        }
        for wanted in &wanted {
            if member.triggers.iter().any(|found| self.is_right(found, wanted)) {
                continue;
            }
            let WantedTrigger { name, event, how, run, .. } = wanted;
            // A partition's row trigger is its parent's.
            let is_cloned =
                wanted.events & FOR_EACH_ROW != 0 && member.oid != self.root && member.is_partition;
            if !is_cloned {
                statements.push(format!(
                    "create trigger {name} after {event} on {table} {how} execute function {run}()"
                ));
            } else if !member.triggers.iter().any(|found| found.name == *name) {
                continue;
            }
            statements.push(format!("alter table {table} enable always trigger {name}"));
        }
        statements
    }
}
