//! Where to reach an actor, across its restarts.

use ractor::{ActorRef, Message};
use tokio::sync::watch;

use super::epoch_keeper::EpochKeeperMessage;
use super::lock_renewer::LockRenewerMessage;
use super::refresher::RefresherMessage;
use super::warmer::WarmerMessage;

/// Where to reach one peer. Empty while the peer is down.
#[derive(Debug)]
pub struct Address<M: Message> {
    slot: watch::Sender<Option<ActorRef<M>>>,
}

impl<M: Message> Clone for Address<M> {
    fn clone(&self) -> Self {
        Self { slot: self.slot.clone() }
    }
}

impl<M: Message> Default for Address<M> {
    fn default() -> Self {
        Self { slot: watch::Sender::new(None) }
    }
}

impl<M: Message> Address<M> {
    /// Sends a hint. A peer that is down loses it: its first look after the restart repairs. Answers whether it was
    /// sent.
    pub fn hint(&self, message: M) -> bool {
        let target = self.get();
        target.is_some_and(|actor| actor.cast(message).is_ok())
    }

    /// The actor, if it runs.
    #[must_use]
    pub fn get(&self) -> Option<ActorRef<M>> {
        self.slot.borrow().clone()
    }

    /// Fills the slot; only the supervisor does.
    pub fn fill(&self, actor: Option<ActorRef<M>>) {
        self.slot.send_replace(actor);
    }
}

/// All addresses. Built before any actor and handed to every one: no lookups by name, no cycle at start.
#[derive(Clone, Debug, Default)]
pub struct AddressBook {
    /// The lock renewer.
    pub lock_renewer: Address<LockRenewerMessage>,
    /// The epoch keeper.
    pub epoch_keeper: Address<EpochKeeperMessage>,
    /// The refresher.
    pub refresher: Address<RefresherMessage>,
    /// The warmer.
    pub warmer: Address<WarmerMessage>,
}
