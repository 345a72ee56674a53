//! Keeps the order of things right: epochs, definitions, debts.
//!
//! Every second it reads the head and takes a snapshot: lost tables, another incarnation, a Redis that went back and
//! a Postgres that does not answer are noticed here first. Debts are paid one dataset at a time, in a task, by the
//! one worker that holds the lease `lead`. If it dies, debts stand in Redis and the next one goes on.

use std::collections::HashMap;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::address::AddressBook;
use super::clock::now_ms;
use super::health::Health;
use super::lock_renewer::{LEASE_LIFE, Lease, LockRenewerMessage, Wish};
use super::task::Task;
use super::warmer::WarmerMessage;
use cachekeeper_config::{OnNewEpoch, Scope};
use cachekeeper_engine::flows::context::Context;
use cachekeeper_engine::flows::epoch::{self, Order};
use cachekeeper_engine::flows::error::{FlowError, chain};
use cachekeeper_engine::flows::{debt, reload::Report};
use cachekeeper_engine::metrics::{ByDataset, ByReason};
use cachekeeper_engine::stores::redis::{Epoch, PendingRevalidation};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A job in the head that only counts looks, so that a Redis that went back while nothing else happened is noticed.
const LOOKS: &str = "looks";
const POSTPONED_FOR: Duration = Duration::from_secs(10);
const LEAD: &str = "lead";
const WINDOWS_AT_ONCE: usize = 64;
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// What the actor needs.
#[derive(Clone, Debug)]
pub struct EpochKeeperArguments {
    /// Stores.
    pub context: Context,
    /// Peers.
    pub peers: AddressBook,
    /// Where facts go.
    pub health: Health,
    /// What happens to entries of older epochs.
    pub on_new_epoch: OnNewEpoch,
}

/// Messages.
#[derive(Debug)]
pub enum EpochKeeperMessage {
    /// Look now. Sent by the actor's own timer, and by peers that made a debt; may be lost.
    Look,
    /// The task that paid a debt is over.
    DebtEnded {
        /// Which dataset.
        dataset: String,
        /// When the debt was made, by Redis's clock.
        made_ms: Option<u64>,
        /// How; none if it panicked.
        result: Option<Result<Report, FlowError>>,
    },
}

/// What the actor knows.
#[derive(Debug)]
pub struct EpochKeeperState {
    arguments: EpochKeeperArguments,
    timer: Option<JoinHandle<Result<(), ractor::MessagingErr<EpochKeeperMessage>>>>,
    last: Option<(Epoch, u64)>,
    paying: Option<(String, Task, CancellationToken)>,
    lead: Option<Lease>,
    /// Datasets that do not fit the database, and when they are tried again.
    postponed: HashMap<String, Instant>,
}

/// The actor.
#[derive(Debug)]
pub struct EpochKeeper;

impl Actor for EpochKeeper {
    type Msg = EpochKeeperMessage;
    type State = EpochKeeperState;
    type Arguments = EpochKeeperArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<EpochKeeperMessage>,
        arguments: EpochKeeperArguments,
    ) -> Result<EpochKeeperState, ActorProcessingErr> {
        let mut state = EpochKeeperState {
            arguments,
            timer: None,
            last: None,
            paying: None,
            lead: None,
            postponed: HashMap::new(),
        };
        state.arm(&myself, Duration::ZERO);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<EpochKeeperMessage>,
        message: EpochKeeperMessage,
        state: &mut EpochKeeperState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            EpochKeeperMessage::Look => {
                state.on_look(&myself).await;
                state.arm(&myself, LOOK_EVERY);
            }
            EpochKeeperMessage::DebtEnded { dataset, made_ms, result } => {
                state.on_debt_ended(&dataset, made_ms, result).await;
                state.arm(&myself, Duration::from_millis(50));
            }
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<EpochKeeperMessage>,
        state: &mut EpochKeeperState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(timer) = state.timer.take() {
            timer.abort();
        }
        if let Some((_, _, cancel)) = state.paying.take() {
            cancel.cancel();
        }
        state.give_back_lead();
        Ok(())
    }
}

impl EpochKeeperState {
    fn arm(&mut self, myself: &ActorRef<EpochKeeperMessage>, delay: Duration) {
        if let Some(timer) = self.timer.replace(myself.send_after(delay, || EpochKeeperMessage::Look)) {
            timer.abort();
        }
    }

    async fn on_look(&mut self, myself: &ActorRef<EpochKeeperMessage>) {
        let context = self.arguments.context.clone();
        match epoch::ensure(&context, LOOKS).await {
            Ok(order) => {
                self.note_up().await;
                self.check_went_back(&order).await;
                self.note_order(&order);
                self.note_watermark().await;
                self.pay_next(myself, &order).await;
                self.drop_windows().await;
            }
            Err(error) => self.note_trouble(&error).await,
        }
    }

    async fn note_watermark(&self) {
        let context = &self.arguments.context;
        if !context.feed.is_on {
            return;
        }
        let read = context.redis.watermark().await;
        self.arguments.health.update(|facts| {
            if let Ok(watermark) = read {
                facts.see_watermark(watermark);
            }
            if let Some((_, moved)) = &facts.watermark {
                context.metrics.watermark_age_seconds.set(moved.elapsed().as_secs_f64());
            }
        });
    }

    async fn note_up(&mut self) {
        let health = &self.arguments.health;
        if health.note("redis", Ok(())) {
            info!("redis answers");
        }
        if health.note("postgres", Ok(())) {
            info!("postgres answers");
            if let Err(error) = self.arguments.context.redis.note_outage(None).await {
                debug!(error = %chain(&error), "the end of the outage is noted at the next look");
                self.arguments.health.update(|facts| drop(facts.dependencies.remove("postgres")));
            }
        }
    }

    async fn note_trouble(&mut self, error: &FlowError) {
        let text = chain(error);
        let health = &self.arguments.health;
        match error {
            FlowError::Cache(_) => {
                if health.note("redis", Err(text.clone())) {
                    warn!(error = text, "redis does not answer as it should, trying again");
                }
            }
            FlowError::Source(_) | FlowError::Retired => {
                // The head was read before Postgres was asked.
                if health.note("redis", Ok(())) {
                    info!("redis answers");
                }
                if health.note("postgres", Err(text.clone())) {
                    warn!(error = text, "postgres does not answer as it should, trying again");
                }
                let now = now_ms();
                if let Err(error) = self.arguments.context.redis.note_outage(Some(now)).await {
                    debug!(error = %chain(&error), "the outage could not be noted");
                }
            }
            FlowError::Dataset { .. }
            | FlowError::Gone(_)
            | FlowError::Displaced { .. }
            | FlowError::Slow { .. }
            | FlowError::WentBack
            | FlowError::Cancelled => debug!(error = text, "looking again"),
        }
    }

    /// The counter of looks only grows within an epoch, whoever looks. If it does not, Redis went back.
    async fn check_went_back(&mut self, order: &Order) {
        let counted = order.head.counted;
        let went_back = self.last.is_some_and(|(epoch, last)| epoch == order.epoch && counted <= last);
        self.last = Some((order.epoch, counted));
        if went_back {
            self.relabel().await;
        }
    }

    async fn relabel(&mut self) {
        warn!("redis went back to an older state, everything is looked at again");
        self.arguments.context.metrics.gaps.get_or_create(&ByReason::new("redis_went_back")).inc();
        if let Err(error) = epoch::relabel(&self.arguments.context).await {
            // Still going back at the next look: the last count is kept.
            self.last = self.last.map(|(epoch, _)| (epoch, u64::MAX));
            warn!(error = %chain(&error), "a new epoch could not begin, trying again");
        }
    }

    fn note_order(&self, order: &Order) {
        let owed = &order.head.pending;
        for dataset in self.arguments.context.catalog.iter() {
            let is_owed = owed.contains_key(dataset.name());
            let labels = ByDataset::new(dataset.name());
            self.arguments.context.metrics.owed.get_or_create(&labels).set(i64::from(is_owed));
        }
        self.arguments.health.update(|facts| {
            facts.epoch = Some(order.epoch.to_string());
            facts.owed =
                owed.iter().map(|(dataset, debt)| (dataset.clone(), debt.reason().to_owned())).collect();
        });
    }

    async fn pay_next(&mut self, myself: &ActorRef<EpochKeeperMessage>, order: &Order) {
        if self.paying.is_some() {
            return;
        }
        let context = self.arguments.context.clone();
        let owed = order.head.pending.keys().find_map(|name| {
            context.catalog.get(name).filter(|dataset| !dataset.is_displaced() && !self.is_postponed(name))
        });
        let Some(dataset) = owed.cloned() else {
            self.give_back_lead();
            return;
        };
        let Some(lease) = self.lead().await else { return };
        let cancel = lease.lost.child_token();
        let (name, policy, stop) = (dataset.name().to_owned(), self.arguments.on_new_epoch, cancel.clone());
        let ended = name.clone();
        let work = async move { debt::pay(&context, &dataset, policy, &stop).await };
        let made_ms = order.head.pending.get(&name).and_then(PendingRevalidation::since_ms);
        let tell = move |result| EpochKeeperMessage::DebtEnded { dataset: ended, made_ms, result };
        self.paying = Some((name, Task::spawn(myself, work, tell), cancel));
    }

    fn is_postponed(&self, dataset: &str) -> bool {
        self.postponed.get(dataset).is_some_and(|until| Instant::now() < *until)
    }

    async fn on_debt_ended(
        &mut self,
        name: &str,
        made_ms: Option<u64>,
        result: Option<Result<Report, FlowError>>,
    ) {
        self.paying = None;
        match result {
            Some(Ok(report)) => {
                self.arguments.health.update(|facts| drop(facts.broken.remove(name)));
                info!(
                    dataset = name,
                    stored = report.stored,
                    gone = report.gone,
                    invalidated = report.invalidated,
                    "every entry was looked at again"
                );
                // A walk of Redis does not find what is missing there.
                let holds_all = self.arguments.context.catalog.get(name).is_some_and(|dataset| {
                    dataset.settings.scope == Scope::All && dataset.settings.warm.is_some()
                });
                if holds_all {
                    self.arguments
                        .peers
                        .warmer
                        .hint(WarmerMessage::PassWanted { dataset: name.to_owned(), since_ms: made_ms });
                }
            }
            Some(Err(FlowError::WentBack)) => self.relabel().await,
            Some(Err(error @ FlowError::Dataset { .. })) => {
                let text = chain(&error);
                warn!(dataset = name, error = text, "the dataset does not fit the database");
                self.postponed.insert(name.to_owned(), Instant::now() + POSTPONED_FOR);
                self.arguments.health.update(|facts| drop(facts.broken.insert(name.to_owned(), text)));
            }
            Some(Err(error)) => {
                debug!(dataset = name, error = %chain(&error), "the debt stands, trying again");
            }
            None => warn!(dataset = name, "the task that paid the debt panicked, trying again"),
        }
    }

    async fn lead(&mut self) -> Option<Lease> {
        if let Some(lease) = self.lead.as_ref().filter(|lease| !lease.lost.is_cancelled()) {
            return Some(lease.clone());
        }
        let renewer = self.arguments.peers.lock_renewer.get()?;
        let ask = |reply| LockRenewerMessage::Acquire { name: LEAD.to_owned(), life: LEASE_LIFE, reply };
        match renewer.call(ask, Some(ASK_TIMEOUT)).await {
            Ok(ractor::rpc::CallResult::Success(Wish::Granted(lease))) => {
                self.lead = Some(lease.clone());
                Some(lease)
            }
            _ => None,
        }
    }

    fn give_back_lead(&mut self) {
        if let Some(lease) = self.lead.take() {
            self.arguments.peers.lock_renewer.hint(LockRenewerMessage::Release { name: lease.name });
        }
    }

    async fn drop_windows(&self) {
        match self.arguments.context.redis.drop_old_windows(WINDOWS_AT_ONCE).await {
            Ok(dropped) => drop(self.arguments.context.metrics.windows_dropped.inc_by(dropped as u64)),
            Err(error) => debug!(error = %chain(&error), "old tag sets are dropped at the next look"),
        }
    }
}
