//! Locks with a lifetime and a fencing token: leases of workers, and locks of applications.

use std::time::Duration;

use redis::{FromRedisValue, ParsingError, Value};

use super::entries::millis;
use super::script::{Call, LOCK_ACQUIRE, LOCK_RELEASE, LOCK_RENEW};
use super::{CacheError, Redis};
use cachekeeper_protocol::entry::Shape;

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

/// Who holds a lock with this content.
fn owner_of(content: &[u8]) -> String {
    let content = String::from_utf8_lossy(content);
    content.split_once(' ').map_or(content.as_ref(), |(_, owner)| owner).to_owned()
}

/// What the script that takes locks replies.
enum AcquireReply {
    Granted { token: u64 },
    Held { position: usize, left: Duration, owner: String },
}

impl FromRedisValue for AcquireReply {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let values = Vec::<Value>::from_redis_value(value)?;
        match values.as_slice() {
            [Value::Int(token)] => Ok(Self::Granted { token: u64::try_from(*token).unwrap_or_default() }),
            [_, Value::Int(position), Value::Int(left), Value::BulkString(holder)] => Ok(Self::Held {
                position: usize::try_from(*position).unwrap_or(usize::MAX),
                left: Duration::from_millis(u64::try_from(*left).unwrap_or_default()),
                owner: owner_of(holder),
            }),
            other => Err(format!("neither granted nor held: {other:?}").into()),
        }
    }
}

impl Redis {
    /// Takes all of these locks if all are free. `is_common`: everybody takes them for this life, so one that has longer to live was
    /// left over by a clock of Redis that was set back, and is cut to it.
    ///
    /// # Errors
    /// [`CacheError`]; after [`super::Refusal::Unknown`] they may be held until `life` is over.
    pub async fn acquire_locks(
        &self,
        names: &[impl AsRef<str>],
        owner: &str,
        life: Duration,
        is_common: bool,
    ) -> Result<LeaseAttempt, CacheError> {
        let mut call = Call::new(&LOCK_ACQUIRE, 1 + names.len());
        call.arg(self.keys.last_token());
        for name in names {
            call.arg(self.keys.lock(name.as_ref()));
        }
        call.arg(owner).number(millis(life)).number(u64::from(is_common));
        Ok(match call.run(self).await? {
            AcquireReply::Granted { token } => {
                let grant = |name: &_| LeaseGrant {
                    name: AsRef::<str>::as_ref(name).to_owned(),
                    token,
                    owner: owner.to_owned(),
                };
                LeaseAttempt::Granted(names.iter().map(grant).collect())
            }
            AcquireReply::Held { position, left, owner } => {
                let name = names.get(position).map(|name| name.as_ref().to_owned()).unwrap_or_default();
                LeaseAttempt::Held { name, owner, left }
            }
        })
    }

    /// Renews locks; answers for each whether it is still held.
    ///
    /// # Errors
    /// [`CacheError`]; then nothing is known of any.
    pub async fn renew_locks(&self, grants: &[(&LeaseGrant, Duration)]) -> Result<Vec<bool>, CacheError> {
        let mut call = Call::new(&LOCK_RENEW, grants.len());
        for (grant, _) in grants {
            call.arg(self.keys.lock(&grant.name));
        }
        for (grant, life) in grants {
            call.arg(grant.content()).number(millis(*life));
        }
        call.run(self).await
    }

    /// Releases locks that are still held, and wakes who waits for them; answers how many were.
    ///
    /// # Errors
    /// [`CacheError`]; then they end by themselves.
    pub async fn release_locks(&self, grants: &[LeaseGrant]) -> Result<u64, CacheError> {
        let mut call = Call::new(&LOCK_RELEASE, 1 + grants.len());
        call.arg(self.keys.unlock_channel());
        for grant in grants {
            call.arg(self.keys.lock(&grant.name));
        }
        for grant in grants {
            call.arg(&grant.name).arg(grant.content());
        }
        call.run(self).await
    }

    /// Who holds the first of these locks that is held.
    pub async fn lock_holder(&self, names: &[String]) -> Result<Option<LeaseAttempt>, CacheError> {
        let keys: Vec<String> = names.iter().map(|name| self.keys.lock(name)).collect();
        let looked = self.read(&keys, Shape::String).await?;
        let held = names.iter().zip(looked).find_map(|(name, (holder, left))| Some((name, holder?, left)));
        Ok(held.map(|(name, holder, left)| {
            let owner = owner_of(&holder);
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
