//! Capture and coverage: nothing slips past the triggers unnoticed, and they never stand in a writer's way.

use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::change_feed::{FeedConsumer, Step};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::coverage;
use cachekeeper_engine::stores::redis::Watermark;
use cachekeeper_engine::tokens;
use redis::AsyncCommands;

use crate::feed::{agrees, caught_up, ready};
use crate::support::{Rig, wait_until};

pub const TABLES: &str = "
    create table products (id int primary key, name text, price int) partition by range (id);
    create table products_1 partition of products for values from (0) to (1000);
    insert into products select n, 'product ' || n, n from generate_series(1, 500) n;
    create table notes (id int primary key, product_id int, text text);
    create materialized view prices as select id, price from products;
    create view names as select id, name from products;";

pub fn dataset(query: &str, watch: &str) -> String {
    format!(
        "[dataset.product]\nquery = \"{query}\"\nkey = \"product:{{id}}\"\nformat = \"json\"\nwarm = {{}}\nwatch = [{watch}]\n"
    )
}

const PRODUCTS: &str = "{ table = \"products\", key = { id = \"id\" } }";

pub fn plain() -> String {
    dataset("select id, name, price from products", PRODUCTS)
}

const WHAT_CHANGED: &str = "what its query reads, or what captures its changes, has changed";

pub async fn reason(context: &Context, may_install: bool) -> Option<String> {
    let coverage = coverage::look(context, may_install).await.unwrap();
    coverage.gaps().map(|(_, reason)| reason.clone()).next()
}

pub async fn count(rig: &Rig, sql: &str) -> i64 {
    let mut session = rig.postgres.session().await.unwrap();
    session.text(&format!("select ({sql})::text")).await.unwrap().unwrap().parse().unwrap()
}

/// Steps until there is nothing more to do.
pub async fn settle(follower: &mut FeedConsumer) {
    let mut idle = 0;
    while idle < 2 {
        match follower.step(true).await {
            Ok(Step::Idle) => idle += 1,
            Ok(_) => idle = 0,
            Err(error) => panic!("{error}"),
        }
    }
}

pub async fn follower(context: &Context) -> FeedConsumer {
    context.set_coverage(coverage::look(context, true).await.unwrap());
    let mut follower = FeedConsumer::new(context);
    settle(&mut follower).await;
    follower
}

pub async fn watermark(context: &Context) -> Watermark {
    context.redis.watermark().await.unwrap().unwrap()
}

#[tokio::test]
async fn every_gap_in_the_coverage_is_named() {
    let rig = Rig::start(TABLES).await;
    for (query, watch, expected) in [
        ("select id, name from products", "", "reads products, but no watch rule"),
        (
            "select p.id, n.text from products p left join notes n on n.product_id = p.id",
            PRODUCTS,
            "reads notes",
        ),
        (
            "select id, price from prices",
            "{ table = \"prices\", key = { id = \"id\" } }",
            "materialized view",
        ),
        ("select id, name from names", "{ table = \"names\", key = { id = \"id\" } }", "names is a view"),
        (
            "select id, name from products",
            "{ table = \"product\", key = { id = \"id\" } }",
            "no table product",
        ),
        ("select id, name from products", "{ table = \"products\", key = { id = \"nr\" } }", "no column nr"),
    ] {
        let context = rig.context(&dataset(query, watch));
        let found = reason(&context, true).await.unwrap_or_default();
        assert!(found.contains(expected), "{query}, {watch}: {found}");
    }
    // A view's tables count as the query's own; a watched leaf stands for its tree.
    for (query, watch) in [
        ("select id, name from names", PRODUCTS),
        ("select id, name from products", "{ table = \"products_1\", key = { id = \"id\" } }"),
        ("select id, name from products_1", PRODUCTS),
    ] {
        let context = rig.context(&dataset(query, watch));
        assert_eq!(reason(&context, true).await, None, "{query}, {watch}");
    }
}

#[tokio::test]
async fn new_leaves_and_touched_triggers_are_noticed_and_mended() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    assert!(reason(&context, false).await.unwrap().contains("run `cachekeeper migrate`"));
    let mut follower = follower(&context).await;
    let mark = |coverage: &coverage::Coverage| coverage.datasets["product"].clone().unwrap();
    let before = mark(&coverage::look(&context, false).await.unwrap());
    assert_eq!(before, mark(&coverage::look(&context, true).await.unwrap()), "looking changes nothing");
    // Off and on again between two looks: nobody knows what was written meanwhile.
    rig.postgres
        .execute(
            "alter table products_1 disable trigger all; update products_1 set name = 'unseen' where id = 1;
             do $$ declare name text; begin
                for name in select tgname from pg_trigger where tgrelid = 'products_1'::regclass loop
                    execute 'alter table products_1 enable always trigger ' || name;
                end loop;
             end $$",
        )
        .await
        .unwrap();
    let touched = coverage::look(&context, false).await.unwrap();
    assert_ne!(before, mark(&touched));
    context.redis.metadata("").await.unwrap();
    let policy = cachekeeper_config::OnNewEpoch::Refresh;
    let product = context.catalog.get("product").unwrap();
    let cancel = tokio_util::sync::CancellationToken::new();
    cachekeeper_engine::revalidation::run(&context, product, policy, &cancel).await.unwrap();
    let options = BackfillOptions { cancel: cancel.clone(), rate: None, progress: None, resume: false };
    backfill(&context, product, &options).await.unwrap();
    follower.step(true).await.unwrap();
    assert_eq!(watermark(&context).await.not_covered, ["product"], "the watermark never passes it");
    assert_eq!(context.redis.metadata("").await.unwrap().pending["product"].reason(), WHAT_CHANGED);
    context.set_coverage(touched);
    follower.step(true).await.unwrap();
    assert_eq!(watermark(&context).await.not_covered, ["product"]);
    assert_eq!(context.redis.metadata("").await.unwrap().pending["product"].reason(), "newly covered");
    // A disabled trigger: not covered until it is mended. A new leaf has its root's.
    let root = count(&rig, "select 'products'::regclass::oid").await;
    for table in ["products", "products_1"] {
        rig.postgres
            .execute(&format!("alter table {table} disable trigger cachekeeper_{root}"))
            .await
            .unwrap();
        assert!(reason(&context, false).await.unwrap().contains("disabled or missing"), "{table}");
        assert_eq!(reason(&context, true).await, None);
    }
    rig.postgres
        .execute("create table products_2 partition of products for values from (1000) to (2000)")
        .await
        .unwrap();
    assert_eq!(reason(&context, false).await, None);
    // A rewritten table and a replaced view fire no trigger.
    let through_view = rig.context(&dataset("select id, name from names", PRODUCTS));
    for sql in [
        "drop materialized view prices; alter table products alter column price type bigint using price * 2",
        "create or replace view names as select id, upper(name) as name from products",
    ] {
        let before = mark(&coverage::look(&through_view, false).await.unwrap());
        rig.postgres.execute(sql).await.unwrap();
        assert_ne!(before, mark(&coverage::look(&through_view, false).await.unwrap()), "{sql}");
    }
    rig.postgres.execute("insert into products_2 values (1500, 'in a new leaf', 1)").await.unwrap();
    assert_eq!(count(&rig, "select count(*) from cachekeeper.outbox where keys = '{1500}'").await, 1);
    // Nothing is left behind.
    context.postgres.uninstall("test").await.unwrap();
    assert_eq!(count(&rig, "select count(*) from pg_trigger where tgname like 'cachekeeper%'").await, 0);
    rig.postgres.execute("update products set price = 0 where id = 1500").await.unwrap();
}

#[tokio::test]
async fn writers_are_never_refused_for_the_sake_of_capture() {
    let rig = Rig::start(TABLES).await;
    let toml = dataset(
        "select id, name from products",
        "{ table = \"products\", key = { id = \"id\" } }, { table = \"products\", tag = \"price:{price}\" }",
    );
    let context = rig.context(&toml);
    let mut follower = follower(&context).await;
    // A role without any right on the schema writes, and its settings do not shape the keys.
    rig.postgres
        .execute("create role shop login; grant select, insert, update, delete on products to shop")
        .await
        .unwrap();
    rig.postgres.execute("set role shop; update products set price = 7 where id = 3").await.unwrap();
    let rows = "select count(*) from cachekeeper.outbox where keys = '{3,3,3,7}'";
    assert_eq!(count(&rig, rows).await, 1);
    // A watched column is dropped: the whole table is meant.
    rig.postgres
        .execute("drop materialized view prices; alter table products drop column price")
        .await
        .unwrap();
    rig.postgres.execute("update products set name = 'after the drop' where id = 4").await.unwrap();
    assert_eq!(count(&rig, "select count(*) from cachekeeper.outbox where keys is null").await, 1);
    follower.step(true).await.unwrap();
    assert_eq!(context.redis.metadata("").await.unwrap().pending["product"].reason(), WHAT_CHANGED);
    // The worker's own role may read and trim, but not make triggers: it says who can.
    context.postgres.grant("shop").await.unwrap();
    rig.postgres
        .execute(
            "do $$ begin execute format('drop trigger cachekeeper_%s on products', 'products'::regclass::oid); end $$",
        )
        .await
        .unwrap();
    let mut config = rig.config(&dataset("select id, name from products", PRODUCTS));
    config.postgres.url = cachekeeper_config::Secret::new(rig.postgres.url().replace("postgres@", "shop@"));
    let limited = Context::of_worker(&config).unwrap();
    let found = reason(&limited, true).await.unwrap();
    assert!(found.contains("run `cachekeeper migrate` as that user"), "{found}");
}

#[tokio::test]
async fn keys_do_not_depend_on_who_writes() {
    let rig = Rig::start("create table slots (at timestamptz primary key, note text); insert into slots values ('2026-01-02 03:04:05+00', 'x')").await;
    let toml = "[dataset.slot]\nquery = \"select at, note from slots\"\nkey = \"slot/{at}\"\nformat = \"json\"\nwarm = {}\n\
        watch = [{ table = \"slots\", key = { at = \"at\" } }]\n";
    let worker = Worker::start(rig.config(toml)).await.unwrap();
    ready(&worker).await;
    rig.postgres
        .execute("set timezone = 'Asia/Tokyo'; set datestyle = 'German'; update slots set note = 'changed'")
        .await
        .unwrap();
    caught_up(&worker).await;
    agrees(&worker).await;
    let text = worker.context.metrics.render().unwrap();
    assert!(text.contains("cachekeeper_entries_stored_total{dataset=\"slot\",cause=\"change\"} 1"), "{text}");
    assert!(worker.stop().await);
}

#[tokio::test]
async fn the_kill_switch_blocks_nobody_and_what_it_let_pass_is_made_good() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(&plain())).await.unwrap();
    ready(&worker).await;
    let context = &worker.context;
    let mut open = rig.postgres.session().await.unwrap();
    open.execute("begin; update products set name = 'before' where id = 9").await.unwrap();
    // No lock is waited for, although a writer has the table.
    context.postgres.switch_capture(false, &context.feed.limits).await.unwrap();
    open.execute("update products set name = 'unseen' where id = 10").await.unwrap();
    rig.postgres.execute("update products set name = 'unseen too' where id = 11").await.unwrap();
    assert!(reason(context, true).await.unwrap().contains("switched off"));
    context.postgres.switch_capture(true, &context.feed.limits).await.unwrap();
    assert!(reason(context, true).await.unwrap().contains("older transactions"));
    open.execute("commit").await.unwrap();
    wait_until("the capture is whole again", || async {
        match reason(context, true).await {
            None => Ok(()),
            Some(reason) => Err(reason),
        }
    })
    .await;
    let found = coverage::look(context, true).await.unwrap();
    let mark = found.datasets["product"].clone().unwrap();
    context.set_coverage(found);
    let client = rig.client().await;
    wait_until("the feed follows anew", || {
        let (mut client, mark) = (client.clone(), mark.clone());
        async move {
            let fed: String = client
                .hget("ck:{test:0}:meta", "covered:product")
                .await
                .map_err(|error| error.to_string())?;
            if fed == mark.as_str() { Ok(()) } else { Err(fed) }
        }
    })
    .await;
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn the_outbox_is_trimmed_only_behind_every_reader_and_writer() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    let mut follower = follower(&context).await;
    let rows = "select count(*) from cachekeeper.outbox";
    rig.postgres.execute("update products set name = 'a' where id = 1").await.unwrap();
    let old = context.postgres.poll().await.unwrap().snapshot;
    let mut open = rig.postgres.session().await.unwrap();
    open.execute("begin; update products set name = 'late' where id = 2").await.unwrap();
    let trim = async |at: &str| {
        context.postgres.trim_outbox(&at.parse().unwrap(), Duration::ZERO, 1 << 20).await.unwrap()
    };
    let cursor = async || context.redis.metadata("").await.unwrap().cursor.unwrap();
    // Not read yet; then read, and an older transaction is still open.
    assert_eq!(trim(&cursor().await).await, 0);
    settle(&mut follower).await;
    assert_eq!(trim(&cursor().await).await, 1);
    open.execute("commit").await.unwrap();
    // Committed, but not visible in the cursor.
    assert_eq!(trim(&cursor().await).await, 0);
    assert_eq!(count(&rig, rows).await, 1);
    settle(&mut follower).await;
    let retention = context
        .postgres
        .trim_outbox(&cursor().await.parse().unwrap(), Duration::from_secs(60), 1 << 20)
        .await;
    assert_eq!(retention.unwrap(), 0);
    // Written while the server's clock was ahead: it would be kept for as long.
    rig.postgres.execute("update cachekeeper.outbox set at = now() + interval '10 years'").await.unwrap();
    let ahead = cursor().await.parse().unwrap();
    let trimmed = context.postgres.trim_outbox(&ahead, Duration::from_secs(60), 1 << 20).await;
    assert_eq!(trimmed.unwrap(), 1);
    assert_eq!(count(&rig, rows).await, 0);
    // A Redis with an older cursor cannot be brought up to date from here: a new epoch.
    let before = context.redis.metadata("").await.unwrap().epoch;
    let mut client = rig.client().await;
    let _: () = redis::cmd("HSET")
        .arg("ck:{test:0}:meta")
        .arg("cursor")
        .arg(old.as_str())
        .query_async(&mut client)
        .await
        .unwrap();
    let mut second = FeedConsumer::new(&context);
    settle(&mut second).await;
    let metadata = context.redis.metadata("").await.unwrap();
    assert_ne!(before, metadata.epoch);
    assert_eq!(metadata.pending["product"].reason(), "changes lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_can_wait_for_its_own_write() {
    let rig = Rig::start(TABLES).await;
    let mut config = rig.config(&plain());
    let port = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port() };
    config.admin.listen = Some(format!("127.0.0.1:{port}"));
    let worker = Worker::start(config).await.unwrap();
    ready(&worker).await;
    let mut session = rig.postgres.session().await.unwrap();
    session.execute("create role app login; set role app").await.unwrap();
    let ask = async |query: &str| {
        let answer = std::process::Command::new("curl")
            .args(["-s", &format!("http://127.0.0.1:{port}/api/v1/watermark?{query}")])
            .output();
        serde_json::from_slice::<serde_json::Value>(&answer.unwrap().stdout).unwrap()
    };
    for round in 0..20 {
        rig.postgres
            .execute(&format!("update products set name = 'round {round}' where id = 5"))
            .await
            .unwrap();
        let text = session.text("select cachekeeper.token()").await.unwrap().unwrap();
        let answer = ask(&format!("token={text}&dataset=product&wait=10s")).await;
        assert_eq!(answer["fresh"], true, "{answer}");
        let found = tokens::get(&worker.context, "product:5", &text.parse().unwrap()).await.unwrap();
        let tokens::TokenRead::Fresh(Some(value)) = found else { panic!("{found:?}") };
        assert!(String::from_utf8(value).unwrap().contains(&format!("round {round}")));
    }
    // A token of a moment that has not come, of another incarnation, and none at all.
    let token = tokens::token(&worker.context).await.unwrap();
    let answer = ask(&format!("token={}/9999999:9999999:&wait=50ms", token.incarnation)).await;
    assert_eq!(answer["fresh"], false);
    assert_eq!(ask("token=other/1:1:").await["fresh"], false);
    assert!(ask("token=nonsense").await["error"].as_str().unwrap().contains("cachekeeper.token()"));
    assert!(ask("").await["watermark"]["snapshot"].is_string());
    assert!(worker.stop().await);
}

/// However many wait for the watermark, one task looks at it for all of them, and only while somebody waits.
#[tokio::test]
async fn a_hundred_waits_ask_redis_hardly_more_than_one() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    let _follower = follower(&context).await;
    let watermark = watermark(&context).await;
    let never = format!("{}/9999999:9999999:", watermark.incarnation).parse().unwrap();
    let reads = async || {
        let stats: String =
            redis::cmd("INFO").arg("commandstats").query_async(&mut rig.client().await).await.unwrap();
        let line = stats.lines().find(|line| line.starts_with("cmdstat_get:")).unwrap().to_owned();
        line.split(['=', ',']).nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = reads().await;
    let waits = (0..100).map(|_| tokens::wait(&context, &never, None, Duration::from_millis(500)));
    for answer in futures_util::future::join_all(waits).await {
        let (found, is_fresh) = answer.unwrap();
        assert!(!is_fresh);
        assert_eq!(found.unwrap().snapshot, watermark.snapshot);
    }
    let asked = reads().await - before;
    assert!(asked < 1_000, "100 waits of half a second asked {asked} times");
    wait_until("nobody asks any more", async || {
        let first = reads().await;
        tokio::task::yield_now().await;
        let second = reads().await;
        if first == second { Ok(()) } else { Err(format!("{first}, {second}")) }
    })
    .await;
}

#[tokio::test]
async fn whoever_need_not_wait_is_answered_however_many_do() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    let _follower = follower(&context).await;
    let watermark = watermark(&context).await;
    let never = format!("{}/9999999:9999999:", watermark.incarnation).parse().unwrap();
    // They wait until the test has seen what it looks for. Whoever is refused comes again: the look below has a place too, for
    // a moment, and would otherwise find it free for ever.
    let waits = (0..600).map(async |_| {
        loop {
            match tokens::wait(&context, &never, None, Duration::from_secs(3_600)).await {
                Err(tokens::WaitError::TooMany) => tokio::time::sleep(Duration::from_millis(10)).await,
                other => return other,
            }
        }
    });
    let look = async {
        wait_until("as many wait as may", async || {
            match tokens::wait(&context, &never, None, Duration::from_millis(1)).await {
                Err(tokens::WaitError::TooMany) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        tokens::wait(&context, &never, None, Duration::ZERO).await
    };
    let looked = tokio::select! {
        answers = futures_util::future::join_all(waits) => panic!("nobody waited: {answers:?}"),
        looked = look => looked,
    };
    let (found, is_fresh) = looked.unwrap();
    assert!(!is_fresh);
    assert_eq!(found.unwrap().snapshot, watermark.snapshot);
}

/// What columns are called never matters, though the trigger's function has names of its own.
#[tokio::test]
async fn columns_may_have_the_names_that_the_trigger_uses() {
    let rig = Rig::start(
        "create type pair as (a int, b int);
         create table odd (id int primary key, n int, o int, image text, touched text, place int, seen int, before text, after text, is_same bool, k int, s int, p int);
         insert into odd select n, n, n, 'i', 't', n, n, 'b', 'a', true, n, n, n from generate_series(1, 20) n;
         create table pairs (id int primary key, n pair, o pair);
         insert into pairs select n, row(n, n)::pair, row(n, n)::pair from generate_series(1, 20) n;",
    )
    .await;
    for (table, change, nothing) in
        [("odd", "o = o + 1", "o = o, n = n"), ("pairs", "n = row(0, id)::pair", "n = n, o = o")]
    {
        let toml = format!(
            "[dataset.d]\nquery = \"select * from {table}\"\nkey = \"d:{{id}}\"\n\
             watch = [{{ table = \"{table}\", key = {{ id = \"id\" }} }}]\n"
        );
        let context = rig.context(&toml);
        let _follower = follower(&context).await;
        let captured = "select string_agg(k, ' ' order by k) from cachekeeper.outbox, unnest(keys) k";
        for (statement, expected) in [
            (format!("update {table} set {nothing} where id = 3"), Some("3")),
            (format!("update {table} set {change} where id = 3"), Some("3")),
            (format!("update {table} set {nothing} where id < 3"), Some("1 2")),
            (format!("update {table} set {change} where id in (4, 7)"), Some("4 7")),
            (format!("delete from {table} where id = 9"), Some("9")),
        ] {
            rig.postgres.execute("delete from cachekeeper.outbox").await.unwrap();
            rig.postgres.execute(&statement).await.unwrap();
            let mut session = rig.postgres.session().await.unwrap();
            assert_eq!(session.text(captured).await.unwrap().as_deref(), expected, "{statement}");
            assert_eq!(
                count(&rig, "select count(*) from cachekeeper.outbox where keys is null").await,
                0,
                "{statement}"
            );
        }
    }
}
