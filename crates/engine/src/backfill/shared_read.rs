//! One read of everything that a query returns, for all shards of a process that want it at the same moment: else each would read it for
//! itself, and keep the rows of its own keys alone.
//!
//! Rows are handed on in groups, each to all who take part before the next: so the slowest sets the pace, and no more than a few groups are
//! in memory. Who breaks off holds up nobody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

use crate::stores::postgres::{BackfillRows, DatasetSource, Postgres, SourceError};

/// How long the first waits for the others.
const GATHERED_WITHIN: Duration = Duration::from_millis(250);
/// Groups of rows that wait for one reader.
const GROUPS_AHEAD: usize = 4;

type Reader = oneshot::Sender<Result<BackfillRows, SourceError>>;

/// Who waits for reads that are about to begin.
#[derive(Debug, Default)]
pub struct SharedReads {
    /// How many may come.
    readers: AtomicUsize,
    /// By the statement with the types of its columns.
    gathering: Mutex<BTreeMap<String, Gathering>>,
}

#[derive(Debug, Default)]
struct Gathering {
    readers: Vec<Reader>,
    is_complete: Arc<Notify>,
}

impl SharedReads {
    /// Takes part in the next read; answers who is to begin it, if this is the first.
    fn join(&self, statement: &str, reader: Reader) -> Option<Arc<Notify>> {
        let mut gathering = self.gathering.lock().unwrap_or_else(PoisonError::into_inner);
        let of_statement = gathering.entry(statement.to_owned()).or_default();
        of_statement.readers.push(reader);
        if self.readers.load(Ordering::Relaxed) <= of_statement.readers.len() {
            of_statement.is_complete.notify_one();
        }
        (of_statement.readers.len() == 1).then(|| Arc::clone(&of_statement.is_complete))
    }

    fn take(&self, statement: &str) -> Vec<Reader> {
        let mut gathering = self.gathering.lock().unwrap_or_else(PoisonError::into_inner);
        gathering.remove(statement).unwrap_or_default().readers
    }
}

impl SharedReads {
    /// So many readers may want the same at the same moment: a read begins at once when all of them have come.
    pub fn expect(&self, readers: usize) {
        self.readers.store(readers, Ordering::Relaxed);
    }

    /// Begins to read everything, together with whoever wants the same now. The snapshot is taken after this call.
    ///
    /// # Errors
    /// [`SourceError`], the same for all.
    pub(super) async fn read(
        self: &Arc<Self>,
        postgres: &Postgres,
        source: &Arc<DatasetSource>,
    ) -> Result<BackfillRows, SourceError> {
        let statement = source.all_with_types();
        let (reader, read) = oneshot::channel();
        if let Some(is_complete) = self.join(&statement, reader) {
            // On its own, so that others have it where the first breaks off.
            let (shared, postgres, source) = (Arc::clone(self), postgres.clone(), Arc::clone(source));
            drop(tokio::spawn(async move {
                // Whether all have come or not.
                drop(timeout(GATHERED_WITHIN, is_complete.notified()).await);
                read_for_all(&postgres, &source, shared.take(&statement)).await;
            }));
        }
        match read.await {
            Ok(read) => read,
            // The runtime ends.
            Err(_closed) => postgres.backfill(source, None).await,
        }
    }
}

async fn read_for_all(postgres: &Postgres, source: &DatasetSource, readers: Vec<Reader>) {
    let mut rows = match postgres.backfill(source, None).await {
        Ok(rows) => rows,
        Err(error) => {
            for reader in readers {
                drop(reader.send(Err(error.copied())));
            }
            return;
        }
    };
    let mut senders = Vec::with_capacity(readers.len());
    for reader in readers {
        let (sender, of_reader) = mpsc::channel(GROUPS_AHEAD);
        if reader.send(Ok(rows.with_rows(of_reader))).is_ok() {
            senders.push(sender);
        }
    }
    while !senders.is_empty() {
        let group = match rows.next().await {
            Ok(None) => return,
            Ok(Some(group)) => Ok(group),
            Err(error) => Err(error),
        };
        let mut still = Vec::with_capacity(senders.len());
        for sender in senders {
            let copy = group.as_ref().map(Arc::clone).map_err(SourceError::copied);
            if sender.send(copy).await.is_ok() {
                still.push(sender);
            }
        }
        senders = still;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_begins_the_read_and_it_begins_at_once_when_all_have_come() {
        let reads = SharedReads::default();
        reads.readers.store(2, Ordering::Relaxed);
        let reader = || oneshot::channel().0;
        let is_complete = reads.join("select 1", reader()).unwrap();
        assert!(reads.join("select 2", reader()).is_some());
        assert!(reads.join("select 1", reader()).is_none());
        // Nobody has to wait for it any more.
        assert!(futures_util::FutureExt::now_or_never(is_complete.notified()).is_some());
        assert_eq!(reads.take("select 1").len(), 2);
        assert!(reads.join("select 1", reader()).is_some());
    }
}
