//! How one gets into Redis: passwords in the URL and in files, databases, and what is said where that does not fit.

use std::path::PathBuf;

use cachekeeper::app::Worker;
use cachekeeper_config::Password;

use crate::feed::{TABLES, ready};
use crate::support::{Cli, Rig, wait_until};

const DATASET: &str = "[dataset.product]\nquery = \"select id, name from products\"\nkey = \"product:{id}\"\n\
    write = { statement = \"update products set name = :name where id = :id\" }\n\
    watch = [{ table = \"products\", key = { id = \"id\" } }]\n";
const URL: &str = "CACHEKEEPER__REDIS__URL";

/// Verbs that need Redis.
const VERBS: [&[&str]; 7] = [
    &["check"],
    &["status"],
    &["warm"],
    &["audit"],
    &["get", "product:1"],
    &["invalidate", "product:1"],
    &["purge", "--yes"],
];

struct File(PathBuf);

impl File {
    fn new(content: &[u8]) -> Self {
        let file = std::env::temp_dir().join(format!("cachekeeper-redis-{:016x}", rand::random::<u64>()));
        std::fs::write(&file, content).unwrap();
        Self(file)
    }

    fn shown(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

#[tokio::test]
async fn a_password_that_is_refused_is_told_where_it_comes_from() {
    let rig = Rig::start(TABLES).await;
    let server = cachekeeper_testkit::servers::Redis::start(&["--requirepass", "sesame"]).await.unwrap();
    let place = format!("127.0.0.1:{}", server.port());
    let (wrong, right) = (File::new(b"wrong\n"), File::new(b"sesame\n"));
    let with = |file: &File| format!("{DATASET}[redis]\npassword_file = \"{}\"\n", file.shown());
    let url = format!("redis://{place}/0");
    let by_file = Cli::new(&rig, &with(&wrong)).with(URL, &url);
    let of_file = format!("{place} does not accept the password in {}", wrong.shown());
    let by_url = Cli::new(&rig, DATASET).with(URL, &format!("redis://:wrong@{place}/0"));
    let without = Cli::new(&rig, DATASET).with(URL, &url);
    let of_url = format!("{place} does not accept the user and the password of redis.url");
    for verb in VERBS {
        by_file.says(verb, 78, &[&of_file, "correct what this file holds"]);
        for cli in [&by_url, &without] {
            let text = cli.says(verb, 78, &[&of_url, "redis://user:password@host"]);
            assert!(!text.contains("wrong@"), "{text}");
        }
    }
    by_file.says(&["check"], 78, &["password_file =", ":7:17\n", "1 error"]);
    without.says(&["check"], 78, &[URL, "1 error"]);
    Cli::new(&rig, &with(&right)).with(URL, &url).says(&["get", "product:1"], 1, &["is not in Redis"]);
    // The file counts, and that is said.
    let both = Cli::new(&rig, &with(&right)).with(URL, &format!("redis://:wrong@{place}/0"));
    let said = ["warning: the URL holds a password too; the one of this file is used", ":7:17\n"];
    both.says(&["get", "product:1"], 1, &said);

    // `run` waits: files are replaced.
    let mut config = rig.config(DATASET);
    config.redis.url = cachekeeper_config::Secret::new(url);
    config.redis.password = Some(Password::InFile(wrong.0.clone()));
    let worker = Worker::start(config).await.unwrap();
    wait_until("readiness names the file", async || {
        let reasons = worker.health.reasons().join("; ");
        if reasons.contains(&of_file) { Ok(()) } else { Err(reasons) }
    })
    .await;
    std::fs::write(&wrong.0, "sesame\n").unwrap();
    ready(&worker).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_file_that_holds_no_password_is_told() {
    let rig = Rig::start(TABLES).await;
    for (content, said) in [
        (&b"one\ntwo\n"[..], "holds several lines instead of one"),
        (b"\xff\xfe", "holds no text in UTF-8"),
        (b"\n", "holds nothing"),
    ] {
        let file = File::new(content);
        for section in ["postgres", "redis"] {
            let toml = format!("{DATASET}[{section}]\npassword_file = \"{}\"\n", file.shown());
            let said = format!("{} {said}", file.shown());
            Cli::new(&rig, &toml).says(&["check", "--offline"], 78, &[&said, ":7:17\n", "one line of UTF-8"]);
        }
    }
    // Of two passwords it is said which counts.
    let file = File::new(b"sesame");
    let toml = format!("{DATASET}[redis]\npassword_file = \"{}\"\n", file.shown());
    let url = rig.redis.url().replace("redis://", "redis://:other@");
    let both = Cli::new(&rig, &toml).with("CACHEKEEPER__REDIS__URL", &url);
    both.says(&["check", "--offline"], 0, &["warning: the URL holds a password too", ":7:17\n"]);
    // While it runs it is read again.
    let file = File::new(b"sesame");
    let mut config = rig.config(DATASET);
    config.redis.password = Some(Password::InFile(file.0.clone()));
    std::fs::write(&file.0, "one\ntwo").unwrap();
    let context = cachekeeper_engine::context::Context::new(&config).unwrap();
    let error = context.redis.ping().await.unwrap_err();
    assert!(error.is_of_configuration() && error.told().contains("several lines"), "{}", error.told());
}

#[tokio::test]
async fn a_database_that_is_not_there_is_a_matter_of_configuration_in_every_verb() {
    let rig = Rig::start(TABLES).await;
    let cli = Cli::new(&rig, DATASET).with(URL, &rig.redis.url().replace("/0", "/99"));
    for verb in VERBS {
        cli.says(verb, 78, &["has no database 99", "`databases`"]);
    }
    // A right that is missing is not a database that is.
    let mut client = rig.client().await;
    let user = ["SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-select"];
    let _: () = redis::cmd("ACL").arg(&user).query_async(&mut client).await.unwrap();
    let url = rig.redis.url().replace("redis://", "redis://app:pw@").replace("/0", "/1");
    let cli = Cli::new(&rig, DATASET).with(URL, &url);
    cli.says(&["check"], 78, &["does not let this user choose database 1", "cachekeeper acl --for worker"]);
}

/// What follows from a wrong URL is not said beside it.
#[tokio::test]
async fn a_wrong_url_is_one_error() {
    let rig = Rig::start("").await;
    let file = File::new(b"rediss://h/0?db=3\n");
    for line in [
        "url = \"rediss://h/0?db=3\"".to_owned(),
        "url = \"localhost\"".to_owned(),
        format!("url_file = \"{}\"", file.shown()),
    ] {
        let authority = cachekeeper_testkit::certificates::Authority::new().unwrap();
        let ca = authority.certificate().display().to_string();
        let toml = format!("{DATASET}[redis]\n{line}\nca_file = \"{ca}\"\nsentinel_username = \"x\"\n");
        let mut cli = Cli::new(&rig, &toml);
        cli.environment.retain(|(name, _)| name != URL);
        cli.says(&["check", "--offline"], 78, &["1 error"]);
    }
}
