//! Installing and removing: beside writers, for several owners, by hand, and without a rest (faults B4, C1, C3).

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use cachekeeper::app::Worker;
use cachekeeper_config::Config;
use cachekeeper_engine::coverage;
use cachekeeper_testkit::servers::{Postgres, Session};
use futures_util::future::join_all;

use crate::feed::{agrees, caught_up, ready};
use crate::support::{Cli, Rig, wait_until};

const TABLES: &str = "create table products (id int primary key, name text, price int);
    insert into products select n, 'product ' || n, n from generate_series(1, 9) n;";

fn dataset(table: &str) -> String {
    format!(
        "[dataset.{0}]\nquery = \"select id, name, price from {table}\"\nkey = \"{0}:{{id}}\"\nformat = \"json\"\nwarm = {{}}\n\
         watch = [{{ table = \"{table}\", key = {{ id = \"id\" }} }}]\n",
        table.rsplit('.').next().unwrap()
    )
}

/// The command line as this role in this database.
fn cli(rig: &Rig, toml: &str, role: &str, database: &str) -> Cli {
    let mut cli = Cli::new(rig, toml);
    let url = cli.environment.iter_mut().find(|(name, _)| name.ends_with("POSTGRES__URL")).unwrap();
    url.1 = url_of(rig, role, database);
    cli
}

fn url_of(rig: &Rig, role: &str, database: &str) -> String {
    rig.postgres.url_of(database).replace("postgres@", &format!("{role}@"))
}

fn psql(url: &str, sql: &str) {
    let mut psql = Command::new(Postgres::program("psql").unwrap());
    let done = psql.args(["-q", "-X", "-v", "ON_ERROR_STOP=1", "-c", sql]).arg(url).output().unwrap();
    assert!(done.status.success(), "{}\n{sql}", String::from_utf8_lossy(&done.stderr));
}

async fn text(url: &str, sql: &str) -> String {
    Session::open(url).await.unwrap().text(sql).await.unwrap().unwrap_or_default()
}

/// It tries again, keeps no writer waiting meanwhile, and says in the end who holds what (faults B4).
#[tokio::test]
async fn migrate_beside_an_open_transaction_waits_for_it_and_nobody_waits_for_migrate() {
    let rig = Rig::start(TABLES).await;
    let cli = Cli::new(&rig, &dataset("products"));
    let mut idle = rig.postgres.session().await.unwrap();
    idle.execute("set application_name = 'reports'; begin; update products set price = 0 where id = 1")
        .await
        .unwrap();
    let start = |wait: &str| {
        let mut command = cli.command(&["migrate", "--wait", wait]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut writer = rig.postgres.session().await.unwrap();
    writer.execute("set lock_timeout = '100ms'").await.unwrap();
    let mut migrate = start("2s");
    let mut written = 0;
    let code = loop {
        writer.execute("update products set price = price + 1 where id = 2").await.unwrap();
        written += 1;
        if let Some(status) = migrate.try_wait().unwrap() {
            break status.code().unwrap();
        }
    };
    let mut said = String::new();
    migrate.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(code == 1 && 1 < written, "{code} {written}\n{said}");
    for part in [
        "waiting for it, at most",
        "not finished within",
        "(reports, user postgres, idle in transaction) has held a lock on products since",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert_eq!(said.matches("waiting for it").count(), 1, "{said}");

    // Whoever ends within the limit has only been waited for.
    let mut migrate = start("60s");
    let mut lines = BufReader::new(migrate.stderr.take().unwrap()).lines();
    let waiting = lines.next().unwrap().unwrap();
    assert!(waiting.contains("waiting for it"), "{waiting}");
    idle.execute("commit").await.unwrap();
    let mut said = String::new();
    migrate.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(migrate.wait().unwrap().code(), Some(0), "{said}");
    assert!(said.contains("dataset products: changes are captured"), "{said}");
}

/// A transaction that was prepared holds its locks without a session.
#[tokio::test]
async fn who_holds_a_lock_is_named_also_where_it_is_prepared() {
    let rig = Rig::start_with(TABLES, &["max_prepared_transactions=5"], &[]).await;
    let cli = Cli::new(&rig, &dataset("products"));
    let mut session = rig.postgres.session().await.unwrap();
    let prepare = "begin; update products set price = 0 where id = 1; prepare transaction 'nightly run'";
    session.execute(prepare).await.unwrap();
    cli.says(
        &["migrate", "--wait", "1s"],
        1,
        &["the prepared transaction nightly run has held a lock on products since"],
    );
    session.execute("rollback prepared 'nightly run'").await.unwrap();
    cli.says(&["migrate", "--wait", "60s"], 0, &["changes are captured"]);
}

/// Removing has the same rule. What it could not have keeps its triggers, and the schema stays with them.
#[tokio::test]
async fn uninstall_beside_an_open_transaction_keeps_no_writer_waiting() {
    let rig = Rig::start(TABLES).await;
    let cli = Cli::new(&rig, &dataset("products"));
    cli.says(&["migrate"], 0, &["changes are captured"]);
    let mut idle = rig.postgres.session().await.unwrap();
    idle.execute("set application_name = 'reports'; begin; update products set price = 0 where id = 1")
        .await
        .unwrap();
    let mut writer = rig.postgres.session().await.unwrap();
    writer.execute("set lock_timeout = '100ms'").await.unwrap();
    let mut command = cli.command(&["migrate", "--uninstall", "--yes"]);
    let mut removing = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let code = loop {
        writer.execute("update products set price = price + 1 where id = 2").await.unwrap();
        if let Some(status) = removing.try_wait().unwrap() {
            break status.code().unwrap();
        }
    };
    let mut said = String::new();
    removing.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    removing.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(code == 1 && said.contains("reports"), "{code}: {said}");
    let captured = "select count(*)::text from cachekeeper.outbox";
    assert_ne!(text(&rig.postgres.url(), captured).await, "0", "what has triggers has its outbox");
    idle.execute("commit").await.unwrap();
    cli.says(&["migrate", "--uninstall", "--yes"], 0, &["the schema cachekeeper is removed"]);
}

/// The blocks of code of a section of `docs/installing.md`: the language, and the text.
fn blocks(section: &str) -> Vec<(String, String)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/installing.md");
    let page = std::fs::read_to_string(file).unwrap();
    let section = page.split("\n## ").find(|part| part.starts_with(section)).unwrap();
    let inside = section.split("```").skip(1).step_by(2);
    inside
        .map(|block| {
            block.split_once('\n').map(|(language, text)| (language.to_owned(), text.to_owned())).unwrap()
        })
        .collect()
}

/// `docs/installing.md` is followed word by word (faults C3).
#[tokio::test]
async fn several_owners_install_as_the_page_says() {
    let rig = Rig::start("").await;
    rig.postgres
        .execute("create role admin login createrole createdb; create role stock login; create role sales login; create role cache login")
        .await
        .unwrap();
    rig.postgres.execute("create database shop owner admin").await.unwrap();
    let as_role = |role: &str| url_of(&rig, role, "shop");
    psql(
        &as_role("postgres"),
        "create schema inventory; alter schema inventory owner to admin;
         create type inventory.kind as enum ('a', 'b'); alter type inventory.kind owner to admin;
         create table inventory.items (id int primary key, name inventory.kind, price int); alter table inventory.items owner to stock;
         insert into inventory.items values (1, 'a', 1);
         create table inventory.orders (id int primary key, name text, price int) partition by range (id);
         create table inventory.orders_1 partition of inventory.orders for values from (0) to (100);
         alter table inventory.orders owner to sales; alter table inventory.orders_1 owner to sales;
         grant usage on schema inventory to stock, sales, cache; grant select on all tables in schema inventory to cache",
    );
    let toml = format!("{}{}", dataset("inventory.items"), dataset("inventory.orders"));
    let cli = cli(&rig, &toml, "cachekeeper_install", "shop");
    let mut said = String::new();
    for (language, block) in blocks("Several owners") {
        if language == "sh" {
            let (line, code) = block.trim().split_once("# ends with ").unwrap();
            let arguments: Vec<&str> = line.split_whitespace().skip(1).collect();
            said = cli.says(&arguments, code.parse().unwrap(), &[]);
            continue;
        }
        let role = block.lines().next().unwrap().strip_prefix("-- as ").unwrap();
        if !block.contains("has named") {
            psql(&as_role(role), &block);
            continue;
        }
        let named = said.lines().find_map(|line| line.split_once(&format!("; as {role}, run: ")));
        let (_, statements) = named.unwrap_or_else(|| panic!("nothing for {role}: {said}"));
        psql(&as_role(role), statements);
    }
    assert!(
        said.contains("dataset items: changes are captured")
            && said.contains("dataset orders: changes are captured"),
        "{said}"
    );
    psql(&as_role("stock"), "update inventory.items set price = 2");
    psql(&as_role("sales"), "insert into inventory.orders values (7, 'x', 1); truncate inventory.orders_1");
    let captured = "select string_agg(coalesce(array_to_string(keys, ','), 'all'), ' ' order by xid, at) from cachekeeper.outbox";
    assert_eq!(text(&as_role("postgres"), captured).await, "1 7 all");
    assert!(said.contains("with the rights of cachekeeper_install"), "{said}");

    // The shorter way: one role that is a member of all.
    cli.says(&["migrate", "--uninstall", "--yes"], 0, &["the schema cachekeeper is removed"]);
    let triggers = "select count(*)::text from pg_trigger where tgname like 'cachekeeper%'";
    assert_eq!(text(&as_role("postgres"), triggers).await, "0");
    psql(&as_role("admin"), "grant stock, sales to cachekeeper_install");
    cli.says(
        &["migrate"],
        0,
        &["dataset items: changes are captured", "dataset orders: changes are captured"],
    );
}

/// What is printed and run by hand is what `migrate` does.
#[tokio::test]
async fn what_is_printed_makes_the_same_as_migrate() {
    let rig = Rig::start("").await;
    rig.postgres.execute("create role shop login; create role cache login").await.unwrap();
    let toml = format!(
        "{}{}",
        dataset("products"),
        dataset("notes").replace("\" } }]", "\" }, capture = \"statement\" }]")
    );
    for database in ["done", "printed"] {
        rig.postgres.execute(&format!("create database {database} owner shop")).await.unwrap();
        psql(
            &url_of(&rig, "shop", database),
            &format!("{TABLES} create table notes (id int, name text, price int) partition by list (id);
                create table notes_1 partition of notes for values in (1); grant select on products, notes to cache"),
        );
    }
    cli(&rig, &toml, "shop", "done").says(&["migrate", "--grant", "cache"], 0, &["changes are captured"]);
    let worker = cli(&rig, &toml, "cache", "printed");
    let (code, script) = worker.run(&["migrate", "--print"]);
    assert_eq!(code, 0, "{script}");
    psql(&url_of(&rig, "shop", "printed"), &script);

    // Everything that the catalogs say, with the tables' numbers taken out.
    let mut found = Vec::new();
    for database in ["done", "printed"] {
        let url = rig.postgres.url_of(database);
        let mut dump = Command::new(Postgres::program("pg_dump").unwrap());
        let dump = dump.arg("-s").arg(&url).output().unwrap();
        let rows = "select string_agg(v.text, E'\\n' order by v.text) from (
            select concat_ws(' ', c.id, c.root::regclass, c.columns, c.version, c.mode, c.is_on, c.gaps, c.definition) from cachekeeper.capture c
            union all select concat_ws(' ', m.version, m.description, m.success, m.checksum) from cachekeeper._sqlx_migrations m
            union all select concat_ws(' ', u.namespace, u.root::regclass) from cachekeeper.used_by u
            union all select concat_ws(' ', f.horizon, f.overflow, f.marker) from cachekeeper.feed f
            union all select s.last_value || ' ' || s.is_called from cachekeeper.capture_id_seq s) v(text)";
        let mut whole = String::from_utf8(dump.stdout).unwrap() + &text(&url, rows).await;
        for table in ["products", "notes"] {
            let oid = text(&url, &format!("select '{table}'::regclass::oid::text")).await;
            whole = whole.replace(&format!("cachekeeper_{oid}"), &format!("cachekeeper_{table}"));
        }
        // A dump begins and ends with a random word.
        let lines =
            whole.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
        found.push(lines.map(str::to_owned).collect::<Vec<_>>());
    }
    let (done, printed) = (&found[0], &found[1]);
    for (done, printed) in done.iter().zip(printed) {
        assert_eq!(done, printed);
    }
    assert_eq!(done.len(), printed.len());
    assert!(done.iter().any(|line| line.contains("ENABLE ALWAYS TRIGGER cachekeeper_products")));

    // The worker's role finds nothing to do, and the worker works.
    worker.says(
        &["migrate"],
        0,
        &["dataset notes: changes are captured", "dataset products: changes are captured"],
    );
    worker.says(&["migrate", "--print"], 0, &["-- nothing is to be done"]);
    let environment = worker.environment.iter().cloned().collect();
    let config = Config::load(Path::new("test.toml"), toml.clone(), &environment).unwrap().0;
    let running = Worker::start(config).await.unwrap();
    ready(&running).await;
    psql(&url_of(&rig, "shop", "printed"), "update products set price = 99 where id = 4");
    let client = rig.client().await;
    wait_until("the change arrives", async || {
        let value: Option<String> = redis::AsyncCommands::get(&mut client.clone(), "products:4")
            .await
            .map_err(|error| error.to_string())?;
        if value.as_ref().is_some_and(|value| value.contains("99")) {
            Ok(())
        } else {
            Err(format!("{value:?}"))
        }
    })
    .await;
    running.stop().await;
}

/// A namespace that leaves takes its trigger functions along; the last one leaves nothing (faults C6).
#[tokio::test]
async fn what_is_uninstalled_leaves_no_rest_and_others_go_on() {
    let rig =
        Rig::start(&format!("{TABLES} create table notes (id int primary key, name text, price int)")).await;
    let named = |namespace: &str, table: &str| {
        let mut cli = Cli::new(&rig, &dataset(table));
        let name = cli.environment.iter_mut().find(|(name, _)| name.ends_with("NAMESPACE")).unwrap();
        name.1 = namespace.to_owned();
        cli
    };
    let (first, second) = (named("first", "products"), named("second", "notes"));
    for cli in [&first, &second] {
        cli.says(&["migrate"], 0, &["changes are captured"]);
    }
    let url = rig.postgres.url();
    let of_captures = "select string_agg(o, ' ' order by o) from (
        select proname from pg_proc where proname ~ '^(capture|truncate)_[0-9]+$' union all
        select relname from pg_class where relname ~ '^(uncaptured|whole)_[1-9][0-9]*$' union all
        select 'row_' || id from cachekeeper.capture union all
        select distinct 'namespace_' || namespace from cachekeeper.used_by union all
        select 'trigger_' || tgrelid::regclass from pg_trigger where tgname like 'cachekeeper%') v(o)";
    first.says(&["migrate", "--uninstall", "--yes"], 0, &["the namespace \"first\" is removed"]);
    assert_eq!(
        text(&url, of_captures).await,
        "capture_2 namespace_second row_2 trigger_notes trigger_notes truncate_2 uncaptured_2 whole_2"
    );
    rig.postgres
        .execute("insert into notes values (5, 'x', 1); update products set price = 3")
        .await
        .unwrap();
    let captured = "select string_agg(array_to_string(keys, ','), ' ') from cachekeeper.outbox";
    assert_eq!(text(&url, captured).await, "5");
    rig.postgres.execute("create schema cachekeeper_replaced").await.unwrap();
    second.says(&["migrate", "--uninstall", "--yes"], 0, &["the schema cachekeeper is removed"]);
    let left = "select (select count(*) from pg_namespace where nspname like 'cachekeeper%') + (select count(*) from pg_trigger where tgname like 'cachekeeper%')
        + (select count(*) from pg_proc where proname ~ '^(capture|truncate)_[0-9]+$')";
    assert_eq!(text(&url, &format!("select ({left})::text")).await, "0");
}

/// Each finds the others' work done, and nobody says that it failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_install_at_the_same_time_hinder_none() {
    let rig = Rig::start(TABLES).await;
    let toml = dataset("products");
    for round in 0..6 {
        let drop = "do $$ declare one name; begin
            for one in select tgname from pg_trigger where tgrelid = 'products'::regclass and tgname like 'cachekeeper%' loop
                execute format('drop trigger %I on products', one);
            end loop; end $$";
        rig.postgres.execute(drop).await.unwrap();
        let looks = (0..6).map(|_| {
            let context = rig.context(&toml);
            async move {
                loop {
                    let coverage = coverage::look(&context, true).await.unwrap();
                    // Another one holds the table at this moment, which everybody waits for.
                    if !coverage.gaps().any(|(_, gap)| gap.contains(coverage::TRYING_AGAIN)) {
                        return coverage;
                    }
                }
            }
        });
        for coverage in join_all(looks).await {
            let gaps: Vec<_> = coverage.gaps().collect();
            assert!(gaps.is_empty(), "round {round}: {gaps:?}");
        }
    }
}

/// Docs, upgrading: whoever still runs the old version goes on with what a newer one's `migrate` has made, also from a start on.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_with_the_schema_of_a_newer_version() {
    let rig = Rig::start(TABLES).await;
    let toml = dataset("products");
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    ready(&worker).await;
    rig.postgres
        .execute(
            "create table cachekeeper.of_a_newer_version (id int primary key, what text);
             alter table cachekeeper.outbox add column of_a_newer_version text;
             insert into cachekeeper._sqlx_migrations (version, description, success, checksum, execution_time)
             select version + 1, 'newer', true, checksum, execution_time from cachekeeper._sqlx_migrations
             order by version desc limit 1",
        )
        .await
        .unwrap();
    rig.postgres.execute("update products set name = 'while it runs' where id = 1").await.unwrap();
    caught_up(&worker).await;
    agrees(&worker).await;
    worker.stop().await;
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    ready(&worker).await;
    rig.postgres.execute("update products set name = 'after its start' where id = 2").await.unwrap();
    caught_up(&worker).await;
    agrees(&worker).await;
    Cli::new(&rig, &toml).says(&["migrate"], 1, &["a newer version of Cachekeeper has made it"]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_give_the_right_to_temporary_views_gives_it_and_who_may_not_says_so() {
    let rig = Rig::start("").await;
    rig.postgres.execute("create role shop login; create role cache login").await.unwrap();
    let toml = dataset("products");
    for (database, owner) in [("own", "shop"), ("another", "postgres")] {
        for statement in [
            format!("create database {database} owner {owner}"),
            format!("revoke temporary on database {database} from public"),
            format!("grant create on database {database} to shop"),
        ] {
            rig.postgres.execute(&statement).await.unwrap();
        }
        psql(&rig.postgres.url_of(database), "grant create on schema public to shop");
        psql(&url_of(&rig, "shop", database), &format!("{TABLES} grant select on products to cache"));
    }
    let may = |database: &str| {
        let sql = format!("select has_database_privilege('cache', '{database}', 'temporary')::text");
        let url = rig.postgres.url_of(database);
        async move { text(&url, &sql).await }
    };
    let given =
        cli(&rig, &toml, "shop", "own").says(&["migrate", "--grant", "cache"], 0, &["changes are captured"]);
    assert!(!given.contains("TEMPORARY") && may("own").await == "true", "{given}");
    let statement = "grant temporary on database another to cache";
    cli(&rig, &toml, "shop", "another").run(&["migrate", "--grant", "cache"]);
    let (code, told) = cli(&rig, &toml, "shop", "another").run(&["migrate", "--grant", "cache"]);
    assert!(code == 1 && told.contains(statement) && may("another").await == "false", "{told}");
    psql(&rig.postgres.url_of("another"), statement);
    psql(&rig.postgres.url_of("another"), "grant temporary on database another to shop");
    let given = cli(&rig, &toml, "shop", "another").says(
        &["migrate", "--grant", "cache"],
        0,
        &["changes are captured"],
    );
    assert!(!given.contains("TEMPORARY"), "{given}");
}
