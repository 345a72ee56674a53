//! A statement that reads rows by equality of parameters, and the dataset that it can become: the same rows, with the parameters as the
//! key. Whatever is not understood is refused with the reason.

use super::words::{Word, WordKind, text, words};

/// What a statement reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Read {
    /// What it returns, as SQL.
    pub list: String,
    /// The tables, as SQL.
    pub from: String,
    /// Conditions without parameters, as SQL.
    pub conditions: Vec<String>,
    /// The columns that parameters are compared with, and what each is called in the list.
    pub by: Vec<By>,
    /// The order of the rows, by columns without their table.
    pub order: Option<String>,
    /// Whether it returns a part of the rows only.
    pub has_limit: bool,
    /// The table, where it is one alone: as SQL.
    pub table: Option<String>,
}

/// A column that is compared with a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    /// Its name in its table.
    pub column: String,
    /// Its name in the list.
    pub shown: String,
}

/// Clauses behind the tables, and what they mean where no dataset can have them.
const REFUSED: &[(&str, &str)] = &[
    ("group", "groups rows"),
    ("having", "groups rows"),
    ("window", "computes over several rows"),
    ("union", "puts several reads together"),
    ("intersect", "puts several reads together"),
    ("except", "puts several reads together"),
    ("for", "locks rows"),
    ("into", "writes a table"),
    ("offset", "reads pages"),
    ("fetch", "reads a number of rows"),
    ("tablesample", "reads rows at random"),
];
/// Why a statement is no candidate at all.
pub const NO_TABLE: &str = "reads no table";

const AGGREGATES: &[&str] = &[
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "array_agg",
    "string_agg",
    "json_agg",
    "jsonb_agg",
    "json_object_agg",
    "jsonb_object_agg",
    "bool_and",
    "bool_or",
    "every",
    "percentile_cont",
    "percentile_disc",
    "mode",
];

/// Reads a statement.
///
/// # Errors
/// Why it cannot become a dataset.
pub fn read(sql: &str) -> Result<Read, String> {
    let mut all = words(sql).ok_or("cannot be read")?;
    while all.last().is_some_and(|word| word.is(";")) {
        all.pop();
    }
    let Some((first, rest)) = all.split_first() else { return Err("is empty".to_owned()) };
    if !first.is("select") {
        return Err(format!("begins with `{}` instead of `select`", first.text.to_lowercase()));
    }
    if rest.iter().any(|word| word.is(";")) {
        return Err("is several statements".to_owned());
    }
    if rest.first().is_some_and(|word| word.is("distinct")) {
        return Err("selects distinct rows".to_owned());
    }
    for (keyword, reason) in REFUSED {
        if rest.iter().any(|word| word.depth == 0 && word.is(keyword)) {
            return Err((*reason).to_owned());
        }
    }
    let (list, rest) = until(rest, &["from"]);
    if rest.is_empty() {
        return Err(NO_TABLE.to_owned());
    }
    let (from, rest) = until(rest.get(1..).unwrap_or_default(), &["where", "order", "limit"]);
    let (condition, rest) = match rest.first() {
        Some(word) if word.is("where") => until(rest.get(1..).unwrap_or_default(), &["order", "limit"]),
        _ => return Err("has no condition: it reads whole tables".to_owned()),
    };
    let (order, limit) = match rest.first() {
        Some(word) if word.is("order") => until(rest.get(2..).unwrap_or_default(), &["limit"]),
        _ => (&[][..], rest),
    };
    check_list(list)?;
    for (part, place) in [(list, "what it returns"), (from, "its tables"), (order, "its order")] {
        if part.iter().any(|word| word.kind == WordKind::Parameter) {
            return Err(format!("has a parameter, or a constant, in {place}"));
        }
    }
    let mut found = Read {
        from: text(from),
        has_limit: !limit.is_empty(),
        table: only_table(from),
        order: (!order.is_empty()).then(|| text(&without_tables(order))),
        ..Read::default()
    };
    let columns = conditions(condition, &mut found)?;
    found.list = with_columns(list, &columns, &mut found.by);
    Ok(found)
}

/// The words before one of these keywords, and those from it on.
fn until<'w>(words: &'w [Word], keywords: &[&str]) -> (&'w [Word], &'w [Word]) {
    let end = words.iter().position(|word| word.depth == 0 && keywords.iter().any(|one| word.is(one)));
    words.split_at(end.unwrap_or(words.len()))
}

fn check_list(list: &[Word]) -> Result<(), String> {
    for (position, word) in list.iter().enumerate() {
        let is_called = list.get(position + 1).is_some_and(|next| next.is("("));
        if is_called && AGGREGATES.iter().any(|name| word.is(name)) {
            return Err(format!("computes {} of several rows", word.text.to_lowercase()));
        }
        if word.is("over") {
            return Err("computes over several rows".to_owned());
        }
    }
    Ok(())
}

/// The name of the table, where there is one alone.
fn only_table(from: &[Word]) -> Option<String> {
    let is_name = |word: &Word| word.name().is_some() && !word.is("only") && !word.is("lateral");
    let (path, rest) = match from {
        [schema, dot, table, rest @ ..] if dot.is(".") && is_name(schema) && is_name(table) => {
            (format!("{}.{}", schema.text, table.text), rest)
        }
        [table, rest @ ..] if is_name(table) => (table.text.clone(), rest),
        _ => return None,
    };
    let rest = match rest {
        [first, rest @ ..] if first.is("as") => rest,
        rest => rest,
    };
    match rest {
        [] => Some(path),
        [alias] if is_name(alias) => Some(path),
        _ => None,
    }
}

fn without_tables(order: &[Word]) -> Vec<Word> {
    let mut kept: Vec<Word> = Vec::new();
    for word in order {
        let is_behind_dot = kept.last().is_some_and(|last| last.is("."));
        if is_behind_dot {
            kept.pop();
            let table = kept.pop();
            kept.push(Word { is_apart: table.is_some_and(|table| table.is_apart), ..word.clone() });
        } else {
            kept.push(word.clone());
        }
    }
    kept
}

/// Takes the conditions apart, and answers the columns that are compared with parameters, each with its table's name before it.
fn conditions(condition: &[Word], found: &mut Read) -> Result<Vec<(Option<String>, Word)>, String> {
    if condition.iter().any(|word| word.depth == 0 && word.is("or")) {
        return Err("has an OR in its condition".to_owned());
    }
    if condition.iter().any(|word| word.depth == 0 && word.is("between")) {
        return Err("compares with a range (between)".to_owned());
    }
    let mut columns: Vec<(Option<String>, Word)> = Vec::new();
    for part in condition.split(|word| word.depth == 0 && word.is("and")) {
        if !part.iter().any(|word| word.kind == WordKind::Parameter) {
            found.conditions.push(text(part));
            continue;
        }
        let Some((table, column)) = compared(part) else {
            return Err(format!("compares otherwise than a column with a parameter: {}", text(part)));
        };
        let is_known = columns.iter().any(|(_, known)| known.name() == column.name());
        if is_known {
            return Err(format!("compares {} twice", column.text));
        }
        columns.push((table, column));
    }
    if columns.is_empty() {
        return Err("has no parameter in its condition".to_owned());
    }
    Ok(columns)
}

/// The column of `column = $1`, `$1 = column`, `column = any ($1)` or `column in ($1, …)`.
fn compared(part: &[Word]) -> Option<(Option<String>, Word)> {
    let is_outer = part.first()?.is("(") && part.last()?.is(")");
    let inner = part.get(1..part.len() - 1).unwrap_or_default();
    if is_outer && inner.iter().all(|word| part.first().is_some_and(|first| first.depth < word.depth)) {
        return compared(inner);
    }
    let (column, rest) = match part {
        [table, dot, column, rest @ ..] if dot.is(".") => ((Some(table.text.clone()), column), rest),
        [column, rest @ ..] if column.name().is_some() => ((None, column), rest),
        [parameter, rest @ ..] if parameter.kind == WordKind::Parameter => {
            let equals = rest.iter().position(|word| word.is("="))?;
            let is_cast = is_type(rest.get(..equals)?);
            let column = match rest.get(equals + 1..)? {
                [table, dot, column] if dot.is(".") => (Some(table.text.clone()), column.clone()),
                [column] => (None, column.clone()),
                _ => return None,
            };
            return (is_cast && column.1.name().is_some()).then_some(column);
        }
        _ => return None,
    };
    let is_equality = match rest {
        [equals, parameter, cast @ ..] if equals.is("=") && parameter.kind == WordKind::Parameter => {
            is_type(cast)
        }
        [equals, any, open, inner @ .., close]
            if equals.is("=") && any.is("any") && open.is("(") && close.is(")") =>
        {
            match inner {
                [list, open, inner @ .., close] if list.is("array") && open.is("[") && close.is("]") => {
                    inner.iter().all(|word| word.kind == WordKind::Parameter || word.is(","))
                }
                [parameter, cast @ ..] => parameter.kind == WordKind::Parameter && is_type(cast),
                [] => false,
            }
        }
        [within, open, inner @ .., close] if within.is("in") && open.is("(") && close.is(")") => {
            inner.iter().all(|word| word.kind == WordKind::Parameter || word.is(","))
        }
        _ => false,
    };
    (is_equality && column.1.name().is_some()).then(|| (column.0, column.1.clone()))
}

/// Whether this is nothing, or `::type`.
fn is_type(words: &[Word]) -> bool {
    match words {
        [] => true,
        [cast, rest @ ..] => {
            let is_part = |word: &Word| {
                word.name().is_some() || ["[", "]", ".", "(", ")", ","].iter().any(|one| word.is(one))
            };
            cast.is("::") && rest.iter().all(is_part)
        }
    }
}

/// The list with the columns of the key in it, and what they are called there.
fn with_columns(list: &[Word], columns: &[(Option<String>, Word)], by: &mut Vec<By>) -> String {
    let items: Vec<&[Word]> = list.split(|word| word.depth == 0 && word.is(",")).collect();
    let mut added = Vec::new();
    for (table, column) in columns {
        let name = column.name().unwrap_or_default();
        let is_it = |path: &[Word]| match path {
            [one] => one.name().as_ref() == Some(&name),
            [_table, dot, one] if dot.is(".") => one.name().as_ref() == Some(&name),
            _ => false,
        };
        let shown = items.iter().find_map(|item| match item {
            [star] if star.is("*") => Some(name.clone()),
            [of, dot, star] if dot.is(".") && star.is("*") => {
                let is_same = table.as_ref().is_none_or(|table| table.eq_ignore_ascii_case(&of.text));
                is_same.then(|| name.clone())
            }
            [path @ .., as_, alias] if as_.is("as") && is_it(path) => alias.name(),
            path if is_it(path) => Some(name.clone()),
            _ => None,
        });
        let shown = shown.unwrap_or_else(|| {
            let path = table.as_ref().map_or(String::new(), |table| format!("{table}."));
            added.push(format!("{path}{}", column.text));
            name.clone()
        });
        by.push(By { column: name, shown });
    }
    added.push(text(list));
    added.join(", ")
}

impl Read {
    /// The query of a dataset.
    pub fn query(&self) -> String {
        let mut query = format!("select {}\nfrom {}", self.list, self.from);
        if !self.conditions.is_empty() {
            query.push_str(&format!("\nwhere {}", self.conditions.join(" and ")));
        }
        query
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_by_equality_become_queries_with_the_parameters_as_key() {
        for (sql, query, by) in [
            ("select * from products where id = $1", "select *\nfrom products", "id"),
            (
                "SELECT name FROM products p WHERE p.id = $1::int LIMIT $2",
                "select p.id, name\nfrom products p",
                "id",
            ),
            (
                "select p.id as key, name from s.products as p where $1 = p.id",
                "select p.id as key, name\nfrom s.products as p",
                "key",
            ),
            (
                "select id from t where a = any ($1::int[]) and b in ($2, $3) and c is null",
                "select a, b, id\nfrom t\nwhere c is null",
                "a b",
            ),
            (
                "select \"Id\", x from t where (\"Id\" = $1) order by t.x desc;",
                "select \"Id\", x\nfrom t",
                "Id",
            ),
            (
                "select a.*, b.n from a join b on a.id = b.id where a.k = $1",
                "select a.*, b.n\nfrom a join b on a.id = b.id",
                "k",
            ),
        ] {
            let found = read(sql).unwrap_or_else(|reason| panic!("{sql}: {reason}"));
            let names: Vec<&str> = found.by.iter().map(|by| by.shown.as_str()).collect();
            assert_eq!((found.query().as_str(), names.join(" ").as_str()), (query, by), "{sql}");
        }
        let found = read("select * from s.\"T\" as x where id = $1 order by x.n desc, m limit $2").unwrap();
        assert_eq!(
            (found.table.as_deref(), found.order.as_deref(), found.has_limit),
            (Some("s.\"T\""), Some("n desc, m"), true)
        );
    }

    #[test]
    fn others_say_why_not() {
        for (sql, reason) in [
            ("with a as (select 1) select * from a", "begins with `with`"),
            ("select * from t", "has no condition"),
            ("select 1", "reads no table"),
            ("select * from t where a = b", "no parameter in its condition"),
            ("select * from t where a = $1 or b = $2", "an OR"),
            ("select * from t where a > $1", "otherwise than a column with a parameter: a > $1"),
            ("select * from t where lower(a) = $1", "lower(a) = $1"),
            ("select * from t where a between $1 and $2", "a range"),
            ("select count(*) from t where a = $1", "computes count"),
            ("select a, rank() over (order by b) from t where c = $1", "over several rows"),
            ("select a from t where b = $1 group by a", "groups rows"),
            ("select a, $1 as x from t where b = $2", "in what it returns"),
            ("select distinct a from t where b = $1", "distinct"),
            ("select a from t where b = $1 for update", "locks rows"),
            ("select a from t where b = $1 union select a from u", "several reads"),
            ("select a from t where b = $1 offset $2", "pages"),
            ("select a from f($1) where b = $2", "in its tables"),
            ("select a from t where b in (select c from u where d = $1)", "otherwise"),
            ("select a from t where b = $1 and b = $2", "twice"),
            ("select 'open", "cannot be read"),
            ("", "is empty"),
        ] {
            let said = read(sql).unwrap_err();
            assert!(said.contains(reason), "{sql}: {said}");
        }
    }
}
