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

/// What was found.
pub(super) enum Told {
    /// The server is at work for the session.
    AtWork,
    /// What it says does not arrive, or it knows nothing of the session.
    Lost(String),
    /// It could not be asked.
    Nothing(String),
}

impl Inquiry {
    /// Whether the server is at work for the session.
    pub async fn ask(&self) -> Told {
        let mut told = self.look().await;
        if !matches!(told, Told::AtWork) {
            tokio::time::sleep(BETWEEN_LOOKS).await;
            told = self.look().await;
        }
        told
    }

    async fn look(&self) -> Told {
        let look = async {
            let mut connection = (self.open)().await?;
            let sql = sqlx::AssertSqlSafe(format!("{LOOK}{}", self.process));
            let row = sqlx::raw_sql(sql).fetch_optional(&mut connection).await?;
            let states = row.map(|row| Ok::<_, sqlx::Error>((row.try_get(0)?, row.try_get(1)?)));
            states.transpose()
        };
        let looked: Result<Option<(Option<bool>, bool)>, sqlx::Error> =
            match tokio::time::timeout(self.limit, look).await {
                Ok(looked) => looked,
                Err(_elapsed) => return Told::Nothing("nor does it answer others".to_owned()),
            };
        match looked {
            // Of sessions of other roles nothing is told.
            Ok(Some((Some(true) | None, false))) => Told::AtWork,
            Ok(Some((_, true))) => Told::Lost("what it has sent does not arrive".to_owned()),
            Ok(Some((Some(false), false))) => {
                Told::Lost("it has ended the statement, and its answer did not arrive".to_owned())
            }
            Ok(None) => Told::Lost("it knows nothing of the session any more".to_owned()),
            Err(error) => Told::Nothing(format!("and it cannot be asked: {error}")),
        }
    }
}
