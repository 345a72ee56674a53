//! The text of a key or tag is the same wherever it comes from: a loaded row, the trigger of a changed one, the database's own
//! output. What differs only in its spelling has an entry for each spelling.

use std::collections::BTreeSet;

use cachekeeper_engine::audit::{Extent, compare};
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::context::Context;
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::capture::{follower, settle};
use crate::support::Rig;

const SETUP: &str = "
    create extension citext;
    create type mood as enum ('sad', 'so so');
    create domain email as text check (value like '%@%');
    create domain flag as boolean;
    create domain address as inet;
    create domain price as numeric(12, 4);
    create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);";

/// A type, values of it, and other spellings of the first two where there are any.
const TYPES: &[(&str, &[&str], &[&str])] = &[
    ("smallint", &["-1", "0", "32767"], &[]),
    ("integer", &["-2147483648", "7", "0"], &[]),
    ("bigint", &["9223372036854775807", "-5"], &[]),
    ("oid", &["4294967295", "1"], &[]),
    ("text", &["a:b", "ünïcödé 🦀", "{x}", "\"\\,'"], &[]),
    ("varchar(20)", &["x ", "x", "Y"], &[]),
    ("character(5)", &["ab", "", "abcde", "c d"], &[]),
    ("name", &["a_name", "A"], &[]),
    ("\"char\"", &["x", "Y"], &[]),
    ("citext", &["Bob", "carol", "bob", "BOB", "Carol"], &["bOB", "CAROL"]),
    ("text collate ci", &["Bob", "carol", "bob", "Carol", "BOB"], &["bOB", "CAROL"]),
    ("uuid", &["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "00000000-0000-0000-0000-000000000000"], &[]),
    ("boolean", &["true", "false"], &[]),
    ("numeric", &["1.0", "2", "1.00", "1", "-0.50", "1e30", "NaN", "2.0"], &["1.000", "2.00"]),
    ("numeric(12,4)", &["1.5", "-2", "0.0001"], &[]),
    ("real", &["0", "1.5", "-0", "1e20", "0.1", "NaN"], &["-0", "1.5"]),
    ("double precision", &["-0", "0.1", "0", "1e300", "-Infinity", "5e-324"], &["0", "0.1"]),
    ("date", &["2026-11-26", "0044-03-15 BC", "infinity"], &[]),
    ("time", &["12:30:00.5", "24:00:00"], &[]),
    ("timetz", &["12:30:00+05:30", "07:00:00+00"], &[]),
    ("timestamp", &["2026-11-26 01:02:03.4", "-infinity"], &[]),
    ("timestamptz", &["2026-11-26 01:02:03.456789+05:30", "0044-03-15 12:00:00+00 BC"], &[]),
    ("interval", &["1 day", "1 mon", "24:00:00", "-00:00:01.5", "30 days"], &["1440 mins", "720:00:00"]),
    ("inet", &["10.0.0.1", "10.0.0.1/8", "::1", "2001:db8::1/64", "::ffff:1.2.3.4"], &[]),
    ("address", &["10.0.0.2", "10.0.0.2/31"], &[]),
    ("macaddr8", &["08:00:2b:01:02:03:04:05"], &[]),
    ("cidr", &["10.0.0.0/8", "10.1.2.3", "2001:db8::/32"], &[]),
    ("macaddr", &["08:00:2b:01:02:03", "08:00:2b:01:02:04"], &[]),
    ("bytea", &["\\x00ff", "\\x"], &[]),
    ("bit varying", &["101", "1"], &[]),
    ("mood", &["sad", "so so"], &[]),
    ("email", &["a@example.com", "b@example.com"], &[]),
    ("flag", &["true", "false"], &[]),
    ("price", &["1.5", "2"], &[]),
];

/// A dataset by key and one by tag for each type, of which only the tag leads from a row to its entry.
fn datasets() -> String {
    let mut toml = String::new();
    for number in 0..TYPES.len() {
        toml.push_str(&format!(
            "[dataset.by_key_{number}]\nquery = \"select k, v, w from t{number}\"\nkey = \"k{number}:{{k}}\"\n\
             rows = \"many\"\nsort = \"v\"\nformat = \"json\"\nwarm = {{}}\n\
             watch = [{{ table = \"t{number}\", key = {{ k = \"k\" }} }}]\n\
             [dataset.by_tag_{number}]\nquery = \"select k, v, w from t{number}\"\nkey = \"g{number}:{{v}}\"\n\
             tags = [\"tag{number}:{{k}}\"]\nformat = \"json\"\n\
             watch = [{{ table = \"t{number}\", tag = \"tag{number}:{{k}}\" }}]\n\
             [dataset.by_tag_{number}.warm]\n"
        ));
    }
    toml
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

async fn is_clean(context: &Context, rig: &Rig, when: &str) {
    let mut client = rig.client().await;
    let mut session = rig.postgres.session().await.unwrap();
    let mut wrong = Vec::new();
    for dataset in context.catalog.iter() {
        let found = compare(context, dataset, &Extent::default()).await.unwrap();
        if !found.is_clean() {
            let number: usize = dataset.name().rsplit('_').next().unwrap().parse().unwrap();
            wrong.push(format!("{} ({}): {found}", dataset.name(), TYPES[number].0));
        }
    }
    for (number, (kind, ..)) in TYPES.iter().enumerate() {
        let cast = if kind.starts_with("bool") || *kind == "flag" { "k::text" } else { "concat(k)" };
        // The session's settings are those of a plain client but for these.
        let pins = "set timezone = 'UTC'; set intervalstyle = 'iso_8601'";
        session.execute(pins).await.unwrap();
        let texts = format!("select string_agg(distinct ({cast}) collate \"C\", chr(1)) from t{number}");
        let texts = session.text(&texts).await.unwrap().unwrap_or_default();
        let expected: BTreeSet<String> =
            texts.split('\u{1}').map(|text| format!("k{number}:{text}")).collect();
        let keys: Vec<String> = client.keys(format!("k{number}:*")).await.unwrap();
        let keys: BTreeSet<String> = keys.into_iter().collect();
        if keys != expected {
            wrong.push(format!("{kind}: keys {keys:?} instead of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{when}:\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_changed_rows_text_is_that_of_its_key_and_its_tag() {
    let mut sql = SETUP.to_owned();
    for (number, (kind, values, _)) in TYPES.iter().enumerate() {
        sql.push_str(&format!("create table t{number} (k {kind}, v int primary key, w int default 0);"));
        // Each value several times, so that equal ones are mixed unless they are sorted.
        for (at, value) in values.iter().chain(values.iter()).chain(values.iter()).enumerate() {
            sql.push_str(&format!("insert into t{number} values ({}, {at});", quoted(value)));
        }
    }
    let rig = Rig::start(&sql).await;
    let context = rig.context(&datasets());
    let mut follower = follower(&context).await;
    for dataset in context.catalog.iter() {
        let options =
            BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
        let report = backfill(&context, dataset, &options).await.unwrap();
        assert_eq!(report.failures, vec![], "{}", dataset.name());
    }
    is_clean(&context, &rig, "after the backfill").await;

    for number in 0..TYPES.len() {
        rig.postgres.execute(&format!("update t{number} set w = 1 where v % 3 = 0")).await.unwrap();
    }
    settle(&mut follower).await;
    is_clean(&context, &rig, "after updates").await;

    for (number, (_, values, others)) in TYPES.iter().enumerate() {
        let mut sql = format!("update t{number} set k = {} where v % 5 = 1;", quoted(values[0]));
        for other in *others {
            sql.push_str(&format!(
                "update t{number} set k = {} where v in (select min(v) from t{number} where k = {});",
                quoted(other),
                quoted(values[0])
            ));
        }
        rig.postgres.execute(&sql).await.unwrap();
    }
    settle(&mut follower).await;
    is_clean(&context, &rig, "after changes of keys").await;

    for number in 0..TYPES.len() {
        rig.postgres.execute(&format!("delete from t{number} where v % 2 = 0")).await.unwrap();
    }
    settle(&mut follower).await;
    is_clean(&context, &rig, "after deletions").await;
}

/// A backfill of the most wanted keys, and one that goes on behind a key that others are equal to.
#[tokio::test]
async fn keys_that_are_equal_but_for_their_text_are_all_filled() {
    let rig = Rig::start(
        "create extension citext;
         create table t (k citext, b character(5), v int);
         insert into t select (array['Bob', 'bob', 'BOB'])[1 + n % 3], 'ab', n from generate_series(1, 3000) n;",
    )
    .await;
    let context = rig.context(
        r#"
        [dataset.many]
        query = "select k, v from t"
        key = "many:{k}"
        rows = "many"
        sort = "v"
        format = "json"
        warm = {}
        [dataset.wanted]
        query = "select b, k, v from t where v = 1"
        key = "wanted:{b}"
        format = "json"
        negative_ttl = "1m"
        warm = { limit = 10 }"#,
    );
    let mut client = rig.client().await;
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: true };
    for dataset in context.catalog.iter() {
        backfill(&context, dataset, &options).await.unwrap();
        let found = compare(&context, dataset, &Extent::default()).await.unwrap();
        assert!(found.is_clean(), "{found}");
    }
    let keys: Vec<String> = client.keys("wanted:*").await.unwrap();
    assert_eq!(keys, ["wanted:ab   "], "with its blanks, and nothing under another text");
    for key in ["many:Bob", "many:bob", "many:BOB"] {
        let value: String = client.get(key).await.unwrap();
        assert_eq!(value.matches("\"v\"").count(), 1000, "{key}");
    }
    // Interrupted behind the first of three.
    let dataset = context.catalog.get("many").unwrap();
    let _: () = client.del(&["many:bob", "many:Bob"]).await.unwrap();
    let metadata = context.redis.metadata("").await.unwrap();
    let bookmark = format!("1 {} {} many:BOB", metadata.now_ms, metadata.causes);
    let _: () = client.hset("ck:{test:0}:meta", "backfill:many", bookmark).await.unwrap();
    backfill(&context, dataset, &options).await.unwrap();
    let found = compare(&context, dataset, &Extent::default()).await.unwrap();
    assert!(found.is_clean(), "{found}");
}

#[tokio::test]
async fn columns_without_one_text_are_refused_as_parts_of_keys_and_tags() {
    let rig = Rig::start("create table t (id int, j jsonb, p point, l int[], x xml)").await;
    let context = rig.context(
        "[dataset.keys]\nquery = \"select * from t\"\nkey = \"keys:{j}:{id}:{p}\"\n\
         [dataset.tags]\nquery = \"select * from t\"\nkey = \"tags:{id}\"\ntags = [\"a:{l}\", \"b:{x}\", \"c:{j}\"]\n\
         [dataset.lists]\nquery = \"select * from t\"\nkey = \"lists:{id}\"\ntags = [\"a:{l}:{l}\"]\n\
         [dataset.keyed]\nquery = \"select * from t\"\nkey = \"keyed:{l}\"",
    );
    for (name, expected) in [
        ("keys", "column j has the type jsonb, column p has the type point, whose values have no one text"),
        ("tags", "tags.1: column x has the type xml, whose values have no one text"),
        ("lists", "a:{l}:{l} has two columns that are lists"),
        ("keyed", "column l has the type int4[], whose values have no one text"),
    ] {
        let error = context.catalog.get(name).unwrap().source(&context.postgres).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
