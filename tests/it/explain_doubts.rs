//! What looks wrong and is not, what is too large to be shown, and what is said where a server does not answer: `explain` and the audit.

use cachekeeper_engine::audit::{Extent, compare};
use cachekeeper_engine::epoch;
use cachekeeper_engine::explain::{State, explain};
use cachekeeper_engine::stores::redis::Answer;
use cachekeeper_protocol::stamp::Stamp;
use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::explain::Shop;
use crate::support::wait_until;

const TABLES: &str = "
    create type colour as enum ('red', 'green');
    create table products (id int primary key, name text);
    insert into products select n, 'product ' || n from generate_series(1, 20) n;
    create table paints (colour colour primary key, litres int);
    insert into paints values ('red', 1);
    create table clocks (id int primary key, name text);
    insert into clocks values (1, 'a clock');
    create table hidden (id int primary key, name text);
    insert into hidden values (1, 'mine'), (2, 'theirs');
    alter table hidden enable row level security;
    create policy mine on hidden using (name = 'mine');";

const DATASETS: &str = r#"
    [invalidation]
    keys = ["named:*"]

    [dataset.product]
    query = "select id, name from products"
    key = "product:{id}"
    format = "json"
    warm = {}
    watch = [{ table = "products", key = { id = "id" } }]

    [dataset.paint]
    query = "select colour, litres from paints"
    key = "paint:{colour}"
    scope = "cached"
    watch = [{ table = "paints", key = { colour = "colour" } }]

    [dataset.clock]
    query = "select id, name, now() as at from clocks"
    key = "clock:{id}"
    warm = {}
    watch = [{ table = "clocks", key = { id = "id" } }]

    [dataset.hidden]
    query = "select id, name from hidden"
    key = "hidden:{id}"
    scope = "cached"
    watch = [{ table = "hidden", key = { id = "id" } }]
"#;

async fn shop() -> Shop {
    Shop::with(TABLES, DATASETS).await
}

/// The row flips from A to B and back; the entry is the B between. It was loaded after the row was read, which its slot tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_something_newer_has_touched_is_not_accused() {
    let shop = shop().await;
    let context = shop.rig.context(DATASETS);
    let dataset = context.catalog.get("product").unwrap();
    let mut client = shop.rig.client().await;
    shop.value_contains("product:7", "product 7").await;
    for key in ["product:7", "product:8"] {
        let _: () = client.set(key, r#"{"id":7,"name":"between"}"#).await.unwrap();
    }
    shop.explained("product:7", "wrong", "although the watermark has passed it").await;
    let state = epoch::ensure(&context, "").await.unwrap();
    let precondition = dataset.precondition(&state.epoch, &state.poll.incarnation);
    let far: u64 =
        state.poll.snapshot.as_str().split(':').nth(1).unwrap().parse::<u64>().unwrap() + 1_000_000;
    let newer = Stamp::new(far, 0).unwrap();
    let raised = context.redis.raise(&precondition, newer, &["product:7"], "").await.unwrap();
    assert!(matches!(raised, Answer::Done(_)), "{raised:?}");
    shop.explained("product:7", "unknown", "changes just now").await;
    shop.explained("product:8", "wrong", "although the watermark has passed it").await;
    let found = compare(&context, dataset, &Extent::default()).await.unwrap();
    assert_eq!(
        (found.stale.as_slice(), found.unsure.as_slice()),
        (&["product:8".to_owned()][..], &["product:7".to_owned()][..])
    );
    // And as it happens: nothing is ever accused while a row flips.
    let _: () = client.del("product:8").await.unwrap();
    let mut writer = shop.rig.postgres.session().await.unwrap();
    let flipping = tokio::spawn(async move {
        loop {
            for name in ["A", "B"] {
                writer.execute(&format!("update products set name = '{name}' where id = 9")).await.unwrap();
            }
        }
    });
    for _ in 0..20 {
        let explained = explain(&context, "product:9").await.unwrap();
        assert_ne!(explained.verdict.state, State::Wrong, "{explained:#?}");
    }
    let found = compare(&context, dataset, &Extent::default()).await.unwrap();
    flipping.abort();
    assert_eq!(found.stale, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_large_or_foreign_is_not_shown_and_judged_all_the_same() {
    let shop = shop().await;
    let mut client = shop.rig.client().await;
    for key in ["named:1", "secret:1"] {
        let _: () = client.set(key, "x".repeat(5_000_000)).await.unwrap();
    }
    let named = shop.explained("named:1", "foreign", "belongs to no dataset").await;
    assert_eq!(named["entry"]["value"].as_str().unwrap().len(), (64 << 10) + "…".len());
    let secret = shop.explained("secret:1", "foreign", "belongs to no dataset").await;
    assert_eq!((&secret["entry"]["value"], &secret["entry"]["bytes"]), (&Value::Null, &json!(5_000_000)));
    assert!(secret["entry"]["undecodable"].as_str().unwrap().contains("[invalidation] keys"), "{secret:#}");
    let _: () = client.rpush("named:2", 1).await.unwrap();
    let list = shop.explained("named:2", "foreign", "").await;
    assert_eq!((&list["entry"]["kind"], &list["entry"]["value"]), (&json!("list"), &Value::Null));
    let _: () = client.set("named:3", "hello\u{1b}[2J").await.unwrap();
    let text = shop.cli.says(&["explain", "named:3"], 0, &["hello\\u001b[2J"]);
    assert!(!text.contains('\u{1b}'), "{text:?}");
    // A row of 2 MiB is compared, and not shown.
    shop.rig.postgres.execute("update products set name = repeat('x', 2097152) where id = 3").await.unwrap();
    let client = shop.rig.client().await;
    wait_until("the large value is there", async || {
        let length: usize = client.clone().strlen("product:3").await.unwrap();
        if 2_000_000 < length { Ok(()) } else { Err(length.to_string()) }
    })
    .await;
    let large = shop.explained("product:3", "right", "is what Postgres says now").await;
    assert!(large["entry"]["value"].is_null() && large["row"]["not_shown"].is_string());
    // The same contents in other bytes, and other contents.
    let mut client = client;
    let _: () = client.set("product:4", r#"{"name": "product 4", "id": 4}"#).await.unwrap();
    shop.explained("product:4", "right", "in other bytes").await;
    // A null that this dataset does not remember.
    let _: () = client.set("product:99", "null").await.unwrap();
    shop.explained("product:99", "wrong", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_fault_is_not_called_one() {
    let shop = shop().await;
    shop.explained(
        "paint:bogus",
        "absent",
        "no value of colour, the type of colour: no row can have this key",
    )
    .await;
    shop.explained("paint:green", "absent", "There is no row, and no entry").await;
    shop.explained("paint:red", "absent", "Only the library fills it").await;
    shop.explained("product:seven", "foreign", "no row can have this key").await;
    shop.value_contains("clock:1", "a clock").await;
    shop.cli.says(&["explain", "clock:1"], 0, &["the query depends on now"]);
    let context = shop.rig.context(DATASETS);
    let found = compare(&context, context.catalog.get("clock").unwrap(), &Extent::default()).await.unwrap();
    assert!(found.is_clean() && found.clock == ["clock:1"], "{found}");
    // A role that row security hides a row from.
    shop.rig.postgres.execute("create role limited login; grant select on hidden to limited").await.unwrap();
    shop.cli.says(&["migrate", "--grant", "limited", "--yes"], 0, &[]);
    let limited = crate::support::Cli::new(&shop.rig, DATASETS)
        .with("CACHEKEEPER__POSTGRES__URL", &shop.rig.postgres.url_as("limited"))
        .with("CACHEKEEPER__ADMIN__LISTEN", &format!("127.0.0.1:{}", shop.port));
    limited.says(&["explain", "hidden:2"], 0, &["The role sees no row; row security decides"]);
    // Whoever listens there may be of another installation.
    let other = limited.with("CACHEKEEPER__SERVICE__NAMESPACE", "other");
    other.says(
        &["explain", "hidden:2"],
        0,
        &["another installation's worker answers there (namespace test)"],
    );
    shop.cli.says(&["explain", "product:98"], 0, &["filled (backfill): "]);
}

/// What only renders has turns of its own, and whoever asks why is not kept waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_server_is_silent_explain_says_so_and_metrics_are_answered() {
    let mut shop = shop().await;
    shop.value_contains("product:7", "product 7").await;
    shop.rig.postgres.pause();
    let asking = async {
        futures_util::future::join_all((0..12).map(|_| shop.ask("GET", "/api/v1/explain?key=product:7", "")))
            .await
    };
    let metrics = async {
        let mut codes = Vec::new();
        for path in ["/metrics", "/api/v1/now", "/api/v1/machine", "/metrics"] {
            codes.push(shop.ask("GET", path, "").await.0);
        }
        codes
    };
    let (explained, codes) = tokio::join!(asking, metrics);
    shop.rig.postgres.resume();
    assert_eq!(codes, [200; 4]);
    for (code, answer) in explained {
        let is_told = answer["verdict"]["sentence"].as_str().is_some_and(|told| told.contains("postgres"));
        assert!(
            code == 503 || code == 200 && answer["verdict"]["state"] == "unknown" && is_told,
            "{code} {answer:#}"
        );
    }
    shop.worker.take().unwrap().stop().await;
    shop.rig.postgres.kill();
    let text = shop.cli.says(&["explain", "product:7"], 69, &["Postgres cannot be asked"]);
    assert!(!text.contains("(missing) in Postgres"), "{text}");
}
