//! How loads would go: whether a key has one row, and whether its rows are found by an index.

use std::time::Duration;

use tokio::time::Instant;

use super::Check;
use cachekeeper_config::Rows;
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::plan::{PathVerdict, load_path};
use cachekeeper_engine::stores::postgres::{DatasetSource, ErrorKind, SHARED_AMONG};

/// How long the rows of one dataset are looked at.
const LOOK_WITHIN: Duration = Duration::from_millis(500);

const KEPT_OUT: &str = "make the key of columns, or an index of the expression; `limit`, `distinct` and windows keep conditions from tables";

impl Check<'_> {
    pub(super) async fn check_loads(
        &mut self,
        dataset: &Dataset,
        source: &DatasetSource,
    ) -> Result<(), EngineError> {
        self.check_path(dataset, source).await?;
        self.check_rows(dataset, source).await
    }

    /// Whether each load reads a whole table.
    async fn check_path(&mut self, dataset: &Dataset, source: &DatasetSource) -> Result<(), EngineError> {
        let path = load_path(&self.context.postgres, dataset, source).await?;
        for (table, verdict) in path.tables {
            let (why, help) = match verdict {
                PathVerdict::Indexes(_) => continue,
                PathVerdict::Whole(Some(create)) => ("no index finds its rows", create),
                PathVerdict::Whole(None) => (
                    "the key is computed, or the query keeps its condition from the table",
                    KEPT_OUT.to_owned(),
                ),
            };
            let message = format!("each load by key reads the whole of {table}: {why}");
            self.warning(&format!("dataset.{}.key", dataset.name()), message, help);
        }
        Ok(())
    }

    /// Whether several rows have one key, as far as the first rows tell.
    async fn check_rows(&mut self, dataset: &Dataset, source: &DatasetSource) -> Result<(), EngineError> {
        let within = self.looks_left.min(LOOK_WITHIN);
        if dataset.settings.rows != Rows::One || within.is_zero() {
            return Ok(());
        }
        let began = Instant::now();
        let looked = self.context.postgres.shared_key(source, within).await;
        self.looks_left = self.looks_left.saturating_sub(began.elapsed());
        let found = match looked {
            // A look that takes too long tells nothing, and neither do rows that cannot be computed.
            Err(error) if matches!(error.kind, ErrorKind::Cancelled | ErrorKind::Data) => None,
            found => found?,
        };
        if let Some((key, count)) = found.and_then(|(values, count)| Some((dataset.key_of(&values)?, count)))
        {
            let message = format!(
                "{count} rows have the key {key}, as the first {SHARED_AMONG} rows of the query show: such a key has no entry"
            );
            let help = "make the key unique by more columns or `group by`, or give rows = \"many\"";
            self.warning(&format!("dataset.{}.key", dataset.name()), message, help.to_owned());
        }
        Ok(())
    }
}
