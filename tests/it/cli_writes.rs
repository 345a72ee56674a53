//! Writes on the command line: `write`, `writes …`, and what `check` and `status` say of them.

use std::io::Write as _;
use std::process::Stdio;

use cachekeeper::app::Worker;
use cachekeeper_engine::commands::CommandConsumer;
use cachekeeper_engine::context::Context;
use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::support::{Cli, Rig, wait_until};

const TABLES: &str = "
    create table products (id int primary key, name text not null, price_cents bigint check (0 <= price_cents));
    insert into products select n, 'product ' || n, n * 100 from generate_series(1, 50) n;
    create table parts (product_id int, part text, primary key (product_id, part));
    create function reprice(int, bigint) returns int language sql
        as 'update products set price_cents = $2 where id = $1 returning id';
    create procedure nothing(int) language sql as 'select 1'";

const DATASETS: &str = r#"
[log]
level = "warn"
[dataset.product]
query = "select id, name, price_cents from products"
key = "product:{id}"
compression = { codec = "lz4", min_size = "1B" }
watch = [{ table = "products", key = { id = "id" } }]
[dataset.product.write]
statement = "update products set price_cents = :price_cents, name = coalesce(:name::text, name) where id = :id"

[dataset.part]
query = "select product_id, part from parts"
key = "part:{product_id}:{part}"
"#;

/// A dataset with only this write statement.
fn with_statement(statement: &str) -> String {
    let section = "[dataset.p]\nquery = \"select id, name from products\"\nkey = \"p:{id}\"\nwatch = [{ table = \"products\", key = { id = \"id\" } }]";
    format!("{section}\n[dataset.p.write]\nstatement = \"{statement}\"\n")
}

const STATEMENT_LINE: usize = 6;

async fn text(rig: &Rig, sql: &str) -> Option<String> {
    rig.postgres.session().await.unwrap().text(sql).await.unwrap()
}

async fn send(context: &Context, fields: &[(&str, &str)]) -> String {
    let fields: Vec<(&str, &[u8])> = fields.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    context.redis.append("cache:writes", &fields).await.unwrap()
}

/// The rejected command that came as this entry. What cannot be read is rejected before what was tried.
fn letter_of(cli: &Cli, entry: &str) -> Value {
    let letters = cli.json(&["writes", "dead-letters"]);
    let mut letters = letters["dead_letters"].as_array().unwrap().iter();
    letters.find(|letter| letter["entry"] == entry).unwrap().clone()
}

/// Carries out what is in the stream, as a worker does.
async fn work_off(context: &Context) {
    let leading = CommandConsumer::lead(context, "cache:writes", || ());
    let done = wait_until("the stream is worked off", async || {
        let state = context.redis.stream_state("cache:writes", "cachekeeper:test").await.unwrap();
        if state.length == 0 && state.pending == 0 { Ok(()) } else { Err(format!("{state:?}")) }
    });
    tokio::select! {
        ended = leading => panic!("{ended}"),
        () = done => {}
    }
}

#[tokio::test]
async fn a_write_needs_no_worker_and_says_what_it_did() {
    let mut rig = Rig::start(TABLES).await;
    let cli = Cli::new(&rig, DATASETS);
    let written = cli.says(
        &["write", "product", "id=42", "price_cents=1999", "name=a = b"],
        0,
        &[
            "product: 1 row written, stored in Redis",
            "token ",
            "product:42\n{",
            "\"name\": \"a = b\"",
            "\"price_cents\": 1999",
        ],
    );
    cli.says(&["get", "product:42"], 0, &["\"price_cents\": 1999"]);
    assert!(!written.contains("pending in Redis"), "{written}");

    // NULL, the empty text, and JSON.
    let empty = cli.json(&["write", "product", "id=42", "name=", "--null", "price_cents"]);
    assert_eq!(empty["values"]["product:42"], json!({ "id": 42, "name": "", "price_cents": null }));
    assert_eq!((&empty["rows"], &empty["cache"]), (&json!(1), &json!("stored")));
    let token = empty["token"].as_str().unwrap();
    assert!(token.contains('/'), "{token}");
    let mixed = cli.json(&["write", "product", "id=42", "--params", r#"{"price_cents": 7, "name": null}"#]);
    assert_eq!(mixed["values"]["product:42"], json!({ "id": 42, "name": "", "price_cents": 7 }));
    let mut child = cli
        .command(&["write", "product", "--params", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(br#"{"id": 42, "price_cents": 8, "name": "piped"}"#).unwrap();
    let piped = child.wait_with_output().unwrap();
    let piped = String::from_utf8_lossy(&piped.stdout).into_owned();
    assert!(piped.contains("\"name\": \"piped\""), "{piped}");

    // Redis down: durable all the same.
    rig.redis.kill();
    cli.says(
        &["write", "product", "id=42", "price_cents=9", "--null", "name"],
        0,
        &["1 row written, pending in Redis", "in Postgres for good", "change feed"],
    );
    let price = text(&rig, "select price_cents::text from products where id = 42").await;
    assert_eq!(price.as_deref(), Some("9"));
    rig.postgres.kill();
    let place = rig.postgres.url();
    let host = place.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    cli.says(
        &["write", "product", "id=42", "price_cents=9", "--null", "name"],
        69,
        &["cannot connect to", "postgres is postgres://", &host],
    );
}

#[tokio::test]
async fn wrong_writes_are_refused_before_anything_is_written() {
    let rig = Rig::start(TABLES).await;
    let cli = Cli::new(&rig, DATASETS);
    let usage: &[(&[&str], &[&str])] = &[
        (&["write"], &["<DATASET>"]),
        (
            &["write", "prodct", "id=1"],
            &["no dataset is named prodct, did you mean product?", "There are part, product"],
        ),
        (&["write", "part", "part=x"], &["part has no write statement", "[dataset.part.write] statement"]),
        (&["write", "product", "id", "price_cents=1"], &["\"id\" is not NAME=VALUE", "--null"]),
        (&["write", "product", "=1"], &["is not NAME=VALUE"]),
        (&["write", "product", "id=1", "id=1"], &["parameter id is given twice"]),
        (&["write", "product", "id=1", "--null", "id"], &["parameter id is given twice"]),
        (&["write", "product", "id=1", "--params", r#"{"id": 1}"#], &["parameter id is given twice"]),
        (&["write", "product", "--params", r#"{"id": 1, "id": 2}"#], &["parameter id is given twice"]),
        (&["write", "product", "--params", "[1]"], &["--params is not a JSON object"]),
        (
            &["write", "product", "id=1", "price_cent=2"],
            &[
                "has no parameter price_cent, did you mean price_cents?",
                "no value is given for price_cents, name",
                "price_cents (int8), name (text), id (int4)",
            ],
        ),
        (
            &["write", "product", "--params", r#"{"id": [1], "price_cents": 1, "name": "x"}"#],
            &["parameter id: is a list", "id (int4)"],
        ),
        (
            &["write", "product", "id=one", "name=x", "price_cents=1"],
            &["parameter id: invalid input syntax for type int4: \"one\" is no whole number"],
        ),
    ];
    for (arguments, parts) in usage {
        cli.says(arguments, 2, parts);
    }
    let refused: &[(&[&str], &str)] = &[
        (&["write", "product", "id=1", "name=x", "price_cents=-1"], "violates check constraint"),
        (&["write", "product", "id=1", "name=x", "price_cents=much"], "invalid input syntax for type bigint"),
        (&["write", "product", "id=999", "name=x", "price_cents=1"], "the statement touched no row"),
    ];
    for (arguments, part) in refused {
        cli.says(arguments, 1, &[part]);
    }
    let unchanged =
        "select count(*)::text from products where name like 'product %' and price_cents = id * 100";
    assert_eq!(text(&rig, unchanged).await.as_deref(), Some("50"));
    let mut client = rig.client().await;
    assert_eq!(client.keys::<_, Vec<String>>("product:*").await.unwrap(), Vec::<String>::new());
    // What the file says is wrong, not what was typed.
    let wrong = Cli::new(&rig, &with_statement("update product set name = :name"));
    wrong.says(&["write", "p", "name=x"], 78, &["relation \"product\" does not exist", "cachekeeper check"]);
}

#[tokio::test]
async fn a_connection_that_breaks_during_the_commit_is_told_from_a_refusal() {
    let rig = Rig::start(&format!(
        "{TABLES};
        create function cut() returns trigger language plpgsql as 'begin perform pg_terminate_backend(pg_backend_pid()); return null; end';
        create constraint trigger cut after update on products deferrable initially deferred for each row execute function cut()"
    ))
    .await;
    let cli = Cli::new(&rig, DATASETS);
    let text = cli.says(
        &["write", "product", "id=1", "name=x", "price_cents=1"],
        1,
        &["may or may not be in Postgres", "look before you run it again"],
    );
    assert!(!text.contains("row written"), "{text}");
}

/// Three commands that are rejected: one with an id, one in MessagePack without, one that cannot be read. Answers the entries of
/// the first two.
async fn send_wrong_ones(context: &Context) -> [String; 2] {
    let first = send(
        context,
        &[
            ("dataset", "product"),
            ("id", "one"),
            ("params", "{\"id\": 1,\n \"price_cents\": -1, \"name\": null}"),
        ],
    )
    .await;
    let packed = rmp_serde::to_vec_named(&json!({ "id": 2, "price_cents": -2, "name": "packed" })).unwrap();
    let second = context
        .redis
        .append("cache:writes", &[("dataset", b"product"), ("params", &packed), ("reason", b"mine")])
        .await
        .unwrap();
    send(context, &[("id", "un\u{1b}[31mread"), ("params", "{")]).await;
    [first, second]
}

#[tokio::test]
async fn the_stream_and_its_rejected_commands_are_shown() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    let cli = Cli::new(&rig, DATASETS);
    cli.says(
        &["writes", "status"],
        0,
        &["length        0", "leader        none: no worker", "dead letters  0"],
    );
    cli.says(&["writes", "dead-letters"], 0, &["no command was rejected"]);
    let [first, second] = send_wrong_ones(&context).await;
    let waiting = cli.json(&["writes", "status"]);
    assert_eq!((&waiting["length"], &waiting["pending"]), (&json!(3), &json!(0)));
    assert_eq!(waiting["oldest"], json!(first));
    assert!(waiting["oldest_age_ms"].as_u64().unwrap() < 60_000, "{waiting}");
    cli.says(&["writes", "status"], 0, &[&format!("oldest        {first}, "), " old\n"]);
    work_off(&context).await;

    cli.says(
        &["writes", "status"],
        0,
        &["consumer      writer: 0 pending, last took some", "dead letters  3, see"],
    );
    let status = cli.json(&["status"]);
    assert_eq!(
        status["writes"],
        json!({ "stream": "cache:writes", "length": 0, "pending": 0, "dead_letters": 3 })
    );
    assert_eq!(status["events"]["stream"], "cache:invalidation:log");
    let (_, shown) = cli.run(&["status"]);
    assert!(shown.contains("writes     cache:writes: 0 entries, 0 pending, 3 dead letters"), "{shown}");
    assert!(shown.contains("events     cache:invalidation:log: 0 entries"), "{shown}");
    let shown = cli.says(
        &["writes", "dead-letters"],
        0,
        &[
            "  id       one\n  dataset  product\n  params   {\"id\": 1,  \"price_cents\": -1, \"name\": null}\n",
            &format!("  entry    {first}\n  reason   postgres refused it: new row for relation \"products\" violates check"),
            "\"price_cents\":-2",
            "  dataset  (none)\n  params   {\n",
        ],
    );
    assert!(!shown.contains('\u{1b}') && shown.contains("un\\u{1b}[31mread"), "{shown}");
    cli.says(&["writes", "dead-letters", "--limit", "1"], 0, &["and 2 more; --limit"]);
    let letter = letter_of(&cli, &second);
    assert_eq!(letter["params"], json!({ "id": 2, "price_cents": -2, "name": "packed" }));
    assert_eq!(letter["entry"], json!(second));
    assert!(letter["reason"].as_str().unwrap().contains("check constraint"), "{letter}");
    assert!(letter["at"].as_str().unwrap().ends_with('Z'));
    let made = letter["id"].as_str().unwrap();
    assert!(made.starts_with(&format!("{second}/")), "{made}");

    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let leader = wait_until("somebody leads", async || {
        let status = cli.json(&["writes", "status"]);
        status["leader"].as_str().map(str::to_owned).ok_or_else(|| status.to_string())
    })
    .await;
    assert!(leader.contains(&format!(":{}:", std::process::id())), "{leader}");
    cli.says(&["writes", "status"], 0, &[&format!("leader        {leader}")]);
    worker.stop().await;

    let without =
        Cli::new(&rig, &format!("{DATASETS}\n[writes]\nstream = \"\"\n[invalidation]\nstream = \"\""));
    without.says(&["writes", "status"], 0, &["[writes] stream is empty"]);
    without.says(&["writes", "replay", "--all"], 78, &["[writes] stream is empty"]);
    let status = without.json(&["status"]);
    assert_eq!((&status["writes"], &status["events"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn rejected_commands_are_put_back_by_either_id() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    let cli = Cli::new(&rig, DATASETS);
    cli.says(&["writes", "replay", "--all"], 0, &["no command was rejected"]);
    let [_, second] = send_wrong_ones(&context).await;
    work_off(&context).await;
    let letter = letter_of(&cli, &second)["letter"].clone();
    cli.says(&["writes", "replay"], 2, &["--all"]);
    cli.says(&["writes", "replay", "one", "--all"], 2, &["cannot be used with"]);
    cli.says(&["writes", "dead-letters", "--limit", "0"], 2, &["--limit"]);
    cli.says(
        &["writes", "replay", "one", "two", "three"],
        1,
        &["has the id two, three", "nothing was put back"],
    );
    cli.says(&["writes", "status"], 0, &["length        0", "dead letters  3"]);

    // The cause is mended; one by its own id, one by its letter's.
    rig.postgres.execute("alter table products drop constraint products_price_cents_check").await.unwrap();
    let rejections = "select count(*)::text from cachekeeper.applied where error is not null";
    assert_eq!(text(&rig, rejections).await.as_deref(), Some("2"));
    cli.says(
        &["writes", "replay", "one", letter.as_str().unwrap()],
        0,
        &["2 commands put back into cache:writes"],
    );
    assert_eq!(text(&rig, rejections).await.as_deref(), Some("0"), "also of the command without an id");
    work_off(&context).await;
    let prices = "select string_agg(price_cents::text, ',' order by id) from products where id <= 2";
    assert_eq!(text(&rig, prices).await.as_deref(), Some("-1,-2"));
    let left = cli.json(&["writes", "dead-letters"]);
    assert_eq!(left["dead_letters"].as_array().unwrap().len(), 1);
    let replayed = cli.json(&["writes", "replay", "--all"]);
    assert_eq!(replayed["replayed"][0]["id"], "un\u{1b}[31mread");
    work_off(&context).await;
    assert_eq!(cli.json(&["writes", "status"])["dead_letters"], 1, "what cannot be read is rejected again");
}

#[tokio::test]
async fn a_replay_that_is_interrupted_loses_nothing_and_repeats_nothing() {
    let mut rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    let cli = Cli::new(&rig, DATASETS);
    rig.postgres
        .execute("alter table products add column applied int not null default 0; alter table products add check (id < 0) not valid")
        .await
        .unwrap();
    let counting = DATASETS.replace("update products set", "update products set applied = applied + 1,");
    let counting_context = rig.context(&counting);
    for id in 1..=5 {
        let params = json!({ "id": id, "price_cents": id, "name": "x" }).to_string();
        // Some with an id of their own, some without.
        let own = [("id", "own"), ("dataset", "product"), ("params", params.as_str())];
        send(&context, if id == 3 { &own } else { &own[1..] }).await;
    }
    work_off(&counting_context).await;
    assert_eq!(cli.json(&["writes", "status"])["dead_letters"], 5);
    rig.postgres.execute("alter table products drop constraint products_id_check").await.unwrap();
    for point in ["replay.forgotten=0", "replay.moved=1", "replay.forgotten=0"] {
        let mut command = cli.command(&["writes", "replay", "--all"]);
        let done = command.env("CACHEKEEPER_FAIL_AT", point).output().unwrap();
        assert!(!done.status.success(), "it was not ended at {point}");
        let state = cli.json(&["writes", "status"]);
        let kept = state["dead_letters"].as_u64().unwrap() + state["length"].as_u64().unwrap();
        assert_eq!(kept, 5, "{point}");
    }
    // Two at the same time.
    let run = || cli.command(&["writes", "replay", "--all"]).stdout(Stdio::null()).spawn().unwrap();
    for mut child in [run(), run()] {
        assert!(child.wait().unwrap().success());
    }
    work_off(&counting_context).await;
    let once = "select count(*)::text from products where name = 'x' and applied = 1";
    assert_eq!(text(&rig, once).await.as_deref(), Some("5"));
    assert_eq!(cli.json(&["writes", "status"])["dead_letters"], 0);
    send(&context, &[("dataset", "nothing"), ("params", "{}")]).await;
    work_off(&context).await;
    // Without Postgres the rejection cannot be forgotten, so nothing is moved.
    rig.postgres.kill();
    cli.says(
        &["writes", "replay", "--all"],
        69,
        &["0 commands put back", "cannot connect to", "postgres is"],
    );
    assert_eq!(cli.json(&["writes", "status"])["dead_letters"], 1);
}

#[tokio::test]
async fn a_wrong_write_statement_is_found_before_it_is_used() {
    let rig = Rig::start(TABLES).await;
    // The statement, where its mistake is marked, what is said.
    let wrong: &[(&str, &str, &[&str])] = &[
        ("updat products set name = :name", "updat", &["syntax error"]),
        (
            "update produkts set name = :name where id = :id",
            "produkts",
            &["relation \"produkts\" does not exist"],
        ),
        (
            "/* ü */ update products set name = :name where id = :id and colour = :colour",
            "colour",
            &["column \"colour\" does not exist", "psql"],
        ),
        (
            "update products set name = 'x' where id = :id and :what is null",
            ":what",
            &["type of parameter :what", "::int"],
        ),
        ("update products set name = :name where (id = :id", "", &["syntax error at end of input"]),
        ("select id, name from products where id = :id", "", &["writes nothing", "insert, update"]),
        ("call nothing(:id)", "call", &["`call` cannot be a write statement"]),
        ("truncate products", "truncate", &["`truncate` cannot be a write statement"]),
    ];
    for (statement, mark, parts) in wrong {
        let cli = Cli::new(&rig, &with_statement(statement));
        let text = cli.says(&["check"], 78, parts);
        let Some((before, _)) = statement.split_once(mark).filter(|_| !mark.is_empty()) else { continue };
        let column = "statement = '".len() + before.chars().count() + 1;
        let place = format!(":{STATEMENT_LINE}:{column}\n");
        assert!(text.contains(&place), "{statement}: not at {place}{text}");
    }
    assert_eq!(text(&rig, "select count(*)::text from products").await.as_deref(), Some("50"));
    for right in [
        "insert into products values (:id, :name, :price) on conflict (id) do update set name = excluded.name;",
        "with old as (delete from products where id = :id returning id) select id from old",
        "delete from products where id = any(:ids) and :id::int is not null",
    ] {
        let cli = Cli::new(&rig, &with_statement(right));
        let text = cli.says(&["check"], 0, &["configuration is right"]);
        assert!(!text.contains("note:") && !text.contains("statement"), "{right}: {text}");
    }
    let cli = Cli::new(&rig, &with_statement("select reprice(:id, :price)"));
    cli.says(&["check"], 0, &["warning: the write statement writes only what the functions write"]);
    let cli = Cli::new(&rig, &with_statement("update products set name = 'x'"));
    cli.says(&["check"], 0, &["warning: the write statement has no parameter"]);
    // The server's types decide what a placeholder can hold.
    let toml = with_statement("update products set name = :id").replace("p:{id}", "cache:{name}");
    let toml = toml.replace("key = { id = \"id\" }", "dataset = true");
    Cli::new(&rig, &format!("{toml}[writes]\nstream = \"cache:a:b\"")).says(
        &["check"],
        78,
        &["with cache:a:b, which [writes] stream uses"],
    );
}

#[tokio::test]
async fn check_knows_the_rights_of_the_role_and_which_commands_are_one_queue() {
    let rig = Rig::start(TABLES).await;
    rig.postgres.execute("create role reader login; grant select on products to reader").await.unwrap();
    let statement = "update products set price_cents = :price where id = :id";
    let mut cli = Cli::new(&rig, &with_statement(statement));
    cli.says(&["migrate", "--grant", "reader"], 0, &[]);
    cli.says(&["check"], 0, &[]);
    let url = rig.postgres.url().replace("postgres@", "reader@");
    cli.environment.iter_mut().find(|(name, _)| name.ends_with("POSTGRES__URL")).unwrap().1 = url;
    cli.says(
        &["check"],
        78,
        &["may not carry out the write statement: permission denied for table products", "grant"],
    );
    cli.says(&["check", "--offline"], 0, &["servers not asked"]);
    cli.says(&["write", "p", "id=1", "price=1"], 1, &["permission denied for table products"]);
    rig.postgres.execute("grant update on products to reader").await.unwrap();
    cli.says(&["check"], 0, &["configuration is right"]);

    let queue = Cli::new(
        &rig,
        &format!(
            "{DATASETS}[dataset.part.write]\nstatement = \"insert into parts values (:product_id, :name)\"\n"
        ),
    );
    let text = queue.says(
        &["check"],
        0,
        &["note: dataset part: its commands in cache:writes are one queue", "has no parameter part\n"],
    );
    assert!(!text.contains("dataset product: its commands"), "{text}");
    let notes = queue.json(&["check", "--offline"])["notes"].clone();
    assert_eq!(notes.as_array().map(Vec::len), Some(1));
    let two = Cli::new(&rig, &with_statement("delete from products where id = :id; delete from parts"));
    two.says(&["check", "--offline"], 78, &["a second statement begins here", "6:51"]);
}
