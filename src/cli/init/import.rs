//! From the files of Redis Data Integration and Sequin to tables and what is to be so of their datasets. Nothing is guessed: what has
//! no counterpart is named.

use serde_json::Value;

use super::draft::Setting;
use super::toml::literal;

/// A dataset of another program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Where it stands.
    pub origin: String,
    /// Its table, as SQL.
    pub table: String,
    /// The template of its keys, and the columns in it.
    pub template: Option<(String, Vec<String>)>,
    /// Settings, as TOML.
    pub settings: Vec<String>,
    /// What has no counterpart.
    pub lost: Vec<String>,
}

impl Imported {
    /// Its settings as a draft has them.
    pub fn settings(&self) -> Vec<Setting> {
        self.settings.iter().map(|line| Setting { about: String::new(), line: line.clone() }).collect()
    }
}

/// Datasets, and what cannot become one, with the reason.
pub type Found = Vec<Result<Imported, (String, String)>>;

fn text<'v>(value: &'v Value, name: &str) -> Option<&'v str> {
    value.get(name).and_then(Value::as_str)
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Everything in a table but what is understood, each with what it says.
fn rest(table: &Value, place: &str, known: &[&str]) -> Vec<String> {
    let fields = table.as_object().into_iter().flatten();
    let others = fields.filter(|(name, value)| !known.contains(&name.as_str()) && !value.is_null());
    others.map(|(name, value)| format!("{place}{name}: {value}")).collect()
}

/// A job of Redis Data Integration.
///
/// # Errors
/// The document is none.
pub fn of_rdi(job: &Value) -> Result<Found, String> {
    let source = job.get("source").ok_or("is no job of Redis Data Integration: it has no `source`")?;
    let table =
        text(source, "table").ok_or("is no job of Redis Data Integration: it has no `source.table`")?;
    let name = text(job, "name").map_or(table.to_owned(), str::to_owned);
    if table.contains('*') {
        let reason = "is a job for all tables; name them: cachekeeper init --from-table TABLE";
        return Ok(vec![Err((name, reason.to_owned()))]);
    }
    let path = match text(source, "schema") {
        Some(schema) => format!("{}.{}", quote(schema), quote(table)),
        None => quote(table),
    };
    let mut lost = rest(source, "source.", &["schema", "table"]);
    lost.extend(rest(job, "", &["name", "source", "transform", "output"]));
    let steps = job.get("transform").and_then(Value::as_array).into_iter().flatten();
    lost.extend(steps.map(|step| format!("transform: {step}; say it in the query, where SQL can")));
    let outputs: Vec<Value> = match job.get("output") {
        Some(Value::Array(outputs)) => outputs.clone(),
        // Without one RDI writes by its own defaults.
        _ => vec![serde_json::json!({ "uses": "redis.write", "with": {} })],
    };
    let of_output = |output: &Value| {
        let uses = text(output, "uses").unwrap_or_default();
        if uses != "redis.write" {
            return Err((name.clone(), format!("writes by {uses}, and not into Redis")));
        }
        let nothing = Value::Null;
        let with = output.get("with").unwrap_or(&nothing);
        let mut one =
            Imported { origin: name.clone(), table: path.clone(), lost: lost.clone(), ..Imported::default() };
        match text(with, "data_type") {
            Some("json") => one.settings.push("format = \"json\"".to_owned()),
            Some("hash") | None => {
                one.lost.push("a Redis hash: here a value is one map of all columns, read by GET".to_owned());
            }
            Some(other) => {
                return Err((name.clone(), format!("writes a Redis {other}, which an entry cannot be")));
            }
        }
        match with.get("key").and_then(|key| text(key, "expression")) {
            Some(expression) => match template(expression) {
                Some(template) => one.template = Some(template),
                None => one.lost.push(format!("key: {expression}; the key below is this program's own")),
            },
            None => {
                one.lost.push("the key was by RDI's default; the key below is this program's own".to_owned());
            }
        }
        match text(with, "expire").map(str::parse::<u64>) {
            Some(Ok(seconds)) if 0 < seconds => one.settings.push(format!("ttl = \"{seconds}s\"")),
            Some(_) => one.lost.extend(text(with, "expire").map(|expire| format!("expire: {expire}"))),
            None => one.lost.push(
                "entries had no end; here they live for `ttl` and are loaded again when asked for".to_owned(),
            ),
        }
        one.lost.extend(rest(with, "output.with.", &["data_type", "key", "expire", "connection"]));
        one.lost.extend(rest(output, "output.", &["uses", "with"]));
        Ok(one)
    };
    Ok(outputs.iter().map(of_output).collect())
}

/// The template of `concat(['text', column, …])` or `'text' || column`; none: it is more than that.
fn template(expression: &str) -> Option<(String, Vec<String>)> {
    let expression = expression.trim();
    let list = expression.strip_prefix("concat([").and_then(|rest| rest.strip_suffix("])"));
    let (inner, divider) = list.map_or((expression, "||"), |inner| (inner, ","));
    let (mut written, mut columns, mut left) = (String::new(), Vec::new(), inner);
    loop {
        left = left.trim_start();
        if let Some(behind) = left.strip_prefix('\'') {
            let (text, behind) = behind.split_once('\'')?;
            written.push_str(&literal(text));
            left = behind;
        } else {
            let end = left.find(|one: char| !one.is_alphanumeric() && one != '_').unwrap_or(left.len());
            let (column, behind) = left.split_at_checked(end)?;
            if column.is_empty() || column.starts_with(|one: char| one.is_ascii_digit()) {
                return None;
            }
            written.push_str(&format!("{{{column}}}"));
            columns.push(column.to_owned());
            left = behind;
        }
        left = left.trim_start();
        if left.is_empty() {
            return (!columns.is_empty()).then_some((written, columns));
        }
        left = left.strip_prefix(divider)?;
    }
}

/// The sinks of a configuration of Sequin.
///
/// # Errors
/// The document is none.
pub fn of_sequin(file: &Value) -> Result<Found, String> {
    let sinks =
        file.get("sinks").and_then(Value::as_array).ok_or("is no configuration of Sequin with `sinks`")?;
    let nothing = Value::Null;
    let mut found = Found::new();
    for sink in sinks {
        let name = format!("sink {}", text(sink, "name").unwrap_or("without a name"));
        let destination = sink.get("destination").unwrap_or(&nothing);
        let kind = text(destination, "type").unwrap_or("no type");
        if kind != "redis_string" {
            found.push(Err((name, format!("writes to {kind}, and not values by key into Redis"))));
            continue;
        }
        let tables = tables(sink);
        if tables.is_empty() {
            found.push(Err((
                name,
                "names no tables; name them: cachekeeper init --from-table TABLE".to_owned(),
            )));
            continue;
        }
        let mut lost = rest(sink, "", &["name", "database", "table", "tables", "source", "destination"]);
        lost.push("the key was Sequin's; the key below is this program's own".to_owned());
        let mut settings = vec!["format = \"json\"".to_owned()];
        match text(destination, "expire_ms").map(str::parse::<u64>) {
            Some(Ok(millis)) if 0 < millis => settings.push(format!("ttl = \"{millis}ms\"")),
            _ => lost.push(
                "entries had no end; here they live for `ttl` and are loaded again when asked for".to_owned(),
            ),
        }
        let connection = ["type", "host", "port", "database", "tls", "username", "password", "expire_ms"];
        // A value may be secret.
        let others = rest(destination, "destination.", &connection);
        lost.extend(others.iter().map(|other| other.split(':').next().unwrap_or_default().to_owned()));
        for table in tables {
            let (settings, lost) = (settings.clone(), lost.clone());
            found.push(Ok(Imported { origin: name.clone(), table, settings, lost, template: None }));
        }
    }
    Ok(found)
}

/// The tables of a sink, as SQL, by every form that Sequin has had.
fn tables(sink: &Value) -> Vec<String> {
    let list = |value: Option<&Value>| -> Vec<String> {
        let items = value.and_then(Value::as_array).into_iter().flatten();
        items.filter_map(|item| item.as_str().or_else(|| text(item, "name")).map(str::to_owned)).collect()
    };
    let mut names: Vec<String> = text(sink, "table").map(str::to_owned).into_iter().collect();
    names.extend(list(sink.get("tables")));
    names.extend(list(sink.get("source").and_then(|source| source.get("include_tables"))));
    let path = |name: &String| name.split('.').map(quote).collect::<Vec<_>>().join(".");
    names.iter().map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_texts_and_columns_become_templates() {
        for (expression, written) in [
            ("concat(['invoice_id:', InvoiceId])", Some("invoice_id:{InvoiceId}")),
            ("'a{' || b || ':' || c", Some("a{{{b}:{c}")),
            ("concat(['x', upper(b)])", None),
            ("concat([table, '#', keys(key)[0]])", None),
            ("'only'", None),
            ("", None),
        ] {
            assert_eq!(template(expression).map(|(written, _)| written).as_deref(), written, "{expression}");
        }
    }
}
