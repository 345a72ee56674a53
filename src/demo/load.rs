//! The shop's applications: they read Redis with plain `GET`s, write Postgres, and publish an event after each write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt;
use redis::RedisResult;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::shop::{self, Size};

/// What the applications have done so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Reads that found an entry.
    pub hits: AtomicU64,
    /// Reads that found none.
    pub misses: AtomicU64,
    /// Reads that failed, because Redis was down.
    pub failed_reads: AtomicU64,
    /// Committed writes.
    pub writes: AtomicU64,
    /// Writes that failed, because Postgres was down.
    pub failed_writes: AtomicU64,
    /// Events published.
    pub events: AtomicU64,
}

impl Counts {
    /// In two sentences.
    #[must_use]
    pub fn told(&self, took: Duration) -> String {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let reads = load(&self.hits) + load(&self.misses);
        let percent = (load(&self.hits) * 100).checked_div(reads).unwrap_or_default();
        format!(
            "In {} s applications read {reads} times ({percent} % found an entry), wrote {} times\nto Postgres, and published {} events. \
             With their server failed\n{} reads and {} writes.",
            took.as_secs(),
            load(&self.writes),
            load(&self.events),
            load(&self.failed_reads),
            load(&self.failed_writes),
        )
    }
}

/// The applications' connections.
#[derive(Clone)]
pub struct Shoppers {
    shop: Size,
    redis: Client,
    postgres: PgPool,
    /// What they did.
    pub counts: Arc<Counts>,
}

impl std::fmt::Debug for Shoppers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shoppers").field("counts", &self.counts).finish_non_exhaustive()
    }
}

const CHANNEL: &str = "cache:invalidation";
const READ_PAUSE: Duration = Duration::from_millis(1);
const WRITE_PAUSE: Duration = Duration::from_millis(10);

impl Shoppers {
    /// Prepares the connections.
    ///
    /// # Errors
    /// When a URL cannot be used.
    pub fn new(shop: Size, postgres: &str, redis: &str) -> anyhow::Result<Self> {
        let options: PgConnectOptions = postgres.parse()?;
        let pool = PgPoolOptions::new().max_connections(4).acquire_timeout(Duration::from_secs(2));
        Ok(Self {
            shop,
            redis: Client::new(redis)?,
            postgres: pool.connect_lazy_with(options),
            counts: Arc::default(),
        })
    }

    /// Reads until cancelled.
    pub async fn read(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let key = random_key(self.shop);
            let answer: RedisResult<Option<Vec<u8>>> = self.redis.get(&key).await;
            let counter = match answer {
                Ok(Some(_)) => &self.counts.hits,
                Ok(None) => &self.counts.misses,
                Err(_) => &self.counts.failed_reads,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(READ_PAUSE).await;
        }
    }

    /// Writes until cancelled.
    pub async fn write(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let (sql, event) = random_write(self.shop);
            let done = sqlx::query(AssertSqlSafe(sql)).execute(&self.postgres).await;
            let counter = if done.is_ok() { &self.counts.writes } else { &self.counts.failed_writes };
            counter.fetch_add(1, Ordering::Relaxed);
            // A write whose reply was lost may have committed: the event is published in any case.
            self.publish(&event, &stop).await;
            tokio::time::sleep(WRITE_PAUSE).await;
        }
    }

    async fn publish(&mut self, event: &str, stop: &CancellationToken) {
        loop {
            let published: RedisResult<u64> = self.redis.publish(CHANNEL, event).await;
            if published.is_ok() {
                self.counts.events.fetch_add(1, Ordering::Relaxed);
                return;
            }
            if stop.is_cancelled() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What both servers say of a few products now.
    pub async fn peek(&mut self, ids: &[u32]) -> BTreeMap<u32, (Option<i32>, Option<i64>)> {
        let mut seen = BTreeMap::new();
        for id in ids {
            let sql = format!("select price_cents from products where id = {id}");
            let postgres =
                sqlx::query_scalar(AssertSqlSafe(sql)).fetch_optional(&self.postgres).await.unwrap_or(None);
            let value: RedisResult<Option<Vec<u8>>> = self.redis.get(&format!("product:{id}")).await;
            let redis = value.ok().flatten().and_then(|value| {
                let product: serde_json::Value = rmp_serde::from_slice(&value).ok()?;
                product.get("price_cents")?.as_i64()
            });
            seen.insert(*id, (postgres, redis));
        }
        seen
    }
}

/// Some products are asked for far more often than others.
fn popular(shop: Size) -> u32 {
    let share: f64 = rand::random::<f64>().powi(3);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the number of products"
    )]
    let chosen = (share * f64::from(shop.products)) as u32;
    1 + chosen.min(shop.products - 1)
}

fn random_key(shop: Size) -> String {
    let mut random = rand::rng();
    match random.random_range(0..10) {
        0..6 => format!("product:{}", popular(shop)),
        6 => format!("reviews:{}", 1 + popular(shop) % shop.reviewed()),
        7 => format!("inventory:{}:{}", popular(shop), random.random_range(1..=shop::WAREHOUSES)),
        8 => format!("price_history:{}", popular(shop)),
        _ => format!("user:00000000-0000-0000-0000-{:012x}", random.random_range(0..100)),
    }
}

/// A statement and the event that tells of it.
fn random_write(shop: Size) -> (String, String) {
    let mut random = rand::rng();
    let id = popular(shop);
    match random.random_range(0..20) {
        0..12 => {
            let price = random.random_range(100..10_000);
            let sql =
                format!("update products set price_cents = {price}, updated_at = now() where id = {id}");
            // The simplest event there is: the key itself.
            (sql, format!("product:{id}"))
        }
        12..15 => {
            let warehouse = random.random_range(1..=shop::WAREHOUSES);
            let quantity = random.random_range(0..1_000);
            let sql = format!(
                "update inventory set quantity = {quantity} where product_id = {id} and warehouse_id = {warehouse}"
            );
            (sql, format!(r#"{{"dataset":"inventory","ids":[[{id},{warehouse}]]}}"#))
        }
        15..17 => {
            let product = 1 + id % shop.reviewed();
            let review: u32 = random.random_range(1_000_000..u32::MAX);
            let sql =
                format!("insert into reviews values ({review}, {product}, 5, 'new') on conflict do nothing");
            (sql, format!(r#"{{"key":"reviews:{product}"}}"#))
        }
        17 => {
            let sql = format!("delete from reviews where product_id = {}", 1 + id % shop.reviewed());
            (sql, format!(r#"{{"keys":["reviews:{}"]}}"#, 1 + id % shop.reviewed()))
        }
        18 => {
            let sql = format!("insert into price_history values ({id}, clock_timestamp(), 1)");
            (sql, format!(r#"{{"CacheKey":"price_history:{id}"}}"#))
        }
        // One row that feeds five hundred entries: now and then is enough.
        _ if random.random_ratio(1, 10) => {
            let category = random.random_range(1..=shop::CATEGORIES);
            let sql = format!(
                "update categories set name = 'category {category}.{}' where id = {category}",
                random.random::<u16>()
            );
            (sql, format!(r#"{{"tag":"category:{category}"}}"#))
        }
        _ => {
            let sql = format!("update products set sold = sold + 1 where id = {id}");
            (sql, format!(r#"{{"key":"product:{id}","op":"refresh"}}"#))
        }
    }
}
