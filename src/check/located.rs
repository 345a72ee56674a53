//! Problems at their place in the configuration file.

use cachekeeper_config::Config;
use cachekeeper_config::diagnostic::Diagnostic;
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::stores::postgres::SourceProblem;

/// A problem with a dataset at its place in the file.
pub fn located(config: &Config, dataset: &Dataset, problem: SourceProblem) -> Diagnostic {
    let setting = format!("dataset.{}.{}", dataset.name(), problem.setting);
    config.source.problem_within(&setting, problem.offset, problem.message, problem.help)
}
