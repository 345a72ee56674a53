//! Wake-ups when somebody releases a lock: one subscription for the process, open while anybody waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use crate::stores::redis::{Notice, Redis};

/// How often a silent subscription is probed, and how long that may take.
const HEARTBEAT: Duration = Duration::from_secs(1);
const REPLY_LIMIT: Duration = Duration::from_secs(1);
/// Between two looks at a lock while no subscription is active.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two looks although one is active: a release may be lost between server and client.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// No lock is looked at more often, whatever is known of its holder's life: one that somebody made by hand has no end.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(50);

/// Hears of releases for the whole process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Wakeups {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    redis: Redis,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// For each name, how many releases were heard, and how many wait.
    waiting: HashMap<String, (watch::Sender<u64>, usize)>,
    /// A task listens.
    is_heard: bool,
    /// The subscription is active.
    is_open: bool,
}

/// The interest of one waiter in one name.
#[derive(Debug)]
pub struct Wakeup {
    state: Arc<State>,
    name: String,
    receiver: watch::Receiver<u64>,
}

impl Wakeups {
    /// Nothing is subscribed to yet.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        Self { state: Arc::new(State { redis, table: Mutex::default() }) }
    }

    /// Where the locks are.
    pub(super) fn redis(&self) -> &Redis {
        &self.state.redis
    }

    /// Listens for releases of this lock.
    #[must_use]
    pub fn of(&self, name: &str) -> Wakeup {
        let mut table = self.state.table();
        let entry = table.waiting.entry(name.to_owned()).or_insert_with(|| (watch::Sender::new(0), 0));
        entry.1 += 1;
        let receiver = entry.0.subscribe();
        if !table.is_heard {
            table.is_heard = true;
            drop(tokio::spawn(listen(Arc::downgrade(&self.state))));
        }
        Wakeup { state: Arc::clone(&self.state), name: name.to_owned(), receiver }
    }
}

impl Wakeup {
    /// Whether this is the interest in that name.
    #[must_use]
    pub fn is_of(&self, name: &str) -> bool {
        self.name == name
    }

    /// What was heard so far; what comes later ends [`Self::wait`].
    #[must_use]
    pub fn begin(&self) -> u64 {
        *self.receiver.borrow()
    }

    /// Waits until a release is heard, the holder's life is over, or the deadline.
    pub async fn wait(&mut self, heard: u64, left: Duration, deadline: Instant) {
        let look_every = if self.state.table().is_open { LOOK_AT_LEAST_EVERY } else { LOOK_EVERY };
        // One millisecond more: Redis rounds what remains down.
        let pause = left.saturating_add(Duration::from_millis(1)).clamp(LOOK_AT_MOST_EVERY, look_every);
        let until = deadline.min(Instant::now() + pause);
        let changed = self.receiver.wait_for(|count| *count != heard);
        // A wake-up, or the time: the caller looks in any case.
        drop(tokio::time::timeout_at(until, changed).await);
    }
}

impl Drop for Wakeup {
    fn drop(&mut self) {
        let mut table = self.state.table();
        if let Some(entry) = table.waiting.get_mut(&self.name) {
            entry.1 -= 1;
            if entry.1 == 0 {
                table.waiting.remove(&self.name);
            }
        }
    }
}

impl State {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the listening if nobody waits.
    fn may_end(&self) -> bool {
        let mut table = self.table();
        let is_idle = table.waiting.is_empty();
        if is_idle {
            table.is_heard = false;
            table.is_open = false;
        }
        is_idle
    }

    fn wake(&self, name: Option<&str>) {
        let table = self.table();
        let named = table.waiting.iter().filter(|(waiting, _)| name.is_none_or(|name| *waiting == name));
        named.for_each(|(_, (sender, _))| sender.send_modify(|count| *count += 1));
    }
}

async fn listen(state: Weak<State>) {
    loop {
        let Some(strong) = state.upgrade() else { return };
        let redis = strong.redis.clone();
        drop(strong);
        let channel = [redis.keys().unlock_channel()];
        let opened = redis.subscribe(&channel, false, HEARTBEAT, REPLY_LIMIT).await;
        let mut subscription = match opened {
            Ok(subscription) => subscription,
            Err(error) => {
                debug!(%error, "no wake-ups from redis, waiting locks are looked at instead");
                tokio::time::sleep(LOOK_EVERY).await;
                match state.upgrade() {
                    Some(state) if !state.may_end() => continue,
                    _ => return,
                }
            }
        };
        match state.upgrade() {
            Some(state) => {
                state.table().is_open = true;
                // What was released before the subscription stood is looked for.
                state.wake(None);
            }
            None => return,
        }
        loop {
            let notice = subscription.next().await;
            let Some(state) = state.upgrade() else { return };
            match notice {
                Ok(Notice::Event { body, .. }) => state.wake(std::str::from_utf8(&body).ok()),
                Ok(Notice::Quiet | Notice::Miss { .. }) => {}
                Err(_ended) => {
                    state.table().is_open = false;
                    state.wake(None);
                    break;
                }
            }
            if state.may_end() {
                return;
            }
        }
    }
}
