//! `cachekeeper init`: a configuration, or datasets for one, made of what is there. What it prints passes `check`.

mod base;
mod draft;
mod import;
mod read;
mod relations;
mod settle;
mod statements;
mod table;
mod toml;
mod words;
mod yaml;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use self::base::Base;
use self::draft::Refusal;
use self::relations::tables_of;
use self::settle::Proposals;
use super::output::{Exit, Output};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::postgres::{ErrorKind, Outlined, TableOutline};

/// Statements that are proposed unless it is said otherwise.
const TOP: usize = 10;

/// What datasets are made of.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Origin {
    /// A table, or a view, as SQL writes it: products, sales.orders, '"Products"'; several times for several
    #[arg(long, value_name = "TABLE")]
    from_table: Vec<String>,
    /// The reads that take the most of the database's time, where they can become datasets
    #[arg(long)]
    from_pg_stat_statements: bool,
    /// The file of another program: rdi (a job of Redis Data Integration) or sequin (sequin.yaml)
    #[arg(long, num_args = 2, value_names = ["PROGRAM", "FILE"])]
    from: Vec<String>,
}

/// What is wanted.
#[derive(Debug, clap::Args)]
pub struct Request {
    #[command(flatten)]
    origin: Origin,
    #[arg(long, value_name = "N", help = "Propose so many of the statements [default: 10]")]
    top: Option<usize>,
    /// The columns that tell the rows of that table apart, where it has no key
    #[arg(long, value_name = "COLUMN", value_delimiter = ',', requires = "from_table")]
    key: Vec<String>,
    /// Where Postgres is; a whole configuration is made then, and not only datasets for the one that is there
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Write it to this file, which may not be there yet
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace that file
    #[arg(long, requires = "output")]
    force: bool,
}

/// Prints what it proposes, or writes it to a file.
pub async fn init(
    explicit: Option<PathBuf>,
    request: &Request,
    environment: &BTreeMap<String, String>,
    out: &Output,
) -> Result<Exit, EngineError> {
    if 1 < request.origin.from_table.len() && !request.key.is_empty() {
        out.failure("--key names the columns of one table; make the datasets of several one after the other");
        return Ok(Exit::Usage);
    }
    if request.top.is_some() && !request.origin.from_pg_stat_statements {
        out.failure("--top goes with --from-pg-stat-statements");
        return Ok(Exit::Usage);
    }
    let base = match Base::find(explicit, request.url.as_deref(), environment, out) {
        Ok(base) => base,
        Err(exit) => return Ok(exit),
    };
    if let Some(flaw) = request.output.as_deref().and_then(|file| flaw_of(file, request.force, &base)) {
        out.failure(&flaw);
        return Ok(Exit::Usage);
    }
    let config = match base.with("") {
        Ok(config) => config,
        Err(problem) => {
            out.problems(&[*problem]);
            return Ok(Exit::Configuration);
        }
    };
    let context = Context::new(&config)?;
    let mut proposals = Proposals::new(&base);
    let proposed = if request.origin.from_pg_stat_statements {
        proposals.is_choice = true;
        statements::propose(&context, request.top.unwrap_or(TOP), &mut proposals, out).await?
    } else if let [program, file] = request.origin.from.as_slice() {
        from_file(&context, (program, file), &mut proposals, out).await?
    } else {
        from_tables(&context, request, &mut proposals, out).await?
    };
    if let Err(exit) = proposed {
        if proposals.is_choice {
            proposals
                .refusals
                .iter()
                .for_each(|refusal| out.note(&format!("not proposed: {}", refusal.told())));
        }
        return Ok(exit);
    }
    finish(&base, request, &proposals, out)
}

/// Why this file may not be written.
fn flaw_of(file: &Path, is_forced: bool, base: &Base) -> Option<String> {
    let shown = file.display();
    let is_same = |own: &PathBuf| match (std::fs::canonicalize(own), std::fs::canonicalize(file)) {
        (Ok(own), Ok(file)) => own == file,
        _ => false,
    };
    if base.file.as_ref().is_some_and(is_same) {
        return Some(format!(
            "{shown} is the configuration itself, of which datasets alone would be left; print them and add them to it"
        ));
    }
    (!is_forced && file.symlink_metadata().is_ok())
        .then(|| format!("{shown} is there already; name another file, or say --force to replace it"))
}

/// Datasets of tables. The inner error: nothing can be proposed, which was said.
async fn from_tables(
    context: &Context,
    request: &Request,
    proposals: &mut Proposals<'_>,
    out: &Output,
) -> Result<Result<(), Exit>, EngineError> {
    let mut tables: Vec<TableOutline> = Vec::new();
    for name in &request.origin.from_table {
        match context.postgres.outline(name).await {
            Ok(Outlined::Table(table)) if tables.iter().any(|known| known.oid == table.oid) => {}
            Ok(Outlined::Table(table)) => tables.push(*table),
            Ok(Outlined::Missing(similar)) => {
                out.failure(&missing(name, &similar));
                return Ok(Err(Exit::Usage));
            }
            Err(error) if error.kind == ErrorKind::Data => {
                let help = "write it as SQL does: products, sales.orders, '\"Products\"'";
                out.failure(&format!("{name} cannot be the name of a table: {}; {help}", error.message()));
                return Ok(Err(Exit::Usage));
            }
            Err(error) => return Err(error.into()),
        }
    }
    for table in &tables {
        let reads = match table.kind {
            'v' if table.may_use_schema => {
                tables_of(context, &format!("select * from {}", table.path)).await?
            }
            _ => Vec::new(),
        };
        match table::of_table(table, &request.key, &reads) {
            Ok(draft) => proposals.add(draft).await?,
            Err(refusal) => proposals.refuse(refusal),
        }
    }
    Ok(Ok(()))
}

fn missing(name: &str, similar: &[String]) -> String {
    let help = match similar {
        [] => "name it with its schema, as SQL writes it".to_owned(),
        similar => format!("there is {}", similar.join(", ")),
    };
    format!("there is no table {name} in the search path of this role; {help}")
}

/// Datasets of another program's file. The inner error: nothing can be proposed, which was said.
async fn from_file(
    context: &Context,
    (program, file): (&str, &str),
    proposals: &mut Proposals<'_>,
    out: &Output,
) -> Result<Result<(), Exit>, EngineError> {
    let of_document = match program {
        "rdi" => import::of_rdi,
        "sequin" => import::of_sequin,
        other => {
            out.failure(&format!("the files of {other} are not known; known are rdi and sequin"));
            return Ok(Err(Exit::Usage));
        }
    };
    let read = std::fs::read_to_string(file).map_err(|error| format!("cannot be read: {error}"));
    let documents = read
        .and_then(|text| yaml::read(&text).map_err(|error| format!("is no YAML that is read here: {error}")));
    let found: Result<Vec<import::Found>, String> =
        documents.and_then(|documents| documents.iter().map(of_document).collect());
    let found = match found {
        Ok(found) if found.is_empty() => Err("holds nothing".to_owned()),
        found => found,
    };
    let found = match found {
        Ok(found) => found.into_iter().flatten(),
        Err(reason) => {
            out.failure(&format!("{file} {reason}"));
            return Ok(Err(Exit::Failed));
        }
    };
    let mut lost = 0;
    for one in found {
        match one {
            Ok(imported) => {
                lost += imported.lost.len();
                add_imported(context, &imported, proposals).await?;
            }
            Err((origin, reason)) => {
                lost += 1;
                proposals.refuse(Refusal::new(&origin, reason, ""));
            }
        }
    }
    if 0 < lost {
        out.note(&format!("{lost} parts of {file} have no counterpart; each stands as a comment: No counterpart, or Not proposed"));
    }
    Ok(Ok(()))
}

/// The dataset of a table, with what another program's file says of it.
async fn add_imported(
    context: &Context,
    imported: &import::Imported,
    proposals: &mut Proposals<'_>,
) -> Result<(), EngineError> {
    let refusal = |reason: String| Refusal::new(&imported.origin, reason, "");
    let table = match context.postgres.outline(&imported.table).await {
        Ok(Outlined::Table(table)) => table,
        Ok(Outlined::Missing(similar)) => {
            proposals.refuse(refusal(missing(&imported.table, &similar)));
            return Ok(());
        }
        Err(error) if error.kind == ErrorKind::Data => {
            proposals.refuse(refusal(format!("{} cannot be the name of a table", imported.table)));
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let reads = match table.kind {
        'v' if table.may_use_schema => tables_of(context, &format!("select * from {}", table.path)).await?,
        _ => Vec::new(),
    };
    let key = imported.template.as_ref().map_or(&[][..], |(_, columns)| columns);
    match table::of_table(&table, key, &reads) {
        Ok(mut draft) => {
            draft.template = imported.template.as_ref().map(|(template, _)| template.clone());
            draft.settings.extend(imported.settings());
            draft.about.extend(imported.lost.iter().map(|lost| format!("No counterpart: {lost}.")));
            draft.origin = format!("{} ({})", imported.origin, table.path);
            proposals.add(draft).await
        }
        Err(refused) => {
            proposals.refuse(refused);
            Ok(())
        }
    }
}

/// Prints or writes what was settled.
fn finish(
    base: &Base,
    request: &Request,
    proposals: &Proposals<'_>,
    out: &Output,
) -> Result<Exit, EngineError> {
    let text = format!("{}{}", base.head(), proposals.text);
    let text = text.trim_start_matches('\n');
    if let Some(file) = &request.output
        && let Err(error) = write(file, text, request.force)
    {
        out.failure(&format!("{} cannot be written: {error}", file.display()));
        return Ok(Exit::Failed);
    }
    let refused: Vec<_> = proposals.refusals.iter().map(Refusal::facts).collect();
    let is_whole = refused.is_empty() || proposals.is_choice;
    let file = request.output.as_ref().map(|file| file.display().to_string());
    if out.json {
        out.line(
            &json!({ "ok": is_whole, "file": file, "text": text, "datasets": proposals.datasets, "refused": refused })
                .to_string(),
        );
    } else if let Some(file) = &file {
        let count = proposals.datasets.len();
        let plural = if count == 1 { "dataset" } else { "datasets" };
        out.line(&format!("{file}: {count} {plural}"));
    } else {
        out.line(text.trim_end());
    }
    for refusal in proposals.refusals.iter().filter(|_one| !proposals.is_choice) {
        out.note(&format!("not proposed: {}", refusal.told()));
    }
    Ok(if is_whole { Exit::Ok } else { Exit::Failed })
}

/// A file that came into being meanwhile is not replaced either.
fn write(path: &Path, text: &str, is_forced: bool) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    if is_forced {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
