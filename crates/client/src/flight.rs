//! Single flight: of all who want one key at the same time, one loads, and the others wait for it.
//!
//! The load runs in a task of its own. It goes on while anybody waits, or while somebody who left wants it to; it is
//! cancelled when the last one leaves. A load that panics or is cancelled hands over: whoever still waits begins again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::ClientError;
use cachekeeper_protocol::counters::InvalidationCounters;

/// A value as all who wait share it.
pub(super) type Bytes = Arc<[u8]>;

/// How a load ended.
#[derive(Debug, Clone)]
pub(super) enum Landing {
    /// The value, or none.
    Value(Option<Bytes>),
    /// The loader failed; all who waited are told.
    Failed(ClientError),
    /// The loader panicked: its own caller is told, the others begin again.
    Panicked,
    /// Nobody carried it out.
    Abandoned,
}

#[derive(Debug)]
struct Flight {
    /// What stood in Redis before it began; none: Redis could not be asked.
    fence: Option<InvalidationCounters>,
    landing: watch::Sender<Option<Landing>>,
    seats: AtomicUsize,
    is_kept: AtomicBool,
    cancel: CancellationToken,
}

/// The loads of this process, by key.
#[derive(Debug, Default)]
pub(super) struct Flights {
    by_key: Mutex<HashMap<String, Arc<Flight>>>,
    /// Keys whose load failed, and until when it is not tried again where a stale value is at hand.
    cooling: Mutex<HashMap<String, Instant>>,
}

/// Failed keys that are remembered before those that are over are dropped.
const COOLING_MAX: usize = 10_000;

/// A place among those who wait.
#[derive(Debug)]
pub(super) struct Seat {
    flight: Arc<Flight>,
    receiver: watch::Receiver<Option<Landing>>,
}

/// The duty to load. Dropped without a landing, it hands over.
#[derive(Debug)]
pub(super) struct Departure {
    key: String,
    flight: Arc<Flight>,
    has_landed: bool,
}

/// How somebody came aboard.
#[derive(Debug)]
pub(super) enum Boarding {
    Joined(Seat),
    Leads(Seat, Departure),
}

impl Flights {
    /// Joins the load of this key, or begins one. A load that began before something was invalidated is not joined by
    /// who came after: its value may be the old one.
    pub fn board(&self, key: &str, fence: Option<InvalidationCounters>) -> Boarding {
        let mut by_key = lock(&self.by_key);
        if let Some(flight) = by_key.get(key) {
            let may_join = match (&fence, &flight.fence) {
                (Some(own), Some(its)) => own.allows_joining(its),
                (None, _) => true,
                (Some(_), None) => false,
            };
            if may_join && !flight.cancel.is_cancelled() && flight.landing.borrow().is_none() {
                return Boarding::Joined(Seat::take(flight));
            }
        }
        let flight = Arc::new(Flight {
            fence,
            landing: watch::Sender::new(None),
            seats: AtomicUsize::new(0),
            is_kept: AtomicBool::new(false),
            cancel: CancellationToken::new(),
        });
        by_key.insert(key.to_owned(), Arc::clone(&flight));
        let seat = Seat::take(&flight);
        Boarding::Leads(seat, Departure { key: key.to_owned(), flight, has_landed: false })
    }

    /// Whether somebody loads this key.
    pub fn is_under_way(&self, key: &str) -> bool {
        lock(&self.by_key).contains_key(key)
    }

    /// From now on nobody joins the loads of these keys: what they return may be the old value.
    pub fn detach(&self, keys: &[impl AsRef<str>]) {
        let mut by_key = lock(&self.by_key);
        keys.iter().for_each(|key| drop(by_key.remove(key.as_ref())));
    }

    /// The same for all keys, where it is not known which are meant.
    pub fn detach_all(&self) {
        lock(&self.by_key).clear();
    }

    fn end(&self, departure: &Departure) {
        let mut by_key = lock(&self.by_key);
        if by_key.get(&departure.key).is_some_and(|flight| Arc::ptr_eq(flight, &departure.flight)) {
            by_key.remove(&departure.key);
        }
    }

    /// A load of this key failed: for a while the stale value is served without another try.
    pub fn cool(&self, key: &str, until: Instant) {
        let mut cooling = lock(&self.cooling);
        if COOLING_MAX <= cooling.len() {
            let now = Instant::now();
            cooling.retain(|_, until| now < *until);
        }
        cooling.insert(key.to_owned(), until);
    }

    /// Whether a load of this key failed a short while ago.
    pub fn is_cooling(&self, key: &str) -> bool {
        let mut cooling = lock(&self.cooling);
        match cooling.get(key) {
            Some(until) if Instant::now() < *until => true,
            Some(_) => {
                cooling.remove(key);
                false
            }
            None => false,
        }
    }
}

impl Seat {
    fn take(flight: &Arc<Flight>) -> Self {
        flight.seats.fetch_add(1, Ordering::AcqRel);
        Self { flight: Arc::clone(flight), receiver: flight.landing.subscribe() }
    }

    /// How the load ended.
    pub async fn landing(&mut self) -> Landing {
        match self.receiver.wait_for(Option::is_some).await {
            Ok(landing) => landing.clone().unwrap_or(Landing::Abandoned),
            Err(_nobody_lands) => Landing::Abandoned,
        }
    }

    /// The load goes on when all have left.
    pub fn keep(&self) {
        self.flight.is_kept.store(true, Ordering::Release);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let was_last = self.flight.seats.fetch_sub(1, Ordering::AcqRel) == 1;
        if was_last && !self.flight.is_kept.load(Ordering::Acquire) {
            self.flight.cancel.cancel();
        }
    }
}

impl Departure {
    /// Fires when nobody wants the value any more.
    pub fn cancelled(&self) -> CancellationToken {
        self.flight.cancel.clone()
    }

    /// Ends the load and tells all who wait.
    pub fn land(mut self, flights: &Flights, landing: Landing) {
        // First nobody can join any more, then those who did are told.
        flights.end(&self);
        self.has_landed = true;
        self.flight.landing.send_replace(Some(landing));
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        if !self.has_landed {
            self.flight.cancel.cancel();
            self.flight.landing.send_replace(Some(Landing::Abandoned));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
