//! Databases of other encodings: what is no UTF-8 costs the entry that it is in, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cachekeeper_config::Config;
use cachekeeper_engine::audit::{Extent, compare, fix};
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::context::Context;
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::support::Rig;

const DATASET: &str = "
    [dataset.t]
    query = \"select id, name, 100 / (id - 1700) as share from t\"
    key = \"t:{id}\"
    format = \"json\"
    batch = 100
    warm = {}
    [dataset.named]
    query = \"select name, id from t\"
    key = \"named:{name}\"
    rows = \"many\"
    sort = \"id\"
    format = \"json\"
    warm = {}";

/// A context for another database of the server.
async fn context_of(rig: &Rig, database: &str) -> Context {
    let mut environment: BTreeMap<String, String> = rig.environment();
    environment.insert("CACHEKEEPER__POSTGRES__URL".to_owned(), rig.postgres.url_of(database));
    environment.insert("CACHEKEEPER__SERVICE__NAMESPACE".to_owned(), database.to_owned());
    let (config, _) = Config::load(Path::new("test.toml"), DATASET.to_owned(), &environment).unwrap();
    let context = Context::of_worker(&config).unwrap();
    context.postgres.migrate().await.unwrap();
    context
}

#[tokio::test]
async fn what_is_no_utf8_costs_its_own_entry() {
    let rig = Rig::start("").await;
    let mut client = rig.client().await;
    // In WIN1252 0x81 is nothing, and 0xE9 is é. SQL_ASCII takes any byte; 0xC3 0xA9 is é where somebody meant UTF-8.
    for (database, encoding, good, bad) in
        [("win", "WIN1252", "\\xe9", "\\x81"), ("ascii", "SQL_ASCII", "\\xc3a9", "\\xe9")]
    {
        let create =
            format!("create database {database} encoding '{encoding}' template template0 locale 'C'");
        rig.postgres.execute(&create).await.unwrap();
        let mut session =
            cachekeeper_testkit::servers::Session::open(&rig.postgres.url_of(database)).await.unwrap();
        session
            .execute(&format!(
                "create table t (id int primary key, name text);
                 insert into t select n, 'a' || n || convert_from(case when n in (7, 1500, 1501, 3000)
                 then '{bad}'::bytea else '{good}' end, '{encoding}') from generate_series(1, 3000) n"
            ))
            .await
            .unwrap();
        let context = context_of(&rig, database).await;
        let _: () = client.flushall().await.unwrap();
        // One that is there from before must go.
        let _: () = client.set("t:7", "old").await.unwrap();
        let options =
            BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
        let report = backfill(&context, context.catalog.get("t").unwrap(), &options).await.unwrap();
        // And the division by zero of 1700.
        assert_eq!(report.failures.len(), 5, "{encoding}: {:?}", report.failures);
        let keys: Vec<String> = client.keys("t:*").await.unwrap();
        assert_eq!(keys.len(), 2995, "{encoding}");
        let value: String = client.get("t:1600").await.unwrap();
        assert_eq!(value, "{\"id\":1600,\"name\":\"a1600é\",\"share\":-1}", "{encoding}");
        assert_eq!(client.get::<_, Option<String>>("t:7").await.unwrap(), None);
        // An audit goes past them too, and finds an entry that is still there.
        let dataset = context.catalog.get("t").unwrap();
        let found = compare(&context, dataset, &Extent::default()).await.unwrap();
        assert!(found.is_clean(), "{encoding}: {found}");
        assert_eq!((found.checked, found.right, found.unreadable.len()), (2995, 2995, 5), "{encoding}");
        assert!(found.unreadable.contains(&"t:1700".to_owned()), "{found}");
        let _: () = client.mset(&[("t:7", "old"), ("t:1700", "old")]).await.unwrap();
        let _: () = client.del("t:12").await.unwrap();
        let found = compare(&context, dataset, &Extent::default()).await.unwrap();
        let stale: BTreeSet<&str> = found.stale.iter().map(String::as_str).collect();
        assert_eq!(stale, BTreeSet::from(["t:1700", "t:7"]), "{encoding}: {found}");
        assert_eq!(found.missing, ["t:12"], "{encoding}: {found}");
        fix(&context, dataset, &found).await.unwrap();
        assert_eq!(client.get::<_, Option<String>>("t:7").await.unwrap(), None);
        // In the key itself.
        let report = backfill(&context, context.catalog.get("named").unwrap(), &options).await.unwrap();
        assert_eq!(report.failures.len(), 4, "{encoding}: {:?}", report.failures);
        let keys: Vec<String> = client.keys("named:*").await.unwrap();
        assert_eq!(keys.len(), 2996, "{encoding}");
        let found =
            compare(&context, context.catalog.get("named").unwrap(), &Extent::default()).await.unwrap();
        assert!(found.is_clean(), "{encoding}: {found}");
        assert_eq!(found.unreadable.len(), 4, "{encoding}: {found}");
    }
}
