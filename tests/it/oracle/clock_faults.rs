//! Somebody sets a clock, and sets it right again.

use std::sync::atomic::Ordering;

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
    if fault == Fault::ClockOfPostgres {
        // Where its clock is set back it finds no deadlock for as long, and writers that lock whole tables meet in some.
        arena.is_gentle.store(true, Ordering::SeqCst);
        settled::caught_up(arena).await;
    }
    clock.set(seconds).unwrap();
    settled::caught_up(arena).await;
    settled::writes_go_on(arena).await;
    if fault == Fault::ClockOfPostgres {
        settled::housekeeping(arena).await;
    }
    clock.set(0).unwrap();
    arena.is_gentle.store(false, Ordering::SeqCst);
}
