//! Commands of the stream that meet trouble: locks, conflicts, slow statements, lists that cannot take a reply.

use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_client::Cache;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::stores::postgres::write::{CommandStream, is_leader};
use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::support::{Rig, wait_until};

const TABLES: &str = "
    create table products (id int primary key, price_cents bigint not null, history text not null default '');
    create table orders (id int primary key, product_id int not null, unique (product_id) deferrable initially deferred);
    insert into products select n, n from generate_series(1, 2000) n";

const DATASETS: &str = r#"
[postgres]
statement_timeout = "1s"
[dataset.product]
query = "select id, price_cents, history from products"
key = "product:{id}"
ttl = "1h"
format = "json"
watch = [{ table = "products", key = { id = "id" } }]
[dataset.product.write]
statement = "update products set price_cents = :price, history = history || ',' || :price::text where id = :id and slow(id)"

[dataset.order]
query = "select id, product_id from orders"
key = "order:{id}"
ttl = "1h"
format = "json"
[dataset.order.write]
statement = "insert into orders values (:id, :product) on conflict (id) do update set product_id = excluded.product_id"

[dataset.note]
query = "select id, product_id from orders"
key = "note:{id}"
ttl = "1h"
format = "json"
[dataset.note.write]
statement = "update orders set product_id = :product where id = any(:ids)"

[dataset.bulk]
query = "select id % 10 as decade, id from products"
key = "bulk:{decade}"
rows = "many"
ttl = "1h"
format = "json"
[dataset.bulk.write]
statement = "update products set price_cents = price_cents + :more where id = any(:ids)"
"#;

/// Product 13 takes longer than a statement may.
const SLOW: &str = "create function slow(id int) returns bool language plpgsql as
    $$ begin if id = 13 then perform pg_sleep(5); end if; return true; end $$";

async fn send(context: &Context, dataset: &str, id: &str, parameters: Value) {
    let parameters = parameters.to_string();
    let fields: [(&str, &[u8]); 4] = [
        ("dataset", dataset.as_bytes()),
        ("id", id.as_bytes()),
        ("params", parameters.as_bytes()),
        ("reply", b"cache:reply:t"),
    ];
    context.redis.append("cache:writes", &fields).await.unwrap();
}

async fn reply_of(rig: &Rig, id: &str) -> Result<Value, String> {
    let mut client = rig.client().await;
    let list: Vec<String> = client.lrange("cache:reply:t", 0, -1).await.unwrap();
    let mut parsed = list.iter().map(|text| serde_json::from_str::<Value>(text).unwrap());
    parsed.find(|reply| reply["id"] == id).ok_or_else(|| format!("{} replies", list.len()))
}

async fn replied(rig: &Rig, id: &str) -> Value {
    wait_until(&format!("{id} has its reply"), async || reply_of(rig, id).await).await
}

#[tokio::test]
async fn what_others_hold_up_holds_up_its_own_key_only() {
    let rig = Rig::start(&format!("{TABLES}; {SLOW}")).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let context = rig.context(DATASETS);
    let mut locker = rig.postgres.session().await.unwrap();
    locker.execute("begin; select from products where id = 7 for update").await.unwrap();
    for (id, product, price) in [("held 1", 7, 1), ("held 2", 7, 2), ("slow", 13, 1), ("free 1", 8, 1)] {
        send(&context, "product", id, json!({ "id": product, "price": price })).await;
    }
    assert_eq!(replied(&rig, "free 1").await["ok"], true);
    // A statement that is too slow again and again is given up; the locked row is waited for.
    let slow = replied(&rig, "slow").await;
    assert!(slow["error"].as_str().unwrap().contains("given up"), "{slow}");
    send(&context, "product", "free 2", json!({ "id": 9, "price": 2 })).await;
    assert_eq!(replied(&rig, "free 2").await["ok"], true);
    assert!(reply_of(&rig, "held 1").await.is_err());
    wait_until("it is seen that one is held up", async || {
        match worker.context.metrics.commands_held_up.get() {
            1 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    locker.execute("rollback").await.unwrap();
    assert_eq!(replied(&rig, "held 2").await["ok"], true);
    let mut session = rig.postgres.session().await.unwrap();
    let history = session.text("select history from products where id = 7").await.unwrap();
    assert_eq!(history.as_deref(), Some(",1,2"), "in order");
    let kept = worker.context.history.as_ref().unwrap();
    let (touches, _) = kept.since(0, 100, |touch| &*touch.key == "product:7");
    assert!(touches.iter().any(|touch| touch.cause == "write"), "{touches:?}");
    let dead = context.redis.dead_letters("cache:writes", 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    worker.stop().await;
}

#[tokio::test]
async fn deadlocks_and_serialization_failures_are_tried_again_and_deferred_constraints_are_refused_singly() {
    let raises = "create sequence tries;
        create function conflict() returns trigger language plpgsql as $$ begin
            if new.id % 100 = 5 and nextval('tries') % 3 <> 0 then
                raise exception 'could not serialize' using errcode = case new.id % 200 when 5 then '40001' else '40P01' end;
            end if; return new; end $$;
        create trigger conflict before update on products for each row execute function conflict()";
    let rig = Rig::start(&format!("{TABLES}; {SLOW}; {raises}")).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let context = rig.context(DATASETS);
    for product in 100..500 {
        send(&context, "product", &format!("p{product}"), json!({ "id": product, "price": 4 })).await;
    }
    // The second order of a product breaks a constraint that is checked at the end.
    for order in 1..=20 {
        send(&context, "order", &format!("o{order}"), json!({ "id": order, "product": (order + 1) / 2 }))
            .await;
    }
    for round in 0..20 {
        // Without the key: one queue for all of the dataset.
        send(&context, "bulk", &format!("b{round}"), json!({ "more": 1, "ids": [1, 2, 3] })).await;
    }
    for product in 100..500 {
        let reply = replied(&rig, &format!("p{product}")).await;
        assert_eq!(reply["ok"], true, "{reply}");
    }
    // Which one of the two is not said: between keys there is no order.
    for product in 1..=10 {
        let mut taken = 0;
        for order in [2 * product - 1, 2 * product] {
            taken += u32::from(replied(&rig, &format!("o{order}")).await["ok"] == true);
        }
        assert_eq!(taken, 1, "orders of product {product}");
    }
    for round in 0..20 {
        let reply = replied(&rig, &format!("b{round}")).await;
        assert_eq!((&reply["ok"], &reply["rows"]), (&json!(true), &json!(3)));
    }
    let mut session = rig.postgres.session().await.unwrap();
    let sql = "select (select count(*) from products where history = ',4') || ' ' || (select sum(price_cents) from products where id < 4)
        || ' ' || (select count(*) from orders)";
    assert_eq!(session.text(sql).await.unwrap().as_deref(), Some("400 66 10"));
    worker.stop().await;
}

#[tokio::test]
async fn a_reply_goes_only_where_a_list_of_the_producer_stands() {
    let rig = Rig::start(&format!("{TABLES}; {SLOW}")).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let context = rig.context(DATASETS);
    let mut client = rig.client().await;
    let text = "cache:reply:text";
    let _: () = client.set(text, "mine").await.unwrap();
    for list in ["product:1", "ck:{test:0}:meta", "cache:writes", text] {
        let fields: [(&str, &[u8]); 3] =
            [("dataset", b"product"), ("params", br#"{"id": 1, "price": 9}"#), ("reply", list.as_bytes())];
        context.redis.append("cache:writes", &fields).await.unwrap();
    }
    send(&context, "product", "last", json!({ "id": 1, "price": 10 })).await;
    replied(&rig, "last").await;
    let mut session = rig.postgres.session().await.unwrap();
    let history = session.text("select history from products where id = 1").await.unwrap();
    assert_eq!(history.as_deref(), Some(",9,10"), "only the one whose list merely holds another type");
    assert_eq!(client.get::<_, String>(text).await.unwrap(), "mine");
    let dead = context.redis.dead_letters("cache:writes", 10).await.unwrap();
    let reasons: Vec<String> =
        dead.iter().map(|one| String::from_utf8_lossy(one.field("reason").unwrap()).into_owned()).collect();
    assert_eq!(reasons.len(), 3);
    assert!(reasons.iter().all(|reason| reason.contains("begins with cache:reply:")), "{reasons:?}");
    worker.stop().await;
}

#[tokio::test]
async fn redis_being_full_keeps_no_command_from_its_end() {
    let rig = Rig::start(&format!("{TABLES}; {SLOW}")).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let context = rig.context(DATASETS);
    let mut client = rig.client().await;
    let mut locker = rig.postgres.session().await.unwrap();
    locker.execute("begin; lock table products in exclusive mode").await.unwrap();
    for product in 101..=150 {
        send(&context, "product", &format!("p{product}"), json!({ "id": product, "price": 4 })).await;
    }
    send(&context, "product", "nobody", json!({ "id": 0, "price": 4 })).await;
    let _: () = redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", "1mb", "maxmemory-policy", "noeviction"])
        .query_async(&mut client)
        .await
        .unwrap();
    locker.execute("rollback").await.unwrap();
    for product in 101..=150 {
        assert_eq!(replied(&rig, &format!("p{product}")).await["ok"], true);
    }
    assert_eq!(replied(&rig, "nobody").await["error"], "the statement touched no row");
    let cache = Cache::open(&rig.config(DATASETS)).unwrap().build();
    assert!(!cache.exists("product:101").await.unwrap(), "what cannot be stored is deleted");
    worker.stop().await;
}

#[tokio::test]
async fn a_process_stopped_in_the_middle_of_a_write_holds_its_locks_for_seconds_only() {
    let rig = Rig::start(&format!("{TABLES}; {SLOW}")).await;
    let context = rig.context(DATASETS);
    let mut open = context.postgres.begin_commands(true).await.unwrap();
    let stream = CommandStream { namespace: "test", name: "cache:writes" };
    let right = is_leader(&mut open, stream, 1).await.unwrap();
    assert!(!right, "nobody has the right yet");
    // `open` stays as it is, like that of a stopped process.
    let token = wait_until("somebody else may take over", async || {
        context.postgres.take_over_writes(stream).await.map_err(|error| error.to_string())
    });
    assert_eq!(tokio::time::timeout(Duration::from_secs(30), token).await.unwrap(), 1);
    drop(open);
}

#[tokio::test]
async fn a_write_through_a_table_that_nothing_watches_reaches_redis_although_its_writer_died() {
    let rig = Rig::start(&format!("{TABLES}; {SLOW}")).await;
    // `order` has no watch rule, and is written in one transaction with `product`, which has one.
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let cache = Cache::open(&rig.config(DATASETS)).unwrap().build();
    let (products, orders) = (cache.dataset("product").unwrap(), cache.dataset("order").unwrap());
    wait_until("the feed follows", async || {
        let watermark = worker.context.redis.watermark().await.unwrap();
        watermark.map(|_| ()).ok_or_else(|| "no watermark".to_owned())
    })
    .await;
    rig.postgres.execute("insert into orders values (1, 1)").await.unwrap();
    assert_eq!(orders.get::<Value>(&["1"]).await.unwrap().unwrap()["product_id"], 1);
    let pool = sqlx::PgPool::connect(&rig.postgres.url()).await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    let to = |value: Value| {
        let Value::Object(fields) = value else { panic!("an object") };
        fields.into_iter().map(|(name, value)| (name, cachekeeper_client::Parameter::Value(value))).collect()
    };
    let changed = products.write_in(&mut transaction, &to(json!({ "id": 3, "price": 5 }))).await.unwrap();
    let ordered = orders.write_in(&mut transaction, &to(json!({ "id": 1, "product": 3 }))).await.unwrap();
    transaction.commit().await.unwrap();
    // The process ends here: nobody settles.
    drop((changed, ordered));
    wait_until("the feed has finished it", async || {
        let order: Option<Value> = cache.get("order:1").await.unwrap();
        if order.as_ref().is_some_and(|order| order["product_id"] == 3) {
            Ok(())
        } else {
            Err(format!("{order:?}"))
        }
    })
    .await;
    worker.stop().await;
}

#[tokio::test]
async fn one_row_spelled_in_several_ways_is_one_key() {
    let rig = Rig::start(&format!("{TABLES}; {SLOW}")).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let context = rig.context(DATASETS);
    for n in 0..200 {
        let id = ["7", "07", " 7", "+7", "007", "7 "][n % 6];
        send(&context, "product", &format!("c{n}"), json!({ "id": id, "price": n })).await;
    }
    replied(&rig, "c199").await;
    let mut session = rig.postgres.session().await.unwrap();
    let history = session.text("select history from products where id = 7").await.unwrap().unwrap();
    let expected: String = (0..200).map(|n| format!(",{n}")).collect();
    assert_eq!(history, expected);
    let cache = Cache::open(&rig.config(DATASETS)).unwrap().build();
    assert_eq!(cache.get::<Value>("product:7").await.unwrap().unwrap()["price_cents"], 199);
    worker.stop().await;
}

#[tokio::test]
async fn numbers_arrive_as_they_were_and_a_new_column_rejects_nothing() {
    let table = "create table products (id int primary key, price_cents numeric, f float8, history text not null default '');
        insert into products values (1, 1, 1)";
    let rig = Rig::start(table).await;
    let toml = r#"
[dataset.product]
query = "select * from products"
key = "product:{id}"
ttl = "1h"
[dataset.product.write]
statement = "update products set price_cents = :price, f = :f, history = history || 'x' where id = :id returning *"
"#;
    let worker = Worker::start(rig.config(toml)).await.unwrap();
    let context = rig.context(toml);
    let large = br#"{"id": 1, "f": 1, "price": 123456789012345678901234567890.12}"#;
    let odd = rmp_serde::to_vec_named(&std::collections::BTreeMap::from([
        ("f", f64::NAN),
        ("id", 1.0),
        ("price", 2.0),
    ]));
    // A float is no id.
    for (id, parameters) in [("large", large.to_vec()), ("odd", odd.unwrap())] {
        let fields: [(&str, &[u8]); 4] = [
            ("dataset", b"product"),
            ("id", id.as_bytes()),
            ("params", &parameters),
            ("reply", b"cache:reply:t"),
        ];
        context.redis.append("cache:writes", &fields).await.unwrap();
    }
    assert_eq!(replied(&rig, "large").await["ok"], true);
    let odd = replied(&rig, "odd").await;
    assert!(odd["error"].as_str().unwrap().contains("no whole number"), "{odd}");
    let mut session = rig.postgres.session().await.unwrap();
    let price = session.text("select price_cents::text from products").await.unwrap();
    assert_eq!(price.as_deref(), Some("123456789012345678901234567890.12"));
    rig.postgres.execute("alter table products add column colour text").await.unwrap();
    for n in 0..3 {
        send(&context, "product", &format!("after{n}"), json!({ "id": 1, "price": 3, "f": "NaN" })).await;
        let reply = replied(&rig, &format!("after{n}")).await;
        assert_eq!(reply["ok"], true, "{reply}");
    }
    let history = session.text("select history from products").await.unwrap();
    assert_eq!(history.as_deref(), Some("xxxx"));
    worker.stop().await;
}

/// As if the stream had been led for so long more.
async fn lead_for_hours(rig: &Rig) {
    rig.postgres.execute("update cachekeeper.writer set led_ms = led_ms + 2 * 3600000").await.unwrap();
}

/// Waits until the leader has looked for old records once more, and dropped those that are.
async fn housekeeping(rig: &Rig) {
    let led = async || {
        let mut session = rig.postgres.session().await.unwrap();
        let led = session.text("select led_ms::text from cachekeeper.writer").await.unwrap().unwrap();
        led.parse::<i64>().unwrap()
    };
    // The last one may have begun before, so two.
    for _ in 0..2 {
        let before = led().await;
        wait_until("the leader has counted on", async || {
            let now = led().await;
            if before < now { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
    }
}

async fn records(rig: &Rig) -> String {
    let mut session = rig.postgres.session().await.unwrap();
    let records = "select coalesce(string_agg(id, ' ' order by id), '') from cachekeeper.applied";
    session.text(records).await.unwrap().unwrap()
}

/// A record is needed as long as its command may stand in the stream a second time.
#[tokio::test]
async fn a_command_sent_again_is_known_although_nobody_worked_for_hours() {
    let rig = Rig::start(&format!("{TABLES}; {SLOW}")).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let context = rig.context(DATASETS);
    send(&context, "product", "one", json!({ "id": 1, "price": 1 })).await;
    replied(&rig, "one").await;
    // Its producer has not seen the reply, and sends it again; the worker is down meanwhile, for two hours.
    worker.stop().await;
    send(&context, "product", "one", json!({ "id": 1, "price": 1 })).await;
    lead_for_hours(&rig).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    send(&context, "product", "two", json!({ "id": 2, "price": 1 })).await;
    replied(&rig, "two").await;
    let mut session = rig.postgres.session().await.unwrap();
    let history = session.text("select history from products where id = 1").await.unwrap();
    assert_eq!(history.as_deref(), Some(",1"));
    worker.stop().await;
}

/// A transaction of an earlier leader that nothing ends is ended: the server's own limits do not, where its clock was set back.
#[tokio::test]
async fn whoever_leads_ends_what_an_earlier_leader_has_left_open() {
    let rig = Rig::start(&format!("{TABLES}; {SLOW}")).await;
    let context = rig.context(DATASETS);
    let mut left = rig.postgres.session().await.unwrap();
    let lock = "begin; select pg_advisory_xact_lock_shared(hashtextextended('cachekeeper.writer:test cache:writes', 0));
        select from products where id = 1 for update";
    left.execute(lock).await.unwrap();
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    send(&context, "product", "one", json!({ "id": 1, "price": 1 })).await;
    assert_eq!(replied(&rig, "one").await["ok"], true);
    assert!(left.execute("commit").await.is_err(), "it was ended");
    worker.stop().await;
}

/// Somebody sets the server's clock: no record is dropped for it.
#[tokio::test]
async fn a_command_sent_again_is_known_although_the_servers_clock_jumped() {
    let (rig, clock) = Rig::start_with_clock(&format!("{TABLES}; {SLOW}"), &[]).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let context = rig.context(DATASETS);
    send(&context, "product", "one", json!({ "id": 1, "price": 1 })).await;
    replied(&rig, "one").await;
    // The leader counts as long as there is a record.
    let any = "insert into cachekeeper.applied (namespace, stream, id, digest, entry_ms, entry_seq, rows, at)
        values ('test', 'cache:writes', 'any', '', 1, 0, 1, 'infinity')";
    rig.postgres.execute(any).await.unwrap();
    for seconds in [2 * 3_600, 10 * 365 * 86_400, -2 * 3_600] {
        clock.set(seconds).unwrap();
        housekeeping(&rig).await;
        send(&context, "product", "one", json!({ "id": 1, "price": 1 })).await;
        let next = format!("next at {seconds}");
        send(&context, "product", &next, json!({ "id": 1, "price": 2 })).await;
        replied(&rig, &next).await;
    }
    let mut session = rig.postgres.session().await.unwrap();
    let history = session.text("select history from products where id = 1").await.unwrap();
    assert_eq!(history.as_deref(), Some(",1,2,2,2"));
    worker.stop().await;
}

/// Records are dropped after the retention in which somebody led: also those of an earlier version, which do not say how old they
/// are, and those that look younger than the stream, as after a restore.
#[tokio::test]
async fn no_record_stays_for_ever() {
    let (rig, clock) = Rig::start_with_clock(&format!("{TABLES}; {SLOW}"), &[]).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let context = rig.context(DATASETS);
    clock.set(10 * 365 * 86_400).unwrap();
    send(&context, "product", "one", json!({ "id": 1, "price": 1 })).await;
    replied(&rig, "one").await;
    let others = "insert into cachekeeper.applied (namespace, stream, id, digest, entry_ms, entry_seq, rows, led_ms) values
        ('test', 'cache:writes', 'earlier', '', 1, 0, 1, null), ('', 'cache:writes', 'older', '', 1, 0, 1, null),
        ('test', 'cache:writes', 'restored', '', 1, 0, 1, 1000000000000), ('other', 'cache:writes', 'other', '', 1, 0, 1, 0)";
    rig.postgres.execute(others).await.unwrap();
    clock.set(0).unwrap();
    housekeeping(&rig).await;
    assert_eq!(records(&rig).await, "earlier older one other restored");
    lead_for_hours(&rig).await;
    wait_until("what is ours is dropped", async || {
        let left = records(&rig).await;
        if left == "other" { Ok(()) } else { Err(left) }
    })
    .await;
    worker.stop().await;
}

#[tokio::test]
async fn a_stream_that_begins_anew_with_lower_ids_is_read_and_zero_bytes_do_not_block_it() {
    let rig = Rig::start(&format!("{TABLES}; {SLOW}")).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let context = rig.context(DATASETS);
    send(&context, "product", "one", json!({ "id": 1, "price": 1 })).await;
    send(&context, "product", "name", json!({ "id": 1, "price": 1, "a\0b": 2 })).await;
    send(&context, "product", "value", json!({ "id": 1, "price": "a\0b" })).await;
    assert_eq!(replied(&rig, "one").await["ok"], true);
    assert_eq!(replied(&rig, "name").await["ok"], false);
    assert_eq!(replied(&rig, "value").await["ok"], false);
    let mut client = rig.client().await;
    let _: () = client.del("cache:writes").await.unwrap();
    let params = json!({ "id": 1, "price": 2 }).to_string();
    let mut command = redis::cmd("XADD");
    command.arg("cache:writes").arg("5-1").arg("dataset").arg("product").arg("id").arg("low");
    command.arg("params").arg(params).arg("reply").arg("cache:reply:t");
    let _: String = command.query_async(&mut client).await.unwrap();
    assert_eq!(replied(&rig, "low").await["ok"], true);
    worker.stop().await;
}

/// Neither a trigger nor the parameters tell which entries were written: all of the dataset are revalidated, and nobody
/// is told that Redis has it already.
#[tokio::test]
async fn a_write_whose_entries_nobody_knows_reaches_redis_all_the_same() {
    let rig = Rig::start(&format!("{TABLES}; {SLOW}; insert into orders values (1, 1), (2, 2)")).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let context = rig.context(DATASETS);
    wait_until("the feed follows and nothing is pending", async || {
        let facts = worker.health.facts();
        let is_quiet =
            facts.watermark.is_some() && facts.pending.is_empty() && worker.health.reasons().is_empty();
        if is_quiet { Ok(()) } else { Err(format!("{:?}", facts.pending)) }
    })
    .await;
    let cache = Cache::open(&rig.config(DATASETS)).unwrap().build();
    let notes = cache.dataset("note").unwrap();
    assert_eq!(notes.get::<Value>(&["2"]).await.unwrap().unwrap()["product_id"], 2);
    send(&context, "note", "many", json!({ "ids": [2], "product": 9 })).await;
    let reply = replied(&rig, "many").await;
    assert_eq!((&reply["ok"], &reply["cache"]), (&json!(true), &json!("pending")));
    wait_until("the feed has seen to it", async || {
        let note: Option<Value> = cache.get("note:2").await.unwrap();
        if note.as_ref().is_some_and(|note| note["product_id"] == 9) {
            Ok(())
        } else {
            Err(format!("{note:?}"))
        }
    })
    .await;
    worker.stop().await;
}

/// A record that somebody else has locked keeps old records from being dropped, and nothing else.
#[tokio::test]
async fn housekeeping_that_waits_for_a_lock_holds_up_no_command() {
    let rig = Rig::start(&format!("{TABLES}; {SLOW}")).await;
    let context = rig.context(DATASETS);
    let old = "insert into cachekeeper.writer (namespace, stream, token, led_ms) values ('test', 'cache:writes', 0, 7200000);
        insert into cachekeeper.applied (namespace, stream, id, digest, entry_ms, entry_seq, rows, led_ms)
        values ('test', 'cache:writes', 'old', '', 1, 0, 1, 0)";
    rig.postgres.execute(old).await.unwrap();
    let mut locker = rig.postgres.session().await.unwrap();
    locker.execute("begin; select from cachekeeper.applied where id = 'old' for update").await.unwrap();
    let mut session = rig.postgres.session().await.unwrap();
    let given_up = "select xact_rollback::text from pg_stat_database where datname = current_database()";
    let before: i64 = session.text(given_up).await.unwrap().unwrap().parse().unwrap();
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    send(&context, "product", "one", json!({ "id": 1, "price": 1 })).await;
    assert_eq!(replied(&rig, "one").await["ok"], true);
    wait_until("dropping the record was given up", async || {
        let mut session = rig.postgres.session().await.unwrap();
        let now: i64 = session.text(given_up).await.unwrap().unwrap().parse().unwrap();
        if before < now { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    send(&context, "product", "two", json!({ "id": 1, "price": 2 })).await;
    assert_eq!(replied(&rig, "two").await["ok"], true);
    let token = session.text("select token::text from cachekeeper.writer").await.unwrap();
    assert_eq!(token.as_deref(), Some("1"), "it leads without a break");
    locker.execute("rollback").await.unwrap();
    wait_until("the record is dropped", async || {
        let mut session = rig.postgres.session().await.unwrap();
        let left =
            session.text("select count(*)::text from cachekeeper.applied where id = 'old'").await.unwrap();
        if left.as_deref() == Some("0") { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    worker.stop().await;
}

/// The server cannot describe a statement while somebody holds its table: that concerns one dataset.
#[tokio::test]
async fn a_locked_table_holds_up_the_commands_of_its_own_dataset_only() {
    let rig = Rig::start(&format!("{TABLES}; {SLOW}")).await;
    let context = rig.context(DATASETS);
    let mut locker = rig.postgres.session().await.unwrap();
    locker.execute("begin; lock table orders in access exclusive mode").await.unwrap();
    for order in 1..=3 {
        send(&context, "order", &format!("o{order}"), json!({ "id": 1, "product": order })).await;
    }
    send(&context, "product", "p1", json!({ "id": 1, "price": 1 })).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    assert_eq!(replied(&rig, "p1").await["ok"], true);
    send(&context, "product", "p2", json!({ "id": 1, "price": 2 })).await;
    send(&context, "order", "o4", json!({ "id": 1, "product": 4 })).await;
    assert_eq!(replied(&rig, "p2").await["ok"], true);
    assert!(reply_of(&rig, "o1").await.is_err());
    locker.execute("rollback").await.unwrap();
    for order in 1..=4 {
        assert_eq!(replied(&rig, &format!("o{order}")).await["ok"], true);
    }
    let mut session = rig.postgres.session().await.unwrap();
    let product = session.text("select product_id::text from orders where id = 1").await.unwrap();
    assert_eq!(product.as_deref(), Some("4"), "in order");
    let token = session.text("select token::text from cachekeeper.writer").await.unwrap();
    assert_eq!(token.as_deref(), Some("1"), "it leads without a break");
    worker.stop().await;
}
