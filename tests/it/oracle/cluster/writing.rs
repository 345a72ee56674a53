//! Writers that leave a history.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cachekeeper_testkit::servers::Session;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;

use super::super::load::{BY_OTHERS, connect, is_refused_by_us, statement};
use super::Arena;

pub fn start(arena: &Arc<Arena>, seed: u64) -> Vec<JoinHandle<()>> {
    let random = |number: u64| StdRng::seed_from_u64(seed ^ (number + 1));
    (0..2).map(|number| tokio::spawn(write(Arc::clone(arena), random(number), number))).collect()
}

async fn write(arena: Arc<Arena>, mut random: StdRng, number: u64) {
    let mut session: Option<Session> = None;
    // Prepared before a server was killed or a session was cut off, it would hold its locks.
    let prepared = format!("commit prepared 'p{number}'");
    while !arena.is_over() {
        let Some(open) = &mut session else {
            session = connect(&arena.writer_url).await;
            if let Some(open) = &mut session {
                drop(open.execute(&prepared).await);
            }
            continue;
        };
        // Whole tables are written now and then: each shard revalidates all that it has after that.
        let is_gentle = arena.is_gentle.load(Ordering::SeqCst) || random.random_bool(0.9);
        let sql = statement(&mut random, number, is_gentle);
        for part in sql.split('|') {
            let Err(refusal) = open.attempt(part).await else { continue };
            let broken = is_refused_by_us(&refusal, BY_OTHERS, part);
            arena.observed.broken.lock().unwrap().extend(broken);
            if open.execute("rollback").await.is_err() {
                session = None;
            } else {
                drop(open.execute(&prepared).await);
            }
            break;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(2..12))).await;
    }
}
