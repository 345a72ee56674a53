//! Leases: they save work, they do not guard correctness.

use std::time::Duration;

use super::entries::millis;
use super::script::{Call, LEASE_ACQUIRE, LEASE_RELEASE, LEASE_RENEW};
use super::{CacheError, Redis};

/// A lease that was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseGrant {
    /// Its name.
    pub name: String,
    /// Grows from holder to holder.
    pub token: u64,
    owner: String,
}

/// How an attempt to take a lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseAttempt {
    /// It is ours.
    Granted(LeaseGrant),
    /// Somebody else holds it.
    Held {
        /// Who.
        owner: String,
        /// For how much longer, unless it is renewed.
        left: Duration,
    },
}

impl LeaseGrant {
    /// What stands in Redis while it is held.
    fn content(&self) -> String {
        format!("{} {}", self.token, self.owner)
    }
}

impl Redis {
    /// Takes a lease if it is free.
    ///
    /// # Errors
    /// [`CacheError`]; after [`super::Refusal::Unknown`] it may be held until `life` is over.
    pub async fn acquire_lease(
        &self,
        name: &str,
        owner: &str,
        life: Duration,
    ) -> Result<LeaseAttempt, CacheError> {
        let mut call = Call::new(&LEASE_ACQUIRE, 1);
        call.arg(self.keys.lock(name).as_bytes()).arg(owner.as_bytes()).number(millis(life));
        let reply = call.run(self).await?;
        let values: Vec<redis::Value> = call.read(reply)?;
        match values.as_slice() {
            [redis::Value::Int(token)] => Ok(LeaseAttempt::Granted(LeaseGrant {
                name: name.to_owned(),
                token: u64::try_from(*token).unwrap_or_default(),
                owner: owner.to_owned(),
            })),
            [_, redis::Value::Int(left), redis::Value::BulkString(holder)] => {
                let holder = String::from_utf8_lossy(holder);
                let owner = holder.split_once(' ').map_or(holder.as_ref(), |(_, owner)| owner).to_owned();
                Ok(LeaseAttempt::Held {
                    owner,
                    left: Duration::from_millis(u64::try_from(*left).unwrap_or_default()),
                })
            }
            other => Err(CacheError::unexpected("lease_acquire", &format!("{other:?}"))),
        }
    }

    /// Renews leases; answers for each whether it is still held.
    ///
    /// # Errors
    /// [`CacheError`]; then nothing is known of any.
    pub async fn renew_leases(&self, grants: &[LeaseGrant], life: Duration) -> Result<Vec<bool>, CacheError> {
        let mut call = Call::new(&LEASE_RENEW, grants.len());
        for grant in grants {
            call.arg(self.keys.lock(&grant.name).as_bytes());
        }
        call.number(millis(life));
        for grant in grants {
            call.arg(grant.content().as_bytes());
        }
        let reply = call.run(self).await?;
        call.read(reply)
    }

    /// Releases a lease if it is still held.
    ///
    /// # Errors
    /// [`CacheError`]; then it ends by itself.
    pub async fn release_lease(&self, grant: &LeaseGrant) -> Result<bool, CacheError> {
        let mut call = Call::new(&LEASE_RELEASE, 1);
        call.arg(self.keys.lock(&grant.name).as_bytes()).arg(grant.content().as_bytes());
        let reply = call.run(self).await?;
        call.read(reply)
    }
}
