//! `cachekeeper write`

use std::collections::BTreeMap;
use std::io::Read as _;

use clap::Args;
use serde_json::{Value, json};

use super::choose::choose;
use super::output::{Exit, Output};
use cachekeeper_config::diagnostic::did_you_mean;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::decoded::decoded;
use cachekeeper_engine::error::{EngineError, chain};
use cachekeeper_engine::stores::postgres::write::WriteStatement;
use cachekeeper_engine::write::{
    CacheState, Parameter, Parameters, WriteError, Written, bind, statement_of, write as carry_out,
};

/// Entries that are shown; `--json` has all.
const SHOWN_MAX: usize = 20;

/// What to write.
#[derive(Debug, Args)]
pub struct Request {
    /// The dataset
    dataset: String,
    /// Values of the statement's parameters, as Postgres reads their types; `NAME=` is the empty text
    #[arg(value_name = "NAME=VALUE")]
    values: Vec<String>,
    /// A parameter that is NULL; may be given several times
    #[arg(long = "null", value_name = "NAME")]
    nulls: Vec<String>,
    /// More values, as a JSON object (numbers of more than 15 digits as text); `-` reads it from standard input
    #[arg(long, value_name = "JSON")]
    params: Option<String>,
}

/// Carries out a dataset's write statement, and stores what it touched.
pub async fn write(context: &Context, request: &Request, out: &Output) -> Result<Exit, EngineError> {
    let names = std::slice::from_ref(&request.dataset);
    let dataset = match choose(context, names, out).map(|chosen| chosen.first().copied()) {
        Ok(Some(dataset)) => dataset,
        Ok(None) => return Ok(Exit::Usage),
        Err(exit) => return Ok(exit),
    };
    let given = match request.parameters() {
        Ok(given) => given,
        Err(problem) => {
            out.failure(&problem);
            return Ok(Exit::Usage);
        }
    };
    let statement = match statement_of(context, dataset).await {
        Ok(statement) => statement,
        // Not this write is wrong, but what the file says.
        Err(WriteError::Refused(text)) => {
            let name = dataset.name();
            out.failure(&format!(
                "the write statement of dataset {name} is wrong: {text}; see `cachekeeper check`"
            ));
            return Ok(Exit::Configuration);
        }
        Err(error) => return refused(error, out),
    };
    let known = known_parameters(&statement);
    let wrong = wrong_parameters(&known, &given);
    let wrong = wrong.or_else(|| bind(&statement, &given).err().map(|error| error.to_string()));
    if let Some(wrong) = wrong {
        out.failure(&wrong);
        let list: Vec<String> = known.iter().map(|(name, kind)| format!("{name} ({kind})")).collect();
        let list = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        out.note(&format!("parameters of dataset {}: {list}", dataset.name()));
        return Ok(Exit::Usage);
    }
    match carry_out(context, dataset.name(), &given).await {
        Ok(written) => {
            show(context, dataset.name(), &written, out);
            Ok(Exit::Ok)
        }
        Err(error) => refused(error, out),
    }
}

impl Request {
    fn parameters(&self) -> Result<Parameters, String> {
        let mut given = Parameters::new();
        let mut add = |name: &str, value: Parameter| match given.insert(name.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(format!("parameter {name} is given twice; give it once")),
        };
        for text in &self.values {
            let Some((name, value)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
                let help = "write price_cents=1999, or --null price_cents for NULL";
                return Err(format!("{text:?} is not NAME=VALUE; {help}"));
            };
            add(name, Parameter::Text(value.to_owned()))?;
        }
        for name in &self.nulls {
            add(name, Parameter::Value(Value::Null))?;
        }
        let text = match self.params.as_deref() {
            Some("-") => {
                let mut text = String::new();
                let read = std::io::stdin().read_to_string(&mut text);
                read.map_err(|error| format!("standard input cannot be read: {error}"))?;
                Some(text)
            }
            other => other.map(str::to_owned),
        };
        if let Some(text) = text {
            let Pairs(pairs) = serde_json::from_str(&text)
                .map_err(|error| format!("--params is not a JSON object: {error}; write {{\"id\": 42}}"))?;
            for (name, value) in pairs {
                add(&name, Parameter::Value(value))?;
            }
        }
        Ok(given)
    }
}

/// A JSON object with all its names, also where one stands there twice.
struct Pairs(Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Pairs;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut entries: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = entries.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Names and types; a name that stands at places of different types has all of them.
fn known_parameters(statement: &WriteStatement) -> Vec<(&str, String)> {
    let mut known: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, kind) in &statement.places {
        match known.iter_mut().find(|(earlier, _)| earlier == name) {
            None => known.push((name, vec![kind])),
            Some((_, kinds)) if !kinds.contains(&kind.as_str()) => kinds.push(kind),
            Some(_) => {}
        }
    }
    known.into_iter().map(|(name, kinds)| (name, kinds.join(" and "))).collect()
}

/// What is unknown and what is missing, all at once.
fn wrong_parameters(known: &[(&str, String)], given: &Parameters) -> Option<String> {
    let names = || known.iter().map(|(name, _)| *name);
    let mut wrong = Vec::new();
    for unknown in given.keys().filter(|name| !names().any(|known| known == *name)) {
        let close = did_you_mean(unknown, names().filter(|name| !given.contains_key(*name)));
        let close = close.map_or_else(String::new, |close| format!(", did you mean {close}?"));
        wrong.push(format!("the write statement has no parameter {unknown}{close}"));
    }
    let missing: Vec<&str> = names().filter(|name| !given.contains_key(*name)).collect();
    if !missing.is_empty() {
        wrong.push(format!("no value is given for {}; --null NAME gives NULL", missing.join(", ")));
    }
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

fn show(context: &Context, dataset: &str, written: &Written, out: &Output) {
    let rows = if written.rows == 1 { "1 row".to_owned() } else { format!("{} rows", written.rows) };
    let (word, meaning) = match written.cache {
        CacheState::Stored => ("stored", "stored in Redis"),
        CacheState::Pending => (
            "pending",
            "pending in Redis: the write is in Postgres for good, and the worker's change feed brings it to Redis, or the end of the entry's life does",
        ),
    };
    let token = written.token.as_ref().map(ToString::to_string);
    let values: BTreeMap<&String, Value> = written
        .values
        .iter()
        .map(|(key, value)| {
            let dataset = context.catalog.of_key(key).map(|(dataset, _)| dataset);
            let value = value.as_ref().map(|value| decoded(value, dataset.map(|one| &one.settings.format)));
            let value = value
                .map(|shown| shown.unwrap_or_else(|error| Value::from(format!("cannot be read: {error}"))));
            (key, value.unwrap_or_default())
        })
        .collect();
    let mut text = vec![
        format!("{dataset}: {rows} written, {meaning}"),
        token
            .as_ref()
            .map_or_else(|| "token: none could be taken".to_owned(), |token| format!("token {token}")),
    ];
    for (key, value) in values.iter().take(SHOWN_MAX) {
        let is_gone = written.values.get(*key).is_some_and(Option::is_none);
        text.push(if is_gone {
            format!("\n{key} has no row any more")
        } else {
            format!("\n{key}\n{value:#}")
        });
    }
    if SHOWN_MAX < values.len() {
        text.push(format!("\nand {} more entries; --json shows all", values.len() - SHOWN_MAX));
    }
    let facts =
        json!({ "dataset": dataset, "rows": written.rows, "cache": word, "token": token, "values": values });
    out.result(&text.join("\n"), &facts);
}

fn refused(error: WriteError, out: &Output) -> Result<Exit, EngineError> {
    match error {
        WriteError::Unavailable(error) => Err(error.into()),
        WriteError::Unknown(error) => {
            let error = chain(&error);
            out.failure(&format!(
                "the connection broke during the commit, so the write may or may not be in Postgres; look before you run it again: {error}"
            ));
            Ok(Exit::Failed)
        }
        error @ (WriteError::Dataset(_) | WriteError::NoStatement(_) | WriteError::Parameter { .. }) => {
            out.failure(&error.to_string());
            Ok(Exit::Usage)
        }
        error @ WriteError::Unusable { .. } => {
            out.failure(&error.to_string());
            Ok(Exit::Configuration)
        }
        error @ (WriteError::Refused(_) | WriteError::NothingTouched) => {
            out.failure(&error.to_string());
            Ok(Exit::Failed)
        }
    }
}
