//! From what the catalogs say about a table to a dataset.

use super::draft::{Draft, Refusal, Rule};
use super::toml::{literal, quoted};
use cachekeeper_engine::stores::postgres::{OutlineColumn, TableOutline};

/// The longest line of a list of columns.
const WIDTH: usize = 100;

/// A dataset of a table's rows. `key` are the columns that people name for want of a key; `reads` are the tables that a view reads.
pub fn of_table(table: &TableOutline, key: &[String], reads: &[String]) -> Result<Draft, Refusal> {
    let origin = table.path.as_str();
    if let Some((reason, help)) = flaw(table) {
        return Err(Refusal::new(origin, reason, help));
    }
    let columns: Vec<&OutlineColumn> =
        table.columns.iter().filter(|column| column.is_readable && column.has_form).collect();
    let chosen = choose_key(table, key)?;
    // A value that may hold a `:` stands last: what is behind it must be told from it.
    let (plain, texts): (Vec<_>, Vec<_>) = chosen.columns.iter().partition(|column| is_segment(column));
    let texts_in_key = texts.len();
    let chosen_columns: Vec<&OutlineColumn> = plain.into_iter().chain(texts).copied().collect();
    let list: Vec<String> = columns.iter().map(|column| listed(column, &chosen_columns)).collect();
    let placeholders: Vec<String> = chosen_columns.iter().map(|column| placeholder(&column.name).0).collect();
    let pairs = chosen_columns.iter().map(|column| (placeholder(&column.name).0, column.name.clone()));
    let mut draft = Draft {
        origin: origin.to_owned(),
        names: names(&table.schema, &table.name),
        about: vec![about(table, &chosen.why)],
        query: format!("select {}\nfrom {}", wrapped(&list), table.path),
        key: placeholders,
        tags: tags(table, &columns),
        about_tags: "A tag for each foreign key: the entries of all rows that lead to the same row are invalidated together."
            .to_owned(),
        ..Draft::default()
    };
    draft.about.extend(left_out(table));
    if 1 < texts_in_key {
        let help = "Texts stand side by side in the key: a row is refused where one that is not the last holds a `:`.";
        draft.about.push(help.to_owned());
    }
    watch(table, reads, pairs.collect(), &mut draft);
    draft.hints = hints(&columns);
    Ok(draft)
}

/// Why nothing of it can be kept in Redis, and what to do.
pub fn flaw(table: &TableOutline) -> Option<(String, String)> {
    let foreign = "copy its rows into a table of this server, or cache them where they come from";
    let (reason, help) = match table.kind {
        _ if table.is_catalog => ("is a catalog of the server's, whose changes cannot be captured", ""),
        _ if table.schema == "cachekeeper" => ("is one of Cachekeeper's own", "name a table of yours"),
        'f' => ("is a foreign table, which this server's snapshots do not cover", foreign),
        'r' | 'p' | 'v' | 'm' => ("", ""),
        'S' => ("is a sequence", "name a table or a view"),
        'i' | 'I' => ("is an index", "name a table or a view"),
        'c' => ("is a type", "name a table or a view"),
        _ => ("is no table", "name a table or a view"),
    };
    if !reason.is_empty() {
        return Some((reason.to_owned(), help.to_owned()));
    }
    let (path, role) = (&table.path, &table.role);
    if table.is_temporary {
        return Some(("is temporary: no other session sees it".to_owned(), "name a lasting one".to_owned()));
    }
    if !table.may_use_schema {
        let schema = path.trim_end_matches(|one| one != '.').trim_end_matches('.');
        let help = format!(
            "its owner grants it: grant usage on schema {schema} to {role}; grant select on {path} to {role};"
        );
        return Some((format!("the role {role} may not use its schema"), help));
    }
    if table.has_foreign_member {
        let reason =
            "one of its partitions or heirs is a foreign table, which this server's snapshots do not cover";
        return Some((reason.to_owned(), foreign.to_owned()));
    }
    if table.columns.is_empty() {
        return Some(("has no columns".to_owned(), "name another one".to_owned()));
    }
    if !table.columns.iter().any(|column| column.is_readable) {
        let reason = format!("the role {role} may not read it");
        return Some((
            reason,
            format!("its owner {} grants it: grant select on {path} to {role}", table.owner),
        ));
    }
    None
}

struct ChosenKey<'a> {
    columns: Vec<&'a OutlineColumn>,
    why: String,
}

fn choose_key<'a>(table: &'a TableOutline, named: &[String]) -> Result<ChosenKey<'a>, Refusal> {
    let find = |name: &String| table.columns.iter().find(|column| column.name == *name);
    if !named.is_empty() {
        return named_key(table, named);
    }
    // Rows of a materialized view are never checked for nulls, and a row with one in its key has no entry.
    let may_be_null = table.kind == 'm';
    let mut flaws = Vec::new();
    for key in &table.keys {
        let columns: Vec<&OutlineColumn> = key.columns.iter().filter_map(find).collect();
        let flaw = columns.iter().find_map(|column| {
            flaw_in_key(column).or_else(|| {
                (column.is_nullable && !may_be_null).then(|| format!("{} may be null", column.name))
            })
        });
        match flaw {
            Some(flaw) => flaws.push(format!("{}: {flaw}", key.name)),
            None => {
                let why = match key.is_primary {
                    true => "its primary key".to_owned(),
                    false => format!("the unique index {}", key.name),
                };
                return Ok(ChosenKey { columns, why });
            }
        }
    }
    let table_name = if table.kind == 'v' { "is a view, and has no key" } else { "has no key" };
    let reason = match flaws.is_empty() {
        true => format!("{table_name} that rows could be told apart by"),
        false => format!("has no key that could be used ({})", flaws.join("; ")),
    };
    let help = format!(
        "name the columns that do: cachekeeper init --from-table {} --key COLUMN,COLUMN; or give the table a primary key",
        shell(&table.path)
    );
    Err(Refusal::new(&table.path, reason, help))
}

fn named_key<'a>(table: &'a TableOutline, named: &[String]) -> Result<ChosenKey<'a>, Refusal> {
    let mut columns: Vec<&OutlineColumn> = Vec::new();
    for name in named {
        let Some(column) = table.columns.iter().find(|column| column.name == *name) else {
            let known: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
            let help = format!("its columns: {}", known.join(", "));
            return Err(Refusal::new(&table.path, format!("has no column {name}"), help));
        };
        if let Some(flaw) = flaw_in_key(column) {
            let help = "name other columns".to_owned();
            return Err(Refusal::new(&table.path, format!("cannot have that key: {flaw}"), help));
        }
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    let is_unique = table
        .keys
        .iter()
        .any(|key| key.columns.iter().all(|name| columns.iter().any(|column| column.name == *name)));
    let mut why = "the columns that were named".to_owned();
    if !is_unique {
        why.push_str(
            ", which nothing keeps unique: a key with several rows is refused, unless the dataset says rows = \"many\"",
        );
    }
    Ok(ChosenKey { columns, why })
}

/// Why a column cannot stand in a key.
fn flaw_in_key(column: &OutlineColumn) -> Option<String> {
    let OutlineColumn { name, type_name, .. } = column;
    if !column.is_readable {
        return Some(format!("{name} may not be read"));
    }
    (!column.can_be_in_keys)
        .then(|| format!("{name} is of type {type_name}, which has no one text for a key"))
}

/// Whether its values hold no `:`.
fn is_segment(column: &OutlineColumn) -> bool {
    let known = ["int2", "int4", "int8", "uuid", "bool", "date", "float4", "float8", "numeric", "oid"];
    known.contains(&column.base.as_str())
}

/// The name that a column has in templates, and whether it is another one: a placeholder holds no braces.
fn placeholder(name: &str) -> (String, bool) {
    let plain = name.replace(['{', '}'], "_");
    let is_other = plain != name;
    (plain, is_other)
}

fn listed(column: &OutlineColumn, key: &[&OutlineColumn]) -> String {
    match placeholder(&column.name) {
        (plain, true) if key.contains(&column) => {
            format!("{} as \"{}\"", column.quoted, plain.replace('"', "\"\""))
        }
        _ => column.quoted.clone(),
    }
}

fn wrapped(list: &[String]) -> String {
    let mut text = String::new();
    let mut width = 0;
    for (position, item) in list.iter().enumerate() {
        if 0 < position {
            let is_full = WIDTH < width + item.chars().count() + 2;
            text.push_str(if is_full { ",\n  " } else { ", " });
            width = if is_full { 0 } else { width + 2 };
        }
        text.push_str(item);
        width += item.chars().count();
    }
    text
}

/// What a dataset of this table may be called.
pub fn names(schema: &str, table: &str) -> Vec<String> {
    let plain = |text: &str| -> String {
        let one = |one: char| if one.is_alphanumeric() || one == '-' { one } else { '_' };
        text.chars().map(one).collect()
    };
    let (schema, table) = (plain(schema), plain(table));
    let mut names = vec![table.clone(), format!("{schema}_{table}")];
    names.extend((2..10).map(|number| format!("{table}_{number}")));
    names
}

fn about(table: &TableOutline, key: &str) -> String {
    let kind = match table.kind {
        'p' => ", partitioned",
        'v' => ", a view",
        'm' => ", a materialized view",
        _ => "",
    };
    let rows = table.rows.map_or(String::new(), |rows| format!(", about {rows} rows"));
    format!("{}{kind}{rows}. Its key: {key}.", table.path)
}

/// What is not in the query, and what else is to be known.
fn left_out(table: &TableOutline) -> Vec<String> {
    let mut notes = Vec::new();
    let names = |columns: Vec<&OutlineColumn>| -> String {
        columns.iter().map(|column| column.quoted.as_str()).collect::<Vec<_>>().join(", ")
    };
    let hidden: Vec<&OutlineColumn> = table.columns.iter().filter(|column| !column.is_readable).collect();
    if !hidden.is_empty() {
        let (columns, path, role) = (names(hidden), &table.path, &table.role);
        notes.push(format!(
            "Left out, because the role {role} may not read them: {columns}. {} grants it: grant select on {path} to {role};",
            table.owner
        ));
    }
    for column in table.columns.iter().filter(|column| column.is_readable && !column.has_form) {
        let OutlineColumn { quoted, type_name, .. } = column;
        notes.push(format!(
            "Left out: {quoted} is of type {type_name}, which has no form in MessagePack and JSON; as text it is \
             {quoted}::text as {quoted}."
        ));
    }
    if table.has_heirs {
        let note =
            "Other tables inherit from it, and their rows come too: a key that two of them have is refused.";
        notes.push(note.to_owned());
    }
    if table.has_row_security {
        let role = &table.role;
        notes.push(format!(
            "Row security decides which of its rows the role {role} sees; readers of Redis see those, whoever they are."
        ));
    }
    notes
}

fn tags(table: &TableOutline, columns: &[&OutlineColumn]) -> Vec<String> {
    let mut tags = Vec::new();
    for reference in &table.references {
        let found = |name: &String| {
            let column = columns.iter().find(|column| column.name == *name)?;
            (column.can_be_in_keys && !placeholder(name).1).then(|| format!("{{{name}}}"))
        };
        let Some(places) = reference.columns.iter().map(found).collect::<Option<Vec<String>>>() else {
            continue;
        };
        let called = names(&reference.schema, &reference.table).into_iter().next().unwrap_or_default();
        let tag = format!("{}:{}", literal(&called), places.join(":"));
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
}

/// The watch rules of a table's rows.
pub fn watch(table: &TableOutline, reads: &[String], pairs: Vec<(String, String)>, draft: &mut Draft) {
    draft.about_watch = match table.kind {
        'm' => "Changes of a materialized view cannot be captured: publish an event after each refresh \
             ({\"dataset\": \"…\"}), or schedule a backfill. Until then entries are as fresh as their ttl."
            .to_owned(),
        'v' => {
            draft.watch.extend(reads.iter().map(|table| Rule::Dataset { table: table.clone() }));
            "Any change of these tables loads the whole dataset again. Where one has a column with the key's values, \
             key = { PLACEHOLDER = \"COLUMN\" } instead of dataset = true touches that entry alone."
                .to_owned()
        }
        _ if 1 < table.roots.len() => format!(
            "It inherits from several tables ({}), which cannot be captured: entries are as fresh as events and their ttl.",
            table.roots.join(", ")
        ),
        _ => {
            draft.watch.push(Rule::Key { table: table.path.clone(), pairs });
            let mut about = "A changed row touches its entry.".to_owned();
            if let Some(root) = table.roots.first().filter(|root| **root != table.path) {
                about.push_str(&format!(" It is part of {root}, whose changes are captured."));
            }
            if !table.is_ours {
                let owner = &table.owner;
                about.push_str(&format!(
                    " The table is {owner}'s, who runs `cachekeeper migrate`, or what `cachekeeper migrate --print` prints."
                ));
            }
            about
        }
    };
}

fn hints(columns: &[&OutlineColumn]) -> Vec<String> {
    let mut hints = Vec::new();
    for column in columns.iter().filter(|column| column.is_text_list) {
        hints.push(format!(
            "{} is a list of texts. As a tag it gives one for each element, so that an event that names one reaches every such entry.",
            column.quoted
        ));
        let (name, is_awkward) = placeholder(&column.name);
        if !is_awkward {
            hints.push(format!("tags = [{}]", quoted(&format!("{}:{{{name}}}", literal(&name)))));
        }
    }
    if let Some(column) = columns.iter().find(|column| ends_a_life(column)) {
        let (name, says) = (&column.quoted, says_a_life(column));
        hints.push(if says {
            format!("{name} looks like the end of a row's life. By ttl_column each entry ends when it says, and after `ttl` at the latest.")
        } else {
            format!(
                "{name} looks like the end of a row's life, but a {} is no moment: select it as a timestamptz for ttl_column, or choose \
                 a short ttl.",
                column.base
            )
        });
        hints.push(if says {
            format!("ttl_column = {}", quoted(&column.name))
        } else {
            "ttl = \"5m\"".to_owned()
        });
    }
    hints.push(
        "warm = { on_start = true } fills it when the worker starts; a `schedule` within the ttl keeps every row in Redis. Without it there is what \
         the library loads, and with on_miss = \"load\" what a plain GET misses."
            .to_owned(),
    );
    hints
}

/// Whether `ttl_column` takes its type.
fn says_a_life(column: &OutlineColumn) -> bool {
    matches!(column.base.as_str(), "timestamptz" | "interval" | "int2" | "int4" | "int8")
}

fn ends_a_life(column: &OutlineColumn) -> bool {
    let name = column.name.to_lowercase();
    let is_named = ["expir", "valid_until", "valid_to", "not_after", "ends_at", "ttl", "time_to_live"];
    let is_typed = ["timestamp", "timestamptz", "date", "interval", "int2", "int4", "int8"];
    is_named.iter().any(|part| name.contains(part)) && is_typed.contains(&column.base.as_str())
}

/// A word for the shell.
fn shell(text: &str) -> String {
    let is_plain = text.chars().all(|one| one.is_alphanumeric() || matches!(one, '.' | '_' | '-'));
    if is_plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
