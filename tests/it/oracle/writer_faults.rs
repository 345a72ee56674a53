//! What is done to whoever carries writes out: disconnected, locked out, blocking others.

use std::time::Duration;

use tokio::time::Instant;

use super::Arena;
use super::faults::Fault;
use crate::support::wait_until;

pub async fn inject(fault: Fault, arena: &Arena, some_time: Duration) {
    match fault {
        Fault::TerminateWriter => interrupt(arena, "pg_terminate_backend").await,
        Fault::CancelWriter => interrupt(arena, "pg_cancel_backend").await,
        Fault::HeldRows => hold_rows(arena, some_time * 3).await,
        Fault::Deadlocks => {
            tokio::join!(
                lock_in_turn(arena, some_time * 3, "asc"),
                lock_in_turn(arena, some_time * 3, "desc")
            );
        }
        Fault::Conflicts => {
            let begin = "insert into trouble values ('40001', 0.05), ('40P01', 0.05)";
            arena.rig.lock().await.postgres.execute(begin).await.unwrap();
            tokio::time::sleep(some_time * 2).await;
            arena.rig.lock().await.postgres.execute("delete from trouble").await.unwrap();
        }
        Fault::UnknownCommits => lose_answers(arena).await,
        _ => panic!("{fault:?} is not done to a writer"),
    }
}

/// Sessions in the middle of carrying out commands, until some were met.
async fn interrupt(arena: &Arena, function: &str) {
    const MEETINGS: usize = 3;
    let sql = format!(
        "select count({function}(pid))::text from pg_stat_activity where application_name = 'cachekeeper' \
         and (state like 'idle in transaction%' or state = 'active' and query like '%cachekeeper.applied%')"
    );
    let mut session = arena.rig.lock().await.postgres.session().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut met = 0;
    while met < MEETINGS {
        assert!(Instant::now() < deadline, "no writer was met in the middle of its work");
        met += session.text(&sql).await.unwrap().unwrap().parse::<usize>().unwrap();
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Rows that writes need are locked for a while.
async fn hold_rows(arena: &Arena, time: Duration) {
    let mut session = arena.rig.lock().await.postgres.session().await.unwrap();
    // A writer may hold one of them and want another that is locked already.
    let lock = "begin; select from counters where id % 2 = 0 order by id for update";
    while session.execute(lock).await.is_err() {
        session.execute("rollback").await.unwrap();
    }
    tokio::time::sleep(time).await;
    session.execute("rollback").await.unwrap();
}

/// Locks the rows one by one; two sessions in opposite order are in each other's way, and in that of every writer. Writers
/// look for deadlocks sooner, so that they are the ones who lose.
async fn lock_in_turn(arena: &Arena, time: Duration, order: &str) {
    let mut session = arena.rig.lock().await.postgres.session().await.unwrap();
    session.execute("set deadlock_timeout = '300ms'").await.unwrap();
    let began = Instant::now();
    let lock = format!(
        "do $$ declare one record; begin
             for one in select distinct id from command_log order by id {order} loop
                 perform from counters where id = one.id for update;
                 perform pg_sleep(0.02);
             end loop;
         end $$"
    );
    while began.elapsed() < time {
        // One of them loses now and then.
        drop(session.execute(&lock).await);
    }
}

/// Sessions are ended while they wait, after their commit, for a standby that there is not: the transactions are committed,
/// but nobody is told.
async fn lose_answers(arena: &Arena) {
    let mut session = arena.rig.lock().await.postgres.session().await.unwrap();
    session.execute("alter system set synchronous_standby_names = 'nobody'").await.unwrap();
    session.execute("select pg_reload_conf()").await.unwrap();
    let end = "select count(*) filter (where application_name = 'cachekeeper' and pg_terminate_backend(pid)
        or application_name <> 'cachekeeper' and not pg_terminate_backend(pid))::text
        from pg_stat_activity where wait_event = 'SyncRep'";
    wait_until("commits were met", async || {
        // Other writers too: they would hold the locks that ours want.
        let mut session = arena.rig.lock().await.postgres.session().await.unwrap();
        let met = session.text(end).await.unwrap().unwrap();
        if met == "0" { Err(met) } else { Ok(()) }
    })
    .await;
    session.execute("alter system reset synchronous_standby_names").await.unwrap();
    session.execute("select pg_reload_conf()").await.unwrap();
}
