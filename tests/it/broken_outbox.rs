//! Promise 7 where somebody changes what is Cachekeeper's own: no writer fails or waits, and nothing is missed.

use std::time::Duration;

use cachekeeper_engine::change_feed::FeedConsumer;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::coverage;

use crate::capture::{TABLES, follower, plain, reason};
use crate::capture_world::{captured, is_covered_again, writes};
use crate::support::Rig;

/// What is done to the outbox and to what belongs to it, and how it is undone.
const HARMS: [(&str, &str); 17] = [
    (
        "alter table cachekeeper.outbox add column more int not null",
        "alter table cachekeeper.outbox drop column more",
    ),
    (
        "alter table cachekeeper.outbox add constraint harm check (keys is null or keys[1] <> '7') not valid",
        "alter table cachekeeper.outbox drop constraint harm",
    ),
    (
        "alter table cachekeeper.outbox alter column keys set not null",
        "alter table cachekeeper.outbox alter column keys drop not null",
    ),
    (
        "alter table cachekeeper.outbox alter column keys type varchar(1)[]",
        "alter table cachekeeper.outbox alter column keys type text[]",
    ),
    ("create unique index harm on cachekeeper.outbox (capture)", "drop index cachekeeper.harm"),
    (
        "create index harm on cachekeeper.outbox ((1 / (array_length(keys, 1) - 1)))",
        "drop index cachekeeper.harm",
    ),
    (
        "create trigger harm before insert on cachekeeper.outbox for each row execute function harm()",
        "drop trigger harm on cachekeeper.outbox",
    ),
    (
        "create constraint trigger harm after insert on cachekeeper.outbox deferrable initially deferred \
         for each row execute function harm()",
        "drop trigger harm on cachekeeper.outbox",
    ),
    (
        "create rule harm as on insert to cachekeeper.outbox do instead nothing",
        "drop rule harm on cachekeeper.outbox",
    ),
    (
        "alter sequence cachekeeper.outbox_count maxvalue 3 restart 1 no cycle",
        "alter sequence cachekeeper.outbox_count no maxvalue cycle",
    ),
    ("drop sequence cachekeeper.outbox_count", "create sequence cachekeeper.outbox_count cycle"),
    (
        "alter table cachekeeper.outbox rename to real; create view cachekeeper.outbox as \
         select * from cachekeeper.real where keys is null with check option",
        "drop view cachekeeper.outbox; alter table cachekeeper.real rename to outbox",
    ),
    (
        "alter table cachekeeper.outbox drop column keys",
        "alter table cachekeeper.outbox add column keys text[]",
    ),
    // The marker of the capture is gone too, and the one of all.
    (
        "alter table cachekeeper.outbox rename to real; drop sequence cachekeeper.uncaptured_1",
        "alter table cachekeeper.real rename to outbox; create sequence cachekeeper.uncaptured_1",
    ),
    (
        "alter table cachekeeper.outbox rename to real; drop sequence cachekeeper.uncaptured",
        "alter table cachekeeper.real rename to outbox; create sequence cachekeeper.uncaptured",
    ),
    (
        "alter table cachekeeper.outbox rename to real; alter sequence cachekeeper.uncaptured maxvalue 2 restart 1 no cycle; \
         alter sequence cachekeeper.uncaptured_1 maxvalue 2 restart 1 no cycle; \
         select nextval('cachekeeper.uncaptured'), nextval('cachekeeper.uncaptured_1') from generate_series(1, 2)",
        "alter table cachekeeper.real rename to outbox; alter sequence cachekeeper.uncaptured no maxvalue cycle; \
         alter sequence cachekeeper.uncaptured_1 no maxvalue cycle",
    ),
    // Nothing of ours can be named, and no marker moves.
    ("alter schema cachekeeper rename to elsewhere", "alter schema elsewhere rename to cachekeeper"),
];

/// Steps and looks at the coverage, as a worker does, until the dataset is pending.
async fn becomes_pending(context: &Context, consumer: &mut FeedConsumer, why: &str) {
    let mut last = String::new();
    for _ in 0..500 {
        let step = consumer.step(true).await;
        if consumer.wants_coverage()
            && let Ok(found) = coverage::look(context, true).await
        {
            context.set_coverage(found);
        }
        let pending = context.redis.metadata("").await.unwrap().pending;
        if pending.contains_key("product") {
            return;
        }
        last = format!("{step:?} {pending:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{why}: {last}");
}

/// As after a revalidation that has settled everything.
async fn settled(rig: &Rig) {
    let mut client = rig.client().await;
    let _: () = redis::cmd("HDEL")
        .arg("ck:{test:0}:meta")
        .arg("pending:product")
        .query_async(&mut client)
        .await
        .unwrap();
}

#[tokio::test]
async fn whatever_becomes_of_the_outbox_no_writer_fails_and_nothing_is_missed() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    let mut consumer = follower(&context).await;
    rig.postgres
        .execute("create function harm() returns trigger language plpgsql as 'begin raise exception ''harm''; end'")
        .await
        .unwrap();
    // Sessions that wrote before, and whose plans are made.
    let mut session = rig.postgres.session().await.unwrap();
    session.execute("set statement_timeout = '5s'; set lock_timeout = '1s'").await.unwrap();
    for (harm, mend) in HARMS {
        session.execute("update products set name = 'before' where id in (7, 8)").await.unwrap();
        captured(&rig).await;
        rig.postgres.execute(harm).await.unwrap_or_else(|error| panic!("{harm}: {error}"));
        for sql in [
            "update products set name = 'missed' where id < 20",
            "insert into products values (900, 'x', 1), (901, 'y', 2)",
            "begin; delete from products where id = 900; update products set price = 0 where id = 7; delete from products where id = 901; commit",
            "begin isolation level serializable; update products set price = 1 where id = 7; commit",
        ] {
            session.execute(sql).await.unwrap_or_else(|error| panic!("{harm}: {sql}: {error}"));
        }
        rig.postgres.execute(mend).await.unwrap_or_else(|error| panic!("{mend}: {error}"));
        settled(&rig).await;
        becomes_pending(&context, &mut consumer, harm).await;
        is_covered_again(&context, &mut consumer).await;
        captured(&rig).await;
        session.execute("update products set name = 'after' where id in (7, 8)").await.unwrap();
        assert_eq!(captured(&rig).await, "7 8", "{harm}");
        is_covered_again(&context, &mut consumer).await;
    }
}

/// One transaction does both, so nobody's lock is in the way.
#[tokio::test]
async fn a_transaction_that_changes_the_outbox_itself_goes_on() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    let mut consumer = follower(&context).await;
    for (harm, mend) in &HARMS[..14] {
        if harm.contains("harm()") || harm.contains("array_length") {
            continue;
        }
        captured(&rig).await;
        let sql = format!(
            "begin; update products set price = 0 where id in (1, 2); delete from cachekeeper.outbox; {harm}; \
             update products set price = 1 where id in (7, 8); {mend}; update products set price = 2 where id in (7, 9); commit"
        );
        writes(&rig, &sql).await;
        settled(&rig).await;
        if !captured(&rig).await.contains("all") {
            becomes_pending(&context, &mut consumer, harm).await;
        }
        is_covered_again(&context, &mut consumer).await;
    }
}

/// The names are back before anybody has looked, but a transaction that wrote meanwhile is still open.
#[tokio::test]
async fn what_a_renamed_schema_has_missed_is_waited_for() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    let mut consumer = follower(&context).await;
    let mut open = rig.postgres.session().await.unwrap();
    rig.postgres.execute("alter schema cachekeeper rename to elsewhere").await.unwrap();
    open.execute("begin; update products set name = 'missed' where id = 7").await.unwrap();
    rig.postgres.execute("alter schema elsewhere rename to cachekeeper").await.unwrap();
    becomes_pending(&context, &mut consumer, "renamed").await;
    let found = reason(&context, true).await.unwrap();
    assert!(found.contains("older transactions to end"), "{found}");
    open.execute("commit").await.unwrap();
    is_covered_again(&context, &mut consumer).await;
}

/// A transaction that is open while somebody alters what is ours keeps no writer waiting.
#[tokio::test]
async fn nobody_waits_for_whoever_alters_what_is_ours() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    let mut consumer = follower(&context).await;
    for held in [
        "alter sequence cachekeeper.outbox_count maxvalue 1000000",
        "lock table cachekeeper.outbox; alter sequence cachekeeper.uncaptured_1 maxvalue 100",
        "alter sequence cachekeeper.outbox_count maxvalue 1000000; alter sequence cachekeeper.uncaptured_1 maxvalue 100",
        "lock table cachekeeper.outbox in share mode",
        "lock table cachekeeper.outbox; alter sequence cachekeeper.uncaptured maxvalue 1000000",
        "lock table cachekeeper.outbox; alter sequence cachekeeper.uncaptured maxvalue 1000000; \
         alter sequence cachekeeper.uncaptured_1 maxvalue 100000",
    ] {
        let mut holder = rig.postgres.session().await.unwrap();
        holder.execute(&format!("begin; {held}")).await.unwrap();
        writes(&rig, "set statement_timeout = '500ms'; update products set name = 'w' where id = 7; update products set price = 2 where id < 9").await;
        holder.execute("rollback").await.unwrap();
        settled(&rig).await;
        becomes_pending(&context, &mut consumer, held).await;
        is_covered_again(&context, &mut consumer).await;
    }
}
