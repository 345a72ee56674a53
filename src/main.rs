//! The `cachekeeper` command.

use cachekeeper::cli::{self, Exit};

#[tokio::main]
async fn main() -> Exit {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    cli::main(std::env::args_os(), environment).await
}
