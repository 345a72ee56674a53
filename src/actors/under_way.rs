//! The backfill that this worker runs: how far it is, for whoever asks, and a way to end it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use cachekeeper_engine::backfill::Progress;

/// A rate over less time says nothing.
const RATE_AFTER: Duration = Duration::from_millis(500);

/// The backfill that runs, if one does. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct UnderWay {
    running: Arc<Mutex<Option<Running>>>,
}

#[derive(Debug)]
struct Running {
    dataset: String,
    is_required: bool,
    began: Instant,
    cancel: CancellationToken,
    progress: watch::Receiver<Progress>,
    /// What was stored when it was first looked: an interrupted run is no part of the rate.
    first: Option<(Instant, u64)>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How long it has run.
    pub took: Duration,
    /// Entries stored so far, those of an interrupted run included.
    pub entries: u64,
    /// Whether it goes on where another was interrupted.
    pub is_resumed: bool,
    /// Entries a second; none: it has just begun, or stores less than one.
    pub rate: Option<u64>,
}

/// Whether it ends, where somebody asks for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It ends.
    Done,
    /// It must run: a cause wants it.
    Required,
    /// None of this dataset runs here.
    NoneRuns,
}

impl UnderWay {
    /// One begins; what tells it to end.
    #[must_use]
    pub fn begin(&self, dataset: &str, is_required: bool) -> (CancellationToken, watch::Sender<Progress>) {
        let (sender, progress) = watch::channel(Progress::default());
        let cancel = CancellationToken::new();
        *self.lock() = Some(Running {
            dataset: dataset.to_owned(),
            is_required,
            began: Instant::now(),
            cancel: cancel.clone(),
            progress,
            first: None,
        });
        (cancel, sender)
    }

    /// None runs any more.
    pub fn ended(&self) {
        *self.lock() = None;
    }

    /// Notes from when on the rate counts.
    pub fn tick(&self) {
        if let Some(running) = self.lock().as_mut()
            && running.first.is_none()
        {
            let entries = running.progress.borrow().entries;
            running.first = (0 < entries).then(|| (Instant::now(), entries));
        }
    }

    /// How far that of a dataset is; none: none runs.
    #[must_use]
    pub fn look(&self, dataset: &str) -> Option<Seen> {
        let state = self.lock();
        let running = state.as_ref().filter(|running| running.dataset == dataset)?;
        let progress = running.progress.borrow().clone();
        let rate = running.first.and_then(|(at, before)| {
            let took = at.elapsed();
            let millis = u64::try_from(took.as_millis()).ok().filter(|_| RATE_AFTER <= took)?;
            let stored = progress.entries.saturating_sub(before).saturating_mul(1_000);
            stored.checked_div(millis).filter(|rate| 0 < *rate)
        });
        let took = running.began.elapsed();
        Some(Seen { took, entries: progress.entries, is_resumed: progress.is_resumed, rate })
    }

    /// Ends that of a dataset.
    #[must_use]
    pub fn cancel(&self, dataset: &str) -> Cancelled {
        match self.lock().as_ref().filter(|running| running.dataset == dataset) {
            None => Cancelled::NoneRuns,
            Some(running) if running.is_required => Cancelled::Required,
            Some(running) => {
                running.cancel.cancel();
                Cancelled::Done
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_tells_its_rate_and_ends_only_where_nothing_depends_on_it() {
        let under_way = UnderWay::default();
        assert_eq!(under_way.cancel("product"), Cancelled::NoneRuns);
        let (cancel, sender) = under_way.begin("product", false);
        sender.send_replace(Progress { entries: 100, is_resumed: true });
        under_way.tick();
        assert_eq!(under_way.look("product").unwrap().rate, None);
        tokio::time::advance(Duration::from_secs(2)).await;
        sender.send_replace(Progress { entries: 300, is_resumed: true });
        assert_eq!(under_way.look("product").unwrap().rate, Some(100));
        assert_eq!((under_way.look("shop"), under_way.cancel("shop")), (None, Cancelled::NoneRuns));
        assert!(under_way.cancel("product") == Cancelled::Done && cancel.is_cancelled());
        let (cancel, _sender) = under_way.begin("product", true);
        assert!(under_way.cancel("product") == Cancelled::Required && !cancel.is_cancelled());
        under_way.ended();
        assert_eq!(under_way.look("product"), None);
    }
}
