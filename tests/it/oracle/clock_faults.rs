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
    let seconds = if random.random_bool(0.5) { 3_600 } else { -3_600 };
    println!("  by {seconds} s");
    clock.set(seconds).unwrap();
    settled::caught_up(arena).await;
    settled::writes_go_on(arena).await;
    clock.set(0).unwrap();
}
