//! The example application, asked over HTTP as its user would.

#[path = "../../examples/shop/app.rs"]
mod app;

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use cachekeeper::app::Worker;
use cachekeeper_client::Cache;
use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;
use tower::ServiceExt;

use crate::support::{Rig, wait_until};

async fn ask(router: &axum::Router, method: &str, path: &str, body: Option<Value>) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    let response = router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[tokio::test]
async fn the_shop_serves_products_reviews_stock_sessions_and_transfers() {
    let mut rig = Rig::start(app::SCHEMA).await;
    let config = rig.config(app::CONFIG);
    let worker = Worker::start(config.clone()).await.unwrap();
    let cache = Cache::open(&config).unwrap().build();
    let pool = PgPoolOptions::new().connect(&rig.postgres.url()).await.unwrap();
    let shop = app::router(app::App::new(cache.clone(), pool).unwrap());

    let (status, product) = ask(&shop, "GET", "/products/7", None).await;
    assert_eq!((status, &product["price_cents"]), (StatusCode::OK, &json!(700)));
    assert_eq!(ask(&shop, "GET", "/products/7777", None).await.0, StatusCode::NOT_FOUND);
    let (_, page) = ask(&shop, "GET", "/pages/7", None).await;
    assert_eq!(page["reviews"].as_array().map(Vec::len), Some(3));
    let price = json!({ "price_cents": 1999 });
    assert_eq!(ask(&shop, "PUT", "/products/7/price", Some(price)).await.0, StatusCode::OK);
    wait_until("the new price shows", async || {
        let (_, product) = ask(&shop, "GET", "/products/7", None).await;
        if product["price_cents"] == 1999 { Ok(()) } else { Err(product.to_string()) }
    })
    .await;

    let session = json!({ "user": "ada", "basket": [7] });
    ask(&shop, "PUT", "/sessions/a", Some(session.clone())).await;
    assert_eq!(ask(&shop, "GET", "/sessions/a", None).await, (StatusCode::OK, session));
    assert_eq!(cache.invalidate_tags(&["user:ada"]).await.unwrap(), 1);
    assert_eq!(ask(&shop, "GET", "/sessions/a", None).await.0, StatusCode::NOT_FOUND);

    // Many at once between the same two accounts, in both directions: nothing is lost, nothing is made.
    let transfers = (0..20).map(|n| {
        let (from, to) = if n % 2 == 0 { (1, 2) } else { (2, 1) };
        let shop = shop.clone();
        async move {
            ask(&shop, "POST", "/transfers", Some(json!({ "from": from, "to": to, "amount": 10 + n }))).await
        }
    });
    for (status, body) in futures_util::future::join_all(transfers).await {
        assert_eq!(status, StatusCode::OK, "{body}");
    }
    let mut database = rig.postgres.session().await.unwrap();
    let sum = database.text("select sum(balance)::text from accounts").await.unwrap();
    assert_eq!(sum.as_deref(), Some("10000"));
    let (status, refused) =
        ask(&shop, "POST", "/transfers", Some(json!({ "from": 1, "to": 2, "amount": 5000 }))).await;
    assert_eq!(status, StatusCode::CONFLICT, "{refused}");

    assert_eq!(ask(&shop, "GET", "/stock/7", None).await.1, json!({ "product": 7, "pieces": 7 }));
    worker.stop().await;
    // The database is gone: what Redis has is served, and stock figures although they are old.
    rig.postgres.kill();
    let mut client = rig.client().await;
    let _: () = redis::cmd("PEXPIRE").arg("stock:7").arg(3_500_000).query_async(&mut client).await.unwrap();
    let began = tokio::time::Instant::now();
    assert_eq!(ask(&shop, "GET", "/stock/7", None).await.0, StatusCode::OK);
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(ask(&shop, "GET", "/products/7", None).await.0, StatusCode::OK);
}
