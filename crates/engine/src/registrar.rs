//! What a worker registers its definitions as (R16).

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::catalog::Catalog;

/// Registers the definitions of one worker.
#[derive(Debug)]
pub(crate) struct Registrar {
    pub(crate) worker: String,
    pub(crate) release: u64,
    /// What the directory says of the service.
    pub(crate) service: String,
    /// The worker's own datasets; who leads follows others too.
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) state: Mutex<RegistrarState>,
}

/// What it knows.
#[derive(Debug, Default)]
pub(crate) struct RegistrarState {
    /// The numbers of the catalog's definitions, and the incarnation in which they were read: a database that lost commits may have
    /// lost some of them.
    pub(crate) serials: Option<(String, Vec<u64>)>,
    /// When it registered last.
    pub(crate) registered: Option<Instant>,
}

impl Registrar {
    /// That of the worker of this name.
    pub fn new(worker: String, release: u64, service: String, catalog: Arc<Catalog>) -> Self {
        Self { worker, release, service, catalog, state: Mutex::default() }
    }
}
