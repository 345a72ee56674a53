//! The application: products, reviews, stock, sessions and transfers, each with the caching pattern that fits it.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use cachekeeper_client::{Cache, ClientError, LockOptions, Near, Policy, Sliding, Space};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgPool;

/// Tables and a few rows.
pub const SCHEMA: &str = "
    create table if not exists products (id int primary key, name text not null, price_cents bigint not null, category_id int not null);
    create table if not exists reviews (id int primary key, product_id int not null, stars int not null, body text not null);
    create table if not exists stock (product_id int primary key, pieces int not null);
    create table if not exists accounts (id int primary key, balance bigint not null check (0 <= balance), fence bigint not null default 0);
    insert into products select n, 'product ' || n, n * 100, n % 10 from generate_series(1, 1000) n on conflict do nothing;
    insert into reviews select n, n % 1000 + 1, n % 5 + 1, 'review ' || n from generate_series(1, 3000) n on conflict do nothing;
    insert into stock select n, n % 50 from generate_series(1, 1000) n on conflict do nothing;
    insert into accounts select n, 1000 from generate_series(1, 10) n on conflict do nothing";

/// What the worker keeps; the application reads it through the same file.
pub const CONFIG: &str = r#"
[dataset.product]
query = "select id, name, price_cents, category_id from products"
key = "product:{id}"
tags = ["category:{category_id}"]
ttl = "24h"
watch = [{ table = "products", key = { id = "id" } }]

[dataset.reviews]
query = "select product_id, id, stars, body from reviews"
key = "reviews:{product_id}"
rows = "many"
sort = "id desc"
ttl = "30m"
watch = [{ table = "reviews", key = { product_id = "product_id" } }]
"#;

/// What the handlers share: a space for each kind of value.
#[derive(Debug, Clone)]
pub struct App {
    cache: Cache,
    pool: PgPool,
    products: Space<str, Value>,
    reviews: Space<str, Vec<Value>>,
    pages: Space<str, Value>,
    stock: Space<i32, i32>,
    sessions: Space<str, Session>,
}

impl App {
    pub fn new(cache: Cache, pool: PgPool) -> Result<Self, ClientError> {
        // Old stock figures are better than none: fail-safe, with a limit on how long anybody waits.
        let stock = Policy::ttl(Duration::from_secs(5))
            .fail_safe(Duration::from_secs(3600))
            .soft_timeout(Duration::from_millis(100))
            .hard_timeout(Duration::from_secs(2))
            .negative(Duration::from_secs(5));
        let pages = Policy::ttl(Duration::from_secs(300)).jitter(0.1).eager(0.2);
        // Products are read at every turn: in this process, no more than half a second behind Redis.
        let near = Near::bytes("16MiB").staleness("500ms");
        Ok(Self {
            products: cache.dataset("product")?.space().near(near).build()?,
            reviews: cache.dataset("reviews")?.space().build()?,
            pages: cache.space("page").policy(pages).build()?,
            stock: cache.space("stock").policy(stock).build()?,
            sessions: cache.space("session").policy(Policy::ttl(IDLE)).build()?,
            cache,
            pool,
        })
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Session {
    user: String,
    basket: Vec<i32>,
}

#[derive(Debug, Deserialize)]
struct Price {
    price_cents: i64,
}

#[derive(Debug, Deserialize)]
struct Transfer {
    from: i32,
    to: i32,
    amount: i64,
}

/// A session ends after this long without a request.
const IDLE: Duration = Duration::from_secs(20 * 60);

pub fn router(app: App) -> Router {
    Router::new()
        .route("/products/{id}", get(product))
        .route("/products/{id}/price", put(set_price))
        .route("/pages/{id}", get(page))
        .route("/stock/{id}", get(stock))
        .route("/sessions/{id}", get(session).put(login).delete(logout))
        .route("/transfers", post(transfer))
        .with_state(app)
}

/// Anything that goes wrong, as a response.
#[derive(Debug)]
enum Failed {
    Cache(ClientError),
    Database(sqlx::Error),
    Told(StatusCode, String),
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Cache(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            Self::Database(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            Self::Told(status, text) => (status, text),
        };
        (status, Json(json!({ "error": text }))).into_response()
    }
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Self {
        Self::Cache(error)
    }
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

type Answer = Result<Json<Value>, Failed>;

fn not_found(what: &str) -> Failed {
    Failed::Told(StatusCode::NOT_FOUND, format!("there is no such {what}"))
}

/// Cache-aside: from Redis, else from Postgres under a stamp.
async fn product(State(app): State<App>, Path(id): Path<String>) -> Answer {
    let found = app.products.get(&id).await?;
    found.map(Json).ok_or_else(|| not_found("product"))
}

/// The database first; the worker's change feed sees to Redis. Whoever has no worker deletes, or publishes an event.
async fn set_price(State(app): State<App>, Path(id): Path<i32>, Json(price): Json<Price>) -> Answer {
    let sql = "update products set price_cents = $2 where id = $1";
    let done = sqlx::query(sql).bind(id).bind(price.price_cents).execute(&app.pool).await?;
    if done.rows_affected() == 0 {
        return Err(not_found("product"));
    }
    app.products.delete(&id.to_string()).await?;
    Ok(Json(json!({ "id": id, "price_cents": price.price_cents })))
}

/// Two datasets and a computed value of the application's own, under the tag of the product's category.
async fn page(State(app): State<App>, Path(id): Path<String>) -> Answer {
    let product = app.products.get(&id).await?.ok_or_else(|| not_found("product"))?;
    let category = product.get("category_id").and_then(Value::as_i64).unwrap_or_default();
    let pages = app.pages.with(app.pages.policy().clone().tags([format!("category:{category}")]));
    let (reviews, key) = (app.reviews.clone(), id.clone());
    let render = async move || {
        let reviews = reviews.get(&id).await?.unwrap_or_default();
        Ok::<_, ClientError>(json!({ "product": product, "reviews": reviews }))
    };
    let page = pages.get_or_load(&key, render).await?;
    page.map(Json).ok_or_else(|| not_found("page"))
}

/// Loaded by the application itself, as the space's policy says.
async fn stock(State(app): State<App>, Path(id): Path<i32>) -> Answer {
    let pool = app.pool.clone();
    let load = async move || {
        let sql = "select pieces from stock where product_id = $1";
        sqlx::query_scalar::<_, i32>(sql).bind(id).fetch_optional(&pool).await
    };
    let pieces = app.stock.get_or_load(&id, load).await?;
    pieces.map(|pieces| Json(json!({ "product": id, "pieces": pieces }))).ok_or_else(|| not_found("product"))
}

/// Sliding: every request extends the session.
async fn session(State(app): State<App>, Path(id): Path<String>) -> Answer {
    let session = app.sessions.get_sliding(&id, Sliding::idle(IDLE)).await?;
    session.map(|session| Json(json!(session))).ok_or_else(|| not_found("session"))
}

async fn login(State(app): State<App>, Path(id): Path<String>, Json(session): Json<Session>) -> Answer {
    let of_user = app.sessions.policy().clone().tags([format!("user:{}", session.user)]);
    app.sessions.with(of_user).set(&id, &session).await?;
    Ok(Json(json!({ "id": id })))
}

async fn logout(State(app): State<App>, Path(id): Path<String>) -> Answer {
    let was_there = app.sessions.delete(&id).await?;
    Ok(Json(json!({ "ended": was_there })))
}

/// Both accounts or none; the database refuses a holder that comes too late.
async fn transfer(State(app): State<App>, Json(request): Json<Transfer>) -> Answer {
    let names = [format!("account:{}", request.from), format!("account:{}", request.to)];
    let refused =
        |error: cachekeeper_client::LockError| Failed::Told(StatusCode::CONFLICT, error.to_string());
    let guard = app.cache.locks().acquire_all(&names, LockOptions::default()).await.map_err(refused)?;
    let token = i64::try_from(guard.token()).unwrap_or(i64::MAX);
    let mut transaction = app.pool.begin().await?;
    for (account, change) in [(request.from, -request.amount), (request.to, request.amount)] {
        let sql = "update accounts set balance = balance + $2, fence = $3 where id = $1 and fence <= $3 and 0 <= balance + $2";
        let done = sqlx::query(sql).bind(account).bind(change).bind(token).execute(&mut *transaction).await?;
        if done.rows_affected() == 0 {
            let text = format!("account {account} does not exist or has too little, or somebody was faster");
            return Err(Failed::Told(StatusCode::CONFLICT, text));
        }
    }
    transaction.commit().await?;
    // Dropped, the guard would release as well; so the caller hears if it could not.
    guard.release().await.map_err(refused)?;
    Ok(Json(json!({ "moved": request.amount })))
}
