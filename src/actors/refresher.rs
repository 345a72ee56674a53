//! Keeps what is read from expiring, and fills what applications missed.
//!
//! On its timer it walks over Redis and loads again what is due and was read; while Postgres is down it extends such
//! entries instead. A lost hint costs one miss more. If it dies, the next walk sees the same entries.

use std::collections::BTreeSet;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::clock::now_ms;
use super::task::Task;
use cachekeeper_engine::flows::context::Context;
use cachekeeper_engine::flows::error::{FlowError, chain};
use cachekeeper_engine::flows::refresh::{Looked, Outage, RefreshWalk, fill_missed};
use cachekeeper_engine::metrics::ByReason;

const WALK_EVERY_MIN: Duration = Duration::from_millis(500);
const WALK_EVERY_MAX: Duration = Duration::from_secs(300);
/// Misses that wait. More are forgotten: the application that missed loads by itself, or misses again.
const MISSED_MAX: usize = 10_000;

/// What the actor needs.
#[derive(Clone, Debug)]
pub struct RefresherArguments {
    /// Stores.
    pub context: Context,
}

/// Messages.
#[derive(Debug)]
pub enum RefresherMessage {
    /// Walk over Redis. Sent by the actor's own timer.
    Walk,
    /// The walk's task is over.
    WalkEnded {
        /// How; none if it panicked.
        result: Option<Result<Looked, FlowError>>,
    },
    /// Applications asked for keys that are not there. Sent by the invalidation listener; may be lost.
    Missed {
        /// The keys.
        keys: Vec<String>,
    },
    /// The task that filled misses is over.
    FillEnded {
        /// How; none if it panicked.
        result: Option<Result<u64, FlowError>>,
    },
}

/// What the actor knows.
#[derive(Debug)]
pub struct RefresherState {
    arguments: RefresherArguments,
    walk_every: Duration,
    timer: Option<JoinHandle<Result<(), ractor::MessagingErr<RefresherMessage>>>>,
    walking: Option<Task>,
    filling: Option<Task>,
    missed: BTreeSet<String>,
}

/// The actor.
#[derive(Debug)]
pub struct Refresher;

impl Actor for Refresher {
    type Msg = RefresherMessage;
    type State = RefresherState;
    type Arguments = RefresherArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<RefresherMessage>,
        arguments: RefresherArguments,
    ) -> Result<RefresherState, ActorProcessingErr> {
        // Several looks fall into the last part of every lifetime.
        let due = arguments.context.catalog.iter().map(|dataset| dataset.lifetimes.due_within() / 4).min();
        let walk_every = due.unwrap_or(WALK_EVERY_MAX).clamp(WALK_EVERY_MIN, WALK_EVERY_MAX);
        let mut state = RefresherState {
            arguments,
            walk_every,
            timer: None,
            walking: None,
            filling: None,
            missed: BTreeSet::new(),
        };
        state.arm(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<RefresherMessage>,
        message: RefresherMessage,
        state: &mut RefresherState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RefresherMessage::Walk => state.on_walk(&myself),
            RefresherMessage::WalkEnded { result } => {
                state.on_walk_ended(result);
                state.arm(&myself);
            }
            RefresherMessage::Missed { keys } => {
                state.on_missed(keys);
                state.fill(&myself);
            }
            RefresherMessage::FillEnded { result } => {
                state.on_fill_ended(result);
                state.fill(&myself);
            }
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<RefresherMessage>,
        state: &mut RefresherState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(timer) = state.timer.take() {
            timer.abort();
        }
        Ok(())
    }
}

impl RefresherState {
    fn arm(&mut self, myself: &ActorRef<RefresherMessage>) {
        let delay = self.walk_every.mul_f64(0.9 + 0.2 * rand::random::<f64>());
        if let Some(timer) = self.timer.replace(myself.send_after(delay, || RefresherMessage::Walk)) {
            timer.abort();
        }
    }

    fn on_walk(&mut self, myself: &ActorRef<RefresherMessage>) {
        let context = self.arguments.context.clone();
        let work = async move { walk(&context).await };
        self.walking = Some(Task::spawn(myself, work, |result| RefresherMessage::WalkEnded { result }));
    }

    fn on_walk_ended(&mut self, result: Option<Result<Looked, FlowError>>) {
        self.walking = None;
        match result {
            Some(Ok(looked)) if looked == Looked::default() => {}
            Some(Ok(looked)) if 0 < looked.extended => {
                info!(extended = looked.extended, "entries kept while postgres is down");
            }
            Some(Ok(looked)) => {
                debug!(refreshed = looked.refreshed, unread = looked.unread, "walk done");
            }
            Some(Err(error)) => debug!(error = %chain(&error), "walk broken off, the next one looks again"),
            None => warn!("the walk panicked, the next one looks again"),
        }
    }

    fn on_missed(&mut self, keys: Vec<String>) {
        for key in keys {
            if MISSED_MAX <= self.missed.len() {
                self.arguments.context.metrics.gaps.get_or_create(&ByReason::new("misses_overflow")).inc();
                return;
            }
            self.missed.insert(key);
        }
    }

    fn fill(&mut self, myself: &ActorRef<RefresherMessage>) {
        if self.filling.is_some() || self.missed.is_empty() {
            return;
        }
        let keys: Vec<String> = std::mem::take(&mut self.missed).into_iter().collect();
        let context = self.arguments.context.clone();
        let work = async move { fill_missed(&context, keys).await };
        self.filling = Some(Task::spawn(myself, work, |result| RefresherMessage::FillEnded { result }));
    }

    fn on_fill_ended(&mut self, result: Option<Result<u64, FlowError>>) {
        self.filling = None;
        match result {
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                debug!(error = %chain(&error), "misses not filled, the next miss tries again");
            }
            None => warn!("filling misses panicked"),
        }
    }
}

async fn walk(context: &Context) -> Result<Looked, FlowError> {
    let facts = context.redis.facts().await?;
    let outage = match context.postgres.ping().await {
        Ok(()) => None,
        Err(error) if error.is_transient() => {
            let head = context.redis.metadata("").await?;
            match Outage::read(&head, now_ms()) {
                Some(outage) => Some(outage),
                None => return Err(error.into()),
            }
        }
        Err(error) => return Err(error.into()),
    };
    let mut walk = RefreshWalk::new(&facts);
    while !walk.step(context, outage.clone()).await? {}
    Ok(walk.looked)
}
