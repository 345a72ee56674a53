//! Somebody sets a clock, and sets it right again.

use rand::RngExt;
use rand::rngs::StdRng;

use super::faults::Fault;
use super::{Arena, settled};

/// Everything goes on while the clock is wrong, and after it.
pub async fn inject(fault: Fault, arena: &Arena, random: &mut StdRng) {
    let clock = match fault {
        Fault::ClockOfRedis => &arena.clocks.redis,
        Fault::ClockOfWorkers => &arena.clocks.workers,
        Fault::ClockOfPostgres => &arena.clocks.postgres,
        _ => panic!("{fault:?} is done to no clock"),
    };
    let seconds = [3_600, -3_600, 10 * 365 * 86_400][random.random_range(0..3)];
    println!("  by {seconds} s");
    clock.set(seconds).unwrap();
    settled::caught_up(arena).await;
    settled::writes_go_on(arena).await;
    if fault == Fault::ClockOfPostgres {
        settled::housekeeping(arena).await;
    }
    clock.set(0).unwrap();
}
