//! Programs on the packages for Python and Node: installed as anybody installs them, and called line by line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use cachekeeper::app::Worker;
use serde_json::{Value, json};

use crate::support::wait_until;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What is installed is of these sources; where it is not, it is installed again.
pub fn install() {
    let installed = Command::new(format!("{ROOT}/tests/readers/install")).output().unwrap();
    assert!(
        installed.status.success(),
        "tests/readers/install: {}",
        String::from_utf8_lossy(&installed.stderr)
    );
}

/// Python with what is installed.
pub fn python() -> Command {
    let mut command = Command::new(format!("{ROOT}/target/readers/python/bin/python"));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A program of `tests/readers`: `name.py` or `name.mjs`.
pub fn program(name: &str) -> Command {
    let mut command = if name.ends_with(".py") { python() } else { Command::new("node") };
    command.arg(format!("{ROOT}/tests/readers/{name}")).env("READERS", format!("{ROOT}/target/readers"));
    command
}

/// Every entry is there; a dataset that nobody watches is not covered.
pub async fn filled(worker: &Worker) {
    wait_until("the worker is ready and nothing is pending", async || {
        let (reasons, pending) = (worker.health.reasons(), worker.health.facts().pending);
        if reasons.is_empty() && pending.is_empty() {
            Ok(())
        } else {
            Err(format!("{reasons:?}, {pending:?}"))
        }
    })
    .await;
}

/// The programs that call what they are told.
pub const CALLERS: [&str; 3] = ["client.py", "client_aio.py", "client.mjs"];

/// One of them.
pub struct Caller {
    pub name: &'static str,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Caller {
    pub fn start(name: &'static str, url: &str, namespace: &str) -> Self {
        let mut command = program(name);
        command.args([url, namespace]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { name, child, input, output }
    }

    /// All three of them.
    pub fn start_all(url: &str, namespace: &str) -> Vec<Self> {
        CALLERS.iter().map(|name| Self::start(name, url, namespace)).collect()
    }

    /// Asks for a call, and does not wait until it is answered.
    pub fn ask(&mut self, method: &str, arguments: Value, options: Value) {
        writeln!(self.input, "{}", json!([method, arguments, options])).unwrap();
    }

    /// The answer to what was asked first.
    pub fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{}: {error}: {line:?}", self.name))
    }

    /// What a call answers.
    pub fn call(&mut self, method: &str, arguments: Value, options: Value) -> Value {
        self.ask(method, arguments.clone(), options);
        let answer = self.answer();
        answer.get("value").cloned().unwrap_or_else(|| panic!("{} {method} {arguments}: {answer}", self.name))
    }

    /// The kind and the text of the error that a call ends with.
    pub fn fails(&mut self, method: &str, arguments: Value, options: Value) -> (String, String) {
        self.ask(method, arguments.clone(), options);
        let answer = self.answer();
        let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
        let error = text("error").zip(text("message"));
        error.unwrap_or_else(|| panic!("{} {method} {arguments}: {answer}", self.name))
    }

    /// The same, where kind and parts of the text are known.
    pub fn fails_with(
        &mut self,
        (method, arguments, options): (&str, Value, Value),
        kind: &str,
        parts: &[&str],
    ) {
        let (found, text) = self.fails(method, arguments, options);
        assert_eq!(found, kind, "{}: {text}", self.name);
        for part in parts {
            assert!(text.contains(part), "{} does not say {part:?}: {text}", self.name);
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
