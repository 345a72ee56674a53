//! What a plan reads: each relation, and whether certain rows of it are found by an index.

use serde_json::Value;

/// A relation that a plan reads, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Its schema and name, not quoted.
    pub relation: String,
    /// The index.
    pub index: Option<String>,
    /// Whether certain rows are found by an index, and it is not read as a whole.
    pub is_by_condition: bool,
}

/// An index with its first column, where that matters.
pub(super) type Lead = (String, String, Option<String>);

/// The same while what is known of the indexes is still to come.
pub(super) struct Found {
    schema: String,
    name: String,
    /// Indexes, each with what is asked of it.
    indexes: Vec<(String, Option<String>)>,
}

impl Found {
    /// Its indexes, each with the schema that it is in.
    pub fn indexes(&self) -> impl Iterator<Item = (String, String)> {
        self.indexes.iter().map(|(index, _)| (self.schema.clone(), index.clone()))
    }

    /// An index of which the condition leaves the first column open is read from end to end.
    pub fn judged(self, leads: &[Lead]) -> Access {
        let finds = |(index, condition): &(String, Option<String>)| {
            let Some(condition) = condition else { return false };
            let lead = leads.iter().find(|(schema, name, _)| *schema == self.schema && name == index);
            let lead = lead.and_then(|(_, _, lead)| lead.as_ref());
            lead.is_none_or(|lead| names(condition, lead))
        };
        let used = self.indexes.iter().find(|index| finds(index));
        Access {
            relation: format!("{}.{}", self.schema, self.name),
            is_by_condition: used.is_some(),
            index: used.or(self.indexes.first()).map(|(index, _)| index.clone()),
        }
    }
}

/// Whether a condition names a column.
fn names(condition: &str, column: &str) -> bool {
    let quoted = format!("\"{}\"", column.replace('"', "\"\""));
    let is_part = |one: char| one.is_alphanumeric() || one == '_' || one == '$';
    condition.contains(&quoted) || condition.split(|one| !is_part(one)).any(|word| word == column)
}

/// The relations of a plan.
pub(super) fn of_plan(plan: &Value) -> Vec<Found> {
    let mut found = Vec::new();
    read(plan, &mut found);
    found
}

fn read(node: &Value, found: &mut Vec<Found>) {
    let text = |name: &str| text_of(node, name).unwrap_or_default().to_owned();
    if text_of(node, "Relation Name").is_some() {
        let mut indexes = Vec::new();
        find_indexes(node, &mut indexes);
        // The index of a bitmap is a node of its own, below.
        below(node).for_each(|below| find_indexes(below, &mut indexes));
        found.push(Found { schema: text("Schema"), name: text("Relation Name"), indexes });
    }
    below(node).for_each(|below| read(below, found));
}

fn find_indexes(node: &Value, found: &mut Vec<(String, Option<String>)>) {
    if let Some(index) = text_of(node, "Index Name") {
        found.push((index.to_owned(), text_of(node, "Index Cond").map(str::to_owned)));
    }
    if text_of(node, "Relation Name").is_none() {
        below(node).for_each(|below| find_indexes(below, found));
    }
}

fn text_of<'v>(node: &'v Value, name: &str) -> Option<&'v str> {
    node.get(name).and_then(Value::as_str)
}

fn below(node: &Value) -> impl Iterator<Item = &Value> {
    node.get("Plans").and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_found_by_its_whole_name() {
        for (condition, column, is_named) in [
            ("(day = ANY ($1))", "day", true),
            ("(paid = ANY ($1))", "id", false),
            ("((\"The Id\" = ANY ($1)) AND (a = b))", "The Id", true),
            ("(p.id = 1)", "id", true),
        ] {
            assert_eq!(names(condition, column), is_named, "{condition} {column}");
        }
    }
}
