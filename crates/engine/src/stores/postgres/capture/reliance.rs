//! What the text of a trigger function says of what it can be relied on for. What says less is replaced before its tables are covered.

/// Says in a function's text what it can be relied on for: those of an earlier form are replaced before their tables are covered.
/// Since form 2 they tell when the outbox was full; since form 3 they name the types of the columns, and a row that moves to a partition
/// which refuses it is captured by statement too.
pub(super) const FORM: &str = "cachekeeper capture, form 3";
/// A column whose values a change carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WatchedColumn {
    /// Its name.
    pub name: String,
    /// Its position in the table, and its type there: what is compiled for another type tells nothing of its values.
    pub place: (i16, u32),
    /// Its type, without length, or the base type of a domain.
    pub kind: String,
    /// Whether its type came with the server: only then a cast to text cannot be somebody's function.
    pub is_built_in: bool,
}

/// What a function's text says of what it can be relied on for: its form, and the types that it was made for.
pub(super) fn reliance(columns: &[WatchedColumn]) -> String {
    let places: Vec<String> =
        columns.iter().map(|column| format!("{}:{}", column.place.0, column.place.1)).collect();
    // `CAPTURES` makes the same text of the columns as they are.
    format!("-- {FORM}\n-- types {};", places.join(" "))
}

/// A quote that does not stand in the text: a column may have any name.
pub(super) fn delimiter(text: &str) -> String {
    let quotes =
        std::iter::once("$capture$".to_owned()).chain((0_u32..).map(|number| format!("$capture{number}$")));
    let mut free = quotes.filter(|quote| !text.contains(quote.as_str()));
    free.next().unwrap_or_default()
}
