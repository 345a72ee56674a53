//! `cachekeeper tap` beside a real worker: what it shows, how it goes on, and how it ends.

use std::future::ready;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use cachekeeper_testkit::servers::free_port;
use serde_json::Value;

use crate::support::{Cli, Rig, wait_until};

const DATASET: &str = "[dataset.product]\nquery = \"select id, name from products\"\nkey = \"product:{id}\"\nwarm = {}\n\
                       watch = [{ table = \"products\", key = { id = \"id\" } }]\n";

/// A worker as a process, on an address of its own.
pub struct Shop {
    pub rig: Rig,
    pub cli: Cli,
    pub worker: Child,
}

impl Shop {
    pub async fn start(admin: &str) -> Self {
        let rig = Rig::start(
            "create table products (id int primary key, name text); insert into products values (1, 'x'), (2, 'y')",
        )
        .await;
        let listen = format!("127.0.0.1:{}", free_port().unwrap());
        let cli = Cli::new(&rig, &format!("[log]\nlevel = \"error\"\n[admin]\n{admin}\n{DATASET}"))
            .with("CACHEKEEPER__ADMIN__LISTEN", &listen);
        let worker = cli.command(&["run"]).stdout(Stdio::null()).spawn().unwrap();
        let shop = Self { rig, cli, worker };
        shop.is_ready().await;
        shop
    }

    pub async fn is_ready(&self) {
        wait_until("the worker is ready", async || {
            let (code, text) = self.cli.run(&["healthcheck", "--ready"]);
            if code == 0 { Ok(()) } else { Err(text) }
        })
        .await;
    }

    pub fn kill(&mut self) {
        self.worker.kill().unwrap();
        self.worker.wait().unwrap();
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        drop(self.worker.kill());
        drop(self.worker.wait());
    }
}

/// A verb that is followed line by line.
struct Followed {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Followed {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|length| 0 < length) {
                drop(sender.send(std::mem::take(&mut line)));
            }
        });
        Self { child, lines }
    }

    /// Waits for a line with this, and gives those before it too.
    async fn shows(&self, what: &str) -> String {
        let mut all = String::new();
        wait_until(&format!("a line with {what:?}"), || {
            all.extend(self.lines.try_iter());
            ready(if all.contains(what) { Ok(all.clone()) } else { Err(all.clone()) })
        })
        .await
    }

    async fn ends(&mut self) -> Option<i32> {
        wait_until("it has ended", || {
            let status = self.child.try_wait().unwrap();
            ready(status.map(|status| status.code()).ok_or("it runs".to_owned()))
        })
        .await
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn what_happens_is_shown_as_it_comes_also_after_the_worker_was_started_again() {
    let mut shop = Shop::start("").await;
    let set = async |id: u32, name: &str| {
        shop.rig
            .postgres
            .execute(&format!("update products set name = '{name}' where id = {id}"))
            .await
            .unwrap();
    };
    let arguments =
        ["tap", "--format", "json", "--key", "product:*", "--kind", "change", "--dataset", "product"];
    let mut json = Followed::start(shop.cli.command(&arguments));
    let text = Followed::start(shop.cli.command(&["tap"]));
    let other = Followed::start(shop.cli.command(&["tap", "--kind", "refused", "--key", "product:2"]));
    // It is not known when they have begun to follow.
    wait_until("both follow", async || {
        set(1, "again").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let shown = (json.lines.try_recv(), text.lines.try_recv());
        if let (Ok(json), Ok(text)) = &shown {
            let touch: Value = serde_json::from_str(json).unwrap();
            assert_eq!((&touch["key"], &touch["what"]), (&"product:1".into(), &"stored".into()));
            assert!(text.contains("stored   change       product          product:1"), "{text}");
            return Ok(());
        }
        Err(format!("{shown:?}"))
    })
    .await;
    shop.kill();
    json.shows("\"event\":\"disconnected\"").await;
    shop.worker = shop.cli.command(&["run"]).stdout(Stdio::null()).spawn().unwrap();
    shop.is_ready().await;
    json.shows("\"event\":\"another_worker\"").await;
    shop.rig.postgres.execute("update products set name = 'new' where id = 2").await.unwrap();
    let shown = json.shows("\"key\":\"product:2\"").await;
    assert!(shown.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{shown}");
    assert_eq!(other.lines.try_iter().collect::<Vec<_>>(), Vec::<String>::new());
    let file = std::fs::read_to_string(&shop.cli.file).unwrap();
    std::fs::write(&shop.cli.file, format!("{file}ttl = \"20m\"\n")).unwrap();
    shop.cli.says(&["reload"], 0, &["dataset.product.ttl"]);
    json.shows("\"event\":\"another_worker\"").await;
    // What was shown is not shown again.
    shop.rig.postgres.execute("update products set name = 'last' where id = 1").await.unwrap();
    let shown = json.shows("\"key\":\"product:1\"").await;
    assert!(!shown.contains("product:2"), "{shown}");
    let signal = Command::new("kill").args(["-INT", &json.child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    assert_eq!(json.ends().await, Some(0));
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_it_although_nothing_happens() {
    let shop = Shop::start("").await;
    let mut child = shop.cli.command(&["tap", "--key", "none:*"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut tap = Followed { child, lines: mpsc::channel().1 };
    assert_eq!(tap.ends().await, Some(0));
}

#[tokio::test]
async fn whoever_cannot_follow_is_told_what_to_do() {
    let directory = std::env::temp_dir().join(format!("cachekeeper-tap-{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(&directory).unwrap();
    let token = directory.join("token");
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    let mut shop = Shop::start(&format!("read_token_file = \"{}\"", token.display())).await;
    let listen = shop.cli.environment.iter().find(|(name, _)| name == "CACHEKEEPER__ADMIN__LISTEN");
    let listen = listen.unwrap().1.clone();
    let without = Cli::new(&shop.rig, DATASET).with("CACHEKEEPER__ADMIN__LISTEN", &listen);
    without.says(&["tap"], 78, &["asks for a token", "token_file"]);
    let with = std::fs::read_to_string(&shop.cli.file).unwrap();
    let other = Cli::new(&shop.rig, &with)
        .with("CACHEKEEPER__ADMIN__LISTEN", &listen)
        .with("CACHEKEEPER__SERVICE__NAMESPACE", "other");
    other.says(&["tap"], 78, &["is of namespace test", "of other", "-c"]);
    shop.cli.says(&["tap", "--dataset", "produkt"], 2, &["did you mean product?"]);
    shop.cli.says(&["tap", "--kind", "nonsense"], 2, &["change", "refused"]);
    shop.kill();
    let json = shop.cli.json(&["tap"]);
    assert!(json["error"].as_str().unwrap().contains("no worker answers on"), "{json}");
    shop.cli.says(&["tap"], 69, &["no worker answers on", "cachekeeper run"]);
    Cli::new(&shop.rig, DATASET).with("CACHEKEEPER__ADMIN__LISTEN", "").says(
        &["tap"],
        78,
        &["listener is off"],
    );
    std::fs::remove_dir_all(directory).unwrap();
}
