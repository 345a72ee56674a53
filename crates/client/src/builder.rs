//! How a cache is opened.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::backend::Backend;
use super::breaker::{Breaker, BreakerSettings};
use super::chaos::Chaos;
use super::codec::{Codec, ValueFormat};
use super::core::{Cache, Core};
use super::error::ClientError;
use super::flight::Flights;
use super::in_memory::InMemory;
#[cfg(feature = "postgres")]
use super::in_memory::Table;
use super::key_class::KeyClasses;
use super::locks::Locks;
use super::near::NearHub;
use super::prefixes::Prefixes;
use super::source::Source;
use cachekeeper_config as config;
use cachekeeper_config::Compression;
use cachekeeper_engine::metrics::Metrics;
use cachekeeper_engine::stores::redis::Redis;

/// Where events go unless something else is said.
const CHANNEL: &str = "cache:invalidation";
/// Time limits of a cache that is opened without a configuration.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How a cache behaves; [`Self::build`] makes it.
#[derive(Debug)]
pub struct CacheBuilder {
    backend: Backend,
    source: Source,
    codec: Codec,
    breaker: BreakerSettings,
    chaos: Option<Chaos>,
    loads: usize,
    channel: String,
    stream: Option<String>,
    prefixes: Vec<String>,
    shows_keys: bool,
    slow: Duration,
}

impl Cache {
    /// A cache over Redis alone. Nothing is sent until the first command. `namespace` is that of the worker, if there is
    /// one: counters, tags and locks are kept under it.
    ///
    /// `url` is `redis://host:port/database`, `rediss://…` for TLS, or names sentinels:
    /// `redis+sentinel://host:port,host:port/service/database` (`rediss+sentinel://…` for TLS to both). The connection is
    /// opened again by itself, also where the server has become a replica or the sentinels name another master; no reply of
    /// a replica is taken for longer than a second.
    ///
    /// # Errors
    /// [`ClientError`] when the URL cannot be used.
    pub fn connect(url: &str, namespace: &str) -> Result<CacheBuilder, ClientError> {
        let settings = config::Redis {
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
            ..config::Redis::new(config::Secret::new(url.to_owned()))
        };
        Self::connect_with(&settings, namespace)
    }

    /// The same with everything that the worker's file can say of Redis: passwords that stand in files, certificates, those of
    /// sentinels, time limits. Files are read for each new connection.
    ///
    /// # Errors
    /// [`ClientError`] when the URL cannot be used.
    pub fn connect_with(settings: &config::Redis, namespace: &str) -> Result<CacheBuilder, ClientError> {
        let redis = Redis::new(settings, namespace)?;
        Ok(CacheBuilder::new(Backend::Redis(Box::new(redis)), Source::none()))
    }

    /// A cache in this process's memory, for tests: it follows the same rules, and its lifetimes follow tokio's clock. It has locks,
    /// channels, datasets ([`CacheBuilder::dataset`]), and applies the events that it publishes, as a worker would.
    #[must_use]
    pub fn in_memory() -> CacheBuilder {
        CacheBuilder::new(Backend::Memory(InMemory::new(CHANNEL)), Source::none())
    }
}

impl CacheBuilder {
    pub(super) fn new(backend: Backend, source: Source) -> Self {
        Self {
            backend,
            source,
            codec: Codec { format: ValueFormat::MessagePack, compression: None },
            breaker: BreakerSettings::default(),
            chaos: None,
            loads: 64,
            channel: CHANNEL.to_owned(),
            stream: None,
            prefixes: Vec::new(),
            shows_keys: false,
            slow: Duration::from_millis(100),
        }
    }

    /// The bytes of the application's own values (default: MessagePack). A dataset's have the dataset's format.
    #[must_use]
    pub fn format(mut self, format: ValueFormat) -> Self {
        self.codec.format = format;
        self
    }

    /// Compresses the application's own values from a size on.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.codec.compression = Some(compression);
        self
    }

    /// When the circuit breaker opens and how it probes.
    #[must_use]
    pub fn breaker(mut self, settings: BreakerSettings) -> Self {
        self.breaker = settings;
        self
    }

    /// Makes things go wrong, for the application's own tests.
    #[must_use]
    pub fn chaos(mut self, chaos: Chaos) -> Self {
        self.chaos = Some(chaos);
        self
    }

    /// Most loads at the same time while Redis is down (default 64).
    #[must_use]
    pub fn loads_without_redis(mut self, most: usize) -> Self {
        self.loads = most.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// The channel for events (default `cache:invalidation`).
    #[must_use]
    pub fn channel(mut self, channel: &str) -> Self {
        channel.clone_into(&mut self.channel);
        if let Backend::Memory(memory) = self.backend {
            self.backend = Backend::Memory(memory.with_events_channel(channel));
        }
        self
    }

    /// The stream for durable events, `[invalidation] stream` of the worker's configuration (default: that, where the cache is opened by
    /// the configuration).
    #[must_use]
    pub fn stream(mut self, stream: &str) -> Self {
        self.stream = Some(stream.to_owned());
        self
    }

    /// Adds a dataset to a cache in memory: [`Cache::rows`] has its rows.
    ///
    /// # Errors
    /// [`ClientError::Setting`] where the template cannot be read, or where the cache is not in memory: its datasets come from the
    /// configuration.
    #[cfg(feature = "postgres")]
    pub fn dataset(mut self, name: &str, key: &str, life: Duration) -> Result<Self, ClientError> {
        let Some(memory) = self.backend.in_memory_mut() else {
            let problem = format!("{name}: the datasets of this cache come from the configuration");
            return Err(ClientError::Setting { setting: "dataset", problem });
        };
        let table = Table::new(name, key, life)?;
        memory.add_dataset(name, table.key.clone());
        self.source.add(table);
        Ok(self)
    }

    /// What the application's own keys begin with (`"page:"`). Workers are told, and then the events of anybody may delete
    /// such keys; without it, only this library, and `[invalidation] keys` of the worker's configuration. A prefix that
    /// no process has used for a week is forgotten.
    #[must_use]
    pub fn prefixes<T: Into<String>>(mut self, prefixes: impl IntoIterator<Item = T>) -> Self {
        self.prefixes.extend(prefixes.into_iter().map(Into::into));
        self
    }

    /// Writes keys into spans. They may hold what does not belong into a trace, and there are many of them.
    #[must_use]
    pub fn keys_in_spans(mut self) -> Self {
        self.shows_keys = true;
        self
    }

    /// From which duration on an operation is logged as slow (default 100 ms).
    #[must_use]
    pub fn slow_from(mut self, limit: Duration) -> Self {
        self.slow = limit;
        self
    }

    /// The cache.
    #[must_use]
    pub fn build(self) -> Cache {
        let metrics = self.source.metrics().unwrap_or_else(|| Arc::new(Metrics::new()));
        let classes = KeyClasses::new(self.source.codecs(self.codec), self.codec, &metrics);
        let locks = match &self.backend {
            Backend::Redis(redis) => Locks::new((**redis).clone(), Arc::clone(&metrics)),
            Backend::Memory(_) => Locks::in_memory(Arc::clone(&metrics)),
        };
        let near = match &self.backend {
            Backend::Redis(redis) => Some((**redis).clone()),
            Backend::Memory(_) => None,
        };
        let metrics_of_near = Arc::clone(&metrics);
        let backend = match self.backend {
            Backend::Memory(memory) => Backend::Memory(memory.with_prefixes(self.prefixes.clone())),
            redis @ Backend::Redis(_) => redis,
        };
        let core = Arc::new_cyclic(|own| Core {
            backend,
            source: self.source,
            classes,
            metrics,
            breaker: Breaker::new(self.breaker),
            chaos: self.chaos,
            flights: Flights::default(),
            waits: Arc::default(),
            drops_windows: AtomicBool::new(false),
            is_doubted: AtomicBool::new(false),
            locks,
            loads: Semaphore::new(self.loads),
            channel: self.channel,
            stream: self.stream,
            prefixes: Prefixes::new(self.prefixes),
            near: NearHub::new(near, metrics_of_near),
            shows_keys: self.shows_keys,
            slow: self.slow,
            own: own.clone(),
        });
        Cache { core }
    }
}
