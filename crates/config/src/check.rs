//! From settings to a checked [`Config`], with all problems at once.

mod admin;
mod dataset;
mod reader;
mod redis;
mod sense;
mod writes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use self::reader::Reader;
use super::diagnostic::{Diagnostic, Severity};
use super::key::Kind;
use super::postgres_url::PostgresUrl;
use super::source::Source;
use super::table;
use super::{
    Config, Feed, FeedMode, Invalidation, Log, Postgres, ScheduleCheck, Secret, Service, Writes, changes,
    environment, raw, values,
};
use cachekeeper_protocol::glob::Glob;

/// A configuration and what is odd about it, or what is wrong with it.
pub(crate) type Checked = Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>>;

/// What is right of a file, and what is wrong or odd with it.
#[derive(Clone, Debug)]
pub struct PartialConfig {
    /// What is right.
    pub config: Config,
    /// What is wrong or odd.
    pub problems: Vec<Diagnostic>,
}

impl Config {
    /// Checks a file's text together with the environment's overrides. `path` is for messages. Schedules are taken as
    /// they are: applications share the worker's file, but not its cron.
    ///
    /// # Errors
    /// Every problem that was found.
    pub fn load(path: &Path, text: String, environment: &BTreeMap<String, String>) -> Checked {
        Self::load_with(path, text, environment, |_| Vec::new())
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
        let PartialConfig { config, problems } = Self::load_partly(path, text, environment, check_schedule);
        let is_right = problems.iter().all(|problem| problem.severity != Severity::Error);
        if is_right { Ok((config, problems)) } else { Err(problems) }
    }

    /// What is right of a file: in the place of a wrong setting stands its default, and a dataset whose query or key is wrong is left
    /// out. With everything that is wrong or odd, the errors first, in the order of the file.
    #[must_use]
    pub fn load_partly(
        path: &Path,
        text: String,
        environment: &BTreeMap<String, String>,
        check_schedule: ScheduleCheck,
    ) -> PartialConfig {
        let mut source = Source::new(path.display().to_string(), text);
        let mut problems = Vec::new();
        let mut leaves = raw::read(&mut source, &mut problems);
        environment::apply(environment, &mut leaves, &mut source, &mut problems);
        source.set_given(changes::given(&leaves));
        values::check(&mut leaves, &source, &mut problems);
        let mut reader = Reader {
            leaves: &leaves,
            source: &source,
            problems,
            check_schedule,
            #[cfg(test)]
            asked: std::collections::BTreeSet::new(),
        };
        let config = read_config(&mut reader);
        let problems = in_order(reader.problems);
        PartialConfig { config: Self { source, ..config }, problems }
    }
}

/// Problems in the order of the file, the errors first, each once.
#[must_use]
pub fn in_order(problems: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let mut problems = problems;
    let place =
        |problem: &Diagnostic| problem.position.as_ref().map_or((0, 0), |place| (place.line, place.column));
    problems.sort_by_key(|problem| (problem.severity != Severity::Error, place(problem)));
    problems.dedup();
    problems
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
    let named = environment.get("CACHEKEEPER_CONFIG").filter(|path| !path.is_empty());
    if let Some(path) = explicit.or_else(|| named.map(PathBuf::from)) {
        return Ok(path);
    }
    let usual = ["cachekeeper.toml", "/etc/cachekeeper/cachekeeper.toml"];
    let found = usual.iter().map(PathBuf::from).find(|path| path.is_file());
    found.ok_or_else(|| {
        let help = "give one with -c FILE or CACHEKEEPER_CONFIG; `cachekeeper schema --toml` prints one with every key";
        let message = format!("no configuration file: looked for {}", usual.join(" and "));
        Box::new(Diagnostic::error(message, help.to_owned()))
    })
}

fn read_config(reader: &mut Reader<'_>) -> Config {
    let feed = feed(reader);
    let datasets = dataset::read_all(reader, feed.mode);
    let events = reader.text_unless_empty("invalidation.stream");
    let channels = reader.texts("invalidation.channels");
    let commands = reader.text_unless_empty("writes.stream");
    let reply_prefix = reader.text("writes.reply_prefix");
    sense::of_feed(reader, &feed, &datasets);
    let (follows, hears) = (feed.mode != FeedMode::Off, events.is_some() || !channels.is_empty());
    for dataset in &datasets {
        sense::of_dataset(reader, dataset);
        sense::of_filling(reader, dataset, follows, hears);
    }
    writes::check_streams(reader, &datasets, events.as_deref(), commands.as_deref());
    writes::check_reply_prefix(reader, &datasets, [events.as_deref(), commands.as_deref()], &reply_prefix);
    Config {
        service: Service {
            namespace: reader.text("service.namespace"),
            release: reader.number("service.release"),
            shutdown_timeout: reader.duration("service.shutdown_timeout"),
            on_new_epoch: reader.choice("service.on_new_epoch"),
        },
        postgres: Postgres {
            url: url(reader, "postgres").unwrap_or_else(|wrong| wrong),
            url_file: reader.readable_file("postgres.url_file"),
            password_file: reader.readable_file("postgres.password_file"),
            max_connections: reader.number("postgres.max_connections"),
            statement_timeout: reader.duration("postgres.statement_timeout"),
            connect_timeout: reader.duration("postgres.connect_timeout"),
        },
        redis: redis::read(reader),
        admin: admin::read(reader),
        feed,
        invalidation: Invalidation {
            channels,
            stream: events,
            keys: reader
                .texts("invalidation.keys")
                .iter()
                .filter_map(|text| Glob::parse(text).ok())
                .collect(),
            max_pending: reader.number("invalidation.max_pending"),
        },
        writes: Writes { stream: commands, reply_prefix },
        log: Log { level: reader.text("log.level"), format: reader.choice("log.format") },
        datasets,
        source: Source::default(),
    }
}

fn feed(reader: &mut Reader<'_>) -> Feed {
    Feed {
        mode: reader.choice("feed.mode"),
        retention: reader.duration("feed.retention"),
        max_rows: reader.number("feed.max_rows"),
        max_outbox: reader.number("feed.max_outbox"),
        audit_rate: reader.number("feed.audit_rate"),
        max_lag: reader.duration("feed.max_lag"),
    }
}

/// The URL of a section, or of the file that the section names. It may hold a password, so it is never shown. An error: it is
/// wrong, which was said.
fn url(reader: &mut Reader<'_>, section: &str) -> Result<Secret, Secret> {
    let (path, file) = (format!("{section}.url"), format!("{section}.url_file"));
    let (secret, is_right) = match reader.secret_file(&file) {
        None => (Secret::new(reader.text(&path)), !reader.is_wrong(&path)),
        Some(secret) => {
            if reader.source.has(&path) {
                let message = format!("both `url` and `url_file` in [{section}]");
                reader.error(&path, message, "keep one of them");
            }
            let flaws = match table::find(&path).map(|key| key.kind) {
                Some(Kind::Text(form)) => form.flaws(secret.reveal()),
                _ => Vec::new(),
            };
            let is_right = flaws.is_empty();
            flaws.into_iter().for_each(|flaw| reader.error(&file, flaw.message, &flaw.help));
            (secret, is_right)
        }
    };
    let password = format!("{section}.password_file");
    if secret.has_password() && reader.has(&password) {
        let message = "the URL holds a password too; the one of this file is used";
        reader.warning(&password, message, "take the password out of the URL, or remove this");
    }
    let named = PostgresUrl::parse(secret.reveal()).map(|url| url.files).unwrap_or_default();
    for (parameter, certificates) in named.iter().filter(|(parameter, _)| *parameter != "sslkey") {
        let given = if reader.has(&file) { &file } else { &path };
        reader.warn_of_certificate(given, certificates, *parameter == "sslrootcert");
    }
    if is_right { Ok(secret) } else { Err(secret) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::key::Key;
    use crate::reference::reference;

    /// The settings that the code must ask for. `*` stands for the name of a dataset, and for a position.
    fn expected(keys: &[Key], path: &str, found: &mut BTreeSet<String>) {
        for key in keys {
            let below = raw::join(path, key.name);
            match key.kind {
                Kind::Table(keys) => expected(keys, &below, found),
                Kind::Named(keys) | Kind::Tables(keys) => expected(keys, &raw::join(&below, "*"), found),
                _ => drop(found.insert(below)),
            }
        }
    }

    #[test]
    fn the_code_asks_for_every_key_of_the_table() {
        let mut source = Source::new("f.toml".to_owned(), reference());
        let mut problems = Vec::new();
        let mut leaves = raw::read(&mut source, &mut problems);
        values::check(&mut leaves, &source, &mut problems);
        let mut reader = Reader {
            leaves: &leaves,
            source: &source,
            problems,
            check_schedule: |_| Vec::new(),
            asked: BTreeSet::new(),
        };
        drop(read_config(&mut reader));
        assert_eq!(reader.problems, []);
        let general = |path: &String| {
            let names = ["dataset.product", "dataset.reviews"];
            let path = names.iter().fold(path.clone(), |path, name| path.replace(name, "dataset.*"));
            path.replace(".0.", ".*.").replace(".1.", ".*.")
        };
        let asked: BTreeSet<String> = reader.asked.iter().map(general).collect();
        let mut wanted = BTreeSet::new();
        expected(table::ROOT, "", &mut wanted);
        // Shown with a dataset, which has its own.
        wanted.retain(|path| !path.starts_with("defaults.compression."));
        let unread: Vec<&String> = wanted.difference(&asked).collect();
        assert!(unread.is_empty(), "no code reads {unread:?}");
        let unknown: Vec<&String> = asked.difference(&wanted).collect();
        assert!(unknown.is_empty(), "the table has no {unknown:?}");
    }

    #[test]
    fn every_default_and_example_is_allowed() {
        fn look(keys: &[Key], path: &str) {
            for key in keys {
                let below = raw::join(path, key.name);
                if let Some(default) = key.default {
                    let leaf = raw::Leaf::from_plain(key.kind, default);
                    let flaws = leaf.map(|leaf| values::flaws(key.kind, &leaf));
                    assert_eq!(flaws, Some(Vec::new()), "the default of {below}");
                }
                match key.kind {
                    Kind::Table(keys) | Kind::Named(keys) | Kind::Tables(keys) => look(keys, &below),
                    _ => {}
                }
            }
        }
        look(table::ROOT, "");
        // Examples stand in the reference, some as comments.
        let all = reference().replace("# rate", "rate").replace("# negative_ttl", "negative_ttl");
        let loaded = Config::load(Path::new("f.toml"), all, &BTreeMap::new());
        assert!(loaded.is_ok_and(|(_, warnings)| warnings.is_empty()));
    }
}
