//! What the text of a trigger function says of what it can be relied on for. What says less is replaced before its tables are covered.

use super::function::Definition;

/// Says in a function's text what it can be relied on for: those of an earlier form are replaced before their tables are covered.
/// Since form 2 they tell when the outbox was full; since form 3 they name the types of the columns, and a row that moves to a partition
/// which refuses it is captured by statement too.
pub(super) const FORM: &str = "cachekeeper capture, form 3";
impl Definition<'_> {
    /// What a function's text says of what it can be relied on for: its form, and the types that it was made for.
    pub(super) fn reliance(&self) -> String {
        let places = self.columns.iter().map(|column| format!("{}:{}", column.place.0, column.place.1));
        // `CAPTURES` makes the same text of the columns as they are.
        format!("-- {FORM}\n-- types {};", places.collect::<Vec<_>>().join(" "))
    }
}

/// A quote that does not stand in the text: a column may have any name.
pub(super) fn delimiter(text: &str) -> String {
    let quotes =
        std::iter::once("$capture$".to_owned()).chain((0_u32..).map(|number| format!("$capture{number}$")));
    let mut free = quotes.filter(|quote| !text.contains(quote.as_str()));
    free.next().unwrap_or_default()
}
