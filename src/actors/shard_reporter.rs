//! What is reported of one shard of a cluster: what the namespace uses there, memory, changes that wait, names that were others',
//! and rights that are lacking.

use super::context::TaskContext;
use super::metrics_reporter::{look_at_names_forever, look_at_rights_forever, report_forever};
use super::task::Task;
use super::wake::Wake;

/// Reports of a shard.
#[derive(Debug)]
pub struct ShardReporter;

impl Task for ShardReporter {
    const NAME: &'static str = "shard_reporter";

    async fn run(context: TaskContext, _wake: Wake) {
        tokio::join!(
            report_forever(&context),
            look_at_names_forever(&context),
            look_at_rights_forever(&context)
        );
    }
}
