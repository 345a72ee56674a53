//! `migrate` finds and mends what it meets: schemas that were restored by half, lost objects, other people's (faults C2, D9).

use std::path::Path;
use std::process::Command;

use cachekeeper::app::Worker;
use cachekeeper_config::Config;
use cachekeeper_testkit::servers::{Postgres, Session};
use redis::AsyncCommands;

use crate::support::{Cli, Rig, wait_until};

const TABLES: &str = "create table products (id int primary key, name text, price int);
    insert into products select n, 'product ' || n, n from generate_series(1, 9) n;";
const DATASETS: &str = "
    [dataset.product]
    query = \"select id, name, price from products\"
    key = \"product:{id}\"
    format = \"json\"
    warm = {}
    watch = [{ table = \"products\", key = { id = \"id\" } }]
";
const OURS: &str = "select count(*)::text from pg_trigger t join pg_proc p on p.oid = t.tgfoid
    join pg_namespace n on n.oid = p.pronamespace where t.tgname like 'cachekeeper%' and n.nspname = 'cachekeeper'";

/// A database of its own, with the schema installed, and what was written to it.
struct Shop<'a> {
    rig: &'a Rig,
    name: String,
    cli: Cli,
}

impl<'a> Shop<'a> {
    async fn new(rig: &'a Rig, name: &str) -> Self {
        rig.postgres.execute(&format!("create database {name}")).await.unwrap();
        let mut cli = Cli::new(rig, DATASETS);
        let url = cli.environment.iter_mut().find(|(name, _)| name.ends_with("POSTGRES__URL")).unwrap();
        url.1 = rig.postgres.url_of(name);
        Self { rig, name: name.to_owned(), cli }
    }

    /// Installed, with a change in the outbox and a record of a command.
    async fn installed(rig: &'a Rig, name: &str) -> Self {
        let shop = Self::new(rig, name).await;
        shop.execute(TABLES).await;
        shop.cli.says(&["migrate"], 0, &["changes are captured"]);
        shop.execute(
            "update products set price = 1 where id = 1;
             insert into cachekeeper.applied (namespace, stream, id, digest, entry_ms, entry_seq, rows) values ('test', 's', 'order-1', 'd', 1, 0, 1)",
        )
        .await;
        shop
    }

    /// From now on the command line and the worker are this role.
    fn as_role(&mut self, role: &str) {
        let url = self.cli.environment.iter_mut().find(|(name, _)| name.ends_with("POSTGRES__URL")).unwrap();
        url.1 = url.1.replace("postgres@", &format!("{role}@"));
    }

    async fn execute(&self, sql: &str) {
        self.session().await.execute(sql).await.unwrap();
    }

    async fn text(&self, sql: &str) -> String {
        self.session().await.text(sql).await.unwrap().unwrap_or_default()
    }

    async fn session(&self) -> Session {
        Session::open(&self.rig.postgres.url_of(&self.name)).await.unwrap()
    }

    fn config(&self) -> Config {
        let environment = self.cli.environment.iter().cloned().collect();
        Config::load(Path::new("test.toml"), DATASETS.to_owned(), &environment).unwrap().0
    }

    /// What `pg_dump` writes of it with these options.
    fn dump(&self, options: &[&str]) -> String {
        let mut dump = Command::new(Postgres::program("pg_dump").unwrap());
        let done = dump.args(options).arg(self.rig.postgres.url_of(&self.name)).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    /// As `psql` restores it: statement by statement, going on after errors.
    fn restore(&self, dump: &str) {
        let file = std::env::temp_dir().join(format!("cachekeeper-dump-{:016x}.sql", rand::random::<u64>()));
        std::fs::write(&file, dump).unwrap();
        let mut psql = Command::new(Postgres::program("psql").unwrap());
        psql.args(["-q", "-X", "-f"]).arg(&file).arg(self.rig.postgres.url_of(&self.name));
        assert!(psql.output().unwrap().status.success());
        drop(std::fs::remove_file(&file));
    }

    /// A worker that meets it says that `migrate` is needed, `migrate` says these things and mends it, and changes arrive.
    async fn is_mended(&self, says: &[&str]) {
        let worker = self.worker_names_migrate().await;
        self.cli.says(&["check"], 78, &["`cachekeeper migrate`"]);
        let text = self.cli.says(&["migrate"], 0, says);
        self.works(&worker, &text).await;
        worker.stop().await;
    }

    async fn worker_names_migrate(&self) -> Worker {
        let _: () = redis::cmd("FLUSHALL").query_async(&mut self.rig.client().await).await.unwrap();
        let worker = Worker::start(self.config()).await.unwrap();
        wait_until(&format!("{}: the worker names migrate", self.name), async || {
            let facts = worker.health.facts();
            let mut reasons = worker.health.reasons();
            reasons.extend(facts.uncovered.into_values());
            let is_named = reasons.iter().any(|reason| reason.contains("`cachekeeper migrate`"));
            if is_named { Ok(()) } else { Err(format!("{reasons:?}")) }
        })
        .await;
        worker
    }

    async fn works(&self, worker: &Worker, said: &str) {
        let what = format!("{}: ready\n{said}", self.name);
        wait_until(&what, async || {
            let (reasons, uncovered) = (worker.health.reasons(), worker.health.facts().uncovered);
            let is_right = reasons.is_empty() && uncovered.is_empty();
            if is_right { Ok(()) } else { Err(format!("{reasons:?} {uncovered:?}")) }
        })
        .await;
        self.execute("update products set price = 77 where id = 3").await;
        let mut client = self.rig.client().await;
        wait_until(&format!("{}: the change arrives", self.name), async || {
            let value: Option<String> =
                client.clone().get("product:3").await.map_err(|error| error.to_string())?;
            if value.as_ref().is_some_and(|value| value.ends_with("\"price\":77}")) {
                Ok(())
            } else {
                Err(format!("{value:?}"))
            }
        })
        .await;
        let _: () = client.del("nothing").await.unwrap();
        assert_eq!(self.text(OURS).await, "2", "{}: triggers", self.name);
        let (code, again) = self.cli.run(&["migrate"]);
        assert!(code == 0 && !again.contains("mended"), "{}: {code}\n{again}", self.name);
    }
}

/// `CACHEKEEPER_BLESS=1` writes the description anew, after a new migration.
#[tokio::test]
async fn the_description_of_the_schema_is_what_the_migrations_make() {
    let rig = Rig::start("").await;
    let found = rig.context("").postgres.describe_schema().await.unwrap().join("\n") + "\n";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/schema.txt");
    if std::env::var_os("CACHEKEEPER_BLESS").is_some() {
        std::fs::write(&file, &found).unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(&file).unwrap());
}

/// Each harm in a database of its own, with what `migrate` says of it.
async fn are_mended(cases: &[(&str, &str, &str)]) {
    let rig = Rig::start("").await;
    for (name, harm, says) in cases {
        let shop = Shop::installed(&rig, name).await;
        shop.execute(harm).await;
        shop.is_mended(&[says]).await;
        let kept = "select count(*)::text from cachekeeper.applied";
        let expected = if *name == "renamed" { "0" } else { "1" };
        assert_eq!(shop.text(kept).await, expected, "{name}: what was applied is known still");
    }
}

#[tokio::test]
async fn what_is_lost_of_the_schema_is_mended() {
    are_mended(&[
        ("no_outbox", "drop table cachekeeper.outbox", "table outbox was missing"),
        (
            "no_sequences",
            "drop sequence cachekeeper.outbox_count, cachekeeper.uncaptured, cachekeeper.uncaptured_1",
            "sequence outbox_count was missing",
        ),
        (
            "no_unlogged",
            "drop table cachekeeper.outbox, cachekeeper.incarnation",
            "table incarnation was missing",
        ),
        ("no_feed", "delete from cachekeeper.feed", "the row of feed was missing"),
        (
            "no_record",
            "drop table cachekeeper._sqlx_migrations, cachekeeper.used_by, cachekeeper.outbox",
            "table used_by was missing",
        ),
    ])
    .await;
}

/// What was replaced and holds something that is not ours is in nobody's way when the schema is damaged again.
#[tokio::test]
async fn a_second_damage_is_mended_too() {
    let rig = Rig::start("").await;
    let shop = Shop::installed(&rig, "twice").await;
    shop.execute("alter table cachekeeper.outbox rename to outbox_gone").await;
    shop.is_mended(&["table outbox was missing"]).await;
    for name in ["cachekeeper_replaced_2", "cachekeeper_replaced_3"] {
        shop.execute("create table cachekeeper.mine (n int); drop table cachekeeper.outbox").await;
        shop.is_mended(&["table outbox was missing", name]).await;
    }
}

#[tokio::test]
async fn what_is_changed_in_the_schema_is_mended() {
    are_mended(&[
        ("no_column", "alter table cachekeeper.feed drop column marker", "column feed.marker was missing"),
        (
            "more",
            "alter table cachekeeper.outbox add column who text not null default '', add check (version < 0) not valid; \
             alter table cachekeeper.feed drop column horizon_in",
            "column outbox.who does not belong there",
        ),
        (
            "two_lives",
            "alter table cachekeeper.incarnation drop constraint incarnation_pkey; \
             insert into cachekeeper.incarnation (id, started, db) select gen_random_uuid(), started, db from cachekeeper.incarnation",
            "constraint of incarnation PRIMARY KEY (only_row) was missing",
        ),
        ("renamed", "alter schema cachekeeper rename to elsewhere", "changes are captured"),
    ])
    .await;
}

/// A dump without privileges: the worker's own role has lost its rights.
#[tokio::test]
async fn a_role_that_has_lost_its_rights_names_who_gives_them() {
    let rig = Rig::start("").await;
    rig.postgres.execute("create role reader login").await.unwrap();
    let mut shop = Shop::installed(&rig, "rights").await;
    shop.execute("grant select on products to reader").await;
    shop.cli.says(&["migrate", "--grant", "reader"], 0, &[]);
    shop.execute("revoke all on all tables in schema cachekeeper from reader").await;
    let owner = shop.cli.environment.clone();
    shop.as_role("reader");
    let worker = Worker::start(shop.config()).await.unwrap();
    wait_until("it names the command", async || {
        let reasons = worker.health.reasons();
        let is_named = reasons.iter().any(|reason| reason.contains("`cachekeeper migrate --grant ROLE`"));
        if is_named { Ok(()) } else { Err(format!("{reasons:?}")) }
    })
    .await;
    let reader = std::mem::replace(&mut shop.cli.environment, owner);
    let text = shop.cli.says(&["migrate", "--grant", "reader"], 0, &[]);
    // Nothing is left to be done, so no right to write is needed.
    shop.cli.environment = reader;
    shop.works(&worker, &text).await;
    worker.stop().await;
}

/// What a worker that owns the tables mends by itself, or need not know of; `migrate` says it.
#[tokio::test]
async fn what_belongs_to_no_table_is_taken_away() {
    let rig = Rig::start("").await;
    let other = "create table other (like products including all); insert into other select * from products;
        create trigger cachekeeper_1 after insert or update or delete on other for each row execute function cachekeeper.capture_1();
        alter table other enable always trigger cachekeeper_1;";
    for (name, harm, says) in [
        (
            "another_table",
            format!("{other} drop table products; alter table other rename to products"),
            "was captured under the number of a table that is not there",
        ),
        (
            "another_root",
            format!(
                "{other} drop table products; alter table other rename to products; create table x (id int);
                update cachekeeper.capture set root = 'x'::regclass"
            ),
            "had triggers of another table",
        ),
        ("no_marker", "drop sequence cachekeeper.uncaptured_1".to_owned(), "changes are captured"),
        (
            "higher",
            "insert into cachekeeper.outbox (xid, capture, version, keys) values ('4000000000', 1, 1, '{5}')"
                .to_owned(),
            "rows of the outbox came from another server",
        ),
    ] {
        let shop = Shop::installed(&rig, name).await;
        shop.execute(&harm).await;
        let text = shop.cli.says(&["migrate"], 0, &[says]);
        let _: () = redis::cmd("FLUSHALL").query_async(&mut rig.client().await).await.unwrap();
        let worker = Worker::start(shop.config()).await.unwrap();
        shop.works(&worker, &text).await;
        worker.stop().await;
        let high = "select count(*)::text from cachekeeper.outbox where xid > '1000000000'";
        assert_eq!(shop.text(high).await, "0");
        let marker = "select count(*)::text from pg_class where relname ~ '^uncaptured_[1-9][0-9]*$'";
        assert_eq!(
            shop.text(marker).await,
            shop.text("select count(*)::text from cachekeeper.capture").await,
            "{name}"
        );
    }
}

/// Dumps: of the structure alone, without the schema, whole, and over a database that a worker is running on (faults D9).
#[tokio::test]
async fn restored_dumps_are_mended() {
    let rig = Rig::start("").await;
    let source = Shop::installed(&rig, "source").await;
    source
        .execute(
            "insert into cachekeeper.outbox (xid, capture, version, keys) values ('4000000000', 1, 1, '{5}')",
        )
        .await;
    for (name, options, says) in [
        ("structure", ["-s", "--no-comments"], "the record of applied migrations was empty"),
        ("without", ["-N", "cachekeeper"], "0001 incarnation: applied"),
    ] {
        let shop = Shop::new(&rig, name).await;
        shop.restore(&source.dump(&options));
        shop.execute(
            "insert into products select n, 'x', n from generate_series(1, 9) n on conflict do nothing",
        )
        .await;
        shop.is_mended(&[says]).await;
    }
    let whole = Shop::new(&rig, "whole").await;
    whole.restore(&source.dump(&[]));
    let text = whole.cli.says(
        &["migrate"],
        0,
        &["was captured in another database", "rows of the outbox came from another server"],
    );
    let _: () = redis::cmd("FLUSHALL").query_async(&mut rig.client().await).await.unwrap();
    let worker = Worker::start(whole.config()).await.unwrap();
    whole.works(&worker, &text).await;
    // The same once more while the worker runs: the tables are other ones afterwards.
    whole.restore(&source.dump(&["--clean", "--if-exists"]));
    let text = whole.cli.says(&["migrate"], 0, &[]);
    whole.works(&worker, &text).await;
    worker.stop().await;
}

/// Whoever may create things in the schema before or beside us must not have them run with our rights (faults C2).
#[tokio::test]
async fn the_things_of_others_in_the_schema_are_refused_before_any_of_them_runs() {
    let rig = Rig::start("").await;
    rig.postgres.execute("create role shop login; create role ordinary login").await.unwrap();
    let caught = "create table public.caught (who text); grant all on public.caught to public;";
    let clock = "create function cachekeeper.clock_timestamp() returns timestamptz language plpgsql as
        'begin insert into public.caught values (current_user); return pg_catalog.now(); end';
        create function cachekeeper.current_database() returns name language plpgsql as
        'begin insert into public.caught values (current_user); return ''x''; end';";
    let operator = "create function cachekeeper.same(oid, oid) returns boolean language plpgsql as
        'begin insert into public.caught values (current_user); return true; end';
        create operator cachekeeper.= (leftarg = oid, rightarg = oid, function = cachekeeper.same);";
    let record = "create function public.note() returns trigger language plpgsql as
        'begin insert into public.caught values (current_user); return new; end';
        create table cachekeeper._sqlx_migrations (version bigint primary key, description text not null,
            installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null, execution_time bigint not null);
        create trigger note before insert on cachekeeper._sqlx_migrations for each row execute function public.note();
        grant all on cachekeeper._sqlx_migrations to public;";
    for (name, owner, objects, says) in [
        ("schema_first", "shop", clock, "the schema cachekeeper belongs to shop"),
        ("for_another", "shop", clock, "the schema cachekeeper belongs to shop"),
        ("function_in", "postgres", clock, "function cachekeeper.clock_timestamp() belongs to shop"),
        ("operator_in", "postgres", operator, "operator cachekeeper.= belongs to shop"),
        ("record_in", "postgres", record, "table cachekeeper._sqlx_migrations belongs to shop"),
    ] {
        let mut shop = Shop::new(&rig, name).await;
        if name == "for_another" {
            shop.as_role("ordinary");
        }
        shop.execute(&format!(
            "{TABLES}{caught} create schema cachekeeper authorization {owner}; grant all on schema cachekeeper, public to shop; grant all on schema cachekeeper to ordinary; set role shop; {objects}"
        ))
        .await;
        shop.cli.says(&["migrate"], 1, &[says]);
        assert_eq!(shop.text("select coalesce(string_agg(who, ' '), '') from caught").await, "", "{name}");
        let there = "select count(*)::text from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'cachekeeper' and relname = 'outbox'";
        assert_eq!(shop.text(there).await, "0", "{name}");
    }
    // Its own things are no stranger's, and a superuser may do everything anyway.
    let mut shop = Shop::new(&rig, "own").await;
    shop.execute(&format!("{TABLES} alter table products owner to shop; create schema cachekeeper; grant all on schema cachekeeper to shop")).await;
    shop.as_role("shop");
    shop.cli.says(&["migrate"], 0, &["changes are captured"]);
    shop.cli.says(&["migrate"], 0, &["changes are captured"]);
}
