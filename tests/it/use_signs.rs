//! What counts as use of an entry: reads of applications do, whoever only looks does not. So entries that nobody reads expire
//! (refresh-ahead), although the audit looks at everything.

use cachekeeper_engine::audit::{Comparison, Extent, compare};
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::context::Context;
use cachekeeper_protocol::entry::Shape;
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::support::{Cli, Rig, wait_until};

const DATASET: &str = r#"
    [dataset.t]
    query = "select id, name from t"
    key = "t:{id}"
    format = "json"
    ttl = "1h"
    refresh = { ahead = "20%" }
    warm = { limit = 1000, order_by = "id" }
"#;

/// Seconds since the last use; an age below which no use can be told from the load.
const AGED: u64 = 4;

async fn filled(dataset: &str) -> (Rig, Context) {
    let rig = Rig::start(
        "create table t (id int primary key, name text);
         insert into t select n, 'name ' || n from generate_series(1, 20) n;",
    )
    .await;
    let context = rig.context(dataset);
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    backfill(&context, context.catalog.get("t").unwrap(), &options).await.unwrap();
    // Each of them: the clock may tick between two that one script stores.
    for id in 1..=20 {
        wait_until("the entry has an age", async || {
            let idle = idle(&rig, &format!("t:{id}")).await;
            if AGED <= idle { Ok(()) } else { Err(format!("{idle} s")) }
        })
        .await;
    }
    (rig, context)
}

async fn idle(rig: &Rig, key: &str) -> u64 {
    redis::cmd("OBJECT").arg("IDLETIME").arg(key).query_async(&mut rig.client().await).await.unwrap()
}

async fn in_the_background(context: &Context) -> Comparison {
    let extent = Extent { sample: None, rate: Some(100_000) };
    compare(context, context.catalog.get("t").unwrap(), &extent).await.unwrap()
}

async fn is_new_enough(context: &Context) -> bool {
    let version = context.redis.facts().await.unwrap().version;
    let numbers: Vec<u32> = version.split('.').take(2).map(|part| part.parse().unwrap()).collect();
    (7, 2) <= (numbers[0], numbers[1])
}

#[tokio::test]
async fn an_audit_in_the_background_is_no_use_of_an_entry() {
    let (rig, context) = filled(DATASET).await;
    let _: String = rig.client().await.get("t:1").await.unwrap();
    let found = in_the_background(&context).await;
    assert!(found.is_clean(), "{found}");
    // Where Redis cannot tell a look from a use, only what was used anyway is looked at.
    let expected = if is_new_enough(&context).await { 20 } else { 1 };
    assert_eq!(found.checked, expected, "{found}");
    for id in 2..=20 {
        assert!(AGED <= idle(&rig, &format!("t:{id}")).await, "t:{id} looks used");
    }
}

/// Where nothing expires because it was not read, everything is audited all the same.
#[tokio::test]
async fn an_audit_leaves_out_nothing_where_use_does_not_matter() {
    for dataset in [
        DATASET.replace("refresh =", "# refresh ="),
        DATASET.replace("limit = 1000, order_by = \"id\"", "on_start = true"),
    ] {
        let (_rig, context) = filled(&dataset).await;
        assert_eq!(in_the_background(&context).await.checked, 20, "{dataset}");
    }
}

/// From Redis 7.2 on. Before it, whoever asks for it by hand uses the entry.
#[tokio::test]
async fn whoever_asks_by_hand_leaves_no_trace() {
    let (rig, context) = filled(DATASET).await;
    let can_look = context.redis.can_look_unnoticed().await.unwrap();
    assert_eq!(can_look, is_new_enough(&context).await);
    let cli = Cli::new(&rig, DATASET);
    cli.says(&["get", "t:2"], 0, &["name 2"]);
    let dataset = context.catalog.get("t").unwrap();
    let found = compare(&context, dataset, &Extent::default()).await.unwrap();
    assert_eq!((found.checked, found.right), (20, 20), "{found}");
    if can_look {
        assert!(AGED <= idle(&rig, "t:2").await);
        assert!(AGED <= idle(&rig, "t:3").await);
    } else {
        println!("needs Redis 7.2 or newer");
    }
    // What the same connection reads for an application is a use.
    context.redis.read(&["t:4"], Shape::String).await.unwrap();
    assert!(idle(&rig, "t:4").await < AGED);
}
