//! `[dataset.*]`

use std::time::Duration;

use super::reader::Reader;
use super::writes;
use crate::raw::Leaf;
use crate::{
    Codec, Compression, Dataset, FeedMode, FeedNeed, Format, Numeric, OnChange, OnMiss, Rows,
    ScheduleProblem, ScheduleText, Scope, Warm, Watch, WatchTarget,
};
use cachekeeper_protocol::keyspace::RESERVED_PREFIX;
use cachekeeper_protocol::template::{Alphabet, Template};

const SECOND: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

pub fn read_all(reader: &mut Reader<'_>, feed_mode: FeedMode) -> Vec<Dataset> {
    let names: Vec<String> = reader
        .leaves
        .keys()
        .filter_map(|path| path.strip_prefix("dataset."))
        .filter(|name| !name.contains('.'))
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        reader.warning(
            "dataset",
            "no dataset is configured, so there is nothing to do",
            "add a [dataset.NAME] with `query` and `key`",
        );
    }
    let datasets: Vec<Dataset> =
        names.iter().filter_map(|name| One { reader: &mut *reader, name, feed_mode }.read()).collect();
    check_overlaps(reader, &datasets);
    datasets
}

/// Two datasets may not write the same key. Types are not known yet: a placeholder is taken to hold no `:`.
fn check_overlaps(reader: &mut Reader<'_>, datasets: &[Dataset]) {
    for (position, later) in datasets.iter().enumerate() {
        for earlier in datasets.iter().take(position) {
            let segment = |_: &str| Alphabet::Segment;
            if later.key.overlaps(segment, &earlier.key, segment) {
                let message = format!(
                    "keys {} and {} of dataset {} could coincide",
                    later.key, earlier.key, earlier.name
                );
                reader.error(
                    &format!("dataset.{}.key", later.name),
                    message,
                    "begin each dataset's keys with a prefix of its own",
                );
            }
        }
    }
}

struct One<'r, 'a> {
    reader: &'r mut Reader<'a>,
    name: &'r str,
    feed_mode: FeedMode,
}

impl One<'_, '_> {
    fn own(&self, key: &str) -> String {
        format!("dataset.{}.{key}", self.name)
    }

    /// The dataset's own setting, or the one that it inherits.
    fn inherited(&self, key: &str) -> String {
        let own = self.own(key);
        if self.reader.has(&own) { own } else { format!("defaults.{key}") }
    }

    fn read(mut self) -> Option<Dataset> {
        let query = self.query();
        let key = self.key();
        let rows = self.own("rows");
        let rows = self.reader.choice(&rows, &[("one", Rows::One), ("many", Rows::Many)], Rows::One);
        let sort = self.reader.text(&self.own("sort"));
        if sort.is_some() && rows == Rows::One {
            let path = self.own("sort");
            self.reader.error(
                &path,
                "`sort` orders the rows of one key",
                "add rows = \"many\", or remove `sort`",
            );
        }
        let format = self.format(rows);
        let tags = self.tags();
        let warm = self.warm();
        let scope = self.scope(warm.as_ref());
        let watch = key.as_ref().map(|key| self.watch(key)).unwrap_or_default();
        let compression = self.compression();
        let feed = self.feed();
        let has_refresh = self.reader.has(&self.own("refresh"));
        let hour = Duration::from_secs(3_600);
        let on_change = [("refresh", OnChange::Refresh), ("delete", OnChange::Delete)];
        let on_miss = [("ignore", OnMiss::Ignore), ("load", OnMiss::Load)];
        let path = |one: &Self, key: &str| one.inherited(key);
        let (ttl, jitter, stale) = (path(&self, "ttl"), path(&self, "ttl_jitter"), path(&self, "max_stale"));
        let (negative, change, miss) =
            (path(&self, "negative_ttl"), path(&self, "on_change"), path(&self, "on_miss"));
        let (batch, ahead) = (path(&self, "batch"), self.own("refresh.ahead"));
        let reader = self.reader;
        let dataset = Dataset {
            name: self.name.to_owned(),
            query: query.clone().unwrap_or_default(),
            key: key.clone().or_else(|| Template::parse("x").ok())?,
            rows,
            sort,
            tags,
            watch,
            format,
            compression,
            ttl: reader.duration(&ttl, hour, SECOND..=YEAR),
            ttl_jitter: reader.share(&jitter, 0.1, 0.0..=0.9),
            max_stale: reader.duration(&stale, hour, Duration::ZERO..=YEAR),
            negative_ttl: reader.optional_duration(&negative, SECOND..=YEAR),
            on_change: reader.choice(&change, &on_change, OnChange::Refresh),
            on_miss: reader.choice(&miss, &on_miss, OnMiss::Ignore),
            feed,
            scope,
            refresh_ahead: has_refresh.then(|| reader.share(&ahead, 0.2, 0.01..=0.9)),
            warm,
            write: writes::statement(reader, self.name),
            batch: usize::try_from(reader.integer(&batch, 500, 1..=5_000)).unwrap_or(500),
        };
        // Every setting has been looked at by now, so that all problems are known.
        (query.is_some() && key.is_some()).then_some(dataset)
    }

    fn query(&mut self) -> Option<String> {
        let path = self.own("query");
        let Some(query) = self.reader.text(&path) else {
            if !self.reader.has(&path) {
                self.reader.error(
                    &path,
                    format!("dataset {} has no `query`", self.name),
                    "give the SQL that produces its rows",
                );
            }
            return None;
        };
        let query = query.trim().trim_end_matches(';').trim_end();
        if query.is_empty() {
            self.reader.error(&path, "the query is empty", "give the SQL that produces the rows");
            return None;
        }
        Some(query.to_owned())
    }

    fn key(&mut self) -> Option<Template> {
        let path = self.own("key");
        let Some(text) = self.reader.text(&path) else {
            if !self.reader.has(&path) {
                self.reader.error(
                    &path,
                    format!("dataset {} has no `key`", self.name),
                    "for example key = \"product:{id}\"",
                );
            }
            return None;
        };
        let key = self.template(&path, &text)?;
        let columns: Vec<&str> = key.columns().collect();
        let twice = columns
            .iter()
            .enumerate()
            .find(|(at, column)| columns.iter().take(*at).any(|earlier| earlier == *column));
        if let Some((_, column)) = twice {
            let offset = text.rfind(&format!("{{{column}}}")).unwrap_or_default();
            self.reader.error_within(
                &path,
                offset,
                format!("{{{column}}} stands twice in the key"),
                "once is enough",
            );
        }
        if columns.is_empty() {
            self.reader.error(
                &path,
                "the key has no placeholder, so all rows would have the same",
                "add a {column} of the query",
            );
        }
        if text.starts_with(RESERVED_PREFIX) {
            self.reader.error(
                &path,
                format!("keys that begin with {RESERVED_PREFIX} are Cachekeeper's own"),
                "choose another prefix",
            );
        }
        if key.prefix().is_empty() {
            self.reader.error(
                &path,
                "the key begins with a placeholder",
                "begin it with a prefix of its own, such as \"product:\"",
            );
        }
        Some(key)
    }

    fn template(&mut self, path: &str, text: &str) -> Option<Template> {
        match Template::parse(text) {
            Ok(template) => Some(template),
            Err(error) => {
                self.reader.error_within(
                    path,
                    error.offset,
                    error.message,
                    "write {column} for a column, {{ for a brace",
                );
                None
            }
        }
    }

    fn tags(&mut self) -> Vec<Template> {
        let path = self.own("tags");
        let texts = self.reader.texts(&path).unwrap_or_default();
        let one = |(position, text): (usize, &String)| self.template(&format!("{path}.{position}"), text);
        texts.iter().enumerate().filter_map(one).collect()
    }

    fn format(&mut self, rows: Rows) -> Format {
        #[derive(Clone, Copy, Debug, PartialEq)]
        enum Word {
            MessagePack,
            Json,
            Raw,
        }
        let words = [("msgpack", Word::MessagePack), ("json", Word::Json), ("raw", Word::Raw)];
        let (format, numeric, value) =
            (self.inherited("format"), self.inherited("numeric"), self.own("value"));
        let word = self.reader.choice(&format, &words, Word::MessagePack);
        let numeric = self.reader.choice(
            &numeric,
            &[("text", Numeric::Text), ("number", Numeric::Number)],
            Numeric::Text,
        );
        let column = self.reader.text(&value);
        match (word, column) {
            (Word::Raw, None) => {
                self.reader.error(
                    &format,
                    "format = \"raw\" needs `value`",
                    "name the column whose bytes are the value",
                );
                Format::Raw { column: String::new() }
            }
            (Word::Raw, Some(column)) => {
                if rows == Rows::Many {
                    self.reader.error(
                        &format,
                        "raw bytes of many rows have no form",
                        "use msgpack or json, or rows = \"one\"",
                    );
                }
                Format::Raw { column }
            }
            (word, column) => {
                if column.is_some() {
                    self.reader.error(
                        &value,
                        "`value` goes with format = \"raw\"",
                        "remove it, or set the format",
                    );
                }
                if word == Word::Json { Format::Json { numeric } } else { Format::MessagePack { numeric } }
            }
        }
    }

    fn compression(&mut self) -> Option<Compression> {
        let section = self.inherited("compression");
        if !self.reader.has(&section) {
            return None;
        }
        let words = [("none", None), ("zstd", Some(Codec::Zstd)), ("lz4", Some(Codec::Lz4))];
        let codec = self.reader.choice(&format!("{section}.codec"), &words, Some(Codec::Zstd))?;
        let min_size = self.reader.size(&format!("{section}.min_size"), 1024);
        Some(Compression { codec, min_size: usize::try_from(min_size).unwrap_or(usize::MAX) })
    }

    fn feed(&mut self) -> FeedNeed {
        let path = self.inherited("feed");
        let need = self.reader.choice(
            &path,
            &[("wanted", FeedNeed::Wanted), ("required", FeedNeed::Required)],
            FeedNeed::Wanted,
        );
        if need == FeedNeed::Required && self.feed_mode == FeedMode::Off {
            self.reader.error(
                &path,
                "feed = \"required\", but [feed] mode = \"off\"",
                "set mode = \"outbox\", or feed = \"wanted\"",
            );
        }
        need
    }

    fn scope(&mut self, warm: Option<&Warm>) -> Scope {
        let default = if warm.is_some_and(|warm| warm.limit.is_none()) { Scope::All } else { Scope::Cached };
        let path = self.own("scope");
        let scope = self.reader.choice(&path, &[("all", Scope::All), ("cached", Scope::Cached)], default);
        if scope == Scope::All && warm.is_none() {
            self.reader.error(&path, "scope = \"all\" needs `warm`", "add warm = { on_start = true }");
        }
        scope
    }

    fn warm(&mut self) -> Option<Warm> {
        if !self.reader.has(&self.own("warm")) {
            return None;
        }
        let limit = self.own("warm.limit");
        let limit = self.reader.optional_integer(&limit, 1..=1_000_000_000);
        let rate = self.own("warm.rate");
        let rate = self.reader.optional_integer(&rate, 1..=1_000_000_000);
        let order_by = self.reader.text(&self.own("warm.order_by"));
        if order_by.is_some() && limit.is_none() {
            let path = self.own("warm.order_by");
            self.reader.warning(
                &path,
                "`order_by` has no effect without `limit`",
                "add limit, or remove order_by",
            );
        }
        let schedule = self.schedule();
        Some(Warm {
            on_start: self.reader.boolean(&self.own("warm.on_start"), true),
            schedule,
            order_by,
            limit,
            rate,
        })
    }

    fn schedule(&mut self) -> Option<ScheduleText> {
        let (path, zone_path) = (self.own("warm.schedule"), self.own("warm.timezone"));
        let zone = self.reader.text(&zone_path);
        let Some(expression) = self.reader.text(&path) else {
            if zone.is_some() {
                let help = "add a schedule, or remove it";
                self.reader.error(&zone_path, "`timezone` goes with `schedule`", help);
            }
            return None;
        };
        let schedule = ScheduleText { expression, timezone: zone.unwrap_or_else(|| "UTC".to_owned()) };
        let (path, message) = match (self.reader.check_schedule)(&schedule) {
            Ok(()) => return Some(schedule),
            Err(ScheduleProblem::Expression(message)) => (path, message),
            Err(ScheduleProblem::TimeZone(message)) => (zone_path, message),
        };
        let help = "cron: minute hour day-of-month month day-of-week, perhaps a second before them";
        self.reader.error(&path, message, help);
        None
    }

    fn watch(&mut self, key: &Template) -> Vec<Watch> {
        let mut rules = Vec::new();
        for position in 0.. {
            let path = self.own(&format!("watch.{position}"));
            if self.reader.leaves.get(&path) != Some(&Leaf::Section) {
                break;
            }
            let Some(table) = self.reader.text(&format!("{path}.table")) else {
                self.reader.error(
                    &path,
                    "a watch rule needs a `table`",
                    "{ table = \"products\", key = { id = \"id\" } }",
                );
                continue;
            };
            rules.extend(self.watch_target(&path, key).map(|target| Watch { table, target }));
        }
        rules
    }

    fn watch_target(&mut self, path: &str, key: &Template) -> Option<WatchTarget> {
        let mapping = self.reader.mapping(&format!("{path}.key"));
        let tag = self.reader.text(&format!("{path}.tag"));
        let dataset = self.reader.boolean(&format!("{path}.dataset"), false);
        match (mapping, tag, dataset) {
            (Some(pairs), None, false) => {
                let mut wanted: Vec<&str> = key.columns().collect();
                let mut given: Vec<&str> =
                    pairs.iter().map(|(placeholder, _)| placeholder.as_str()).collect();
                wanted.sort_unstable();
                given.sort_unstable();
                if wanted != given {
                    let message = format!(
                        "a watch rule gives {}, but the key has {}",
                        given.join(", "),
                        wanted.join(", ")
                    );
                    self.reader.error(
                        &format!("{path}.key"),
                        message,
                        "name every placeholder of the key once; or watch by tag",
                    );
                }
                Some(WatchTarget::Key(pairs))
            }
            (None, Some(text), false) => self.template(&format!("{path}.tag"), &text).map(WatchTarget::Tag),
            (None, None, true) => Some(WatchTarget::Dataset),
            _ => {
                self.reader.error(
                    path,
                    "a watch rule has exactly one of `key`, `tag` and `dataset = true`",
                    "say what a changed row touches",
                );
                None
            }
        }
    }
}
