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
mod verb;
mod warm;
mod worker_asked;
mod write;
mod writes;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{CommandFactory, Parser};

use crate::demo::Ending;
use crate::service::Place;
use cachekeeper_config::Config;
use cachekeeper_config::diagnostic::{Diagnostic, render};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::postgres::ErrorKind;
use choose::{exit_of, with_reason};
pub use output::Exit;
use verb::Verb;

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

/// Verbs that run a worker, or ask the one that runs; another one is answered.
async fn run_process(
    verb: Verb,
    config: &Config,
    environment: &BTreeMap<String, String>,
    out: &output::Output,
) -> Result<Verb, Exit> {
    Err(match verb {
        Verb::Run => {
            let mut problems = crate::check::of_admin(config);
            problems.extend(crate::check::of_cluster(config));
            if !problems.is_empty() {
                out.problems(&problems);
                return Err(Exit::Configuration);
            }
            let place = Place { path: config.source.file().into(), environment: environment.clone() };
            run::run(config.clone(), place, out).await
        }
        Verb::Reload { dry_run } => reload::reload(config, dry_run, out).await,
        Verb::Drain => reload::drain(config, out).await,
        Verb::LogLevel { level } => reload::log_level(config, &level, out).await,
        Verb::Tap(request) => tap::tap(config, &request, out).await,
        Verb::Top => top::top(config, environment, out).await,
        Verb::Healthcheck { ready } => healthcheck::healthcheck(config, ready, out).await,
        verb => return Ok(verb),
    })
}

async fn run_verb(
    verb: Verb,
    config: Config,
    environment: &BTreeMap<String, String>,
    out: &output::Output,
) -> Result<Exit, EngineError> {
    let verb = match run_process(verb, &config, environment, out).await {
        Ok(verb) => verb,
        Err(exit) => return Ok(exit),
    };
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
        Verb::Audit { datasets, fix, sample } => {
            audit::audit(std::slice::from_ref(&context), &datasets, fix, sample, out).await
        }
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
