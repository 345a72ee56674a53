//! The rows of a dataset, in the place of Postgres.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::mutex::lock;
use super::store::InMemory;
use crate::error::ClientError;
use crate::flight::{Bytes, LoadedBytes};
use crate::policy::Lifetime;
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::template::Template;

/// The rows of one dataset, by the keys of their entries.
#[derive(Debug)]
pub struct Table {
    pub name: String,
    pub key: Template,
    pub life: Duration,
    rows: Mutex<BTreeMap<String, Row>>,
    /// How often rows were loaded.
    pub loads: AtomicU64,
}

/// A row, as its entry has it.
#[derive(Debug, Clone)]
pub struct Row {
    pub value: Vec<u8>,
    pub tags: Vec<String>,
}

impl Table {
    pub fn new(name: &str, key: &str, life: Duration) -> Result<Self, ClientError> {
        let parsed = Template::parse(key).map_err(|error| ClientError::Setting {
            setting: "key",
            problem: format!("{key:?} of dataset {name}: {error}"),
        })?;
        Ok(Self {
            name: name.to_owned(),
            key: parsed,
            life,
            rows: Mutex::default(),
            loads: AtomicU64::new(0),
        })
    }

    /// Loads entries, and stores them where nothing has changed since the counters were read.
    pub fn load(
        &self,
        store: &InMemory,
        keys: &[Arc<str>],
        counters: Option<&InvalidationCounters>,
    ) -> Vec<LoadedBytes> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let rows = lock(&self.rows);
        let found: Vec<Option<Row>> = keys.iter().map(|key| rows.get(&**key).cloned()).collect();
        drop(rows);
        if let Some(counters) = counters {
            let mut batch = EntryBatch::default();
            for (key, row) in keys.iter().zip(&found) {
                if let Some(row) = row {
                    self.push(&mut batch, key, row);
                }
            }
            store.entries().fill(&batch, Some(counters), None);
        }
        found.into_iter().map(|row| Ok(row.map(|row| Bytes::from(row.value)))).collect()
    }

    fn push(&self, batch: &mut EntryBatch, key: &str, row: &Row) {
        let position = batch.push(key, &row.value, Lifetime::from(self.life).millis());
        row.tags.iter().for_each(|tag| batch.tag(position, tag));
    }

    /// A commit, and what a worker makes of it: an entry that is in the cache is replaced, or deleted with its row.
    pub fn commit(&self, store: &InMemory, key: &str, row: Option<Row>) {
        let mut rows = lock(&self.rows);
        match &row {
            Some(row) => drop(rows.insert(key.to_owned(), row.clone())),
            None => drop(rows.remove(key)),
        }
        let mut entries = store.entries();
        match row {
            Some(row) if entries.look(key).0.is_some() => {
                let mut batch = EntryBatch::default();
                self.push(&mut batch, key, &row);
                entries.fill(&batch, None, None);
            }
            // Loads that began before are not stored.
            Some(_) | None => drop(entries.invalidate_keys(&[key])),
        }
    }
}
