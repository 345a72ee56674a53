//! Every setting by itself: is it there where it must be, and may it hold what it holds? What settings mean together is
//! checked in [`super::check`].

use super::diagnostic::{Diagnostic, did_you_mean};
use super::forms::{Flaw, Form};
use super::key::{Key, Kind};
use super::raw::{Leaf, Leaves, join};
use super::source::Source;
use super::table::ROOT;
use cachekeeper_protocol::units::{parse_duration, parse_share, parse_size, show_duration, show_size};

/// Notes all problems, and marks what is wrong, so that the default stands in for it until all problems are known.
pub fn check(leaves: &mut Leaves, source: &Source, problems: &mut Vec<Diagnostic>) {
    Values { leaves, source, problems }.table(ROOT, "");
}

struct Values<'a> {
    leaves: &'a mut Leaves,
    source: &'a Source,
    problems: &'a mut Vec<Diagnostic>,
}

impl Values<'_> {
    fn table(&mut self, keys: &[Key], path: &str) {
        for key in keys {
            let below = join(path, key.name);
            let has_section = self.leaves.get(path) == Some(&Leaf::Section);
            if key.is_required && has_section && !self.leaves.contains_key(&below) {
                let help = format!("for example {} = {}", key.name, key.example.unwrap_or_default());
                let message = format!("[{path}] has no `{}`", key.name);
                self.problems.push(self.source.problem(&below, message, help));
            }
            match key.kind {
                Kind::Table(keys) => self.table(keys, &below),
                Kind::Named(keys) => names(self.leaves, &below)
                    .into_iter()
                    .for_each(|name| self.table(keys, &join(&below, &name))),
                Kind::Tables(keys) => {
                    let elements = (0..).map(|position| join(&below, &position.to_string()));
                    let there = |path: &String| self.leaves.contains_key(path);
                    let elements: Vec<String> = elements.take_while(there).collect();
                    elements.iter().for_each(|element| self.table(keys, element));
                }
                kind => self.value(kind, &below),
            }
        }
    }

    fn value(&mut self, kind: Kind, path: &str) {
        let Some(leaf) = self.leaves.get(path) else {
            return;
        };
        let flaws = match (kind, leaf) {
            (Kind::Texts(form), Leaf::Texts(texts)) => {
                let one = |(position, text): (usize, &String)| {
                    let path = join(path, &position.to_string());
                    form.flaws(text).into_iter().map(move |flaw| (path.clone(), flaw)).collect::<Vec<_>>()
                };
                texts.iter().enumerate().flat_map(one).collect()
            }
            (Kind::Mapping, Leaf::Mapping(pairs)) => {
                let one = |(name, text): &(String, String)| {
                    let flaws = Form::Filled.flaws(text).into_iter();
                    let path = join(path, name);
                    flaws.map(move |flaw| (path.clone(), flaw)).collect::<Vec<_>>()
                };
                pairs.iter().flat_map(one).collect()
            }
            (kind, leaf) => {
                flaws(kind, leaf).into_iter().map(|flaw| (path.to_owned(), flaw)).collect::<Vec<_>>()
            }
        };
        if flaws.is_empty() {
            return;
        }
        for (path, flaw) in flaws {
            let problem = self.source.problem_within(&path, flaw.offset, flaw.message, flaw.help);
            self.problems.push(problem);
        }
        self.leaves.insert(path.to_owned(), Leaf::Wrong);
    }
}

/// The names below a table of named tables.
pub fn names(leaves: &Leaves, path: &str) -> Vec<String> {
    let below = leaves.keys().filter_map(|known| known.strip_prefix(path)?.strip_prefix('.'));
    below.filter(|name| !name.contains('.')).map(str::to_owned).collect()
}

/// What is wrong with a value of the right type.
pub(crate) fn flaws(kind: Kind, leaf: &Leaf) -> Vec<Flaw> {
    let flaw = match (kind, leaf) {
        (Kind::Text(form), Leaf::Text(text)) => return form.flaws(text),
        (Kind::Choice(words), Leaf::Text(text)) => unknown_word(text, words),
        (Kind::Duration(min, max), Leaf::Text(text)) => match parse_duration(text) {
            Ok(duration) => {
                (!(min..=max).contains(&duration)).then(|| out_of_range(kind, &format!("{text:?}")))
            }
            Err(help) => Some(Flaw::new(format!("{text:?} is not a duration"), help)),
        },
        (Kind::Size(min, max), Leaf::Text(text)) => match parse_size(text) {
            Ok(size) => (!(min..=max).contains(&size)).then(|| out_of_range(kind, &format!("{text:?}"))),
            Err(help) => Some(Flaw::new(format!("{text:?} is not a size"), help)),
        },
        (Kind::Share(min, max), Leaf::Text(text)) => match parse_share(text) {
            Ok(share) => {
                let (min, max) = (f64::from(min) / 100.0, f64::from(max) / 100.0);
                let is_within = (min..=max).contains(&share);
                (!is_within).then(|| out_of_range(kind, &format!("{text:?}")))
            }
            Err(help) => Some(Flaw::new(format!("{text:?} is not a share"), help)),
        },
        (Kind::Integer(min, max), Leaf::Integer(number)) => {
            let is_within = u64::try_from(*number).is_ok_and(|number| (min..=max).contains(&number));
            (!is_within).then(|| out_of_range(kind, &number.to_string()))
        }
        // Types are checked before, and what has parts is checked part by part.
        _ => None,
    };
    flaw.into_iter().collect()
}

fn unknown_word(text: &str, words: &[&str]) -> Option<Flaw> {
    if words.contains(&text) {
        return None;
    }
    let help = match did_you_mean(text, words.iter().copied()) {
        Some(close) => format!("did you mean {close:?}?"),
        None => format!("one of {}", words.join(", ")),
    };
    Some(Flaw::new(format!("{text:?} is not known here"), help))
}

fn out_of_range(kind: Kind, shown: &str) -> Flaw {
    let help = range(kind).map_or_else(String::new, |range| format!("give {range}"));
    Flaw::new(format!("{shown} is out of range"), help)
}

/// The range of a kind that has one, for people.
pub fn range(kind: Kind) -> Option<String> {
    match kind {
        Kind::Duration(min, max) => Some(format!("{} to {}", show_duration(min), show_duration(max))),
        // Without an end it is no range.
        Kind::Size(_, u64::MAX) => None,
        Kind::Size(min, max) => Some(format!("{} to {}", show_size(min), show_size(max))),
        Kind::Share(min, max) => Some(format!("{min}% to {max}%")),
        Kind::Integer(min, max) => Some(format!("{min} to {max}")),
        _ => None,
    }
}
