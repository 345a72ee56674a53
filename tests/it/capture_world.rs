//! Capture in databases as they are: whatever writes is captured, and no writer fails or waits because of it (faults A, B).

use std::time::Duration;

use cachekeeper_engine::change_feed::{FeedConsumer, Step};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::coverage;
use cachekeeper_testkit::servers::{Postgres, Session};

use crate::capture::{TABLES, count, dataset, follower, plain, reason, settle};
use crate::support::{Rig, wait_until};

const KEYS: &str = "select string_agg(coalesce(array_to_string(keys, ','), 'all'), ' ' order by xid, at) from cachekeeper.outbox";

/// What was captured since the last time.
pub async fn captured(rig: &Rig) -> String {
    let mut session = rig.postgres.session().await.unwrap();
    let found = session.text(KEYS).await.unwrap().unwrap_or_default();
    session.execute("delete from cachekeeper.outbox").await.unwrap();
    found
}

/// Nothing may be told to a writer but that it is done.
pub async fn writes(rig: &Rig, sql: &str) {
    let mut writer = rig.postgres.session().await.unwrap();
    writer.execute("set statement_timeout = '5s'; set lock_timeout = '1s'").await.unwrap();
    writer.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Steps until one is as it is expected.
pub async fn steps_until(follower: &mut FeedConsumer, what: &str, is_expected: impl Fn(Step) -> bool) {
    let mut last = None;
    for _ in 0..500 {
        match follower.step(true).await {
            Ok(step) if is_expected(step) => return,
            other => last = Some(other),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: {last:?}");
}

/// Steps until the watermark has passed this moment with every dataset in it.
pub async fn is_covered_again(context: &Context, follower: &mut FeedConsumer) {
    for _ in 0..500 {
        context.set_coverage(coverage::look(context, true).await.unwrap());
        settle(follower).await;
        // What a step has noted may ask for another look, as in a worker.
        let has_gaps = context.coverage().is_none_or(|coverage| coverage.gaps().next().is_some());
        if !has_gaps && !follower.wants_coverage() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", reason(context, true).await);
}

#[tokio::test]
async fn rows_that_a_subscription_applies_are_captured() {
    let table = "create table products (id int primary key, name text, price int);";
    let source = Postgres::start(&["wal_level=logical"]).await.unwrap();
    source.execute(&format!("{table} insert into products select n, 'p', n from generate_series(1, 5) n; create publication p for table products")).await.unwrap();
    let rig = Rig::start(table).await;
    let context = rig.context(&plain());
    let _follower = follower(&context).await;
    let url = source.url().replace("postgres://postgres@", "postgresql://postgres@");
    rig.postgres.execute(&format!("create subscription s connection '{url}' publication p")).await.unwrap();
    wait_until("the first copy has arrived", async || {
        let rows = count(&rig, "select count(*) from products").await;
        if rows == 5 { Ok(()) } else { Err(rows.to_string()) }
    })
    .await;
    wait_until("the subscription follows", async || {
        let ready = count(&rig, "select count(*) from pg_subscription_rel where srsubstate = 'r'").await;
        if ready == 1 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    captured(&rig).await;
    source.execute("update products set price = 0 where id = 3; delete from products where id = 4; insert into products values (9, 'new', 9)").await.unwrap();
    wait_until("the rows are applied", async || {
        let rows = count(&rig, "select count(*) from products where id = 9").await;
        if rows == 1 { Ok(()) } else { Err(rows.to_string()) }
    })
    .await;
    assert_eq!(captured(&rig).await, "3 4 9");
    rig.postgres.execute("drop subscription s").await.unwrap();
}

#[tokio::test]
async fn a_tree_with_a_foreign_member_is_written_as_before_and_is_not_covered() {
    let rig = Rig::start(
        "create table products (id int, name text, price int) partition by range (id);
         create table products_1 partition of products for values from (0) to (1000);
         insert into products select n, 'p', n from generate_series(1, 9) n",
    )
    .await;
    let context = rig.context(&plain());
    let _follower = follower(&context).await;
    let port = count(&rig, "select current_setting('port')").await;
    rig.postgres
        .execute(&format!(
            "create extension postgres_fdw;
             create server there foreign data wrapper postgres_fdw options (host '127.0.0.1', port '{port}', dbname 'postgres');
             create user mapping for postgres server there options (user 'postgres');
             create table far (id int primary key, name text, price int);
             create foreign table products_far partition of products for values from (1000) to (2000)
                server there options (table_name 'far')"
        ))
        .await
        .unwrap();
    assert!(reason(&context, true).await.unwrap().contains("foreign"));
    assert_eq!(count(&rig, "select count(*) from pg_trigger where tgname like 'cachekeeper%'").await, 0);
    writes(&rig, "insert into products values (1500, 'far', 1), (20, 'x', 1)").await;
    writes(&rig, "update products set price = 7; delete from products where id in (2, 1500)").await;
    rig.postgres.execute("alter table products detach partition products_far").await.unwrap();
    assert_eq!(reason(&context, true).await, None);
}

#[tokio::test]
async fn a_large_statement_needs_no_temporary_file_and_stays_small_in_the_outbox() {
    let rig = Rig::start_with(TABLES, &["temp_file_limit=100kB", "work_mem=64kB"], &[]).await;
    let context = rig.context(&format!("[feed]\nmax_rows = 100\n{}", plain()));
    let _follower = follower(&context).await;
    writes(&rig, "set temp_file_limit = '100kB'; insert into products select n, 'x', n from generate_series(501, 999) n").await;
    assert_eq!(count(&rig, "select count(*) from cachekeeper.outbox").await, 101);
    assert!(captured(&rig).await.ends_with("600 all"));
    // Another statement of the same transaction is counted by itself.
    let mut session = rig.postgres.session().await.unwrap();
    for sql in [
        "begin",
        "update products set price = 0 where id <= 100",
        "update products set price = 1 where id <= 101",
        "commit",
    ] {
        session.execute(sql).await.unwrap();
    }
    assert_eq!(count(&rig, "select count(*) from cachekeeper.outbox where keys is null").await, 1);
    assert_eq!(count(&rig, "select count(*) from cachekeeper.outbox").await, 201);
}

/// A statement that changes many rows, and a transaction of many statements, use up no transaction ids of their own.
#[tokio::test]
async fn capture_uses_no_transaction_ids() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    let _follower = follower(&context).await;
    let mut session = rig.postgres.session().await.unwrap();
    let number = async |session: &mut Session| {
        session.text("select pg_current_xact_id()::text").await.unwrap().unwrap().parse::<u64>().unwrap()
    };
    let before = number(&mut session).await;
    let many: String = (1..200).map(|id| format!("update products set price = 0 where id = {id};")).collect();
    session.execute(&format!("begin; {many} delete from products where id < 100; insert into products select n, 'x', n from generate_series(1, 99) n; commit")).await.unwrap();
    assert_eq!(number(&mut session).await, before + 2);
}

#[tokio::test]
async fn every_command_of_a_transaction_that_changes_the_table_is_captured() {
    let rig = Rig::start("create table products (id int primary key, name text, price int)").await;
    let context = rig.context(&plain());
    let _follower = follower(&context).await;
    for (sql, expected) in [
        ("insert into products values (1, 'a', 1), (2, 'b', 2)", "1 2"),
        // A column is called otherwise for a while: what cannot be read means the whole table.
        (
            "begin; insert into products values (3, 'c', 3); alter table products rename id to number; \
             insert into products values (4, 'd', 4), (5, 'e', 5); delete from products where number = 3; \
             alter table products rename number to id; insert into products values (6, 'f', 6); commit",
            "3 all",
        ),
        (
            "begin; insert into products values (7, 'g', 7); savepoint a; update products set price = 0; rollback to a; commit",
            "7",
        ),
        (
            "begin; insert into products values (8, 'h', 8); delete from products where id = 8; insert into products values (8, 'h', 8); delete from products where id in (1, 8); commit",
            "8 8 8 1 8",
        ),
        ("update products set id = 10 where id = 2", "2,10"),
        ("insert into products values (10, 'x', 1) on conflict (id) do update set price = 0", "10"),
        (
            "merge into products p using (values (10), (11)) v(id) on p.id = v.id when matched then delete when not matched then insert values (v.id, 'm', 0)",
            "10 11",
        ),
        ("truncate products", "all"),
    ] {
        writes(&rig, sql).await;
        let found = captured(&rig).await;
        let sorted = |text: &str| {
            let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            words.sort_unstable();
            words
        };
        assert_eq!(sorted(&found), sorted(expected), "{sql}: {found}");
    }
}

#[tokio::test]
async fn rows_that_move_between_partitions_or_vanish_on_the_way_are_captured() {
    let rig = Rig::start(
        "create table products (id int, name text, price int, region int not null) partition by list (region);
         create table products_1 partition of products for values in (1);
         create table products_2 partition of products for values in (2);
         create table products_3 partition of products for values in (3);
         create function swallow() returns trigger language plpgsql as 'begin return null; end';
         create trigger swallow before insert on products_3 for each row execute function swallow();
         insert into products select n, 'p', n, 1 from generate_series(1, 9) n;",
    )
    .await;
    let context = rig.context(&plain());
    let _follower = follower(&context).await;
    writes(&rig, "update products set region = 2 where id = 3").await;
    assert_eq!(captured(&rig).await, "3 3");
    writes(&rig, "update products set region = 3 where id = 4").await;
    assert_eq!(captured(&rig).await, "4");
    writes(&rig, "update products_1 set price = 0 where id = 5; truncate products_2").await;
    assert_eq!(captured(&rig).await, "5 all");
}

/// Whatever is done to the outbox, writers go on, and what was missed is made good.
#[tokio::test]
async fn a_broken_outbox_stops_no_writer_and_nothing_is_missed() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    let mut consumer = follower(&context).await;
    let mut client = rig.client().await;
    for (harm, mend) in [
        (
            "alter table cachekeeper.outbox rename to elsewhere",
            "alter table cachekeeper.elsewhere rename to outbox",
        ),
        (
            "alter table cachekeeper.outbox rename column keys to k",
            "alter table cachekeeper.outbox rename column k to keys",
        ),
        (
            "create role other; grant usage on all sequences in schema cachekeeper to other; \
             alter function cachekeeper.capture_1() owner to other",
            "alter function cachekeeper.capture_1() owner to postgres",
        ),
    ] {
        rig.postgres.execute(harm).await.unwrap();
        writes(
            &rig,
            "update products set name = 'missed' where id < 20; insert into products values (900, 'x', 1)",
        )
        .await;
        writes(&rig, "delete from products where id = 900").await;
        rig.postgres.execute(mend).await.unwrap();
        missed_is_made_good(&context, &mut consumer, &mut client, harm).await;
    }
    // The sequence that counts may not be used.
    rig.postgres
        .execute(
            "grant select, insert, delete on cachekeeper.outbox to other; revoke all on sequence cachekeeper.outbox_count from other; \
             alter function cachekeeper.capture_1() owner to other",
        )
        .await
        .unwrap();
    writes(&rig, "update products set name = 'uncounted' where id < 20").await;
    rig.postgres.execute("alter function cachekeeper.capture_1() owner to postgres").await.unwrap();
    missed_is_made_good(&context, &mut consumer, &mut client, "the count").await;
    // Somebody holds it for long, as VACUUM FULL does: nobody waits.
    let mut holder = rig.postgres.session().await.unwrap();
    holder.execute("begin; lock table cachekeeper.outbox in access exclusive mode").await.unwrap();
    writes(&rig, "set statement_timeout = '500ms'; update products set name = 'locked' where id = 7").await;
    holder.execute("commit").await.unwrap();
    missed_is_made_good(&context, &mut consumer, &mut client, "lock").await;
    // Nothing of ours is left at all.
    rig.postgres.execute("drop table cachekeeper.outbox; drop sequence cachekeeper.uncaptured; drop sequence cachekeeper.outbox_count").await.unwrap();
    writes(&rig, "update products set name = 'alone' where id < 20; truncate products").await;
}

async fn missed_is_made_good(
    context: &Context,
    consumer: &mut FeedConsumer,
    client: &mut redis::aio::MultiplexedConnection,
    why: &str,
) {
    let _: () =
        redis::cmd("HDEL").arg("ck:{test:0}:meta").arg("pending:product").query_async(client).await.unwrap();
    // Seen by a step, which leaves the dataset out.
    for _ in 0..500 {
        consumer.step(true).await.unwrap();
        if consumer.wants_coverage() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(consumer.wants_coverage(), "{why}");
    is_covered_again(context, consumer).await;
    let pending = context.redis.metadata("").await.unwrap().pending;
    assert!(pending.contains_key("product"), "{why}: {pending:?}");
}

/// Neither the writer's search path nor a cast of a type's owner is called with the installer's rights.
#[tokio::test]
async fn nothing_of_a_writer_runs_with_the_installers_rights() {
    let rig = Rig::start(
        "create role shop; create schema evil; grant all on schema evil, public to shop;
         create type kind as enum ('a', 'b');
         alter type kind owner to shop;
         create table products (id int, name kind, price int, primary key (id, name));
         grant all on products to shop;
         create table caught (who text); grant all on caught to public;",
    )
    .await;
    let context = rig.context(
        "[dataset.product]\nquery = \"select id, name, price from products\"\nkey = \"product:{id}:{name}\"\n\
         watch = [{ table = \"products\", key = { id = \"id\", name = \"name\" } }]\n",
    );
    let _follower = follower(&context).await;
    rig.postgres
        .execute(
            "set role shop;
             create function evil.any_equal(text, text) returns boolean language plpgsql as
                'begin insert into public.caught values (current_user); return $1 operator(pg_catalog.=) $2; end';
             create operator evil.= (leftarg = text, rightarg = text, function = evil.any_equal);
             create operator evil.<> (leftarg = text, rightarg = text, function = evil.any_equal);
             create function evil.of_kind(kind) returns text language plpgsql as
                'begin insert into public.caught values (current_user); return ''evil''; end';
             create cast (kind as text) with function evil.of_kind(kind) as implicit;
             create function evil.current_setting(text, boolean) returns text language plpgsql as
                'begin insert into public.caught values (current_user); return null; end';
             set search_path = evil, pg_catalog, public;
             insert into products values (1, 'a', 1), (2, 'b', 1);
             update products set price = 2, name = 'b' where id = 1;
             delete from products where id = 2",
        )
        .await
        .unwrap();
    assert_eq!(captured(&rig).await, "1,a 2,b 1,a,1,b 2,b");
    assert_eq!(count(&rig, "select count(*) from caught where who <> 'shop'").await, 0);
}

#[tokio::test]
async fn large_keys_mean_the_whole_table() {
    let rig = Rig::start("create table products (id int primary key, name text, price int)").await;
    let toml = dataset(
        "select id, name from products",
        "{ table = \"products\", key = { id = \"id\" } }, { table = \"products\", tag = \"name:{name}\" }",
    );
    let context = rig.context(&toml);
    let mut consumer = follower(&context).await;
    writes(&rig, "insert into products select n, case when n % 2 = 0 then 'x' else repeat(chr(1), 20000) end, n from generate_series(1, 8) n").await;
    assert_eq!(captured(&rig).await, "all");
    writes(&rig, "insert into products values (20, repeat('y', 5000), 1); update products set name = repeat('z', 5000) where id = 20").await;
    assert_eq!(captured(&rig).await.len(), "20,".len() + 5_000 + " all".len());
    writes(
        &rig,
        "insert into products select n, repeat(md5(n::text), 200), n from generate_series(100, 3000) n",
    )
    .await;
    settle(&mut consumer).await;
}

/// In a database of another encoding, a text that is no UTF-8 costs its own key only.
#[tokio::test]
async fn a_key_that_is_no_utf8_does_not_stop_the_others() {
    let rig = Rig::start("").await;
    rig.postgres
        .execute("create database old encoding 'WIN1252' locale 'C' template template0")
        .await
        .unwrap();
    let mut config = rig.config(
        "[dataset.item]\nquery = \"select code, price from items\"\nkey = \"item:{code}\"\nformat = \"json\"\n\
         watch = [{ table = \"items\", key = { code = \"code\" } }]\n",
    );
    config.postgres.url = cachekeeper_config::Secret::new(rig.postgres.url_of("old"));
    let mut session = Session::open(&rig.postgres.url_of("old")).await.unwrap();
    session.execute("create table items (code text primary key, price int)").await.unwrap();
    let context = Context::of_worker(&config).unwrap();
    context.postgres.migrate().await.unwrap();
    let mut consumer = follower(&context).await;
    session
        .execute("insert into items values ('a', 1), (encode('x', 'escape') || chr(129), 2), ('c', 3)")
        .await
        .unwrap();
    // The first attempt finds out.
    consumer.step(true).await.unwrap_err();
    settle(&mut consumer).await;
    assert_eq!(context.metrics.changes.get(), 3);
}

#[tokio::test]
async fn what_was_prepared_before_a_crash_is_waited_for() {
    crash_over_a_prepared_transaction(0).await;
}

#[tokio::test]
async fn what_was_prepared_before_a_crash_is_waited_for_although_the_clock_went_back() {
    crash_over_a_prepared_transaction(-3_600).await;
}

#[tokio::test]
async fn what_was_prepared_before_a_crash_is_waited_for_although_the_clock_ran_ahead() {
    crash_over_a_prepared_transaction(3_600).await;
}

/// Around the crash the server's clock is so many seconds ahead.
async fn crash_over_a_prepared_transaction(ahead: i64) {
    let (rig, clock) = Rig::start_with_clock(TABLES, &["max_prepared_transactions=5"]).await;
    let context = rig.context(&plain());
    let _follower = follower(&context).await;
    rig.postgres
        .execute("begin; update products set name = 'prepared' where id = 5; prepare transaction 'held'")
        .await
        .unwrap();
    assert_eq!(count(&rig, "select count(*) from cachekeeper.outbox").await, 0);
    if ahead == 0 {
        // After a crash the markers are some steps ahead.
        rig.postgres
            .execute("select nextval('cachekeeper.uncaptured'), nextval('cachekeeper.uncaptured_1')")
            .await
            .unwrap();
        context.postgres.note_uncaptured().await.unwrap();
    }
    clock.set(ahead).unwrap();
    // One backend is killed: the server starts all others anew, and empties unlogged tables.
    let mut session = rig.postgres.session().await.unwrap();
    let pid = session.text("select pg_backend_pid()::text").await.unwrap().unwrap();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    wait_until("the server is back", async || match context.postgres.ping().await {
        Ok(()) => Ok(()),
        Err(error) => Err(error.to_string()),
    })
    .await;
    let mut consumer = FeedConsumer::new(&context);
    steps_until(&mut consumer, "a new incarnation", |step| step == Step::Waiting).await;
    let found = reason(&context, true).await.unwrap();
    // The marker's gap waits for it too, and is told first.
    let why =
        if ahead == 0 { "older transactions to end" } else { "prepared before the server's last crash" };
    assert!(found.contains(why), "{found}");
    // A revalidation has run, and only then it commits: nothing but what is covered anew tells of it (X41).
    let mut client = rig.client().await;
    let pending: i64 = redis::cmd("HDEL")
        .arg("ck:{test:0}:meta")
        .arg("pending:product")
        .query_async(&mut client)
        .await
        .unwrap();
    assert_eq!(pending, 1);
    rig.postgres.execute("commit prepared 'held'").await.unwrap();
    is_covered_again(&context, &mut consumer).await;
    assert!(context.redis.metadata("").await.unwrap().pending.contains_key("product"));
    clock.set(0).unwrap();
    // One that was prepared in this incarnation is captured whole.
    rig.postgres
        .execute("begin; update products set name = 'again' where id = 6; prepare transaction 'new'")
        .await
        .unwrap();
    assert_eq!(reason(&context, true).await, None);
    rig.postgres.execute("commit prepared 'new'").await.unwrap();
    assert_eq!(captured(&rig).await, "6");
}

/// Installing waits for nobody for long, and nobody waits for it: not beside a session that is idle in a transaction.
#[tokio::test]
async fn installing_beside_an_open_transaction_keeps_no_writer_waiting() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    let mut idle = rig.postgres.session().await.unwrap();
    idle.execute("begin; update products set price = 0 where id = 1").await.unwrap();
    let install = async {
        for _ in 0..5 {
            let found = reason(&context, true).await.unwrap();
            assert!(found.contains("trying again"), "{found}");
        }
    };
    let write = async {
        let mut writer = rig.postgres.session().await.unwrap();
        writer.execute("set lock_timeout = '100ms'").await.unwrap();
        for id in 2..300 {
            writer.execute(&format!("update products set price = 0 where id = {id}")).await.unwrap();
        }
    };
    tokio::join!(install, write);
    idle.execute("commit").await.unwrap();
    assert_eq!(reason(&context, true).await, None);
}

/// A statement under way may have read the trigger while it was switched off, and have no transaction id yet.
#[tokio::test]
async fn the_switch_waits_for_whoever_holds_a_lock_of_writers() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    let _follower = follower(&context).await;
    context.postgres.switch_capture(false, &context.feed.limits).await.unwrap();
    let mut open = rig.postgres.session().await.unwrap();
    open.execute("begin; lock table products in row exclusive mode").await.unwrap();
    context.postgres.switch_capture(true, &context.feed.limits).await.unwrap();
    assert!(reason(&context, true).await.unwrap().contains("older transactions"));
    open.execute("commit").await.unwrap();
    assert_eq!(reason(&context, true).await, None);
}

/// The triggers of earlier versions are replaced without a gap: every change before, between and after is in the outbox.
#[tokio::test]
async fn the_triggers_of_earlier_versions_are_replaced_without_a_gap() {
    let rig = Rig::start("create table products (id int primary key, name text, price int)").await;
    rig.postgres
        .execute(
            "insert into cachekeeper.capture (id, root, columns, version, mode, db) overriding system value
                select 77, 'products'::regclass, '{id}', 1, 'statement', oid from pg_database where datname = current_database();
             create function cachekeeper.capture_77() returns trigger language plpgsql security definer
             set search_path = pg_catalog, pg_temp as $$ begin
                insert into cachekeeper.outbox (capture, version, keys)
                select 77, 1, array_agg(array[r.id::text]) from new_rows r having 0 < count(*); return null;
             end $$;
             create trigger cachekeeper_insert after insert on products referencing new table as new_rows
                for each statement execute function cachekeeper.capture_77();
             alter table products enable always trigger cachekeeper_insert",
        )
        .await
        .unwrap();
    writes(&rig, "insert into products values (1, 'a', 1), (2, 'b', 2)").await;
    let context = rig.context(&plain());
    let mut consumer = follower(&context).await;
    writes(&rig, "insert into products values (3, 'c', 3)").await;
    settle(&mut consumer).await;
    assert_eq!(context.metrics.changes.get(), 1);
    assert_eq!(captured(&rig).await, "1,2 3");
    assert_eq!(count(&rig, "select count(*) from pg_trigger where tgname = 'cachekeeper_insert'").await, 0);
}

#[tokio::test]
async fn a_table_that_is_written_in_bulk_can_be_captured_by_statement() {
    let rig = Rig::start(TABLES).await;
    let by_statement = "{ table = \"products\", key = { id = \"id\" }, capture = \"statement\" }";
    let context = rig.context(&format!(
        "[feed]\nmax_rows = 300\n{}",
        dataset("select id, name, price from products", by_statement)
    ));
    let mut consumer = follower(&context).await;
    for (sql, rows, keys) in [
        ("update products set price = 0 where id between 1 and 130", 3, 130),
        ("update products set price = price", 0, 0),
        ("delete from products where id = 3", 1, 1),
        ("insert into products values (3, 'x', 1)", 1, 1),
        ("update products set id = 900 where id = 4", 1, 2),
    ] {
        writes(&rig, sql).await;
        let found = "select count(*) from cachekeeper.outbox where keys is not null";
        assert_eq!(count(&rig, found).await, rows, "{sql}");
        let found = "select coalesce(sum(cardinality(keys)), 0) from cachekeeper.outbox";
        assert_eq!(count(&rig, found).await, keys, "{sql}");
        settle(&mut consumer).await;
        captured(&rig).await;
    }
    writes(&rig, "update products set price = price + 1").await;
    assert_eq!(captured(&rig).await, "all");
    // Another process asks for rows: rows it is, until somebody installs what is configured.
    let other = rig.context(&plain());
    assert_eq!(reason(&other, true).await, None);
    assert_eq!(reason(&context, true).await, None);
    writes(&rig, "update products set price = 0 where id in (1, 2)").await;
    assert_eq!(captured(&rig).await, "1 2");
    assert!(coverage::install_exactly(&context).await.unwrap().gaps().next().is_none());
    writes(&rig, "update products set price = 1 where id in (1, 2)").await;
    assert_eq!(captured(&rig).await, "1,2");
}

/// What a row holds out of line is not read for the sake of capture, unless it is part of a key (faults B3).
#[tokio::test]
async fn values_that_are_out_of_line_are_not_read() {
    let rig = Rig::start(
        "create table products (id int primary key, name text, price int); alter table products alter column name set storage external;
         insert into products select n, repeat(md5(n::text), 6250), n from generate_series(1, 50) n",
    )
    .await;
    let context = rig.context(&plain());
    let _follower = follower(&context).await;
    let mut session = rig.postgres.session().await.unwrap();
    // A session reads its own counts once a transaction.
    let blocks = async |session: &mut Session| {
        session.execute("select pg_stat_force_next_flush()").await.unwrap();
        let sql = "select (toast_blks_read + toast_blks_hit)::text from pg_statio_user_tables where relname = 'products'";
        session.text(sql).await.unwrap().unwrap().parse::<i64>().unwrap()
    };
    let before = blocks(&mut session).await;
    session.execute("update products set price = price + 1").await.unwrap();
    let after = blocks(&mut session).await;
    assert_eq!(captured(&rig).await.split(' ').count(), 50);
    assert_eq!(after, before, "blocks of the values were read");
    session.execute("update products set price = price + 1 where length(name || '') > 7").await.unwrap();
    assert!(after < blocks(&mut session).await, "the test looks at the wrong place");
}

/// Rows that were restored from a server with higher transaction ids are of no snapshot here (design-review-2.md 19).
#[tokio::test]
async fn rows_with_ids_that_were_not_given_out_yet_are_not_read() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    let mut consumer = follower(&context).await;
    let high = "insert into cachekeeper.outbox (xid, capture, version, keys) select '4000000000', id, version, '{5}' from cachekeeper.capture";
    rig.postgres.execute(high).await.unwrap();
    let before = context.redis.metadata("").await.unwrap().cursor;
    writes(&rig, "update products set price = 0 where id = 7").await;
    settle(&mut consumer).await;
    assert_eq!(context.metrics.changes.get(), 1);
    assert_ne!(context.redis.metadata("").await.unwrap().cursor, before);
}

/// A trigger that reads the outbox would make two thirds of the serializable transactions fail (design-review-2.md 11). The
/// control is an application's own trigger that does.
#[tokio::test]
async fn serializable_writers_do_not_meet_in_the_outbox() {
    let rig = Rig::start(
        "create table products (id int primary key, name text, price int); insert into products values (1, 'a', 1);
         create table notes (id int primary key, text text); insert into notes values (1, 'a');
         create function reads() returns trigger language plpgsql as 'begin perform count(*) from cachekeeper.outbox; return null; end';",
    )
    .await;
    let notes = "[dataset.note]\nquery = \"select id, text from notes\"\nkey = \"note:{id}\"\nwatch = [{ table = \"notes\", key = { id = \"id\" } }]\n";
    let context = rig.context(&format!("{}{notes}", plain()));
    let _follower = follower(&context).await;
    let both = async |round: i32| {
        let mut sessions = [rig.postgres.session().await.unwrap(), rig.postgres.session().await.unwrap()];
        for session in &mut sessions {
            session.execute("begin isolation level serializable").await.unwrap();
        }
        let (mut failed, statements) = (
            0,
            [format!("update products set price = {round}"), format!("update notes set text = '{round}'")],
        );
        for _ in 0..2 {
            for (session, statement) in sessions.iter_mut().zip(&statements) {
                failed += i32::from(session.execute(statement).await.is_err());
            }
        }
        for session in &mut sessions {
            failed += i32::from(session.execute("commit").await.is_err());
        }
        failed
    };
    for round in 0..20 {
        assert_eq!(both(round).await, 0, "round {round}");
    }
    assert_eq!(captured(&rig).await.split(' ').count(), 80);
    for table in ["products", "notes"] {
        let reads =
            format!("create trigger reads after update on {table} for each row execute function reads()");
        rig.postgres.execute(&reads).await.unwrap();
    }
    assert!(0 < both(100).await, "the control does not fail");
}
