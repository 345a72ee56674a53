//! Watched columns that change, and rows that do not arrive where they were sent: what a trigger function was made for is not what it
//! meets.

use cachekeeper::app::Worker;
use cachekeeper_engine::coverage;
use redis::AsyncCommands;

use crate::capture::{reason, settle};
use crate::feed::{agrees, caught_up, ready};
use crate::support::{Cli, Rig, wait_until};

const PRODUCTS: &str = "create table products (id int primary key, name text);\
                        insert into products select n, 'product ' || n from generate_series(1, 20) n;";
const DATASET: &str = "[dataset.product]\nquery = \"select id, name from products\"\nkey = \"product:{id}\"\nformat = \"json\"\nwarm = {}\n\
                       watch = [{ table = \"products\", key = { id = \"id\" } }]\n";

async fn is_there(rig: &Rig, key: &str) -> bool {
    rig.client().await.exists(key).await.unwrap()
}

/// A partition may refuse the row that is moved to it: then it is deleted, and inserted nowhere.
#[tokio::test]
async fn a_row_that_its_new_partition_refuses_is_deleted_by_statement_too() {
    for capture in ["row", "statement"] {
        let rig = Rig::start(
            "create table pt (id int, price int, d int, primary key (id, d)) partition by list (d);
             create table p1 partition of pt for values in (1); create table p2 partition of pt for values in (2);
             create function refuse() returns trigger language plpgsql as 'begin return null; end';
             create trigger refuse before insert on p1 for each row execute function refuse();
             insert into pt select n, n, 2 from generate_series(30, 50) n;",
        )
        .await;
        let watch = format!(
            "watch = [{{ table = \"pt\", key = {{ id = \"id\", d = \"d\" }}, capture = \"{capture}\" }}]"
        );
        let dataset =
            "[dataset.a]\nquery = \"select id, price, d from pt\"\nkey = \"a:{id}:{d}\"\nwarm = {}\n";
        let worker = Worker::start(rig.config(&format!("{dataset}{watch}"))).await.unwrap();
        ready(&worker).await;
        for statement in [
            "update pt set d = 1 where id = 33",
            "update pt set d = 1 where id in (34, 35)",
            "update pt set price = price + 1, d = case when id = 36 then 1 else d end where id in (36, 37, 38)",
        ] {
            rig.postgres.execute(statement).await.unwrap();
            caught_up(&worker).await;
            agrees(&worker).await;
        }
        assert!(
            !is_there(&rig, "a:33:2").await
                && !is_there(&rig, "a:36:2").await
                && is_there(&rig, "a:37:2").await
        );
        assert!(worker.stop().await);
    }
}

/// `7 = 7.0`, but they are two keys; and a text of a time follows the session's settings unless they are pinned.
#[tokio::test]
async fn a_column_of_another_type_is_captured_by_other_functions() {
    let rig = Rig::start(PRODUCTS).await;
    let worker = Worker::start(rig.config(DATASET)).await.unwrap();
    ready(&worker).await;
    // Writes with the old functions, open while they are replaced.
    let mut open = rig.postgres.session().await.unwrap();
    rig.postgres.execute("alter table products alter column id type numeric").await.unwrap();
    open.execute("begin").await.unwrap();
    open.execute("update products set id = 7.0 where id = 7").await.unwrap();
    wait_until("the functions are those of the new type", async || {
        let sql = "select (prosrc like '%types 1:1700;%')::text from pg_proc where proname = 'capture_1'";
        let mut session = rig.postgres.session().await.map_err(|error| error.to_string())?;
        let found = session.text(sql).await.map_err(|error| error.to_string())?;
        if found.as_deref() == Some("true") { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    open.execute("commit").await.unwrap();
    caught_up(&worker).await;
    agrees(&worker).await;
    rig.postgres.execute("update products set id = 8.00 where id = 8").await.unwrap();
    caught_up(&worker).await;
    agrees(&worker).await;
    assert!(is_there(&rig, "product:8.00").await && !is_there(&rig, "product:8").await);
    assert!(worker.stop().await);
}

/// A session keeps what it has compiled until the function is replaced.
#[tokio::test]
async fn sessions_that_are_open_capture_keys_of_a_wider_type() {
    let rig = Rig::start(PRODUCTS).await;
    let context = rig.context(DATASET);
    assert_eq!(reason(&context, true).await, None);
    let mut open = rig.postgres.session().await.unwrap();
    open.execute("update products set name = 'x' where id = 1").await.unwrap();
    rig.postgres.execute("alter table products alter column id type bigint").await.unwrap();
    // Whoever looks and may not install says so.
    let found = reason(&context, false).await.unwrap();
    assert!(found.contains("made for columns of other types; run `cachekeeper migrate`"), "{found}");
    Cli::new(&rig, DATASET).says(&["migrate"], 0, &[]);
    assert_eq!(reason(&context, false).await, None);
    for _ in 0..3 {
        open.execute("update products set name = name || 'x' where id = 3").await.unwrap();
    }
    let whole = open.text("select count(*)::text from cachekeeper.outbox where keys is null").await.unwrap();
    assert_eq!(whole.as_deref(), Some("0"), "each change carries its key");
    // Nothing to do, and nothing is done.
    assert_eq!(reason(&context, true).await, None);
}

#[tokio::test]
async fn a_limit_of_temporary_files_that_is_set_later_ends_the_capture_by_statement() {
    let rig = Rig::start(PRODUCTS).await;
    let by_statement = DATASET.replace("\" } }]", "\" }, capture = \"statement\" }]");
    let context = rig.context(&by_statement);
    let mut follower = crate::capture::follower(&context).await;
    let mode = "select mode from cachekeeper.capture";
    let mut session = rig.postgres.session().await.unwrap();
    assert_eq!(session.text(mode).await.unwrap().as_deref(), Some("statement"));
    let before = coverage::look(&context, false).await.unwrap();
    rig.postgres.execute("create role writer; alter role writer set temp_file_limit = '5MB'").await.unwrap();
    assert!(!coverage::is_current(&context, &before).await.unwrap(), "the limit counts in the fingerprint");
    let found = reason(&context, false).await.unwrap();
    assert!(found.contains("temp_file_limit of writer is 5MB"), "{found}");
    assert_eq!(reason(&context, true).await, None);
    assert_eq!(session.text(mode).await.unwrap().as_deref(), Some("row"));
    settle(&mut follower).await;
}

#[tokio::test]
async fn functions_of_the_server_that_say_what_stands_elsewhere_are_not_covered() {
    let rig = Rig::start(PRODUCTS).await;
    for (expression, function) in [
        ("schema_to_xml('public', true, false, '')", "schema_to_xml"),
        ("obj_description('products'::regclass)", "obj_description"),
        ("has_table_privilege('products', 'select')", "has_table_privilege"),
        ("to_regclass('nothing')::text", "to_regclass"),
        ("pg_get_userbyid(10)", "pg_get_userbyid"),
    ] {
        let dataset = DATASET.replace("id, name from", &format!("id, {expression} as said from"));
        let found = reason(&rig.context(&dataset), true).await.unwrap();
        assert!(found.contains(function) && found.contains("which says what stands"), "{found}");
        Cli::new(&rig, &dataset).says(&["check"], 0, &[function, "their changes are missed"]);
        // Whoever names what decides about it knows better.
        let named = dataset.replace("watch =", "reads = [\"products\"]\nwatch =");
        assert_eq!(reason(&rig.context(&named), true).await, None);
    }
}

#[tokio::test]
async fn any_name_of_a_column_can_be_watched() {
    let name = "a$capture$b$capture0$\nc";
    let rig = Rig::start(&format!(
        "create table products (\"{name}\" int primary key); insert into products select generate_series(1, 3)"
    ))
    .await;
    let dataset = "[dataset.product]\nquery = \"\"\"select \"{name}\" as id from products\"\"\"\nkey = \"product:{id}\"\nwarm = {}\n\
                   watch = [{ table = \"products\", key = { id = \"{toml}\" } }]\n";
    let dataset = dataset.replace("{name}", name).replace("{toml}", "a$capture$b$capture0$\\nc");
    let worker = Worker::start(rig.config(&dataset)).await.unwrap();
    ready(&worker).await;
    rig.postgres.execute(&format!("update products set \"{name}\" = 7 where \"{name}\" = 2")).await.unwrap();
    caught_up(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

/// What one dataset asks for in vain keeps no other one from being covered.
#[tokio::test]
async fn a_rule_with_a_wrong_column_is_one_datasets_alone() {
    let rig = Rig::start(PRODUCTS).await;
    let wrong = DATASET
        .replace("product", "other")
        .replace("others", "products")
        .replace("id = \"id\"", "id = \"number\"");
    let context = rig.context(&format!("{DATASET}{wrong}"));
    let found = coverage::look(&context, true).await.unwrap();
    let gaps: Vec<(&String, &String)> = found.gaps().collect();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert!(gaps[0].0 == "other" && gaps[0].1.contains("has no column number"), "{gaps:?}");
}
