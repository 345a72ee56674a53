//! The decision table in `table.txt`, read for the tests that run it: the scripts, the double in memory, the model.

use std::fmt::Debug;
use std::str::FromStr;

/// Who stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Load,
    Backfill,
    Fill,
    Set,
}

/// Which counters were raised since a fill saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    None,
    Key,
    Tag,
    /// Another tag than any that was named.
    Other,
    Table,
}

/// What of the precondition does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    Epoch,
    Incarnation,
    Revision,
    Table,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Stored,
    Refused,
    Failed(Broken),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    New,
    Old,
    None,
}

/// What is so afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub answer: Answer,
    pub value: Value,
    pub floor: u8,
    pub slot: u8,
    /// A fill that began before is stored afterwards.
    pub fills: bool,
    /// The key is registered under its tag.
    pub is_member: bool,
}

/// One line. Stamps are small numbers, of which each runner makes its own.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub line: &'static str,
    pub kind: Kind,
    pub stamp: Option<u8>,
    pub floor: u8,
    pub slot: u8,
    /// The stamp of the entry's tag; none: it has no tag.
    pub tag: Option<u8>,
    pub raised: Raised,
    pub is_gone: bool,
    pub broken: Option<Broken>,
    pub expected: Outcome,
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let lines = include_str!("table.txt").lines().filter(|line| !line.starts_with('#'));
    let cases: Vec<Case> = lines.map(read).collect();
    assert!(50 < cases.len());
    cases
}

/// Runs each case and says which went wrong.
pub fn differences(outcomes: impl Iterator<Item = (Case, Outcome)>) -> Vec<String> {
    let wrong = outcomes.filter(|(case, outcome)| case.expected != *outcome);
    wrong.map(|(case, outcome)| format!("{}\n  but: {outcome:?}", case.line)).collect()
}

fn read(line: &'static str) -> Case {
    let mut words = line.split_whitespace().filter(|word| *word != "|");
    let mut next = || words.next().unwrap_or_else(|| panic!("too short: {line}"));
    let kind = pick(
        next(),
        &[("load", Kind::Load), ("backfill", Kind::Backfill), ("fill", Kind::Fill), ("set", Kind::Set)],
    );
    let (stamp, floor, slot, tag) = (optional(next()), number(next()), number(next()), optional(next()));
    let raised = [
        ("none", Raised::None),
        ("key", Raised::Key),
        ("tag", Raised::Tag),
        ("other", Raised::Other),
        ("table", Raised::Table),
    ];
    let raised = pick(next(), &raised);
    let is_gone = pick(next(), &[("there", false), ("gone", true)]);
    let broken = [
        ("epoch", Broken::Epoch),
        ("incarnation", Broken::Incarnation),
        ("revision", Broken::Revision),
        ("table", Broken::Table),
    ];
    let expects = next();
    let found = (expects != "-").then(|| pick(expects, &broken));
    let answer = match next() {
        "stored" => Answer::Stored,
        "refused" => Answer::Refused,
        failed => Answer::Failed(pick(failed, &broken)),
    };
    let value = pick(next(), &[("new", Value::New), ("old", Value::Old), ("none", Value::None)]);
    let is_member = answer == Answer::Stored && !is_gone && tag.is_some();
    let expected = Outcome {
        answer,
        value,
        floor: number(next()),
        slot: number(next()),
        fills: pick(next(), &[("fills", true), ("refused", false)]),
        is_member,
    };
    Case { line, kind, stamp, floor, slot, tag, raised, is_gone, broken: found, expected }
}

fn pick<T: Copy>(word: &str, words: &[(&str, T)]) -> T {
    let known = words.iter().find(|(known, _)| *known == word);
    known.unwrap_or_else(|| panic!("unknown word {word}")).1
}

fn number<T: FromStr<Err: Debug>>(word: &str) -> T {
    word.parse().unwrap_or_else(|error| panic!("{word}: {error:?}"))
}

fn optional(word: &str) -> Option<u8> {
    (word != "-").then(|| number(word))
}
