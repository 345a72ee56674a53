//! `cachekeeper tap`: what the running worker does to entries, a line each, as it comes.

use std::io;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::admin_client::{Answer, Lines, get, open};
use super::output::{Exit, Output};
use super::worker_asked::{Refused, found, refused};
use crate::actors::clock::now_ms;
use cachekeeper_config::diagnostic::did_you_mean;
use cachekeeper_config::{Admin, Config};
use cachekeeper_engine::backoff::Backoff;
use cachekeeper_engine::shown::escaped;

/// The worker says each 10 s that it is there; whoever says nothing for longer is gone.
const SILENCE: Duration = Duration::from_secs(30);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Touches of one event of the stream: as many as the worker gives.
const EVENT_MAX: usize = 1_000;

/// What is to be shown.
#[derive(Debug, Args)]
pub struct Request {
    /// Of this dataset only; may be given several times
    #[arg(short, long = "dataset", value_name = "DATASET")]
    datasets: Vec<String>,
    /// Of this kind only: what happened, or why; may be given several times
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// Of keys that match this pattern of Redis only, such as 'product:*'
    #[arg(short, long, value_name = "PATTERN")]
    key: Option<String>,
    /// Lines of text, or a JSON object in each line
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// What happened, or why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Because of a committed change
    Change,
    /// Because of a write through the worker
    Write,
    /// Because of an event
    Event,
    /// Because an entry was revalidated
    Revalidation,
    /// Because an entry was refreshed ahead of its end
    Refresh,
    /// Because an application missed it
    Miss,
    /// Because of a backfill: when it has ended, and rows that have no entry
    Backfill,
    /// Because the audit found it wrong
    Audit,
    /// A value was stored
    Stored,
    /// An entry was deleted because its row is gone
    Gone,
    /// An entry was deleted because somebody asked for it, or nothing newer could be stored
    Deleted,
    /// A value was not stored: something newer was there
    #[value(alias = "refusal")]
    Refused,
    /// A row has no entry
    #[value(alias = "failure")]
    Failed,
    /// A backfill of a whole dataset has ended
    Filled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Shows what happens until Ctrl-C, or until nobody reads it.
pub async fn tap(config: &Config, request: &Request, out: &Output) -> Exit {
    let known = || config.datasets.iter().map(|dataset| dataset.name.as_str());
    if let Some(unknown) = request.datasets.iter().find(|name| !known().any(|known| known == *name)) {
        let close =
            did_you_mean(unknown, known()).map_or(String::new(), |close| format!("; did you mean {close}?"));
        out.failure(&format!("no dataset is named {unknown}{close}"));
        return Exit::Usage;
    }
    let is_json = out.json || request.format == Format::Json;
    let mut tap =
        Tap { config, out, is_json, query: query(request), worker: None, after: None, seen_ms: now_ms() };
    tokio::select! {
        exit = tap.follow() => exit,
        () = out.closed() => Exit::Ok,
        _ = tokio::signal::ctrl_c() => Exit::Ok,
    }
}

/// The filters, as the API takes them.
fn query(request: &Request) -> String {
    let plain = |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02x}")).collect() };
    let mut query = format!("limit={EVENT_MAX}");
    if !request.datasets.is_empty() {
        query.push_str(&format!("&dataset={}", plain(&request.datasets.join(","))));
    }
    let kinds = request.kinds.iter().filter_map(ValueEnum::to_possible_value);
    let kinds: Vec<String> = kinds.map(|kind| kind.get_name().to_owned()).collect();
    if !kinds.is_empty() {
        query.push_str(&format!("&kind={}", kinds.join(",")));
    }
    if let Some(key) = &request.key {
        query.push_str(&format!("&key={}", plain(key)));
    }
    query
}

/// Who is followed, and how far.
struct Tap<'a> {
    config: &'a Config,
    out: &'a Output,
    is_json: bool,
    query: String,
    /// The worker that is followed: another one counts its touches anew.
    worker: Option<String>,
    /// The last touch that was seen of it.
    after: Option<u64>,
    /// When that was, or when the verb began, in Unix milliseconds.
    seen_ms: u64,
}

/// Why a stream is over.
enum Over {
    /// It broke off, or could not be opened.
    Broken(String),
    /// It makes no sense to try again.
    Refused(Refused),
    /// Nobody reads any more.
    Closed,
}

impl Tap<'_> {
    async fn follow(&mut self) -> Exit {
        let mut pauses = Backoff::new(RETRY_MIN, RETRY_MAX);
        let mut is_told = false;
        loop {
            let had_worker = self.worker.is_some();
            match self.stream(&mut is_told, &mut pauses).await {
                Over::Closed => return Exit::Ok,
                Over::Refused(refused) if !had_worker || refused.exit == Exit::Usage => {
                    self.out.failure(&refused.error);
                    return refused.exit;
                }
                Over::Broken(reason) | Over::Refused(Refused { error: reason, .. }) => {
                    if !is_told {
                        is_told = true;
                        self.say(
                            "disconnected",
                            &format!("the worker does not answer any more: {reason}; it is looked for"),
                        );
                    }
                }
            }
            sleep(pauses.pause()).await;
        }
    }

    /// Follows one worker until the stream is over.
    async fn stream(&mut self, is_told: &mut bool, pauses: &mut Backoff) -> Over {
        let mut lines = match self.begin(is_told).await {
            Ok(lines) => lines,
            Err(over) => return over,
        };
        let mut event = String::new();
        loop {
            let line = match timeout(SILENCE, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => return Over::Broken("the stream has ended".to_owned()),
                Ok(Err(error)) => return Over::Broken(error.to_string()),
                Err(_elapsed) => return Over::Broken("it has said nothing for 30 s".to_owned()),
            };
            pauses.reset();
            if let Some(name) = line.strip_prefix("event:") {
                event = name.trim().to_owned();
            } else if let Some(data) = line.strip_prefix("data:") {
                self.take(&event, &serde_json::from_str(data).unwrap_or_default());
            }
            if self.out.is_broken() {
                return Over::Closed;
            }
        }
    }

    /// Asks who answers, and opens the stream where the last one ended.
    async fn begin(&mut self, is_told: &mut bool) -> Result<Lines, Over> {
        let admin = &self.config.admin;
        let machine = found(self.config).await.map_err(Over::Refused)?;
        let owner = machine.get("owner").and_then(Value::as_str).unwrap_or_default().to_owned();
        match self.worker.as_deref() {
            None => self.after = Some(remembered(admin).await?.0),
            Some(worker) if worker == owner => {}
            Some(_) => {
                // One that was loaded again goes on counting, and remembers what was seen; one that was started again cannot.
                let (_, since_ms) = remembered(admin).await?;
                *is_told = false;
                if since_ms <= self.seen_ms {
                    self.say(
                        "another_worker",
                        "the worker has loaded its configuration again; it is followed on",
                    );
                } else {
                    self.after = Some(0);
                    self.say("another_worker", "the worker was started again; it is followed from its start");
                }
            }
        }
        self.worker = Some(owner);
        let path = format!("/api/v1/live?{}&after={}", self.query, self.after.unwrap_or_default());
        let opened = match open(admin, &path).await {
            Ok(Ok(lines)) => Ok(lines),
            Ok(Err(answer)) => Err(Over::Refused(refused(self.config, &answer))),
            Err(error) => Err(Over::Broken(error.to_string())),
        };
        if opened.is_ok() && std::mem::take(is_told) {
            self.say("connected", "the worker answers again; nothing was missed");
        }
        opened
    }

    /// An event of the stream.
    fn take(&mut self, event: &str, data: &Value) {
        match event {
            "touches" => {
                if data.get("is_sampled").and_then(Value::as_bool) == Some(true) {
                    self.say("sampled", "more happened than can be shown: some of it is left out here");
                }
                for touch in data.get("touches").and_then(Value::as_array).into_iter().flatten() {
                    let text = if self.is_json { touch.to_string() } else { line(touch) };
                    self.out.line(&text);
                    self.seen_ms =
                        touch.get("at_ms").and_then(Value::as_u64).unwrap_or_default().max(self.seen_ms);
                }
                self.after = data.get("last").and_then(Value::as_u64).max(self.after);
            }
            "lost" => {
                let lost = data.get("lost").and_then(Value::as_u64).unwrap_or_default();
                if self.is_json {
                    self.out.line(&json!({ "event": "lost", "lost": lost }).to_string());
                } else {
                    self.out.note(&format!("lost: {lost} went by, because they were not read in time"));
                }
            }
            _ => {}
        }
    }

    /// Something about the stream itself.
    fn say(&self, event: &str, text: &str) {
        if self.is_json {
            self.out.line(&json!({ "event": event, "text": text }).to_string());
        } else {
            self.out.note(text);
        }
    }
}

/// The number of the last touch there is, and since when the worker remembers everything.
async fn remembered(admin: &Admin) -> Result<(u64, u64), Over> {
    let told = |error: io::Error| Over::Broken(error.to_string());
    let Answer { code, body } = get(admin, "/api/v1/touches?limit=1").await.map_err(told)?;
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    let number = |name: &str| body.get(name).and_then(Value::as_u64).filter(|_| code == 200);
    let both = number("last").zip(number("since_ms"));
    both.ok_or_else(|| Over::Broken("it does not say what happened last".to_owned()))
}

/// A touch as a line of text.
fn line(touch: &Value) -> String {
    let word = |name: &str| touch.get(name).and_then(Value::as_str).unwrap_or_default();
    let at = touch.get("at_ms").and_then(Value::as_i64).and_then(DateTime::<Utc>::from_timestamp_millis);
    let at = at.map_or(String::new(), |at| at.format("%H:%M:%S%.3fZ").to_string());
    let (what, cause, dataset, key) = (word("what"), word("cause"), word("dataset"), word("key"));
    let reason = match word("reason") {
        reason if reason.is_empty() || key.is_empty() => reason.to_owned(),
        reason => format!(": {reason}"),
    };
    escaped(&format!("{at}  {what:<8} {cause:<12} {dataset:<16} {key}{reason}")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_written_out() {
        let touch = json!({ "at_ms": 1_000, "what": "failed", "cause": "change", "dataset": "p",
            "key": "p:\u{1b}[2J\n", "reason": "too\tlarge" });
        let line = line(&touch);
        assert!(line.starts_with("00:00:01.000Z  failed   change       p  "), "{line}");
        assert!(line.ends_with("p:\\u{1b}[2J\\n: too\\tlarge"), "{line}");
    }

    #[test]
    fn filters_are_asked_for_as_they_are_written() {
        let request = Request {
            datasets: vec!["a".into(), "b".into()],
            kinds: vec![Kind::Event, Kind::Refused],
            key: Some("p:*&".into()),
            format: Format::Text,
        };
        assert_eq!(query(&request), "limit=1000&dataset=%61%2c%62&kind=event,refused&key=%70%3a%2a%26");
    }
}
