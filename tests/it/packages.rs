//! What the worker is installed with, as far as it needs the program: the compose file, without Docker.

use std::path::Path;
use std::process::Command;

/// The same SQL, users of Redis, configuration, commands and environment, on private servers: nobody is to find at the first
/// `docker compose up` that a right is missing. It also holds `users.acl` against what `acl` says.
#[test]
fn what_the_compose_file_runs_holds_without_docker() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/deploy/python/bin/python");
    if !python.exists() {
        eprintln!("compose: not tried, deploy/install-linters has brought no PyYAML");
        return;
    }
    let program = env!("CARGO_BIN_EXE_cachekeeper");
    let output = Command::new(python).arg(root.join("deploy/compose/try")).arg(program).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("and held"), "{said}");
}
