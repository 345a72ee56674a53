//! Coverage at the snapshot: whatever changes what a query returns, or what is captured, no watermark passes it before the entries
//! were revalidated (faults A4, A5); and what changes nothing costs nothing.

use std::fmt::Write as _;
use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::coverage;
use cachekeeper_engine::tokens;
use cachekeeper_protocol::token::Token;
use redis::AsyncCommands;
use serde_json::Value;

use crate::feed::ready;
use crate::support::{Rig, wait_until};

/// A dataset of its own for a statement: name (also of its table, where it has one), what is there before, query and watched tables.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub before: &'static str,
    pub query: &'static str,
    pub watch: &'static [&'static str],
    /// The tables that functions read whose bodies are texts.
    pub reads: &'static [&'static str],
    pub change: &'static str,
}

pub const fn case(
    name: &'static str,
    before: &'static str,
    query: &'static str,
    watch: &'static [&'static str],
    change: &'static str,
) -> Case {
    Case { name, before, query, watch, reads: &[], change }
}

/// Each returns something else for the id 1 after the change.
const CHANGES: &[Case] = &[
    case(
        "computed",
        "create table computed (id int primary key, v int); insert into computed values (1, 1)",
        "select id, v from computed",
        &["computed"],
        "alter table computed alter column v type int using v * 10",
    ),
    case(
        "replaced",
        "create table replaced (id int primary key, v int); insert into replaced values (1, 1)",
        "select id, v from replaced",
        &["replaced"],
        "alter table replaced drop column v; alter table replaced add column v int default 7",
    ),
    case(
        "label",
        "create type mood as enum ('glad', 'sad'); create table label (id int primary key, v mood); insert into label values (1, 'glad')",
        "select id, v from label",
        &["label"],
        "alter type mood rename value 'glad' to 'happy'",
    ),
    case(
        "attribute",
        "create type pair as (a int, b int); create table attribute (id int primary key, v pair); insert into attribute values (1, row(1, 2))",
        "select id, v from attribute",
        &["attribute"],
        "alter type pair rename attribute a to c",
    ),
    case(
        "body",
        "create function factor(int) returns int language sql immutable as 'select $1 * 2';
         create table body (id int primary key, v int); insert into body values (1, 1)",
        "select id, factor(v) as v from body",
        &["body"],
        "create or replace function factor(int) returns int language sql immutable as 'select $1 * 3'",
    ),
    case(
        "defaulted",
        "create function times(int, b int default 2) returns int language sql immutable as 'select $1 * $2';
         create table defaulted (id int primary key, v int); insert into defaulted values (1, 1)",
        "select id, times(v) as v from defaulted",
        &["defaulted"],
        "create or replace function times(int, b int default 3) returns int language sql immutable as 'select $1 * $2'",
    ),
    case(
        "atomic",
        "create table rates (id int primary key, rate int); insert into rates values (1, 5);
         create function rate(int) returns int language sql stable begin atomic select rate from rates where id = $1; end;
         create table atomic (id int primary key, v int); insert into atomic values (1, 1)",
        "select id, rate(v) as v from atomic",
        &["atomic", "rates"],
        "create or replace function rate(int) returns int language sql stable begin atomic select rate + 1 from rates where id = $1; end",
    ),
    case(
        "viewed",
        "create table viewed (id int primary key, v int); insert into viewed values (1, 1);
         create view view_of_it as select id, v from viewed",
        "select id, v from view_of_it",
        &["viewed"],
        "create or replace view view_of_it as select id, v + 1 as v from viewed",
    ),
    case(
        "dropped",
        "create table dropped (id int primary key, v int) partition by range (id);
         create table dropped_1 partition of dropped for values from (0) to (10); insert into dropped values (1, 1)",
        "select id, v from dropped",
        &["dropped"],
        "drop table dropped_1",
    ),
    case(
        "detached",
        "create table detached (id int primary key, v int) partition by range (id);
         create table detached_1 partition of detached for values from (0) to (10); insert into detached values (1, 1)",
        "select id, v from detached",
        &["detached"],
        "alter table detached detach partition detached_1",
    ),
    case(
        "swapped",
        "create table swapped (id int primary key, v int) partition by range (id);
         create table swapped_1 partition of swapped for values from (0) to (10); insert into swapped values (1, 1);
         create table swapped_2 (id int primary key, v int); insert into swapped_2 values (1, 2)",
        "select id, v from swapped",
        &["swapped"],
        "begin; alter table swapped detach partition swapped_1;
         alter table swapped attach partition swapped_2 for values from (0) to (10); commit",
    ),
    case(
        "inherited",
        "create table inherited (id int, v int); create table heir (id int, v int); insert into heir values (1, 1)",
        "select id, v from inherited",
        &["inherited"],
        "alter table heir inherit inherited",
    ),
    case(
        "schema",
        "create schema app; create schema app_new; create table app.t (id int primary key, v int);
         create table app_new.t (id int primary key, v int); insert into app.t values (1, 1); insert into app_new.t values (1, 2)",
        "select id, v from app.t",
        &["app.t"],
        "begin; alter schema app rename to app_old; alter schema app_new rename to app; commit",
    ),
    case(
        "renamed",
        "create table renamed (id int primary key, v int); create table renamed_new (id int primary key, v int);
         insert into renamed values (1, 1); insert into renamed_new values (1, 2)",
        "select id, v from renamed",
        &["renamed"],
        "begin; alter table renamed rename to renamed_old; alter table renamed_new rename to renamed; commit",
    ),
    case(
        "overload",
        "create function size(int) returns int language sql immutable as 'select 1';
         create table overload (id int primary key, v smallint); insert into overload values (1, 1)",
        "select id, size(v) as v from overload",
        &["overload"],
        "create function size(smallint) returns int language sql immutable as 'select 2'",
    ),
    case(
        "generated",
        "create table generated (id int primary key, k int, v int generated always as (k * 2) stored); insert into generated values (1, 1)",
        "select id, v from generated",
        &["generated"],
        "alter table generated drop column v; alter table generated add column v int generated always as (k * 3) stored",
    ),
    case(
        "disabled",
        "create table disabled (id int primary key, v int); insert into disabled values (1, 1)",
        "select id, v from disabled",
        &["disabled"],
        "begin; alter table disabled disable trigger all; update disabled set v = 2; alter table disabled enable trigger all; commit",
    ),
    case(
        "earlier",
        "create table earlier (id int primary key, v int); insert into earlier values (1, 1)",
        "select id, v from earlier",
        &["earlier"],
        "create schema postgres; create table postgres.earlier (id int primary key, v int); insert into postgres.earlier values (1, 2)",
    ),
    case(
        "searched",
        "create schema other; create table other.searched (id int primary key, v int); insert into other.searched values (1, 2);
         create table searched (id int primary key, v int); insert into searched values (1, 1)",
        "select id, v from searched",
        &["searched"],
        "alter role postgres set search_path = other, public, postgres",
    ),
];

pub fn toml(cases: &[Case]) -> String {
    let mut toml = String::new();
    for case in cases {
        let rules: Vec<String> = case
            .watch
            .iter()
            .enumerate()
            .map(|(at, table)| match at {
                0 => format!("{{ table = \"{table}\", key = {{ id = \"id\" }} }}"),
                _ => format!("{{ table = \"{table}\", dataset = true }}"),
            })
            .collect();
        writeln!(
            toml,
            "[dataset.{name}]\nquery = \"{query}\"\nkey = \"{name}:{{id}}\"\nformat = \"json\"\nwatch = [{rules}]\nreads = {reads:?}\nwarm = {{ on_start = true }}",
            name = case.name,
            reads = case.reads,
            query = case.query,
            rules = rules.join(", ")
        )
        .unwrap();
    }
    toml
}

/// What the query says now about the id 1, as an application sees it.
pub async fn in_the_database(rig: &Rig, case: &Case) -> Option<Value> {
    let mut session = rig.postgres.session().await.unwrap();
    let sql = format!("select (select to_json(q)::text from ({}) q where id = 1)", case.query);
    session.text(&sql).await.unwrap().map(|text| serde_json::from_str(&text).unwrap())
}

pub async fn in_redis(client: &redis::aio::MultiplexedConnection, case: &Case) -> Option<Value> {
    let text: Option<String> = client.clone().get(format!("{}:1", case.name)).await.unwrap();
    text.map(|text| serde_json::from_str(&text).unwrap())
}

/// A token, and what whoever has it must read.
pub struct Expected<'a> {
    case: &'a Case,
    token: Token,
    value: Option<Value>,
}

impl<'a> Expected<'a> {
    pub async fn now(rig: &Rig, context: &Context, case: &'a Case) -> Self {
        let value = in_the_database(rig, case).await;
        Self { case, token: tokens::token(context).await.unwrap(), value }
    }

    /// Waits until the token is fresh. What is read then must be what the database said.
    pub async fn is_read_once_fresh(&self, rig: &Rig, context: &Context) {
        let found = self.found_once_fresh(rig, context).await;
        assert_eq!(found, self.value, "{}: what is called fresh", self.case.name);
    }

    /// Waits until the token is fresh, and answers what is read then.
    pub async fn found_once_fresh(&self, rig: &Rig, context: &Context) -> Option<Value> {
        let name = self.case.name;
        let client = rig.client().await;
        wait_until(&format!("{name} is fresh"), async || {
            let (watermark, is_fresh) = tokens::wait(context, &self.token, Some(name), Duration::ZERO)
                .await
                .map_err(|error| error.to_string())?;
            let found = in_redis(&client, self.case).await;
            if is_fresh { Ok(found) } else { Err(format!("{watermark:?}")) }
        })
        .await
    }

    /// Whether that is what the database said.
    pub fn is(&self, found: &Option<Value>) -> bool {
        *found == self.value
    }

    pub fn differs_from(&self, old: &Option<Value>) -> bool {
        *old != self.value
    }
}

pub async fn is_right_once_fresh(rig: &Rig, context: &Context, case: &Case) {
    Expected::now(rig, context, case).await.is_read_once_fresh(rig, context).await;
}

#[tokio::test]
async fn no_token_is_fresh_before_what_a_statement_changed_was_revalidated() {
    let before: Vec<&str> = CHANGES.iter().map(|case| case.before).collect();
    let rig = Rig::start(&before.join(";\n")).await;
    let worker = Worker::start(rig.config(&toml(CHANGES))).await.unwrap();
    ready(&worker).await;
    for case in CHANGES {
        is_right_once_fresh(&rig, &worker.context, case).await;
    }
    // The last one concerns every dataset, and would hide that another one was not noticed.
    let (all, own) = CHANGES.split_last().unwrap();
    for cases in [own, std::slice::from_ref(all)] {
        let mut expected = Vec::new();
        for case in cases {
            let old = in_the_database(&rig, case).await;
            rig.postgres.execute(case.change).await.unwrap();
            let now = Expected::now(&rig, &worker.context, case).await;
            assert!(now.differs_from(&old), "{}: nothing has changed", case.name);
            expected.push(now);
        }
        for expected in expected {
            expected.is_read_once_fresh(&rig, &worker.context).await;
        }
    }
    worker.stop().await;
}

/// What a worker knew of the catalogs is in Redis, so that the next one misses nothing that happened in between.
#[tokio::test]
async fn what_changes_while_no_worker_runs_is_noticed_by_the_next_one() {
    let cases = &CHANGES[..3];
    let before: Vec<&str> = cases.iter().map(|case| case.before).collect();
    let rig = Rig::start(&before.join(";\n")).await;
    let first = Worker::start(rig.config(&toml(cases))).await.unwrap();
    ready(&first).await;
    for case in cases {
        is_right_once_fresh(&rig, &first.context, case).await;
    }
    first.stop().await;
    for case in cases {
        rig.postgres.execute(case.change).await.unwrap();
    }
    let second =
        Worker::start(rig.config(&toml(cases).replace("on_start = true", "on_start = false"))).await.unwrap();
    for case in cases {
        is_right_once_fresh(&rig, &second.context, case).await;
    }
    second.stop().await;
}

#[tokio::test]
async fn statements_that_change_nothing_make_nothing_pending() {
    let case = case(
        "plain",
        "create type plain_kind as enum ('a'); create role reader;
         create table plain (id int primary key, v int default 3, kind plain_kind); insert into plain values (1, 1, 'a');
         create table parts (id int primary key, v int) partition by range (id);
         create table parts_1 partition of parts for values from (0) to (10); insert into parts values (1, 1);
         create or replace view plain_view as select p.id, p.v, p.kind, q.v as w from plain p join parts q on q.id = p.id",
        "select id, v, kind, w from plain_view",
        &["plain", "parts"],
        "",
    );
    let cases = [case];
    let rig = Rig::start(cases[0].before).await;
    let worker = Worker::start(rig.config(&toml(&cases))).await.unwrap();
    ready(&worker).await;
    let context = &worker.context;
    is_right_once_fresh(&rig, context, &cases[0]).await;
    let before = context.redis.metadata("").await.unwrap();
    for statement in [
        "vacuum full plain",
        "vacuum full parts_1",
        "cluster plain using plain_pkey",
        "analyze",
        "vacuum freeze plain",
        "vacuum full pg_class",
        "vacuum full pg_attribute",
        "grant select on plain to reader",
        "grant select (v) on plain to reader",
        "alter table plain alter column v set statistics 50",
        "alter table plain set (fillfactor = 90)",
        "create index plain_v on plain (v)",
        "create index concurrently plain_w on plain (v)",
        "drop index plain_v",
        "alter table plain alter column v set not null",
        "alter table plain alter column v set default 4",
        "comment on table plain is 'a table'",
        "comment on column plain.v is 'a column'",
        "create or replace view plain_view as select p.id, p.v, p.kind, q.v as w from plain p join parts q on q.id = p.id",
        "create table unrelated (id int primary key)",
        "create temporary table plain (id int)",
        "update plain set v = v + 1 where id = 1",
    ] {
        rig.postgres.execute(statement).await.unwrap();
        is_right_once_fresh(&rig, context, &cases[0]).await;
        let now = context.redis.metadata("").await.unwrap();
        assert_eq!((now.causes, now.pending.len()), (before.causes, 0), "{statement}: {now:?}");
    }
    worker.stop().await;
}

/// A5: nothing is fresh from the moment of the switch on.
#[tokio::test]
async fn what_is_written_while_the_capture_is_off_is_never_called_fresh() {
    let case = case(
        "plain",
        "create table plain (id int primary key, v int); insert into plain values (1, 1)",
        "select id, v from plain",
        &["plain"],
        "",
    );
    let cases = [case];
    let rig = Rig::start(cases[0].before).await;
    let worker = Worker::start(rig.config(&toml(&cases))).await.unwrap();
    ready(&worker).await;
    let context = &worker.context;
    is_right_once_fresh(&rig, context, &cases[0]).await;
    context.postgres.switch_capture(false, &context.feed.limits).await.unwrap();
    rig.postgres.execute("update plain set v = 2").await.unwrap();
    let token = tokens::token(context).await.unwrap();
    let passed = |watermark: &cachekeeper_engine::stores::redis::Watermark| {
        let snapshot: cachekeeper_protocol::stamp::Snapshot = watermark.snapshot.parse().unwrap();
        token.snapshot.stamp() <= snapshot.stamp()
    };
    wait_until("the watermark has passed the update", async || {
        let (watermark, is_fresh) =
            tokens::wait(context, &token, Some("plain"), Duration::ZERO).await.unwrap();
        assert!(!is_fresh, "called fresh: {watermark:?}");
        if watermark.as_ref().is_some_and(passed) { Ok(()) } else { Err(format!("{watermark:?}")) }
    })
    .await;
    context.postgres.switch_capture(true, &context.feed.limits).await.unwrap();
    is_right_once_fresh(&rig, context, &cases[0]).await;
    worker.stop().await;
}

/// What no capture can follow is named, with the way out where there is one.
#[tokio::test]
async fn what_cannot_be_followed_is_not_covered_and_says_why() {
    let rig = Rig::start(
        "create table plain (id int primary key, v int); create table rates (id int primary key, rate int);
         create sequence numbers; create role limited login;
         create function opaque(int) returns int language sql stable as 'select rate from rates where id = $1';
         create function nested(int) returns int language sql stable begin atomic select opaque($1); end;
         create function constant(int) returns int language sql immutable as 'select 1';
         create rule told as on insert to plain do also insert into rates values (new.id, 1);
         grant select on all tables in schema public to limited;
         revoke temporary on database postgres from public;",
    )
    .await;
    let toml = |query: &str, more: &str| {
        format!(
            "[dataset.plain]\nquery = \"{query}\"\nkey = \"plain:{{id}}\"\n{more}\
             watch = [{{ table = \"plain\", key = {{ id = \"id\" }} }}, {{ table = \"rates\", dataset = true }}]\n"
        )
    };
    let reads = "reads = [\"rates\"]\n";
    for (query, more, expected) in [
        ("select id, opaque(v) as v from plain", "", Some("opaque, whose body is a text")),
        ("select id, nested(v) as v from plain", "", Some("opaque, whose body is a text")),
        ("select id, opaque(v) as v from plain", reads, None),
        ("select id, nested(v) as v from plain", reads, None),
        ("select id, opaque(v) as v from plain", "reads = [\"numbers\"]\n", Some("numbers is a sequence")),
        ("select id, constant(v) as v from plain", "", None),
        ("select id, v from plain", "", None),
        ("select id, v, ctid::text as place from plain", "", Some("system column")),
        ("select id, v from plain where xmin <> '0'", "", Some("system column")),
        ("select id, relname from plain join pg_class on true", "", Some("the catalog pg_class")),
        ("select id, tablename from plain join pg_tables on true", "", Some("the catalog")),
        ("select id, last_value from plain, numbers", "", Some("numbers is a sequence")),
    ] {
        let context = rig.context(&toml(query, more));
        let coverage = coverage::look(&context, true).await.unwrap();
        let found = coverage.gaps().next().map(|(_, reason)| reason.clone());
        match (&found, expected) {
            (None, None) => {}
            (Some(found), Some(expected)) if found.contains(expected) => {}
            _ => panic!("{query}, {more}: {found:?}"),
        }
    }
    let mut config = rig.config(&toml("select id, v from plain", ""));
    config.postgres.url =
        cachekeeper_config::Secret::new(rig.postgres.url().replace("postgres@", "limited@"));
    let limited = Context::of_worker(&config).unwrap();
    rig.context("").postgres.grant("limited").await.unwrap();
    rig.postgres.execute("revoke temporary on database postgres from limited").await.unwrap();
    let coverage = coverage::look(&limited, false).await.unwrap();
    let (_, reason) = coverage.gaps().next().unwrap();
    assert!(reason.contains("needs the right TEMPORARY"), "{reason}");
}

/// Row security decides what the worker's role sees: policies, memberships and the role's attributes.
#[tokio::test]
async fn no_token_is_fresh_before_what_row_security_changed_was_revalidated() {
    let rig = Rig::start(
        "create role loader login; create role staff;
         create table guarded (id int primary key, v int); insert into guarded values (1, 1), (2, 2);
         alter table guarded enable row level security;
         create policy p on guarded for select using (true);
         grant select on guarded to loader; grant temporary on database postgres to loader;",
    )
    .await;
    let case = case("guarded", "", "select id, v from guarded", &["guarded"], "");
    let cases = [case];
    coverage::look(&rig.context(&toml(&cases)), true).await.unwrap();
    rig.context("").postgres.grant("loader").await.unwrap();
    let mut config = rig.config(&toml(&cases));
    config.postgres.url = cachekeeper_config::Secret::new(rig.postgres.url().replace("postgres@", "loader@"));
    let worker = Worker::start(config).await.unwrap();
    ready(&worker).await;
    let client = rig.client().await;
    for (statement, is_seen) in [
        ("drop policy p on guarded; create policy p on guarded for select using (id <> 1)", false),
        ("alter policy p on guarded using (id <> 2)", true),
        ("drop policy p on guarded; create policy p on guarded for select to staff using (true)", false),
        ("grant staff to loader", true),
        ("revoke staff from loader", false),
        ("alter role loader bypassrls", true),
        ("alter role loader nobypassrls", false),
        // Else the query would fail for whoever may not see every row.
        ("alter role loader set row_security = off", false),
        ("alter table guarded disable row level security", true),
    ] {
        rig.postgres.execute(statement).await.unwrap();
        let token = tokens::token(&worker.context).await.unwrap();
        wait_until(&format!("it is fresh after {statement}"), async || {
            let (watermark, is_fresh) =
                tokens::wait(&worker.context, &token, Some("guarded"), Duration::ZERO).await.unwrap();
            let found = in_redis(&client, &cases[0]).await;
            assert!(!is_fresh || found.is_some() == is_seen, "{statement}: fresh, and {found:?}");
            if is_fresh { Ok(()) } else { Err(format!("{watermark:?}")) }
        })
        .await;
    }
    worker.stop().await;
}

/// `relhastriggers` alone decides whether triggers are looked for (design-review-2.md 16). Nobody sets it by hand; a restore that
/// broke off, or a tool that edits the catalogs, may.
#[tokio::test]
async fn a_table_that_forgot_its_triggers_is_not_covered() {
    let case = case(
        "plain",
        "create table plain (id int primary key, v int); insert into plain values (1, 1)",
        "select id, v from plain",
        &["plain"],
        "",
    );
    let cases = [case];
    let rig = Rig::start(cases[0].before).await;
    let worker = Worker::start(rig.config(&toml(&cases))).await.unwrap();
    ready(&worker).await;
    let context = &worker.context;
    is_right_once_fresh(&rig, context, &cases[0]).await;
    let forget = |has: bool| format!("update pg_class set relhastriggers = {has} where relname = 'plain'");
    rig.postgres.execute(&format!("{}; update plain set v = 2", forget(false))).await.unwrap();
    let token = tokens::token(context).await.unwrap();
    wait_until("the watermark has passed the update", async || {
        let (watermark, is_fresh) =
            tokens::wait(context, &token, Some("plain"), Duration::ZERO).await.unwrap();
        let found = in_redis(&rig.client().await, &cases[0]).await;
        assert!(!is_fresh || found.is_some_and(|value| value["v"] == 2), "called fresh: {watermark:?}");
        let is_left_out = watermark.as_ref().is_some_and(|watermark| {
            let snapshot: cachekeeper_protocol::stamp::Snapshot = watermark.snapshot.parse().unwrap();
            token.snapshot.stamp() <= snapshot.stamp() && watermark.not_covered == ["plain"]
        });
        if is_left_out { Ok(()) } else { Err(format!("{watermark:?}")) }
    })
    .await;
    rig.postgres.execute(&format!("update plain set v = 3; {}", forget(true))).await.unwrap();
    is_right_once_fresh(&rig, context, &cases[0]).await;
    rig.postgres.execute("update plain set v = 4").await.unwrap();
    is_right_once_fresh(&rig, context, &cases[0]).await;
    worker.stop().await;
}

/// The temporary view of a query is DDL, on which event triggers fire (design-review-2.md 18).
#[tokio::test]
async fn event_triggers_that_refuse_ddl_are_named_and_the_dataset_comes_back() {
    let case = case(
        "plain",
        "create table plain (id int primary key, v int); insert into plain values (1, 1);
         create function refuses() returns event_trigger language plpgsql as 'begin raise exception ''no DDL on weekdays''; end'",
        "select id, v from plain",
        &["plain"],
        "",
    );
    let cases = [case];
    let rig = Rig::start(cases[0].before).await;
    let worker = Worker::start(rig.config(&toml(&cases))).await.unwrap();
    ready(&worker).await;
    is_right_once_fresh(&rig, &worker.context, &cases[0]).await;
    // Nothing asks for another view, so all goes on.
    rig.postgres
        .execute("create event trigger refuses on ddl_command_start execute function refuses()")
        .await
        .unwrap();
    rig.postgres.execute("update plain set v = 2").await.unwrap();
    is_right_once_fresh(&rig, &worker.context, &cases[0]).await;
    worker.stop().await;
    let worker = Worker::start(rig.config(&toml(&cases))).await.unwrap();
    wait_until("the reason is told", async || {
        let uncovered = worker.health.facts().uncovered;
        let is_named = uncovered.get("plain").is_some_and(|reason| reason.contains("no DDL on weekdays"));
        if is_named { Ok(()) } else { Err(format!("{uncovered:?}")) }
    })
    .await;
    rig.postgres.execute("update plain set v = 3").await.unwrap();
    rig.postgres.execute("drop event trigger refuses").await.unwrap();
    is_right_once_fresh(&rig, &worker.context, &cases[0]).await;
    worker.stop().await;
}
