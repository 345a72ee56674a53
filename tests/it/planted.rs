//! Thirty mistakes in one configuration and its servers: `check` names each of them at its line, in one go. And what one mistake may
//! not hide.

use std::collections::BTreeMap;

use cachekeeper_engine::coverage;
use cachekeeper_engine::stores::redis::ServerFacts;
use cachekeeper_protocol::keyspace::Keyspace;
use redis::AsyncCommands;
use serde_json::Value;

use crate::support::{Cli, Rig};

const TABLES: &str = "
    create role reader login;
    create table products (id int primary key, name text, price int, category_id int);
    create table categories (id int primary key, name text);
    create table reviews (id int primary key, product_id int, stars int);
    create table users (id int primary key, email text, token uuid);
    create table stock (product_id int, warehouse text, qty int, primary key (product_id, warehouse));
    create table secret (id int primary key, v text);
    create view cheap as select id, price from products where price < 10;
    grant select on products, categories, reviews, users, stock, cheap to reader;
    grant update on products, stock to reader;";

/// A comment at the end of a line names the mistake of this line.
const PLANTED: &str = r#"
[service]
namespace = "test"

[postgres]
url = "POSTGRES"

[redis]
url = "REDIS" # policy

[admin]
listen = "127.0.0.1:0"
token_file = "/nowhere/token" # token

[feed]
max_lag = "2 hours" # unit

[defaults]
ttl = 600 # number
numeric = text # quote
ttl_jiter = "10%" # typo

[dataset.product]
query = "select p.id, p.nam, p.category_id from products p" # column
key = "product:{id}"
watch = [{ table = "products", key = { id = "id" } }]
feed = "required"

[dataset.product.warm]
schedule = "60 3 * * *" # cron
timezone = "Europe/Berln" # zone

[dataset.product.write]
statement = "update products set pric = :price where id = :id" # written

[dataset.shelf]
query = "select id, name from product" # relation
key = "shelf:{id}"

[dataset.offer]
query = "select id, c.name from products p join categories c on c.id = p.category_id" # ambiguous
key = "offer:{id}"

[dataset.pair]
query = "select p.id, c.id from products p join categories c on c.id = p.category_id" # double
key = "pair:{id}"

[dataset.listed]
query = "select id, category_id from products"
key = "listed:{product_id}" # placeholder
tags = [
  "of:all:products",
  "category:{category}", # tag
]

[dataset.dice]
query = "select id, random() as r from products" # volatile
key = "dice:{id}"

[dataset.one]
query = "select id, name from products where id = $1" # parameter
key = "one:{id}"

[dataset.reviews]
query = "select product_id, id, stars from reviews"
key = "reviews:{product_id}"
rows = "many"
sort = "created_at desc" # sort

[dataset.stars]
query = "select id, stars from reviews"
key = "stars:{id}"
sort = "id desc" # single

[dataset.user]
query = "select id, email from users"
key = "user:{id}"
format = "jsn" # word
watch = [
  { table = "user", key = { id = "id" } }, # watched
]

[dataset.cheap]
query = "select id, price from cheap"
key = "cheap:{id}"
watch = [
  { table = "cheap", key = { id = "id" } }, # view
]

[dataset.category]
query = "select id, name from categories"
key = "category:{id}"
watch = [
  { table = "categories" }, # target
]

[dataset.session]
query = "select id, email, token from users"
key = "session:{id}"
watch = [
  { table = "users", key = { id = "user_id" } }, # attribute
]

[dataset.mail]
query = "select id, email from users"
key = "mail:{id}"
watch = [
  { table = "users", key = { id = "token" } }, # kind
]

[dataset.secret]
query = "select id, v from secret" # right
key = "secret:{id}"

[dataset.brace]
query = "select id, email from users"
key = "brace:{id" # brace

[dataset.twin]
query = "select id, email from users"
key = "secret:{id}" # twin

[dataset.keyless] # nokey
query = "select id, email from users"

[dataset.stock]
query = "select product_id, warehouse, qty from stock"
key = "stock:{product_id}:{warehouse}"

[dataset.stock.write]
statement = "update stock set qty = :qty where product_id = :product_id and warehouse = :warehouse; select 1" # second
"#;

/// What names each mistake, in the order of the file.
const MISTAKES: [(&str, &str); 30] = [
    ("policy", "Redis may evict anything"),
    ("token", "/nowhere/token cannot be read"),
    ("unit", "\"2 hours\" is not a duration"),
    ("number", "expected text in quotes, found an integer"),
    ("quote", "quote"),
    ("typo", "unknown key `ttl_jiter`"),
    ("column", "column p.nam does not exist"),
    ("cron", "minute \"60\""),
    ("zone", "time zone \"Europe/Berln\" is not known"),
    ("written", "column \"pric\" of relation \"products\" does not exist"),
    ("relation", "relation \"product\" does not exist"),
    ("ambiguous", "\"id\" is ambiguous"),
    ("double", "two columns named id"),
    ("placeholder", "{product_id}, but the query has no such column"),
    ("tag", "{category}, but the query has no such column"),
    ("volatile", "random, which is volatile"),
    ("parameter", "the query has parameters ($1)"),
    ("sort", "column \"created_at\" does not exist"),
    ("single", "`sort` orders the rows of one key"),
    ("word", "\"jsn\" is not known here"),
    ("watched", "there is no table user"),
    ("view", "cheap is a view"),
    ("target", "a watch rule has exactly one of"),
    ("attribute", "has no column user_id"),
    ("kind", "the column token of users is of type uuid"),
    ("right", "permission denied for table secret"),
    ("brace", "this `{` has no `}`"),
    ("twin", "could coincide"),
    ("nokey", "has no `key`"),
    ("second", "a second statement begins here"),
];

/// The configuration with these servers, and the number of the line that a comment marks.
struct Planted {
    cli: Cli,
    toml: String,
}

impl Planted {
    /// Nothing comes from the environment, so that every mistake has a line.
    fn new(rig: &Rig, toml: &str) -> Self {
        let url = rig.postgres.url();
        let (_, place) = url.split_once('@').unwrap();
        let toml = toml.replace("POSTGRES", &format!("postgres://reader@{place}"));
        let toml = toml.replace("REDIS", &rig.redis.url());
        let mut cli = Cli::new(rig, &toml);
        cli.environment.clear();
        Self { cli, toml }
    }

    fn line(&self, mark: &str) -> u64 {
        let mark = format!("# {mark}");
        let at = self.toml.lines().position(|line| line.ends_with(&mark));
        u64::try_from(at.unwrap_or_else(|| panic!("no line is marked {mark:?}"))).unwrap() + 1
    }

    /// The errors of one run, each with its line (0: it has none).
    fn errors(&self) -> Vec<(u64, String)> {
        let found = self.cli.json(&["check"]);
        let problems = found["problems"].as_array().unwrap_or_else(|| panic!("no problems: {found}"));
        let errors = problems.iter().filter(|problem| problem["severity"] == "error");
        let located = |problem: &Value| {
            let line = problem["position"]["line"].as_u64().unwrap_or_default();
            (line, problem["message"].as_str().unwrap_or_default().to_owned())
        };
        errors.map(located).collect()
    }
}

async fn rig() -> Rig {
    let rig = Rig::start_with(TABLES, &[], &["--maxmemory-policy", "allkeys-lru"]).await;
    Cli::new(&rig, "").says(&["migrate", "--grant", "reader"], 0, &[]);
    rig
}

#[tokio::test]
async fn check_finds_thirty_planted_mistakes_in_one_go() {
    let rig = rig().await;
    let planted = Planted::new(&rig, PLANTED);
    let errors = planted.errors();
    let mut wrong = Vec::new();
    for (mark, words) in MISTAKES {
        let line = planted.line(mark);
        let here: Vec<&String> =
            errors.iter().filter(|(at, _)| *at == line).map(|(_, message)| message).collect();
        match here.as_slice() {
            [message] if message.contains(words) => {}
            other => wrong.push(format!("{mark} (line {line}): {other:?} instead of {words:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {} mistakes:\n{}", wrong.len(), MISTAKES.len(), wrong.join("\n"));
    assert_eq!(errors.len(), MISTAKES.len(), "{errors:#?}");
    planted.cli.says(&["check"], 78, &["30 errors"]);
}

/// Two mistakes, of which the first one hid the second one.
#[tokio::test]
async fn no_mistake_hides_another_one() {
    let rig = rig().await;
    let servers =
        "[postgres]\nurl = \"POSTGRES\"\n[redis]\nurl = \"REDIS\" # redis\n[admin]\nlisten = \"\"\n";
    let users = "[dataset.user]\nquery = \"select id, emial from users\" # query\nkey = \"user:{id}\"\n";
    let cases = [
        // A line without `=` ends nothing but itself.
        (
            format!("[feed]\nmax_rows 500 # line\n{servers}{users}format = \"jsn\" # word\n"),
            vec![
                ("line", "key with no value"),
                ("word", "\"jsn\" is not known here"),
                ("query", "\"emial\" does not exist"),
            ],
        ),
        // Nobody answers there.
        (
            format!("{}{users}", servers.replace("REDIS", "redis://127.0.0.1:1/0")),
            vec![("redis", "connection refused"), ("query", "\"emial\" does not exist")],
        ),
        // What cannot be the name of a table.
        (
            format!(
                "{servers}{users}[dataset.product]\nquery = \"select id from products\"\nkey = \"product:{{id}}\"\n\
                 watch = [{{ table = \"products p\", key = {{ id = \"id\" }} }}] # table\n"
            ),
            vec![("query", "\"emial\" does not exist"), ("table", "cannot be the name of a table")],
        ),
        // Of a query all that is known of its columns, and what does not depend on it.
        (
            format!("{servers}{users}watch = [{{ table = \"uses\", key = {{ id = \"id\" }} }}] # watched\n"),
            vec![("query", "\"emial\" does not exist"), ("watched", "there is no table uses")],
        ),
    ];
    for (toml, mistakes) in cases {
        let planted = Planted::new(&rig, &toml);
        let errors = planted.errors();
        for (mark, words) in &mistakes {
            let line = planted.line(mark);
            let is_named = errors.iter().any(|(at, message)| *at == line && message.contains(words));
            assert!(is_named, "{mark} (line {line}), {words:?}: {errors:#?}\n{toml}");
        }
        assert_eq!(errors.len(), mistakes.len(), "{errors:#?}\n{toml}");
    }
}

/// A rule that can touch no entry of its dataset, or those of other rows: the dataset would be called covered, and its entries be
/// stale behind a watermark that says otherwise.
#[tokio::test]
async fn a_watch_rule_that_reaches_nothing_is_named() {
    let rig = rig().await;
    let of = |rule: &str| {
        format!(
            "[postgres]\nurl = \"POSTGRES\"\n[redis]\nurl = \"REDIS\"\n[admin]\nlisten = \"\"\n[dataset.product]\n\
             query = \"select id, name, category_id from products\"\nkey = \"product:{{id}}\"\ntags = [\"category:{{category_id}}\"]\n\
             watch = [{{ table = \"products\", {rule} }}] # rule\n"
        )
    };
    for (rule, words) in [
        ("tag = \"cat:{id}\"", "no tag of the dataset"),
        ("key = { id = \"category_id\" }", "of which the key is made"),
    ] {
        let planted = Planted::new(&rig, &of(rule));
        let text = planted.cli.run(&["check"]).1;
        let place = format!(":{}:", planted.line("rule"));
        assert!(text.contains(words) && text.contains(&place), "{rule}: {text}");
    }
    for rule in ["tag = \"category:{category_id}\"", "key = { id = \"id\" }", "dataset = true"] {
        let text = Planted::new(&rig, &of(rule)).cli.run(&["check"]).1;
        assert!(!text.contains("no tag of") && !text.contains("of which the key"), "{rule}: {text}");
    }
}

const TABLES_OF_RULES: &str = "
    create table staff (id int primary key, manager_id int, name text);
    create table pairs (a int, b int, note text, primary key (a, b));
    create view named as select id as pid, name from products;";

/// Datasets of which every change is followed, although their rules look like those that reach nothing.
const REACHED: &[(&str, &str)] = &[
    ("parent", "query = \"select p.id, p.category_id, c.name from products p join categories c on c.id = p.category_id\"
        key = \"parent:{id}\"
        tags = [\"category:{category_id}\"]
        watch = [{ table = \"products\", key = { id = \"id\" } }, { table = \"categories\", tag = \"category:{id}\" }]"),
    ("composite", "query = \"select product_id, warehouse, qty from stock\"
        key = \"composite:{product_id}:{warehouse}\"
        watch = [{ table = \"stock\", key = { warehouse = \"warehouse\", product_id = \"product_id\" } }]"),
    ("renamed", "query = \"select pid, name from named\"
        key = \"renamed:{pid}\"
        watch = [{ table = \"products\", key = { pid = \"id\" } }]"),
    ("expression", "query = \"select (id + 0)::text as text, name from products\"
        key = \"expression:{text}\"
        watch = [{ table = \"products\", key = { text = \"id\" } }]"),
    ("self", "query = \"select s.id, s.manager_id, m.name as manager from staff s left join staff m on m.id = s.manager_id\"
        key = \"self:{id}\"
        tags = [\"managed:{manager_id}\"]
        watch = [{ table = \"staff\", key = { id = \"id\" } }, { table = \"staff\", tag = \"managed:{id}\" }]"),
    ("counted", "query = \"select m.id, count(*) as n from staff m join staff s on s.manager_id = m.id group by m.id\"
        key = \"counted:{id}\"
        watch = [{ table = \"staff\", key = { id = \"manager_id\" } }]"),
    ("one", "query = \"select id, name from products\"
        key = \"one:{id}\"
        watch = [{ table = \"products\", key = { id = \"category_id\" } }, { table = \"public.products\", key = { id = \"id\" } }]"),
    ("tagged", "query = \"select id, name from products\"
        key = \"tagged:{id}\"
        tags = [\"every\", \"of:{id}\"]
        watch = [{ table = \"products\", tag = \"every\" }]"),
    ("whole", "query = \"select id, name from products\"
        key = \"whole:{id}\"
        watch = [{ table = \"products\", dataset = true }]"),
    ("unread", "query = \"select id, name from products\"
        key = \"unread:{id}\"
        watch = [{ table = \"products\", key = { id = \"id\" } }, { table = \"categories\", tag = \"elsewhere:{id}\" }]"),
    ("list", "query = \"select product_id, id, stars from reviews\"
        key = \"list:{product_id}\"
        rows = \"many\"
        watch = [{ table = \"reviews\", key = { product_id = \"product_id\" } }]"),
    ("union", "query = \"select id, name from products union all select id, email from users\"
        key = \"union:{id}\"
        rows = \"many\"
        watch = [{ table = \"products\", key = { id = \"id\" } }, { table = \"users\", key = { id = \"id\" } }]"),
];

/// Datasets with a rule on which they rely, and that reaches nothing.
const UNREACHED: &[(&str, &str, &str)] = &[
    ("tagless", "query = \"select id, name from products\"
        key = \"tagless:{id}\"
        watch = [{ table = \"products\", tag = \"cat:{id}\" }]", "cat:{id} is no tag of the dataset"),
    ("swapped", "query = \"select a, b, note from pairs\"
        key = \"swapped:{a}:{b}\"
        watch = [{ table = \"pairs\", key = { a = \"b\", b = \"a\" } }]", "the column of which the key is made"),
    ("mistagged", "query = \"select id, category_id from products\"
        key = \"mistagged:{id}\"
        tags = [\"c:{category_id}\"]
        watch = [{ table = \"products\", tag = \"c:{id}\" }]", "the column of which the tag is made"),
    ("manager", "query = \"select s.id, s.name, m.name as manager from staff s left join staff m on m.id = s.manager_id\"
        key = \"manager:{id}\"
        watch = [{ table = \"staff\", tag = \"managed:{id}\" }]", "managed:{id} is no tag of the dataset"),
];

/// A worker does not cover what reaches nothing, and covers all the rest.
#[tokio::test]
async fn only_what_is_proved_to_reach_nothing_is_not_covered() {
    let rig = rig().await;
    rig.postgres.execute(TABLES_OF_RULES).await.unwrap();
    let reached = REACHED.iter().map(|(name, text)| format!("[dataset.{name}]\n{text}\n"));
    let unreached = UNREACHED.iter().map(|(name, text, _)| format!("[dataset.{name}]\n{text}\n"));
    let toml: String = reached.chain(unreached).collect();
    let found = coverage::look(&rig.context(&toml), true).await.unwrap();
    let gaps: BTreeMap<&str, &str> =
        found.gaps().map(|(name, reason)| (name.as_str(), reason.as_str())).collect();
    for (name, _, says) in UNREACHED {
        assert!(gaps.get(name).is_some_and(|reason| reason.contains(says)), "{name}: {gaps:#?}");
    }
    assert_eq!(gaps.len(), UNREACHED.len(), "{gaps:#?}");
    let text = Cli::new(&rig, &toml).says(&["check"], 0, &["configuration is right"]);
    for (_, _, says) in UNREACHED {
        assert!(text.contains(says), "{says}: {text}");
    }
}

/// Of one dataset every mistake, each at its own place.
#[tokio::test]
async fn every_mistake_of_a_dataset_has_its_own_place() {
    let rig = rig().await;
    let toml = "[postgres]\nurl = \"POSTGRES\"\n[redis]\nurl = \"REDIS\"\n[admin]\nlisten = \"\"\n[dataset.user]\n\
        query = \"select id, email from users\"\nkey = \"user:{idd}\" # key\n\
        tags = [\n\"a:{x}\", # first\n\"b:{id}\",\n\"c:{id}:{y}\", # third\n]\n\
        format = \"raw\"\nvalue = \"bod\" # value\nttl_column = \"ends\" # ttl\nreads = [\"users\",\n\"nope\"] # reads\n\
        watch = [\n{ table = \"uses\", key = { idd = \"id\" } }, # rule\n{ table = \"pg_class\", dataset = true }, # catalog\n]\n\
        [dataset.made]\nquery = \"insert into users values (1) returning id\" # insert\nkey = \"made:{id}\"\n\
        [dataset.asked]\nquery = \"select id from users where id = :id\" # name\nkey = \"asked:{id}\"\n\
        [dataset.dollar]\nquery = \"select id, $$x$$ as x from users where id < $1\" # dollar\nkey = \"dollar:{id}\"\n";
    let planted = Planted::new(&rig, toml);
    let errors = planted.errors();
    for (mark, words) in [
        ("key", "{idd}, but the query has no such column"),
        ("first", "{x}, but the query"),
        ("third", "{y}, but the query"),
        ("value", "value = \"bod\" names no column"),
        ("ttl", "the query has no column \"ends\""),
        ("reads", "there is no table nope"),
        ("rule", "there is no table uses"),
        ("catalog", "pg_class is a catalog"),
        ("insert", "does not accept the query"),
        ("name", "does not accept the query"),
        ("dollar", "the query has parameters"),
    ] {
        let line = planted.line(mark);
        let is_named = errors.iter().any(|(at, message)| *at == line && message.contains(words));
        assert!(is_named, "{mark} (line {line}), {words:?}: {errors:#?}");
    }
    assert_eq!(errors.len(), 11, "{errors:#?}");
    let parts = ["goes into [dataset.NAME.write]", "a query has no parameters, be it :id", ":31:54\n"];
    planted.cli.says(&["check"], 78, &parts);
}

/// A server that cannot be asked, or a table that is locked, hides nothing else.
#[tokio::test]
async fn what_cannot_be_asked_is_said_beside_the_rest() {
    let rig = rig().await;
    let toml = "[postgres]\nurl = \"POSTGRES\" # postgres\nstatement_timeout = \"1s\"\n[redis]\nurl = \"REDIS\" # redis\n[admin]\nlisten = \"\"\n\
        [dataset.user]\nquery = \"select id from users\" # locked\nkey = \"user:{id}\"\n\
        [dataset.product]\nquery = \"select id, nam from products\" # query\nkey = \"product:{id}\"\n";
    let mut session = rig.postgres.session().await.unwrap();
    session.execute("begin; lock table users in access exclusive mode").await.unwrap();
    let planted = Planted::new(&rig, toml);
    let errors = planted.errors();
    let at = |mark: &str| planted.line(mark);
    let says =
        |line: u64, words: &str| errors.iter().any(|(at, message)| *at == line && message.contains(words));
    assert!(says(at("locked"), "failed to") && says(at("query"), "\"nam\" does not exist"), "{errors:#?}");
    assert_eq!(errors.len(), 2, "{errors:#?}");
    session.execute("rollback").await.unwrap();
    // Both servers gone, and a mistake of the file.
    let toml =
        toml.replace("POSTGRES", "postgres://u@127.0.0.1:1/d").replace("REDIS", "redis://127.0.0.1:1/0");
    let right = toml.replace(", nam from", " from");
    let gone = Planted::new(&rig, &right);
    gone.cli.says(
        &["check"],
        69,
        &["127.0.0.1:1: connection refused", "Redis: connection refused", "2 errors"],
    );
    assert_eq!(gone.cli.json(&["check"])["ok"], false);
    let wrong = Planted::new(&rig, &right.replace("statement_timeout = \"1s\"", "statement_timeout = 1"));
    wrong.cli.says(&["check"], 78, &["connection refused", "expected text in quotes", "3 errors"]);
}

/// What `run` refuses, `check` refuses.
#[tokio::test]
async fn servers_and_workers_that_are_too_old_are_named() {
    let of = |version: &str| ServerFacts { version: version.to_owned(), ..ServerFacts::default() };
    assert!(of("6.2.14").is_too_old() && !of("7.0.15").is_too_old() && !of("").is_too_old());
    let rig = rig().await;
    let mut client = rig.client().await;
    let lease = Keyspace::new("test").former_lease();
    let _: () = client.set(&lease, "x").await.unwrap();
    let cli = Cli::new(&rig, "");
    cli.says(&["check"], 78, &["a worker of an earlier version leads the namespace", "1 error"]);
}
