//! Which dataset a key belongs to, and so how its bytes are read: by the template that it has, not by how it begins.

use std::collections::BTreeMap;
use std::time::Duration;

use cachekeeper_client::{Cache, ClientError};
use cachekeeper_engine::epoch;

use crate::support::Rig;

const HOUR: Duration = Duration::from_secs(3600);

const TABLES: &str = "
    create table products (id int primary key, name text);
    insert into products select n, 'product ' || n from generate_series(1, 9) n;
    create table reviews (product_id int primary key, body text);
    insert into reviews select n, 'review ' || n from generate_series(1, 9) n;";

/// In both orders, because the first one that begins alike must not win.
const PRODUCT: &str = r#"
[dataset.product]
query = "select id, name from products"
key = "product:{id}"
format = "json"
"#;
const REVIEWS: &str = r#"
[dataset.reviews]
query = "select product_id, body from reviews"
key = "product:{product_id}:reviews"
format = "msgpack"
"#;

type Row = BTreeMap<String, serde_json::Value>;

async fn rig() -> Rig {
    let rig = Rig::start(TABLES).await;
    let context = rig.context("");
    epoch::ensure(&context, "").await.unwrap();
    rig
}

#[tokio::test]
async fn e2_datasets_that_begin_alike_are_read_each_in_its_own_format() {
    let rig = rig().await;
    for toml in [format!("{PRODUCT}{REVIEWS}"), format!("{REVIEWS}{PRODUCT}")] {
        let cache = Cache::over(rig.context(&toml)).build();
        let (products, reviews) = (cache.dataset("product").unwrap(), cache.dataset("reviews").unwrap());
        for _cold_then_cached in 0..2 {
            let product: Row = products.get(&["7"]).await.unwrap().unwrap();
            assert_eq!(product["name"], "product 7");
            let review: Row = reviews.get(&["7"]).await.unwrap().unwrap();
            assert_eq!(review["body"], "review 7");
        }
        // A process that has not asked Postgres about either dataset yet, and reads by key.
        let fresh = Cache::over(rig.context(&toml)).build();
        assert_eq!(fresh.get::<Row>("product:7").await.unwrap().unwrap()["name"], "product 7");
        assert_eq!(fresh.get::<Row>("product:7:reviews").await.unwrap().unwrap()["body"], "review 7");
        let metrics = fresh.render_metrics().unwrap();
        for dataset in ["product", "reviews"] {
            let line = format!(r#"reads_total{{dataset="{dataset}",outcome="hit"}} 1"#);
            assert!(metrics.contains(&line), "{line}: {metrics}");
        }
        cache.delete_many(&["product:7", "product:7:reviews"]).await.unwrap();
    }
}

#[tokio::test]
async fn e2_a_key_that_only_begins_like_a_datasets_is_the_applications_own() {
    let rig = rig().await;
    // By the key's type, which this process has not asked Postgres about yet.
    let cache = Cache::over(rig.context(PRODUCT)).build();
    let keys = ["product:7:page", "product:top", "product:", "products:7", "product"];
    for key in keys {
        cache.set(key, "own", HOUR).await.unwrap_or_else(|error| panic!("{key}: {error}"));
        // MessagePack, as the application's own values are.
        assert_eq!(cache.get_bytes(key).await.unwrap().unwrap(), b"\xa3own", "{key}");
        assert_eq!(cache.get::<String>(key).await.unwrap().as_deref(), Some("own"), "{key}");
        let load = async || Ok::<_, ClientError>(Some("loaded".to_owned()));
        cache.delete(key).await.unwrap();
        let policy = cachekeeper_client::Policy::ttl(HOUR);
        cache.get_or_load::<String, _, _, _, _>(key, &policy, load).await.unwrap();
        assert_eq!(cache.get_bytes(key).await.unwrap().unwrap(), b"\xa6loaded", "{key}");
    }
    for key in ["product:7", "product:-1"] {
        assert!(matches!(cache.set(key, "x", HOUR).await, Err(ClientError::OfDataset { .. })), "{key}");
    }
}

/// Two processes, of which one only reads: what they know of the database must not decide in which format they read.
#[tokio::test]
async fn e2_a_process_that_only_reads_takes_the_applications_own_keys_for_its_own() {
    let rig = rig().await;
    let writer = Cache::over(rig.context(PRODUCT)).build();
    let policy = cachekeeper_client::Policy::ttl(HOUR);
    for key in ["product:7:page", "product:top"] {
        writer.set(key, "own", HOUR).await.unwrap();
        let fresh = || Cache::over(rig.context(PRODUCT)).build();
        assert_eq!(fresh().get::<String>(key).await.unwrap().as_deref(), Some("own"), "{key}");
        assert_eq!(fresh().get_many::<String>(&[key]).await.unwrap(), [Some("own".to_owned())], "{key}");
        let reader = fresh();
        let mut batch = reader.batch();
        let handle = batch.get::<String>(key).unwrap();
        assert_eq!(batch.run().await.unwrap().value(&handle).unwrap().as_deref(), Some("own"), "{key}");
        let never = async || -> Result<Option<String>, ClientError> { panic!("it is there") };
        assert_eq!(
            fresh().get_or_load::<String, _, _, _, _>(key, &policy, never).await.unwrap().as_deref(),
            Some("own"),
            "{key}"
        );
    }
    // A query that is described anew, because its table changed, changes no key's owner meanwhile.
    let reader = Cache::over(rig.context(PRODUCT)).build();
    assert_eq!(reader.get::<String>("product:top").await.unwrap().as_deref(), Some("own"));
    rig.postgres.execute("alter table products alter column name type varchar(400)").await.unwrap();
    drop(reader.dataset("product").unwrap().get::<Row>(&["3"]).await);
    assert_eq!(reader.get::<String>("product:top").await.unwrap().as_deref(), Some("own"));
}

#[tokio::test]
async fn e2_an_event_names_the_dataset_that_its_key_has_also_before_postgres_was_asked() {
    let rig = rig().await;
    for toml in [format!("{PRODUCT}{REVIEWS}"), format!("{REVIEWS}{PRODUCT}")] {
        let context = rig.context(&toml);
        for (key, dataset) in
            [("product:7", "product"), ("product:7:reviews", "reviews"), ("product:7:reviews:", "product")]
        {
            let owner = context.catalog.of_key(key).map(|(dataset, _)| dataset.name().to_owned());
            assert_eq!(owner.as_deref(), Some(dataset), "{key}");
        }
        for dataset in context.catalog.iter() {
            dataset.source(&context.postgres).await.unwrap();
        }
        assert!(context.catalog.of_key("product:7:reviews:").is_none());
        assert!(context.catalog.of_key("product:x").is_none());
    }
}
