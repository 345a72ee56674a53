//! What a row itself decides: whether it is small enough to have an entry, how long that lives, and the tags of a list.

use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_engine::audit::{Extent, compare};
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::backlog::memory_of;
use crate::feed::ready;
use crate::support::{Cli, Rig, wait_until};

async fn wait_for(client: &mut redis::aio::MultiplexedConnection, key: &str, wanted: Option<&str>) {
    wait_until(&format!("{key} is {wanted:?}"), async || {
        let found: Option<String> = client.clone().get(key).await.map_err(|error| error.to_string())?;
        if found.as_deref() == wanted {
            Ok(())
        } else {
            Err(format!("{found:?}").chars().take(200).collect())
        }
    })
    .await;
}

/// Of which nothing is left behind: no entry, no memory, nobody who waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_too_large_is_refused_listed_and_not_even_read() {
    let rig = Rig::start(
        "create table pages (id int primary key, body text, raw bytea, doc jsonb);
         insert into pages select n, 'body ' || n from generate_series(1, 20) n;
         -- Not compressed, so that it is as large where it lies.
         alter table pages alter body set storage external;
         update pages set body = repeat('x', 300 << 20) where id = 7",
    )
    .await;
    let toml = "[dataset.page]\nquery = \"select id, body, raw, doc from pages\"\nkey = \"page:{id}\"\nformat = \"json\"\n\
                max_value_size = \"1MiB\"\nwarm = {}\nwatch = [{ table = \"pages\", key = { id = \"id\" } }]\n";
    let worker = Worker::start(rig.config(toml)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    let keys: Vec<String> = client.keys("page:*").await.unwrap();
    assert_eq!((keys.len(), keys.contains(&"page:7".to_owned())), (19, false));
    let memory = memory_of(std::process::id());
    assert!(memory < 200, "{memory} MiB, with a row of 300 MiB");

    // By the feed, at the edge, and back.
    rig.postgres.execute("update pages set body = repeat('y', 2 << 20) where id = 3").await.unwrap();
    wait_for(&mut client, "page:3", None).await;
    rig.postgres
        .execute("update pages set raw = decode(repeat('ab', 2 << 20), 'hex'), body = '' where id = 4")
        .await
        .unwrap();
    wait_for(&mut client, "page:4", None).await;
    // Compressed where it lies.
    rig.postgres.execute("update pages set doc = to_jsonb(repeat('z', 2 << 20)) where id = 5").await.unwrap();
    wait_for(&mut client, "page:5", None).await;
    rig.postgres.execute("update pages set body = 'small again' where id = 3").await.unwrap();
    let small = r#"{"id":3,"body":"small again","raw":null,"doc":null}"#;
    wait_for(&mut client, "page:3", Some(small)).await;

    let reason = |key: &str| {
        let refused = worker.context.history.as_ref().unwrap().refused_rows("page");
        refused.rows.into_iter().find(|row| row.key == key).map(|row| row.reason)
    };
    assert_eq!(
        reason("page:7").as_deref(),
        Some("the row has 314572800 bytes or more, and max_value_size is 1048576"),
        "it says how large"
    );
    assert!(reason("page:4").unwrap().contains("2097152 bytes"), "{:?}", reason("page:4"));
    assert!(reason("page:5").unwrap().contains("max_value_size is 1048576"), "{:?}", reason("page:5"));
    assert_eq!(reason("page:3"), None, "it has an entry again");
    assert!(worker.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_too_long_and_lists_that_grow_too_large_are_refused() {
    let rig = Rig::start(
        "create table words (word text primary key, kind text, more text);
         insert into words values (repeat('k', 100), 'a', 'x'), ('short', 'a', 'x');
         insert into words select 'w' || n, 'list', repeat('m', 1000) from generate_series(1, 2000) n",
    )
    .await;
    let toml = "[dataset.word]\nquery = \"select word, more from words where kind = 'a'\"\nkey = \"word:{word}\"\nformat = \"json\"\n\
                max_key_size = \"64B\"\nwarm = {}\nwatch = [{ table = \"words\", key = { word = \"word\" } }]\n\
                [dataset.kind]\nquery = \"select kind, more from words\"\nkey = \"kind:{kind}\"\nformat = \"json\"\nrows = \"many\"\n\
                max_value_size = \"1MiB\"\nwarm = {}\nwatch = [{ table = \"words\", key = { kind = \"kind\" } }]\n";
    let worker = Worker::start(rig.config(toml)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    let mut keys: Vec<String> = client.keys("*:*").await.unwrap();
    keys.retain(|key| key.starts_with("word:") || key.starts_with("kind:"));
    keys.sort();
    assert_eq!(keys, ["kind:a", "word:short"]);
    let history = worker.context.history.as_ref().unwrap();
    let [long] = history.refused_rows("word").rows.try_into().unwrap();
    assert!(long.reason.contains("the key has 105 bytes, and max_key_size is 64"), "{}", long.reason);
    let [list] = history.refused_rows("kind").rows.try_into().unwrap();
    assert!(list.reason.contains("max_value_size is 1048576"), "{}", list.reason);
    assert!(worker.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_says_how_long_an_entry_lives() {
    let rig = Rig::start(
        "create table offers (id int primary key, ends timestamptz, span interval, seconds numeric);
         insert into offers values
            (1, now() + interval '100 s', '100 s', 100), (2, null, null, null), (3, now() - interval '1 s', '-1 s', -1),
            (4, 'infinity', '10 years', 'NaN'), (5, '-infinity', '0', 0), (6, now() + interval '10 years', '1 year', 1e30)",
    )
    .await;
    let dataset = |name: &str, column: &str| {
        format!(
            "[dataset.{name}]\nquery = \"select id, {column} from offers\"\nkey = \"{name}:{{id}}\"\nttl = \"1000s\"\n\
             ttl_column = \"{column}\"\nwarm = {{}}\nwatch = [{{ table = \"offers\", key = {{ id = \"id\" }} }}]\n"
        )
    };
    let toml = [dataset("ends", "ends"), dataset("span", "span"), dataset("seconds", "seconds")].concat();
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    for name in ["ends", "span", "seconds"] {
        let mut lives: Vec<i64> = Vec::new();
        for id in 1..=6 {
            lives.push(client.pttl(format!("{name}:{id}")).await.unwrap());
        }
        let [own, null, past, endless, least, clamped] = lives.try_into().unwrap();
        assert!((1..=100_000).contains(&own), "{name}: {own}");
        for whole in [null, endless, clamped] {
            assert!((100_001..=1_000_000).contains(&whole), "{name}: {whole} is as long as `ttl`");
        }
        assert_eq!((past, least), (-2, -2), "{name}: what has ended has no entry");
        let audit =
            compare(&worker.context, worker.context.catalog.get(name).unwrap(), &Extent::default()).await;
        assert!(audit.as_ref().unwrap().is_clean(), "{name}: {}", audit.unwrap());
    }
    // A change moves the end, also to now.
    rig.postgres.execute("update offers set seconds = 500, ends = now() where id = 1").await.unwrap();
    wait_until("the lifetimes are the new ones", async || {
        let (seconds, ends): (i64, i64) =
            (client.clone().pttl("seconds:1").await.unwrap(), client.clone().pttl("ends:1").await.unwrap());
        if 100_000 < seconds && ends == -2 { Ok(()) } else { Err(format!("{seconds} {ends}")) }
    })
    .await;
    let cli = Cli::new(&rig, &toml);
    cli.says(
        &["explain", "ends:3"],
        0,
        &["The life of its row has ended (`ttl_column`: ends), and no entry: both agree."],
    );
    cli.says(&["explain", "ends:99"], 0, &["There is no row, and no entry: both agree."]);
    let lifetimes = "as seconds says, 1000s at most: in the sample 500s to 1000s, half at most 1000s; of 2 more the life has ended";
    cli.says(&["plan", "seconds"], 0, &[lifetimes]);
    assert!(worker.stop().await);
}

/// Nothing keeps what the column lets end, and what is no lifetime is refused.
#[tokio::test]
async fn a_lifetime_of_a_column_excludes_what_would_keep_the_entry() {
    let rig = Rig::start("create table offers (id int primary key, name text, at timestamp)").await;
    let dataset = |more: &str| {
        format!("[dataset.offer]\nquery = \"select * from offers\"\nkey = \"offer:{{id}}\"\n{more}\n")
    };
    let refused = [
        (
            "ttl_column = \"at\"\nrefresh = { ahead = \"20%\" }",
            "`refresh` and `ttl_column` exclude each other",
        ),
        ("ttl_column = \"at\"\nttl_jitter = \"5%\"", "`ttl_jitter` would shorten what `ttl_column` says"),
        ("ttl_column = \"at\"\nmax_stale = \"5m\"", "`max_stale` would keep what `ttl_column` lets end"),
        ("max_value_size = \"1GiB\"", "give 1KiB to 512MiB"),
        ("max_key_size = \"1B\"", "give 16B to 64KiB"),
        ("ttl_column = \"no\"", "columns: id, name, at"),
        ("ttl_column = \"name\"", "column name has the type text, which says no lifetime"),
        ("ttl_column = \"at\"", "a timestamptz at which the entry ends"),
    ];
    for (more, expected) in refused {
        let (_, said) = Cli::new(&rig, &dataset(more)).run(&["check"]);
        assert!(said.contains(expected), "{more}: {said}");
    }
    let config = rig.config(&dataset("ttl_column = \"at\""));
    assert_eq!(config.datasets.first().unwrap().max_stale, Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_gives_its_entry_a_tag_for_each_element() {
    let rig = Rig::start(
        "create type color as enum ('red', 'blue');
         create table products (id int primary key, name text, shops int[], colors color[]);
         create table shops (id int primary key, name text);
         insert into shops select n, 'shop ' || n from generate_series(1, 5) n;
         insert into products values
            (1, 'one', '{1,2}', '{red}'), (2, 'two', '{{2,3},{3,null}}', null), (3, 'three', '{}', '{red,blue}'), (4, 'four', null, '{}')",
    )
    .await;
    let toml = "[dataset.product]\nquery = \"select id, name, shops, colors, (select string_agg(s.name, ',' order by s.id) from shops s where s.id = any(shops)) as names from products\"\n\
                key = \"product:{id}\"\nformat = \"json\"\nwarm = {}\ntags = [\"shop:{shops}\", \"color:{colors}:{name}\"]\n\
                watch = [{ table = \"products\", key = { id = \"id\" } }, { table = \"shops\", tag = \"shop:{id}\" }]\n";
    let worker = Worker::start(rig.config(toml)).await.unwrap();
    let cli = Cli::new(&rig, toml);
    assert_eq!(cli.run(&["check"]).0, 0);
    // The column itself has the text of the whole list, which is no tag.
    let wrong = toml.replace("watch = [", "watch = [{ table = \"products\", tag = \"shop:{shops}\" }, ");
    Cli::new(&rig, &wrong).says(&["check"], 78, &["of a list, the text of the whole is captured"]);
    ready(&worker).await;
    let dataset = worker.context.catalog.get("product").unwrap();
    let tags = |key: &str| {
        let said = cli.json(&["explain", key]);
        let mut tags: Vec<String> = serde_json::from_value(said["row"]["tags"].clone()).unwrap_or_default();
        tags.sort();
        tags
    };
    assert_eq!(tags("product:1"), ["color:red:one", "shop:1", "shop:2"]);
    assert_eq!(tags("product:2"), ["shop:2", "shop:3"]);
    assert_eq!(tags("product:3"), ["color:blue:three", "color:red:three"]);
    assert_eq!(tags("product:4"), Vec::<String>::new());
    // A change of a shop reaches the products that name it, also after they have changed.
    let mut client = rig.client().await;
    rig.postgres.execute("update products set shops = '{5}' where id = 4; update shops set name = 'new' where id in (3, 5)").await.unwrap();
    for (key, names) in [("product:2", "shop 2,new"), ("product:4", "new")] {
        wait_until("the names are the new ones", async || {
            let found: Option<String> = client.clone().get(key).await.unwrap();
            let found = found.unwrap_or_default();
            if found.contains(&format!("\"names\":\"{names}\"")) { Ok(()) } else { Err(found) }
        })
        .await;
    }
    let audit = compare(&worker.context, dataset, &Extent::default()).await.unwrap();
    assert!(audit.is_clean(), "{audit}");
    cli.says(&["plan", "product"], 0, &["tags"]);

    // Too many are a refusal of that row.
    rig.postgres
        .execute("update products set shops = array(select generate_series(1, 1001)) where id = 1")
        .await
        .unwrap();
    wait_for(&mut client, "product:1", None).await;
    assert!(worker.stop().await);
}

/// Each below the limit, and together far above it; a list of short texts; a document that is small where it is stored.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_large_in_all_are_not_read_either() {
    let columns: Vec<String> = (1..=8).map(|n| format!("c{n} bytea")).collect();
    let rig = Rig::start(&format!(
        "create table wide (id int primary key, short varchar(20)[], doc jsonb, numbers jsonb, {});
         insert into wide (id, c1) values (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd');
         update wide set short = array_fill('twenty characters...'::varchar, array[3000000]) where id = 2;
         update wide set doc = to_jsonb(repeat('z', 100 << 20)) where id = 3;
         update wide set numbers = (select jsonb_agg(n % 9) from generate_series(1, 100000) n) where id = 4",
        columns.join(", ")
    ))
    .await;
    for n in 1..=8 {
        let fill = format!("update wide set c{n} = decode(repeat('ab', 30 << 20), 'hex') where id = 1");
        rig.postgres.execute(&fill).await.unwrap();
    }
    let toml = "[dataset.wide]\nquery = \"select * from wide\"\nkey = \"wide:{id}\"\nmax_value_size = \"32MiB\"\nwarm = {}\n\
                watch = [{ table = \"wide\", key = { id = \"id\" } }]\n\
                [dataset.number]\nquery = \"select id, numbers from wide where id = 4\"\nkey = \"number:{id}\"\n\
                max_value_size = \"200KiB\"\nwarm = {}\nwatch = [{ table = \"wide\", key = { id = \"id\" } }]\n";
    let worker = Worker::start(rig.config(toml)).await.unwrap();
    ready(&worker).await;
    let memory = memory_of(std::process::id());
    assert!(memory < 300, "{memory} MiB, with a row of 240, one of 60 and one of 100 MiB");
    let refused = worker.context.history.as_ref().unwrap().refused_rows("wide");
    let keys: Vec<&str> = refused.rows.iter().map(|row| row.key.as_str()).collect();
    assert_eq!(keys, ["wide:1", "wide:2", "wide:3"], "{:?}", refused.rows);
    // Larger where it is stored (2 MB) than as MessagePack (100 KB).
    assert!(rig.client().await.exists::<_, bool>("number:4").await.unwrap());
    assert!(worker.stop().await);
}

/// Entries that were stored before the column counted, and rows that wait until they are stored.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_lives_longer_than_its_column_says_however_it_came() {
    let rig = Rig::start(
        "create table offers (id int primary key, ends timestamptz);
         insert into offers select n, now() + interval '1 day' from generate_series(1, 10) n",
    )
    .await;
    let toml = "[dataset.offer]\nquery = \"select id, ends from offers\"\nkey = \"offer:{id}\"\nttl = \"7d\"\nwarm = {}\n\
                watch = [{ table = \"offers\", key = { id = \"id\" } }]\n";
    let worker = Worker::start(rig.config(toml)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    assert!(90_000_000 < client.pttl::<_, i64>("offer:1").await.unwrap());
    assert!(worker.stop().await);
    let column = toml.replace("warm = {}", "ttl_column = \"ends\"\nwarm = { on_start = false }");
    let worker = Worker::start(rig.config(&column)).await.unwrap();
    wait_until("the entries end with their rows", async || {
        let left: i64 = client.clone().pttl("offer:1").await.unwrap();
        if left <= 86_400_000 { Ok(()) } else { Err(left.to_string()) }
    })
    .await;
    // At one row in a second, the last is stored after it has ended.
    rig.postgres.execute("update offers set ends = now() + interval '2 s'").await.unwrap();
    let context = rig.context(&column.replace("on_start = false", "rate = 2"));
    let dataset = context.catalog.get("offer").unwrap();
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: Some(2), progress: None, resume: false };
    backfill(&context, dataset, &options).await.unwrap();
    let mut session = rig.postgres.session().await.unwrap();
    let left = "select (extract(epoch from max(ends) - clock_timestamp()) * 1000)::int8::text from offers";
    let left: i64 = session.text(left).await.unwrap().unwrap().parse().unwrap();
    let mut longest = -2_i64;
    for id in 1..=10 {
        longest = longest.max(client.pttl(format!("offer:{id}")).await.unwrap());
    }
    assert!(longest <= left.max(-2) + 500, "{longest} ms left, and {left} to the end");
    assert!(worker.stop().await);
}

/// What is computed has no scale and no length of its own; an empty text is a tag like others.
#[tokio::test(flavor = "multi_thread")]
async fn tags_of_computed_lists_and_of_empty_texts_reach_their_entries_or_are_refused() {
    let rig = Rig::start(
        "create table shops (id text primary key, price numeric(10,1), name text);
         create table products (id int primary key, shops text[], prices numeric(10,2)[]);
         insert into shops values ('', 1.0, 'empty'), ('a', 2.0, 'full');
         insert into products values (1, '{\"\",a}', '{1.00}')",
    )
    .await;
    let dataset = |tag: &str, rule: &str| {
        format!(
            "[dataset.product]\nquery = \"select id, shops, prices || '{{}}'::numeric[] as prices, prices[1] + 0 as price, \
             (select string_agg(name, ',' order by s.id) from shops s where s.id = any(p.shops)) as names from products p\"\n\
             key = \"product:{{id}}\"\nformat = \"json\"\nwarm = {{}}\ntags = [\"{tag}\"]\n\
             watch = [{{ table = \"products\", key = {{ id = \"id\" }} }}, {{ table = \"shops\", tag = \"{rule}\" }}]\n"
        )
    };
    for tag in ["price:{prices}", "price:{price}"] {
        let cli = Cli::new(&rig, &dataset(tag, "price:{price}"));
        cli.says(&["check"], 78, &["values of type numeric that are equal have several texts"]);
    }
    let toml = dataset("shop:{shops}", "shop:{id}");
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    ready(&worker).await;
    rig.postgres.execute("update shops set name = 'new' where id = ''").await.unwrap();
    let client = rig.client().await;
    wait_until("the name is the new one", async || {
        let found: Option<String> = client.clone().get("product:1").await.unwrap();
        let found = found.unwrap_or_default();
        if found.contains("\"names\":\"new,full\"") { Ok(()) } else { Err(found) }
    })
    .await;
    assert!(worker.stop().await);
}
