//! `init --from-pg-stat-statements`: the most expensive reads become datasets that pass `check`, the others say why not.

use cachekeeper_testkit::servers::Session;
use std::process::Command;

use crate::support::{Cli, Rig};

const TABLES: &str = "
    create table products (id int primary key, name text, category int, sku text unique not null);
    insert into products select n, 'n' || n, n % 7, 'sku' || n from generate_series(1, 200) n;
    create table categories (id int primary key, title text);
    insert into categories select n, 't' || n from generate_series(0, 6) n;
    create view cheap as select id, name from products where id < 100;
    create extension pg_stat_statements;";

/// Reads, each so often.
const READS: &[(&str, usize)] = &[
    ("select * from products where id = 7", 30),
    ("select name, id from products p where p.id = any(array[1, 2])", 3),
    ("select p.name from products p where p.sku = 'sku5' limit 1", 20),
    ("select id, name from products where category = 3 order by name desc", 10),
    ("select name from cheap where id = 5", 8),
    ("select p.id, p.name, c.title from products p join categories c on c.id = p.category where p.id = 9", 7),
    ("select id, name from products where category = 3 limit 5", 4),
    ("select count(*) from products where category = 4", 4),
    ("select * from products", 2),
    ("select * from products where lower(name) = 'a'", 2),
    ("select relname from pg_class where oid = 1259", 2),
    ("select * from products where id = 7 or id = 8", 2),
];

async fn busy() -> Rig {
    let rig = Rig::start_with(TABLES, &["shared_preload_libraries=pg_stat_statements"], &[]).await;
    let mut session = Session::open(&rig.postgres.url()).await.unwrap();
    for (sql, times) in READS {
        for _ in 0..*times {
            session.execute(sql).await.unwrap();
        }
    }
    rig
}

#[tokio::test]
async fn the_most_expensive_reads_become_datasets_and_the_others_say_why_not() {
    let rig = busy().await;
    let cli = Cli::new(&rig, "");
    let json = cli.json(&["init", "--from-pg-stat-statements", "--url", &rig.postgres.url()]);
    assert_eq!(json["ok"], true, "{json:#}");
    let text = json["text"].as_str().unwrap();
    let flat = text.replace("\n# ", " ");
    for part in [
        "key = \"products:{id}\"",
        "select *\nfrom products",
        "key = \"products_by_sku:{sku}\"",
        "select p.sku, p.name\nfrom products p",
        "rows = \"many\"\nsort = \"name desc\"",
        "watch = [{ table = \"public.products\", key = { category = \"category\" } }]",
        "watch = [{ table = \"public.products\", key = { sku = \"sku\" } }]",
        "watch = [{ table = \"products\", dataset = true }]",
        "from products p join categories c on c.id = p.category",
        "calls of ",
        "computes count of several rows",
        "has no condition: it reads whole tables",
        "reads a number of rows (limit)",
        "compares otherwise than a column with a parameter: lower(name) = $1",
        "is a catalog of the server's",
        "has an OR in its condition",
    ] {
        assert!(text.contains(part) || flat.contains(part), "{part}\n{text}");
    }
    let whole = Cli::new(&rig, text);
    let (code, said) = whole.run(&["check"]);
    assert_eq!(
        (code, said.contains("6 datasets") || said.contains("7 datasets")),
        (0, true),
        "{said}\n{text}"
    );
    whole.says(&["migrate"], 0, &[]);
    whole.says(&["check"], 0, &["is right"]);
    whole.says(&["warm"], 0, &["products: 200 entries stored", "products_by_sku: 200 entries"]);
    let few = cli.json(&["init", "--from-pg-stat-statements", "--top", "2", "--url", &rig.postgres.url()]);
    assert_eq!(few["datasets"].as_array().unwrap().len(), 2, "{few:#}");
    // Beside what is there.
    let beside =
        Cli::new(&rig, "[dataset.products]\nquery = \"select id from products\"\nkey = \"products:{id}\"\n");
    let text = beside.says(&["init", "--from-pg-stat-statements", "--top", "1"], 0, &[]);
    assert!(!text.contains("[dataset.products]") && !text.contains("[postgres]"), "{text}");
}

#[tokio::test]
async fn without_the_extension_or_the_right_it_says_what_to_do() {
    let rig = Rig::start("create table t (id int primary key)").await;
    let cli = Cli::new(&rig, "");
    let ask = ["init", "--from-pg-stat-statements"];
    cli.says(
        &ask,
        1,
        &[
            "is not installed in this database",
            "shared_preload_libraries",
            "create extension pg_stat_statements;",
        ],
    );
    rig.postgres.execute("create extension pg_stat_statements").await.unwrap();
    cli.says(&ask, 1, &["is not loaded by the server", "a restart"]);
    cli.says(&["init", "--from-pg-stat-statements", "--from-table", "t"], 2, &["cannot be used with"]);
    cli.says(&["init", "--from-table", "t", "--top", "3"], 2, &["--from-pg-stat-statements"]);

    let rig = busy().await;
    rig.postgres.execute("create role worker login; grant select on products to worker").await.unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_cachekeeper"))
        .args(["init", "--from-pg-stat-statements", "--url", &rig.postgres.url_as("worker")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success()
            && said.contains("statements of other roles are hidden: grant pg_read_all_stats"),
        "{output:?}"
    );
}
