//! `check` says what `run` will do, one finding for each thing that is wrong, at its place; and what verbs say otherwise.

use cachekeeper_testkit::servers::Redis;

use crate::support::{Cli, Rig};

const TABLES: &str = "
    create table products (id int primary key, name text, email text, token uuid, price int);
    insert into products select n, 'n' || n, n || '@x', null, n from generate_series(1, 200) n;
    create table orders (id uuid primary key, email text);
    create view cheap as select * from products where price < 10;
    create materialized view totals as select count(*) as id from products;
    create table secret (id int primary key);
    create table hidden (id int primary key);
    alter table hidden enable row level security;
    create policy few on hidden using (id < 10);";

const DATASETS: &str = r#"
    [dataset.product]
    query = "select id, name, price from products"
    key = "product:{id}"
    format = "json"
    watch = [{ table = "products", key = { id = "id" } }]
    warm = { limit = 10, order_by = "price desc" }
    [dataset.list]
    query = "select price, id from products"
    key = "list:{price}"
    rows = "many"
    sort = "id desc"
    format = "json"
    watch = [{ table = "products", key = { price = "price" } }]
"#;

#[tokio::test]
async fn check_says_which_setting_is_wrong_before_anything_runs() {
    let rig = Rig::start(TABLES).await;
    Cli::new(&rig, DATASETS).says(&["check"], 0, &["configuration is right: 2 datasets"]);
    let watch = "watch = [{ table = \"products\", key = { id = \"id\" } }]";
    let cases = [
        ("price desc\" }", "sold desc\" }", "column \"sold\" does not exist", "order_by = \"sold desc\""),
        ("id desc\"", "stars\"", "column \"stars\" does not exist", "sort = \"stars\""),
        (
            watch,
            "watch = [{ table = \"product\", key = { id = \"id\" } }]",
            "there is no table product",
            "table = \"product\"",
        ),
        (
            watch,
            "watch = [{ table = \"cheap\", key = { id = \"id\" } }]",
            "cheap is a view",
            "table = \"cheap\"",
        ),
        (
            watch,
            "watch = [{ table = \"totals\", key = { id = \"id\" } }]",
            "totals is a materialized view",
            "table = \"totals\"",
        ),
        (
            watch,
            "watch = [{ table = \"products\", key = { id = \"number\" } }]",
            "products has no column number",
            "\"number\"",
        ),
        (
            watch,
            "watch = [{ table = \"products\", tag = \"of:{kind}\" }]",
            "products has no column kind",
            "of:{kind}",
        ),
        (
            watch,
            "watch = [{ table = \"products\", key = { id = \"token\" } }]",
            "token of products is of type uuid, but id of the key is of type int4",
            "\"token\"",
        ),
    ];
    for (from, to, says, place) in cases {
        let toml = DATASETS.replacen(from, to, 1);
        assert_ne!(toml, DATASETS, "{from}");
        let text = Cli::new(&rig, &toml).says(&["check"], 78, &[says, place, "1 error"]);
        assert!(!text.contains("1 errors") && !text.contains("at line"), "{text}");
        assert_eq!(text.matches("error: ").count(), 1, "one finding: {text}");
    }
    // A text that an expression makes of a uuid is the same text.
    let toml =
        DATASETS.replace("select id, name, price from products", "select o.id::text as id from orders o");
    let toml = toml.replace(watch, "watch = [{ table = \"orders\", key = { id = \"id\" } }]");
    Cli::new(&rig, &toml.replace("\n    warm = { limit = 10, order_by = \"price desc\" }", "")).says(
        &["check"],
        0,
        &["is right"],
    );
    // An email is not.
    let toml = toml
        .replace("o.id::text as id from", "o.email as id from")
        .replace("order_by = \"price desc\"", "on_start = true");
    Cli::new(&rig, &toml).says(
        &["check"],
        78,
        &["id of orders is of type uuid, but id of the key is of type text"],
    );
}

#[tokio::test]
async fn check_knows_what_the_role_may_do_and_what_the_servers_are() {
    let rig = Rig::start(TABLES).await;
    let role = "create role reader login; grant select on products, hidden to reader";
    rig.postgres.execute(role).await.unwrap();
    Cli::new(&rig, DATASETS).says(&["migrate", "--grant", "reader"], 0, &[]);
    let as_reader = |toml: &str| {
        let mut cli = Cli::new(&rig, toml);
        let url = cli.environment.iter_mut().find(|(name, _)| name.ends_with("POSTGRES__URL")).unwrap();
        let (_, place) = url.1.split_once('@').unwrap();
        url.1 = format!("postgres://reader@{place}");
        cli
    };
    let of = |table: &str| {
        DATASETS
            .replace("select id, name, price from products", &format!("select id from {table}"))
            .replace("order_by = \"price desc\"", "order_by = \"id\"")
    };
    as_reader(&of("secret")).says(
        &["check"],
        78,
        &["the role reader may not run it: permission denied for table secret", "grant select"],
    );
    as_reader(&of("hidden")).says(
        &["check"],
        0,
        &["row security of hidden decides which rows the role reader sees"],
    );

    // Servers that cannot be written, or not reached.
    let node = Redis::start(&["--cluster-enabled", "yes"]).await.unwrap();
    let with_redis = |url: String| {
        let mut cli = Cli::new(&rig, DATASETS);
        cli.environment.iter_mut().find(|(name, _)| name.ends_with("REDIS__URL")).unwrap().1 = url;
        cli
    };
    with_redis(node.url()).says(&["check"], 78, &["is a node of a cluster"]);
    with_redis(node.url()).says(&["run"], 78, &["is a node of a cluster"]);
    let master = rig.redis.url();
    let port = master.trim_end_matches("/0").rsplit(':').next().unwrap();
    let replica = Redis::start(&["--replicaof", &format!("127.0.0.1 {port}")]).await.unwrap();
    with_redis(replica.url()).says(&["check"], 78, &["this Redis is a replica", "1 error"]);
    let mut closed = Cli::new(&rig, DATASETS);
    closed.environment.iter_mut().find(|(name, _)| name.ends_with("POSTGRES__URL")).unwrap().1 =
        "postgres://nobody@127.0.0.1:1/none".to_owned();
    for verb in [&["check"][..], &["warm"]] {
        let text = closed.says(verb, 69, &["connection refused: 127.0.0.1:1"]);
        assert!(!text.contains("pool timed out"), "{text}");
    }
    let mut nowhere = Cli::new(&rig, DATASETS);
    let url = nowhere.environment.iter_mut().find(|(name, _)| name.ends_with("POSTGRES__URL")).unwrap();
    let (server, _) = url.1.rsplit_once('/').unwrap();
    url.1 = format!("{server}/nowhere");
    let text = nowhere.run(&["check"]).1;
    assert!(text.contains("database \"nowhere\" does not exist") && !text.contains("at line"), "{text}");
}

#[tokio::test]
async fn verbs_say_what_they_did_and_what_stands() {
    let rig = Rig::start(TABLES).await;
    let cli = Cli::new(&rig, &DATASETS.replace("limit = 10, order_by = \"price desc\"", "on_start = true"));
    cli.says(&["migrate"], 0, &[]);
    cli.says(&["warm"], 0, &[]);
    cli.says(&["invalidate", "--delete"], 2, &["nothing is named"]);
    let text = cli.says(
        &["audit", "--sample", "50"],
        0,
        &["list: 50 entries looked at, chosen at random", "product: 50 entries"],
    );
    assert!(!text.contains("nines"), "{text}");
    cli.says(
        &["audit", "--sample", "5000"],
        0,
        &["product: 200 entries looked at, chosen at random, 200 right"],
    );
    // All entries wrong: no nines, and no minus before them.
    rig.postgres.execute("update products set name = name || '!'").await.unwrap();
    let (code, text) = cli.run(&["audit", "product"]);
    assert!(code == 1 && text.contains("(0.0 nines)") && text.contains("200 stale"), "{code} {text}");

    cli.says(
        &["status"],
        0,
        &["leader     none: no worker follows the changes", "worker     its admin listener is off"],
    );
    let broken =
        Cli::new(&rig, &DATASETS.replace("select id, name, price from products", "select id from nowhere"));
    broken.says(
        &["status"],
        0,
        &["dataset    product (product:{id})", "cannot work: Postgres does not accept the query"],
    );
}
