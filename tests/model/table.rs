//! The decision table, run by the model's rule of the store script.

use crate::decisions::{Answer as Expected, Case, Kind, Outcome, Raised, Value, cases, differences};
use crate::rules::Rules;
use crate::scripts::{Answer, Question, Raises, decide};

fn by_the_model(rules: &Rules, case: &Case) -> Outcome {
    let is_moved = case.raised != Raised::None;
    let question = Question {
        holds: case.broken.is_none(),
        stamp: case.stamp,
        floor: case.floor,
        slot: case.slot,
        tag: case.tag.unwrap_or_default(),
        has_moved: case.kind == Kind::Fill && is_moved,
        raises: if case.kind == Kind::Backfill { Raises::Floor } else { Raises::Slot },
    };
    let verdict = decide(rules, &question);
    let answer = match verdict.answer {
        Answer::Stored => Expected::Stored,
        Answer::Refused => Expected::Refused,
        // The model does not tell which part of the precondition failed.
        Answer::Failed => case.broken.map_or(Expected::Refused, Expected::Failed),
    };
    let value = match (verdict.answer, case.is_gone) {
        (Answer::Stored, true) => Value::None,
        (Answer::Stored, false) => Value::New,
        (Answer::Refused | Answer::Failed, _) => Value::Old,
    };
    Outcome {
        answer,
        value,
        floor: verdict.floor,
        slot: verdict.slot,
        fills: !is_moved && (case.kind != Kind::Set || verdict.answer == Answer::Failed),
        is_member: verdict.answer == Answer::Stored && !case.is_gone && case.tag.is_some(),
    }
}

fn wrong(rules: &Rules) -> Vec<String> {
    differences(cases().into_iter().map(|case| (case, by_the_model(rules, &case))))
}

#[test]
fn the_model_decides_as_the_table_says() {
    let wrong = wrong(&Rules::default());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The control: a model that compares no stamps is caught.
#[test]
fn the_table_sees_a_model_that_compares_no_stamps() {
    assert!(10 < wrong(&Rules { stamps_are_compared: false, ..Rules::default() }).len());
}
