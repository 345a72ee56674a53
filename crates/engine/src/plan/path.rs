//! How a load by key finds its rows: by an index of the table that the key comes from, or by reading all of it.

use std::collections::BTreeSet;

use crate::catalog::Dataset;
use crate::error::EngineError;
use crate::stores::postgres::{Access, DatasetSource, KeyTable, Postgres};

/// The way of a load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadPath {
    /// The tables that the key's columns come from, with what is so of each.
    pub tables: Vec<(String, PathVerdict)>,
    /// Tables that a load reads as a whole besides, whatever the key.
    pub read_whole: Vec<String>,
}

/// How the rows of a key are found in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathVerdict {
    /// By these indexes. Postgres may read a small table as a whole all the same.
    Indexes(Vec<String>),
    /// The whole table is read for each load. What makes the index that is missing; none: no index can help, because the key is computed,
    /// or the query does not let its condition through to the table.
    Whole(Option<String>),
}

/// Finds out how loads find their rows.
///
/// # Errors
/// [`EngineError`] where the server cannot be asked.
pub async fn load_path(
    postgres: &Postgres,
    dataset: &Dataset,
    source: &DatasetSource,
) -> Result<LoadPath, EngineError> {
    let tables = postgres.key_tables(&dataset.settings, source).await?;
    // What can be done by an index, whether or not it pays for the rows that are there now.
    let possible = postgres.path_of_load(source, true).await?;
    Ok(judge(&tables, &possible))
}

fn judge(tables: &[KeyTable], possible: &[Access]) -> LoadPath {
    let mut path = LoadPath::default();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for table in tables {
        let members: Vec<&Access> =
            possible.iter().filter(|access| table.members.contains(&access.relation)).collect();
        seen.extend(members.iter().map(|access| access.relation.as_str()));
        if members.is_empty() {
            continue;
        }
        // A relation may be read twice: once by the key, once for something that is computed of all of it.
        let is_found = |relation: &str| {
            members.iter().any(|access| access.relation == relation && access.is_by_condition)
        };
        let verdict = if members.iter().all(|access| is_found(&access.relation)) {
            let used = members.iter().filter(|access| access.is_by_condition);
            let indexes: BTreeSet<String> = used.filter_map(|access| access.index.clone()).collect();
            let besides = members.iter().filter(|access| !access.is_by_condition);
            path.read_whole.extend(besides.map(|access| access.relation.clone()));
            PathVerdict::Indexes(indexes.into_iter().collect())
        } else {
            PathVerdict::Whole(create_index(table))
        };
        path.tables.push((table.path.clone(), verdict));
    }
    let others = possible.iter().filter(|access| !seen.contains(access.relation.as_str()));
    let (indexed, whole): (Vec<_>, Vec<_>) = others.partition(|access| access.is_by_condition);
    let names = |list: Vec<&Access>| -> BTreeSet<String> {
        list.iter().map(|access| access.relation.clone()).collect()
    };
    if path.tables.is_empty() && whole.is_empty() && !indexed.is_empty() {
        // Behind a view the key's table is not known, but everything is found by indexes.
        let indexes: BTreeSet<String> = indexed.iter().filter_map(|access| access.index.clone()).collect();
        let tables: Vec<String> = names(indexed).into_iter().collect();
        path.tables.push((tables.join(", "), PathVerdict::Indexes(indexes.into_iter().collect())));
    } else if path.tables.is_empty() {
        path.tables.extend(names(whole).into_iter().map(|table| (table, PathVerdict::Whole(None))));
    } else {
        path.read_whole.extend(names(whole));
    }
    path
}

/// The statement that makes the index; of a partitioned table it cannot be made beside writers. None where there is one that does not help.
fn create_index(table: &KeyTable) -> Option<String> {
    if table.has_index {
        return None;
    }
    let columns = table.columns.join(", ");
    match table.kind {
        'r' | 'm' => Some(format!("create index concurrently on {} ({columns});", table.path)),
        'p' => Some(format!("create index on {} ({columns});", table.path)),
        _ => None,
    }
}
