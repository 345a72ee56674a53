//! What is done to the rights of the worker's role, which also is whose rights the triggers have.

use std::time::Duration;

use super::faults::Fault;
use super::schema::WORKER;
use super::{Arena, shape_faults};

pub async fn inject(fault: Fault, arena: &Arena, some_time: Duration) {
    match fault {
        Fault::RevokedSelect => {
            as_superuser(arena, &format!("revoke select on groups from {WORKER}")).await;
            tokio::time::sleep(some_time * 4).await;
            as_superuser(arena, &format!("grant select on groups to {WORKER}")).await;
        }
        Fault::RevokedOutbox => {
            as_superuser(arena, &format!("revoke all on cachekeeper.outbox from {WORKER}")).await;
            tokio::time::sleep(some_time * 2).await;
            as_superuser(arena, &format!("grant all on cachekeeper.outbox to {WORKER}")).await;
        }
        Fault::RevokedTemporary => {
            // What has to be looked at anew is looked at through a temporary view.
            as_superuser(arena, "revoke temporary on database postgres from public").await;
            shape_faults::change(arena, "body").await;
            tokio::time::sleep(some_time * 4).await;
            as_superuser(arena, "grant temporary on database postgres to public").await;
        }
        Fault::ChangedOwner => {
            let give = format!(
                "begin; alter table items owner to postgres; grant all on items to {WORKER}, app; commit"
            );
            as_superuser(arena, &give).await;
            tokio::time::sleep(some_time * 2).await;
            as_superuser(arena, &format!("alter table items owner to {WORKER}")).await;
        }
        Fault::ChangedRole => {
            const SETTINGS: [(&str, &str); 4] = [
                ("default_transaction_isolation", "serializable"),
                ("datestyle", "SQL, DMY"),
                ("default_transaction_read_only", "on"),
                ("statement_timeout", "1s"),
            ];
            for (name, value) in SETTINGS {
                as_superuser(arena, &format!("alter role {WORKER} set {name} = '{value}'")).await;
            }
            let end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'cachekeeper'";
            as_superuser(arena, end).await;
            tokio::time::sleep(some_time * 4).await;
            for (name, _) in SETTINGS {
                as_superuser(arena, &format!("alter role {WORKER} reset {name}")).await;
            }
            as_superuser(arena, end).await;
        }
        _ => panic!("{fault:?} is not done to rights"),
    }
}

/// A deadlock with a writer is the writer's or ours.
async fn as_superuser(arena: &Arena, sql: &str) {
    let mut last = None;
    for _ in 0..20 {
        let mut session = arena.rig.lock().await.postgres.session().await.unwrap();
        match session.execute(sql).await {
            Ok(()) => return,
            Err(error) => last = Some(error),
        }
    }
    panic!("{sql}: {last:?}");
}
