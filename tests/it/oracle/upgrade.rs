//! Rolling upgrades: workers of an earlier build give way, one by one, to workers of this one with another definition, and come back,
//! while programs write and servers die.

use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::faults::Fault;
use super::schema::DATASETS;
use super::verdict::Lives;
use super::{Arena, conclude, load, producers, rollout_faults, seed_of_run, settled, wanted};
use crate::process::{Launch, WorkerProcess};

const COMMIT: &str = include_str!("../../older/commit");

/// What happens after each step.
const FAULTS: [Fault; 12] = [
    Fault::KillWorker,
    Fault::KillBothWorkers,
    Fault::StopWorker,
    Fault::KillAfterStores,
    Fault::KillAfterAdvance,
    Fault::KillInTags,
    Fault::KillOneBackend,
    Fault::KillRedis,
    Fault::OldDump,
    Fault::FlushRedis,
    Fault::CutClients,
    Fault::ForgottenScripts,
];

/// Each worker in turn becomes one of this build, then of the earlier one again.
const STEPS: [(usize, bool); 4] = [(0, true), (1, true), (0, false), (1, false)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_upgrade_breaks_no_promise() {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/older").join(COMMIT.trim());
    if let Ok(reason) = std::fs::read_to_string(built.join("missing")) {
        println!("{reason}");
        return;
    }
    let program = built.join("cachekeeper");
    assert!(program.exists(), "there is no {}: run tests/older/build (make test does)", program.display());
    let seed = seed_of_run();
    let mut random = StdRng::seed_from_u64(seed);
    let arena = Arena::start().await;
    let older = Arc::new(Launch { program, ..(*arena.launch).clone() });
    let changed = DATASETS.replace("select i.id,", "select /* anew */ i.id,");
    let newer = Arc::new(rollout_faults::with(&arena, changed));
    let mut workers = vec![WorkerProcess::start(&older, ""), WorkerProcess::start(&older, "")];
    let mut tasks = load::start(&arena, seed);
    tasks.extend(producers::start(&arena, seed).await);
    let mut lives = Lives::default();
    settled::caught_up(&arena).await;
    lives.note(&arena).await;
    let mut injected = 0;
    for (step, (place, is_newer)) in STEPS.iter().cycle().take(wanted().unwrap_or(STEPS.len())).enumerate() {
        let fault = FAULTS[random.random_range(0..FAULTS.len())];
        println!(
            "{step} worker {place} is of the {} build, {fault:?}",
            if *is_newer { "newer" } else { "earlier" }
        );
        if random.random_bool(0.5) {
            workers[*place].signal("TERM");
            workers[*place].ended().await;
        }
        workers[*place] = WorkerProcess::start(if *is_newer { &newer } else { &older }, "");
        fault.inject(&arena, &mut workers, &mut random, &mut lives).await;
        injected += 1;
        settled::after_a_fault(&arena, &mut lives).await;
    }
    conclude(&arena, tasks, lives, injected, seed).await;
}
