//! `check` says what `run` will do, one finding for each thing that is wrong, at its place; and what verbs say otherwise.

use cachekeeper::app::Worker;
use cachekeeper_engine::coverage;
use cachekeeper_testkit::servers::Redis;
use redis::AsyncCommands;

use crate::support::{Cli, Rig, wait_until};

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
        (
            "select price, id from products\"",
            "select price, id from products for update\"",
            "the query locks rows, and loads are read-only",
            "for update",
        ),
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

/// Whatever `check` refuses is not covered by `run`, which says the same.
#[tokio::test]
async fn what_check_refuses_is_not_covered_for_the_same_reason() {
    let rig = Rig::start(TABLES).await;
    let tables = "create table people (id int primary key, code char(4), rate numeric, at inet, mail text);
        create table other (code char(6), rate numeric, at cidr, mail uuid)";
    rig.postgres.execute(tables).await.unwrap();
    let of = |query: &str, key: &str, table: &str| {
        format!(
            "[dataset.d]\nquery = \"{query}\"\nkey = \"d:{{{key}}}\"\nrows = \"many\"\n\
             watch = [{{ table = \"people\", key = {{ {key} = \"{key}\" }} }}, {{ table = \"{table}\", key = {{ {key} = \"{key}\" }} }}]"
        )
    };
    let both = "select p.id, p.{} from people p left join other o using ({})";
    for (toml, says) in [
        (of(&both.replace("{}", "code"), "code", "other"), "several texts"),
        (of(&both.replace("{}", "rate"), "rate", "other"), "several texts"),
        (
            of(
                "select id, at from people p where exists (select from other o where o.at = p.at)",
                "at",
                "other",
            ),
            "their texts differ",
        ),
        (of("select id, mail from people p, (select from other) o", "mail", "other"), "their texts differ"),
        (of("select id, mail from people", "mail", "cheap"), "cheap is a view"),
        (of("select id, mail from people", "mail", "nowhere"), "there is no table nowhere"),
        (
            of("select id, mail, clock_timestamp() as at from people", "mail", "people"),
            "clock_timestamp, which is volatile",
        ),
        (of("select id, mail, ctid::text as at from people", "mail", "people"), "uses a system column"),
    ] {
        let text = Cli::new(&rig, &toml).says(&["check"], 78, &[says]);
        let context = rig.context(&toml);
        let found = coverage::look(&context, true).await.unwrap();
        let (_, reason) = found.gaps().next().unwrap_or_else(|| panic!("covered: {toml}"));
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(reason.as_str()), "{reason:?} is not what check says:\n{text}");
        assert_eq!(text.matches(reason.as_str()).count(), 1, "{text}");
    }
}

#[tokio::test]
async fn check_says_where_capture_by_statement_is_not_possible() {
    let rig = Rig::start(TABLES).await;
    let toml = DATASETS.replace(
        "watch = [{ table = \"products\", key = { id = \"id\" } }]",
        "watch = [{ table = \"products\", capture = \"statement\", key = { id = \"id\" } }]",
    );
    let toml = toml.replace(
        "watch = [{ table = \"products\", key = { price = \"price\" } }]",
        "watch = [{ table = \"products\", capture = \"statement\", key = { price = \"price\" } }]",
    );
    let cli = Cli::new(&rig, &toml);
    cli.says(&["migrate"], 0, &[]);
    cli.says(&["check"], 0, &["configuration is right"]);
    let is_by_statement = async || {
        let mut session = rig.postgres.session().await.unwrap();
        session.text("select mode from cachekeeper.capture").await.unwrap().as_deref() == Some("statement")
    };
    assert!(is_by_statement().await);
    let covered = async |may_install: bool| {
        let found = coverage::look(&rig.context(&toml), may_install).await.unwrap();
        found.gaps().map(|(_, reason)| reason.clone()).collect::<Vec<_>>()
    };
    assert_eq!(covered(false).await, Vec::<String>::new());

    let subscribe = "create subscription feed connection 'dbname=nowhere' publication p with (connect = false, slot_name = none);
        insert into pg_subscription_rel select oid, 'products'::regclass, 'r' from pg_subscription";
    rig.postgres.execute("create role loader; alter role loader set temp_file_limit = '20MB'").await.unwrap();
    let says = "products cannot be captured by statement: temp_file_limit of loader is 20MB";
    let text = cli.says(&["check"], 78, &[says, "2 errors"]);
    assert_eq!(text.matches("would be missed").count(), 0, "{text}");
    rig.postgres.execute("alter role loader reset temp_file_limit").await.unwrap();
    cli.says(&["check"], 0, &[]);
    let mut session = rig.postgres.session().await.unwrap();
    session.execute("set allow_system_table_mods = on").await.unwrap();
    for statement in subscribe.split(';') {
        session.execute(statement).await.unwrap();
    }
    let says = "products receives the changes of the subscription feed, for which no statement trigger fires";
    cli.says(&["check"], 78, &[says, "the subscription feed, which is disabled"]);
    let gaps = covered(false).await;
    assert!(gaps.len() == 2 && gaps[0].contains(says), "{gaps:?}");
    // A worker captures by row instead, and all is covered again.
    assert_eq!(covered(true).await, Vec::<String>::new());
    assert!(!is_by_statement().await);
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

    // A schema that the role may not use, in every verb.
    let sql = "create schema apart; create table apart.things (id int primary key); grant select on apart.things to reader";
    rig.postgres.execute(sql).await.unwrap();
    let apart = "[dataset.thing]\nquery = \"select id from apart.things\"\nkey = \"thing:{id}\"\nwarm = {}\n\
                 write = { statement = \"insert into apart.things values (:id)\" }\n";
    as_reader(apart).says(
        &["check"],
        78,
        &["the role reader may not run it: permission denied for schema apart", "grant usage", ":2:9\n"],
    );
    for verb in [&["warm"][..], &["audit"], &["write", "thing", "id=1"], &["refresh", "thing:1"]] {
        as_reader(apart).says(verb, 78, &["permission denied for schema apart"]);
    }
    as_reader(apart).says(&["status"], 1, &["permission denied for schema apart"]);

    // What a worker needs of the schema, right by right.
    for right in
        ["select on cachekeeper.outbox", "delete on cachekeeper.outbox", "update on cachekeeper.feed"]
    {
        rig.postgres.execute(&format!("revoke {right} from reader")).await.unwrap();
        let says = format!("the role reader lacks {right}");
        as_reader(DATASETS).says(&["check"], 78, &[&says, "migrate --grant reader", "1 error"]);
        rig.postgres.execute(&format!("grant {right} to reader")).await.unwrap();
    }
    as_reader(DATASETS).says(&["check"], 0, &["configuration is right"]);
    rig.postgres.execute("revoke usage on schema cachekeeper from public, reader").await.unwrap();
    as_reader(DATASETS).says(
        &["check"],
        78,
        &["the role reader lacks delete on cachekeeper.applied", "1 error"],
    );
    rig.postgres.execute("grant usage on schema cachekeeper to reader").await.unwrap();
    rig.postgres.execute("revoke temporary on database postgres from public").await.unwrap();
    as_reader(DATASETS).says(
        &["check"],
        78,
        &["cannot be found out: permission denied to create temporary", "2 errors"],
    );
    rig.postgres.execute("grant temporary on database postgres to public").await.unwrap();
    let mut client = rig.client().await;
    let user = ["SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-info"];
    let _: () = redis::cmd("ACL").arg(&user).query_async(&mut client).await.unwrap();
    let mut hidden = Cli::new(&rig, DATASETS);
    let url = hidden.environment.iter_mut().find(|(name, _)| name.ends_with("REDIS__URL")).unwrap();
    url.1 = url.1.replace("redis://", "redis://app:pw@");
    hidden.says(
        &["check"],
        0,
        &["warning: the user in Redis lacks the command info (+info)", "configuration is right"],
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
    for verb in [&["check"][..], &["warm"], &["audit"], &["migrate"]] {
        let text = closed.says(verb, 69, &["error: "]);
        assert!(text.contains("cannot connect to 127.0.0.1:1: connection refused"), "{text}");
        // Each dataset that was to be warmed says it.
        let expected = if verb == ["warm"] { 2 } else { 1 };
        assert_eq!(text.matches("error: ").count(), expected, "{text}");
    }
    let mut nowhere = Cli::new(&rig, DATASETS);
    let url = nowhere.environment.iter_mut().find(|(name, _)| name.ends_with("POSTGRES__URL")).unwrap();
    let (server, _) = url.1.rsplit_once('/').unwrap();
    url.1 = format!("{server}/nowhere");
    let text = nowhere.says(
        &["check"],
        78,
        &["database \"nowhere\" does not exist", "CACHEKEEPER__POSTGRES__URL", "1 error"],
    );
    assert!(!text.contains("at line"), "{text}");
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
        1,
        &["leader     none: no worker follows the changes", "worker     its admin listener is off"],
    );
    let broken =
        Cli::new(&rig, &DATASETS.replace("select id, name, price from products", "select id from nowhere"));
    broken.says(
        &["status"],
        1,
        &["dataset    product (product:{id})", "cannot work: Postgres does not accept the query"],
    );
}

/// Where only the types tell that keys can coincide, nothing that works with them goes on as if they could not.
#[tokio::test]
async fn keys_that_only_types_tell_apart_are_refused_by_every_verb() {
    let rig = Rig::start(TABLES).await;
    let dataset = |name: &str, columns: &str, key: &str| {
        format!(
            "[dataset.{name}]\nquery = \"select {columns} from products\"\nkey = \"by:{key}\"\nformat = \"json\"\nwarm = {{}}\n\
             watch = [{{ table = \"products\", tag = \"all\" }}]\ntags = [\"all\"]\n"
        )
    };
    let both = dataset("one", "id, name", "{name}") + &dataset("two", "id, name, price", "{name}:{id}");
    rig.postgres.execute("update products set name = 'n1:1' where id = 2").await.unwrap();
    let cli = Cli::new(&rig, &both);
    let says = "keys by:{name}:{id} and by:{name} of dataset one could coincide";
    cli.says(&["check"], 78, &[says, "begin each dataset's keys with a prefix of its own"]);
    cli.says(&["migrate"], 1, &[says, "dataset one: changes are captured"]);
    cli.says(&["status"], 1, &[says]);
    cli.says(&["warm", "two"], 78, &[says]);
    let write = "[dataset.two.write]\nstatement = \"update products set price = :price where id = :id\"\n";
    let writing = Cli::new(&rig, &format!("{both}{write}"));
    writing.says(&["write", "two", "id=3", "price=12345"], 78, &[says]);
    let written = rig
        .postgres
        .execute("do $$ begin assert not exists (select from products where price = 12345); end $$")
        .await;
    written.unwrap();
    let worker = Worker::start(rig.config(&both)).await.unwrap();
    wait_until("the worker says so", || async {
        let coverage = worker.context.coverage().ok_or("nothing is known yet")?;
        let gaps: Vec<_> = coverage.gaps().collect();
        match gaps.as_slice() {
            [(name, reason)] if *name == "two" && *reason == says => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let mut client = rig.client().await;
    wait_until("the other dataset is there", || {
        let mut client = client.clone();
        async move {
            let keys: Vec<String> = client.keys("by:*").await.map_err(|error| error.to_string())?;
            if keys.len() == 200 { Ok(()) } else { Err(format!("{}", keys.len())) }
        }
    })
    .await;
    let value: String = client.get("by:n1:1").await.unwrap();
    assert!(!value.contains("price"), "{value}");
    // A change of either: the entry stays that of the first.
    rig.postgres.execute("update products set price = price + 1 where id <= 2").await.unwrap();
    let now = worker.context.postgres.poll().await.unwrap();
    wait_until("the watermark passes without the second", || async {
        let watermark = worker.context.redis.watermark().await.unwrap().ok_or("no watermark")?;
        let at: cachekeeper_protocol::stamp::Snapshot = watermark.snapshot.parse().unwrap();
        if now.snapshot.stamp() <= at.stamp() && watermark.not_covered == ["two"] {
            Ok(())
        } else {
            Err(format!("{watermark:?}"))
        }
    })
    .await;
    let value: String = client.get("by:n1:1").await.unwrap();
    assert!(!value.contains("price"), "{value}");
    // Keys that both could have are keys of the first, also for whoever scans: nothing is left of rows that are gone.
    cli.says(&["refresh", "by:n1:1"], 0, &["1 stored again"]);
    cli.says(&["invalidate", "--dataset", "one"], 0, &[]);
    rig.postgres
        .execute("truncate products; insert into products select n, 'm' || n, null, null, n from generate_series(1, 50) n")
        .await
        .unwrap();
    wait_until("only what is there is left", || {
        let mut client = client.clone();
        async move {
            let keys: Vec<String> = client.keys("by:*").await.map_err(|error| error.to_string())?;
            let is_right = keys.len() == 50 && keys.iter().all(|key| key.starts_with("by:m"));
            if is_right { Ok(()) } else { Err(format!("{} {:?}", keys.len(), keys.first())) }
        }
    })
    .await;
    assert!(worker.stop().await);
    // Types that can hold no colon keep such keys apart.
    let apart = dataset("one", "id, name", "{id}") + &dataset("two", "id, name, price", "{id}:{price}");
    let dates = dataset("one", "price::numeric as n, id", "{n}")
        + &dataset("two", "price::numeric as n, id", "{n}:{id}");
    for toml in [apart, dates] {
        Cli::new(&rig, &toml).says(&["check"], 0, &["configuration is right"]);
    }
}

#[tokio::test]
async fn a_query_with_parameters_is_named_at_its_place() {
    let rig = Rig::start(TABLES).await;
    let toml = DATASETS.replace("price from products\"", "price from products where id > $1\"");
    Cli::new(&rig, &toml).says(&["check"], 78, &["the query has parameters ($1)", ":3:62", "where id > $1"]);
}
