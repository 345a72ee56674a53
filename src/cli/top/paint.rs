//! How things look: colour says nothing that words do not say, and is left out where nobody wants it.

use chrono::{DateTime, Utc};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use cachekeeper_engine::shown::escaped;

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mood {
    Bad,
    Warn,
    Good,
}

/// Whether there are colours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    pub has_color: bool,
}

impl Paint {
    pub(super) fn mood(self, mood: Mood) -> Style {
        let (color, modifier) = match mood {
            Mood::Good => (Color::Green, Modifier::empty()),
            Mood::Warn => (Color::Yellow, Modifier::empty()),
            Mood::Bad => (Color::Red, Modifier::BOLD),
        };
        self.colored(color).add_modifier(modifier)
    }

    /// What is worth less attention.
    pub(super) fn quiet(self) -> Style {
        self.colored(Color::DarkGray)
    }

    pub(super) fn head(self) -> Style {
        self.colored(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    fn colored(self, color: Color) -> Style {
        if self.has_color { Style::new().fg(color) } else { Style::new() }
    }
}

/// A sign before a word, so that a column can be looked through.
pub(super) fn sign(mood: Mood) -> &'static str {
    match mood {
        Mood::Good => "  ",
        Mood::Warn => "! ",
        Mood::Bad => "!!",
    }
}

/// The text in exactly this many columns.
pub(super) fn fit(text: &str, columns: usize) -> String {
    let text = escaped(text);
    let width = Span::raw(&*text).width();
    if width <= columns {
        return format!("{text}{}", " ".repeat(columns - width));
    }
    let mut fitted = String::new();
    let mut left = columns.saturating_sub(1);
    for one in text.chars() {
        let width = Span::raw(one.to_string()).width();
        if left < width {
            break;
        }
        left -= width;
        fitted.push(one);
    }
    if 0 < columns {
        fitted.push('…');
    }
    format!("{fitted}{}", " ".repeat(left))
}

/// The same at the right.
pub(super) fn fit_right(text: &str, columns: usize) -> String {
    let fitted = fit(text, columns);
    let text = fitted.trim_end();
    format!("{}{text}", " ".repeat(fitted.len() - text.len()))
}

/// A text in lines of this many columns, the first of them behind a word; broken between words.
pub(super) fn wrapped(before: &str, text: &str, columns: usize, style: Style) -> Vec<Line<'static>> {
    let indent = Span::raw(before).width();
    let room = columns.saturating_sub(indent).max(10);
    let mut lines = vec![String::new()];
    for word in escaped(text).split(' ') {
        let width = |text: &str| Span::raw(text.to_owned()).width();
        let last = lines.last().map_or(0, |line| width(line));
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if last + 1 + width(word) <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    let line = |(at, text): (usize, String)| {
        let before = if at == 0 { before.to_owned() } else { " ".repeat(indent) };
        Line::from(vec![Span::raw(before), Span::styled(text, style)])
    };
    lines.into_iter().enumerate().map(line).collect()
}

/// A span of milliseconds in short.
pub(super) fn span(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", millis / 60_000, millis % 60_000 / 1_000),
        3_600_000..86_400_000 => format!("{} h {} min", millis / 3_600_000, millis % 3_600_000 / 60_000),
        _ => format!("{} d {} h", millis / 86_400_000, millis % 86_400_000 / 3_600_000),
    }
}

/// A moment of the day.
pub(super) fn clock(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
    at.map_or(String::new(), |at| at.format("%H:%M:%SZ").to_string())
}

/// A number with its thousands apart.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if 0 < at && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fit_their_columns() {
        assert_eq!(fit("abc", 5), "abc  ");
        assert_eq!(fit("abcdef", 5), "abcd…");
        assert_eq!(fit("日本語", 5), "日本…");
        assert_eq!(fit("日本語", 4), "日… ");
        assert_eq!(fit("a\u{1b}", 8), "a\\u{1b} ");
        assert_eq!(fit_right("12", 4), "  12");
    }

    #[test]
    fn long_texts_are_broken_between_words() {
        let lines = wrapped("- ", "one two three four", 12, Style::new());
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["- one two", "  three four"]);
    }

    #[test]
    fn numbers_and_spans_are_short() {
        assert_eq!([count(7), count(1_234), count(1_234_567)], ["7", "1,234", "1,234,567"]);
        assert_eq!(
            [span(4), span(1_250), span(3_660_000), span(90_000_000)],
            ["4 ms", "1.2 s", "1 h 1 min", "1 d 1 h"]
        );
        assert_eq!(clock(3_723_000), "01:02:03Z");
    }
}
