//! Load, store, warm, refresh, invalidate against real servers.

use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::invalidate;
use cachekeeper_protocol::event::Op;
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::support::Rig;

const PRODUCTS: &str = "
    create table products (id int primary key, name text, price_cents int, category_id int);
    insert into products select n, 'product ' || n, n * 10, n % 10 from generate_series(1, 1000) n;";

const DATASET: &str = r#"
    [dataset.product]
    query = "select id, name, price_cents, category_id from products"
    key = "product:{id}"
    tags = ["category:{category_id}"]
    format = "json"
    warm = {}
"#;

fn options() -> BackfillOptions {
    BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: true }
}

#[tokio::test]
async fn a_pass_fills_redis_and_events_are_applied() {
    let rig = Rig::start(PRODUCTS).await;
    let context = rig.context(DATASET);
    let dataset = context.catalog.get("product").unwrap().clone();
    let report = backfill(&context, &dataset, &options()).await.unwrap();
    assert_eq!((report.stored, report.failures.len()), (1000, 0));
    let mut client = rig.client().await;
    let value: String = client.get("product:42").await.unwrap();
    assert_eq!(value, r#"{"id":42,"name":"product 42","price_cents":420,"category_id":2}"#);

    rig.postgres
        .execute("update products set price_cents = 1 where id = 42; delete from products where id = 43")
        .await
        .unwrap();
    let keys =
        ["product:42".to_owned(), "product:43".to_owned(), "product:44".to_owned(), "other".to_owned()];
    let _: () = client.set("other", 1).await.unwrap();
    let report = invalidate::keys(&context, &keys, None).await.unwrap();
    assert_eq!((report.stored, report.gone, report.invalidated), (2, 1, 1));
    let value: String = client.get("product:42").await.unwrap();
    assert!(value.contains("\"price_cents\":1,"), "{value}");
    let left: bool = client.exists("product:43").await.unwrap();
    assert!(!left);

    rig.postgres.execute("update products set name = 'new' where category_id = 7").await.unwrap();
    let report = invalidate::tags(&context, &["category:7".to_owned()], None).await.unwrap();
    assert_eq!(report.stored, 100);
    let value: String = client.get("product:17").await.unwrap();
    assert!(value.contains("\"name\":\"new\""), "{value}");
    let report = invalidate::tags(&context, &["category:7".to_owned()], Some(Op::Delete)).await.unwrap();
    assert_eq!(report.invalidated, 100);
    let left: bool = client.exists("product:17").await.unwrap();
    assert!(!left);
    let report = invalidate::tags(&context, &["category:7".to_owned()], Some(Op::Delete)).await.unwrap();
    assert_eq!(report.invalidated, 0, "members that were deleted have left the tag");
}
