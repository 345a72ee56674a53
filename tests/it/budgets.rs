//! What an application has to compile that links the client library, asked of cargo itself.

use std::collections::BTreeSet;
use std::process::Command;

/// Crates of the client with default features.
const WITH_POSTGRES: usize = 160;
/// Crates of the client without Postgres.
const WITHOUT_POSTGRES: usize = 100;

/// Every crate that the client compiles, itself among them, as `name version`.
fn crates(features: &[&str]) -> BTreeSet<String> {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args([
        "tree",
        "--locked",
        "--offline",
        "-p",
        "cachekeeper-client",
        "-e",
        "normal",
        "--prefix",
        "none",
    ]);
    let output = command.args(features).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let name = |line: &str| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    text.lines().filter(|line| !line.is_empty()).map(name).collect()
}

#[track_caller]
fn has_none_of(crates: &BTreeSet<String>, names: &[&str]) {
    let found: Vec<&String> =
        crates.iter().filter(|one| names.iter().any(|name| one.split(' ').next() == Some(name))).collect();
    assert!(found.is_empty(), "the client compiles {found:?}");
}

#[test]
fn the_client_brings_no_worker_into_an_application() {
    let crates = crates(&[]);
    assert!(crates.iter().any(|one| one.starts_with("sqlx ")), "{crates:?}");
    has_none_of(
        &crates,
        &["clap", "axum", "ractor", "indicatif", "cron", "tracing-subscriber", "cachekeeper"],
    );
    has_none_of(&crates, &["aws-lc-rs", "aws-lc-sys", "openssl", "native-tls"]);
    assert!(crates.len() <= WITH_POSTGRES, "{} crates: {crates:?}", crates.len());
}

#[test]
fn without_its_postgres_feature_the_client_is_small() {
    let crates = crates(&["--no-default-features"]);
    assert!(crates.iter().any(|one| one.starts_with("redis ")), "{crates:?}");
    has_none_of(&crates, &["sqlx", "sqlx-core", "sqlx-postgres", "clap", "axum", "ractor", "cron", "toml"]);
    // TLS has its one provider here too: without any, `rediss://` would panic.
    assert!(crates.iter().any(|one| one.starts_with("ring ")), "{crates:?}");
    assert!(crates.len() <= WITHOUT_POSTGRES, "{} crates: {crates:?}", crates.len());
}
