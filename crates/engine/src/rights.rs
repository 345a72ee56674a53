//! What each kind of program needs of Redis: one table, from which the rules of `cachekeeper acl` are made, and by which the
//! worker finds out what its user lacks.

mod commands;

use std::collections::BTreeSet;

use self::commands::{LIBRARY, OPTIONAL, Of, Optional, READER, READER_OF_HASHES, STREAMS, WORKER};
use super::context::Context;
use super::definitions;
use crate::stores::redis::{CacheError, Denied, ServerFacts, dead_of};
use cachekeeper_config::{Config, OnMiss};
use cachekeeper_protocol::entry::Shape;
use cachekeeper_protocol::keyspace::Keyspace;

/// Programs that use the same Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The worker, and the verbs of its command line.
    Worker,
    /// An application with the library: it reads, loads, stores, locks, invalidates, writes through.
    Library,
    /// An application that reads entries, with any client.
    Reader,
    /// An application that publishes events, by channel or by stream.
    Publisher,
    /// An application that hands over write commands and waits for their replies.
    Writer,
}

/// All kinds, in the order in which they are shown.
pub const PROGRAMS: [Program; 5] =
    [Program::Worker, Program::Library, Program::Reader, Program::Publisher, Program::Writer];

impl Program {
    /// How it is called on the command line, and in the names of its user.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Library => "library",
            Self::Reader => "reader",
            Self::Publisher => "publisher",
            Self::Writer => "writer",
        }
    }
}

/// Keys by a pattern of Redis.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyRight {
    /// Read and write.
    All(String),
    /// Read only.
    Read(String),
    /// Write only.
    Write(String),
}

impl KeyRight {
    fn rule(&self) -> String {
        match self {
            Self::All(pattern) => format!("~{pattern}"),
            Self::Read(pattern) => format!("%R~{pattern}"),
            Self::Write(pattern) => format!("%W~{pattern}"),
        }
    }
}

/// What a program may do, and no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// Whose.
    pub program: Program,
    /// Keys.
    pub keys: Vec<KeyRight>,
    /// Channels, by pattern.
    pub channels: Vec<String>,
    /// Commands as they are asked for, `KEY` in place of a key.
    asked: Vec<&'static str>,
}

/// What is known beside the configuration.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// What the server says of itself, where it does.
    pub facts: Option<ServerFacts>,
    /// Prefixes of keys that applications have registered as theirs.
    pub prefixes: Vec<String>,
    /// Patterns of keys of registered definitions, whose entries are to be followed and deleted (R16).
    pub registered: Vec<String>,
    /// The number of the database.
    pub database: i64,
}

impl Surroundings {
    /// What Redis knows, where this user may read it: without that right, the right itself is what is missing.
    pub async fn of(context: &Context, facts: Option<ServerFacts>) -> Self {
        let prefixes = context.redis.registered_prefixes().await.unwrap_or_default();
        let registered = definitions::registered_keys(context).await.unwrap_or_default();
        Self { facts, prefixes, registered, database: context.redis.database() }
    }
}

impl Rights {
    /// What a program needs with this configuration.
    #[must_use]
    pub fn of(program: Program, config: &Config, around: &Surroundings) -> Self {
        let needs = Needs { config, around, keyspace: Keyspace::new(&config.service.namespace) };
        let mut asked: BTreeSet<&'static str> = needs.commands(program);
        asked.insert("ping");
        if around.database != 0 {
            asked.insert("select 0");
        }
        let (keys, channels) = (needs.keys(program), needs.channels(program));
        Self { program, keys, channels, asked: asked.into_iter().collect() }
    }

    /// The commands, as rules name them: `get`, `xgroup|create`.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        let is_asked = |one: &&Optional| match self.program {
            Program::Worker => one.of != Of::Library,
            Program::Library => one.of != Of::Worker,
            Program::Reader | Program::Publisher | Program::Writer => false,
        };
        let optional = OPTIONAL.iter().filter(is_asked).map(|one| one.asked);
        let names: BTreeSet<String> = self.asked.iter().copied().chain(optional).map(name_of).collect();
        names.into_iter().collect()
    }

    /// The rules, as `ACL SETUSER` takes them: everything that was granted before is taken back. Passwords are not touched.
    #[must_use]
    pub fn rules(&self) -> Vec<String> {
        let mut rules: Vec<String> =
            ["on", "resetkeys", "resetchannels", "clearselectors", "-@all"].map(str::to_owned).to_vec();
        rules.extend(self.keys.iter().map(KeyRight::rule));
        rules.extend(self.channels.iter().map(|channel| channel_rule(channel)));
        rules.extend(self.commands().iter().map(|command| format!("+{command}")));
        rules
    }
}

struct Needs<'a> {
    config: &'a Config,
    around: &'a Surroundings,
    keyspace: Keyspace,
}

impl Needs<'_> {
    fn streams(&self) -> impl Iterator<Item = &String> {
        [&self.config.invalidation.stream, &self.config.writes.stream].into_iter().flatten()
    }

    fn is_on_cluster(&self) -> bool {
        matches!(self.config.redis.cluster(), Ok(Some(_)))
    }

    /// Patterns of own keys of this name, or of all (`*`).
    fn own(&self, name: &str) -> Vec<String> {
        if self.is_on_cluster() {
            return self.keyspace.patterns_on_cluster(name).to_vec();
        }
        vec![format!("{}{name}", escape(&self.keyspace.own_prefix()))]
    }

    fn fills_misses(&self) -> bool {
        self.config.datasets.iter().any(|dataset| dataset.on_miss == OnMiss::Load)
    }

    fn keys(&self, program: Program) -> Vec<KeyRight> {
        let config = self.config;
        let entries = config.datasets.iter().map(|dataset| dataset.key.glob());
        let entries = entries.chain(self.around.registered.iter().cloned());
        let allowed = config.invalidation.keys.iter().map(|glob| glob.as_str().to_owned());
        let registered = self.around.prefixes.iter().map(|prefix| format!("{}*", escape(prefix)));
        let replies = format!("{}*", escape(&config.writes.reply_prefix));
        let directory = self.own("directory").into_iter().map(KeyRight::Read);
        let of_applications = entries.clone().chain(allowed).chain(registered).map(KeyRight::All);
        let mut keys: BTreeSet<KeyRight> = BTreeSet::new();
        match program {
            Program::Worker => {
                keys.extend(of_applications);
                keys.extend(self.own("*").into_iter().chain([replies]).map(KeyRight::All));
                let streams = self.streams().flat_map(|stream| [stream.clone(), dead_of(stream)]);
                keys.extend(streams.map(|stream| KeyRight::All(escape(&stream))));
                // Whether another namespace, or a worker of an earlier version, uses the same keys.
                keys.insert(KeyRight::Read("ck:{*}:uses".to_owned()));
                keys.insert(KeyRight::Read(escape(&self.keyspace.former_lease())));
            }
            Program::Library => {
                keys.extend(of_applications);
                keys.extend(self.own("*").into_iter().map(KeyRight::All));
                let stream = config.invalidation.stream.iter();
                keys.extend(stream.map(|stream| KeyRight::Write(escape(stream))));
            }
            Program::Reader => {
                keys.extend(entries.map(KeyRight::Read));
                keys.extend(self.own("watermark").into_iter().map(KeyRight::Read));
                keys.extend(directory);
            }
            Program::Publisher => {
                let stream = config.invalidation.stream.iter();
                keys.extend(stream.map(|stream| KeyRight::Write(escape(stream))));
                keys.extend(directory);
            }
            Program::Writer => {
                let stream = config.writes.stream.iter();
                keys.extend(stream.map(|stream| KeyRight::Write(escape(stream))));
                keys.insert(KeyRight::All(replies));
                keys.extend(directory);
            }
        }
        keys.into_iter().collect()
    }

    fn channels(&self, program: Program) -> Vec<String> {
        let events = self.config.invalidation.channels.iter().map(|channel| escape(channel));
        let unlock = escape(&self.keyspace.unlock_channel());
        let unlock = if self.is_on_cluster() { self.own("unlock").swap_remove(0) } else { unlock };
        match program {
            Program::Worker => {
                let database = self.around.database;
                let misses = self.fills_misses().then(|| format!("__keyevent@{database}__:keymiss"));
                events.chain([unlock]).chain(misses).collect()
            }
            Program::Library => events.chain([unlock]).collect(),
            Program::Publisher => events.collect(),
            Program::Reader | Program::Writer => Vec::new(),
        }
    }

    fn has_hashes(&self) -> bool {
        self.config.datasets.iter().any(|dataset| dataset.format.shape() == Shape::Hash)
    }

    fn commands(&self, program: Program) -> BTreeSet<&'static str> {
        let mut commands = self.commands_alone(program);
        if self.is_on_cluster() {
            commands.extend(commands::OF_CLUSTER);
            if program == Program::Worker {
                commands.extend(commands::WORKER_ON_CLUSTER);
            }
        }
        commands
    }

    /// On a single Redis.
    fn commands_alone(&self, program: Program) -> BTreeSet<&'static str> {
        let has_events = self.config.invalidation.stream.is_some();
        match program {
            Program::Worker => {
                let streams = if self.streams().next().is_some() { STREAMS } else { &[] };
                let all = LIBRARY.iter().chain(WORKER).chain(streams).copied();
                let mut all: BTreeSet<&'static str> = all.collect();
                if self.around.facts.as_ref().is_some_and(ServerFacts::knows_no_touch) {
                    all.insert(commands::NO_TOUCH);
                }
                if self.has_hashes() {
                    all.insert(commands::SIZE_OF_FIELD);
                }
                all
            }
            Program::Library => LIBRARY.iter().copied().chain(has_events.then_some(commands::ADD)).collect(),
            Program::Reader => {
                let of_hashes = if self.has_hashes() { READER_OF_HASHES } else { &[] };
                READER.iter().chain(of_hashes).copied().collect()
            }
            Program::Publisher => ["publish CHANNEL x", commands::DIRECTORY]
                .into_iter()
                .chain(has_events.then_some(commands::ADD))
                .collect(),
            Program::Writer => [commands::ADD, commands::DIRECTORY, "blpop KEY 1", "lpop KEY"].into(),
        }
    }
}

/// What the worker's user lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MissingRights {
    /// Without these it does not work.
    pub needed: Vec<String>,
    /// Without these something is weaker: what is lacking, and what that means.
    pub weaker: Vec<(String, &'static str)>,
}

/// What a refusal of a command means.
enum Probe {
    /// The command is needed; refused for its key or its channel, this is what it lacks, as a rule.
    Needed { name: String, key: String, channel: String },
    /// Something is weaker without the command.
    Optional { name: String, means: &'static str },
    /// The rule of keys or of a channel is needed.
    Rule { rule: String, command: String },
}

/// Asks Redis what this worker's user may not do. Nothing is carried out.
///
/// # Errors
/// [`CacheError`] where Redis cannot be asked.
pub async fn missing(context: &Context, config: &Config) -> Result<MissingRights, CacheError> {
    let around = Surroundings::of(context, None).await;
    let rights = Rights::of(Program::Worker, config, &around);
    let (probes, asked): (Vec<Probe>, Vec<Vec<String>>) =
        probes(&rights, context.redis.keys()).into_iter().unzip();
    let denied = context.redis.may_not(&asked).await?;
    let mut found = MissingRights::default();
    // Rules that are said to be missing: what every command lacks is not said again of each.
    let mut said = BTreeSet::new();
    // Rules come first, so that commands find what was said.
    for (probe, denied) in denied.iter().filter_map(|(at, denied)| Some((probes.get(*at)?, denied))) {
        match (probe, denied) {
            (Probe::Rule { rule, command }, Denied::Key | Denied::Channel) => {
                found.needed.push(denied.told(command, rule));
                said.insert(rule);
            }
            (Probe::Needed { name, .. }, Denied::Command | Denied::Unknown) => {
                found.needed.push(denied.told(name, ""));
            }
            (Probe::Needed { name, key: rule, .. }, Denied::Key)
            | (Probe::Needed { name, channel: rule, .. }, Denied::Channel) => {
                if !said.contains(rule) {
                    found.needed.push(denied.told(name, rule));
                }
            }
            (Probe::Optional { name, means }, _) => found.weaker.push((denied.told(name, ""), means)),
            // Said of the command itself.
            (Probe::Rule { .. }, Denied::Command | Denied::Unknown) => {}
        }
    }
    found.needed.dedup();
    found.weaker.dedup_by(|later, one| later.1 == one.1);
    Ok(found)
}

/// The commands that tell, each with what its refusal means.
fn probes(rights: &Rights, keyspace: &Keyspace) -> Vec<(Probe, Vec<String>)> {
    let own = keyspace.own_prefix();
    let (key, channel) = (format!("{own}probe"), keyspace.unlock_channel());
    let of_key = KeyRight::All(format!("{}*", escape(&own))).rule();
    let of_channel = channel_rule(&escape(&channel));
    let fill = |text: &str| -> Vec<String> {
        let filled = text.split(' ').map(|word| match word {
            "KEY" => key.as_str(),
            "CHANNEL" => channel.as_str(),
            word => word,
        });
        filled.map(str::to_owned).collect()
    };
    let keys = rights.keys.iter().flat_map(|right| {
        let rule = right.rule();
        samples(right).into_iter().map(move |words| (rule.clone(), words))
    });
    let channels = rights
        .channels
        .iter()
        .map(|pattern| (channel_rule(pattern), vec!["subscribe".to_owned(), sample_of(pattern)]));
    let rules = keys.chain(channels).map(|(rule, words)| {
        let command = words.first().cloned().unwrap_or_default();
        (Probe::Rule { rule, command }, words)
    });
    let needed = rights.asked.iter().map(|text| {
        let (key, channel) = (of_key.clone(), of_channel.clone());
        (Probe::Needed { name: name_of(text), key, channel }, fill(text))
    });
    let optional = OPTIONAL
        .iter()
        .filter(|one| one.of != Of::Library)
        .map(|one| (Probe::Optional { name: name_of(one.asked), means: one.means }, fill(one.asked)));
    rules.chain(needed).chain(optional).collect()
}

fn channel_rule(pattern: &str) -> String {
    format!("&{pattern}")
}

/// A read and a write of a key that fits the pattern.
fn samples(right: &KeyRight) -> Vec<Vec<String>> {
    let (pattern, commands): (_, &[&str]) = match right {
        KeyRight::All(pattern) => (pattern, &["get", "unlink"]),
        KeyRight::Read(pattern) => (pattern, &["get"]),
        KeyRight::Write(pattern) => (pattern, &["unlink"]),
    };
    commands.iter().map(|command| vec![(*command).to_owned(), sample_of(pattern)]).collect()
}

/// A name that fits the pattern. A star stands for anything, also for this.
fn sample_of(pattern: &str) -> String {
    pattern.replace('\\', "").replace('*', "0")
}

/// What rules call this command.
fn name_of(asked: &str) -> String {
    const CONTAINERS: [&str; 7] = ["object", "xgroup", "xinfo", "script", "client", "config", "cluster"];
    let mut words = asked.split(' ');
    let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if CONTAINERS.contains(&first) { format!("{first}|{second}") } else { first.to_owned() }
}

/// A name as a pattern that fits it alone. Rules are separated by spaces, so one stands for any character.
fn escape(name: &str) -> String {
    cachekeeper_protocol::glob::escape(name)
}
