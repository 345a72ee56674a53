//! Texts with a form of their own: the check, and the pattern by which an editor sees the same.

use crate::postgres_url::PostgresUrl;
use crate::{ClusterNodes, Sentinels};
use std::net::SocketAddr;

use serde_json::{Value, json};

use cachekeeper_protocol::glob::Glob;
use cachekeeper_protocol::keyspace::RESERVED_PREFIX;
use cachekeeper_protocol::template::Template;

/// What a text must look like.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// Anything but blanks.
    Filled,
    /// A namespace.
    Namespace,
    /// A URL with one of these schemes.
    Url(&'static [&'static str]),
    /// An address with a port, or nothing.
    Listen,
    /// The name of a host, without scheme and port.
    HostName,
    /// The name of a stream, or nothing.
    Stream,
    /// What the names of lists for replies begin with.
    ReplyPrefix,
    /// A pattern of keys.
    Glob,
    /// The template of a dataset's keys.
    Key,
    /// A template of tags.
    Template,
    /// A log level, or filters.
    LogLevel,
    /// A cron expression. What its fields mean is checked by whoever runs schedules.
    Schedule,
}

/// What is wrong with a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Flaw {
    /// At which byte, if at a certain one.
    pub offset: Option<usize>,
    pub message: String,
    pub help: String,
}

impl Flaw {
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { offset: None, message: message.into(), help: help.into() }
    }

    fn at(self, offset: usize) -> Self {
        Self { offset: Some(offset), ..self }
    }
}

impl Form {
    /// Everything that is wrong with a text. It may be secret, or hold secrets: URLs are not repeated.
    pub(crate) fn flaws(self, text: &str) -> Vec<Flaw> {
        let flaw = match self {
            Self::Filled | Self::Schedule => text
                .trim()
                .is_empty()
                .then(|| Flaw::new("there is nothing in this text", "give a value, or remove the key")),
            Self::Namespace => namespace(text),
            Self::Url(schemes) => url(text, schemes),
            Self::Listen => (!text.is_empty() && text.parse::<SocketAddr>().is_err()).then(|| {
                let help = "for example \"127.0.0.1:9464\", or \"\" for none";
                Flaw::new(format!("{text:?} is not an address with a port"), help)
            }),
            Self::HostName => host_name(text),
            Self::Stream => reserved(text, "choose another name"),
            Self::ReplyPrefix => reply_prefix(text),
            Self::Glob => glob(text),
            Self::Key => return key(text),
            Self::Template => template(text).err(),
            Self::LogLevel => log_level(text),
        };
        flaw.into_iter().collect()
    }

    /// The same for editors, as far as JSON Schema can say it.
    pub fn schema(self) -> Value {
        // What stands between placeholders; a placeholder; both as in `Template`.
        let (literal, column) = ("(?:[^{}]|\\{\\{|\\}\\})", "\\{[^{}]+\\}");
        let not_reserved = json!({ "pattern": format!("^{RESERVED_PREFIX}") });
        match self {
            Self::Filled => json!({ "pattern": "\\S" }),
            Self::ReplyPrefix => json!({ "pattern": "\\S", "not": not_reserved }),
            Self::Glob => json!({ "pattern": "^[^*?\\[]+" }),
            // Letters of every script are allowed, and not every validator knows their classes.
            Self::Namespace => json!({ "pattern": "^[^\\x00-,/:-@\\[-^`{-\\x7f]+$" }),
            Self::Url(schemes) => {
                let schemes: Vec<String> = schemes.iter().map(|scheme| scheme.replace('+', "\\+")).collect();
                json!({ "pattern": format!("^(?:{})://", schemes.join("|")) })
            }
            Self::Listen => {
                json!({ "pattern": "^(?:|[0-9.]+:[0-9]{1,5}|\\[[0-9A-Fa-f:.%]+\\]:[0-9]{1,5})$" })
            }
            Self::HostName => json!({ "pattern": "^[A-Za-z0-9._-]+$" }),
            Self::Stream => json!({ "not": not_reserved }),
            Self::Key => {
                json!({ "pattern": format!("^(?:{literal}+{column})+{literal}*$"), "not": not_reserved })
            }
            Self::Template => {
                json!({ "pattern": format!("^{literal}*(?:{column}(?:{literal}+|$))*$"), "minLength": 1 })
            }
            Self::LogLevel => {
                let either = |one: char| format!("[{one}{}]", one.to_ascii_uppercase());
                let level = LEVELS.map(|level| level.chars().map(either).collect::<String>()).join("|");
                let part = format!("(?:[^,=]+=)?(?:{level}|[0-5])");
                json!({ "pattern": format!("\\[|^{part}(?:,{part})*$") })
            }
            Self::Schedule => json!({
                "pattern": "^\\s*(?:@(?:hourly|daily|midnight|weekly|monthly|yearly|annually)|\\S+(?:\\s+\\S+){4,5})\\s*$"
            }),
        }
    }
}

fn namespace(text: &str) -> Option<Flaw> {
    let is_plain = |character: char| character.is_alphanumeric() || matches!(character, '-' | '_' | '.');
    let is_right = !text.is_empty() && text.chars().all(is_plain);
    let help = "use letters, digits, `-`, `_` and `.`";
    (!is_right).then(|| Flaw::new(format!("{text:?} cannot be a namespace"), help))
}

fn host_name(text: &str) -> Option<Flaw> {
    let is_plain = |one: char| one.is_ascii_alphanumeric() || matches!(one, '-' | '_' | '.');
    let is_right = !text.is_empty() && text.chars().all(is_plain);
    let help = "a name alone, without scheme, port and patterns, for example \"cachekeeper.internal\"";
    (!is_right).then(|| Flaw::new(format!("{text:?} is not the name of a host"), help))
}

fn url(text: &str, schemes: &[&str]) -> Option<Flaw> {
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
    if !schemes.contains(&scheme) && text.contains("${") {
        let section = if schemes.contains(&"postgres") { "POSTGRES" } else { "REDIS" };
        let help = format!("leave it out of the file, and set the variable CACHEKEEPER__{section}__URL");
        return Some(Flaw::new("variables are not put into the file's texts", help));
    }
    if schemes.contains(&"redis") {
        match ClusterNodes::parse(text) {
            Err(flaw) => return Some(Flaw { offset: flaw.offset, ..Flaw::new(flaw.message, flaw.help) }),
            Ok(Some(_)) => return None,
            Ok(None) => {}
        }
    }
    if !schemes.contains(&scheme) {
        let schemes: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
        let first = schemes.first().map_or("", String::as_str);
        let help = format!("it begins with {}", schemes.join(" or "));
        return Some(Flaw::new(format!("this is not a {first} URL"), help));
    }
    if schemes.contains(&"postgres") {
        let problem = PostgresUrl::parse(text).err();
        return problem.map(|problem| Flaw {
            offset: problem.offset,
            message: problem.message,
            help: problem.help,
        });
    }
    let help = "write special characters of user and password as %XX";
    match Sentinels::parse(text) {
        Err(flaw) => return Some(Flaw { offset: flaw.offset, ..Flaw::new(flaw.message, flaw.help) }),
        Ok(Some(_)) => return None,
        Ok(None) => {}
    }
    match url::Url::parse(text) {
        Err(_not_repeated) => Some(Flaw::new("this URL cannot be read", help)),
        Ok(url) => redis_parts(&url),
    }
}

/// What the driver would refuse later, or take for something else.
fn redis_parts(url: &url::Url) -> Option<Flaw> {
    if url.fragment().is_some() {
        let help = "certificates are always checked; name the authority of a private one in `ca_file`";
        return Some(Flaw::new("this URL has a part behind a `#`", help));
    }
    let database = url.path().trim_matches('/');
    let is_number = database.is_empty() || database.parse::<u32>().is_ok();
    (url.scheme().starts_with("rediss") || url.scheme() == "redis").then_some(())?;
    let help = "end it in the number of a database, as redis://host:6379/0; write special characters of user and password as %XX";
    (!is_number).then(|| Flaw::new("this URL does not end in the number of a database", help))
}

fn reserved(text: &str, help: &str) -> Option<Flaw> {
    let message = format!("keys that begin with {RESERVED_PREFIX} are Cachekeeper's own");
    text.starts_with(RESERVED_PREFIX).then(|| Flaw::new(message, help))
}

fn reply_prefix(text: &str) -> Option<Flaw> {
    let is_blank = text.trim().is_empty();
    let blank =
        || Flaw::new("without a prefix, a reply could be pushed to any list", "for example \"cache:reply:\"");
    is_blank.then(blank).or_else(|| reserved(text, "choose another prefix"))
}

/// A pattern that begins with a wildcard would cover the keys of everybody.
fn glob(text: &str) -> Option<Flaw> {
    let help = "begin with the keys' own prefix, for example \"page:*\"";
    if text.starts_with(['*', '?', '[']) || text.trim().is_empty() {
        return Some(Flaw::new("this pattern would allow events to delete keys of every application", help));
    }
    let problem = Glob::parse(text).err().map(|problem| format!("this is no pattern of keys: {problem}"));
    problem.map(|problem| Flaw::new(problem, help)).or_else(|| reserved(text, help))
}

fn template(text: &str) -> Result<Template, Flaw> {
    let help = "write {column} for a column, {{ for a brace";
    Template::parse(text).map_err(|error| Flaw::new(error.message, help).at(error.offset))
}

fn key(text: &str) -> Vec<Flaw> {
    let key = match template(text) {
        Ok(key) => key,
        Err(flaw) => return vec![flaw],
    };
    let mut flaws = Vec::new();
    let columns: Vec<&str> = key.columns().collect();
    let is_second =
        |(at, column): &(usize, &&str)| columns.iter().take(*at).any(|earlier| earlier == *column);
    if let Some((_, column)) = columns.iter().enumerate().find(is_second) {
        let offset = text.rfind(&format!("{{{column}}}")).unwrap_or_default();
        flaws.push(Flaw::new(format!("{{{column}}} stands twice in the key"), "once is enough").at(offset));
    }
    if columns.is_empty() {
        let message = "the key has no placeholder, so all rows would have the same";
        flaws.push(Flaw::new(message, "add a {column} of the query"));
    }
    flaws.extend(reserved(text, "choose another prefix"));
    if key.prefix().is_empty() {
        let help = "begin it with a prefix of its own, such as \"product:\"";
        flaws.push(Flaw::new("the key begins with a placeholder", help));
    }
    flaws
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn is_level(word: &str) -> bool {
    LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word)) || matches!(word.as_bytes(), [b'0'..=b'5'])
}

/// What is wrong with a level of the log, and what to give instead; none: nothing.
#[must_use]
pub fn log_level_problem(text: &str) -> Option<String> {
    log_level(text).map(|flaw| format!("{}; {}", flaw.message, flaw.help))
}

/// The filters of `tracing` also take a bare word, as the name of a crate: a level with a typing mistake would silence
/// everything. So each part must name a level.
fn log_level(text: &str) -> Option<Flaw> {
    // Filters by span may hold commas and equals signs; they are read when logging starts.
    if text.contains('[') {
        return None;
    }
    let mut offset = 0;
    for part in text.split(',') {
        let level =
            part.rsplit_once('=').map_or(part, |(target, level)| if target.is_empty() { "" } else { level });
        if !is_level(level) {
            let help = "give off, error, warn, info, debug or trace, or filters such as \"info,cachekeeper::actors=debug\"";
            return Some(Flaw::new(format!("{part:?} is not a log level"), help).at(offset));
        }
        offset += part.len() + 1;
    }
    None
}
