//! Datasets: a line each, with the reason below where one is not fresh.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::paint::{Mood, Paint, count, fit, fit_right, sign, span, wrapped};
use super::snapshot::{Dataset, Snapshot};

/// The columns behind the name.
const STATE: usize = 14;
const ENTRIES: usize = 12;
const AGE: usize = 10;
const BACKFILL: usize = 13;
const WITHOUT_ENTRY: usize = 10;
/// The shortest and the longest name.
const NAME_MIN: usize = 13;
const NAME_MAX: usize = 48;

/// In which order datasets stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// The worst first.
    #[default]
    State,
    Name,
}

pub(super) fn lines(snapshot: &Snapshot, order: Order, columns: usize, paint: Paint) -> Vec<Line<'static>> {
    let Some(datasets) = &snapshot.datasets else {
        return vec![Line::raw("The datasets are not known: Redis, or the worker, does not answer.")];
    };
    if datasets.is_empty() {
        return vec![Line::raw("No dataset is configured: add one as [dataset.NAME] to the file.")];
    }
    let longest = datasets.iter().map(|dataset| Span::raw(dataset.name.as_str()).width()).max();
    let room = columns.saturating_sub(STATE + ENTRIES + AGE + BACKFILL + WITHOUT_ENTRY);
    let name = (longest.unwrap_or_default() + 1).max(NAME_MIN).min(room.clamp(NAME_MIN, NAME_MAX));
    let mut sorted: Vec<&Dataset> = datasets.iter().collect();
    sorted.sort_by(|one, other| {
        let by_name = one.name.cmp(&other.name);
        match order {
            Order::Name => by_name,
            Order::State => mood(&one.state).cmp(&mood(&other.state)).then(by_name),
        }
    });
    let head = [
        fit("Dataset", name),
        fit("  State", STATE),
        column("Entries", ENTRIES),
        column("Age", AGE),
        column("Backfill", BACKFILL),
        column("No entry", WITHOUT_ENTRY),
    ];
    let mut lines = vec![Line::styled(head.concat(), paint.head())];
    lines.extend(sorted.into_iter().flat_map(|dataset| about(dataset, snapshot, (name, columns), paint)));
    lines.push(Line::default());
    let text = "Entries: as many as the last backfill stored. Age: how old an entry is at most. Backfill: how long ago the last one began. No entry: rows that cannot be stored as they are.";
    lines.extend(wrapped("", text, columns, paint.quiet()));
    lines
}

fn about(
    dataset: &Dataset,
    snapshot: &Snapshot,
    (name, columns): (usize, usize),
    paint: Paint,
) -> Vec<Line<'static>> {
    let mood = mood(&dataset.state);
    let state = format!("{}{}", sign(mood), dataset.state.replace('_', " "));
    let now = snapshot.now.as_ref();
    // The watermark holds for no other state.
    let age = now.and_then(|now| now.watermark_age_ms).filter(|_| has_age(&dataset.state));
    let backfill =
        dataset.last_backfill_ms.map(|began| format!("{} ago", span(snapshot.at_ms.saturating_sub(began))));
    let rest = [
        column(&dataset.last_backfill_entries.map_or("-".to_owned(), count), ENTRIES),
        column(&age.map_or("-".to_owned(), span), AGE),
        column(backfill.as_deref().unwrap_or("-"), BACKFILL),
        column(&count(dataset.rows_without_entry), WITHOUT_ENTRY),
    ];
    let mut lines = vec![Line::from(vec![
        Span::raw(fit(&dataset.name, name - 1) + " "),
        Span::styled(fit(&state, STATE), paint.mood(mood)),
        Span::raw(rest.concat()),
    ])];
    lines.extend(dataset.reason.iter().flat_map(|reason| wrapped("    ", reason, columns, Style::new())));
    lines.extend(dataset.progress.iter().map(|progress| {
        let percent =
            (100 * progress.done.min(progress.total)).checked_div(progress.total).unwrap_or_default();
        Line::raw(format!("    {} of {} ({percent} %)", count(progress.done), count(progress.total)))
    }));
    lines
}

/// A number at the right of its column, with a blank before it however long it is.
fn column(text: &str, columns: usize) -> String {
    format!(" {}", fit_right(text, columns - 1))
}

fn has_age(state: &str) -> bool {
    matches!(state, "fresh" | "behind" | "paused" | "not_warmed")
}

fn mood(state: &str) -> Mood {
    match state {
        "fresh" => Mood::Good,
        "broken" | "left_out" => Mood::Bad,
        _ => Mood::Warn,
    }
}
