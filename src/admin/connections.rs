//! How many connections there are. Whoever comes is let in: where there are too many, the one that has been silent for longest is
//! closed. What keeps a connection busy is bounded below the whole, so that there is always a silent one, and `/livez` answers
//! whatever the load.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use cachekeeper_engine::metrics::Metrics;

/// Connections that requests at work never take: those of probes.
const RESERVE: usize = 16;

/// All connections of the listener.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    open: Mutex<Open>,
    requests: Arc<Semaphore>,
    /// Answers without an end, which are requests too: half of all, so that whatever else is asked finds room.
    streams: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

#[derive(Default, Debug)]
struct Open {
    next: u64,
    /// By the number of the connection.
    all: HashMap<u64, State>,
    /// Silent connections by when they fell silent, the oldest first.
    silent: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct State {
    close: Arc<Notify>,
    /// Its place among the silent; none: it is busy.
    silent_since: Option<u64>,
}

impl Connections {
    pub(super) fn new(most: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        let requests = most.saturating_sub(RESERVE).max(1);
        let streams = (most / 2).min(requests.saturating_sub(1)).max(1);
        let (requests, streams) = (Arc::new(Semaphore::new(requests)), Arc::new(Semaphore::new(streams)));
        Arc::new(Self { most, open: Mutex::default(), requests, streams, metrics })
    }

    /// A place for a new connection; none: all of them are busy.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Connection> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if self.most <= open.all.len() && !open.close_oldest() {
            return None;
        }
        let close = Arc::new(Notify::new());
        let number = open.take_number();
        open.all.insert(number, State { close: Arc::clone(&close), silent_since: None });
        open.set_silent(number);
        self.count(&open);
        Some(Connection { number, close, of: Arc::clone(self) })
    }

    /// Closes the connection that has been silent for longest, for want of files. False: all of them are busy.
    pub(super) fn close_oldest(&self) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let is_closed = open.close_oldest();
        self.count(&open);
        is_closed
    }

    /// Leave to keep a connection busy for as long as it takes; none: too many do.
    pub(super) fn request(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.requests).try_acquire_owned().ok()
    }

    /// Leave to send an answer without an end; none: too many do.
    pub(super) fn stream(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.streams).try_acquire_owned().ok()
    }

    fn count(&self, open: &Open) {
        self.metrics.admin_connections.set(i64::try_from(open.all.len()).unwrap_or(i64::MAX));
    }
}

impl Open {
    fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn set_silent(&mut self, connection: u64) {
        let since = self.take_number();
        if let Some(state) = self.all.get_mut(&connection)
            && state.silent_since.is_none()
        {
            state.silent_since = Some(since);
            self.silent.insert(since, connection);
        }
    }

    fn set_busy(&mut self, connection: u64) {
        if let Some(since) = self.all.get_mut(&connection).and_then(|state| state.silent_since.take()) {
            self.silent.remove(&since);
        }
    }

    fn close_oldest(&mut self) -> bool {
        let Some((_, connection)) = self.silent.pop_first() else { return false };
        if let Some(state) = self.all.remove(&connection) {
            state.close.notify_one();
        }
        true
    }
}

/// A place among the connections, until it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    number: u64,
    close: Arc<Notify>,
    of: Arc<Connections>,
}

impl Connection {
    /// Ends when another connection needs the place.
    pub(super) async fn closed(&self) {
        self.close.notified().await;
    }

    /// A request has come: until what is answered is dropped, the connection is not silent.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.of.open.lock().unwrap_or_else(PoisonError::into_inner).set_busy(self.number);
        Busy(Arc::clone(self))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.of.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.set_busy(self.number);
        open.all.remove(&self.number);
        self.of.count(&open);
    }
}

/// A request at work.
#[derive(Debug)]
pub(super) struct Busy(Arc<Connection>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.of.open.lock().unwrap_or_else(PoisonError::into_inner).set_silent(self.0.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_one_that_was_silent_for_longest_makes_room_and_a_busy_one_never_does() {
        let all = Connections::new(3, Arc::default());
        let [first, second, third] = std::array::from_fn(|_| Arc::new(all.enter().unwrap()));
        let busy = first.busy();
        let fourth = all.enter().unwrap();
        second.closed().await;
        // Silent again, but for less long than the third.
        drop(busy);
        let fifth = all.enter().unwrap();
        third.closed().await;
        let _busy = [first.busy(), Arc::new(fourth).busy(), Arc::new(fifth).busy()];
        assert!(all.enter().is_none() && !all.close_oldest());
        drop((second, third));
        assert_eq!(all.metrics.admin_connections.get(), 3);
    }

    #[test]
    fn streams_leave_room_for_requests() {
        let all = Connections::new(100, Arc::default());
        let streams: Vec<_> = std::iter::from_fn(|| Some((all.stream()?, all.request()?))).collect();
        assert_eq!(streams.len(), 50);
        assert!(all.stream().is_none() && all.request().is_some());
    }

    #[test]
    fn requests_leave_a_reserve_of_connections() {
        let all = Connections::new(RESERVE + 2, Arc::default());
        let held = [all.request().unwrap(), all.request().unwrap()];
        assert!(all.request().is_none());
        drop(held);
        assert!(all.request().is_some());
    }
}
