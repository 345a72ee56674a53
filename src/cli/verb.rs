//! The verbs of the command line, each with what it takes.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::{init, invalidate, plan, tap, write, writes};
use cachekeeper_protocol::units::parse_duration;

/// What is asked for.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run the worker
    Run,
    /// Have the running worker load its configuration again, as SIGHUP does; a wrong one changes nothing
    Reload {
        /// Say only what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Pause datasets for all workers: no backfill by schedule, no refreshing ahead, no audit; changes are applied all the same
    Pause {
        /// Which datasets
        #[arg(required = true)]
        datasets: Vec<String>,
    },
    /// Go on with datasets that were paused
    Resume {
        /// Which datasets
        #[arg(required = true)]
        datasets: Vec<String>,
    },
    /// Have the running worker take no more work, as SIGUSR1 does; it lives on until it is stopped
    Drain,
    /// Have the running worker log at another level, until its configuration is loaded again
    LogLevel {
        /// error, warn, info, debug, trace, or filters
        level: String,
    },
    /// Check the configuration: syntax, meaning, then the servers
    Check {
        /// Leave the servers out
        #[arg(long)]
        offline: bool,
    },
    /// Propose datasets, or a whole configuration, of what is there; nothing is written but the file of -o
    Init(init::Request),
    /// Say what would be in Redis, what it would take, and how it would be loaded; nothing is written
    Plan(plan::Request),
    /// Install or update the schema `cachekeeper` in Postgres
    Migrate {
        /// Print what would be done as SQL, for somebody who runs it by hand: schema, triggers, rights of the worker's role
        #[arg(long)]
        print: bool,
        /// Let this role run the worker: rights on the schema, not on your tables
        #[arg(long, value_name = "ROLE")]
        grant: Option<String>,
        /// How long to wait for those who use a table; nobody waits behind us meanwhile
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
        wait: Duration,
        /// Remove what this namespace has in Postgres; where it is the last one, the schema with everything in it
        #[arg(long, conflicts_with_all = ["print", "grant"])]
        uninstall: bool,
        /// Without asking
        #[arg(long, conflicts_with = "print")]
        yes: bool,
    },
    /// Take this namespace's own keys out of Redis, for good; the entries of datasets live on until their end
    Purge {
        /// Without asking
        #[arg(long)]
        yes: bool,
    },
    /// Print the access rules of Redis (ACL) for this configuration: for the worker, and for applications
    Acl {
        /// Of one kind only
        #[arg(long = "for", value_name = "KIND", value_parser = ["worker", "library", "reader", "publisher", "writer"])]
        program: Option<String>,
    },
    /// Turn the capture of changes off, without waiting for any lock, or on again
    Capture {
        /// off or on
        #[arg(value_parser = ["on", "off"])]
        state: String,
    },
    /// Fill datasets from Postgres
    Warm {
        /// Which datasets [default: all]
        datasets: Vec<String>,
        /// Begin at the start, also where an earlier backfill was interrupted
        #[arg(long)]
        restart: bool,
    },
    /// Invalidate entries as an event would: keys, tags, or a dataset
    Invalidate(invalidate::Targets),
    /// Load entries again now: keys, tags, or a dataset
    Refresh(invalidate::Targets),
    /// Show an entry, decoded
    Get {
        /// Its key
        #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
        key: String,
    },
    /// Say why a key has the value that it has: Redis, Postgres, what is pending, what happened to it
    Explain {
        /// The key
        #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
        key: String,
    },
    /// Write to Postgres by a dataset's write statement, then store what it touched in Redis
    Write(write::Request),
    /// Look at the stream of write commands, or put rejected ones back
    #[command(subcommand)]
    Writes(writes::Action),
    /// Show what stands in Redis and Postgres, and whether the worker is ready; exit 1 where something is broken
    Status {
        /// Show it again each second
        #[arg(long)]
        watch: bool,
    },
    /// Show on the whole terminal what the running worker does: how fresh all is, the datasets, its parts
    Top,
    /// Follow what the running worker does to entries, a line each
    Tap(tap::Request),
    /// Compare Redis with Postgres
    Audit {
        /// Which datasets [default: all]
        datasets: Vec<String>,
        /// Load again what is wrong
        #[arg(long)]
        fix: bool,
        /// Look at so many entries of each dataset, chosen at random
        #[arg(long, value_name = "N")]
        sample: Option<u64>,
    },
    /// Start private servers with a sample shop and show the worker at work
    Demo(crate::demo::Options),
    /// Print the JSON Schema of the configuration file, for editors
    Schema {
        /// Print the configuration file itself, commented, with every key and its default
        #[arg(long)]
        toml: bool,
    },
    /// Print what a shell needs to complete verbs and options: `cachekeeper completions bash`
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all of them
    Man {
        /// Write a page for each verb into this directory
        #[arg(long, value_name = "DIRECTORY")]
        dir: Option<PathBuf>,
    },
    /// Ask a running worker's admin listener: exit 0 if it lives (for containers)
    Healthcheck {
        /// Ask for readiness instead
        #[arg(long)]
        ready: bool,
    },
}
