//! What writers do that capture must bear: settings of their own, nested commands, savepoints, functions of several owners.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::capture::{TABLES, count, dataset, follower, plain};
use crate::capture_world::{captured, writes};
use crate::support::Rig;

/// The trigger functions of two owners, of whom one may not write to the outbox, run in one transaction.
#[tokio::test]
async fn what_one_owner_of_functions_may_do_says_nothing_of_another() {
    let rig = Rig::start(
        "create role other; create table products (id int primary key, name text, price int);
         create table items (id int primary key, name text); insert into items select n, 'i' from generate_series(1, 5) n;
         insert into products select n, 'p', n from generate_series(1, 5) n",
    )
    .await;
    let items = "[dataset.item]\nquery = \"select id, name from items\"\nkey = \"item:{id}\"\nformat = \"json\"\n\
         watch = [{ table = \"items\", key = { id = \"id\" } }]\n";
    let context = rig.context(&format!("{}{items}", plain()));
    let _follower = follower(&context).await;
    let other = count(&rig, "select id from cachekeeper.capture where root = 'items'::regclass").await;
    rig.postgres
        .execute(&format!(
            "grant usage, update on all sequences in schema cachekeeper to other; \
             alter function cachekeeper.capture_{other} owner to other"
        ))
        .await
        .unwrap();
    writes(&rig, "begin; update products set price = 0; update items set name = 'x'; update products set price = 1; update items set name = 'y' where id < 3; commit").await;
    assert_eq!(captured(&rig).await.split(' ').count(), 10);
    assert_eq!(count(&rig, "select last_value from cachekeeper.uncaptured").await, 1);
    assert_eq!(
        count(
            &rig,
            &format!("select case when is_called then 1 else 0 end from cachekeeper.uncaptured_{other}")
        )
        .await,
        1
    );
}

/// Revoking waits for no lock, so it comes between what a trigger asks and what it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_revoked_just_then_fails_no_writer() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    let _follower = follower(&context).await;
    rig.postgres
        .execute(
            "create role other; grant usage on schema cachekeeper to other; \
             grant usage, update, select on all sequences in schema cachekeeper to other; \
             grant insert on cachekeeper.outbox to other; alter function cachekeeper.capture_1 owner to other",
        )
        .await
        .unwrap();
    let mut owner = rig.postgres.session().await.unwrap();
    let count_written = Arc::new(AtomicI64::new(0));
    let seen = Arc::clone(&count_written);
    let revoking = tokio::spawn(async move {
        for _ in 0..400 {
            for statement in
                ["revoke insert on cachekeeper.outbox from", "grant insert on cachekeeper.outbox to"]
            {
                owner.execute(&format!("{statement} other")).await.unwrap();
                // Those who write have made their plans anew by then.
                let enough = seen.load(Ordering::Relaxed) + 2;
                while seen.load(Ordering::Relaxed) < enough {
                    tokio::task::yield_now().await;
                }
            }
        }
    });
    let mut writer = rig.postgres.session().await.unwrap();
    while !revoking.is_finished() {
        writer
            .execute("begin; update products set price = price + 1 where id = 1; update products set price = price + 1 where id in (2, 3); commit")
            .await
            .unwrap();
        count_written.fetch_add(1, Ordering::Relaxed);
    }
    let written = count_written.load(Ordering::Relaxed);
    revoking.await.unwrap();
    let noted = count(&rig, "select count(distinct xid) from cachekeeper.outbox").await;
    let told = count(&rig, "select last_value from cachekeeper.uncaptured").await;
    assert!(
        0 < noted && noted < written && written <= noted + told,
        "{written} written, {noted} noted, {told} told"
    );
}

/// Any session may set `cachekeeper.*`. Whatever it sets, it does not fail, and what it writes is captured.
#[tokio::test]
async fn settings_of_a_writer_neither_hide_a_change_nor_make_it_fail() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&format!("[feed]\nmax_rows = 100\n{}", plain()));
    let _follower = follower(&context).await;
    let names = ["command_1", "seen_1", "statement_1", "sound_in", "outbox"];
    for value in ["abc", "", "-5", "0", "1", "100", "20000", "99999999999999999999", "whole", "held", "١٢"]
    {
        for local in ["session", "local"] {
            let set: String =
                names.iter().map(|name| format!("set {local} cachekeeper.{name} = '{value}';")).collect();
            let sql = if local == "local" { format!("begin; {set}") } else { set };
            writes(&rig, &format!("{sql} update products set price = 0 where id in (7, 8)")).await;
            let sql = if local == "local" { "begin; " } else { "" };
            // The first command of a transaction has the number 0.
            let set: String = names[1..]
                .iter()
                .map(|name| format!("set {local} cachekeeper.{name} = '{value}';"))
                .collect();
            let set = format!("set {local} cachekeeper.command_1 = '0'; {set}");
            let end = if local == "local" { "; commit" } else { "" };
            let wrote = captured(&rig).await;
            assert_eq!(wrote, if local == "local" { "" } else { "7 8" }, "{local} {value}");
            writes(&rig, &format!("{sql}{set} update products set price = 0 where id in (7, 8){end}")).await;
            let found = captured(&rig).await;
            assert!(found == "7 8" || found == "all" || found == "7 all", "{local} {value}: {found}");
        }
    }
    // What was noted in one transaction means nothing in the next, nor after a savepoint was rolled back.
    let mut session = rig.postgres.session().await.unwrap();
    session.execute("begin; update products set price = 0; select set_config('cachekeeper.command_1', current_setting('cachekeeper.command_1'), false), set_config('cachekeeper.seen_1', '100', false); commit").await.unwrap();
    assert!(captured(&rig).await.ends_with("all"));
    session.execute("update products set price = 1 where id = 3").await.unwrap();
    assert!(["3", "all"].contains(&captured(&rig).await.as_str()));
    session.execute("reset all; begin; update products set price = 1 where id = 3; reset all; update products set price = 1 where id in (4, 5); discard plans; update products set price = 1 where id = 6; commit").await.unwrap();
    assert_eq!(captured(&rig).await, "3 4 5 6");
}

#[tokio::test]
async fn savepoints_that_are_rolled_back_take_nothing_of_the_rest_with_them() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&format!("[feed]\nmax_rows = 100\n{}", plain()));
    let _follower = follower(&context).await;
    for (sql, expected) in [
        (
            "savepoint a; update products set price = 0 where id <= 5; rollback to a; update products set price = 1 where id <= 2",
            "1 2",
        ),
        (
            "savepoint a; update products set price = 0; rollback to a; update products set price = 1 where id <= 2",
            "1 2",
        ),
        (
            "savepoint a; update products set price = 0; rollback to a; savepoint b; update products set price = 1 where id <= 2; release b",
            "1 2",
        ),
        (
            "update products set price = 0 where id = 9; savepoint a; update products set price = 0; rollback to a; delete from products where id = 3; release a; update products set price = 0 where id = 4",
            "9 3 4",
        ),
        (
            "savepoint a; select 1 / 0 from products; rollback to a; update products set price = 0 where id = 4",
            "4",
        ),
    ] {
        let mut session = rig.postgres.session().await.unwrap();
        for statement in format!("begin; {sql}; commit").split("; ") {
            // An error on purpose is rolled back by the next statement.
            let done = session.execute(statement).await;
            assert!(done.is_ok() || statement.contains("1 / 0"), "{statement}: {done:?}");
        }
        assert_eq!(captured(&rig).await, expected, "{sql}");
    }
    // Once the whole table is meant nothing more of it needs to be said, but inside a savepoint that may be rolled back.
    writes(&rig, "begin; update products set price = 0; update products set price = 1; savepoint a; update products set price = 2 where id = 3; commit").await;
    assert!(captured(&rig).await.ends_with("all"));
    assert_eq!(count(&rig, "select count(*) from products where price = 0").await, 0);
}

/// A trigger of the application that updates the same table: its commands stand between the rows of the one that it belongs to.
#[tokio::test]
async fn commands_inside_commands_are_counted_and_bounded() {
    let rig = Rig::start(
        "create table products (id int primary key, name text, price int);
         insert into products select n, 'p', n from generate_series(1, 500) n;
         create function again() returns trigger language plpgsql as $$ begin
            if pg_trigger_depth() = 1 then
                update products set name = 'again' where id = new.id;
                update products set name = 'and again' where id in (new.id, 1);
            end if;
            return null;
         end $$;
         create trigger a_again after update on products for each row execute function again();
         create trigger z_again after update on products for each row execute function again()",
    )
    .await;
    let context = rig.context(&format!("[feed]\nmax_rows = 100\n{}", plain()));
    let _follower = follower(&context).await;
    writes(&rig, "update products set price = 0 where id <= 5").await;
    let found = captured(&rig).await;
    for id in 1..=5 {
        assert!(found.split(' ').any(|key| key == id.to_string()), "{found}");
    }
    writes(&rig, "update products set price = 0").await;
    let rows = count(&rig, "select count(*) from cachekeeper.outbox").await;
    assert!(rows <= 101, "{rows} rows");
    assert!(captured(&rig).await.contains("all"));
    // Counted anew for each statement of the application.
    let mut session = rig.postgres.session().await.unwrap();
    for sql in [
        "begin",
        "update products set price = 0 where id < 10",
        "update products set price = 1 where id < 10",
        "update products set price = 2 where id < 10",
        "commit",
    ] {
        session.execute(sql).await.unwrap();
    }
    assert!(!captured(&rig).await.contains("all"));
}

/// Rows that are deleted by a cascade are commands inside a command too.
#[tokio::test]
async fn cascades_are_counted_and_bounded() {
    let rig = Rig::start(
        "create table makers (id int primary key); insert into makers select generate_series(1, 400);
         create table products (id int primary key, name text, price int references makers on delete cascade on update cascade);
         create index on products (price);
         insert into products select n, 'p', n from generate_series(1, 400) n;",
    )
    .await;
    let context = rig.context(&format!("[feed]\nmax_rows = 100\n{}", plain()));
    let _follower = follower(&context).await;
    writes(&rig, "delete from makers where id <= 3; update makers set id = id + 1000 where id = 9").await;
    assert_eq!(captured(&rig).await, "1 2 3 9");
    writes(&rig, "delete from makers").await;
    assert_eq!(count(&rig, "select count(*) from cachekeeper.outbox").await, 101);
    assert!(captured(&rig).await.ends_with("all"));
}

#[tokio::test]
async fn a_transaction_that_read_before_the_outbox_was_changed_goes_on() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&dataset(
        "select id, name, price from products",
        "{ table = \"products\", key = { id = \"id\" } }",
    ));
    let _follower = follower(&context).await;
    for (harm, mend) in [
        (
            "alter table cachekeeper.outbox add column more int not null",
            "alter table cachekeeper.outbox drop column more",
        ),
        (
            "alter table cachekeeper.outbox add constraint harm check (capture > 5) not valid",
            "alter table cachekeeper.outbox drop constraint harm",
        ),
    ] {
        let mut session = rig.postgres.session().await.unwrap();
        session.execute("update products set price = 0 where id = 7").await.unwrap();
        captured(&rig).await;
        session
            .execute("begin isolation level repeatable read; select count(*) from products")
            .await
            .unwrap();
        rig.postgres.execute(harm).await.unwrap();
        session.execute("update products set price = 1 where id < 7; update products set price = 1 where id = 9; commit").await.unwrap();
        // Plans that this transaction made do not outlive what it could not see.
        session.execute("update products set price = 2 where id in (7, 8)").await.unwrap();
        assert_eq!(captured(&rig).await, "");
        rig.postgres.execute(mend).await.unwrap();
    }
}

/// A row counts once more for each KiB of its keys, so that a statement is bounded in bytes too.
#[tokio::test]
async fn long_keys_count_by_their_length() {
    let rig = Rig::start("create table products (id int primary key, name text, price int)").await;
    let watch =
        "{ table = \"products\", key = { id = \"id\" } }, { table = \"products\", tag = \"name:{name}\" }";
    let context =
        rig.context(&format!("[feed]\nmax_rows = 100\n{}", dataset("select id, name from products", watch)));
    let _follower = follower(&context).await;
    writes(&rig, "insert into products select n, repeat('x', 5000), 0 from generate_series(1, 90) n").await;
    assert_eq!(count(&rig, "select count(*) from cachekeeper.outbox").await, 21);
    assert!(captured(&rig).await.ends_with("all"));
    writes(&rig, "update products set price = 1 where id <= 15").await;
    assert_eq!(count(&rig, "select count(*) from cachekeeper.outbox where keys is not null").await, 15);
}
