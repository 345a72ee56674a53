//! The `cachekeeper` command.

use cachekeeper::cli::{self, Exit};

#[tokio::main]
async fn main() -> Exit {
    cli::main(std::env::args_os(), cachekeeper_config::variables(std::env::vars_os())).await
}
