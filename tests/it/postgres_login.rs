//! Who may log in: what is wrong with a role, a database or a password, and passwords that are rotated.

use cachekeeper_engine::context::Context;

use crate::support::{Cli, Rig, wait_until};

const TABLE: &str =
    "create table products (id int primary key, name text); insert into products values (1, 'one');";
const DATASET: &str = r#"
    [dataset.product]
    query = "select id, name from products"
    key = "product:{id}"
    format = "json"
    write = { statement = "update products set name = :name where id = :id" }
"#;
const URL: &str = "CACHEKEEPER__POSTGRES__URL";

/// A server that asks everybody but `postgres` for a password.
async fn rig() -> (Rig, String) {
    let rules = std::env::temp_dir().join(format!("cachekeeper-hba-{:016x}", rand::random::<u64>()));
    std::fs::write(&rules, "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        .unwrap();
    let rig = Rig::start_with(TABLE, &[&format!("hba_file={}", rules.display())], &[]).await;
    let sql = "create role shop login superuser password 'sesame'";
    rig.postgres.execute(sql).await.unwrap();
    let port = rig.postgres.port();
    (rig, format!("127.0.0.1:{port}"))
}

#[tokio::test]
async fn a_login_that_is_refused_is_a_matter_of_configuration_in_every_verb() {
    let (rig, place) = rig().await;
    let cases = [
        (
            format!("postgres://shop:wrong@{place}/postgres"),
            "password authentication failed",
            "correct the password",
        ),
        (format!("postgres://shop@{place}/postgres"), "password", "correct"),
        (
            format!("postgres://nobody:x@{place}/postgres"),
            "password authentication failed",
            "correct the password",
        ),
        (
            format!("postgres://shop:sesame@{place}/nowhere"),
            "\"nowhere\" does not exist",
            "create the database",
        ),
    ];
    let verbs: [&[&str]; 9] = [
        &["check"],
        &["status"],
        &["migrate"],
        &["migrate", "--print"],
        &["warm"],
        &["audit"],
        &["capture", "off"],
        &["write", "product", "id=1", "name=x"],
        &["migrate", "--uninstall", "--yes"],
    ];
    for (url, says, advice) in cases {
        let cli = Cli::new(&rig, DATASET).with(URL, &url);
        for verb in verbs {
            let text = cli.says(verb, 78, &[says, advice]);
            assert!(!text.contains("sesame") && !text.contains("wrong"), "{text}");
        }
    }
    // Of a server that trusts everybody, a role that is not there is told.
    let open = Rig::start("").await;
    let url = format!("postgres://nobody@127.0.0.1:{}/postgres", open.postgres.port());
    let cli = Cli::new(&open, DATASET).with(URL, &url);
    cli.says(&["status"], 78, &["role \"nobody\" does not exist", "create the role"]);
    let cli = Cli::new(&open, DATASET).with(URL, "postgres://shop@127.0.0.1:1/postgres");
    for verb in [&["status"][..], &["write", "product", "id=1", "name=x"], &["capture", "off"]] {
        cli.says(verb, 69, &["connection refused"]);
    }
}

/// An owner runs `migrate` by a URL of their own beside the worker's file, which names the worker's password.
#[tokio::test]
async fn a_url_of_the_environment_that_brings_its_password_leaves_the_files_one() {
    let (rig, place) = rig().await;
    let file = std::env::temp_dir().join(format!("cachekeeper-password-{:016x}", rand::random::<u64>()));
    std::fs::write(&file, "of somebody else").unwrap();
    let toml = format!("[postgres]\npassword_file = \"{}\"\n{DATASET}", file.display());
    let url = format!("postgres://shop:sesame@{place}/postgres");
    let cli = Cli::new(&rig, &toml).with(URL, &url);
    cli.says(&["migrate"], 0, &[]);
    let cli = cli.with("CACHEKEEPER__POSTGRES__PASSWORD_FILE", &file.display().to_string());
    cli.says(&["migrate"], 78, &["password authentication failed"]);
    std::fs::remove_file(&file).unwrap();
}

/// What the URL leaves out is as libpq has it, and is what messages name.
#[tokio::test]
async fn a_url_that_leaves_everything_out_means_what_it_means_to_psql() {
    let rig = Rig::start(TABLE).await;
    let port = rig.postgres.port().to_string();
    let user = std::process::Command::new("id").arg("-un").output().unwrap();
    let user = String::from_utf8(user.stdout).unwrap();
    rig.postgres.execute(&format!("create role \"{}\" login", user.trim())).await.unwrap();
    let cli = Cli::new(&rig, DATASET).with(URL, "postgres:///postgres");
    let cli = cli.with("PGHOST", "127.0.0.1").with("PGPORT", &port);
    // A role without rights.
    let place = format!("127.0.0.1:{port}");
    let text = cli.says(&["migrate", "--uninstall", "--yes"], 78, &["permission denied"]);
    assert!(!text.contains("localhost:5432"), "{text}");
    let text = cli.says(&["check"], 78, &["permission denied"]);
    assert!(!text.contains("anonymous") && !text.contains("localhost:5432"), "{text}");
    let cli = cli.with("PGUSER", "postgres");
    cli.says(&["migrate", "--uninstall", "--yes"], 0, &[&place]);
    // What is empty is not given, and what cannot be meant is said.
    cli.says(&["check"], 78, &["the schema `cachekeeper` is not installed"]);
    for (name, value, says) in [
        ("PGHOST", "", "the schema `cachekeeper` is not installed"),
        ("PGHOST", "127.0.0.1,127.0.0.2", "PGHOST names several servers (127.0.0.1,127.0.0.2)"),
        ("PGPORT", "abc", "PGPORT is abc, which is no port"),
    ] {
        let cli = Cli::new(&rig, DATASET).with(URL, "postgres:///postgres").with("PGUSER", "postgres");
        cli.with("PGHOST", "127.0.0.1").with("PGPORT", &port).with(name, value).says(&["check"], 78, &[says]);
    }
}

#[tokio::test]
async fn a_password_is_read_again_for_each_new_connection() {
    let (rig, place) = rig().await;
    let file = std::env::temp_dir().join(format!("cachekeeper-password-{:016x}", rand::random::<u64>()));
    let url_file = file.with_extension("url");
    std::fs::write(&file, "sesame\n").unwrap();
    std::fs::write(&url_file, format!("postgres://shop:sesame@{place}/postgres\n")).unwrap();
    let by_password = |toml: &str| {
        let mut environment = rig.environment();
        environment.insert(URL.to_owned(), format!("postgres://shop@{place}/postgres"));
        let loaded =
            cachekeeper_config::Config::load(std::path::Path::new("t"), toml.to_owned(), &environment);
        Context::new(&loaded.unwrap().0).unwrap()
    };
    let by_url = |toml: &str| {
        let mut environment = rig.environment();
        environment.remove(URL);
        let loaded =
            cachekeeper_config::Config::load(std::path::Path::new("t"), toml.to_owned(), &environment);
        Context::new(&loaded.unwrap().0).unwrap()
    };
    let contexts = [
        by_password(&format!("[postgres]\npassword_file = \"{}\"", file.display())),
        by_url(&format!("[postgres]\nurl_file = \"{}\"", url_file.display())),
    ];
    for context in &contexts {
        context.postgres.poll().await.unwrap();
    }
    let rotate = "alter role shop password 'open'; \
        select pg_terminate_backend(pid) from pg_stat_activity where usename = 'shop'";
    rig.postgres.execute(rotate).await.unwrap();
    for context in &contexts {
        let told = context.postgres.ping().await.unwrap_err().told();
        assert!(told.contains("correct the password"), "{told}");
    }
    std::fs::write(&file, "open\n").unwrap();
    std::fs::write(&url_file, format!("postgres://shop:open@{place}/postgres\n")).unwrap();
    for context in &contexts {
        wait_until("the new password is used", || async {
            context.postgres.poll().await.map(drop).map_err(|error| error.told())
        })
        .await;
    }
    std::fs::remove_file(file).unwrap();
    std::fs::remove_file(url_file).unwrap();
}
