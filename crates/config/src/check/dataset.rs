//! `[dataset.*]`

use std::time::Duration;

use super::reader::Reader;
use super::writes;
use crate::raw::{Leaf, join};
use crate::values::names;
use crate::words::{CodecName, FormatName};
use crate::{
    Codec, Compression, Dataset, FeedMode, FeedNeed, Format, Rows, ScheduleProblem, ScheduleText, Scope,
    Warm, Watch, WatchTarget,
};
use cachekeeper_protocol::template::{Alphabet, Template};

pub fn read_all(reader: &mut Reader<'_>, feed_mode: FeedMode) -> Vec<Dataset> {
    let names = names(reader.leaves, "dataset");
    // What was not understood may have been one.
    if names.is_empty() && reader.problems.is_empty() {
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

    /// Where a setting comes from that the dataset may inherit.
    fn inherited(&self, key: &str) -> String {
        let own = self.own(key);
        if self.reader.has(&own) { own } else { format!("defaults.{key}") }
    }

    fn read(mut self) -> Option<Dataset> {
        let query = self.query();
        let key = self.template("key");
        let rows = self.reader.choice(&self.own("rows"));
        let format = self.format(rows);
        let sort = self.sort(rows);
        let warm = self.warm();
        let watch = key.as_ref().map(|key| self.watch(key)).unwrap_or_default();
        let dataset = Dataset {
            name: self.name.to_owned(),
            query: query.clone().unwrap_or_default(),
            key: key.clone().or_else(|| Template::parse("x").ok())?,
            rows,
            sort,
            tags: self.tags(),
            watch,
            reads: self.reader.texts(&self.own("reads")),
            format: format.clone(),
            compression: self.compression(&format),
            ttl: self.reader.duration(&self.own("ttl")),
            ttl_jitter: self.ttl_jitter(),
            ttl_column: self.ttl_column(),
            max_stale: self.max_stale(),
            negative_ttl: self.negative_ttl(&format),
            on_change: self.reader.choice(&self.own("on_change")),
            on_miss: self.reader.choice(&self.own("on_miss")),
            feed: self.feed(),
            scope: self.scope(warm.as_ref()),
            refresh_ahead: self.refresh_ahead(),
            warm,
            write: writes::statement(self.reader, self.name),
            batch: self.reader.number(&self.own("batch")),
            revalidation_rate: self.reader.optional_number(&self.own("revalidation_rate")),
            max_value_size: self.reader.size(&self.own("max_value_size")),
            max_key_size: self.reader.size(&self.own("max_key_size")),
        };
        // Every setting has been looked at by now, so that all problems are known.
        (query.is_some() && key.is_some()).then_some(dataset)
    }

    fn query(&mut self) -> Option<String> {
        let path = self.own("query");
        let query = self.reader.optional_text(&path)?;
        let query = query.trim().trim_end_matches(';').trim_end();
        if query.is_empty() {
            self.reader.error(&path, "the query is empty", "give the SQL that produces the rows");
            return None;
        }
        Some(query.to_owned())
    }

    /// A template whose text is right, or was refused before.
    fn template(&mut self, key: &str) -> Option<Template> {
        self.reader.optional_text(&self.own(key)).and_then(|text| Template::parse(&text).ok())
    }

    fn tags(&mut self) -> Vec<Template> {
        let texts = self.reader.texts(&self.own("tags"));
        texts.iter().filter_map(|text| Template::parse(text).ok()).collect()
    }

    fn sort(&mut self, rows: Rows) -> Option<String> {
        let path = self.own("sort");
        let sort = self.reader.optional_text(&path)?;
        if rows == Rows::One && !self.reader.is_wrong(&self.own("rows")) {
            let help = "add rows = \"many\", or remove `sort`";
            self.reader.error(&path, "`sort` orders the rows of one key", help);
        }
        Some(sort)
    }

    fn format(&mut self, rows: Rows) -> Format {
        let (format, value) = (self.inherited("format"), self.own("value"));
        let name = self.reader.choice(&self.own("format"));
        let numeric = self.reader.choice(&self.own("numeric"));
        let column = self.reader.optional_text(&value);
        let is_known = !self.reader.is_wrong(&format);
        match (name, self.reader.has(&value)) {
            _ if !is_known => {}
            (FormatName::Raw, false) => {
                let help = "name the column whose bytes are the value";
                self.reader.error(&format, "format = \"raw\" needs `value`", help);
            }
            (FormatName::Raw, true) if rows == Rows::Many => {
                let help = "use msgpack or json, or rows = \"one\"";
                self.reader.error(&format, "raw bytes of many rows have no form", help);
            }
            (FormatName::Hash, false) if rows == Rows::Many => {
                let help = "use msgpack or json, or rows = \"one\"";
                self.reader.error(&format, "a hash has the columns of one row", help);
            }
            (FormatName::MessagePack | FormatName::Json | FormatName::Hash, true) => {
                let help = "remove it, or set the format";
                self.reader.error(&value, "`value` goes with format = \"raw\"", help);
            }
            _ => {}
        }
        match name {
            FormatName::MessagePack => Format::MessagePack { numeric },
            FormatName::Json => Format::Json { numeric },
            FormatName::Raw => Format::Raw { column: column.unwrap_or_default() },
            FormatName::Hash => Format::Hash,
        }
    }

    fn ttl_column(&mut self) -> Option<String> {
        let column = self.reader.optional_text(&self.own("ttl_column"))?;
        let refresh = self.own("refresh");
        if self.reader.has(&refresh) {
            let help = "remove one of them: what the column lets end is not to be kept by loading it again";
            self.reader.error(&refresh, "`refresh` and `ttl_column` exclude each other", help);
        }
        Some(column)
    }

    /// What a column says is not shortened either.
    fn ttl_jitter(&mut self) -> f64 {
        let own = self.own("ttl_jitter");
        let jitter = self.reader.share(&own);
        if !self.reader.has(&self.own("ttl_column")) {
            return jitter;
        }
        if self.reader.has(&own) && 0.0 < jitter {
            let help = "remove it, or set it to \"0%\"";
            self.reader.error(&own, "`ttl_jitter` would shorten what `ttl_column` says", help);
        }
        0.0
    }

    /// What a column lets end does not live longer because Postgres is down.
    fn max_stale(&mut self) -> Duration {
        let own = self.own("max_stale");
        let max_stale = self.reader.duration(&own);
        if !self.reader.has(&self.own("ttl_column")) {
            return max_stale;
        }
        if self.reader.has(&own) && !max_stale.is_zero() {
            let help = "remove it, or set it to \"0s\"";
            self.reader.error(&own, "`max_stale` would keep what `ttl_column` lets end", help);
        }
        Duration::ZERO
    }

    fn refresh_ahead(&mut self) -> Option<f64> {
        let is_on = self.reader.has(&self.own("refresh"));
        is_on.then(|| self.reader.share(&self.own("refresh.ahead")))
    }

    /// A hash knows no explicit null.
    fn negative_ttl(&mut self, format: &Format) -> Option<Duration> {
        let own = self.own("negative_ttl");
        let life = self.reader.optional_duration(&own)?;
        if *format != Format::Hash {
            return Some(life);
        }
        if self.reader.has(&own) {
            let help = "remove it, or use msgpack or json";
            self.reader.error(&own, "`negative_ttl` stores an explicit null, and a hash cannot be one", help);
        }
        None
    }

    /// The fields of a hash are to be read as they are; what `[defaults]` compresses does not mean them.
    fn compression(&mut self, format: &Format) -> Option<Compression> {
        let section = self.inherited("compression");
        if !self.reader.has(&section) {
            return None;
        }
        let of_hash = *format == Format::Hash;
        let codec = match self.reader.choice(&join(&section, "codec")) {
            CodecName::None => return None,
            CodecName::Zstd => Codec::Zstd,
            CodecName::Lz4 => Codec::Lz4,
        };
        let min_size = self.reader.size(&join(&section, "min_size"));
        if of_hash {
            let own = self.own("compression");
            if section == own {
                let help = "remove it, or use msgpack or json";
                self.reader.error(&own, "the fields of a hash are not compressed", help);
            }
            return None;
        }
        Some(Compression { codec, min_size })
    }

    fn feed(&mut self) -> FeedNeed {
        let path = self.inherited("feed");
        let need = self.reader.choice(&self.own("feed"));
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
        let scope = self.reader.optional_choice(&path).unwrap_or(default);
        if scope == Scope::All && warm.is_none() {
            self.reader.error(&path, "scope = \"all\" needs `warm`", "add warm = { on_start = true }");
        }
        scope
    }

    fn warm(&mut self) -> Option<Warm> {
        if !self.reader.has(&self.own("warm")) {
            return None;
        }
        let limit = self.reader.optional_number(&self.own("warm.limit"));
        let order_by = self.reader.optional_text(&self.own("warm.order_by"));
        if order_by.is_some() && !self.reader.has(&self.own("warm.limit")) {
            let path = self.own("warm.order_by");
            self.reader.warning(
                &path,
                "`order_by` has no effect without `limit`",
                "add limit, or remove order_by",
            );
        }
        Some(Warm {
            on_start: self.reader.boolean(&self.own("warm.on_start")),
            schedule: self.schedule(),
            order_by,
            limit,
            rate: self.reader.optional_number(&self.own("warm.rate")),
        })
    }

    fn schedule(&mut self) -> Option<ScheduleText> {
        let (path, zone_path) = (self.own("warm.schedule"), self.own("warm.timezone"));
        let Some(expression) = self.reader.optional_text(&path) else {
            if self.reader.has(&zone_path) && !self.reader.has(&path) {
                let help = "add a schedule, or remove it";
                self.reader.error(&zone_path, "`timezone` goes with `schedule`", help);
            }
            return None;
        };
        let schedule = ScheduleText { expression, timezone: self.reader.text(&zone_path) };
        let problems = (self.reader.check_schedule)(&schedule);
        let is_right = problems.is_empty();
        for problem in problems {
            match problem {
                ScheduleProblem::Expression(message) => {
                    let help =
                        "cron: minute hour day-of-month month day-of-week, perhaps a second before them";
                    self.reader.error(&path, message, help);
                }
                ScheduleProblem::TimeZone(message) => {
                    self.reader.error(&zone_path, message, "leave `timezone` out for UTC");
                }
            }
        }
        is_right.then_some(schedule)
    }

    fn watch(&mut self, key: &Template) -> Vec<Watch> {
        let mut rules = Vec::new();
        for position in 0.. {
            let path = self.own(&format!("watch.{position}"));
            if self.reader.leaves.get(&path) != Some(&Leaf::Section) {
                break;
            }
            // One without a table is noted already.
            let table = self.reader.optional_text(&join(&path, "table"));
            let target = self.watch_target(&path, key);
            let capture = self.reader.choice(&join(&path, "capture"));
            rules.extend(table.zip(target).map(|(table, target)| Watch { table, target, capture }));
        }
        rules
    }

    fn watch_target(&mut self, path: &str, key: &Template) -> Option<WatchTarget> {
        let (by_key, by_tag) = (join(path, "key"), join(path, "tag"));
        let by_dataset = self.reader.boolean(&join(path, "dataset"));
        match (self.reader.has(&by_key), self.reader.has(&by_tag), by_dataset) {
            (true, false, false) => {
                let pairs = self.reader.mapping(&by_key)?;
                let mut wanted: Vec<&str> = key.columns().collect();
                let mut given: Vec<&str> =
                    pairs.iter().map(|(placeholder, _)| placeholder.as_str()).collect();
                wanted.sort_unstable();
                given.sort_unstable();
                if wanted != given {
                    let message = format!(
                        "a watch rule gives {}, but the key has {}",
                        if given.is_empty() { "no placeholder".to_owned() } else { given.join(", ") },
                        wanted.join(", ")
                    );
                    let help = "name every placeholder of the key once; or watch by tag";
                    self.reader.error(&by_key, message, help);
                }
                Some(WatchTarget::Key(pairs))
            }
            (false, true, false) => {
                let tag = self.reader.optional_text(&by_tag)?;
                Template::parse(&tag).ok().map(WatchTarget::Tag)
            }
            (false, false, true) => Some(WatchTarget::Dataset),
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
