//! What programs were told about the writes that they handed over, against the log that those writes left in Postgres.

use std::collections::{BTreeMap, BTreeSet};

/// What a producer was told about one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It was carried out.
    Done,
    /// It may have been carried out.
    Unknown,
    /// It was not, and never will be.
    Refused,
}

/// One carried out write, as it noted itself in the log. A producer numbers its writes of a key from one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    pub producer: String,
    pub key: i64,
    pub number: i64,
}

/// What every producer was told, by its own number of the write.
#[derive(Debug, Default)]
pub struct Ledger(BTreeMap<(String, i64), BTreeMap<i64, Told>>);

impl Ledger {
    pub fn note(&mut self, producer: &str, key: i64, number: i64, told: Told) {
        self.0.entry((producer.to_owned(), key)).or_default().insert(number, told);
    }

    pub fn count(&self, wanted: Told) -> usize {
        self.0.values().flat_map(BTreeMap::values).filter(|told| **told == wanted).count()
    }

    /// Compares with the log, which stands in the order in which the writes were carried out. No write may be lost or
    /// carried out twice, none of a key may overtake another of the same producer, and what was refused is not there.
    pub fn disagreements(&self, log: &[Logged]) -> Vec<String> {
        let mut found = Vec::new();
        let mut logged: BTreeMap<(String, i64), Vec<i64>> = BTreeMap::new();
        for one in log {
            logged.entry((one.producer.clone(), one.key)).or_default().push(one.number);
        }
        for (of, numbers) in &logged {
            let place = |number: i64| format!("{}/{}/{number}", of.0, of.1);
            let mut done: BTreeSet<i64> = BTreeSet::new();
            for number in numbers {
                let last = done.last().copied().unwrap_or(i64::MIN);
                if !done.insert(*number) {
                    found.push(format!("{} was carried out twice", place(*number)));
                } else if *number < last {
                    found.push(format!("{} was carried out after {last}", place(*number)));
                }
                if self.0.get(of).is_none_or(|told| !told.contains_key(number)) {
                    found.push(format!("{} was carried out, but nobody was told of it", place(*number)));
                }
            }
        }
        let none = Vec::new();
        for (of, told) in &self.0 {
            let numbers = logged.get(of).unwrap_or(&none);
            for (number, told) in told {
                let place = format!("{}/{}/{number}", of.0, of.1);
                match (told, numbers.contains(number)) {
                    (Told::Done, false) => found.push(format!("{place} was lost")),
                    (Told::Refused, true) => found.push(format!("{place} was refused, yet carried out")),
                    _ => {}
                }
            }
        }
        found
    }
}

/// The check can fail, in each way in which a log can be wrong.
#[test]
fn every_way_in_which_a_log_can_be_wrong_is_reported() {
    let mut ledger = Ledger::default();
    for number in 1..=5 {
        ledger.note("a", 7, number, Told::Done);
    }
    ledger.note("a", 7, 6, Told::Refused);
    ledger.note("b", 7, 1, Told::Done);
    ledger.note("b", 7, 2, Told::Unknown);
    ledger.note("b", 7, 3, Told::Done);
    let log = |numbers: &[i64]| -> Vec<Logged> {
        let of = |producer: &str, number: i64| Logged { producer: producer.to_owned(), key: 7, number };
        // Others may be carried out in between.
        numbers.iter().map(|number| of("a", *number)).chain([1, 3].map(|number| of("b", number))).collect()
    };
    for (numbers, expected) in [
        (&[1, 2, 3, 4, 5][..], &[][..]),
        (&[1, 2, 4, 5], &["a/7/3 was lost"]),
        (&[1, 2, 3, 3, 4, 5], &["a/7/3 was carried out twice"]),
        (&[1, 2, 3, 1, 4, 5], &["a/7/1 was carried out twice"]),
        (&[1, 2, 4, 3, 5], &["a/7/3 was carried out after 4"]),
        (&[1, 2, 3, 4, 5, 6], &["a/7/6 was refused, yet carried out"]),
        (&[1, 2, 3, 4, 5, 9], &["a/7/9 was carried out, but nobody was told of it"]),
        (
            &[2, 1, 2, 4, 5],
            &["a/7/1 was carried out after 2", "a/7/2 was carried out twice", "a/7/3 was lost"],
        ),
    ] {
        assert_eq!(ledger.disagreements(&log(numbers)), expected, "{numbers:?}");
    }
    // What is unknown may be there or not.
    let mut with_unknown = log(&[1, 2, 3, 4, 5]);
    with_unknown.insert(6, Logged { producer: "b".to_owned(), key: 7, number: 2 });
    assert_eq!(ledger.disagreements(&with_unknown), Vec::<String>::new());
    // A key of which nothing was carried out at all.
    ledger.note("c", 1, 1, Told::Done);
    assert_eq!(ledger.disagreements(&log(&[1, 2, 3, 4, 5])), ["c/1/1 was lost"]);
}
