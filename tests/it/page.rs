//! The page of the admin listener in a real browser: each screen against a real worker on real servers, compared with what these hold.

mod browser;
mod settings;

use std::path::PathBuf;

use cachekeeper::app::Worker;
use cachekeeper_config::Admin;
use cachekeeper_testkit::servers::free_port;
use redis::AsyncCommands;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use self::browser::{Browser, Page};
use crate::support::{Rig, wait_until};

/// What a page would do with it, if it were taken for more than text.
const HTML: &str = "<img src=x onerror=alert(1)>";

const TABLES: &str = "
    create table products (id int primary key, name text, price numeric check (0 <= price), category int);
    insert into products select n, 'product ' || n, n, n % 3 from generate_series(1, 20) n;
    create table notes (id text primary key, note text);
    insert into notes values ('<img src=x onerror=alert(1)>', 'a note'), ('plain', '<img src=x onerror=alert(1)>');";

const DATASETS: &str = r#"
    [dataset.product]
    query = "select id, name, price, 100 / price as share, category from products"
    key = "product:{id}"
    tags = ["category:{category}"]
    warm = {}
    watch = [{ table = "products", key = { id = "id" } }]
    [dataset.product.write]
    statement = "update products set price = :price where id = :id"

    [dataset."<b>note</b>"]
    query = "select id, note from notes where note <> '<i>none</i>'"
    key = "note:{id}"
    scope = "cached"
    negative_ttl = "30s"
    watch = [{ table = "notes", key = { id = "id" } }]
"#;

const SCREENS: [&str; 7] =
    ["#/now", "#/datasets", "#/datasets/product", "#/key?key=product:7", "#/live", "#/machine", "#/settings"];

/// A worker with its page.
struct Shop {
    rig: Rig,
    worker: Option<Worker>,
    port: u16,
    directory: Option<PathBuf>,
}

impl Shop {
    async fn start() -> Self {
        let shop = Self::start_with(TABLES, DATASETS).await;
        shop.until("the watermark covers everything", "/api/v1/now", |now| {
            now["ready"] == true && now["sentence"].as_str().is_some_and(|said| said.starts_with("All 2 "))
        })
        .await;
        shop
    }

    async fn start_with(tables: &str, datasets: &str) -> Self {
        Self::start_as(tables, datasets, |_| ()).await
    }

    async fn start_as(tables: &str, datasets: &str, set: impl FnOnce(&mut Admin)) -> Self {
        let rig = Rig::start(tables).await;
        let port = free_port().unwrap();
        let mut config = rig.config(datasets);
        set(&mut config.admin);
        config.admin.listen = Some(format!("127.0.0.1:{port}"));
        let worker = Worker::start(config).await.unwrap();
        Self { rig, worker: Some(worker), port, directory: None }
    }

    fn address(&self, hash: &str) -> String {
        format!("http://127.0.0.1:{}/{hash}", self.port)
    }

    /// What the API says, without a browser.
    async fn ask(&self, path: &str) -> Value {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)).await else { return Value::Null };
        let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let body = reply.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        serde_json::from_str(body).unwrap_or(Value::Null)
    }

    async fn until(&self, what: &str, path: &str, is_so: impl Fn(&Value) -> bool) {
        wait_until(what, async || {
            let said = self.ask(path).await;
            if is_so(&said) { Ok(()) } else { Err(said.to_string()) }
        })
        .await;
    }

    async fn entry(&self, key: &str) -> Option<String> {
        let value: Option<Vec<u8>> = self.rig.client().await.get(key).await.unwrap();
        value.map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    async fn holds(&self, key: &str, part: Option<&str>) {
        wait_until(&format!("{key} holds {part:?}"), async || {
            let entry = self.entry(key).await;
            let is_so = match part {
                Some(part) => entry.as_ref().is_some_and(|entry| entry.contains(part)),
                None => entry.is_none(),
            };
            if is_so { Ok(()) } else { Err(format!("{entry:?}")) }
        })
        .await;
    }
}

/// A cell of a table, by the row's name and the column's head.
fn cell(table: &str, row: &str, head: &str) -> String {
    format!(
        "[...document.querySelectorAll('table[aria-label={table:?}] tbody tr')].find((one) => one.dataset.row === {row:?})
        ?.querySelector('td[data-head={head:?}] > .cell')?.innerText"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn now_and_datasets_show_what_the_servers_hold() {
    let shop = Shop::start().await;
    let browser = Browser::start();
    let page = browser.open(&shop.address("")).await;
    page.reads(&["All 2 datasets are at least as fresh as", "Nothing needs you.", "Watermark age"]).await;
    page.until("the address names the screen", "location.hash === '#/now'").await;
    // Changes are counted as they come.
    shop.rig.postgres.execute("update products set name = 'changed' where id <= 3").await.unwrap();
    shop.holds("product:3", Some("changed")).await;
    wait_until("the page counts what the worker counts", async || {
        let counted = shop.ask("/api/v1/now").await["totals"]["stored"].to_string();
        let shown = page.value(&cell("Counts", "stored", "Since the start")).await;
        if shown == json!(counted) && counted != "0" {
            Ok(())
        } else {
            Err(format!("{shown} is not {counted}"))
        }
    })
    .await;

    page.press("nav a", "Datasets").await;
    page.reads(&["All 2 are fresh.", "product:{id}", "<b>note</b>"]).await;
    page.until(
        "the entries of the start are shown",
        &format!("{} === '20'", cell("Datasets", "product", "Entries")),
    )
    .await;
    shop.rig.postgres.execute("insert into products values (21, 'new', 1, 1)").await.unwrap();
    // The question names how many; who says no has done nothing.
    page.press("tr[data-row=product] button", "Warm").await;
    page.reads(&["Warm product?", "stored 20 entries"]).await;
    page.key("Escape", 27).await;
    page.until("the question is gone", "document.querySelector('dialog') === null").await;
    page.press("tr[data-row=product] button", "Warm").await;
    page.press("dialog button", "Warm 20 entries").await;
    page.reads(&["Done: a backfill of product is wanted"]).await;
    page.until("the backfill is shown", &format!("{} === '21'", cell("Datasets", "product", "Entries")))
        .await;
    assert!(shop.entry("product:21").await.is_some());
    page.until("both backfills are drawn", "document.querySelector('tr[data-row=product] .bars')?.getAttribute('aria-label').startsWith('2 backfills: ')")
        .await;
    page.has_no_problem_but(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dataset_shows_what_it_is_made_of_and_its_refused_rows() {
    let shop = Shop::start().await;
    let browser = Browser::start();
    let page = browser.open(&shop.address("#/datasets/product")).await;
    page.reads(&[
        "Every entry is at least as fresh",
        "100 / price as share",
        "category:{category}",
        "None that this worker has met",
    ])
    .await;
    // One row that cannot be computed.
    shop.rig.postgres.execute("update products set price = 0 where id = 5").await.unwrap();
    page.reads(&["Rows without an entry (1)", "product:5", "division by zero"]).await;
    shop.until("it is counted", "/api/v1/now", |now| {
        now["totals"]["failed"].as_u64().is_some_and(|failed| 0 < failed)
    })
    .await;
    let shown = page.value("location.hash").await;
    page.press("#without-entry a", "product:5").await;
    page.reads(&["refused: ", "division by zero"]).await;
    assert_eq!(shown, json!("#/datasets/product"));
    shop.rig.postgres.execute("update products set price = 5 where id = 5").await.unwrap();
    shop.holds("product:5", Some("share")).await;
    page.go("#/datasets/product").await;
    page.reads(&["None that this worker has met"]).await;
    // A name is text, in the address as well.
    page.go(&format!("#/datasets/{}", "%3Cb%3Enote%3C%2Fb%3E")).await;
    page.reads(&["<b>note</b>", "<i>none</i>"]).await;
    page.go("#/datasets/nothing").await;
    page.reads(&["No dataset is named nothing."]).await;
    page.has_no_problem_but(&["404"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closer_look_shows_relations_lifetimes_and_rows() {
    let shop = Shop::start().await;
    let browser = Browser::start();
    let page = browser.open(&shop.address("#/datasets/product")).await;
    let captured = cell("Relations", "products", "Changes captured");
    page.until("every change is captured", &format!("{captured} === '✓ yes'")).await;
    page.reads(&["What is left to all 20: between", "Rows as they would be stored"]).await;
    page.until("ten rows are shown", "document.querySelectorAll('#rows tbody tr').length === 10").await;
    page.until(
        "each as it is",
        &format!(
            "{}.includes('\"name\":\"product 1\"')",
            cell("Rows as they would be stored", "product:1", "Value")
        ),
    )
    .await;
    shop.rig
        .postgres
        .execute("alter table products disable trigger user; update products set price = 0 where id = 1")
        .await
        .unwrap();
    page.press("button", "Look again").await;
    page.until("a trigger is missing", &format!("{captured} === '✗ no'")).await;
    page.reads(&["is disabled or missing", "refused: ", "division by zero"]).await;
    page.has_no_problem_but(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_writes_are_shown_replayed_and_discarded() {
    let shop = Shop::start().await;
    let write = async |price: i32| {
        let parameters = json!({ "id": 7, "price": price }).to_string();
        let mut client = shop.rig.client().await;
        let added: String = redis::cmd("XADD")
            .arg("cache:writes")
            .arg(&["*", "dataset", "product", "params", &parameters])
            .query_async(&mut client)
            .await
            .unwrap();
        added
    };
    for price in [-1, -2, -3] {
        write(price).await;
    }
    let browser = Browser::start();
    let page = browser.open(&shop.address("#/now")).await;
    page.reads(&["3 write commands were rejected", "is not in Postgres", "Since"]).await;
    page.press("nav a", "Machine room").await;
    page.reads(&["Rejected: 3.", "check constraint", "\"price\":\"-1\""]).await;
    // What was wrong is mended, and the first is tried again.
    shop.rig.postgres.execute("alter table products drop constraint products_price_check").await.unwrap();
    page.press("#letters tbody tr button", "Replay").await;
    page.reads(&["Replay 1 command?"]).await;
    page.press("dialog button", "Replay 1 command").await;
    page.reads(&["1 rejected command put back into cache:writes", "Rejected: 2."]).await;
    wait_until("the write is in Postgres", async || {
        let price = shop
            .rig
            .postgres
            .session()
            .await
            .unwrap()
            .text("select price::text from products where id = 7")
            .await
            .unwrap();
        if price.as_deref() == Some("-1") { Ok(()) } else { Err(format!("{price:?}")) }
    })
    .await;
    page.press("#letters button", "Discard these 2").await;
    page.reads(&["is lost", "for good"]).await;
    page.press("dialog button", "Discard 2 commands").await;
    page.reads(&["2 rejected commands of cache:writes discarded", "Rejected: 0."]).await;
    page.press("nav a", "Now").await;
    page.reads(&["Nothing needs you."]).await;
    page.has_no_problem_but(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_hidden_where_it_is_configured() {
    let shop = Shop::start_as(TABLES, DATASETS, |admin| admin.hides_values = true).await;
    shop.holds("product:7", Some("product 7")).await;
    let browser = Browser::start();
    let page = browser.open(&shop.address("#/key?key=product:7")).await;
    let text = page.reads(&["Right", "Values are hidden: [admin] hide_values = true."]).await;
    assert!(!text.contains("product 7"), "{text}");
    page.go("#/datasets/product").await;
    let text = page.reads(&["Values are hidden: [admin] hide_values = true.", "product:10"]).await;
    assert!(!text.contains("product 1"), "{text}");
    let explained = shop.ask("/api/v1/explain?key=product:7").await.to_string();
    assert!(explained.contains("\"right\"") && !explained.contains("product 7"), "{explained}");
    page.has_no_problem_but(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_explained_refreshed_and_deleted() {
    let shop = Shop::start().await;
    let browser = Browser::start();
    let page = browser.open(&shop.address("#/key")).await;
    page.types("#key", "product:7").await;
    page.press("form button", "Explain").await;
    page.reads(&["Right", "product 7", "the row as it would be stored now", "category:1"]).await;
    page.until("the key stands in the address", "location.hash === '#/key?key=product%3A7'").await;
    shop.rig.postgres.execute("update products set name = 'renamed' where id = 7").await.unwrap();
    shop.holds("product:7", Some("renamed")).await;
    page.press("button", "Look again").await;
    page.reads(&["renamed", "What touched it last", "change"]).await;

    // Refused unless it is confirmed; Cancel has the focus.
    page.press("button", "Delete").await;
    page.reads(&["Delete 1 entry, product:7, from Redis?"]).await;
    page.press("dialog button", "Cancel").await;
    page.until("the question is gone", "document.querySelector('dialog') === null").await;
    assert!(shop.entry("product:7").await.is_some());
    page.press("button", "Delete").await;
    page.press("dialog button", "Delete 1 entry").await;
    page.reads(&["1 deleted"]).await;
    shop.holds("product:7", None).await;
    page.press("button", "Refresh").await;
    page.press("dialog button", "Refresh 1 entry").await;
    page.reads(&["1 loaded again", "Right"]).await;
    shop.holds("product:7", Some("renamed")).await;

    // Keys and values are text.
    page.types("#key", &format!("note:{HTML}")).await;
    page.press("form button", "Explain").await;
    page.reads(&[HTML, "a note", "nobody has asked for it"]).await;
    page.types("#key", "note:plain").await;
    page.press("form button", "Explain").await;
    page.reads(&["note:plain", HTML]).await;
    assert_eq!(page.value("document.querySelectorAll('main img, main b, main i').length").await, json!(0));
    page.types("#key", "other:1").await;
    page.press("form button", "Explain").await;
    page.reads(&["belongs to no dataset"]).await;
    page.has_no_problem_but(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_shows_what_the_filters_let_through_until_it_is_paused() {
    let shop = Shop::start().await;
    let browser = Browser::start();
    let page = browser.open(&shop.address("#/live")).await;
    page.reads(&["Nothing yet."]).await;
    // The stream is open once the first touch is there; until then each change is a new one.
    wait_until("a touch is shown", async || {
        shop.rig.postgres.execute("update products set name = name || '.' where id = 1").await.unwrap();
        let text = page.text().await;
        if text.contains("product:1\n") || text.contains("product:1\t") { Ok(()) } else { Err(text) }
    })
    .await;
    page.chooses("#dataset", "product").await;
    page.chooses("#what", "stored").await;
    page.types("#pattern", "product:1?").await;
    page.key("Enter", 13).await;
    page.until(
        "the filters stand in the address",
        "location.hash === '#/live?dataset=product&what=stored&key=product%3A1%3F'",
    )
    .await;
    page.reads(&["Nothing that the filters let through yet."]).await;
    let keys = "[...document.querySelectorAll('#touches td[data-head=Key]')].map((one) => one.innerText.trim()).join()";
    wait_until("only what the filters let through is shown", async || {
        shop.rig
            .postgres
            .execute("update products set name = name || '.' where id in (3, 13)")
            .await
            .unwrap();
        let shown = page.value(keys).await;
        let shown = shown.as_str().unwrap();
        let is_so = !shown.is_empty() && shown.split(',').all(|key| key == "product:13");
        if is_so { Ok(()) } else { Err(shown.to_owned()) }
    })
    .await;
    page.press("button", "Pause").await;
    page.reads(&["Paused."]).await;
    let before = page.value(keys).await;
    shop.rig.postgres.execute("update products set name = 'late' where id = 14").await.unwrap();
    shop.holds("product:14", Some("late")).await;
    assert_eq!(page.value(keys).await, before);
    page.press("button", "Go on").await;
    page.until("what was missed is shown", &format!("{keys}.startsWith('product:14')")).await;
    page.has_no_problem_but(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_down_and_a_broken_dataset_are_shown() {
    let mut shop = Shop::start().await;
    let browser = Browser::start();
    let page = browser.open(&shop.address("#/machine")).await;
    page.reads(&["Every task runs, and every server answers.", "Postgres", "Subscription for events"]).await;
    let tasks = shop.ask("/api/v1/machine").await["tasks"].as_array().unwrap().len();
    let shown = page.value("document.querySelectorAll('table[aria-label=Tasks] tbody tr').length").await;
    assert_eq!(shown, json!(tasks));
    // A table that is gone breaks the dataset that reads it.
    shop.rig.postgres.execute("alter table notes rename to former").await.unwrap();
    page.go("#/datasets").await;
    page.until(
        "the dataset is broken",
        &format!("{}?.startsWith('broken')", cell("Datasets", "<b>note</b>", "State")),
    )
    .await;
    page.go("#/now").await;
    page.reads(&["Not ready", "notes", "Consequence", "Next step"]).await;
    shop.rig.postgres.execute("alter table former rename to notes").await.unwrap();
    page.reads(&["Nothing needs you."]).await;

    shop.rig.postgres.kill();
    page.reads(&["Not ready", "Needs attention", "postgres: ", "Entries stay readable and grow old"]).await;
    page.until("the title says it", "document.title.startsWith('(!) ')").await;
    page.go("#/machine").await;
    page.until("the server is down", &format!("{} === 'down'", cell("Servers", "postgres", "State"))).await;
    page.go("#/key?key=product:7").await;
    page.reads(&["Unknown", "product 7"]).await;
    shop.rig.postgres.start_again().await.unwrap();
    page.go("#/now").await;
    page.reads(&["Nothing needs you."]).await;

    // Without the worker: what is shown is old, and says so.
    assert!(shop.worker.take().unwrap().stop().await);
    page.reads(&["The worker does not answer.", "What you see is from"]).await;
    page.has_no_problem_but(&["ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_installation_says_how_to_begin() {
    let shop = Shop::start_with("select 1", "").await;
    shop.until("the worker is ready", "/api/v1/now", |now| now["ready"] == true).await;
    let browser = Browser::start();
    let page = browser.open(&shop.address("")).await;
    page.reads(&["No dataset is configured", "[dataset.NAME]"]).await;
    page.go("#/datasets").await;
    page.reads(&["There are no datasets yet.", "[dataset.product]"]).await;
    page.go("#/machine").await;
    page.reads(&["Every task runs"]).await;
    page.go("#/live").await;
    page.reads(&["Nothing yet."]).await;
    page.go("#/key?key=a").await;
    page.reads(&["belongs to no dataset"]).await;
    page.has_no_problem_but(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_runs_in_a_hidden_tab() {
    let shop = Shop::start().await;
    let browser = Browser::start();
    let hidden = browser.open(&shop.address("#/live")).await;
    hidden.reads(&["Nothing yet."]).await;
    let seen = browser.open(&shop.address("#/now")).await;
    seen.to_front().await;
    hidden.until("the tab is hidden", "document.hidden").await;
    let asked =
        async |page: &Page<'_>| page.requests().iter().filter(|path| path.contains("api/v1/now")).count();
    let asks_on = async || {
        let before = asked(&seen).await;
        wait_until("the visible tab asks on and on", async || {
            let now = asked(&seen).await;
            if before + 2 <= now { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
    };
    // What was under way ends; then the visible one goes on alone.
    asks_on().await;
    let under_way = hidden.requests().len();
    asks_on().await;
    let after: Vec<String> = hidden.requests().split_off(under_way);
    assert!(after.is_empty(), "{after:?}");
    shop.rig.postgres.execute("update products set name = 'hidden' where id = 1").await.unwrap();
    shop.holds("product:1", Some("hidden")).await;
    assert!(!hidden.text().await.contains("product:1"));
    hidden.to_front().await;
    hidden.until("it is seen again", "!document.hidden").await;
    wait_until("it asks again", async || {
        let now = hidden.requests().len();
        if under_way < now { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    hidden.has_no_problem_but(&[]);
    seen.has_no_problem_but(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_asked_for_and_says_what_its_holder_may() {
    const ACT: &str = "the-token-that-may-act-0123";
    const READ: &str = "the-token-that-may-read-0123";
    let directory = std::env::temp_dir().join(format!("cachekeeper-page-{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("act"), ACT).unwrap();
    std::fs::write(directory.join("read"), READ).unwrap();
    let mut shop = Shop::start_as(TABLES, DATASETS, |admin| {
        admin.token_file = Some(directory.join("act"));
        admin.read_token_file = Some(directory.join("read"));
    })
    .await;
    shop.directory = Some(directory);
    shop.holds("product:20", Some("product 20")).await;

    let stranger = Browser::start();
    let page = stranger.open(&shop.address("")).await;
    page.reads(&["a token is needed"]).await;
    stranger.knows_password(Some("a-wrong-token-0123456789"));
    page.call("Page.reload", json!({})).await;
    page.until("it was asked twice", "document.body.innerText.includes('a token is needed')").await;
    assert!(1 <= stranger.challenges());

    let reader = Browser::start();
    reader.knows_password(Some(READ));
    let page = reader.open(&shop.address("#/key?key=product:7")).await;
    page.reads(&["Right", "product 7"]).await;
    page.until(
        "a reader cannot choose an action, and is told why",
        "[...document.querySelectorAll('button')].some((one) => one.textContent === 'Delete' && one.disabled && one.title.includes('may only read'))",
    )
    .await;
    page.reads(&["may only read"]).await;
    page.has_no_problem_but(&[]);

    let actor = Browser::start();
    actor.knows_password(Some(ACT));
    let page = actor.open(&shop.address("#/key?key=product:7")).await;
    page.reads(&["Right", "product 7"]).await;
    page.press("button", "Delete").await;
    page.press("dialog button", "Delete 1 entry").await;
    page.reads(&["1 deleted"]).await;
    shop.holds("product:7", None).await;
    // Somebody wrote it into the address.
    let written = shop.address("#/now").replace("http://", &format!("http://anna:{ACT}@"));
    actor.open(&written).await.reads(&["All 2 datasets are at least as fresh as"]).await;
    page.to_front().await;
    assert_eq!(actor.challenges(), 1, "who gave a token is not asked again");
    // Another token, from now on: the page says so, and does not ask again and again.
    std::fs::write(shop.directory.as_ref().unwrap().join("act"), "another-token-that-may-act-01").unwrap();
    page.reads(&["The token does not count any more."]).await;
    let asked = page.requests().len();
    page.press("nav a", "Datasets").await;
    page.until("the next screen says it too", "document.querySelector('main h1')?.textContent === 'Datasets' && document.querySelector('main .note.bad') !== null").await;
    assert_eq!(page.requests().len(), asked);
    page.has_no_problem_but(&["401"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_screen_has_a_barrier_in_either_theme() {
    let axe = format!("{}/target/readers/node_modules/axe-core/axe.min.js", env!("CARGO_MANIFEST_DIR"));
    let axe = std::fs::read_to_string(axe)
        .expect("axe-core is missing: run tests/readers/install (make test does)");
    let shop = Shop::start().await;
    shop.rig.postgres.execute("update products set price = 0 where id = 5").await.unwrap();
    let browser = Browser::start();
    let page = browser.open(&shop.address("")).await;
    page.reads(&["All 2 datasets"]).await;
    page.value(&axe).await;
    let look = "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) =>
        violations.map(({ id, nodes }) => `${id}: ${nodes.map((one) => one.html + one.failureSummary).join()}`))";
    let mut found = Vec::new();
    for (screen, said) in SCREENS.into_iter().zip([
        "Watermark age",
        "No entry: rows",
        "division by zero",
        "category:1",
        "What",
        "Tasks",
        "Given settings",
    ]) {
        page.go(screen).await;
        page.reads(&[said]).await;
        for (theme, width) in [("light", 1280), ("dark", 390)] {
            page.set_theme(theme).await;
            page.set_width(width).await;
            page.until("it fits its width", "document.documentElement.scrollWidth <= innerWidth").await;
            let violations = page.value(look).await;
            for violation in violations.as_array().unwrap() {
                found.push(format!("{screen} {theme} {width}: {violation}"));
            }
        }
    }
    page.press("nav a", "Key").await;
    assert!(found.is_empty(), "{found:#?}");
    page.has_no_problem_but(&[]);
}

impl Drop for Shop {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            drop(std::fs::remove_dir_all(directory));
        }
    }
}
