//! Hardly anything of Cachekeeper's run time reaches the write-ahead log: no row of the outbox, no lock (faults B6), and a step of a
//! sequence in 32. What is not there reaches no standby, no subscriber and no physical copy either.

use std::process::Command;

use cachekeeper_engine::coverage;
use cachekeeper_testkit::servers::{Postgres, Session};

use crate::capture::{follower, plain, settle};
use crate::support::Rig;

async fn text(session: &mut Session, sql: &str) -> String {
    session.text(sql).await.unwrap().unwrap()
}

/// What `pg_waldump` says of a part of the log.
async fn log_of(session: &mut Session, begin: &str, end: &str) -> String {
    let directory = text(session, "select current_setting('data_directory')").await;
    let dump = Command::new(Postgres::program("pg_waldump").unwrap())
        .args(["--path", &format!("{directory}/pg_wal"), "--start", begin, "--end", end])
        .output()
        .unwrap();
    String::from_utf8(dump.stdout).unwrap()
}

#[tokio::test]
async fn no_row_and_no_lock_of_the_outbox_reaches_the_log() {
    let rig = Rig::start_with(
        "create table products (id int primary key, name text, price int);
         insert into products select n, 'p', n from generate_series(1, 500) n;",
        &["wal_level=logical", "autovacuum=off"],
        &[],
    )
    .await;
    let context = rig.context(&plain());
    let mut consumer = follower(&context).await;
    let mut session = rig.postgres.session().await.unwrap();
    let begin = text(&mut session, "select pg_current_wal_lsn()::text").await;
    // What happens at run time: writes, polls, looks at the coverage, trimming, an overflow and its note, vacuum.
    for round in 0..20 {
        session
            .execute(&format!(
                "update products set price = {round}; delete from products where id = {round} + 400"
            ))
            .await
            .unwrap();
        session
            .execute("insert into products values (9000, 'x', 1); delete from products where id = 9000")
            .await
            .unwrap();
        settle(&mut consumer).await;
    }
    context.set_coverage(coverage::look(&context, true).await.unwrap());
    settle(&mut consumer).await;
    let cursor = context.redis.metadata("").await.unwrap().cursor.unwrap();
    let cursor = cursor.parse().unwrap();
    let trimmed = context.postgres.trim_outbox(&cursor, std::time::Duration::ZERO, 1 << 20).await.unwrap();
    assert!(1_000 < trimmed, "{trimmed}");
    session.execute("vacuum cachekeeper.outbox").await.unwrap();
    session.execute("update products set price = 0 where id = 1").await.unwrap();
    session.execute("select pg_switch_wal()").await.unwrap();
    let end = text(&mut session, "select pg_current_wal_lsn()::text").await;

    let place = |relation: &str| {
        format!(
            "select 'rel ' || coalesce(nullif(reltablespace, 0), (select dattablespace from pg_database where datname = current_database()))
                || '/' || (select oid from pg_database where datname = current_database()) || '/' || relfilenode
             from pg_class where oid = '{relation}'::regclass"
        )
    };
    let lock = |relation: &str| {
        format!(
            "select 'db ' || (select oid from pg_database where datname = current_database()) || ' rel ' || '{relation}'::regclass::oid::text"
        )
    };
    let log = log_of(&mut session, &begin, &end).await;
    let products = text(&mut session, &place("products")).await;
    assert!(1_000 < log.matches(&products).count(), "the test looks at the wrong place: {products}");
    let none = [place("cachekeeper.outbox"), lock("cachekeeper.outbox"), lock("cachekeeper.outbox_count")];
    for needle in none.into_iter().chain([place("cachekeeper.uncaptured"), place("cachekeeper.uncaptured_1")])
    {
        let needle = format!("{} ", text(&mut session, &needle).await);
        let found = log.lines().find(|line| format!("{line} ").contains(&needle));
        assert_eq!(found, None);
    }
    let count = format!("{} ", text(&mut session, &place("cachekeeper.outbox_count")).await);
    let steps = log.lines().filter(|line| format!("{line} ").contains(&count)).count();
    assert!(0 < steps && u64::try_from(steps).unwrap() < trimmed / 16, "{steps} of {trimmed}");
    // The temporary view that tells what a query reads locks itself, and nothing that was there before.
    for line in log.lines().filter(|line| line.contains("rmgr: Standby") && line.contains("desc: LOCK")) {
        let relation = line.split(" rel ").nth(1).unwrap().trim();
        let there =
            text(&mut session, &format!("select count(*)::text from pg_class where oid = {relation}")).await;
        assert_eq!(there, "0", "{line}");
    }

    // The control: a logged one is there.
    session.execute("alter table cachekeeper.outbox set logged; insert into cachekeeper.outbox (capture, version) values (1, 1)").await.unwrap();
    session.execute("select pg_switch_wal()").await.unwrap();
    let after = text(&mut session, "select pg_current_wal_lsn()::text").await;
    let outbox = text(&mut session, &place("cachekeeper.outbox")).await;
    assert!(log_of(&mut session, &end, &after).await.contains(&outbox), "the test looks at the wrong place");
}
