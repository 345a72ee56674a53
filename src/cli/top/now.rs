//! Now: is it right, how fresh is it, what needs somebody.

use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::paint::{Mood, Paint, clock, count, fit, fit_right, sign, span, wrapped};
use super::snapshot::{Attention, Now, Snapshot};

/// What is counted, in the order of its way through the worker.
const TOTALS: [(&str, &str); 10] = [
    ("changes", "changes"),
    ("changed_keys", "changed keys"),
    ("events", "events"),
    ("misses", "misses filled"),
    ("refreshed", "refreshed"),
    ("written", "writes"),
    ("stored", "stored"),
    ("deleted", "deleted"),
    ("refused", "refused"),
    ("failed", "failed"),
];
/// Of one count: its name, in a second, since the start.
const NAME: usize = 14;
const RATE: usize = 10;
const TOTAL: usize = 13;

pub(super) fn lines(snapshot: &Snapshot, columns: usize, paint: Paint) -> Vec<Line<'static>> {
    let Some(now) = &snapshot.now else { return vec![Line::raw("Asking the worker …")] };
    let mut lines = truth(now, columns, paint);
    lines.extend(freshness(snapshot, now));
    lines.push(Line::default());
    lines.extend(attention(now, snapshot.at_ms, columns, paint));
    lines.push(Line::default());
    lines.extend(counts(snapshot, now, columns, paint));
    if !now.notes.is_empty() {
        lines.push(Line::default());
        lines.push(Line::styled("Worth knowing", paint.head()));
        lines.extend(now.notes.iter().flat_map(|note| wrapped("- ", note, columns, Style::new())));
    }
    lines
}

fn truth(now: &Now, columns: usize, paint: Paint) -> Vec<Line<'static>> {
    let (mood, state) = match (now.ready, now.attention.is_empty()) {
        (false, _) => (Mood::Bad, " NOT READY"),
        (true, false) => (Mood::Warn, "ready, with something to look at"),
        (true, true) => (Mood::Good, "ready"),
    };
    let mut lines = vec![Line::styled(format!("{}{state}", sign(mood)).trim().to_owned(), paint.mood(mood))];
    lines.extend(wrapped("", &now.sentence, columns, Style::new().add_modifier(Modifier::BOLD)));
    lines
}

fn freshness(snapshot: &Snapshot, now: &Now) -> Vec<Line<'static>> {
    let age = now.watermark_age_ms.map_or("unknown".to_owned(), span);
    let share = |percent| snapshot.age(percent).map(span);
    let shares = match (share(50), share(99)) {
        (Some(half), Some(most)) => {
            format!("   p50 {half}   p99 {most}   (last 5 min)")
        }
        _ => String::new(),
    };
    let waiting = |name: &str| now.waiting.get(name).copied().map_or("?".to_owned(), count);
    vec![
        Line::raw(format!("watermark age {age}{shares}")),
        Line::raw(format!(
            "waiting       {} changes   {} events   {} write commands",
            waiting("changes"),
            waiting("events"),
            waiting("writes")
        )),
    ]
}

fn attention(now: &Now, at_ms: u64, columns: usize, paint: Paint) -> Vec<Line<'static>> {
    if now.attention.is_empty() {
        return vec![Line::styled("Nothing needs you", paint.head())];
    }
    let head = format!("Needs attention ({})", now.attention.len());
    let mut lines = vec![Line::styled(head, paint.head())];
    lines.extend(now.attention.iter().flat_map(|item| needs(item, at_ms, columns, paint)));
    lines
}

fn needs(item: &Attention, at_ms: u64, columns: usize, paint: Paint) -> Vec<Line<'static>> {
    let mut lines = wrapped("! ", &item.what, columns, paint.mood(Mood::Warn));
    let since =
        item.since_ms.map(|since| format!("{} ({})", clock(since), span(at_ms.saturating_sub(since))));
    let plain = Style::new();
    lines.extend(since.iter().flat_map(|since| wrapped("  since ", since, columns, plain)));
    lines.extend(wrapped("  means ", &item.consequence, columns, plain));
    lines.extend(wrapped("  next  ", &item.next, columns, plain));
    lines
}

fn counts(snapshot: &Snapshot, now: &Now, columns: usize, paint: Paint) -> Vec<Line<'static>> {
    let gap = 3;
    let abreast = ((columns + gap) / (NAME + RATE + TOTAL + gap)).max(1);
    let known: Vec<_> = TOTALS.iter().filter(|(name, _)| now.totals.contains_key(*name)).collect();
    let rows = known.len().div_ceil(abreast).max(1);
    let head =
        format!("{}{}{}", fit("What it does", NAME), fit_right("in 1 s", RATE), fit_right("in all", TOTAL));
    let abreast = known.len().div_ceil(rows);
    let mut lines = vec![Line::styled(vec![head; abreast].join(&" ".repeat(gap)), paint.head())];
    for row in 0..rows {
        let cells = known.iter().skip(row).step_by(rows).map(|(name, label)| {
            let rate = snapshot.rate(name).map_or("-".to_owned(), |rate| format!("{rate:.1}"));
            let total = now.totals.get(*name).copied().map_or(String::new(), count);
            format!("{}{}{}", fit(label, NAME), fit_right(&rate, RATE), fit_right(&total, TOTAL))
        });
        lines.push(Line::from(Span::raw(cells.collect::<Vec<_>>().join(&" ".repeat(gap)))));
    }
    lines
}
