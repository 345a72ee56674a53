//! Whether a server that says nothing is at work: asked on another connection.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::{PgConnection, Row as _};

/// Opens a bare connection to the server of a session.
pub(super) type Open = Arc<dyn Fn() -> BoxFuture<'static, Result<PgConnection, sqlx::Error>> + Send + Sync>;

/// Who can be asked about a session.
#[derive(Clone)]
pub(super) struct Inquiry {
    pub open: Open,
    /// How long an answer may take.
    pub limit: Duration,
    /// The session's process there.
    pub process: i32,
}

impl fmt::Debug for Inquiry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Inquiry").field("process", &self.process).finish_non_exhaustive()
    }
}

/// Between two looks. A session may be between two statements at one.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

const LOOK: &str = "select a.state = 'active', coalesce(a.wait_event = 'ClientWrite', false) \
     from pg_catalog.pg_stat_activity a where a.pid = ";

impl Inquiry {
    /// Whether the server is at work for the session. An error says why it is not waited for any longer.
    pub async fn ask(&self) -> Result<(), String> {
        let mut why = String::new();
        for look in 0..2 {
            if 0 < look {
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
            match self.look().await {
                Ok(()) => return Ok(()),
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }

    async fn look(&self) -> Result<(), String> {
        let look = async {
            let mut connection = (self.open)().await?;
            let sql = sqlx::AssertSqlSafe(format!("{LOOK}{}", self.process));
            let row = sqlx::raw_sql(sql).fetch_optional(&mut connection).await?;
            let states = row.map(|row| Ok::<_, sqlx::Error>((row.try_get(0)?, row.try_get(1)?)));
            states.transpose()
        };
        let looked: Result<Option<(Option<bool>, bool)>, sqlx::Error> =
            tokio::time::timeout(self.limit, look)
                .await
                .map_err(|_elapsed| "nor does it answer others".to_owned())?;
        match looked {
            // Of sessions of other roles nothing is told.
            Ok(Some((Some(true) | None, false))) => Ok(()),
            Ok(Some((_, true))) => Err("what it has sent does not arrive".to_owned()),
            Ok(Some((Some(false), false))) => {
                Err("it has ended the statement, and its answer did not arrive".to_owned())
            }
            Ok(None) => Err("it knows nothing of the session any more".to_owned()),
            Err(error) => Err(format!("and it cannot be asked: {error}")),
        }
    }
}
