//! Watch rules that reach no entry of their dataset, or entries of other rows than the one that changed. Who relied on such a rule
//! alone would take stale entries for fresh. Only what is proved is refused: where it cannot be told whose values a rule names, it
//! is taken to be right.

use std::collections::{BTreeMap, BTreeSet};

use super::watched::{Origins, Table, tags_like};
use super::{Finding, Weight};
use crate::stores::postgres::{Inspection, Postgres, SourceError};
use cachekeeper_config::{Dataset, Watch, WatchTarget};
use cachekeeper_protocol::template::{Alphabet, Template};

impl Postgres {
    /// Of rules that reach nothing, by their positions, those that matter: the query reads their table, and no other rule of it
    /// reaches the entries.
    pub(super) async fn relied_on(
        &self,
        dataset: &Dataset,
        reads: &Inspection,
        unreached: BTreeMap<usize, Finding>,
    ) -> Result<Vec<Finding>, SourceError> {
        if unreached.is_empty() {
            return Ok(Vec::new());
        }
        let read = reads.tables().into_iter().map(str::to_owned);
        let read: BTreeSet<String> = read.chain(dataset.reads.iter().cloned()).collect();
        let watched = dataset.watch.iter().map(|rule| rule.table.clone());
        let names: BTreeSet<String> = read.iter().cloned().chain(watched).collect();
        let members = self.trees_without_schema(&names.into_iter().collect::<Vec<_>>()).await?;
        let root_of = |name: &str| members.iter().find(|member| member.asked == name)?.root;
        let read: BTreeSet<u32> = read.iter().filter_map(|name| root_of(name)).collect();
        let rules = dataset.watch.iter().enumerate();
        let others = rules.filter(|(position, _)| !unreached.contains_key(position));
        let reached: BTreeSet<u32> = others.filter_map(|(_, rule)| root_of(&rule.table)).collect();
        let matters = |position: usize| {
            let root = dataset.watch.get(position).and_then(|rule| root_of(&rule.table));
            root.is_some_and(|root| read.contains(&root) && !reached.contains(&root))
        };
        Ok(unreached
            .into_iter()
            .filter_map(|(position, finding)| matters(position).then_some(finding))
            .collect())
    }
}

/// Why a rule reaches no entry of the row that changed; none: it does, or it cannot be told.
pub(super) fn flaw(
    setting: &str,
    dataset: &Dataset,
    rule: &Watch,
    of: (&Table, &Origins),
) -> Option<Finding> {
    let not_covered = |setting: String, message: String, help: String| {
        Some(Finding::new(setting, message, help).weighing(Weight::NotCovered))
    };
    match &rule.target {
        WatchTarget::Dataset => None,
        WatchTarget::Key(pairs) => {
            let pairs = pairs.iter().map(|(shown, column)| (shown.as_str(), column.as_str()));
            let (shown, column, own) = other_column(dataset, pairs, of)?;
            let message = format!(
                "a changed row of {} would touch the entry whose {shown} is its {column}, but its {own} is the column of which the \
                 key is made",
                rule.table
            );
            let help = format!("name {own}; or add a rule that does, that names a tag, or dataset = true");
            not_covered(format!("{setting}.key.{shown}"), message, help)
        }
        WatchTarget::Tag(template) => {
            let any = |_: &str| Alphabet::Any;
            let overlapping = dataset.tags.iter().filter(|tag| tag.overlaps(any, template, any)).count();
            let setting = format!("{setting}.tag");
            if overlapping == 0 {
                let message = format!("{template} is no tag of the dataset, so no entry of it is touched");
                let tags: Vec<&str> = dataset.tags.iter().map(Template::as_str).collect();
                let help = if tags.is_empty() {
                    "give the dataset this tag in `tags`, or watch by key".to_owned()
                } else {
                    format!("its tags: {}; or watch by key", tags.join(", "))
                };
                return not_covered(setting, message, help);
            }
            let alike: Vec<&Template> = tags_like(dataset, template).collect();
            let others: Vec<_> = alike
                .into_iter()
                .filter_map(|tag| other_column(dataset, tag.columns().zip(template.columns()), of))
                .collect();
            // Each of them must be another one's.
            let (shown, column, own) = others.first().filter(|_| others.len() == overlapping)?;
            let message = format!(
                "a changed row of {} would touch the entries whose {shown} is its {column}, but its {own} is the column of which the \
                 tag is made",
                rule.table
            );
            not_covered(
                setting,
                message,
                format!("name {own}; or add a rule that reaches the row's own entry"),
            )
        }
    }
}

/// The first of these pairs, a column of the query and one of the watched table, where the query takes its values from another
/// column of that table: the column of the query, the rule's, and the right one.
fn other_column<'a>(
    dataset: &Dataset,
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
    (table, origins): (&Table, &'a Origins),
) -> Option<(&'a str, &'a str, &'a str)> {
    let mut pairs = pairs;
    pairs.find_map(|(shown, name)| {
        let origin = origins.get(shown)?;
        let column = table.columns.iter().find(|column| column.name == name)?;
        // What is generated may have the same values.
        let is_other =
            origin.is_of_the_relation_of(column) && origin.name != name && column.generated.is_empty();
        let is_proved = is_other && !says_equal(&dataset.query, &origin.name, name);
        is_proved.then_some((shown, name, origin.name.as_str()))
    })
}

/// Whether a query compares two columns of these names for equality.
fn says_equal(query: &str, one: &str, other: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || matches!(character, '_' | '.' | '"' | '$');
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().trim_matches('"').to_lowercase();
    let (one, other) = (one.to_lowercase(), other.to_lowercase());
    query.match_indices('=').any(|(at, _)| {
        let before = query.get(..at).unwrap_or_default().trim_end();
        let before = last(before.rsplit(|character| !is_part(character)).next().unwrap_or_default());
        let after = query.get(at + 1..).unwrap_or_default().trim_start();
        let after = last(after.split(|character| !is_part(character)).next().unwrap_or_default());
        (before == one && after == other) || (before == other && after == one)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_which_columns_are_equal() {
        let query = "select e.id from emp e join emp m on m.\"id\"= e.Manager_id where e.kind = 'id'";
        assert!(says_equal(query, "id", "manager_id") && says_equal(query, "manager_id", "id"));
        assert!(!says_equal(query, "id", "kind") && !says_equal("select id from t", "id", "kind"));
    }
}
