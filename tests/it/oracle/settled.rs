//! Until when a run waits after a fault.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::verdict::Lives;
use super::{Arena, producers};
use crate::support::wait_until;

/// Waits until the watermark has passed what is committed now, holds for everything, and nothing is pending.
pub async fn caught_up(arena: &Arena) {
    let began = tokio::time::Instant::now();
    let deadline = began + Duration::from_secs(60);
    let was_gentle = arena.is_gentle.load(Ordering::SeqCst);
    loop {
        let last = match try_caught_up(arena).await {
            Ok(()) => break,
            Err(last) => last,
        };
        if began + Duration::from_secs(10) <= tokio::time::Instant::now() {
            // On a busy machine whole tables are written faster than they are revalidated.
            arena.is_gentle.store(true, Ordering::SeqCst);
        }
        if deadline <= tokio::time::Instant::now() {
            panic!("not caught up within a minute: {last}\n{}", who_waits_for_whom(arena).await);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    arena.is_gentle.store(was_gentle, Ordering::SeqCst);
}

/// Waits until the whole has got over a fault.
pub async fn after_a_fault(arena: &Arena, lives: &mut Lives) {
    caught_up(arena).await;
    writes_go_on(arena).await;
    lives.note(arena).await;
}

/// Every session of the database that is in a transaction, and who blocks it: a table that is locked is nobody's fault here.
async fn who_waits_for_whom(arena: &Arena) -> String {
    let mut session = arena.rig.lock().await.postgres.session().await.unwrap();
    let sql = "select string_agg(concat_ws(' ', pid, usename, application_name, state, now() - xact_start, wait_event_type, wait_event, \
        'blocked by', pg_blocking_pids(pid)::text, backend_xid, left(query, 160)), E'\\n' order by xact_start) \
        from pg_stat_activity where xact_start is not null";
    session.text(sql).await.unwrap().unwrap_or_default()
}

async fn try_caught_up(arena: &Arena) -> Result<(), String> {
    let context = arena.context().await;
    let text = |error: &dyn std::error::Error| error.to_string();
    let now = context.postgres.poll().await.map_err(|error| text(&error))?;
    for _ in 0..100 {
        let watermark = context.redis.watermark().await.map_err(|error| text(&error))?;
        if let Some(watermark) = &watermark {
            let at: cachekeeper_protocol::stamp::Snapshot = watermark.snapshot.parse().unwrap();
            let is_there = watermark.incarnation == now.incarnation && now.snapshot.stamp() <= at.stamp();
            if is_there && watermark.not_covered.is_empty() {
                context.postgres.close().await;
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let metadata = context.redis.metadata("").await.map_err(|error| text(&error))?;
    let watermark = context.redis.watermark().await.map_err(|error| text(&error))?;
    context.postgres.close().await;
    Err(format!("now {now:?}, watermark {watermark:?}, metadata {metadata:?}"))
}

/// Waits until readers have seen enough of these entries at watermarks that have passed a transaction. While `others` were all that
/// was seen, it was not committed yet.
pub async fn looked_at(arena: &Arena, others: usize, ids: Range<i64>, xid: u64) {
    const ENOUGH: usize = 30;
    wait_until("readers have looked at what a fault has changed", || async {
        let past = arena.observed.past(others, &ids, xid);
        if ENOUGH <= past { Ok(()) } else { Err(format!("{past} of {ENOUGH}")) }
    })
    .await;
}

/// Everybody has been answered; what was sent twice may still be in the stream.
pub async fn no_command_is_left(arena: &Arena) {
    let context = arena.context().await;
    wait_until("no command is left", || async {
        let state = context.redis.stream_state("cache:writes", "cachekeeper:test").await;
        let state = state.map_err(|error| error.to_string())?;
        if state.length == 0 && state.pending == 0 { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
}

/// Writes that were handed over after a fault are carried out again.
pub async fn writes_go_on(arena: &Arena) {
    // More than were under way.
    let count = || arena.observed.answered.load(Ordering::SeqCst);
    let enough = count() + producers::AT_ONCE + 1;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while count() < enough {
        if deadline <= tokio::time::Instant::now() {
            panic!("writes stand still, {} of {enough}\n{}", count(), who_waits_for_whom(arena).await);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the leader of the commands has looked for old records.
pub async fn housekeeping(arena: &Arena) {
    let mut session = arena.rig.lock().await.postgres.session().await.unwrap();
    let led = "select coalesce(sum(led_ms), 0)::text from cachekeeper.writer";
    let mut before = session.text(led).await.unwrap();
    // The one under way may have begun before.
    for _ in 0..2 {
        before = wait_until("the leader has looked for old records", || async {
            let mut session =
                arena.rig.lock().await.postgres.session().await.map_err(|error| error.to_string())?;
            let now = session.text(led).await.map_err(|error| error.to_string())?;
            if now == before { Err(format!("{now:?}")) } else { Ok(now) }
        })
        .await;
    }
}
