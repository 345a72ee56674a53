//! Where an entry and its row differ.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

/// A column in which an entry and its row differ; the column is empty where they are no objects.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The column.
    pub column: String,
    /// In Redis; none: missing.
    pub redis: Option<Value>,
    /// In Postgres; none: missing.
    pub postgres: Option<Value>,
}

/// The differences; empty: both look the same.
pub(super) fn between(redis: Option<&Value>, postgres: Option<&Value>) -> Vec<Difference> {
    match (redis, postgres) {
        (Some(Value::Object(in_redis)), Some(Value::Object(in_postgres))) => {
            let columns: BTreeSet<&String> = in_redis.keys().chain(in_postgres.keys()).collect();
            let differing =
                columns.into_iter().filter(|column| in_redis.get(*column) != in_postgres.get(*column));
            let difference = |column: &String| Difference {
                column: column.clone(),
                redis: in_redis.get(column).cloned(),
                postgres: in_postgres.get(column).cloned(),
            };
            differing.map(difference).collect()
        }
        (redis, postgres) if redis == postgres => Vec::new(),
        (redis, postgres) => {
            vec![Difference { column: String::new(), redis: redis.cloned(), postgres: postgres.cloned() }]
        }
    }
}
