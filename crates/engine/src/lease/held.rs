//! What is known of a lock that is held. Pure: time comes in.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::terms::Terms;
use crate::stores::redis::LeaseGrant;

/// What the renewer knows of a lock.
#[derive(Debug)]
pub(super) struct HeldLock {
    pub grants: Vec<LeaseGrant>,
    terms: Terms,
    /// When it ends in any case.
    ends: Option<Instant>,
    renew_at: Option<Instant>,
    trusted_until: Instant,
    pub is_being_renewed: bool,
    pub lost: CancellationToken,
    /// Dropped with it.
    pub permits: Vec<OwnedSemaphorePermit>,
}

impl HeldLock {
    /// Granted some time after `asked`.
    pub fn new(grants: Vec<LeaseGrant>, terms: Terms, asked: Instant) -> Self {
        let ends = terms.max_hold.and_then(|hold| asked.checked_add(hold));
        let mut held = Self {
            grants,
            terms,
            ends,
            renew_at: None,
            trusted_until: asked,
            is_being_renewed: false,
            lost: CancellationToken::new(),
            permits: Vec::new(),
        };
        held.trust(asked);
        held
    }

    pub fn life(&self) -> Duration {
        self.terms.life
    }

    pub fn has(&self, name: &str) -> bool {
        self.grants.iter().any(|grant| grant.name == name)
    }

    /// It was held at some time after `asked`: a renewal that was sent then may have come to Redis at once.
    pub fn trust(&mut self, asked: Instant) {
        let life = self.terms.life;
        // Trust ends before the lock does, for clocks that run at different speeds.
        let margin = (life / 10).max(Duration::from_millis(2));
        let until = asked + life.saturating_sub(margin);
        self.trusted_until = self.ends.map_or(until, |ends| until.min(ends));
        self.renew_at = self.terms.is_renewed.then(|| asked + life / 3);
    }

    /// A renewal failed: it is tried again soon, as long as the lock is trusted.
    pub(crate) fn renew_again(&mut self, now: Instant) {
        self.renew_at = Some(now + self.terms.life / 20);
    }

    /// Somebody else has it.
    pub(crate) fn distrust(&mut self, now: Instant) {
        self.trusted_until = now;
    }

    pub(crate) fn is_trusted(&self, now: Instant) -> bool {
        now < self.trusted_until
    }

    /// Whether it is to be renewed by now.
    pub fn is_due(&self, now: Instant) -> bool {
        !self.is_being_renewed && self.renew_at.is_some_and(|at| at <= now)
    }

    /// Whether it is to be renewed so soon that it goes with others.
    pub(crate) fn is_nearly_due(&self, now: Instant) -> bool {
        self.is_due(now + self.terms.life / 20)
    }

    /// When something must be done about it.
    pub(crate) fn wakes_at(&self) -> Instant {
        let renew_at = self.renew_at.filter(|_| !self.is_being_renewed);
        renew_at.map_or(self.trusted_until, |at| at.min(self.trusted_until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_counts_from_before_a_renewal_was_sent_and_ends_before_the_lock() {
        let second = Duration::from_secs(1);
        let asked = Instant::now();
        let mut held = HeldLock::new(Vec::new(), Terms::renewed(second * 3), asked);
        assert_eq!(held.wakes_at(), asked + second);
        assert!(!held.is_due(asked + second / 2) && held.is_due(asked + second));
        held.is_being_renewed = true;
        assert!(!held.is_due(asked + second), "one renewal at a time");
        assert_eq!(
            held.wakes_at(),
            asked + second * 27 / 10,
            "whoever holds it is told also while a renewal hangs"
        );
        assert!(held.is_trusted(asked + second * 2) && !held.is_trusted(asked + second * 27 / 10));
        held.is_being_renewed = false;
        held.trust(asked + second);
        assert_eq!(held.wakes_at(), asked + second * 2);
        held.distrust(asked + second);
        assert!(!held.is_trusted(asked + second));
    }

    #[test]
    fn a_lock_ends_at_its_longest_hold_whatever_is_renewed() {
        let second = Duration::from_secs(1);
        let asked = Instant::now();
        let terms = Terms { max_hold: Some(second * 4), ..Terms::renewed(second * 3) };
        let mut held = HeldLock::new(Vec::new(), terms, asked);
        held.trust(asked + second * 3);
        assert!(held.is_trusted(asked + second * 3) && !held.is_trusted(asked + second * 4));
        let terms = Terms { is_renewed: false, ..Terms::renewed(second) };
        let held = HeldLock::new(Vec::new(), terms, asked);
        assert!(!held.is_due(asked + second));
    }
}
