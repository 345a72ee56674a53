//! How watched tables change, and where that cannot be captured by the rows of a statement together.

use sqlx::Row as _;
use sqlx::postgres::types::Oid;

use super::{Finding, Weight};
use crate::stores::postgres::{Postgres, SourceError};
use cachekeeper_config::{CaptureMode, Dataset};

/// Subscriptions whose changes arrive in these tables, and limits of temporary files, which hold the rows of a statement.
const OBSTACLES: &str = "
    select 'subscription', s.subname::text, r.srrelid::pg_catalog.regclass::text
    from pg_catalog.pg_subscription_rel r join pg_catalog.pg_subscription s on s.oid = r.srsubid
    where r.srrelid = any($1)
    union all
    select 'limit', s.setting || 'kB', '' from pg_catalog.pg_settings s where s.name = 'temp_file_limit' and s.setting <> '-1'
    union all
    select 'limit', split_part(c.setting, '=', 2), case when d.setrole = 0 then '' else d.setrole::pg_catalog.regrole::text end
    from pg_catalog.pg_db_role_setting d, unnest(d.setconfig) c(setting)
    where c.setting like 'temp\\_file\\_limit=%' and c.setting <> 'temp_file_limit=-1'
        and d.setdatabase in (0, (select oid from pg_catalog.pg_database where datname = current_database()))
    order by 1 desc, 2, 3 limit 1";

/// Subscriptions of these tables that are switched off.
const DISABLED: &str = "
    select s.subname::text, r.srrelid::pg_catalog.regclass::text
    from pg_catalog.pg_subscription_rel r join pg_catalog.pg_subscription s on s.oid = r.srsubid
    where r.srrelid = any($1) and not s.subenabled order by 1, 2";

impl Postgres {
    /// Looks at the ways in which the watched tables change, and in which that is to be captured.
    pub(super) async fn check_capture(
        &self,
        dataset: &Dataset,
        findings: &mut Vec<Finding>,
    ) -> Result<(), SourceError> {
        let error = |source| SourceError::new("look at subscriptions and limits", source);
        for (position, rule) in dataset.watch.iter().enumerate() {
            let setting = format!("watch.{position}");
            let Ok(members) = self.trees(std::slice::from_ref(&rule.table)).await else { continue };
            let tables: Vec<u32> = members.iter().map(|member| member.oid).collect();
            let oids: Vec<Oid> = tables.iter().map(|oid| Oid(*oid)).collect();
            for row in sqlx::query(DISABLED).bind(oids).fetch_all(&self.pool).await.map_err(error)? {
                let (name, table): (String, String) =
                    (row.try_get(0).map_err(error)?, row.try_get(1).map_err(error)?);
                let message =
                    format!("{table} receives the changes of the subscription {name}, which is disabled");
                let help = "enable it, or drop it: until then nothing arrives";
                findings.push(Finding::new(format!("{setting}.table"), message, help).weighing(Weight::Odd));
            }
            if rule.capture == CaptureMode::Statement
                && let Some(reason) = self.not_by_statement(&tables).await?
            {
                let message = format!("{} cannot be captured by statement: {reason}", rule.table);
                let help = "leave `capture` out: the worker captures it by row";
                findings.push(Finding::new(format!("{setting}.capture"), message, help));
            }
        }
        Ok(())
    }

    /// Why changes of these tables cannot be captured by statement; none: they can.
    ///
    /// # Errors
    /// [`SourceError`] where the database cannot be asked.
    pub(crate) async fn not_by_statement(&self, tables: &[u32]) -> Result<Option<String>, SourceError> {
        let error = |source| SourceError::new("look at subscriptions and limits", source);
        let oids: Vec<Oid> = tables.iter().map(|oid| Oid(*oid)).collect();
        let row = sqlx::query(OBSTACLES).bind(oids).fetch_optional(&self.pool).await.map_err(error)?;
        let Some(row) = row else { return Ok(None) };
        let kind: String = row.try_get(0).map_err(error)?;
        let name: String = row.try_get(1).map_err(error)?;
        let place: String = row.try_get(2).map_err(error)?;
        Ok(Some(match (kind.as_str(), place.as_str()) {
            ("subscription", table) => format!(
                "{table} receives the changes of the subscription {name}, for which no statement trigger fires"
            ),
            (_, "") => {
                format!("temp_file_limit is {name}, and the rows of a large statement would exceed it")
            }
            (_, role) => format!(
                "temp_file_limit of {role} is {name}, and the rows of a large statement would exceed it"
            ),
        }))
    }
}
