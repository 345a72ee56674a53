//! Verbs beside others: who holds a table, a worker that runs, servers that are gone.

use cachekeeper::app::Worker;
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::support::{Cli, Rig, wait_until};
use crate::writes::{DATASETS, TABLES};

#[tokio::test]
async fn verbs_name_the_locked_table_and_who_holds_it() {
    let rig = Rig::start(TABLES).await;
    let cli = Cli::new(&rig, DATASETS);
    cli.says(&["migrate"], 0, &[]);
    let url = format!("{}&application_name=nightly", rig.postgres.url());
    let mut holder = PgConnection::connect(&url).await.unwrap();
    holder.execute("begin; lock table products in access exclusive mode").await.unwrap();
    for verb in ["check", "warm", "audit"] {
        let said = [
            "(nightly, user postgres, idle in transaction) has held a lock on products since",
            "run it again once",
        ];
        // Nothing was found to be wrong, and not everything could be asked.
        cli.says(&[verb], if verb == "check" { 69 } else { 1 }, &said);
    }
}

#[tokio::test]
async fn verbs_say_that_a_worker_runs_and_which_server_is_gone() {
    let mut rig = Rig::start(TABLES).await;
    let cli = Cli::new(&rig, DATASETS);
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    wait_until("the worker is ready", async || {
        let reasons = worker.health.reasons();
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("; ")) }
    })
    .await;
    cli.says(&["status"], 0, &[]);
    let ask = ["migrate", "--uninstall"];
    cli.says(&ask, 2, &["warning: the worker ", "is running", "stop it first"]);
    worker.stop().await;
    let (code, text) = cli.run(&ask);
    assert_eq!((code, text.contains("is running")), (2, false), "{text}");
    rig.postgres.stop();
    for verb in ["status", "check", "warm", "audit", "migrate"] {
        cli.says(&[verb], 69, &["cannot connect to"]);
    }
    rig.redis.kill();
    for verb in ["status", "purge"] {
        cli.says(&[verb, "--json"], 69, &["cannot connect to Redis"]);
    }
}
