//! The whole screen: what stands above and below every view, and what a person chose.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::Paragraph;

use super::datasets::Order;
use super::paint::{Mood, Paint, clock, fit, span, wrapped};
use super::snapshot::Snapshot;
use super::terminal::Key;
use super::{datasets, machine, now};

/// Lines that a page goes on.
const PAGE: usize = 10;
/// The smallest screen on which anything is worth drawing.
const COLUMNS_MIN: u16 = 40;
const ROWS_MIN: u16 = 8;

/// A view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum View {
    #[default]
    Now,
    Datasets,
    Machine,
}

const VIEWS: [(View, &str); 3] =
    [(View::Now, "Now"), (View::Datasets, "Datasets"), (View::Machine, "Machine room")];

/// What a person chose.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Choice {
    pub view: View,
    pub order: Order,
    /// Lines that are out of sight above.
    pub scrolled: usize,
}

impl Choice {
    /// Does what a key means; true: to leave.
    pub(super) fn press(&mut self, key: Key) -> bool {
        let at = VIEWS.iter().position(|(view, _)| *view == self.view).unwrap_or_default();
        match key {
            Key::Leave => return true,
            Key::Next => self.turn_to(at + 1),
            Key::Before => self.turn_to(at + VIEWS.len() - 1),
            Key::View(number) => self.turn_to(number.saturating_sub(1)),
            Key::Sort => {
                self.order = match self.order {
                    Order::State => Order::Name,
                    Order::Name => Order::State,
                }
            }
            Key::Up => self.scrolled = self.scrolled.saturating_sub(1),
            Key::Down => self.scrolled = self.scrolled.saturating_add(1),
            Key::PageUp => self.scrolled = self.scrolled.saturating_sub(PAGE),
            Key::PageDown => self.scrolled = self.scrolled.saturating_add(PAGE),
            Key::First => self.scrolled = 0,
        }
        false
    }

    fn turn_to(&mut self, at: usize) {
        if let Some((view, _)) = VIEWS.get(at % VIEWS.len()) {
            self.view = *view;
            self.scrolled = 0;
        }
    }
}

/// Draws everything. What was scrolled too far is put back.
pub(super) fn render(frame: &mut Frame<'_>, snapshot: &Snapshot, choice: &mut Choice, paint: Paint) {
    let area = frame.area();
    if area.width < COLUMNS_MIN || area.height < ROWS_MIN {
        frame.render_widget(Paragraph::new("the terminal is too small"), area);
        return;
    }
    let columns = usize::from(area.width);
    let banner = banner(snapshot, columns, paint);
    let banner_rows = u16::try_from(banner.len()).unwrap_or_default();
    let [head, told, body, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(banner_rows),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(Text::from(header(snapshot, choice.view, columns, paint))), head);
    frame.render_widget(Paragraph::new(Text::from(banner)), told);
    let lines = match choice.view {
        View::Now => now::lines(snapshot, columns, paint),
        View::Datasets => datasets::lines(snapshot, choice.order, columns, paint),
        View::Machine => machine::lines(snapshot, columns, paint),
    };
    let rows = usize::from(body.height);
    choice.scrolled = choice.scrolled.min(lines.len().saturating_sub(rows));
    let hidden = lines.len().saturating_sub(choice.scrolled + rows);
    let shown: Vec<Line<'_>> = lines.into_iter().skip(choice.scrolled).take(rows).collect();
    frame.render_widget(Paragraph::new(Text::from(shown)), body);
    frame.render_widget(Paragraph::new(footer(choice, hidden, columns, paint)), foot);
}

fn header(snapshot: &Snapshot, view: View, columns: usize, paint: Paint) -> Vec<Line<'static>> {
    let version = snapshot.now.as_ref().map(|now| now.version.as_str()).unwrap_or_default();
    let left = format!("cachekeeper {version}  {}  {}", snapshot.namespace, snapshot.listen);
    let at = if snapshot.at_ms == 0 { String::new() } else { clock(snapshot.at_ms) };
    let room = columns.saturating_sub(at.len() + 1);
    let mut tabs = Vec::new();
    for (at, (one, name)) in VIEWS.iter().enumerate() {
        let number = at + 1;
        // The brackets say it where nothing else can.
        let (text, style) = if *one == view {
            (format!("[{number} {name}]"), Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD))
        } else {
            (format!(" {number} {name} "), Style::new())
        };
        tabs.extend([Span::styled(text, style), Span::raw(" ")]);
    }
    vec![
        Line::from(vec![Span::styled(fit(&left, room), paint.head()), Span::raw(format!(" {at}"))]),
        Line::from(tabs),
    ]
}

/// What is to be known before everything else.
fn banner(snapshot: &Snapshot, columns: usize, paint: Paint) -> Vec<Line<'static>> {
    let text = match &snapshot.gone {
        Some((since, reason)) => {
            let ago = span(snapshot.at_ms.saturating_sub(*since));
            let rest = if snapshot.now.is_some() { " Below is what it said last." } else { "" };
            format!(
                "No answer since {} ({ago}): {reason}. It is asked again each second.{rest}",
                clock(*since)
            )
        }
        None => return vec![Line::default()],
    };
    let mut lines = wrapped("!! ", &text, columns, paint.mood(Mood::Bad));
    lines.truncate(4);
    lines.push(Line::default());
    lines
}

fn footer(choice: &Choice, hidden: usize, columns: usize, paint: Paint) -> Line<'static> {
    let sort = match (choice.view, choice.order) {
        (View::Datasets, Order::State) => "  s by name",
        (View::Datasets, Order::Name) => "  s by state",
        _ => "",
    };
    let more = match (hidden, choice.scrolled) {
        (0, 0) => String::new(),
        (0, _) => "  the end".to_owned(),
        (lines, _) => format!("  {lines} more below"),
    };
    let text = format!("1 2 3 Tab views{sort}  up down scroll  q leave{more}");
    Line::from(Span::styled(fit(&text, columns), paint.quiet()))
}
