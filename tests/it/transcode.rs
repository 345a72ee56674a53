//! Every type, against what Postgres itself says.

use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::load::{Cause, LoadOptions};
use redis::AsyncCommands;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::support::Rig;

/// A type and SQL expressions of it.
const TYPES: &[(&str, &[&str])] = &[
    ("boolean", &["true", "false", "null"]),
    ("smallint", &["0", "-32768", "32767"]),
    ("integer", &["0", "-2147483648", "2147483647", "127", "128", "-33", "65536"]),
    ("bigint", &["0", "-9223372036854775808", "9223372036854775807", "4294967296"]),
    ("oid", &["0", "4294967295"]),
    (
        "real",
        &["0", "1.5", "-0.1", "1e20", "3.4028235e38", "1e-37", "1000000", "123456", "'NaN'", "'-Infinity'"],
    ),
    (
        "double precision",
        &[
            "0",
            "-0.0",
            "0.1",
            "1e15",
            "123456789012345",
            "1e-5",
            "0.0001",
            "1e300",
            "5e-324",
            "'NaN'",
            "'Infinity'",
        ],
    ),
    ("text", &["''", "'plain'", "E'quote\" back\\\\ line\\n tab\\t bell\\u0007'", "'ünïcödé 🦀'"]),
    ("varchar(10)", &["'short'"]),
    ("char(5)", &["'ab'"]),
    ("name", &["'a_name'"]),
    ("\"char\"", &["'x'"]),
    ("uuid", &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    (
        "json",
        &[
            "'{\"a\": [1, 2.5, null, true, \"x\"], \"b\": {}}'",
            "'123456789012345678901234567890'",
            "'\"text\"'",
        ],
    ),
    (
        "jsonb",
        &[
            "'{\"a\": [1, 2.5, null, true, \"x\"], \"b\": {}}'",
            "'[]'",
            "'123456789012345678901234567890.5'",
            "(select jsonb_agg(n) from generate_series(1, 70000) n)",
            "(select jsonb_object_agg('k' || n, n) from generate_series(1, 20) n)",
        ],
    ),
    (
        "date",
        &[
            "'2026-11-24'",
            "'0001-01-01'",
            "'0044-03-15 BC'",
            "'5874897-12-31'",
            "'infinity'",
            "'-infinity'",
            "'2000-02-29'",
            "'1900-03-01'",
        ],
    ),
    ("time", &["'00:00:00'", "'23:59:59.999999'", "'24:00:00'", "'12:30:00.5'"]),
    ("timetz", &["'12:30:00+05:30'", "'12:30:00-08'", "'01:02:03.5+00'", "'12:30:00+15:59:59'"]),
    (
        "timestamp",
        &[
            "'2026-11-24 12:34:56.789'",
            "'1999-12-31 23:59:59.999999'",
            "'0044-03-15 01:02:03 BC'",
            "'infinity'",
            "'294276-12-31 23:59:59.999999'",
        ],
    ),
    (
        "timestamptz",
        &[
            "'2026-11-24 12:34:56.789+02'",
            "'1969-07-20 20:17:40Z'",
            "'4713-01-01 00:00:00+00 BC'",
            "'-infinity'",
        ],
    ),
    (
        "interval",
        &[
            "'0'",
            "'1 year 2 months 3 days 04:05:06.789'",
            "'-1 day'",
            "'-04:05:06.5'",
            "'1 mon -1 day 00:00:01'",
            "'100 years'",
            "'-0.5 seconds'",
            "'36:00:00'",
        ],
    ),
    ("inet", &["'192.168.0.1'", "'192.168.0.1/24'", "'::1'", "'2001:db8::1/64'", "'::ffff:1.2.3.4'"]),
    ("cidr", &["'10.0.0.0/8'", "'10.1.2.3/32'", "'2001:db8::/32'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("bit varying", &["B'1011001110001111'", "B''"]),
    ("integer[]", &["'{}'", "'{1,null,3}'", "'{{1,2},{3,4}}'", "'[5:6]={1,2}'"]),
    ("text[]", &["array['a', 'b\"c', null]"]),
    ("timestamptz[]", &["array['2026-01-01 00:00:00+00'::timestamptz]"]),
    ("mood", &["'happy'"]),
    ("mood[]", &["array['sad'::mood]"]),
    ("email", &["'a@example.com'"]),
    ("tiny", &["7"]),
    ("pair", &["row(1, 'x')::pair", "row(null, null)::pair"]),
    ("pair[]", &["array[row(1, 'x')::pair, null]"]),
    ("nested", &["row(row(2, 'y')::pair, array[1, 2])::nested"]),
    ("citext", &["'MiXeD'"]),
];

const SETUP: &str = "
    create extension if not exists citext;
    create type mood as enum ('sad', 'happy');
    create domain email as text check (value like '%@%');
    create domain tiny as smallint;
    create type pair as (a integer, b text);
    create type nested as (p pair, list integer[]);";

/// Where our JSON means something else on purpose, and what is the same in both.
fn same(kind: &str, ours: &Value, theirs: &Value) -> bool {
    match (kind, ours, theirs) {
        ("real" | "double precision", Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => ours == theirs,
    }
}

#[tokio::test]
async fn json_is_what_to_json_says_and_text_is_what_postgres_prints() {
    let rig = Rig::start(SETUP).await;
    let mut connection = PgConnection::connect(&rig.postgres.url()).await.unwrap();
    for pinned in [
        "set timezone = 'UTC'",
        "set datestyle = 'ISO, MDY'",
        "set intervalstyle = 'iso_8601'",
        "set extra_float_digits = 1",
    ] {
        sqlx::query(pinned).execute(&mut connection).await.unwrap();
    }
    let mut wrong = Vec::new();
    for (number, (kind, values)) in TYPES.iter().enumerate() {
        let union: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(at, value)| format!("select {at} as n, ({value})::{kind} as v"))
            .collect();
        let query = union.join(" union all ");
        let config = format!(
            "[dataset.packed]\nquery = '''{query}'''\nkey = \"packed{number}:{{n}}\"\nwarm = {{}}\n\
             [dataset.json]\nquery = '''{query}'''\nkey = \"json{number}:{{n}}\"\nformat = \"json\"\nwarm = {{}}\n"
        );
        let context = rig.context(&config);
        let mut client = rig.client().await;
        let options =
            BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
        for name in ["json", "packed"] {
            let dataset = context.catalog.get(name).unwrap();
            let report =
                backfill(&context, dataset, &options).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
            assert_eq!(report.failures, vec![], "{kind}");
            // By key too: the same bytes by the other way.
            let keys: Vec<_> = (0..values.len())
                .map(|at| (dataset.key_of(&[at.to_string()]).unwrap(), vec![at.to_string()]))
                .collect();
            let before: Vec<u8> = client.get(format!("{name}{number}:0")).await.unwrap();
            let mut job = cachekeeper_engine::load::Job::uncounted();
            let because = LoadOptions::because(Cause::Backfill);
            cachekeeper_engine::load::load(&context, dataset, &keys, because, &mut job).await.unwrap();
            let after: Vec<u8> = client.get(format!("{name}{number}:0")).await.unwrap();
            assert_eq!(before, after, "{kind}");
        }
        for (at, value) in values.iter().enumerate() {
            let sql = format!("select to_json(({value})::{kind})::text");
            let theirs: Option<String> =
                sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap();
            let theirs: Value = theirs.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
            let json: String = client.get(format!("json{number}:{at}")).await.unwrap();
            let ours: Value =
                serde_json::from_str(&json).unwrap_or_else(|error| panic!("{kind} {value}: {error}: {json}"));
            if !same(kind, &ours["v"], &theirs) {
                wrong.push(format!("{kind} {value}: json {} instead of {theirs}", ours["v"]));
            }
            let packed: Vec<u8> = client.get(format!("packed{number}:{at}")).await.unwrap();
            let packed: Value = match *kind {
                // JSON has no such numbers, MessagePack has.
                "real" | "double precision" if !theirs.is_number() => continue,
                _ => rmp_serde::from_slice(&packed).unwrap_or_else(|error| panic!("{kind} {value}: {error}")),
            };
            let close = match (&packed["v"], &theirs) {
                (Value::Number(a), Value::Number(b)) => {
                    (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() <= b.as_f64().unwrap().abs() * 1e-6
                }
                (a, b) => a == b,
            };
            if !close {
                wrong.push(format!("{kind} {value}: msgpack {} instead of {theirs}", packed["v"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn numerics_bytes_and_keys() {
    let values = [
        "0",
        "1",
        "-1.50",
        "12345678901234567890.123456789",
        "0.0001",
        "1e-20",
        "1e30",
        "10000",
        "99990000.5",
        "NaN",
        "Infinity",
        "100000000",
    ];
    let rows: Vec<String> = values
        .iter()
        .enumerate()
        .map(|(at, value)| format!("({at}, '{value}'::numeric, '\\x00ff10'::bytea)"))
        .collect();
    let rig = Rig::start(&format!(
        "create table t (n int, v numeric, b bytea); insert into t values {}",
        rows.join(", ")
    ))
    .await;
    let context = rig.context(
        r#"
        [dataset.text]
        query = "select n, v, b from t"
        key = "text:{v}"
        format = "json"
        warm = {}
        [dataset.number]
        query = "select n, v, b from t where v not in ('NaN', 'Infinity')"
        key = "number:{n}"
        numeric = "number"
        warm = {}
        [dataset.raw]
        query = "select n, b from t"
        key = "raw:{n}"
        format = "raw"
        value = "b"
        warm = {}"#,
    );
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    for dataset in context.catalog.iter() {
        backfill(&context, dataset, &options).await.unwrap();
    }
    let mut connection = PgConnection::connect(&rig.postgres.url()).await.unwrap();
    let mut client = rig.client().await;
    for at in 0..values.len() {
        let text: String = sqlx::query_scalar(AssertSqlSafe(format!("select v::text from t where n = {at}")))
            .fetch_one(&mut connection)
            .await
            .unwrap();
        let json: String = client.get(format!("text:{text}")).await.unwrap();
        assert_eq!(json, format!(r#"{{"n":{at},"v":"{text}","b":"\\x00ff10"}}"#));
    }
    let packed: Vec<u8> = client.get("number:1").await.unwrap();
    assert_eq!(packed, [0x83, 0xa1, b'n', 1, 0xa1, b'v', 1, 0xa1, b'b', 0xc4, 3, 0, 0xff, 0x10]);
    let raw: Vec<u8> = client.get("raw:1").await.unwrap();
    assert_eq!(raw, [0, 0xff, 0x10]);
}

#[tokio::test]
async fn unknown_types_are_named_with_all_their_columns() {
    let rig = Rig::start(
        "create extension cube;
         create type mixed as (place cube, price numeric);
         create table t (id int, place cube, who aclitem, many cube[], odd mixed)",
    )
    .await;
    let context = rig.context("[dataset.t]\nquery = \"select * from t\"\nkey = \"t:{id}\"");
    let error = context.catalog.get("t").unwrap().source(&context.postgres).await.unwrap_err().to_string();
    let columns = "column place has the type cube, column who has the type aclitem, column many has the type cube[], \
                   column odd has the type mixed, which";
    assert!(error.contains(columns) && error.contains("::text"), "{error}");
}
