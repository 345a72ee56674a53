//! Every type in both formats, alone, in arrays, domains and composites, against what Postgres's `to_json` says: edge values and
//! random ones. `CACHEKEEPER_TYPE_ROWS` says how many rows, `CACHEKEEPER_SEED` repeats a run.

mod pack;
mod samples;

use std::collections::BTreeMap;

use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use rand::SeedableRng;
use rand::rngs::StdRng;
use redis::AsyncCommands;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio_util::sync::CancellationToken;

use self::pack::{Pack, is_same, numbers_as_text};
use self::samples::{Sample, samples};
use crate::support::Rig;

/// Random rows, beside the edge values, where nothing else is said.
const ROWS: usize = 250;
/// Rows of one statement.
const CHUNK: usize = 50;

/// The forms in which a type is tried, as expressions of two values `c` and `e` of it and a number that names its own types.
const FORMS: [(&str, &str); 10] = [
    ("plain", "{c}"),
    ("list", "array[{c}, null, {e}]"),
    ("matrix", "array[[{c}, {e}], [null, {c}]]"),
    ("bounds", "array_fill({c}, array[2], array[-3])"),
    ("empty", "'{}'::{type}[]"),
    ("domain", "{c}::domain_{n}"),
    ("domains", "array[{c}, {e}]::domain_{n}[]"),
    ("pair", "row({c}, {e}, array[{e}, null])::pair_{n}"),
    ("pairs", "array[row(null, {c}, null)::pair_{n}, null]"),
    ("nested", "row(row({c}, null, '{}')::pair_{n}, null, 'x')::nested_{n}"),
];

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// The query with every form of every type.
fn query(samples: &[Sample]) -> String {
    let mut columns = Vec::new();
    for (number, sample) in samples.iter().enumerate() {
        for (name, form) in sample.forms() {
            let form = form
                .replace("{c}", &format!("c{number}"))
                .replace("{e}", &format!("e{number}"))
                .replace("{n}", &number.to_string())
                .replace("{type}", sample.kind);
            columns.push(format!("{form} as {name}_{number}"));
        }
    }
    format!("select n, {} from v", columns.join(", "))
}

/// The table of values, and the types made of the types.
fn schema(samples: &[Sample]) -> String {
    let mut sql = samples::SETUP.to_owned();
    let mut columns = vec!["n int primary key".to_owned()];
    for (number, sample) in samples.iter().enumerate() {
        let kind = sample.kind;
        // The driver cannot read domains over "char".
        let base = if kind == "\"char\"" { "text" } else { kind };
        sql.push_str(&format!(
            "create domain domain_{number} as {base};
             create type pair_{number} as (a {kind}, \"b\"\"\\\" domain_{number}, list {kind}[]);
             create type nested_{number} as (inner_pair pair_{number}, other pair_{number}, label text);"
        ));
        columns.push(format!("c{number} {kind}, e{number} {kind}"));
    }
    sql.push_str(&format!("create table v ({});", columns.join(", ")));
    sql
}

async fn fill(connection: &mut PgConnection, samples: &[Sample], rows: usize, random: &mut StdRng) -> usize {
    let edges = samples.iter().map(|sample| sample.edges.len()).max().unwrap_or_default();
    let numbers: Vec<usize> = (0..edges + rows).collect();
    for chunk in numbers.chunks(CHUNK) {
        let mut all = Vec::new();
        for at in chunk {
            let mut row = vec![at.to_string()];
            for sample in samples {
                row.push(sample.value(*at, random));
                row.push(sample.value(usize::MAX, random));
            }
            all.push(format!("({})", row.join(", ")));
        }
        let insert = format!("insert into v values {}", all.join(", "));
        connection.execute(AssertSqlSafe(insert)).await.unwrap();
    }
    edges + rows
}

/// What Postgres says about each column of each row.
async fn expected(connection: &mut PgConnection, query: &str, names: &[String]) -> Vec<Vec<String>> {
    for pinned in [
        "set timezone = 'UTC'",
        "set datestyle = 'ISO, MDY'",
        "set intervalstyle = 'iso_8601'",
        "set extra_float_digits = 1",
        "set bytea_output = 'hex'",
        "set lc_monetary = 'C'",
    ] {
        sqlx::query(pinned).execute(&mut *connection).await.unwrap();
    }
    let texts: Vec<String> =
        names.iter().map(|name| format!("coalesce(to_json({name})::text, 'null')")).collect();
    let sql = format!("select array[{}] from ({query}) q order by n", texts.join(", "));
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await.unwrap()
}

#[tokio::test]
async fn every_type_in_every_form_is_what_to_json_says() {
    let seed = number_from("CACHEKEEPER_SEED").unwrap_or_else(rand::random);
    println!("CACHEKEEPER_SEED={seed}");
    let rows = number_from("CACHEKEEPER_TYPE_ROWS").map_or(ROWS, |rows| usize::try_from(rows).unwrap());
    let mut random = StdRng::seed_from_u64(seed);
    let samples = samples();
    let rig = Rig::start(&schema(&samples)).await;
    let mut connection = PgConnection::connect(&rig.postgres.url()).await.unwrap();
    let count = fill(&mut connection, &samples, rows, &mut random).await;
    let query = query(&samples);
    let names: Vec<String> = samples
        .iter()
        .enumerate()
        .flat_map(|(number, sample)| sample.forms().map(move |(name, _)| format!("{name}_{number}")))
        .collect();
    let expected = expected(&mut connection, &query, &names).await;
    assert_eq!(expected.len(), count);

    let context = rig.context(&format!(
        "[dataset.json]\nquery = '''{query}'''\nkey = \"json:{{n}}\"\nformat = \"json\"\nnumeric = \"number\"\nwarm = {{}}\n\
         [dataset.packed]\nquery = '''{query}'''\nkey = \"packed:{{n}}\"\nwarm = {{}}\n"
    ));
    for name in ["json", "packed"] {
        let options =
            BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
        let report = backfill(&context, context.catalog.get(name).unwrap(), &options).await.unwrap();
        assert_eq!(report.failures, vec![], "{name}");
    }
    let mut client = rig.client().await;
    let mut wrong = BTreeMap::new();
    for (row, expected) in expected.iter().enumerate() {
        let json: String = client.get(format!("json:{row}")).await.unwrap();
        if let Some(difference) = compare_json(&json, row, &names, expected, &samples) {
            wrong.entry(String::new()).or_insert(difference);
        }
        let packed: Vec<u8> = client.get(format!("packed:{row}")).await.unwrap();
        let Pack::Map(fields) = rmp_serde::from_slice(&packed).unwrap() else { panic!("no map") };
        for ((name, expected), (_, ours)) in names.iter().zip(expected).zip(fields.iter().skip(1)) {
            let kind = kind_of(name, &samples);
            let expected =
                if kind.starts_with("numeric") { numbers_as_text(expected) } else { expected.clone() };
            if !is_same(&serde_json::from_str(&expected).unwrap(), ours) {
                wrong
                    .entry(name.clone())
                    .or_insert(format!("{name} ({kind}): MessagePack {ours:?} instead of {expected}"));
            }
        }
    }
    let wrong: Vec<String> = wrong.into_values().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn kind_of(name: &str, samples: &[Sample]) -> &'static str {
    let number: usize = name.rsplit('_').next().unwrap().parse().unwrap();
    samples[number].kind
}

/// Byte for byte.
fn compare_json(
    json: &str,
    row: usize,
    names: &[String],
    expected: &[String],
    samples: &[Sample],
) -> Option<String> {
    let mut rest = json.strip_prefix(&format!("{{\"n\":{row}"))?;
    for (name, expected) in names.iter().zip(expected) {
        let Some(after) = rest.strip_prefix(&format!(",\"{name}\":{expected}")) else {
            let ours: String = rest.chars().take(expected.len() + 40).collect();
            return Some(format!("{name} ({}): JSON {ours} instead of {expected}", kind_of(name, samples)));
        };
        rest = after;
    }
    (rest != "}").then(|| format!("{rest} behind the last column"))
}
