//! Which leases there are, and on what terms a lock is held.

use std::borrow::Cow;
use std::time::Duration;

/// On what terms a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long it lives without renewal: others wait so long for a holder that died.
    pub life: Duration,
    /// Whether it is renewed while it is held.
    pub is_renewed: bool,
    /// How long it may be held in any case.
    pub max_hold: Option<Duration>,
    /// Whether everybody takes it for the same life. Then what has longer to live was left over by a clock of Redis that was set back
    /// before its holder died, and whoever waits for it cuts it short.
    pub is_common: bool,
}

impl Terms {
    /// Those of a worker's lease: renewed for as long as it is held.
    #[must_use]
    pub const fn renewed(life: Duration) -> Self {
        Self { life, is_renewed: true, max_hold: None, is_common: true }
    }
}

/// A lease of a worker: what only one worker should do at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseName {
    /// Its name, under which it stands in Redis.
    pub name: Cow<'static, str>,
    /// How long it lives without renewal.
    pub life: Duration,
}

/// Of a leader that others wait for: if its process dies, they take over after this. Renewed each second.
const LEADER: Duration = Duration::from_secs(3);
/// Of a job that nobody waits for. A longer life is lost less easily, and the job begins again less often.
const JOB: Duration = Duration::from_secs(10);

impl LeaseName {
    /// Applying the change feed.
    pub const FEED: Self = Self::fixed("feed", LEADER);
    /// Carrying out write commands.
    pub const COMMANDS: Self = Self::fixed("commands", LEADER);
    /// Running pending revalidations as fast as it goes.
    pub const REVALIDATION: Self = Self::fixed("revalidation", JOB);
    /// Comparing entries with the database all the time.
    pub const AUDIT: Self = Self::fixed("audit", JOB);

    /// The backfill of a dataset.
    #[must_use]
    pub fn backfill(dataset: &str) -> Self {
        Self { name: Cow::Owned(format!("backfill:{dataset}")), life: JOB }
    }

    /// The revalidation of a dataset at a rate.
    #[must_use]
    pub fn revalidation(dataset: &str) -> Self {
        Self { name: Cow::Owned(format!("revalidation:{dataset}")), life: JOB }
    }

    const fn fixed(name: &'static str, life: Duration) -> Self {
        Self { name: Cow::Borrowed(name), life }
    }
}
