//! What stands behind a query and is not written in it: functions in the texts of functions, operator classes, text search, casts,
//! domains, and the rights of those who own a view. No watermark passes a change of it before the entries were revalidated.

use cachekeeper::app::Worker;

use crate::coverage::{Case, Expected, case, in_the_database, is_right_once_fresh, toml};
use crate::feed::ready;
use crate::support::{Rig, wait_until};

/// Each returns something else for the id 1 after the change.
const CHANGES: &[Case] = &[
    case(
        "nested",
        "create function inner_factor(int) returns int language sql immutable as 'select $1 * 2';
         create function outer_factor(int) returns int language sql immutable as 'select inner_factor($1)';
         create table nested (id int primary key, v int); insert into nested values (1, 1)",
        "select id, outer_factor(v) as v from nested",
        &["nested"],
        "create or replace function inner_factor(int) returns int language sql immutable as 'select $1 * 3'",
    ),
    case(
        "third",
        "create function third_factor(int) returns int language sql immutable as 'select $1 * 2';
         create function \"Second Factor\"(int) returns int language plpgsql immutable as 'begin return THIRD_FACTOR($1); end';
         create function first_factor(int) returns int language plpgsql immutable as 'declare r int; begin
            execute ''select \"Second Factor\"($1)'' into r using $1; return r; end';
         create table third (id int primary key, v int); insert into third values (1, 1)",
        "select id, first_factor(v) as v from third",
        &["third"],
        "create or replace function third_factor(int) returns int language sql immutable as 'select $1 * 3'",
    ),
    case(
        "configured",
        "create text search configuration plain_words (copy = english);
         create table configured (id int primary key, v text); insert into configured values (1, 'the cats')",
        "select id, to_tsvector('plain_words', v)::text as v from configured",
        &["configured"],
        "alter text search configuration plain_words alter mapping for asciiword with simple",
    ),
    case(
        "spoken",
        "create text search dictionary stems (template = snowball, language = english);
         create text search configuration spoken_words (copy = english);
         alter text search configuration spoken_words alter mapping for asciiword with stems;
         create function vector(text) returns text language sql immutable as 'select to_tsvector(''spoken_words'', $1)::text';
         create table spoken (id int primary key, v text); insert into spoken values (1, 'running cats')",
        "select id, vector(v) as v from spoken",
        &["spoken"],
        "alter text search dictionary stems (language = german)",
    ),
    case(
        "compared",
        "create function alike(int, int) returns bool language sql immutable as 'select $1 % 10 = $2 % 10';
         create operator === (leftarg = int, rightarg = int, function = alike);
         create table compared (id int primary key, v int); insert into compared values (1, 1)",
        "select id, v === 11 as v from compared",
        &["compared"],
        "create or replace function alike(int, int) returns bool language sql immutable as 'select $1 = $2'",
    ),
    case(
        "signed",
        "create function near(int, int) returns bool language sql immutable as 'select $1 % 10 = $2 % 10';
         create operator ~== (leftarg = int, rightarg = int, function = near);
         create function nearly(int) returns bool language sql immutable as 'select $1 ~== 11';
         create table signed (id int primary key, v int); insert into signed values (1, 1)",
        "select id, nearly(v) as v from signed",
        &["signed"],
        "create or replace function near(int, int) returns bool language sql immutable as 'select $1 = $2'",
    ),
    case(
        "sorted",
        "create type ranked as (a int);
         create function ranked_lt(ranked, ranked) returns bool language sql immutable as 'select ($1).a < ($2).a';
         create function ranked_eq(ranked, ranked) returns bool language sql immutable as 'select ($1).a = ($2).a';
         create function ranked_cmp(ranked, ranked) returns int language sql immutable as 'select ($1).a - ($2).a';
         create operator <! (leftarg = ranked, rightarg = ranked, function = ranked_lt);
         create operator =! (leftarg = ranked, rightarg = ranked, function = ranked_eq);
         create operator class ranked_ops default for type ranked using btree as
            operator 1 <!, operator 3 =!, function 1 ranked_cmp(ranked, ranked);
         create table sorted (id int primary key, v ranked[]); insert into sorted values (1, array[row(1), row(2)]::ranked[])",
        "select id, (select x::text as t from unnest(v) x order by x limit 1) as v from sorted",
        &["sorted"],
        "create or replace function ranked_cmp(ranked, ranked) returns int language sql immutable as 'select ($2).a - ($1).a'",
    ),
    case(
        "cast",
        "create type shade as enum ('dark', 'light');
         create function shade_number(shade) returns int language sql immutable as 'select case when $1 = ''dark'' then 1 else 2 end';
         create cast (shade as int) with function shade_number(shade);
         create function shaded(text) returns int language sql immutable as 'select $1::shade::int';
         create table casted (id int primary key, v text); insert into casted values (1, 'dark')",
        "select id, shaded(v) as v from casted",
        &["casted"],
        "create or replace function shade_number(shade) returns int language sql immutable as 'select 7'",
    ),
    case(
        "summed",
        "create function add_up(int, int) returns int language sql immutable as 'select $1 + $2';
         create function twice(int) returns int language sql immutable as 'select $1 * 2';
         create aggregate total(int) (sfunc = add_up, stype = int, finalfunc = twice, initcond = '0');
         create table summed (id int primary key, v int); insert into summed values (1, 1)",
        "select id, total(v) as v from summed group by id",
        &["summed"],
        "create or replace function twice(int) returns int language sql immutable as 'select $1 * 3'",
    ),
    case(
        "domain",
        "create function is_small(int) returns bool language sql immutable as 'select $1 < 50';
         create domain small as int check (is_small(value));
         create function fits(int) returns bool language plpgsql immutable as 'begin
            perform $1::small; return true; exception when check_violation then return false; end';
         create table domain (id int primary key, v int); insert into domain values (1, 10)",
        "select id, fits(v) as v from domain",
        &["domain"],
        "create or replace function is_small(int) returns bool language sql immutable as 'select $1 < 5'",
    ),
    case(
        "constrained",
        "create domain tight as int check (value < 50);
         create function is_tight(int) returns bool language plpgsql immutable as 'begin
            perform $1::tight; return true; exception when check_violation then return false; end';
         create table constrained (id int primary key, v int); insert into constrained values (1, 10)",
        "select id, is_tight(v) as v from constrained",
        &["constrained"],
        "alter domain tight add check (value < 5)",
    ),
    case(
        "owned",
        "create role clerk; create role staff;
         create table owned (id int primary key, v int); insert into owned values (1, 1);
         alter table owned enable row level security; create policy p on owned for select to staff using (true);
         grant select on owned to clerk; create view view_of_clerk as select id, v from owned; alter view view_of_clerk owner to clerk",
        "select id, v from view_of_clerk",
        &["owned"],
        "grant staff to clerk",
    ),
    case(
        "bypassed",
        "create role porter;
         create table bypassed (id int primary key, v int); insert into bypassed values (1, 1);
         alter table bypassed enable row level security; grant select on bypassed to porter;
         create view view_of_porter as select id, v from bypassed; alter view view_of_porter owner to porter",
        "select id, v from view_of_porter",
        &["bypassed"],
        "alter role porter bypassrls",
    ),
    case(
        "collated",
        "create collation wording (locale = 'C');
         create table collated (id int primary key, v text[]); insert into collated values (1, array['a', 'B'])",
        "select id, (select x from unnest(v) x order by x collate wording limit 1) as v from collated",
        &["collated"],
        "drop collation wording; create collation wording (provider = icu, locale = 'und')",
    ),
    Case {
        reads: &["read_by_text"],
        ..case(
            "texts",
            "create table read_by_text (id int primary key, v int); insert into read_by_text values (1, 1);
             create view view_in_text as select id, v from read_by_text;
             create function by_text(int) returns int language sql stable as 'select v from view_in_text where id = $1';
             create table texts (id int primary key); insert into texts values (1)",
            "select id, by_text(id) as v from texts",
            &["texts", "read_by_text"],
            "create or replace view view_in_text as select id, v + 1 as v from read_by_text",
        )
    },
];

#[tokio::test]
async fn no_token_is_fresh_before_what_stands_behind_a_query_was_revalidated() {
    let before: Vec<&str> = CHANGES.iter().map(|case| case.before).collect();
    let rig = Rig::start(&before.join(";\n")).await;
    // Not every build of Postgres has ICU.
    let probe = "create collation probe (provider = icu, locale = 'und')";
    let has_icu = rig.postgres.execute(probe).await.is_ok();
    let cases: Vec<Case> =
        CHANGES.iter().filter(|case| has_icu || case.name != "collated").copied().collect();
    let worker = Worker::start(rig.config(&toml(&cases))).await.unwrap();
    ready(&worker).await;
    for case in &cases {
        is_right_once_fresh(&rig, &worker.context, case).await;
    }
    let mut expected = Vec::new();
    for case in &cases {
        let old = in_the_database(&rig, case).await;
        rig.postgres.execute(case.change).await.unwrap();
        let now = Expected::now(&rig, &worker.context, case).await;
        assert!(now.differs_from(&old), "{}: nothing has changed", case.name);
        expected.push((case.name, now));
    }
    let mut wrong = Vec::new();
    for (name, expected) in &expected {
        let found = expected.found_once_fresh(&rig, &worker.context).await;
        if !expected.is(&found) {
            wrong.push(*name);
        }
    }
    assert!(wrong.is_empty(), "called fresh although they are not: {wrong:?}");
    worker.stop().await;
}

/// What is set in the server's configuration is in no catalog. The next commit tells of it.
#[tokio::test]
async fn a_setting_that_a_function_reads_counts_from_the_next_commit_on() {
    let case = case(
        "settings",
        "create table settings (id int primary key, v int); insert into settings values (1, 1);
         create function factor() returns int language sql stable begin atomic
            select coalesce(current_setting('app.factor', true)::int, 1); end;",
        "select id, v * factor() as v from settings",
        &["settings"],
        "",
    );
    let rig = Rig::start(case.before).await;
    let worker = Worker::start(rig.config(&toml(&[case]))).await.unwrap();
    ready(&worker).await;
    is_right_once_fresh(&rig, &worker.context, &case).await;
    let mut session = rig.postgres.session().await.unwrap();
    session.execute("set app.factor = '1'").await.unwrap();
    session.execute("alter system set app.factor = '5'").await.unwrap();
    session.execute("select pg_reload_conf()").await.unwrap();
    wait_until("new sessions have the setting", async || {
        let found = in_the_database(&rig, &case).await.unwrap();
        if found["v"] == 5 { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
    rig.postgres.execute("insert into settings values (2, 2)").await.unwrap();
    is_right_once_fresh(&rig, &worker.context, &case).await;
    worker.stop().await;
}

/// From Postgres 17 on the expression of a generated column can be replaced; from 18 on it may be computed when it is read.
#[tokio::test]
async fn a_replaced_expression_of_a_generated_column_is_a_change() {
    let cases: [(u32, Case); 2] = [
        (
            170_000,
            case(
                "stored",
                "create table stored (id int primary key, k int, v int generated always as (k * 2) stored); insert into stored values (1, 1)",
                "select id, v from stored",
                &["stored"],
                "alter table stored alter column v set expression as (k * 3)",
            ),
        ),
        (
            180_000,
            case(
                "virtual",
                "create table virtual (id int primary key, k int, v int generated always as (k * 2) virtual); insert into virtual values (1, 1)",
                "select id, v from virtual",
                &["virtual"],
                "alter table virtual alter column v set expression as (k * 3)",
            ),
        ),
    ];
    let rig = Rig::start("").await;
    let mut session = rig.postgres.session().await.unwrap();
    let version = session.text("select current_setting('server_version_num')").await.unwrap().unwrap();
    let version: u32 = version.parse().unwrap();
    let cases: Vec<Case> =
        cases.into_iter().filter(|(since, _)| *since <= version).map(|(_, case)| case).collect();
    if cases.is_empty() {
        println!("skipped: needs Postgres 17 (CACHEKEEPER_POSTGRES_BIN), and this is {version}");
        return;
    }
    for case in &cases {
        session.execute(case.before).await.unwrap();
    }
    let worker = Worker::start(rig.config(&toml(&cases))).await.unwrap();
    ready(&worker).await;
    for case in &cases {
        is_right_once_fresh(&rig, &worker.context, case).await;
        session.execute(case.change).await.unwrap();
        is_right_once_fresh(&rig, &worker.context, case).await;
    }
    worker.stop().await;
}
