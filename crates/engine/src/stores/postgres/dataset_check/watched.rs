//! What is known of a watch rule's table, and of the columns that keys and tags are made of.

use std::collections::HashMap;

use crate::stores::postgres::spelling::SpelledColumn;
use cachekeeper_config::Dataset;
use cachekeeper_protocol::template::Template;

/// A table that a rule names.
pub(super) struct Table {
    /// As in `pg_class`.
    pub kind: char,
    /// Whether it came with the server.
    pub is_catalog: bool,
    pub columns: Vec<SpelledColumn>,
}

/// Columns of the query that come straight from a relation, by their names in the query.
pub(super) type Origins = HashMap<String, SpelledColumn>;

/// The tags of a dataset that look the same as a rule's, but for the names in them.
pub(super) fn tags_like<'a>(
    dataset: &'a Dataset,
    template: &'a Template,
) -> impl Iterator<Item = &'a Template> {
    let form = |template: &Template| {
        let names: Vec<&str> = template.columns().collect();
        template.render(&vec!["\0"; names.len()]).ok()
    };
    dataset.tags.iter().filter(move |tag| form(tag) == form(template))
}
