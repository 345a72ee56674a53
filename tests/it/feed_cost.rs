//! What following costs the database does not grow with what the outbox holds.

use cachekeeper_engine::stores::postgres::FeedReader;
use tokio::sync::Mutex;

use crate::feed::{DATASETS, TABLES};
use crate::support::{Rig, wait_until};

/// Entries of the outbox's index that were read so far, and how often.
async fn read(rig: &Rig) -> (u64, u64) {
    let sql =
        "select idx_tup_read || ' ' || idx_scan from pg_stat_user_indexes where indexrelname = 'outbox_xid'";
    let text = rig.postgres.session().await.unwrap().text(sql).await.unwrap().unwrap();
    let (read, scans) = text.split_once(' ').unwrap();
    (read.parse().unwrap(), scans.parse().unwrap())
}

/// The planner once read the whole outbox for each poll, from the moment at which it knew how large that is.
#[tokio::test(flavor = "multi_thread")]
async fn a_poll_reads_what_changed_and_no_more_of_the_outbox() {
    const POLLS: u64 = 50;
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    context.postgres.migrate().await.unwrap();
    cachekeeper_engine::coverage::look(&context, true).await.unwrap();
    // A transaction that stays open is among the running ones of every snapshot.
    let mut open = rig.postgres.session().await.unwrap();
    open.execute("begin; update products set price = 1 where id = 1000").await.unwrap();
    let mut writer = rig.postgres.session().await.unwrap();
    let many = "do $$ begin for n in 1..20000 loop update products set price = n where id = 1 + n % 900; commit; end loop; end $$";
    writer.execute(many).await.unwrap();
    writer.execute("analyze cachekeeper.outbox").await.unwrap();
    let mut reader = FeedReader::new(&context.postgres);
    let (before, scans) = read(&rig).await;
    let mut found = 0;
    for _ in 0..POLLS {
        let cursor = context.postgres.poll().await.unwrap().snapshot;
        writer.execute("update products set price = price + 1 where id = 1").await.unwrap();
        let mut poll = reader.poll(cursor.as_str(), None).await.unwrap();
        while let Some(changes) = poll.changes.recv().await {
            found += changes.unwrap().len() as u64;
        }
    }
    assert_eq!(found, POLLS);
    // A session tells its counts while it is in use, and not at once.
    let reader = Mutex::new(reader);
    let after = wait_until("the reader's session has told its counts", || async {
        let cursor = context.postgres.poll().await.map_err(|error| error.to_string())?.snapshot;
        reader.lock().await.poll(cursor.as_str(), None).await.map_err(|error| error.to_string())?;
        let (after, scans_now) = read(&rig).await;
        if scans + POLLS <= scans_now { Ok(after) } else { Err(format!("{scans_now} scans")) }
    })
    .await;
    // The whole outbox, each time, would be fifty times as much.
    assert!(after - before < 400 * POLLS, "{POLLS} polls have read {} entries of the index", after - before);
    open.execute("rollback").await.unwrap();
}
