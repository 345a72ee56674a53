//! From settings to a checked [`Config`], with all problems at once.

mod dataset;
mod reader;
mod writes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::reader::Reader;
use super::diagnostic::{Diagnostic, Severity};
use super::source::Source;
use super::{
    Admin, Config, Feed, FeedMode, Invalidation, Log, LogFormat, OnNewEpoch, Postgres, Redis, ScheduleCheck,
    Secret, Service, Writes, environment, raw,
};

/// A configuration and what is odd about it, or what is wrong with it.
pub type Checked = Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>>;

impl Config {
    /// The keys that streams use, each with its setting: entries of datasets may not have them.
    #[must_use]
    pub fn stream_keys(&self) -> Vec<(&'static str, String)> {
        let (events, writes) = (self.invalidation.stream.as_deref(), self.writes.stream.as_deref());
        writes::used_keys(&self.datasets, events, writes)
    }

    /// Checks a file's text together with the environment's overrides. `path` is for messages. Schedules are taken as
    /// they are: applications share the worker's file, but not its cron.
    ///
    /// # Errors
    /// Every problem that was found.
    pub fn load(path: &Path, text: String, environment: &BTreeMap<String, String>) -> Checked {
        Self::load_with(path, text, environment, |_| Ok(()))
    }

    /// The same with a check of the schedules, whose problems come with all others.
    ///
    /// # Errors
    /// Every problem that was found.
    pub fn load_with(
        path: &Path,
        text: String,
        environment: &BTreeMap<String, String>,
        check_schedule: ScheduleCheck,
    ) -> Checked {
        let mut source = Source::new(path.display().to_string(), text);
        let mut problems = Vec::new();
        let mut leaves = raw::read(&mut source, &mut problems);
        environment::apply(environment, &mut leaves, &mut source, &mut problems);
        let mut reader = Reader { leaves: &leaves, source: &source, problems, check_schedule };
        let config = read_config(&mut reader);
        let (mut errors, warnings): (Vec<_>, Vec<_>) =
            reader.problems.into_iter().partition(|problem| problem.severity == Severity::Error);
        if errors.is_empty() {
            return Ok((Self { source, ..config }, warnings));
        }
        errors.sort_by_key(|problem| {
            problem.position.as_ref().map_or((0, 0), |place| (place.line, place.column))
        });
        errors.dedup();
        errors.extend(warnings);
        Err(errors)
    }
}

/// Where the configuration file is: as given, `CACHEKEEPER_CONFIG`, `./cachekeeper.toml`,
/// `/etc/cachekeeper/cachekeeper.toml`.
///
/// # Errors
/// What was looked for.
pub fn find(
    explicit: Option<PathBuf>,
    environment: &BTreeMap<String, String>,
) -> Result<PathBuf, Box<Diagnostic>> {
    if let Some(path) = explicit.or_else(|| environment.get("CACHEKEEPER_CONFIG").map(PathBuf::from)) {
        return Ok(path);
    }
    let usual = ["cachekeeper.toml", "/etc/cachekeeper/cachekeeper.toml"];
    let found = usual.iter().map(PathBuf::from).find(|path| path.is_file());
    found.ok_or_else(|| {
        let help = "give one with -c FILE or CACHEKEEPER_CONFIG; config/cachekeeper.toml shows every key";
        let message = format!("no configuration file: looked for {}", usual.join(" and "));
        Box::new(Diagnostic::error(message, help.to_owned()))
    })
}

fn read_config(reader: &mut Reader<'_>) -> Config {
    let feed_mode =
        reader.choice("feed.mode", &[("outbox", FeedMode::Outbox), ("off", FeedMode::Off)], FeedMode::Outbox);
    let datasets = dataset::read_all(reader, feed_mode);
    let events = optional(reader, "invalidation.stream", "cache:invalidation:log");
    let commands = optional(reader, "writes.stream", "cache:writes");
    writes::check_streams(reader, &datasets, events.as_deref(), commands.as_deref());
    let limit = Duration::from_secs;
    Config {
        service: Service {
            namespace: namespace(reader),
            shutdown_timeout: reader.duration("service.shutdown_timeout", limit(25), limit(1)..=limit(600)),
            on_new_epoch: reader.choice(
                "service.on_new_epoch",
                &[("refresh", OnNewEpoch::Refresh), ("drop", OnNewEpoch::Drop)],
                OnNewEpoch::Refresh,
            ),
        },
        postgres: Postgres {
            url: url(reader, "postgres", "postgres://cache@localhost/shop", &["postgres", "postgresql"]),
            password: reader.secret_file("postgres.password_file"),
            max_connections: u32::try_from(reader.integer("postgres.max_connections", 8, 1..=1_000))
                .unwrap_or(8),
            statement_timeout: reader.duration(
                "postgres.statement_timeout",
                limit(30),
                limit(1)..=limit(3_600),
            ),
            connect_timeout: reader.duration(
                "postgres.connect_timeout",
                limit(5),
                Duration::from_millis(100)..=limit(60),
            ),
        },
        redis: Redis {
            url: url(reader, "redis", "redis://localhost:6379/0", &["redis", "rediss", "redis+unix", "unix"]),
            password: reader.secret_file("redis.password_file"),
            connect_timeout: reader.duration(
                "redis.connect_timeout",
                limit(2),
                Duration::from_millis(100)..=limit(60),
            ),
            response_timeout: reader.duration(
                "redis.response_timeout",
                limit(5),
                Duration::from_millis(100)..=limit(60),
            ),
        },
        admin: Admin { listen: listen(reader) },
        feed: Feed {
            mode: feed_mode,
            retention: reader.duration("feed.retention", limit(3_600), limit(60)..=limit(30 * 86_400)),
            max_rows: reader.integer("feed.max_rows", 10_000, 1..=1_000_000),
            max_outbox: reader.integer("feed.max_outbox", 5_000_000, 1..=1_000_000_000),
            audit_rate: reader.integer("feed.audit_rate", 20, 0..=1_000_000),
            max_lag: reader.duration("feed.max_lag", limit(30), limit(1)..=limit(86_400)),
        },
        invalidation: Invalidation {
            channels: reader
                .texts("invalidation.channels")
                .unwrap_or_else(|| vec!["cache:invalidation".to_owned()]),
            stream: events,
            max_pending: usize::try_from(reader.integer("invalidation.max_pending", 10_000, 1..=10_000_000))
                .unwrap_or(10_000),
        },
        writes: Writes { stream: commands },
        log: Log {
            level: reader.text("log.level").unwrap_or_else(|| "info".to_owned()),
            format: reader.choice(
                "log.format",
                &[("auto", LogFormat::Auto), ("pretty", LogFormat::Pretty), ("json", LogFormat::Json)],
                LogFormat::Auto,
            ),
        },
        datasets,
        source: Source::default(),
    }
}

fn namespace(reader: &mut Reader<'_>) -> String {
    let path = "service.namespace";
    let namespace = reader.text(path).unwrap_or_else(|| "shop".to_owned());
    let is_plain = |character: char| character.is_alphanumeric() || matches!(character, '-' | '_' | '.');
    if namespace.is_empty() || !namespace.chars().all(is_plain) {
        reader.error(
            path,
            format!("{namespace:?} cannot be a namespace"),
            "use letters, digits, `-`, `_` and `.`",
        );
    }
    namespace
}

fn url(reader: &mut Reader<'_>, section: &str, default: &str, schemes: &[&str]) -> Secret {
    let (path, file) = (format!("{section}.url"), format!("{section}.url_file"));
    let from_file = reader.secret_file(&file);
    if from_file.is_some() && reader.source.has(&path) {
        reader.error(&path, format!("both `url` and `url_file` in [{section}]"), "keep one of them");
    }
    let secret = from_file.or_else(|| reader.text(&path).map(Secret::new));
    let secret = secret.unwrap_or_else(|| Secret::new(default.to_owned()));
    let scheme = secret.reveal().split_once("://").map_or("", |(scheme, _)| scheme);
    // The URL itself may hold a password, so only its scheme is shown.
    if !schemes.contains(&scheme) {
        let help = format!(
            "it begins with {}",
            schemes.iter().map(|scheme| format!("{scheme}://")).collect::<Vec<_>>().join(" or ")
        );
        reader.error(&path, format!("this is no URL for [{section}]"), &help);
    } else if url::Url::parse(secret.reveal()).is_err() {
        reader.error(
            &path,
            "this URL cannot be read",
            "write special characters of user and password as %XX",
        );
    }
    secret
}

fn listen(reader: &mut Reader<'_>) -> Option<String> {
    let path = "admin.listen";
    let listen = reader.text(path).unwrap_or_else(|| "127.0.0.1:9464".to_owned());
    if listen.is_empty() {
        return None;
    }
    if listen.parse::<std::net::SocketAddr>().is_err() {
        reader.error(
            path,
            format!("{listen:?} is no address with a port"),
            "for example \"127.0.0.1:9464\", or \"\" for none",
        );
    }
    Some(listen)
}

fn optional(reader: &mut Reader<'_>, path: &str, default: &str) -> Option<String> {
    let text = reader.text(path).unwrap_or_else(|| default.to_owned());
    (!text.is_empty()).then_some(text)
}
