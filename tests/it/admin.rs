//! The admin listener as others meet it: with and without tokens, by wrong names, from web pages, over TLS, and by the thousand.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cachekeeper_testkit::certificates::{Authority, Certificate};
use cachekeeper_testkit::servers::free_port;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Cli, Rig, wait_until};

const ACT: &str = "the-token-that-may-act-0123";
const READ: &str = "the-token-that-may-read-0123";
const DATASET: &str = "[dataset.product]\nquery = \"select id, name from products\"\nkey = \"product:{id}\"\nwarm = {}\n\
                       watch = [{ table = \"products\", key = { id = \"id\" } }]\n";

/// A worker as a process, with a directory for its files.
struct Running {
    cli: Cli,
    port: u16,
    child: Child,
    directory: PathBuf,
}

impl Running {
    /// `{dir}` in the section `[admin]` stands for the directory.
    async fn start(rig: &Rig, admin: &str) -> Self {
        Self::start_by(rig, admin, |cli| cli.command(&["run"])).await
    }

    async fn start_by(rig: &Rig, admin: &str, command: impl FnOnce(&Cli) -> Command) -> Self {
        let directory =
            std::env::temp_dir().join(format!("cachekeeper-admin-{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("act"), format!("{ACT}\n")).unwrap();
        std::fs::write(directory.join("read"), format!("{READ}\n")).unwrap();
        let port = free_port().unwrap();
        let admin = admin.replace("{dir}", &directory.display().to_string());
        let cli = Cli::new(rig, &format!("[log]\nformat = \"json\"\n[admin]\n{admin}\n{DATASET}"))
            .with("CACHEKEEPER__ADMIN__LISTEN", &format!("127.0.0.1:{port}"));
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let child = command(&cli).stderr(Stdio::from(log)).stdout(Stdio::null()).spawn().unwrap();
        let running = Self { cli, port, child, directory };
        wait_until("the worker is ready", async || {
            let (code, text) = running.cli.run(&["healthcheck", "--ready"]);
            if code == 0 { Ok(()) } else { Err(text) }
        })
        .await;
        running
    }

    async fn ask(&self, request: &Asked<'_>) -> Answer {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        exchange(stream, request).await
    }

    async fn get(&self, path: &str, token: &str) -> Answer {
        let authorization = format!("Authorization: Bearer {token}");
        let headers: &[&str] = if token.is_empty() { &[] } else { &[&authorization] };
        self.ask(&Asked { path, headers, ..Asked::default() }).await
    }

    /// The lines of the audit log.
    fn actions(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.directory.join("log")).unwrap();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["target"] == "audit").collect()
    }

    fn write(&self, file: &str, content: &str) {
        std::fs::write(self.directory.join(file), content).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

/// A request, of which most do not matter to most tests.
struct Asked<'a> {
    method: &'a str,
    path: &'a str,
    host: &'a str,
    headers: &'a [&'a str],
    body: &'a str,
}

impl Default for Asked<'_> {
    fn default() -> Self {
        Self { method: "GET", path: "/", host: "localhost", headers: &[], body: "" }
    }
}

#[derive(Debug)]
struct Answer {
    code: u16,
    head: String,
    body: String,
}

impl Answer {
    #[track_caller]
    fn says(&self, code: u16, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for part in parts {
            assert!(self.head.contains(part) || self.body.contains(part), "does not say {part:?}: {self:?}");
        }
    }
}

async fn exchange(mut stream: TcpStream, asked: &Asked<'_>) -> Answer {
    let mut request = format!("{} {} HTTP/1.1\r\nConnection: close\r\n", asked.method, asked.path);
    if !asked.host.is_empty() {
        write!(request, "Host: {}\r\n", asked.host).unwrap();
    }
    if asked.method != "GET" || !asked.body.is_empty() {
        write!(request, "Content-Length: {}\r\n", asked.body.len()).unwrap();
    }
    asked.headers.iter().for_each(|header| write!(request, "{header}\r\n").unwrap());
    write!(request, "\r\n{}", asked.body).unwrap();
    // What is refused may be refused before it is read to its end.
    drop(stream.write_all(request.as_bytes()).await);
    let mut bytes = Vec::new();
    drop(stream.read_to_end(&mut bytes).await);
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let code = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    Answer { code, head: head.to_lowercase(), body: body.to_owned() }
}

async fn rig() -> Rig {
    Rig::start("create table products (id int primary key, name text); insert into products values (1, 'x')")
        .await
}

const TOKENS: &str = "token_file = \"{dir}/act\"\nread_token_file = \"{dir}/read\"";

#[tokio::test]
async fn beyond_this_machine_nobody_listens_without_a_token() {
    let rig = rig().await;
    for listen in ["0.0.0.0:1", "[::]:1", "192.0.2.7:9464"] {
        let cli = Cli::new(&rig, DATASET).with("CACHEKEEPER__ADMIN__LISTEN", listen);
        for verb in [&["check", "--offline"][..], &["run"]] {
            cli.says(
                verb,
                78,
                &["CACHEKEEPER__ADMIN__LISTEN", "whoever reaches", "token_file", "127.0.0.1:"],
            );
        }
    }
    let directory = tempfile();
    let file = |name: &str, content: &str| {
        std::fs::write(directory.join(name), content).unwrap();
        format!("[admin]\ntoken_file = \"{}\"\n{DATASET}", directory.join(name).display())
    };
    let cases = [
        (file("short", "0123456789"), "is too short to be safe"),
        (file("empty", ""), "holds nothing"),
        (file("two", "0123456789abcdef\n0123456789abcdef\n"), "several lines"),
        (file("words", "correct horse battery staple"), "a header cannot carry"),
        (format!("[admin]\ntoken_file = \"/nowhere\"\n{DATASET}"), "/nowhere cannot be read"),
    ];
    for (toml, said) in cases {
        let cli = Cli::new(&rig, &toml).with("CACHEKEEPER__ADMIN__LISTEN", "0.0.0.0:1");
        for verb in [&["check", "--offline"][..], &["run"]] {
            cli.says(verb, 78, &[said, ":2:14"]);
        }
    }
    std::fs::remove_dir_all(directory).unwrap();
}

fn tempfile() -> PathBuf {
    let directory = std::env::temp_dir().join(format!("cachekeeper-admin-{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

#[tokio::test]
async fn strangers_learn_whether_it_lives_and_is_ready_and_nothing_else() {
    let rig = rig().await;
    let worker = Running::start(&rig, TOKENS).await;
    worker.get("/livez", "").await.says(200, &["ok"]);
    let bare = worker.get("/readyz", "").await;
    assert_eq!((bare.code, bare.body.as_str()), (200, "{\"ready\":true}"));
    let paths = [
        "/",
        "/assets/app.css",
        "/api/v1/now",
        "/api/v1/explain?key=product:1",
        "/api/v1/touches",
        "/nowhere",
    ];
    for path in paths.into_iter().chain(["/metrics", "/api/v1/status", "/api/v1/watermark"]) {
        for token in ["", "wrong", &ACT[1..], "ACT"] {
            let refused = worker.get(path, token).await;
            refused.says(401, &["www-authenticate: basic", "www-authenticate: bearer", "a token is needed"]);
        }
        for token in [READ, ACT] {
            let code = if path == "/nowhere" { 404 } else { 200 };
            worker.get(path, token).await.says(code, &["cache-control: no-store"]);
        }
    }
    worker.get("/nowhere", READ).await.says(404, &[r#"{"error":"there is no /nowhere; "#]);
    worker.get("/api/v1/drain", ACT).await.says(405, &[r#"{"error":"/api/v1/drain takes no GET"#]);
    worker.get("/api/v1/touches?dataste=product", READ).await.says(400, &["dataste", "expected one of"]);
    worker.get("/api/v1/now?x=1", READ).await.says(400, &["takes no parameters"]);
    let policy =
        ["content-security-policy: default-src 'none'; script-src 'self'", "referrer-policy: no-referrer"];
    worker.get("/", READ).await.says(200, &policy);
    worker.get("/assets/main.js", READ).await.says(200, &["content-type: text/javascript", policy[0]]);
    worker.get("/assets/nowhere.js", READ).await.says(404, &["nowhere.js"]);
    worker.get("/readyz", READ).await.says(200, &["\"reasons\":[]"]);
    // A browser gives the token as a password: anna:the-token-that-may-read-0123.
    let basic = "Authorization: Basic YW5uYTp0aGUtdG9rZW4tdGhhdC1tYXktcmVhZC0wMTIz";
    let status = Asked { path: "/api/v1/status", headers: &[basic], ..Asked::default() };
    worker.ask(&status).await.says(200, &["product"]);
    // The reasons are known to verbs, which have the files.
    rig.postgres.execute("drop table products").await.unwrap();
    wait_until("it is not ready", async || {
        let (code, text) = worker.cli.run(&["healthcheck", "--ready"]);
        if code == 1 && text.contains("product") { Ok(()) } else { Err(text) }
    })
    .await;
    let bare = worker.get("/readyz", "").await;
    assert_eq!((bare.code, bare.body.as_str()), (503, "{\"ready\":false}"));
}

#[tokio::test]
async fn another_token_counts_without_a_restart() {
    let rig = rig().await;
    let worker = Running::start(&rig, TOKENS).await;
    let is_let_in = async |token: &str, code: u16| {
        wait_until("the token counts, or no longer", async || {
            let answer = worker.get("/api/v1/status", token).await;
            if answer.code == code { Ok(()) } else { Err(answer.head) }
        })
        .await;
    };
    worker.write("read", "another-token-to-read-by");
    is_let_in("another-token-to-read-by", 200).await;
    worker.get("/api/v1/status", READ).await.says(401, &[]);
    worker.get("/api/v1/status", ACT).await.says(200, &[]);
    // A file that cannot be used: what it held before counts, until it holds a token again.
    worker.write("read", "");
    worker.write("act", "another-token-to-act-by");
    is_let_in("another-token-to-act-by", 200).await;
    worker.get("/api/v1/status", "another-token-to-read-by").await.says(200, &[]);
    worker.get("/api/v1/status", "").await.says(401, &[]);
}

#[tokio::test]
async fn only_who_may_act_acts_and_each_attempt_is_in_the_audit_log() {
    let rig = rig().await;
    let worker = Running::start(&rig, TOKENS).await;
    let json = "Content-Type: application/json";
    let act = format!("Authorization: Bearer {ACT}");
    let read = format!("Authorization: Bearer {READ}");
    let action = async |headers: &[&str], body: &str| {
        let path = "/api/v1/nothing?of=this";
        worker.ask(&Asked { method: "POST", path, headers, body, ..Asked::default() }).await
    };
    action(&[json], "").await.says(401, &[]);
    action(&[json, &read], "").await.says(403, &["may only read"]);
    action(&[&act], "").await.says(415, &["Content-Type: application/json"]);
    action(&[&act, "Content-Type: text/plain"], "{}").await.says(415, &[]);
    action(&[&act, "Content-Type: application/x-www-form-urlencoded"], "a=b").await.says(415, &[]);
    action(&[&act, json, "Origin: https://evil.example"], "{}").await.says(403, &["another origin"]);
    action(&[&act, json, "Sec-Fetch-Site: cross-site"], "{}").await.says(403, &["another origin"]);
    action(&[&act, json], &"x".repeat(70_000)).await.says(413, &["longer than 64 KiB"]);
    // Nothing is in the way any more, but there is no such action.
    action(&[&act, json], "{}").await.says(404, &[]);
    action(&[&act, "Content-Type: application/json; charset=utf-8", "Origin: http://localhost"], "")
        .await
        .says(404, &[]);
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS"] {
        let request = Asked { method, path: "/metrics", headers: &[&read], ..Asked::default() };
        worker.ask(&request).await.says(403, &[]);
    }
    // The log is written beside the answers.
    wait_until("each attempt is in the log", async || {
        let count = worker.actions().len();
        if count < 14 { Err(count.to_string()) } else { Ok(()) }
    })
    .await;
    let told = worker.actions();
    let count = |field: &str, value: &str| told.iter().filter(|line| line[field] == value).count();
    assert_eq!(count("action", "POST /api/v1/nothing?of=this"), 10, "{told:#?}");
    assert_eq!((count("role", "read"), count("role", "act")), (5, 8), "{told:#?}");
    let stranger = told.iter().find(|line| line["role"].is_null()).unwrap();
    assert_eq!(stranger["outcome"], "refused", "{stranger}");
    assert!(stranger["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{stranger}");
    // Reading is no action.
    worker.get("/metrics", READ).await.says(200, &["cachekeeper_admin_refusals_total{reason=\"role\"} 5"]);
    assert_eq!(worker.actions().len(), told.len());
}

#[tokio::test]
async fn a_listener_that_is_read_only_acts_for_nobody() {
    let rig = rig().await;
    let worker = Running::start(&rig, &format!("{TOKENS}\nread_only = true")).await;
    let act = format!("Authorization: Bearer {ACT}");
    let headers = ["Content-Type: application/json", act.as_str()];
    let request = Asked { method: "POST", path: "/api/v1/nothing", headers: &headers, ..Asked::default() };
    worker.ask(&request).await.says(403, &["read_only = true"]);
    worker.get("/metrics", ACT).await.says(200, &[]);
}

#[tokio::test]
async fn pages_of_the_web_cannot_ask_by_a_name_of_their_own() {
    let rig = rig().await;
    let worker = Running::start(&rig, "hosts = [\"cachekeeper.internal\"]").await;
    let asked = async |host: &str, path: &str| worker.ask(&Asked { host, path, ..Asked::default() }).await;
    for host in ["evil.example", "evil.example:9464", "localhost.evil.example", ""] {
        for path in ["/readyz", "/metrics", "/api/v1/status", "/api/v1/watermark", "/nowhere"] {
            asked(host, path).await.says(421, &["[admin] hosts"]);
        }
        // A platform's probe may ask by any name, and there is nothing to be read.
        asked(host, "/livez").await.says(200, &["ok"]);
    }
    for host in ["localhost", "127.0.0.1:9464", "[::1]", "10.1.2.3", "cachekeeper.internal:80"] {
        asked(host, "/api/v1/status").await.says(200, &["product"]);
    }
}

#[tokio::test]
async fn waits_leave_room_for_probes() {
    let rig = rig().await;
    let worker = Running::start(&rig, "max_connections = 32").await;
    let incarnation = wait_until("there is a watermark", async || {
        let answer = worker.get("/api/v1/watermark", "").await;
        let said: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
        said["watermark"]["incarnation"].as_str().map(str::to_owned).ok_or(answer.body)
    })
    .await;
    // A moment that does not come.
    let path = format!("/api/v1/watermark?token={incarnation}/9999999:9999999:&wait=30s");
    let mut waiting = Vec::new();
    for _ in 0..60 {
        let mut stream = TcpStream::connect(("127.0.0.1", worker.port)).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
        waiting.push(stream);
        worker.get("/livez", "").await.says(200, &["ok"]);
        worker.get("/readyz", "").await.says(200, &["true"]);
    }
    worker.get("/metrics", "").await.says(503, &["retry-after", "max_connections"]);
    drop(waiting);
    wait_until("others have their turn again", async || {
        let answer = worker.get("/metrics", "").await;
        if answer.code == 200 { Ok(()) } else { Err(answer.body) }
    })
    .await;
}

/// Silent connections, and those that send one byte of a request and no more.
#[tokio::test]
async fn two_thousand_silent_connections_stop_no_probe_and_take_no_files() {
    let rig = rig().await;
    let own = std::process::id().to_string();
    // Both ends of two thousand connections are not in one process; still this one needs its own.
    let raised = Command::new("prlimit").args(["--pid", &own, "--nofile=4096:"]).status();
    assert!(raised.is_ok_and(|raised| raised.success()), "this test needs 4,096 open files");
    let worker = Running::start_by(&rig, "max_connections = 1000", |cli| {
        let run = cli.command(&["run"]);
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""]).arg(run.get_program()).args(run.get_args());
        command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
        command
    })
    .await;
    let pid = worker.child.id();
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    };
    let before = memory();
    let mut silent = Vec::new();
    for number in 0..2_000_u32 {
        let mut stream = TcpStream::connect(("127.0.0.1", worker.port)).await.unwrap();
        if number % 2 == 0 {
            drop(stream.write_all(b"G").await);
        }
        silent.push(stream);
        if number % 100 == 99 {
            worker.get("/livez", "").await.says(200, &["ok"]);
            worker.get("/readyz", "").await.says(200, &["true"]);
        }
    }
    assert_eq!(worker.cli.run(&["healthcheck"]).0, 0);
    let metrics = worker.get("/metrics", "").await;
    let number = |name: &str| {
        let line = metrics.body.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name}: {metrics:?}")).parse::<f64>().unwrap()
    };
    assert!(number("cachekeeper_admin_connections") <= 128.0, "half of the files are the most");
    assert_eq!(number("process_max_fds"), 256.0);
    assert!(number("process_open_fds") < 200.0);
    assert!(memory() < before + 64, "{before} MiB before, {} now", memory());
    // The feed goes on: no file of its was taken.
    rig.postgres.execute("update products set name = 'y' where id = 1").await.unwrap();
    wait_until("the change is followed", async || {
        let (_, text) = worker.cli.run(&["get", "product:1"]);
        if text.contains("\"y\"") { Ok(()) } else { Err(text) }
    })
    .await;
}

/// What `curl` says, trusting this authority and asking by the name of the certificate.
fn curl(authority: &Authority, port: u16, path: &str, arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "10", "--cacert"])
        .arg(authority.certificate())
        .args(["--resolve", &format!("worker.test:{port}:127.0.0.1")])
        .args(arguments)
        .arg(format!("https://worker.test:{port}{path}"))
        .output()
        .unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn put(certificate: &Certificate, directory: &Path) {
    std::fs::copy(&certificate.key, directory.join("key.pem")).unwrap();
    std::fs::copy(&certificate.certificate, directory.join("cert.pem")).unwrap();
}

#[tokio::test]
async fn tls_is_spoken_with_the_certificate_of_the_files_as_they_are_now() {
    let rig = rig().await;
    let (first, second) = (Authority::new().unwrap(), Authority::new().unwrap());
    let at = tempfile();
    put(&first.issue("worker", "DNS:worker.test").unwrap(), &at);
    let files = format!("cert_file = \"{0}/cert.pem\"\nkey_file = \"{0}/key.pem\"", at.display());
    let worker = Running::start(&rig, &format!("{TOKENS}\n{files}\nhosts = [\"worker.test\"]")).await;
    let token = format!("Authorization: Bearer {READ}");
    assert_eq!(curl(&first, worker.port, "/livez", &[]), "ok\n");
    assert!(
        curl(&first, worker.port, "/metrics", &["-H", &token]).contains("cachekeeper_build_info{version=")
    );
    assert!(curl(&second, worker.port, "/livez", &[]).contains("certificate"));
    worker.cli.says(&["healthcheck"], 0, &["ok"]);
    worker.cli.says(&["status"], 0, &["worker     ready", "\ntasks      "]);
    // Without TLS nothing is answered.
    let mut plain = TcpStream::connect(("127.0.0.1", worker.port)).await.unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    drop(plain.read_to_end(&mut answer).await);
    assert!(!String::from_utf8_lossy(&answer).contains("200"), "{answer:?}");
    // Half of a replacement is not taken; the whole is.
    let renewed = second.issue("worker", "DNS:worker.test").unwrap();
    std::fs::copy(&renewed.certificate, at.join("cert.pem")).unwrap();
    worker.cli.says(&["check", "--offline"], 78, &["certificate and key cannot be used"]);
    assert_eq!(curl(&first, worker.port, "/livez", &[]), "ok\n");
    std::fs::copy(&renewed.key, at.join("key.pem")).unwrap();
    wait_until("the renewed certificate is shown", async || {
        let said = curl(&second, worker.port, "/livez", &[]);
        if said == "ok\n" { Ok(()) } else { Err(said) }
    })
    .await;
    worker.cli.says(&["healthcheck", "--ready"], 0, &["\"ready\":true"]);
    std::fs::remove_dir_all(at).unwrap();
}

#[tokio::test]
async fn a_stream_ends_with_its_token_and_streams_leave_room_for_others() {
    let rig = rig().await;
    let running = Running::start(&rig, &format!("{TOKENS}\nmax_connections = 40")).await;
    let open = async || {
        let mut stream = TcpStream::connect(("127.0.0.1", running.port)).await.unwrap();
        let request =
            format!("GET /api/v1/live HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {READ}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        (String::from_utf8(head.to_vec()).unwrap(), stream)
    };
    let mut streams = Vec::new();
    for _ in 0..20 {
        let (head, stream) = open().await;
        assert_eq!(head, "HTTP/1.1 200");
        streams.push(stream);
    }
    assert_eq!(open().await.0, "HTTP/1.1 503");
    for path in ["/metrics", "/readyz", "/api/v1/now"] {
        running.get(path, READ).await.says(200, &[]);
    }
    running.write("read", "another-token-that-may-read");
    for mut stream in streams {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert!(rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
    }
    running.get("/metrics", READ).await.says(401, &[]);
}
