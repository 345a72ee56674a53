//! What a running worker may be asked as a whole: to load its configuration again, or to drain. Who asks does not know who does it.

use std::sync::{Arc, Mutex, PoisonError};

use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::actions::Actions;
use cachekeeper_config::Change;

/// Orders that wait. More of them would do the same again.
const WAITING_MAX: usize = 8;

/// Takes orders. Cheap to clone; that of a worker nobody looks after takes none.
#[derive(Clone, Debug, Default)]
pub struct Control {
    orders: Option<mpsc::Sender<Order>>,
    last: Arc<Mutex<Option<LastReload>>>,
    /// What people had done; it outlives a reload.
    pub actions: Actions,
}

/// What is asked for.
#[derive(Debug)]
pub enum Order {
    /// Load the configuration again.
    Reload {
        /// Say only what would change.
        is_dry: bool,
        /// Where the answer goes; the worker before waits until it was read.
        answer: oneshot::Sender<Answered>,
    },
    /// Take no more work, and live on.
    Drain,
}

/// An answer, and what to drop once whoever asked has it.
pub type Answered = (Result<Reloaded, ReloadError>, oneshot::Sender<()>);

/// What a reload changed, or would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Reloaded {
    /// What counts now.
    #[schemars(with = "Vec<ChangeShape>")]
    pub changes: Vec<Change>,
    /// What counts only after a restart.
    #[schemars(with = "Vec<ChangeShape>")]
    pub needs_restart: Vec<Change>,
    /// What is odd about the file.
    pub warnings: Vec<String>,
}

/// What a change looks like, for the description of the API.
#[derive(JsonSchema)]
#[schemars(rename = "Change")]
#[expect(dead_code, reason = "only its shape is of use")]
struct ChangeShape {
    /// Such as `dataset.product.ttl`.
    setting: String,
    /// As it was given; null: it was not.
    before: Option<String>,
    /// As it is given now; null: it is not any more.
    after: Option<String>,
}

/// Why the old configuration stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// The new one is wrong: each problem with its place.
    #[error("{0}")]
    Wrong(String),
    /// It could not be checked, or not be started.
    #[error("{0}")]
    Unavailable(String),
    /// This worker takes no orders (any more).
    #[error("{0}")]
    Refused(&'static str),
}

/// How the last reload ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LastReload {
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// What changed; none: it failed.
    pub changes: Option<Reloaded>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Control {
    /// One that takes orders, and where they come out.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Order>) {
        let (orders, taken) = mpsc::channel(WAITING_MAX);
        (Self { orders: Some(orders), ..Self::default() }, taken)
    }

    /// Loads the configuration again, or says what that would change. The answer's sender is dropped by whoever has told it.
    ///
    /// # Errors
    /// Why the old configuration stays.
    pub async fn reload(&self, is_dry: bool) -> Result<(Reloaded, oneshot::Sender<()>), ReloadError> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Reload { is_dry, answer })?;
        let ended = ReloadError::Refused("the worker stops");
        let (result, told) = answered.await.map_err(|_dropped| ended)?;
        result.map(|reloaded| (reloaded, told))
    }

    /// Has the worker drain.
    ///
    /// # Errors
    /// It takes no orders.
    pub fn drain(&self) -> Result<(), ReloadError> {
        self.order(Order::Drain)
    }

    /// How the last reload ended, if there was one.
    #[must_use]
    pub fn last_reload(&self) -> Option<LastReload> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how a reload ended.
    pub fn note(&self, at_ms: u64, result: &Result<Reloaded, ReloadError>) {
        let last = LastReload {
            at_ms,
            changes: result.as_ref().ok().cloned(),
            error: result.as_ref().err().map(ToString::to_string),
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }

    fn order(&self, order: Order) -> Result<(), ReloadError> {
        let Some(orders) = &self.orders else {
            return Err(ReloadError::Refused(
                "this worker runs inside of another program, which must do that",
            ));
        };
        orders.try_send(order).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                ReloadError::Refused("too many of these are waiting already")
            }
            mpsc::error::TrySendError::Closed(_) => ReloadError::Refused("the worker stops"),
        })
    }
}
