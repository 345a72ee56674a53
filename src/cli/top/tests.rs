//! What a person sees, drawn into memory.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;

use super::paint::Paint;
use super::snapshot::{Attention, Dataset, Lease, Machine, Now, Progress, Server, Snapshot, Task};
use super::terminal::Key;
use super::view::{Choice, View, render};

const PLAIN: Paint = Paint { has_color: false };

fn drawn(snapshot: &Snapshot, choice: &mut Choice, (columns, rows): (u16, u16), paint: Paint) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    terminal.draw(|frame| render(frame, snapshot, choice, paint)).unwrap();
    terminal.backend().clone()
}

fn screen(snapshot: &Snapshot, view: View, size: (u16, u16)) -> String {
    let mut choice = Choice { view, ..Choice::default() };
    let backend = drawn(snapshot, &mut choice, size, PLAIN);
    let columns = usize::from(size.0);
    let cells: Vec<&str> = backend.buffer().content().iter().map(|cell| cell.symbol()).collect();
    let rows = cells.chunks(columns).map(|row| row.concat().trim_end().to_owned());
    rows.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

fn dataset(name: &str, state: &str) -> Dataset {
    Dataset {
        name: name.to_owned(),
        state: state.to_owned(),
        last_backfill_ms: Some(100_000),
        last_backfill_entries: Some(12_345),
        ..Dataset::default()
    }
}

fn snapshot() -> Snapshot {
    let mut snapshot =
        Snapshot { namespace: "shop".into(), listen: "127.0.0.1:9464".into(), ..Snapshot::default() };
    let attention = Attention {
        what: "dataset note: not covered: the table notes\u{1b}[2J has no trigger".into(),
        since_ms: Some(100_000),
        consequence: "Changes of its tables may be missed.".into(),
        next: "`cachekeeper check` names what is missing.".into(),
    };
    let now = |changes| Now {
        ready: true,
        sentence: "1 of 2 datasets are at least as fresh as 4 ms ago; 1 may be older.".into(),
        attention: vec![attention.clone()],
        watermark_age_ms: Some(changes % 7),
        totals: [("changes", changes), ("written", 7), ("refused", 1)]
            .map(|(name, total)| (name.to_owned(), total))
            .into(),
        waiting: [("changes".to_owned(), 12), ("events".to_owned(), 3)].into(),
        version: "0.1.0".into(),
        ..Now::default()
    };
    let machine = Machine {
        tasks: vec![
            Task { name: "change_feed".into(), is_up: true, restarts: 2 },
            Task { name: "warmer".into(), is_up: false, restarts: 0 },
        ],
        servers: vec![Server {
            name: "redis".into(),
            is_up: false,
            reason: Some("connection refused".into()),
        }],
        epoch: Some("7-abc".into()),
        owner: "host/1/xyz".into(),
        started_ms: 50_000,
        reasons: Vec::new(),
    };
    snapshot.take(110_000, now(1_000), Some(machine.clone()));
    snapshot.take(111_000, now(1_250), Some(machine));
    let note = Dataset { reason: Some("its table has no trigger".into()), ..dataset("note", "not_covered") };
    let filled =
        Dataset { progress: Some(Progress { done: 50, total: 200 }), ..dataset("filled", "pending") };
    snapshot.datasets = Some(vec![dataset("product", "fresh"), filled, note]);
    snapshot.leases =
        Some(vec![Lease { name: "feed".into(), owner: "host/1/xyz".into(), is_own: true, left_ms: 2_500 }]);
    snapshot
}

#[track_caller]
fn says(screen: &str, parts: &[&str]) {
    for part in parts {
        assert!(screen.contains(part), "does not say {part:?}:\n{screen}");
    }
}

#[test]
fn now_says_the_truth_and_what_needs_somebody_on_any_screen() {
    for size in [(80, 24), (200, 60)] {
        let screen = screen(&snapshot(), View::Now, size);
        says(
            &screen,
            &[
                "cachekeeper 0.1.0  shop  127.0.0.1:9464",
                "[1 Now]  2 Datasets   3 Machine room",
                "ready, with something to look at",
                "1 of 2 datasets are at least as fresh as 4 ms ago; 1 may be older.",
                "watermark age 4 ms   p50 6 ms   p99 6 ms",
                "12 changes   3 events   ? write commands",
                "Needs attention (1)",
                "notes\\u{1b}[2J",
                "since 00:01:40Z (11.0 s)",
                "next  `cachekeeper check` names what is missing.",
                "changes            250.0        1,250",
                "q leave",
            ],
        );
    }
}

#[test]
fn datasets_are_sorted_by_state_or_name() {
    let mut choice = Choice { view: View::Datasets, ..Choice::default() };
    let snapshot = snapshot();
    let order = |choice: &mut Choice| {
        let backend = drawn(&snapshot, choice, (80, 24), PLAIN);
        let text = backend.to_string();
        let place = |name: &str| text.find(&format!("\"{name} ")).unwrap_or_else(|| panic!("{name}: {text}"));
        let mut names = ["product", "filled", "note"];
        names.sort_by_key(|name| place(name));
        names
    };
    assert_eq!(order(&mut choice), ["filled", "note", "product"]);
    assert!(!choice.press(Key::Sort));
    assert_eq!(order(&mut choice), ["filled", "note", "product"]);
    let text = screen(&snapshot, View::Datasets, (80, 24));
    says(
        &text,
        &[
            "! not covered",
            "its table has no trigger",
            "50 of 200 (25 %)",
            "12,345",
            "11.0 s ago",
            "s by name",
        ],
    );
}

#[test]
fn the_machine_room_says_what_is_down_in_words() {
    for size in [(80, 24), (200, 60)] {
        let text = screen(&snapshot(), View::Machine, size);
        says(
            &text,
            &[
                "redis                 !!DOWN",
                "connection refused",
                "warmer",
                "for 1 min 1 s",
                "this worker (host/1/xyz)",
                "2.5 s",
            ],
        );
    }
}

#[test]
fn a_worker_that_went_away_is_said_above_what_it_said_last() {
    let mut snapshot = snapshot();
    snapshot.miss(120_000, "no worker answers on 127.0.0.1:9464".into());
    snapshot.miss(125_000, "no worker answers on 127.0.0.1:9464".into());
    for view in [View::Now, View::Datasets, View::Machine] {
        let text = screen(&snapshot, view, (80, 24));
        says(&text, &["!! No answer since 00:02:00Z (5.0 s): no worker answers", "Below is what it said"]);
    }
}

#[test]
fn nothing_is_colored_where_nobody_wants_it_and_words_are_the_same() {
    let mut choice = Choice::default();
    let has_color = |paint, choice: &mut Choice| {
        let backend = drawn(&snapshot(), choice, (80, 24), paint);
        backend.buffer().content().iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(!has_color(PLAIN, &mut choice));
    assert!(has_color(Paint { has_color: true }, &mut choice));
}

#[test]
fn small_screens_and_long_lists_lose_nothing_for_good() {
    let mut snapshot = snapshot();
    snapshot.datasets = Some((0..100).map(|number| dataset(&format!("d{number:03}"), "fresh")).collect());
    let mut choice = Choice { view: View::Datasets, ..Choice::default() };
    assert!(drawn(&snapshot, &mut choice, (80, 24), PLAIN).to_string().contains("more below"));
    for _ in 0..100 {
        assert!(!choice.press(Key::PageDown));
    }
    let last = drawn(&snapshot, &mut choice, (80, 24), PLAIN).to_string();
    assert!(last.contains("d099") && last.contains("the end"), "{last}");
    for size in [(1, 1), (40, 8), (41, 9), (400, 200)] {
        for number in 1..=3 {
            assert!(!choice.press(Key::View(number)));
            drop(drawn(&snapshot, &mut choice, size, PLAIN));
        }
    }
    assert!(choice.press(Key::Leave));
}
