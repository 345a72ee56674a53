//! `init`: what it proposes for tables of every kind passes `check` as it is, and what cannot become a dataset says why.

use cachekeeper_testkit::servers::{Postgres, Redis};
use std::path::PathBuf;
use std::process::Command;

use crate::support::{Cli, Rig};

/// Tables that are odd in one way each.
const ODD: &str = r#"
    create type color as enum ('red', 'green');
    create domain code as text check (value ~ '^[A-Z]+$');
    create domain number_of as int not null;
    create table users (id int primary key, email text unique not null, tags text[], expires_at timestamptz, prefs jsonb);
    create table products (id bigint primary key, name text, price numeric(10,2), owner int references users, boss int references users (id));
    insert into products select n, 'n' || n, n, null, null from generate_series(1, 50) n;
    create table "Mixed Case" ("Id" int primary key, "the {name}" text, "quote""d" text, "a.b" int);
    create table "brace{d}" ("{id}" int primary key, "order" text, "select" int);
    create table pair (a text, n int, b uuid, c text, primary key (a, n, b));
    create table by_index (code code not null, kind color not null, note text, unique (code, kind));
    create table by_domain (n number_of unique, note text);
    create table maybe (n int unique, note text);
    create table keyless (n int, note text);
    create table part (id int, day date, note text, primary key (id, day)) partition by range (day);
    create table part_a partition of part for values from ('2020-01-01') to ('2021-01-01');
    create table part_b partition of part for values from ('2021-01-01') to ('2022-01-01');
    create table parent (id int primary key, note text);
    create table heir (more int, primary key (id)) inherits (parent);
    create table second (id int primary key);
    create table of_two (primary key (id)) inherits (parent, second);
    create view cheap as select id, name from products where price < 10;
    create view chain as select id from cheap;
    create materialized view totals as select owner, count(*) as n from products where owner is not null group by owner;
    create unique index on totals (owner);
    create table generated (id int generated always as identity primary key, a int, twice int generated always as (a * 2) stored);
    create table "cache" (id text primary key, note text);
    create table "ck" (id int primary key);
    create table "order" ("user" int primary key, "from" int references users);
    create schema "my.schema";
    create table "my.schema"."my.table" ("my.id" int primary key, note text);
    create table "my.schema".products (id int primary key, up bigint references products);
    create schema sales;
    create table sales.products (id int primary key);
    create table shapes (id int primary key, at point, during tsrange, cost money, doc xml, tree pg_catalog.tsvector, bits bit(3));
    create table odd_key (during tsrange primary key);
    create table nothing ();
    create table "größe" ("schlüssel" text primary key, wert int);
    create table "tab	and
line" (id int primary key, "new
line" int, "back\slash" text, "it's" text);
    create unlogged table scratch (id int primary key);
    create sequence numbers;
    create table own_type (id int primary key, odd pg_catalog.pg_node_tree, plain text);
    create extension if not exists postgres_fdw;
    create server elsewhere foreign data wrapper postgres_fdw;
    create foreign table far (id int) server elsewhere;
    create table mixed (id int not null) partition by range (id);
    create table secret (id int primary key, open text, hidden text);
    create table theirs (id int primary key, note text);
    create schema closed;
    create table closed.room (id int primary key);
    create role worker login;
    alter table theirs enable row level security;
    create policy few on theirs using (id < 10);
    grant select (id, open) on secret to worker;
    grant select on theirs, products, users to worker;
"#;

struct Made {
    cli: Cli,
    file: PathBuf,
}

impl Made {
    fn new(rig: &Rig) -> Self {
        let file = std::env::temp_dir().join(format!("cachekeeper-init-{:016x}.toml", rand::random::<u64>()));
        Self { cli: Cli::new(rig, ""), file }
    }

    /// Makes a whole configuration, and answers the code and what was said.
    fn init(&self, url: &str, arguments: &[&str]) -> (i32, String) {
        let file = self.file.display().to_string();
        let mut all = vec!["init", "--url", url, "-o", &file, "--force"];
        all.extend(arguments);
        self.cli.run(&all)
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap()
    }

    /// The configuration that was made, as somebody uses it: only where Redis is comes from outside.
    fn run(&self, redis: &Redis, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cachekeeper"));
        command.args(arguments).arg("-c").arg(&self.file).env("CACHEKEEPER__REDIS__URL", redis.url());
        let output = command.env("CACHEKEEPER__ADMIN__LISTEN", "").output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.file));
    }
}

/// Tables of which a dataset can be made, each with a part of what is said of it.
const GOOD: &[(&str, &[&str])] = &[
    (
        "products",
        &["key = \"products:{id}\"", "tags = [\"users:{owner}\", \"users:{boss}\"]", "public.products"],
    ),
    (
        "users",
        &[
            "tags is a list of texts",
            "tags = [\"tags:{tags}\"]",
            "expires_at looks like the end",
            "ttl_column = \"expires_at\"",
            "key = \"users:{id}\"",
        ],
    ),
    (
        "\"Mixed Case\"",
        &["[dataset.Mixed_Case]", "\"Id\", \"the {name}\"", "table = \"public.\\\"Mixed Case\\\"\""],
    ),
    ("\"brace{d}\"", &["as \"_id_\"", "key = { _id_ = \"{id}\" }", "\"order\", \"select\""]),
    ("pair", &["key = \"pair:{n}:{b}:{a}\""]),
    ("by_index", &["the unique index by_index_code_kind_key", "Texts stand side by side"]),
    ("by_domain", &["key = \"by_domain:{n}\""]),
    ("part", &["partitioned", "key = \"part:{id}:{day}\""]),
    ("part_a", &["It is part of public.part"]),
    ("parent", &["Other tables inherit from it", "inherits from several"]),
    ("heir", &["It is part of public.parent"]),
    ("of_two", &["inherits from several tables (public.parent, public.second)"]),
    ("totals", &["a materialized view", "publish an event after each refresh"]),
    ("generated", &["a, twice"]),
    ("cache", &["dataset.public_cache"]),
    ("ck", &["dataset.public_ck"]),
    ("\"order\"", &["\"user\", \"from\"", "tags = [\"users:{from}\"]"]),
    ("\"my.schema\".\"my.table\"", &["[dataset.my_table]", "key = { \"my.id\" = \"my.id\" }"]),
    ("\"my.schema\".products", &["tags = [\"products:{up}\"]"]),
    ("shapes", &["key = \"shapes:{id}\""]),
    ("\"größe\"", &["[dataset.\"größe\"]"]),
    ("\"tab\tand\nline\"", &["tab_and_line"]),
    ("scratch", &["scratch"]),
    ("own_type", &["Left out: odd is of type pg_node_tree", "odd::text as odd"]),
];

#[tokio::test]
async fn what_is_proposed_for_odd_tables_passes_check_and_can_be_warmed() {
    let rig = Rig::start(ODD).await;
    let url = rig.postgres.url();
    for (table, says) in GOOD {
        let made = Made::new(&rig);
        let (code, text) = made.init(&url, &["--from-table", table]);
        assert_eq!(code, 0, "{table}\n{text}");
        let file = made.text().replace("\n# ", " ");
        for part in *says {
            let is_apart = *part == "inherits from several";
            assert_eq!(file.contains(part), !is_apart || table == &"of_two", "{table}: {part}\n{file}");
        }
        let (code, said) = made.run(&rig.redis, &["check"]);
        assert_eq!(code, 0, "{table}\n{said}\n{file}");
        let (code, said) = made.run(&rig.redis, &["migrate"]);
        assert_eq!(code, 0, "{table}\n{said}\n{file}");
        let (code, said) = made.run(&rig.redis, &["warm"]);
        assert_eq!(code, 0, "{table}\n{said}\n{file}");
    }
}

#[tokio::test]
async fn all_tables_together_are_one_configuration() {
    let rig = Rig::start(ODD).await;
    let made = Made::new(&rig);
    let mut arguments = Vec::new();
    for (table, _) in GOOD.iter().chain(&[("sales.products", &[][..]), ("keyless", &[])]) {
        arguments.extend(["--from-table", table]);
    }
    let (code, text) = made.init(&rig.postgres.url(), &arguments);
    assert_eq!(code, 1, "one has no key: {text}");
    assert!(text.contains("not proposed: public.keyless: has no key"), "{text}");
    let (code, said) = made.run(&rig.redis, &["check"]);
    assert_eq!((code, said.contains("25 datasets")), (0, true), "{said}\n{}", made.text());
    assert!(
        made.text().contains("[dataset.my_schema_products]")
            && made.text().contains("[dataset.sales_products]")
    );
}

#[tokio::test]
async fn what_cannot_become_a_dataset_says_why_and_what_to_do() {
    let rig = Rig::start(ODD).await;
    let made = Made::new(&rig);
    rig.postgres
        .execute(
            "create foreign table mixed_a partition of mixed for values from (0) to (9) server elsewhere",
        )
        .await
        .unwrap();
    let url = rig.postgres.url();
    for (table, says) in [
        ("keyless", &["has no key", "--from-table public.keyless --key COLUMN"][..]),
        ("maybe", &["maybe_n_key: n may be null"]),
        ("cheap", &["is a view, and has no key", "--key"]),
        ("odd_key", &["during is of type tsrange"]),
        ("nothing", &["has no columns"]),
        ("far", &["is a foreign table"]),
        ("mixed", &["is a foreign table, which"]),
        ("numbers", &["is a sequence"]),
        ("products_pkey", &["is an index"]),
        ("pg_class", &["is a catalog"]),
        ("cachekeeper.outbox", &["is one of Cachekeeper's own"]),
    ] {
        let (code, text) = made.init(&url, &["--from-table", table]);
        assert_eq!(code, 1, "{table}\n{text}");
        let file = made.text().replace("\n# ", " ");
        for part in says {
            assert!(text.contains(part) && file.contains(part), "{table}: {part}\n{text}\n{file}");
        }
        // A file without datasets is a warning.
        let (code, said) = made.run(&rig.redis, &["check"]);
        assert_eq!(code, 0, "{table}\n{said}\n{file}");
    }
    for (table, key, says) in [
        ("cheap", "id", &["cheap:{id}", "table = \"products\", dataset = true", "nothing keeps unique"][..]),
        ("chain", "id", &["table = \"products\", dataset = true"]),
        ("keyless", "n,note", &["keyless:{n}:{note}"]),
        ("maybe", "n", &["the columns that were named."]),
    ] {
        let (code, text) = made.init(&url, &["--from-table", table, "--key", key]);
        let file = made.text().replace("\n# ", " ");
        assert_eq!(code, 0, "{table}\n{text}");
        for part in says {
            assert!(file.contains(part), "{table}: {part}\n{file}");
        }
        let (code, said) = made.run(&rig.redis, &["check"]);
        assert_eq!(code, 0, "{table}\n{said}\n{file}");
    }
}

#[tokio::test]
async fn tables_of_others_name_the_right_that_is_missing() {
    let rig = Rig::start(ODD).await;
    let made = Made::new(&rig);
    let url = rig.postgres.url().replace("user=postgres", "user=worker").replace("//postgres@", "//worker@");
    for (table, code, says) in [
        (
            "secret",
            0,
            &["Left out, because the role worker may not read them: hidden", "postgres grants it"][..],
        ),
        ("theirs", 0, &["Row security decides", "postgres's, who runs"]),
        ("pair", 1, &["the role worker may not read it", "grant select on public.pair to worker"]),
        ("closed.room", 1, &["may not use its schema", "grant usage on schema closed to worker"]),
    ] {
        let (found, text) = made.init(&url, &["--from-table", table]);
        let file = made.text().replace("\n# ", " ");
        assert_eq!(found, code, "{table}\n{text}\n{file}");
        for part in says {
            assert!(file.contains(part), "{table}: {part}\n{file}");
        }
    }
    rig.postgres.execute("revoke temporary on database postgres from public").await.unwrap();
    let (code, text) = made.init(&url, &["--from-table", "products"]);
    assert_eq!((code, text.contains("grant temporary on the database")), (1, true), "{text}");
}

#[tokio::test]
async fn wrong_input_is_a_clear_error_and_writes_nothing() {
    let rig = Rig::start(ODD).await;
    let made = Made::new(&rig);
    let url = rig.postgres.url();
    for (arguments, code, says) in [
        (
            &["--from-table", "product"][..],
            2,
            "there is no table product in the search path of this role; there is",
        ),
        (&["--from-table", "nowhere"], 2, "name it with its schema"),
        (&["--from-table", "mixed case"], 2, "cannot be the name of a table"),
        (&["--from-table", "public."], 2, "cannot be the name of a table"),
        (&["--from-table", "a.b.c.d"], 2, "there is no table a.b.c.d"),
        (&["--from-table", "\"mixed case\""], 2, "there is public.\"Mixed Case\""),
        (&["--from-table", "PRODUCTS", "--key", "nr"], 1, "has no column nr; its columns: id, name"),
        (&["--from-table", "users", "--key", "tags"], 1, "tags is of type text[]"),
        (&["--from-table", "users", "--from-table", "part", "--key", "id"], 2, "of one table"),
        (&[], 2, "--from-table"),
    ] {
        let (found, text) = made.init(&url, arguments);
        assert_eq!(found, code, "{arguments:?}\n{text}");
        assert!(text.contains(says), "{arguments:?}: {says}\n{text}");
        assert_eq!(made.file.exists(), code == 1, "{arguments:?}");
        drop(std::fs::remove_file(&made.file));
    }
    let table = ["init", "--from-table", "users"];
    let with =
        |more: &[&'static str]| -> Vec<&str> { table.iter().copied().chain(more.iter().copied()).collect() };
    made.cli.says(&with(&["--url", "mysql://h/d"]), 2, &["this is not a postgres:// URL"]);
    made.cli.says(&with(&["--url", "postgres://nobody@127.0.0.1:1/d"]), 69, &["cannot connect"]);
    made.cli.says(&with(&["--force"]), 2, &["--output"]);
    let file = made.file.display().to_string();
    std::fs::write(&made.file, "mine").unwrap();
    made.cli.says(
        &["init", "--url", &url, "--from-table", "users", "-o", &file],
        2,
        &["is there already", "--force"],
    );
    assert_eq!(made.text(), "mine");
    let there = made.cli.file.display().to_string();
    let own = ["init", "--from-table", "users", "-o", &there, "--force"];
    made.cli.says(&own, 2, &["is the configuration itself"]);
    let nowhere = ["init", "--url", &url, "--from-table", "users", "-o", "/nowhere/at/all.toml"];
    made.cli.says(&nowhere, 1, &["/nowhere/at/all.toml cannot be written"]);
    let missing = Command::new(env!("CARGO_BIN_EXE_cachekeeper"))
        .args(["init", "--from-table", "users", "-c", "/nowhere/ck.toml"])
        .env_remove("CACHEKEEPER__POSTGRES__URL")
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("--url postgres://"), "{missing:?}");
}

#[tokio::test]
async fn beside_a_configuration_only_datasets_are_printed_with_names_of_their_own() {
    let rig = Rig::start(ODD).await;
    let there = "[dataset.products]\nquery = \"select id, name from products\"\nkey = \"users:{id}\"\n";
    let cli = Cli::new(&rig, there);
    let text = cli.says(
        &["init", "--from-table", "products", "--from-table", "users"],
        0,
        &["[dataset.public_products]"],
    );
    assert!(text.contains("[dataset.public_users]") && !text.contains("[postgres]"), "{text}");
    let whole = Cli::new(&rig, &format!("{there}{text}"));
    whole.says(&["check"], 0, &["3 datasets"]);
    let json = cli.json(&["init", "--from-table", "products", "--from-table", "keyless"]);
    assert_eq!(
        (json["ok"].as_bool(), json["datasets"][0]["key"].as_str()),
        (Some(false), Some("public_products:{id}"))
    );
    assert_eq!(json["refused"][0]["from"], "public.keyless");
    let wrong = Cli::new(&rig, "[dataset.products]\nqery = 1\n");
    wrong.says(&["init", "--from-table", "products"], 78, &["unknown key `qery`"]);
}

#[tokio::test]
async fn a_password_is_not_written() {
    let postgres = Postgres::start(&[]).await.unwrap();
    postgres
        .execute(
            "create table users (id int primary key); create role keeper login superuser password 'a-secret'",
        )
        .await
        .unwrap();
    let url = postgres.url();
    let url = url
        .replace("//postgres@", "//keeper:a-secret@")
        .replace("user=postgres", "user=keeper&password=a-secret");
    let output = Command::new(env!("CARGO_BIN_EXE_cachekeeper"))
        .args(["init", "--from-table", "users", "--url", &url])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("# password_file ="), "{url} {output:?}");
    assert!(!format!("{output:?}").contains("a-secret"));
}
