//! `plan` says what will be: how many entries of which size, what they take in Redis, how they are loaded. It writes nothing.

use serde_json::Value;

use crate::support::{Cli, Rig};

/// As much as the estimate of memory may be off.
const TOLERANCE: f64 = 0.10;

async fn used(rig: &Rig) -> f64 {
    let mut client = rig.client().await;
    let info: String = redis::cmd("INFO").arg("memory").query_async(&mut client).await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    line.trim().parse().unwrap()
}

/// Everything that is in the two servers, as far as a plan could have changed it.
async fn state(rig: &Rig) -> (Vec<String>, String) {
    let mut client = rig.client().await;
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut client).await.unwrap();
    keys.sort();
    let mut session = cachekeeper_testkit::servers::Session::open(&rig.postgres.url()).await.unwrap();
    // Whoever writes takes a number of a transaction. The counts of statistics come late, also those of who made the tables.
    let sql = "select concat_ws(' ', pg_current_snapshot()::text, (select count(*) from pg_class), (select count(*) from pg_trigger))";
    (keys, session.text(sql).await.unwrap().unwrap())
}

fn dataset<'a>(plan: &'a Value, name: &str) -> &'a Value {
    let found = plan["datasets"].as_array().unwrap().iter().find(|one| one["dataset"] == name);
    found.unwrap_or_else(|| panic!("{name}: {plan:#}"))
}

#[tokio::test]
async fn memory_is_estimated_within_a_tenth_of_the_truth() {
    let rig = Rig::start(
        "create table items (id bigint primary key, name text, body text, kind int, owner int, list int);
         insert into items select n, 'item ' || n, repeat(md5(n::text), 1 + (n % 7)::int), n % 20, n % 30000, n / 10
         from generate_series(1, 100000) n;
         create table none (id int primary key);
         analyze",
    )
    .await;
    let select = "query = \"select id, name, body, kind, owner, list from items\"";
    let datasets = format!(
        "[dataset.none]\nquery = \"select id from none\"\nkey = \"none:{{id}}\"\n
         [dataset.plain]\n{select}\nkey = \"plain:{{id}}\"\n
         [dataset.small]\nquery = \"select id, kind from items\"\nkey = \"small:{{id}}\"\nformat = \"json\"\n
         [dataset.number]\nquery = \"select id, kind from items\"\nkey = \"number:{{id}}\"\nformat = \"raw\"\nvalue = \"kind\"\n
         [dataset.few]\nquery = \"select id, kind from items\"\nkey = \"few:{{id}}\"\nformat = \"hash\"\n
         [dataset.fields]\n{select}\nkey = \"fields:{{id}}\"\nformat = \"hash\"\n
         [dataset.tagged]\n{select}\nkey = \"tagged:{{id}}\"\ntags = [\"kind:{{kind}}\", \"owner:{{owner}}\"]\n
         [dataset.packed]\n{select}\nkey = \"a-rather-long-beginning-of-keys:{{id}}\"\ncompression = {{ codec = \"zstd\", min_size = \"64B\" }}\n
         [dataset.lists]\nquery = \"select list, id, body from items\"\nkey = \"lists:{{list}}\"\nrows = \"many\"\n"
    );
    let cli = Cli::new(&rig, &datasets);
    let mut client = rig.client().await;
    for name in ["plain", "small", "number", "few", "fields", "tagged", "packed", "lists"] {
        // The tables of the namespace are there, and no table of the server grows from what was before.
        let _: () = redis::cmd("FLUSHALL").query_async(&mut client).await.unwrap();
        cli.says(&["warm", "none"], 0, &[]);
        let plan = cli.json(&["plan", name]);
        let plan = dataset(&plan, name);
        let keys = if name == "lists" { 10_001 } else { 100_000 };
        assert_eq!(
            (plan["keys"]["count"].as_u64(), plan["limits"].as_array().unwrap().len()),
            (Some(keys), 0)
        );
        let before = used(&rig).await;
        cli.says(&["warm", name], 0, &[&format!("{keys} entries stored")]);
        let truth = used(&rig).await - before;
        let about = plan["memory"]["about_bytes"].as_f64().unwrap();
        println!("{name}: about {about}, in truth {truth}: {:.3}", about / truth);
        assert!(
            (about - truth).abs() < truth * TOLERANCE,
            "{name}: about {about}, in truth {truth}: {plan:#}"
        );
        let after = cli.json(&["plan", name]);
        assert_eq!(dataset(&after, name)["in_redis"], serde_json::json!({ "found": 1_000, "asked": 1_000 }));
    }
}

const WORLD: &str = "
    create table products (id int primary key, name text, category int, price numeric);
    insert into products select n, 'n' || n, n % 7, n from generate_series(1, 500) n;
    create index by_category on products (category);
    create table reviews (id int primary key, product int, body text);
    insert into reviews select n, case when n % 10 = 0 then null else n % 50 end, 'b' || n from generate_series(1, 1000) n;
    create view cheap as select id, name from products where price < 100;
    create view counted as select category, count(*) as n from products group by category;
    create table part (id int, day date, note text, primary key (id, day)) partition by range (day);
    create table part_a partition of part for values from ('2020-01-01') to ('2021-01-01');
    create table part_b partition of part for values from ('2021-01-01') to ('2022-01-01');
    insert into part select n, date '2020-01-01' + n, 'x' from generate_series(1, 700) n;
    create table empty (id int primary key, note text);
    create table \"Odd\" (\"The Id\" int, note text);
    insert into \"Odd\" select n, 'x' from generate_series(1, 10) n;
    analyze;";

const DATASETS: &str = r#"
    [dataset.product]
    query = "select id, name, category from products"
    key = "product:{id}"
    format = "json"
    tags = ["category:{category}"]
    ttl = "1h"
    ttl_jitter = "10%"
    negative_ttl = "30s"
    watch = [{ table = "products", key = { id = "id" } }]
    warm = { limit = 100, order_by = "id" }
    [dataset.reviews]
    query = "select product, id, body from reviews"
    key = "reviews:{product}"
    rows = "many"
    sort = "id"
    watch = [{ table = "reviews", key = { product = "product" } }]
    [dataset.cheap]
    query = "select id, name from cheap"
    key = "cheap:{id}"
    warm = { on_start = true }
    [dataset.counted]
    query = "select category, n from counted"
    key = "counted:{category}"
    [dataset.part]
    query = "select id, day, note from part"
    key = "part:{id}:{day}"
    watch = [{ table = "part", key = { id = "id", day = "day" } }]
    [dataset.day]
    query = "select day, id from part"
    key = "day:{day}"
    rows = "many"
    [dataset.empty]
    query = "select id, note from empty"
    key = "empty:{id}"
    [dataset.odd]
    query = 'select "The Id", note from "Odd"'
    key = "odd:{The Id}"
    [dataset.text]
    query = "select id::text as id, name from products"
    key = "text:{id}"
    [dataset.joined]
    query = "select p.id, p.name, c.n from products p join counted c using (category)"
    key = "joined:{id}"
"#;

#[tokio::test]
async fn every_kind_of_dataset_is_planned_and_nothing_is_written() {
    let rig = Rig::start(WORLD).await;
    let cli = Cli::new(&rig, DATASETS);
    let before = state(&rig).await;
    let plan = cli.json(&["plan"]);
    let text = cli.says(&["plan"], 0, &["dataset product", "SET product:", "PX ", "tags category:"]);
    let after = state(&rig).await;
    assert_eq!(before.0, after.0);
    assert_eq!(before.1, after.1, "Postgres was written to");
    assert_eq!(plan["ok"], true);

    let product = dataset(&plan, "product");
    assert_eq!(
        (product["rows"]["counted"].as_u64(), product["keys"]["count"].as_u64()),
        (Some(500), Some(500))
    );
    assert_eq!((product["backfilled"].as_u64(), product["sample"]["keys"].as_u64()), (Some(100), Some(500)));
    assert_eq!(
        (product["lifetime"]["shortest_ms"].as_u64(), product["lifetime"]["longest_ms"].as_u64()),
        (Some(3_240_000), Some(3_600_000))
    );
    assert!((product["lifetime"]["expire_per_second"].as_f64().unwrap() - 500.0 / 3420.0).abs() < 0.001);
    assert_eq!(product["negative"], serde_json::json!({ "px": 30_000, "bytes": 4 }));
    assert_eq!(
        (product["memory"]["different_tags"].as_u64(), product["sample"]["tags"].as_u64()),
        (Some(7), Some(500))
    );
    assert_eq!(
        product["load"]["tables"],
        serde_json::json!([{ "table": "public.products", "indexes": ["products_pkey"], "create_index": null }])
    );
    let triggers = product["triggers"]["statements"].as_array().unwrap();
    assert!(
        triggers.iter().all(|one| one.as_str().unwrap().contains("create trigger")) && triggers.len() == 2,
        "{triggers:?}"
    );
    let example = &product["example"];
    let (key, size) = (example["key"].as_str().unwrap(), example["bytes"].as_u64().unwrap());
    assert_eq!(size, serde_json::to_string(&example["value"]).unwrap().len() as u64, "{example}");
    assert!(key.starts_with("product:") && example["tags"][0].as_str().unwrap().starts_with("category:"));
    let px = example["px"].as_u64().unwrap();
    assert!((3_240_000..=3_600_000).contains(&px), "{px}");

    let reviews = dataset(&plan, "reviews");
    assert_eq!(
        (reviews["rows"]["counted"].as_u64(), reviews["rows"]["without_key"].as_u64()),
        (Some(1_000), Some(100))
    );
    assert_eq!(
        (reviews["keys"]["count"].as_u64(), reviews["rows"]["most_of_a_key"].as_u64()),
        (Some(45), Some(20))
    );
    assert_eq!(
        reviews["load"]["tables"][0]["create_index"],
        "create index concurrently on public.reviews (product);"
    );
    assert!(
        text.contains("for want of an index: create index concurrently on public.reviews (product);"),
        "{text}"
    );

    let indexes = |name: &str| dataset(&plan, name)["load"]["tables"][0]["indexes"].clone();
    assert_eq!(
        (indexes("cheap"), indexes("counted")),
        (serde_json::json!(["products_pkey"]), serde_json::json!(["by_category"]))
    );
    assert_eq!(indexes("part"), serde_json::json!(["part_a_pkey", "part_b_pkey"]));
    assert_eq!(
        dataset(&plan, "day")["load"]["tables"][0]["create_index"],
        "create index on public.part (day);"
    );
    assert_eq!(
        dataset(&plan, "odd")["load"]["tables"][0]["create_index"],
        "create index concurrently on public.\"Odd\" (\"The Id\");"
    );
    assert_eq!(dataset(&plan, "text")["load"]["tables"][0]["create_index"], Value::Null);
    assert_eq!(indexes("joined"), serde_json::json!(["products_pkey"]));
    // The index finds its rows; the numbers beside them are computed of all rows.
    assert_eq!(dataset(&plan, "joined")["load"]["read_whole"], serde_json::json!(["public.products"]));
    let empty = dataset(&plan, "empty");
    assert_eq!(
        (empty["keys"]["count"].as_u64(), empty["memory"]["about_bytes"].as_u64(), &empty["example"]),
        (Some(0), Some(0), &Value::Null)
    );
    assert_eq!(dataset(&plan, "part")["backfilled"], Value::Null);
    assert_eq!(dataset(&plan, "cheap")["backfilled"].as_u64(), Some(99));
}

/// Before anything is installed, and after.
#[tokio::test]
async fn a_plan_needs_no_schema_and_sees_what_is_there() {
    let rig = Rig::start(WORLD).await;
    let cli = Cli::new(&rig, DATASETS);
    rig.postgres.execute("drop schema cachekeeper cascade").await.unwrap();
    let text = cli.says(&["plan", "product"], 0, &["products_pkey", "create trigger", "statements in all"]);
    assert!(text.contains("in Redis  0 of 500"), "{text}");
    cli.says(&["migrate"], 0, &[]);
    cli.says(&["warm", "product"], 0, &["100 entries"]);
    cli.says(
        &["plan", "product"],
        0,
        &["all there: `migrate` has nothing to do", "100 of 500 keys that were looked for"],
    );
}

#[tokio::test]
async fn rows_that_would_be_refused_are_named_and_wrong_datasets_leave_the_others_alone() {
    let rig = Rig::start(WORLD).await;
    let toml = r#"
        [dataset.shared]
        query = "select category, id from products"
        key = "shared:{category}"
        [dataset.errs]
        query = "select id, 10 / (id - 7) as n from products"
        key = "errs:{id}"
        [dataset.wrong]
        query = "select id, nothing from products"
        key = "wrong:{id}"
    "#;
    let cli = Cli::new(&rig, toml);
    let plan = cli.json(&["plan"]);
    assert_eq!(
        (plan["ok"].as_bool(), dataset(&plan, "wrong")["error"].as_str().unwrap().contains("nothing")),
        (Some(false), true)
    );
    assert_eq!(dataset(&plan, "shared")["keys"]["shared"].as_u64(), Some(7));
    let refused = &dataset(&plan, "shared")["sample"]["refused"];
    assert!(refused[0]["reason"].as_str().unwrap().contains("use rows = \"many\""), "{refused}");
    let refused = dataset(&plan, "errs")["sample"]["refused"].clone();
    assert_eq!(
        (refused[0]["count"].as_u64(), refused[0]["key"].as_str()),
        (Some(1), Some("errs:7")),
        "{refused}"
    );
    // One fault is one line, whatever the sizes of the rows: the largest ones have other numbers of digits.
    let large = "select id, repeat('x', 100 * id) as pad from products";
    let large =
        format!("[dataset.large]\nquery = \"{large}\"\nkey = \"large:{{id}}\"\nmax_value_size = \"1KiB\"\n");
    let text = Cli::new(&rig, &large).says(&["plan"], 0, &["such as large:"]);
    assert_eq!(text.matches("  refused ").count(), 1, "{text}");
    cli.says(&["plan", "wrong"], 78, &["column \"nothing\" does not exist"]);
    cli.says(&["plan", "shard"], 2, &["did you mean shared?"]);
    cli.says(&["plan", "--within", "1ms"], 2, &["between 100ms and 1h"]);
    cli.says(&["plan", "--sample", "0"], 2, &["0 is not in"]);
}

#[tokio::test]
async fn limits_are_kept_and_said() {
    let rig = Rig::start(
        "create table wide (id int primary key, pad text);
         insert into wide select n, 'x' from generate_series(1, 20000) n;
         create view slow as select w.id, count(o.id) as n from wide w join wide o on o.id <> w.id group by w.id;
         analyze",
    )
    .await;
    let cli = Cli::new(&rig, "[dataset.slow]\nquery = \"select id, n from slow\"\nkey = \"slow:{id}\"\n");
    let plan = cli.json(&["plan", "--within", "200ms"]);
    let slow = dataset(&plan, "slow");
    assert_eq!(
        (slow["keys"]["is_counted"].as_bool(), slow["rows"]["estimated"].is_u64()),
        (Some(false), true)
    );
    assert!(slow["limits"][0].as_str().unwrap().contains("took too long"), "{slow:#}");
    cli.says(&["plan", "--within", "200ms"], 0, &["an estimate of the planner's", "limit"]);
}

#[tokio::test]
async fn servers_that_are_gone_are_named() {
    let mut rig = Rig::start(WORLD).await;
    let cli = Cli::new(&rig, DATASETS);
    rig.redis.kill();
    cli.says(&["plan", "product"], 0, &["cannot connect to Redis", "are left out", "500, 500 keys"]);
    rig.postgres.stop();
    cli.says(&["plan", "product"], 69, &["cannot connect to"]);
}

/// The driver asks the server for types that it does not know, in between.
#[tokio::test]
async fn columns_of_any_type_are_planned() {
    let rig = Rig::start(
        "create type mood as enum ('sad', 'happy'); create domain price as numeric check (0 <= value); create type pair as (a int, b text);
         create table items (id int, mood mood, price price, pair pair, moods mood[], primary key (id, mood));
         insert into items select n, 'sad', n, row(n, 'x')::pair, array['sad', 'happy']::mood[] from generate_series(1, 10) n",
    )
    .await;
    let cli = Cli::new(
        &rig,
        "[dataset.item]\nquery = \"select * from items\"\nkey = \"item:{id}:{mood}\"\ntags = [\"mood:{mood}\"]\n",
    );
    let plan = cli.json(&["plan"]);
    assert_eq!(dataset(&plan, "item")["keys"]["count"], 10, "{plan:#}");
}
