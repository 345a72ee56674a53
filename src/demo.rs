//! The demonstration: private servers, a shop, load, and a comparison at the end.

pub mod servers;

use std::collections::BTreeMap;

use clap::Args;

use crate::cli::Exit;

/// Options of `cachekeeper demo`.
#[derive(Debug, Args)]
pub struct Options {
    /// End after this long, for example 30s [default: at Ctrl-C]
    #[arg(long = "for", value_name = "DURATION")]
    duration: Option<String>,
}

/// Runs the demonstration.
pub async fn run(_options: &Options, _environment: &BTreeMap<String, String>) -> Exit {
    Exit::Failed
}
