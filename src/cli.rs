//! The command line: a file for each group of verbs.

mod acl;
mod admin_client;
mod audit;
mod check;
mod choose;
mod explain;
mod file;
mod get;
mod healthcheck;
mod init;
mod invalidate;
mod listener;
mod manual;
mod migrate;
mod on_cluster;
mod output;
mod pause;
mod plan;
mod purge;
mod reload;
mod run;
mod status;
mod tap;
mod top;
mod uninstall;
mod warm;
mod worker_asked;
mod write;
mod writes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};

use crate::demo::Ending;
use crate::service::Place;
use cachekeeper_config::Config;
use cachekeeper_config::diagnostic::{Diagnostic, render};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::postgres::ErrorKind;
use cachekeeper_protocol::units::parse_duration;
use choose::{exit_of, with_reason};
pub use output::Exit;

/// Keeps Redis consistent with Postgres.
#[derive(Debug, Parser)]
#[command(name = "cachekeeper", version, about, propagate_version = true)]
struct Arguments {
    /// The configuration file [default: what `CACHEKEEPER_CONFIG` names, else ./cachekeeper.toml, then /etc/cachekeeper/cachekeeper.toml]
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
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

/// Runs the command line.
pub async fn main(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
    environment: BTreeMap<String, String>,
) -> Exit {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no mistakes.
            let is_mistake = error.use_stderr();
            let printed = error.print();
            let is_full = printed.is_err_and(|error| error.kind() != std::io::ErrorKind::BrokenPipe);
            return match (is_mistake, is_full) {
                (true, _) => Exit::Usage,
                (false, true) => Exit::Failed,
                (false, false) => Exit::Ok,
            };
        }
    };
    if let Some(points) = environment.get(cachekeeper_engine::failpoint::VARIABLE) {
        cachekeeper_engine::failpoint::arm(points);
    }
    let out = output::Output::new(arguments.json);
    let exit = run(arguments, &environment, &out).await;
    out.end(exit)
}

async fn run(arguments: Arguments, environment: &BTreeMap<String, String>, out: &output::Output) -> Exit {
    let result = match arguments.verb {
        Verb::Schema { toml: true } => {
            out.line(cachekeeper_config::reference::reference().trim_end());
            return Exit::Ok;
        }
        Verb::Schema { toml: false } => {
            out.line(&format!("{:#}", cachekeeper_config::schema::json_schema()));
            return Exit::Ok;
        }
        Verb::Completions { shell } => return manual::completions(Arguments::command(), shell, out),
        Verb::Man { dir } => return manual::man(Arguments::command(), dir.as_deref(), out),
        Verb::Demo(options) => {
            return match crate::demo::run(&options, environment).await {
                Ending::Agreed => Exit::Ok,
                Ending::Differed => Exit::Failed,
                Ending::Misused => Exit::Usage,
                Ending::NoServers => Exit::Unavailable,
            };
        }
        Verb::Init(request) => init::init(arguments.config, &request, environment, out).await,
        Verb::Check { offline } => check::check(arguments.config, environment, offline, out).await,
        verb => match load(arguments.config, environment, out) {
            Ok(config) => {
                let places = (config.postgres.url.redacted(), config.redis.url.redacted());
                run_verb(verb, config, environment, out)
                    .await
                    .inspect_err(|error| name_server(error, &places, out))
            }
            Err(exit) => return exit,
        },
    };
    result.unwrap_or_else(|error| {
        out.failure(&error.told());
        exit_of(&error)
    })
}

async fn run_verb(
    verb: Verb,
    config: Config,
    environment: &BTreeMap<String, String>,
    out: &output::Output,
) -> Result<Exit, EngineError> {
    match verb {
        Verb::Run => {
            let mut problems = crate::check::of_admin(&config);
            problems.extend(crate::check::of_cluster(&config));
            if !problems.is_empty() {
                out.problems(&problems);
                return Ok(Exit::Configuration);
            }
            let place = Place { path: config.source.file().into(), environment: environment.clone() };
            return Ok(run::run(config, place, out).await);
        }
        Verb::Reload { dry_run } => return Ok(reload::reload(&config, dry_run, out).await),
        Verb::Drain => return Ok(reload::drain(&config, out).await),
        Verb::LogLevel { level } => return Ok(reload::log_level(&config, &level, out).await),
        Verb::Tap(request) => return Ok(tap::tap(&config, &request, out).await),
        Verb::Top => return Ok(top::top(&config, environment, out).await),
        Verb::Healthcheck { ready } => return Ok(healthcheck::healthcheck(&config, ready, out).await),
        _ => {}
    }
    let context = Context::new(&config)?;
    let verb = match &context.cluster {
        Some(cluster) => match on_cluster::run(verb, &config, (&context, cluster), out).await {
            Ok(verb) => verb,
            Err(done) => return done,
        },
        None => verb,
    };
    let done = match verb {
        Verb::Migrate { uninstall: true, yes, .. } => {
            uninstall::uninstall(&context, &config.postgres.url.redacted(), yes, out).await
        }
        Verb::Migrate { print: true, grant, .. } => migrate::print(&context, grant.as_deref(), out).await,
        Verb::Purge { yes } => purge::purge(&context, &config, yes, out).await,
        Verb::Migrate { grant, wait, yes, .. } => {
            migrate::migrate(&context, grant.as_deref(), wait, yes, out).await
        }
        Verb::Plan(request) => plan::plan(&context, &request, out).await,
        Verb::Acl { program } => acl::acl(&context, &config, program.as_deref(), out).await,
        Verb::Capture { state } => migrate::capture(&context, state == "on", out).await,
        Verb::Warm { datasets, restart } => warm::warm(&context, &datasets, !restart, out).await,
        Verb::Pause { datasets } => pause::pause(&context, &datasets, true, out).await,
        Verb::Resume { datasets } => pause::pause(&context, &datasets, false, out).await,
        Verb::Invalidate(targets) => {
            invalidate::invalidate(std::slice::from_ref(&context), &targets, None, out).await
        }
        Verb::Refresh(targets) => {
            let op = Some(cachekeeper_protocol::event::Op::Refresh);
            invalidate::invalidate(std::slice::from_ref(&context), &targets, op, out).await
        }
        Verb::Get { key } => get::get(&context, &key, out).await,
        Verb::Explain { key } => explain::explain(&context, &config, &key, out).await,
        Verb::Write(request) => write::write(&context, &request, out).await,
        Verb::Writes(action) => writes::writes(&context, &config, &action, out).await,
        Verb::Status { watch: true } => status::watch(&context, &config, out).await,
        Verb::Status { watch: false } => status::status(&context, &config, out).await,
        Verb::Audit { datasets, fix, sample } => audit::audit(&context, &datasets, fix, sample, out).await,
        Verb::Run
        | Verb::Reload { .. }
        | Verb::Drain
        | Verb::LogLevel { .. }
        | Verb::Check { .. }
        | Verb::Healthcheck { .. }
        | Verb::Top
        | Verb::Tap(_)
        | Verb::Schema { .. }
        | Verb::Completions { .. }
        | Verb::Man { .. }
        | Verb::Demo(_)
        | Verb::Init(_) => Ok(Exit::Usage),
    };
    match done {
        Err(error) => Err(with_reason(&context, error).await),
        done => done,
    }
}

fn load(
    explicit: Option<PathBuf>,
    environment: &BTreeMap<String, String>,
    out: &output::Output,
) -> Result<Config, Exit> {
    let fail = |problems: &[Diagnostic]| {
        out.problems(problems);
        Exit::Configuration
    };
    let (path, text) = file::read(explicit, environment).map_err(|problem| fail(&[*problem]))?;
    let loaded = Config::load_with(&path, text, environment, crate::schedule::check);
    let (config, warnings) = loaded.map_err(|problems| fail(&problems))?;
    if !warnings.is_empty() {
        out.note(&render(&warnings));
    }
    if let Err(message) = crate::telemetry::start(&config.log) {
        return Err(fail(&[Diagnostic::error(message, None)]));
    }
    Ok(config)
}

/// Says which server could not be reached.
fn name_server(error: &EngineError, (postgres, redis): &(String, String), out: &output::Output) {
    match error {
        EngineError::Source(error) if error.kind == ErrorKind::Unavailable => {
            out.note(&format!("postgres is {postgres}"));
        }
        EngineError::Cache(error) if error.is_unreachable() => out.note(&format!("redis is {redis}")),
        _ => {}
    }
}
