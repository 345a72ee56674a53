//! Machine room: servers, tasks, leases.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::paint::{Mood, Paint, clock, count, fit, fit_right, sign, span, wrapped};
use super::snapshot::{Lease, Machine, Snapshot};

/// Two tasks stand abreast on 80 columns.
const NAME: usize = 22;
const STATE: usize = 7;
const RESTARTS: usize = 9;
const LEASE: usize = 30;
const LEFT: usize = 9;

pub(super) fn lines(snapshot: &Snapshot, columns: usize, paint: Paint) -> Vec<Line<'static>> {
    let Some(machine) = &snapshot.machine else { return vec![Line::raw("Asking the worker …")] };
    let mut lines = summary(snapshot, machine, columns, paint);
    lines.push(Line::default());
    lines.push(Line::styled(format!("{}{}", fit("Server", NAME), fit("  State", STATE)), paint.head()));
    for server in &machine.servers {
        lines.push(Line::from(vec![Span::raw(fit(&server.name, NAME)), state(server.is_up, paint)]));
        lines.extend(server.reason.iter().flat_map(|reason| wrapped("    ", reason, columns, Style::new())));
    }
    lines.push(Line::default());
    lines.extend(tasks(machine, columns, paint));
    lines.push(Line::default());
    match &snapshot.leases {
        Some(leases) => lines.extend(held(leases, columns, paint)),
        None => lines.push(Line::raw("The leases are not known: Redis, or the worker, does not answer.")),
    }
    lines
}

fn summary(snapshot: &Snapshot, machine: &Machine, columns: usize, paint: Paint) -> Vec<Line<'static>> {
    let running = span(snapshot.at_ms.saturating_sub(machine.started_ms));
    let epoch = machine.epoch.as_deref().unwrap_or("none yet");
    let mut lines = wrapped("worker  ", &machine.owner, columns, Style::new());
    lines.extend(wrapped(
        "runs    ",
        &format!("for {running}, since {}", clock(machine.started_ms)),
        columns,
        Style::new(),
    ));
    lines.extend(wrapped("epoch   ", epoch, columns, Style::new()));
    for reason in &machine.reasons {
        lines.extend(wrapped("!! not ready: ", reason, columns, paint.mood(Mood::Bad)));
    }
    lines
}

/// A word first: whoever sees no colour reads it.
fn state(is_up: bool, paint: Paint) -> Span<'static> {
    let (mood, word) = if is_up { (Mood::Good, "up") } else { (Mood::Bad, "DOWN") };
    Span::styled(fit(&format!("{}{word}", sign(mood)), STATE), paint.mood(mood))
}

fn tasks(machine: &Machine, columns: usize, paint: Paint) -> Vec<Line<'static>> {
    let gap = 4;
    let abreast = if 2 * (NAME + STATE + RESTARTS) + gap <= columns { 2 } else { 1 };
    let rows = machine.tasks.len().div_ceil(abreast);
    let head = format!("{}{}{}", fit("Task", NAME), fit("  State", STATE), fit_right("Restarts", RESTARTS));
    let mut lines = vec![Line::styled(vec![head; abreast].join(&" ".repeat(gap)), paint.head())];
    for row in 0..rows {
        let mut line = Vec::new();
        for task in machine.tasks.iter().skip(row).step_by(rows) {
            if !line.is_empty() {
                line.push(Span::raw(" ".repeat(gap)));
            }
            line.push(Span::raw(fit(&task.name.replace('_', " "), NAME)));
            line.push(state(task.is_up, paint));
            let mood = if task.restarts == 0 { Mood::Good } else { Mood::Warn };
            let style = if task.restarts == 0 { Style::new() } else { paint.mood(mood) };
            line.push(Span::styled(fit_right(&count(task.restarts), RESTARTS), style));
        }
        lines.push(Line::from(line));
    }
    lines
}

fn held(leases: &[Lease], columns: usize, paint: Paint) -> Vec<Line<'static>> {
    let owner = columns.saturating_sub(LEASE + LEFT + 2).min(60);
    let head = format!("{}{}  {}", fit("Lease", LEASE), fit_right("Ends in", LEFT), fit("Held by", owner));
    let mut lines = vec![Line::styled(head, paint.head())];
    if leases.is_empty() {
        lines.push(Line::raw("none is held"));
    }
    for lease in leases {
        let holder =
            if lease.is_own { format!("this worker ({})", lease.owner) } else { lease.owner.clone() };
        let left = fit_right(&span(lease.left_ms), LEFT);
        lines.push(Line::raw(format!("{}{left}  {}", fit(&lease.name, LEASE), fit(&holder, owner))));
    }
    lines
}
