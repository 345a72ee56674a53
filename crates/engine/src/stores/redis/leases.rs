//! Locks with a lifetime and a fencing token: leases of workers, and locks of applications.

use std::time::Duration;

use super::entries::millis;
use super::script::{Call, LOCK_ACQUIRE, LOCK_RELEASE, LOCK_RENEW};
use super::{CacheError, Redis};

/// A lock that was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseGrant {
    /// Its name.
    pub name: String,
    /// Grows from holder to holder.
    pub token: u64,
    owner: String,
}

/// How an attempt to take locks ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseAttempt {
    /// They are ours, all under one token.
    Granted(Vec<LeaseGrant>),
    /// Somebody else holds one of them.
    Held {
        /// Which.
        name: String,
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
    /// Takes all of these locks if all are free.
    ///
    /// # Errors
    /// [`CacheError`]; after [`super::Refusal::Unknown`] they may be held until `life` is over.
    pub async fn acquire_locks(
        &self,
        names: &[impl AsRef<str>],
        owner: &str,
        life: Duration,
    ) -> Result<LeaseAttempt, CacheError> {
        let mut call = Call::new(&LOCK_ACQUIRE, 1 + names.len());
        call.arg(self.keys.last_token.as_bytes());
        for name in names {
            call.arg(self.keys.lock(name.as_ref()).as_bytes());
        }
        call.arg(owner.as_bytes()).number(millis(life));
        let reply = call.run(self).await?;
        let values: Vec<redis::Value> = call.read(reply)?;
        match values.as_slice() {
            [redis::Value::Int(token)] => {
                let token = u64::try_from(*token).unwrap_or_default();
                let grant = |name: &_| LeaseGrant {
                    name: AsRef::<str>::as_ref(name).to_owned(),
                    token,
                    owner: owner.to_owned(),
                };
                Ok(LeaseAttempt::Granted(names.iter().map(grant).collect()))
            }
            [_, redis::Value::Int(position), redis::Value::Int(left), redis::Value::BulkString(holder)] => {
                let holder = String::from_utf8_lossy(holder);
                let owner = holder.split_once(' ').map_or(holder.as_ref(), |(_, owner)| owner).to_owned();
                let held = usize::try_from(*position).ok().and_then(|position| names.get(position));
                Ok(LeaseAttempt::Held {
                    name: held.map(|name| name.as_ref().to_owned()).unwrap_or_default(),
                    owner,
                    left: Duration::from_millis(u64::try_from(*left).unwrap_or_default()),
                })
            }
            other => Err(CacheError::unexpected("lock_acquire", &format!("{other:?}"))),
        }
    }

    /// Renews locks; answers for each whether it is still held.
    ///
    /// # Errors
    /// [`CacheError`]; then nothing is known of any.
    pub async fn renew_locks(&self, grants: &[(&LeaseGrant, Duration)]) -> Result<Vec<bool>, CacheError> {
        let mut call = Call::new(&LOCK_RENEW, grants.len());
        for (grant, _) in grants {
            call.arg(self.keys.lock(&grant.name).as_bytes());
        }
        for (grant, life) in grants {
            call.arg(grant.content().as_bytes()).number(millis(*life));
        }
        let reply = call.run(self).await?;
        call.read(reply)
    }

    /// Releases locks that are still held, and wakes who waits for them; answers how many were.
    ///
    /// # Errors
    /// [`CacheError`]; then they end by themselves.
    pub async fn release_locks(&self, grants: &[LeaseGrant]) -> Result<u64, CacheError> {
        let mut call = Call::new(&LOCK_RELEASE, 1 + grants.len());
        call.arg(self.keys.unlock_channel.as_bytes());
        for grant in grants {
            call.arg(self.keys.lock(&grant.name).as_bytes());
        }
        for grant in grants {
            call.arg(grant.name.as_bytes()).arg(grant.content().as_bytes());
        }
        let reply = call.run(self).await?;
        call.read(reply)
    }

    /// Who holds the first of these locks that is held.
    pub async fn lock_holder(&self, names: &[String]) -> Result<Option<LeaseAttempt>, CacheError> {
        let keys: Vec<String> = names.iter().map(|name| self.keys.lock(name)).collect();
        let looked = self.read(&keys).await?;
        let held = names.iter().zip(looked).find_map(|(name, (holder, left))| Some((name, holder?, left)));
        Ok(held.map(|(name, holder, left)| {
            let holder = String::from_utf8_lossy(&holder);
            let owner = holder.split_once(' ').map_or(holder.as_ref(), |(_, owner)| owner).to_owned();
            let left = Duration::from_millis(u64::try_from(left).unwrap_or_default());
            LeaseAttempt::Held { name: name.clone(), owner, left }
        }))
    }

    /// For how much longer a lock is held; none: it is free.
    pub async fn lock_left(&self, name: &str) -> Result<Option<Duration>, CacheError> {
        let left: i64 = self.command("look at a lock", redis::cmd("PTTL").arg(self.keys.lock(name))).await?;
        Ok(match left {
            -2 => None,
            // Somebody made it by hand, without an end.
            -1 => Some(Duration::MAX),
            left => Some(Duration::from_millis(u64::try_from(left).unwrap_or_default())),
        })
    }
}
