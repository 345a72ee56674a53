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
        sql.push_str(&format!(
            "create domain domain_{number} as {kind};
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

/// A composite of which one part has only a text, beside parts with a form of their own.
#[tokio::test]
async fn parts_keep_their_own_form_beside_those_that_are_read_as_text() {
    let rig = Rig::start(
        "create extension hstore;
         create type inner_part as (r int4range, f real, y bytea);
         create type mixed as (n numeric, m int4multirange, h hstore, y bytea, f double precision, list numeric[], i inner_part, j json, d date);
         create table t (id int primary key, c mixed, many mixed[], ranges inner_part[]);
         insert into t values (1,
            (1.50, '{[1,3)}', 'a=>1', '\\x00ff', 0.1, array[[1.0, null], ['NaN'::numeric, 2]], ('[1,2)', 0.5, '\\x01'), '[1.0 ,{}]', '2026-11-26'),
            array[row(1.0, null, null, '\\x', 'NaN', '{}', null, null, null)::mixed, null], array[array[('empty', '-0', null)::inner_part]]);
         insert into t values (2, null, null, null);",
    )
    .await;
    let context = rig.context(
        "[dataset.json]\nquery = \"select * from t\"\nkey = \"json:{id}\"\nformat = \"json\"\nwarm = {}\n\
         [dataset.number]\nquery = \"select * from t\"\nkey = \"number:{id}\"\nformat = \"json\"\nnumeric = \"number\"\nwarm = {}\n\
         [dataset.packed]\nquery = \"select * from t\"\nkey = \"packed:{id}\"\nwarm = {}\n",
    );
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    for dataset in context.catalog.iter() {
        assert_eq!(backfill(&context, dataset, &options).await.unwrap().failures, vec![]);
    }
    let mut client = rig.client().await;
    let json: String = client.get("json:1").await.unwrap();
    let expected = r#"{"id":1,"c":{"n":"1.50","m":"{[1,3)}","h":{"a": "1"},"y":"\\x00ff","f":0.1,"list":[["1.0",null],["NaN","2"]],"i":{"r":"[1,2)","f":0.5,"y":"\\x01"},"j":[1.0 ,{}],"d":"2026-11-26"},"many":[{"n":"1.0","m":null,"h":null,"y":"\\x","f":"NaN","list":[],"i":null,"j":null,"d":null},null],"ranges":[[{"r":"empty","f":-0,"y":null}]]}"#;
    assert_eq!(json, expected);
    let number: String = client.get("number:1").await.unwrap();
    assert_eq!(
        number,
        expected.replace("\"1.50\"", "1.50").replace("\"1.0\"", "1.0").replace("\"2\"]]", "2]]")
    );
    let packed: Vec<u8> = client.get("packed:1").await.unwrap();
    let Pack::Map(fields) = rmp_serde::from_slice(&packed).unwrap() else { panic!("no map") };
    let Pack::Map(parts) = &fields[1].1 else { panic!("{fields:?}") };
    assert!(is_same(&serde_json::from_str(expected).unwrap(), &Pack::Map(fields.clone())), "{fields:?}");
    assert_eq!(parts[3].1, Pack::Bytes(vec![0, 255]));
    assert_eq!(parts[4].1, Pack::Float8(0.1));
    assert_eq!(
        client.get::<_, String>("json:2").await.unwrap(),
        r#"{"id":2,"c":null,"many":null,"ranges":null}"#
    );
}

/// What has no form is one message, with all such columns, also beside those that the driver cannot describe.
#[tokio::test]
async fn columns_without_a_form_are_named_together() {
    let rig =
        Rig::start("create table t (id int, m int4multirange, \"an acl\" aclitem, parts pg_node_tree)").await;
    let context = rig.context("[dataset.t]\nquery = \"select * from t\"\nkey = \"t:{id}\"");
    let error = context.catalog.get("t").unwrap().source(&context.postgres).await.unwrap_err();
    let expected =
        "column an acl has the type aclitem, column parts has the type pg_node_tree, which has no form";
    assert!(error.to_string().contains(expected), "{error}");
    let context = rig.context("[dataset.t]\nquery = \"select id, m from t\"\nkey = \"t:{id}:{m}\"");
    let error = context.catalog.get("t").unwrap().source(&context.postgres).await.unwrap_err();
    assert!(
        error.to_string().contains("column m has the type int4multirange, whose values have no one text"),
        "{error}"
    );
    let context = rig.context("[dataset.t]\nquery = \"select id, m, m as id from t\"\nkey = \"t:{id}\"");
    let error = context.catalog.get("t").unwrap().source(&context.postgres).await.unwrap_err();
    assert!(error.to_string().contains("two columns named id"), "{error}");
}
