//! The children: which there are, in which order they start, how each is built.

use ractor::{Actor, ActorCell, SpawnErr};

use crate::actors::address::AddressBook;
use crate::actors::auditor::{Auditor, AuditorArguments};
use crate::actors::change_feed::{ChangeFeed, ChangeFeedArguments};
use crate::actors::epoch_keeper::{EpochKeeper, EpochKeeperArguments};
use crate::actors::event_log::{EventLog, EventLogArguments};
use crate::actors::health::Health;
use crate::actors::invalidation_listener::{InvalidationListener, InvalidationListenerArguments};
use crate::actors::lock_renewer::{LockRenewer, LockRenewerArguments};
use crate::actors::metrics_reporter::{MetricsReporter, MetricsReporterArguments};
use crate::actors::refresher::{Refresher, RefresherArguments};
use crate::actors::seen::Seen;
use crate::actors::warmer::{Warmer, WarmerArguments};
use crate::actors::writer::{Writer, WriterArguments};
use cachekeeper_config::Config;
use cachekeeper_engine::flows::context::Context;
use cachekeeper_engine::metrics::Metrics;

/// The actors under the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChildKind {
    /// Leases.
    LockRenewer,
    /// Numbers.
    MetricsReporter,
    /// Epochs and debts.
    EpochKeeper,
    /// Committed changes.
    ChangeFeed,
    /// Refresh-ahead and misses.
    Refresher,
    /// Passes.
    Warmer,
    /// Events.
    InvalidationListener,
    /// Durable events.
    EventLog,
    /// Write commands.
    Writer,
    /// Entries against the database.
    Auditor,
}

impl ChildKind {
    /// Those that others rely on come first; stopping goes backwards, so that leases are released last.
    pub const START_ORDER: [Self; 10] = [
        Self::LockRenewer,
        Self::MetricsReporter,
        Self::EpochKeeper,
        Self::ChangeFeed,
        Self::Refresher,
        Self::Warmer,
        Self::InvalidationListener,
        Self::EventLog,
        Self::Writer,
        Self::Auditor,
    ];

    /// Its name, for logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LockRenewer => "lock_renewer",
            Self::MetricsReporter => "metrics_reporter",
            Self::EpochKeeper => "epoch_keeper",
            Self::ChangeFeed => "change_feed",
            Self::Refresher => "refresher",
            Self::Warmer => "warmer",
            Self::InvalidationListener => "invalidation_listener",
            Self::EventLog => "event_log",
            Self::Writer => "writer",
            Self::Auditor => "auditor",
        }
    }
}

/// Everything that children are built from, again at each restart.
#[derive(Debug, Clone)]
pub struct Wiring {
    context: Context,
    peers: AddressBook,
    health: Health,
    config: Config,
    owner: String,
    seen: Seen,
}

impl Wiring {
    /// Prepares the wiring. `owner` names this process in leases.
    #[must_use]
    pub fn new(config: Config, context: Context, health: Health, owner: String) -> Self {
        Self { context, peers: AddressBook::default(), health, config, owner, seen: Seen::default() }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    /// Starts a child, linked to its supervisor, and fills its address.
    pub(super) async fn spawn(&self, kind: ChildKind, parent: ActorCell) -> Result<ActorCell, SpawnErr> {
        let (context, peers, health) = (self.context.clone(), self.peers.clone(), self.health.clone());
        // Actors have no names: ractor's registry is shared by the whole process, tests too.
        match kind {
            ChildKind::LockRenewer => {
                let (redis, metrics, owner) = (context.redis, context.metrics, self.owner.clone());
                let arguments = LockRenewerArguments { redis, metrics, owner };
                let (actor, _) = Actor::spawn_linked(None, LockRenewer, arguments, parent).await?;
                self.peers.lock_renewer.fill(Some(actor.clone()));
                Ok(actor.get_cell())
            }
            ChildKind::MetricsReporter => {
                let listen = self.config.admin.listen.clone();
                let arguments = MetricsReporterArguments { context, health, listen };
                let (actor, _) = Actor::spawn_linked(None, MetricsReporter, arguments, parent).await?;
                Ok(actor.get_cell())
            }
            ChildKind::EpochKeeper => {
                let on_new_epoch = self.config.service.on_new_epoch;
                let arguments = EpochKeeperArguments { context, peers, health, on_new_epoch };
                let (actor, _) = Actor::spawn_linked(None, EpochKeeper, arguments, parent).await?;
                self.peers.epoch_keeper.fill(Some(actor.clone()));
                Ok(actor.get_cell())
            }
            ChildKind::ChangeFeed => {
                let arguments = ChangeFeedArguments { context, peers, health };
                let (actor, _) = Actor::spawn_linked(None, ChangeFeed, arguments, parent).await?;
                Ok(actor.get_cell())
            }
            ChildKind::EventLog => {
                let (stream, owner) = (self.config.invalidation.stream.clone(), self.owner.clone());
                let seen = self.seen.clone();
                let arguments = EventLogArguments { context, peers, health, seen, stream, owner };
                let (actor, _) = Actor::spawn_linked(None, EventLog, arguments, parent).await?;
                Ok(actor.get_cell())
            }
            ChildKind::Writer => {
                let arguments =
                    WriterArguments { context, peers, health, stream: self.config.writes.stream.clone() };
                let (actor, _) = Actor::spawn_linked(None, Writer, arguments, parent).await?;
                Ok(actor.get_cell())
            }
            ChildKind::Auditor => {
                let arguments = AuditorArguments { context, peers, rate: self.config.feed.audit_rate };
                let (actor, _) = Actor::spawn_linked(None, Auditor, arguments, parent).await?;
                Ok(actor.get_cell())
            }
            ChildKind::Refresher => {
                let (actor, _) =
                    Actor::spawn_linked(None, Refresher, RefresherArguments { context }, parent).await?;
                self.peers.refresher.fill(Some(actor.clone()));
                Ok(actor.get_cell())
            }
            ChildKind::Warmer => {
                let arguments = WarmerArguments { context, peers, health };
                let (actor, _) = Actor::spawn_linked(None, Warmer, arguments, parent).await?;
                self.peers.warmer.fill(Some(actor.clone()));
                Ok(actor.get_cell())
            }
            ChildKind::InvalidationListener => {
                let invalidation = &self.config.invalidation;
                let (channels, max_pending) = (invalidation.channels.clone(), invalidation.max_pending);
                let seen = self.seen.clone();
                let arguments =
                    InvalidationListenerArguments { context, peers, health, channels, max_pending, seen };
                let (actor, _) = Actor::spawn_linked(None, InvalidationListener, arguments, parent).await?;
                Ok(actor.get_cell())
            }
        }
    }

    /// The child is gone: hints to it are dropped until it is back.
    pub(super) fn empty_slot(&self, kind: ChildKind) {
        match kind {
            ChildKind::LockRenewer => self.peers.lock_renewer.fill(None),
            ChildKind::EpochKeeper => self.peers.epoch_keeper.fill(None),
            ChildKind::Refresher => self.peers.refresher.fill(None),
            ChildKind::Warmer => self.peers.warmer.fill(None),
            ChildKind::MetricsReporter
            | ChildKind::ChangeFeed
            | ChildKind::Auditor
            | ChildKind::EventLog
            | ChildKind::Writer
            | ChildKind::InvalidationListener => {}
        }
    }
}
