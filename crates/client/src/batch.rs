//! Several operations of different types in one round trip, carried out as one step.

use std::collections::HashSet;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::core::{Cache, Core, check_key};
use super::error::ClientError;
use super::key_class::ReadOutcome;
use super::policy::Lifetime;
use cachekeeper_engine::stores::redis::{BatchCommand, BatchReply};
use cachekeeper_protocol::entry::Shape;

/// Tells the handles of one batch from those of another.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Operations that are queued. [`Self::run`] carries them out.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), cachekeeper_client::ClientError> {
/// use std::time::Duration;
/// # let cache = cachekeeper_client::Cache::in_memory().build();
/// # cache.set("name:1", "Ada", Duration::from_secs(60)).await?;
/// let mut batch = cache.batch();
/// let name = batch.get::<String>("name:1")?;
/// let is_known = batch.exists("name:2")?;
/// batch.set("visits:1", &17, Duration::from_secs(300))?;
/// let results = batch.run().await?;
/// assert_eq!(results.value(&name)?.as_deref(), Some("Ada"));
/// assert!(!results.flag(&is_known)?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Batch {
    cache: Cache,
    number: u64,
    commands: Vec<BatchCommand>,
}

/// A place in a batch's results. Its type is that of the operation, so that a wrong one does not compile.
#[derive(Debug)]
pub struct Handle<T> {
    number: u64,
    position: usize,
    kind: PhantomData<fn() -> T>,
}

/// What the operations of a batch answered.
#[derive(Debug)]
pub struct Results {
    cache: Cache,
    number: u64,
    keys: Vec<String>,
    replies: Vec<BatchReply>,
}

impl Cache {
    /// An empty batch.
    #[must_use]
    pub fn batch(&self) -> Batch {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Batch { cache: self.clone(), number, commands: Vec::new() }
    }
}

impl Batch {
    /// Queues a read.
    ///
    /// # Errors
    /// [`ClientError::Key`].
    pub fn get<T: DeserializeOwned>(&mut self, key: &str) -> Result<Handle<T>, ClientError> {
        check_key(key)?;
        // How it is read is told by its dataset, as that is known when the batch is sent.
        Ok(self.push(BatchCommand::Get(key.to_owned(), Shape::String)))
    }

    /// Queues a question whether a key exists.
    ///
    /// # Errors
    /// [`ClientError::Key`].
    pub fn exists(&mut self, key: &str) -> Result<Handle<bool>, ClientError> {
        check_key(key)?;
        Ok(self.push(BatchCommand::Exists(key.to_owned())))
    }

    /// Queues a store.
    ///
    /// # Errors
    /// [`ClientError`] where the key cannot be used or the value not be encoded.
    pub fn set<T: Serialize + ?Sized>(
        &mut self,
        key: &str,
        value: &T,
        life: impl Into<Lifetime>,
    ) -> Result<(), ClientError> {
        self.cache.core.check_own(key)?;
        let codec = self.cache.core.class_of(key).codec;
        let bytes =
            codec.encode(value).map_err(|reason| ClientError::Encode { key: key.to_owned(), reason })?;
        let _: Handle<()> = self.push(match life.into().millis() {
            0 => BatchCommand::Delete(key.to_owned()),
            life => BatchCommand::Set(key.to_owned(), bytes, life),
        });
        Ok(())
    }

    /// Queues a delete; its result is whether the entry was there.
    ///
    /// # Errors
    /// [`ClientError::OfDataset`]: such an entry is deleted under a stamp, see [`Cache::delete`].
    pub fn delete(&mut self, key: &str) -> Result<Handle<bool>, ClientError> {
        self.cache.core.check_own(key)?;
        Ok(self.push(BatchCommand::Delete(key.to_owned())))
    }

    fn push<T>(&mut self, command: BatchCommand) -> Handle<T> {
        self.commands.push(command);
        Handle { number: self.number, position: self.commands.len() - 1, kind: PhantomData }
    }

    /// Carries out all operations in one round trip, with nothing of others in between.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] means that none was carried out.
    pub async fn run(self) -> Result<Results, ClientError> {
        let Self { cache, number, mut commands } = self;
        let core = &cache.core;
        core.source.learn_types().await;
        for command in &mut commands {
            if let BatchCommand::Get(key, shape) = command {
                *shape = core.class_of(key).shape;
            }
        }
        let written: Vec<&str> =
            commands.iter().filter(|command| command.is_write()).map(BatchCommand::key).collect();
        core.leave(&written);
        let replies = if commands.is_empty() {
            Vec::new()
        } else {
            let hidden = hidden(core, &commands);
            let answer = core.ask("carry out a batch", core.backend.batch(&commands)).await;
            core.near.remove(&written);
            match answer {
                Ok(mut replies) => {
                    hidden
                        .into_iter()
                        .for_each(|at| replies.get_mut(at).into_iter().for_each(BatchReply::hide));
                    replies
                }
                Err(error) => return Err(core.not_replaced(error, &written).await),
            }
        };
        core.breaker.settle(&written);
        let keys = commands.iter().map(|command| command.key().to_owned()).collect();
        Ok(Results { cache, number, keys, replies })
    }
}

/// The positions of commands that ask for what is deleted and only noted so far (`Breaker::hidden`), up to where the batch itself
/// writes the key.
fn hidden(core: &Core, commands: &[BatchCommand]) -> Vec<usize> {
    let keys: Vec<&str> = commands.iter().map(BatchCommand::key).collect();
    let mut hidden = core.breaker.hidden(&keys);
    let mut written = HashSet::new();
    let mut writes = commands.iter().enumerate().filter(|(_, command)| command.is_write()).peekable();
    hidden.retain(|at| {
        while let Some((_, command)) = writes.next_if(|(write, _)| write < at) {
            written.insert(command.key());
        }
        keys.get(*at).is_some_and(|key| !written.contains(key))
    });
    hidden
}

impl Results {
    /// The value that was read; none for a miss.
    ///
    /// # Errors
    /// [`ClientError::Decode`] where the bytes are no such value; [`ClientError::Handle`] for another batch's handle.
    pub fn value<T: DeserializeOwned>(&self, handle: &Handle<T>) -> Result<Option<T>, ClientError> {
        let (key, reply) = self.at(handle)?;
        let BatchReply::Value(bytes) = reply else { return Err(ClientError::Handle) };
        let class = self.cache.core.class_of(key);
        let Some(bytes) = bytes else {
            class.count(ReadOutcome::Miss);
            return Ok(None);
        };
        match class.decode(bytes) {
            Ok(value) => {
                class.count(ReadOutcome::Hit);
                Ok(Some(value))
            }
            Err(_) if *bytes == class.codec.null() => {
                class.count(ReadOutcome::Negative);
                Ok(None)
            }
            Err(reason) => {
                class.count(ReadOutcome::Undecodable);
                Err(ClientError::Decode { key: key.to_owned(), reason })
            }
        }
    }

    /// Whether a key existed.
    ///
    /// # Errors
    /// [`ClientError::Handle`] for another batch's handle.
    pub fn flag(&self, handle: &Handle<bool>) -> Result<bool, ClientError> {
        match self.at(handle)? {
            (_, BatchReply::Flag(flag)) => Ok(*flag),
            _ => Err(ClientError::Handle),
        }
    }

    fn at<T>(&self, handle: &Handle<T>) -> Result<(&str, &BatchReply), ClientError> {
        let found = self.keys.get(handle.position).zip(self.replies.get(handle.position));
        match found.filter(|_| handle.number == self.number) {
            Some((key, reply)) => Ok((key, reply)),
            None => Err(ClientError::Handle),
        }
    }
}
