//! The screen of settings against a worker that is a process, whose file can be changed; and what the other screens let people do.

use std::process::{Child, Command, Stdio};

use cachekeeper::actors::refresher::Refresher;
use cachekeeper::actors::task::Task;
use cachekeeper::supervisor::SupervisorMessage;
use cachekeeper_testkit::servers::free_port;
use serde_json::json;

use super::browser::{Browser, Page};
use super::{DATASETS, Shop, TABLES, cell};
use crate::support::{Cli, Rig, wait_until};

const PRODUCT: &str = "[dataset.product]\nquery = \"select id, name from products\"\nkey = \"product:{id}\"\nttl = \"2h\"\n\
                       warm = { on_start = true }\nwatch = [{ table = \"products\", key = { id = \"id\" } }]\n";

struct Process(Child);

impl Process {
    /// As a script would ask for it, which waits for no answer.
    fn reload(&self) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Pictures of a screen for people to look at, where a directory for them is named.
async fn pictures(page: &Page<'_>, name: &str) {
    let Ok(directory) = std::env::var("CACHEKEEPER_PICTURES") else { return };
    for (theme, width) in [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)] {
        page.set_theme(theme).await;
        page.set_width(width).await;
        let taken = page.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true })).await;
        let path = format!("{directory}/{name}-{theme}-{width}.png.base64");
        std::fs::write(path, taken["data"].as_str().unwrap()).unwrap();
    }
    page.set_width(1280).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_tell_their_origin_and_are_compared_and_reloaded() {
    let rig = Rig::start(TABLES).await;
    let port = free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let cli = Cli::new(&rig, PRODUCT).with("CACHEKEEPER__ADMIN__LISTEN", &listen);
    let mut command = cli.command(&["run"]);
    let worker = Process(command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    wait_until("the worker is ready", async || {
        let (code, text) = cli.run(&["healthcheck", "--ready"]);
        if code == 0 { Ok(()) } else { Err(text) }
    })
    .await;
    let browser = Browser::start();
    let page = browser.open(&format!("http://{listen}/#/settings")).await;
    page.reads(&["The file", "none since the start", "Nobody has done anything"]).await;
    let from = |setting: &str| cell("Given settings", setting, "From");
    page.until("the line is told", &format!("{} === 'line 4'", from("dataset.product.ttl"))).await;
    let variable = format!("{}.includes('CACHEKEEPER__ADMIN__LISTEN')", from("admin.listen"));
    page.until("so is the variable", &variable).await;
    let text = page.text().await;
    assert!(text.contains("(not shown)") && !text.contains("postgres://"), "{text}");

    // A mistake is shown with its place; what counts stays.
    std::fs::write(&cli.file, PRODUCT.replace("\"2h\"", "\"2 hourz\"")).unwrap();
    page.press("button", "Compare with the file").await;
    page.reads(&["ttl = \"2 hourz\"", "^^^"]).await;
    worker.reload();
    page.reads(&["failed; the configuration stayed as it was"]).await;
    page.until(
        "so is that of the last reload",
        "document.querySelector('#reload-error')?.innerText.includes('^^^')",
    )
    .await;
    pictures(&page, "settings-wrong").await;

    std::fs::write(&cli.file, PRODUCT.replace("\"2h\"", "\"3h\"")).unwrap();
    page.press("button", "Compare with the file").await;
    let after = cell("Differences", "dataset.product.ttl", "In the file");
    page.until("the difference is shown", &format!("{after} === '\"3h\"'")).await;
    page.press("button", "Reload").await;
    page.reads(&["Load the configuration again?", "1 setting changes: dataset.product.ttl."]).await;
    page.press("dialog button", "Reload").await;
    let value = cell("Given settings", "dataset.product.ttl", "Value");
    page.until("it counts", &format!("{value} === '\"3h\"'")).await;
    page.reads(&["1 setting changed", "Who did what", "POST /api/v1/reload?dry_run=true", "refused (422)"])
        .await;
    page.chooses("#level", "debug").await;
    page.press("button", "Set the level").await;
    page.press("dialog button", "Set the level").await;
    page.reads(&["the level of the log is debug until", "POST /api/v1/log-level"]).await;
    pictures(&page, "settings").await;
    page.has_no_problem_but(&["422"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dataset_is_paused_and_its_backfill_cancelled() {
    let datasets =
        DATASETS.replace("warm = {}", "warm = { schedule = \"0 3 * * *\", rate = 200 }\n ttl = \"2h\"");
    let shop = Shop::start_with(TABLES, &datasets).await;
    shop.until("it is warm", "/api/v1/datasets/product", |one| one["last_backfill_entries"] == 20).await;
    let browser = Browser::start();
    let page = browser.open(&shop.address("#/datasets")).await;
    page.reads(&["next in "]).await;
    page.until(
        "the size is estimated",
        &format!("{}?.startsWith('≈ ')", cell("Datasets", "product", "Size")),
    )
    .await;
    page.until("so is the age", &format!("{}?.startsWith('≤ ')", cell("Datasets", "product", "Age"))).await;
    page.press("tr[data-row=product] button", "Pause").await;
    page.reads(&["Pause product, for all workers?", "20 entries"]).await;
    page.press("dialog button", "Pause product").await;
    let state = cell("Datasets", "product", "State");
    page.until("it is paused", &format!("{state}?.startsWith('paused')")).await;
    page.set_width(1280).await;
    let fits =
        "(({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth)(document.querySelector('#datasets'))";
    page.until("the table has room", fits).await;
    pictures(&page, "datasets").await;
    page.press("tr[data-row=product] button", "Resume").await;
    page.press("dialog button", "Resume product").await;
    page.until("it goes on", &format!("{state}?.startsWith('fresh')")).await;

    let rows = "insert into products select n, 'product ' || n, n, n % 3 from generate_series(21, 5000) n";
    shop.rig.postgres.execute(rows).await.unwrap();
    page.go("#/datasets/product").await;
    page.press("button", "Warm").await;
    page.press("dialog button", "Warm 20 entries").await;
    page.reads(&["Backfill under way", " a second"]).await;
    pictures(&page, "dataset").await;
    page.press("button", "Cancel the backfill").await;
    page.press("dialog button", "Cancel the backfill").await;
    page.reads(&["the backfill of product is cancelled"]).await;
    shop.until("it has ended", "/api/v1/datasets/product", |one| one["backfill"].is_null()).await;
    page.until("nothing is under way", "document.querySelector('#backfill') === null").await;
    page.reads(&["Settings in effect", "default"]).await;
    // It is not begun again: one of another dataset, which is asked for later, has its turn and ends.
    const OTHER: &str = "datasets/%3Cb%3Enote%3C%2Fb%3E";
    let before = shop.ask(&format!("/api/v1/{OTHER}")).await["last_backfill_ms"].clone();
    page.go(&format!("#/{OTHER}")).await;
    page.press("button", "Warm").await;
    page.press("dialog button", "Warm it").await;
    shop.until("the other one is warm", &format!("/api/v1/{OTHER}"), |one| one["last_backfill_ms"] != before)
        .await;
    let product = shop.ask("/api/v1/datasets/product").await;
    assert!(product["backfill"].is_null() && product["last_backfill_entries"] == 20, "{product}");
    page.has_no_problem_but(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_rows_last_failures_leases_and_what_was_lost_are_told() {
    let shop = Shop::start().await;
    let browser = Browser::start();
    shop.rig.postgres.execute("update products set price = 0 where id = 5").await.unwrap();
    let page = browser.open(&shop.address("#/now")).await;
    page.reads(&[
        "dataset product: 1 row has no entry; product:5: ",
        "division by zero",
        "Its page names each row",
    ])
    .await;
    assert!(!page.text().await.contains("tables lost"));
    let listen = format!("127.0.0.1:{}", shop.port);
    let cli = Cli::new(&shop.rig, DATASETS).with("CACHEKEEPER__ADMIN__LISTEN", &listen);
    cli.says(
        &["status"],
        0,
        &["no entry   dataset product: 1 row has no entry; product:5: ", "division by zero"],
    );
    pictures(&page, "now").await;

    let supervisor = shop.worker.as_ref().unwrap().supervisor();
    supervisor.cast(SupervisorMessage::Kill(Refresher::NAME)).unwrap();
    page.go("#/machine").await;
    page.until(
        "the failure is told",
        &format!("Boolean({})", cell("Tasks", Refresher::NAME, "Last failure")),
    )
    .await;
    page.reads(&["Workers and leases", "Registered for", "What a lease names", "this worker", "Epochs"])
        .await;
    let held = shop.ask("/api/v1/leases").await;
    let (own, others) = (&held["workers"][0], held["workers"].as_array().map_or(0, Vec::len));
    assert!(own["is_own"] == true && own["datasets"][0].is_string() && others == 1, "{held}");
    pictures(&page, "machine").await;

    // What a slow page did not see: the stream says so.
    page.value("void (() => { const Own = EventSource; window.EventSource = class extends Own { constructor(at) { super(at); window.stream = this; } }; })()")
        .await;
    page.go("#/live").await;
    page.until("the stream is open", "window.stream?.readyState === 1").await;
    page.value("window.stream.dispatchEvent(new MessageEvent('lost', { data: '{\"lost\":7}' }))").await;
    page.reads(&["7 touches went by unseen"]).await;
    page.has_no_problem_but(&[]);
}
