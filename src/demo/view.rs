//! What the demo shows while it runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::load::Counts;
use crate::actors::health::Health;

/// Columns that every terminal has.
const WIDTH: usize = 80;

/// The screen, or lines where there is none.
#[derive(Debug)]
pub struct View {
    began: Instant,
    is_terminal: bool,
    before: Option<(Instant, u64, u64, u64)>,
    drawn: usize,
    is_closed: bool,
}

/// What is shown.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The applications' counts.
    pub counts: &'a Counts,
    /// The worker's facts.
    pub health: &'a Health,
    /// Entries in Redis.
    pub entries: Option<u64>,
    /// Bytes of Redis.
    pub memory: Option<u64>,
    /// A few products: what Postgres and Redis say.
    pub prices: &'a BTreeMap<u32, (Option<i32>, Option<i64>)>,
    /// What was done to the servers and actors.
    pub happened: &'a [String],
}

impl Default for View {
    fn default() -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        Self { began: Instant::now(), is_terminal, before: None, drawn: 0, is_closed: false }
    }
}

impl View {
    /// How often it is worth looking.
    #[must_use]
    pub fn pause(&self) -> Duration {
        if self.is_terminal { Duration::from_millis(500) } else { Duration::from_secs(2) }
    }

    /// Whether nobody can see it any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// A line that stays.
    pub fn say(&mut self, text: &str) {
        self.drawn = 0;
        self.print(&format!("{text}\n"));
    }

    fn print(&mut self, text: &str) {
        let mut out = std::io::stdout();
        self.is_closed |= out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err();
    }

    /// Draws the scene over the last one.
    pub fn draw(&mut self, scene: &Scene<'_>) {
        let text = self.compose(scene);
        if !self.is_terminal {
            self.print(&format!("{}\n", text.replace('\n', " | ").replace("  ", " ")));
            return;
        }
        // A line that wraps would spoil the count of lines to go up.
        let text: Vec<String> = text.lines().map(|line| line.chars().take(WIDTH).collect()).collect();
        let text = text.join("\n");
        let mut screen = String::new();
        if 0 < self.drawn {
            // Up to where the last scene began, clearing below.
            let _infallible = write!(screen, "\x1b[{}A\x1b[J", self.drawn);
        }
        screen.push_str(&text);
        screen.push('\n');
        self.drawn = screen.matches('\n').count();
        self.print(&screen);
    }

    fn compose(&mut self, scene: &Scene<'_>) -> String {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (hits, misses) = (load(&scene.counts.hits), load(&scene.counts.misses));
        let (writes, events) = (load(&scene.counts.writes), load(&scene.counts.events));
        let now = Instant::now();
        let (then, reads_then, writes_then, events_then) = self.before.unwrap_or((self.began, 0, 0, 0));
        let seconds = (now - then).as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate to look at")]
        let rate = |count: u64, before: u64| (count - before.min(count)) as f64 / seconds;
        let reasons = scene.health.reasons();
        let facts = scene.health.all_facts();
        let epoch = facts.epoch.as_deref().unwrap_or("none yet");
        let followed = match scene.health.shards() {
            Some(shards) => format!("shards {}", shards.len()),
            None => format!("epoch {epoch}"),
        };
        let state = if reasons.is_empty() {
            "ready".to_owned()
        } else {
            format!("not ready: {}", reasons.join("; "))
        };
        let mut text = String::new();
        let clock = self.began.elapsed().as_secs();
        let _infallible = writeln!(text, "{clock:>4} s  {state}");
        let _infallible = writeln!(
            text,
            "  entries {}  redis {} MiB  {followed}",
            scene.entries.map_or("?".to_owned(), |entries| entries.to_string()),
            scene.memory.map_or("?".to_owned(), |bytes| (bytes >> 20).to_string()),
        );
        let percent = (hits * 100).checked_div(hits + misses).unwrap_or_default();
        let _infallible = writeln!(
            text,
            "  reads {:.0}/s  hits {percent} %  writes {:.0}/s  events {:.0}/s",
            rate(hits + misses, reads_then),
            rate(writes, writes_then),
            rate(events, events_then)
        );
        if !facts.pending.is_empty() {
            let pending: Vec<String> =
                facts.pending.iter().map(|(name, reason)| format!("{name} ({reason})")).collect();
            let _infallible = writeln!(text, "  pending revalidations: {}", pending.join(", "));
        }
        for (id, (postgres, redis)) in scene.prices {
            let show = |price: Option<i64>| price.map_or("-".to_owned(), |price| price.to_string());
            let (postgres, redis) = (postgres.map(i64::from), *redis);
            let mark = if postgres == redis { "=" } else { "≠" };
            let _infallible = writeln!(
                text,
                "  product:{id:<6} postgres says {:>5} {mark} redis says {:>5}",
                show(postgres),
                show(redis)
            );
        }
        if let Some(last) = scene.happened.last() {
            let _infallible = writeln!(text, "  last: {last}");
        }
        self.before = Some((now, hits + misses, writes, events));
        text.trim_end().to_owned()
    }
}
