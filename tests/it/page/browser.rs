//! A real Chromium without a window, driven over a pipe: it acts as a person with a keyboard does, and tells what they see. Whatever
//! the console says is kept: errors of scripts, and what the page's policy refused.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::support::wait_until;

/// A command that is not answered within this time fails the test: a person would have closed the tab.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

const FLAGS: &str = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-breakpad \
                     --disable-extensions --disable-sync --disable-background-networking --disable-component-update --mute-audio \
                     --hide-scrollbars --remote-debugging-pipe";

/// Elements that a person can see: those of a selector, with exactly this text if one is given.
const FIND: &str = "(selector, text) => [...document.querySelectorAll(selector)]
    .find((one) => one.checkVisibility() && (text === '' || one.textContent.trim() === text))";

pub struct Browser {
    child: Child,
    pipe: Arc<Pipe>,
    directory: PathBuf,
}

/// Messages in both directions.
struct Pipe {
    input: Mutex<ChildStdin>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Value>>,
    /// By session, what its console said.
    problems: Vec<(String, String)>,
    /// By session, the paths that were asked for.
    requests: Vec<(String, String)>,
    /// The password that is given where one is asked for, and how often it was.
    password: Option<String>,
    challenges: u32,
}

impl Browser {
    pub fn start() -> Self {
        let directory =
            std::env::temp_dir().join(format!("cachekeeper-browser-{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(&directory).unwrap();
        let start = "command -v chromium >/dev/null || exit 127; exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null";
        let mut child = Command::new("sh")
            .args(["-c", start, "sh"])
            .args(FLAGS.split_whitespace())
            .arg(format!("--user-data-dir={}", directory.display()))
            .arg("about:blank")
            // All of its processes end together.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let pipe = Arc::new(Pipe { input: Mutex::new(input), state: Mutex::default() });
        let reader = Arc::clone(&pipe);
        std::thread::spawn(move || reader.read(output));
        Self { child, pipe, directory }
    }

    /// A tab in front of the others.
    pub async fn open(&self, address: &str) -> Page<'_> {
        let made = self.pipe.call("", "Target.createTarget", json!({ "url": "about:blank" })).await;
        let target = made["targetId"].as_str().unwrap().to_owned();
        let attach = json!({ "targetId": target, "flatten": true });
        let attached = self.pipe.call("", "Target.attachToTarget", attach).await;
        let session = attached["sessionId"].as_str().unwrap().to_owned();
        let page = Page { browser: self, session, target };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), json!({})).await;
        }
        page.call("Network.setCacheDisabled", json!({ "cacheDisabled": true })).await;
        page.call("Fetch.enable", json!({ "handleAuthRequests": true })).await;
        page.call("Page.navigate", json!({ "url": address })).await;
        page
    }

    /// What a person types where the browser asks for a name and a password.
    pub fn knows_password(&self, password: Option<&str>) {
        self.pipe.state.lock().unwrap().password = password.map(str::to_owned);
    }

    /// How often the browser asked for a name and a password.
    pub fn challenges(&self) -> u32 {
        self.pipe.state.lock().unwrap().challenges
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(Command::new("kill").args(["-KILL", "--", &format!("-{}", self.child.id())]).status());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

impl Pipe {
    fn send(&self, session: &str, method: &str, parameters: &Value) -> oneshot::Receiver<Value> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut state = self.state.lock().unwrap();
            state.last += 1;
            let id = state.last;
            state.waiting.insert(id, answer);
            id
        };
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if !session.is_empty() {
            message["sessionId"] = json!(session);
        }
        let written = self.input.lock().unwrap().write_all(format!("{message}\0").as_bytes());
        // Whoever waits for the answer is told.
        if written.is_err() {
            self.state.lock().unwrap().waiting.clear();
        }
        answered
    }

    async fn call(&self, session: &str, method: &str, parameters: Value) -> Value {
        let answered = tokio::time::timeout(ANSWER_WITHIN, self.send(session, method, &parameters)).await;
        let answer = answered.unwrap_or_else(|_elapsed| panic!("the browser does not answer {method}"));
        let answer = answer.unwrap_or_else(|_ended| {
            panic!(
                "the browser has ended; if chromium is missing: run tests/install-servers (make test does)"
            )
        });
        assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        answer["result"].clone()
    }

    fn read(&self, output: ChildStdout) {
        let mut output = BufReader::new(output);
        let mut message = Vec::new();
        while output.read_until(0, &mut message).is_ok_and(|length| 0 < length) {
            message.pop();
            if let Ok(read) = serde_json::from_slice::<Value>(&message) {
                self.take(&read);
            }
            message.clear();
        }
        self.state.lock().unwrap().waiting.clear();
    }

    fn take(&self, message: &Value) {
        if let Some(id) = message["id"].as_u64() {
            let waiting = self.state.lock().unwrap().waiting.remove(&id);
            // Nobody waits for the answer to what was sent by the way.
            drop(waiting.map(|answer| answer.send(message.clone())));
            return;
        }
        let session = message["sessionId"].as_str().unwrap_or_default();
        let parameters = &message["params"];
        match message["method"].as_str().unwrap_or_default() {
            "Fetch.requestPaused" => {
                let url = parameters["request"]["url"].as_str().unwrap_or_default();
                let path = url.splitn(4, '/').nth(3).unwrap_or_default().to_owned();
                self.state.lock().unwrap().requests.push((session.to_owned(), path));
                let request = json!({ "requestId": parameters["requestId"] });
                drop(self.send(session, "Fetch.continueRequest", &request));
            }
            "Fetch.authRequired" => {
                let password = {
                    let mut state = self.state.lock().unwrap();
                    state.challenges += 1;
                    // A person whose password was refused gives up.
                    state.password.take()
                };
                let answer = match password {
                    Some(password) => {
                        json!({ "response": "ProvideCredentials", "username": "anna", "password": password })
                    }
                    None => json!({ "response": "CancelAuth" }),
                };
                let answer = json!({ "requestId": parameters["requestId"], "authChallengeResponse": answer });
                drop(self.send(session, "Fetch.continueWithAuth", &answer));
            }
            "Runtime.exceptionThrown" => self.problem(session, &parameters["exceptionDetails"]),
            "Log.entryAdded" if parameters["entry"]["level"] != "info" => {
                self.problem(session, &parameters["entry"]);
            }
            "Runtime.consoleAPICalled" => self.problem(session, parameters),
            _ => {}
        }
    }

    fn problem(&self, session: &str, problem: &Value) {
        self.state.lock().unwrap().problems.push((session.to_owned(), problem.to_string()));
    }
}

/// A tab.
pub struct Page<'b> {
    browser: &'b Browser,
    session: String,
    target: String,
}

impl Page<'_> {
    pub async fn call(&self, method: &str, parameters: Value) -> Value {
        self.browser.pipe.call(&self.session, method, parameters).await
    }

    /// What an expression is.
    pub async fn value(&self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", asked).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    /// What a person reads.
    pub async fn text(&self) -> String {
        self.value("document.body?.innerText ?? ''").await.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression is true.
    pub async fn until(&self, what: &str, expression: &str) {
        wait_until(what, async || {
            let is_so = self.value(expression).await == json!(true);
            if is_so { Ok(()) } else { Err(format!("{expression}\n{}", self.text().await)) }
        })
        .await;
    }

    /// Waits until a person reads all of these in one look.
    pub async fn reads(&self, parts: &[&str]) -> String {
        wait_until(&format!("the page says {parts:?}"), async || {
            let text = self.text().await;
            if parts.iter().all(|part| text.contains(part)) { Ok(text) } else { Err(text) }
        })
        .await
    }

    /// Goes to a screen by its address.
    pub async fn go(&self, hash: &str) {
        self.value(&format!("void (location.hash = {})", json!(hash))).await;
    }

    /// Chooses by keyboard: what has the focus gets the key Enter.
    pub async fn press(&self, selector: &str, text: &str) {
        let focus = format!(
            "(() => {{ const one = ({FIND})({}, {}); one?.focus(); return Boolean(one) && document.activeElement === one && !one.disabled; }})()",
            json!(selector),
            json!(text)
        );
        self.until(&format!("{selector} {text:?} has the focus"), &focus).await;
        self.key("Enter", 13).await;
    }

    pub async fn key(&self, key: &str, code: u32) {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": if kind == "keyDown" { text } else { "" } });
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    /// Types into a field, in place of what is there.
    pub async fn types(&self, selector: &str, text: &str) {
        let select = format!(
            "(() => {{ const one = ({FIND})({}, ''); one?.select(); return document.activeElement === one; }})()",
            json!(selector)
        );
        self.until(&format!("{selector} has the focus"), &select).await;
        self.call("Input.insertText", json!({ "text": text })).await;
    }

    /// Chooses from a list.
    pub async fn chooses(&self, selector: &str, value: &str) {
        let choose = format!(
            "(() => {{ const one = ({FIND})({}, ''); if (![...one?.options ?? []].some((option) => option.value === {value})) return false;
            one.value = {value}; one.dispatchEvent(new Event('change', {{ bubbles: true }})); return true; }})()",
            json!(selector),
            value = json!(value)
        );
        self.until(&format!("{selector} is {value:?}"), &choose).await;
    }

    /// As if the system were set to it.
    pub async fn set_theme(&self, theme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": theme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    pub async fn set_width(&self, width: u32) {
        let is_phone = width < 600;
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": is_phone });
        self.call("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Brings the tab in front of the others, which are hidden then.
    pub async fn to_front(&self) {
        self.browser.pipe.call("", "Target.activateTarget", json!({ "targetId": self.target })).await;
    }

    /// What was asked for so far, the oldest first.
    pub fn requests(&self) -> Vec<String> {
        let state = self.browser.pipe.state.lock().unwrap();
        let own = state.requests.iter().filter(|(session, _)| *session == self.session);
        own.map(|(_, path)| path.clone()).collect()
    }

    /// What the console said, but for what has one of these texts.
    #[track_caller]
    pub fn has_no_problem_but(&self, expected: &[&str]) {
        let state = self.browser.pipe.state.lock().unwrap();
        let own = state.problems.iter().filter(|(session, _)| *session == self.session);
        let other: Vec<_> =
            own.filter(|(_, problem)| !expected.iter().any(|one| problem.contains(one))).collect();
        assert!(other.is_empty(), "{other:#?}");
    }
}
