//! Following in the place of a leader that stands still: it may be dead while its lease lives on.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::{Feed, LOOK_EVERY, Role, WATCH_EVERY};

/// A leader that does not move the watermark for so long may be dead, while its lease lives on.
const LEADERLESS_AFTER: Duration = Duration::from_millis(1_500);
/// For how long whoever follows in a leader's place gives way: at first, and at most. In between it follows so many times as long.
const GIVE_WAY_MIN: Duration = Duration::from_millis(500);
const GIVE_WAY_MAX: Duration = Duration::from_secs(4);
const FOLLOWS_FOR: u32 = 4;

impl Feed {
    /// Watches whoever leads, and follows in their place while they stand still: that is safe without the lease.
    pub(super) async fn stand_by(&mut self) -> Infallible {
        self.last_seen = None;
        loop {
            tokio::time::sleep(WATCH_EVERY).await;
            if self.look_at <= Instant::now() {
                match self.is_current().await {
                    true => self.look_at = Instant::now() + LOOK_EVERY,
                    false => self.look().await,
                }
            }
            if self.is_leaderless().await {
                debug!("the watermark does not move, applying changes without the lease");
                self.substitute().await;
                self.last_seen = None;
            }
        }
    }

    /// Follows in the place of whoever leads, until somebody else moves the watermark. A leader that lives and is slower loses every
    /// race for the cursor, so it is given way to, for longer each time.
    async fn substitute(&mut self) {
        self.look().await;
        let mut give_way = GIVE_WAY_MIN;
        loop {
            self.follow(Role::Substitute(Instant::now() + give_way * FOLLOWS_FOR)).await;
            if self.moves_within(give_way).await {
                return;
            }
            give_way = (give_way * 2).min(GIVE_WAY_MAX);
        }
    }

    /// Whether somebody moves the watermark while this worker does not.
    async fn moves_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut seen = self.watermark_time().await;
        while Instant::now() < until {
            tokio::time::sleep(GIVE_WAY_MIN / 10).await;
            let now = self.watermark_time().await;
            if seen.is_some() && now.is_some() && seen != now {
                return true;
            }
            seen = now.or(seen);
        }
        false
    }

    async fn watermark_time(&self) -> Option<String> {
        self.context.engine.redis.watermark().await.ok().flatten().map(|watermark| watermark.as_of)
    }

    /// Whether the watermark stands still although somebody has the lease.
    async fn is_leaderless(&mut self) -> bool {
        let engine = &self.context.engine;
        if engine.coverage().is_none() {
            return false;
        }
        let Ok(watermark) = engine.redis.watermark().await else { return false };
        let as_of = watermark.map(|watermark| watermark.as_of);
        if self.last_seen.as_ref().is_none_or(|(seen, _)| *seen != as_of) {
            self.last_seen = Some((as_of, Instant::now()));
        }
        self.last_seen.as_ref().is_some_and(|(_, since)| LEADERLESS_AFTER < since.elapsed())
    }
}
