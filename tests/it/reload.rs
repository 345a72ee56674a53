//! A worker that is changed while it runs: by the verb, the API and the signals, and what systemd is told of it.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cachekeeper_testkit::servers::free_port;
use serde_json::Value;

use crate::support::{Cli, Rig, wait_until};

const TABLES: &str = "create table products (id int primary key, name text); insert into products values (1, 'x'), (2, 'y');\
                      create table shops (id int primary key, town text); insert into shops values (7, 'Ulm')";
const PRODUCT: &str = "[dataset.product]\nquery = \"select id, name from products\"\nkey = \"product:{id}\"\nformat = \"json\"\n\
                       warm = { on_start = true }\nwatch = [{ table = \"products\", key = { id = \"id\" } }]\n";
const SHOP: &str = "[dataset.shop]\nquery = \"select id, town from shops\"\nkey = \"shop:{id}\"\nformat = \"json\"\n\
                    warm = { on_start = true }\nwatch = [{ table = \"shops\", key = { id = \"id\" } }]\n";

/// A worker as a process, whose file can be changed.
struct Running {
    cli: Cli,
    port: u16,
    child: Child,
    log: PathBuf,
}

impl Running {
    async fn start(rig: &Rig, environment: &[(&str, &str)]) -> Self {
        let running = Self::begin(rig, environment);
        running.is_ready().await;
        running
    }

    fn begin(rig: &Rig, environment: &[(&str, &str)]) -> Self {
        let port = free_port().unwrap();
        let cli =
            Cli::new(rig, &file(PRODUCT)).with("CACHEKEEPER__ADMIN__LISTEN", &format!("127.0.0.1:{port}"));
        let log = std::env::temp_dir().join(format!("cachekeeper-reload-{:016x}.log", rand::random::<u64>()));
        let output = std::fs::File::create(&log).unwrap();
        let mut command = cli.command(&["run"]);
        command.envs(environment.iter().copied()).stderr(Stdio::from(output)).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        Self { cli, port, child, log }
    }

    async fn is_ready(&self) {
        wait_until("the worker is ready", async || {
            let (code, text) = self.cli.run(&["healthcheck", "--ready"]);
            if code == 0 { Ok(()) } else { Err(text) }
        })
        .await;
    }

    fn write(&self, datasets: &str) {
        std::fs::write(&self.cli.file, file(datasets)).unwrap();
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    async fn logs(&self, part: &str) {
        wait_until(part, async || {
            let text = std::fs::read_to_string(&self.log).unwrap();
            if text.contains(part) { Ok(()) } else { Err(text) }
        })
        .await;
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let curl = tokio::process::Command::new("curl")
            .args(["-sS", "--max-time", "10", "-w", "\n%{http_code}", &url])
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&curl.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap_or(("", "0"));
        (code.parse().unwrap_or_default(), format!("{body}{}", String::from_utf8_lossy(&curl.stderr)))
    }

    async fn metric(&self, name: &str) -> String {
        let (_, text) = self.get("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")).map(str::to_owned));
        line.unwrap_or(text)
    }

    /// Waits for the process; its exit code.
    async fn ends(&mut self) -> Option<i32> {
        let child = &mut self.child;
        let status = wait_until("the process ends", || {
            let ended = child.try_wait().unwrap();
            async move { ended.ok_or_else(|| "it runs".to_owned()) }
        })
        .await;
        status.code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_file(&self.log));
    }
}

fn file(datasets: &str) -> String {
    format!("[log]\nformat = \"json\"\n{datasets}")
}

async fn rig() -> Rig {
    Rig::start(TABLES).await
}

async fn is_in_redis(rig: &Rig, key: &str, part: &str) {
    let client = rig.client().await;
    wait_until(key, || {
        let mut client = client.clone();
        async move {
            let value: Option<String> = redis::cmd("GET").arg(key).query_async(&mut client).await.unwrap();
            if value.as_ref().is_some_and(|value| value.contains(part)) {
                Ok(())
            } else {
                Err(format!("{value:?}"))
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_says_what_changed_and_nobody_is_turned_away() {
    let rig = rig().await;
    let worker = Arc::new(Running::start(&rig, &[]).await);
    is_in_redis(&rig, "product:1", "\"x\"").await;
    worker.cli.says(&["reload"], 0, &["nothing has changed"]);
    rig.postgres.execute("update products set name = 'w' where id = 2").await.unwrap();
    is_in_redis(&rig, "product:2", "\"w\"").await;
    // Whoever asks meanwhile is answered that the worker is ready.
    let (is_over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let prober = tokio::spawn({
        let (worker, is_over, asked) = (Arc::clone(&worker), Arc::clone(&is_over), Arc::clone(&asked));
        async move {
            while !is_over.load(Ordering::SeqCst) {
                let (code, text) = worker.get("/readyz").await;
                assert_eq!(code, 200, "{text}");
                asked.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    worker.write(&format!("{}{SHOP}", PRODUCT.replace("warm =", "ttl = \"2h\"\nwarm =")));
    let dry = worker.cli.says(
        &["reload", "--dry-run"],
        0,
        &["dataset.product.ttl: now \"2h\"", "dataset.shop: new"],
    );
    assert!(dry.contains("nothing was done"), "{dry}");
    worker.cli.says(
        &["reload"],
        0,
        &["dataset.product.ttl: now \"2h\"", "dataset.shop: new", "works with the new"],
    );
    is_in_redis(&rig, "shop:7", "Ulm").await;
    // The one before has gone, and the one that leads has the new settings.
    rig.postgres.execute("update products set name = 'z' where id = 1").await.unwrap();
    is_in_redis(&rig, "product:1", "\"z\"").await;
    let mut client = rig.client().await;
    let left: i64 = redis::cmd("TTL").arg("product:1").query_async(&mut client).await.unwrap();
    assert!(5_400 < left, "{left} s: the lifetime of the new file");
    let before = asked.load(Ordering::SeqCst);
    wait_until("it was asked after the reload", async || {
        if before + 3 < asked.load(Ordering::SeqCst) { Ok(()) } else { Err(before.to_string()) }
    })
    .await;
    is_over.store(true, Ordering::SeqCst);
    prober.await.unwrap();
    let (_, settings) = worker.get("/api/v1/settings").await;
    let settings: Value = serde_json::from_str(&settings).unwrap();
    assert_eq!(settings["given"]["dataset.product.ttl"], "\"2h\"");
    assert_eq!(settings["last_reload"]["error"], Value::Null);
    assert_eq!(settings["given"]["postgres.url"], "(not shown)");
    // What happened to an entry before the reload is known after it; the same may have come by way of a revalidation too.
    let touches: Value = serde_json::from_str(&worker.get("/api/v1/touches?key=product:2").await.1).unwrap();
    let is_kept = touches["touches"].as_array().unwrap().iter().any(|touch| touch["cause"] == "change");
    assert!(is_kept, "{touches}");
    // A dataset that goes.
    worker.write(SHOP);
    worker.cli.says(&["reload"], 0, &["dataset.product: gone"]);
    let datasets: Value = serde_json::from_str(&worker.get("/api/v1/datasets").await.1).unwrap();
    assert_eq!(datasets["datasets"].as_array().unwrap().len(), 1, "{datasets}");
    // What has not changed is not warmed again.
    let (_, text) = worker.get("/metrics").await;
    assert!(!text.contains("cachekeeper_backfills_total{dataset=\"shop\""), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_changes_nothing_and_says_where_it_is_wrong() {
    let mut rig = rig().await;
    let worker = Running::start(&rig, &[]).await;
    let wrong = |datasets: String, parts: &[&str]| {
        worker.write(&datasets);
        worker.cli.says(&["reload"], 78, parts);
    };
    // The verb itself reads the file; what only the servers know, the worker says.
    wrong(PRODUCT.replace("key = ", "kee = "), &["unknown key `kee`", ":5:1", "did you mean `key`?"]);
    wrong(PRODUCT.replace("id, name", "id, nam"), &["nam", "query", ".toml:4"]);
    wrong(
        format!("{PRODUCT}[dataset.other]\nquery = \"select 1 as id from nowhere\"\nkey = \"o:{{id}}\"\n"),
        &["nowhere"],
    );
    let loud = file(PRODUCT).replacen("[log]\n", "[log]\nlevel = \"cachekeeper=loud\"\n", 1);
    std::fs::write(&worker.cli.file, loud).unwrap();
    worker.signal("-HUP");
    worker.logs("is not a log level").await;
    worker.write(&format!(
        "{PRODUCT}[dataset.other]\nquery = \"select 1 as id from nowhere\"\nkey = \"o:{{id}}\"\n"
    ));
    worker.cli.says(&["reload"], 78, &["nowhere"]);
    assert_eq!(worker.metric("cachekeeper_config_last_reload_successful").await, "0");
    let (_, settings) = worker.get("/api/v1/settings").await;
    assert!(settings.contains("nowhere"), "the error of the last reload: {settings}");
    // By signal nobody waits for the answer: the log has it.
    worker.write(&PRODUCT.replace("key = ", "kee = "));
    worker.signal("-HUP");
    worker.logs("unknown key `kee`").await;
    worker.logs("the configuration stays as it was").await;
    worker.write(&format!("{PRODUCT}{SHOP}"));
    rig.postgres.stop();
    worker.cli.says(&["reload"], 69, &["the servers could not be asked"]);
    rig.postgres.start_again().await.unwrap();
    worker.is_ready().await;
    // None of it has touched what is served.
    rig.postgres.execute("update products set name = 'z' where id = 1").await.unwrap();
    is_in_redis(&rig, "product:1", "\"z\"").await;
    worker.signal("-HUP");
    worker.logs("configuration loaded again").await;
    is_in_redis(&rig, "shop:7", "Ulm").await;
    wait_until("the metric says so", async || {
        let metric = worker.metric("cachekeeper_config_last_reload_successful").await;
        if metric == "1" { Ok(()) } else { Err(metric) }
    })
    .await;
}

/// A lifetime that was shortened counts for what is stored already, which nothing else would touch.
#[tokio::test(flavor = "multi_thread")]
async fn a_shorter_lifetime_counts_for_entries_that_are_stored() {
    let rig = rig().await;
    let with_ttl = |ttl: &str| {
        format!(
            "[dataset.product]\nquery = \"select id, name from products\"\nkey = \"product:{{id}}\"\nscope = \"cached\"\n\
             ttl = \"{ttl}\"\nwatch = [{{ table = \"products\", key = {{ id = \"id\" }} }}]\n"
        )
    };
    // Before anything is captured: no change is to store anything later.
    rig.postgres.execute("insert into products select n, 'p' from generate_series(3, 900) n").await.unwrap();
    let worker = Running::start(&rig, &[]).await;
    worker.write(&with_ttl("1h"));
    worker.cli.says(&["reload"], 0, &["ttl"]);
    let keys: Vec<String> = (1..=900).map(|id| format!("product:{id}")).collect();
    worker.cli.says(&["warm", "product"], 0, &[]);
    wait_until("nothing is pending", async || {
        let (_, text) = worker.get("/api/v1/datasets/product").await;
        if text.contains("\"state\":\"fresh\"") { Ok(()) } else { Err(text) }
    })
    .await;
    let mut client = rig.client().await;
    let all = async |client: &mut redis::aio::MultiplexedConnection| -> Vec<i64> {
        let mut pipeline = redis::pipe();
        for key in &keys {
            pipeline.cmd("PTTL").arg(key);
        }
        pipeline.query_async(client).await.unwrap()
    };
    let before = all(&mut client).await;
    assert!(before.iter().all(|left| 3_000_000 < *left));
    // What somebody made endless ends too; what ends earlier stays as it is.
    let _: () = redis::cmd("PERSIST").arg("product:2").query_async(&mut client).await.unwrap();
    let marked = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let _: () = redis::cmd("PEXPIRE").arg("product:3").arg(60_000).query_async(&mut client).await.unwrap();
    worker.write(&with_ttl("5m"));
    worker.cli.says(&["reload"], 0, &["ttl"]);
    let after = wait_until("every entry ends in time", async || {
        let left = all(&mut rig.client().await).await;
        if left.iter().all(|left| (0..=300_000).contains(left)) { Ok(left) } else { Err(format!("{left:?}")) }
    })
    .await;
    // A revalidation that the first reload has begun may have stored it since.
    let (_, told) = worker.get("/api/v1/explain?key=product:3").await;
    let told: Value = serde_json::from_str(&told).unwrap();
    let is_stored_since = told["touches"][0]["at_ms"].as_u64().is_some_and(|at| marked <= u128::from(at));
    assert!((after[2] <= 60_000 || is_stored_since) && 200_000 < after[1], "{:?} {told}", &after[..3]);
    // What a worker that still has the former file stores meanwhile is found by the next one that starts.
    let mut pipeline = redis::pipe();
    for id in 100..=900 {
        pipeline.cmd("PEXPIRE").arg(format!("product:{id}")).arg(3_500_000).ignore();
    }
    let () = pipeline.query_async(&mut client).await.unwrap();
    worker.write(&with_ttl("5m").replace("[dataset.product]\n", "[dataset.product]\nbatch = 77\n"));
    worker.cli.says(&["reload"], 0, &["batch"]);
    wait_until("every entry ends in time again", async || {
        let late = all(&mut rig.client().await).await.into_iter().filter(|left| 300_000 < *left).count();
        if late == 0 { Ok(()) } else { Err(format!("{late} end late")) }
    })
    .await;
    // They still do not end together.
    let (least, most) = (after[3..].iter().min().unwrap(), after[3..].iter().max().unwrap());
    assert!(10_000 < most - least, "{least} {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_lives_on_and_others_work() {
    let rig = rig().await;
    let mut first = Running::start(&rig, &[]).await;
    let second = Running::start(&rig, &[]).await;
    first.cli.says(&["log-level", "debug"], 0, &["debug"]);
    // What only a level for debugging says: a peer that speaks no HTTP.
    let mut stranger = std::net::TcpStream::connect(("127.0.0.1", first.port)).unwrap();
    std::io::Write::write_all(&mut stranger, b"what?\r\n\r\n").unwrap();
    first.logs("a connection of the admin listener broke off").await;
    first.cli.says(&["log-level", "info"], 0, &["info"]);
    first.cli.says(&["log-level", "cachekeeper=loud"], 78, &["is not a log level"]);
    first.signal("-USR1");
    wait_until("it says that it drains", async || {
        let (code, text) = first.get("/readyz").await;
        if code == 503 && text.contains("draining") { Ok(()) } else { Err(text) }
    })
    .await;
    first.logs("only the admin listener is left").await;
    rig.postgres.execute("update products set name = 'z' where id = 1").await.unwrap();
    is_in_redis(&rig, "product:1", "\"z\"").await;
    first.cli.says(&["reload"], 1, &["the worker drains"]);
    assert_eq!(first.get("/livez").await.0, 200);
    first.signal("-TERM");
    assert_eq!(first.ends().await, Some(0));
    second.cli.says(&["drain"], 0, &["takes no more work"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_in_a_reload_ends_both_workers() {
    let rig = rig().await;
    let mut worker = Running::start(&rig, &[]).await;
    worker.write(&format!("{PRODUCT}{SHOP}"));
    // Held up in the check of the new file.
    let mut lock = rig.postgres.session().await.unwrap();
    lock.text("select set_config('application_name', 'holder', false)").await.unwrap();
    lock.execute("begin").await.unwrap();
    lock.execute("lock table shops").await.unwrap();
    worker.signal("-HUP");
    let held = "select count(*)::text from pg_locks where not granted";
    wait_until("the reload waits", async || {
        let mut session = rig.postgres.session().await.map_err(|error| error.to_string())?;
        let waiting = session.text(held).await.map_err(|error| error.to_string())?;
        if waiting.as_deref() == Some("0") { Err("not yet".to_owned()) } else { Ok(()) }
    })
    .await;
    worker.signal("-TERM");
    assert_eq!(worker.ends().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_of_readiness_and_life() {
    let rig = rig().await;
    let path = std::env::temp_dir().join(format!("cachekeeper-notify-{:016x}", rand::random::<u64>()));
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut paused = rig;
    paused.postgres.stop();
    let named = path.display().to_string();
    let environment = [("NOTIFY_SOCKET", named.as_str()), ("WATCHDOG_USEC", "2000000")];
    let mut worker = Running::begin(&paused, &environment);
    let mut told = String::new();
    let mut hear = |part: &str| {
        let mut buffer = [0_u8; 4_096];
        while !told.contains(part) {
            let length =
                socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no {part}: {error}\n{told}"));
            told.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        std::mem::take(&mut told)
    };
    // Not ready yet, and systemd is asked for more time.
    let waiting = hear("EXTEND_TIMEOUT_USEC=") + &hear("WATCHDOG=1");
    assert!(waiting.contains("STATUS=not ready: ") && !waiting.contains("READY=1"), "{waiting}");
    paused.postgres.start_again().await.unwrap();
    hear("READY=1");
    hear("WATCHDOG=1");
    worker.signal("-TERM");
    hear("STOPPING=1");
    assert_eq!(worker.ends().await, Some(0));
    std::fs::remove_file(path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_dataset_is_not_filled_but_its_changes_are_applied() {
    let rig = rig().await;
    let worker = Running::start(&rig, &[]).await;
    worker.write(&PRODUCT.replace("warm = { on_start = true }", "warm = { schedule = \"* * * * * *\" }"));
    worker.cli.says(&["reload"], 0, &["dataset.product.warm"]);
    let done = async || {
        let (_, text) = worker.get("/metrics").await;
        let name = "cachekeeper_backfills_total{dataset=\"product\",outcome=\"ok\"} ";
        let count = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0").to_owned();
        count.parse::<u64>().unwrap()
    };
    wait_until("the schedule fires", async || if 1 < done().await { Ok(()) } else { Err(String::new()) })
        .await;
    worker.cli.says(&["pause", "product"], 0, &["product is paused"]);
    wait_until("the worker knows", async || {
        let (_, text) = worker.get("/metrics").await;
        if text.contains("cachekeeper_dataset_paused{dataset=\"product\"} 1") { Ok(()) } else { Err(text) }
    })
    .await;
    worker.cli.says(&["status"], 0, &["as configured, paused"]);
    let (_, datasets) = worker.get("/api/v1/datasets").await;
    assert!(datasets.contains("\"state\":\"paused\""), "{datasets}");
    // One may have been under way.
    let before = done().await + 1;
    rig.postgres.execute("insert into products values (3, 'new')").await.unwrap();
    is_in_redis(&rig, "product:1", "\"x\"").await;
    rig.postgres.execute("update products set name = 'z' where id = 1").await.unwrap();
    is_in_redis(&rig, "product:1", "\"z\"").await;
    // Several moments of the schedule go by.
    for number in 0..3 {
        rig.postgres
            .execute(&format!("select pg_sleep(1); update products set name = 'z{number}' where id = 1"))
            .await
            .unwrap();
        is_in_redis(&rig, "product:1", &format!("\"z{number}\"")).await;
    }
    assert!(done().await <= before);
    // Another process sees it too, and what was due is done once it is resumed.
    worker.cli.says(&["resume", "product"], 0, &["product goes on"]);
    worker.cli.says(&["resume", "product"], 0, &["was not paused"]);
    wait_until("it goes on", async || if before < done().await { Ok(()) } else { Err(before.to_string()) })
        .await;
    worker.cli.says(&["pause", "produkt"], 2, &["did you mean product?"]);
}
