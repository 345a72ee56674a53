//! Poolers: with sessions of its own a worker works as without one, and elsewhere it says why it does not.

use cachekeeper::app::{StartError, Worker};
use cachekeeper_testkit::servers::PgBouncer;
use redis::AsyncCommands;

use crate::support::{Cli, Rig, wait_until};

/// What the role and the database say is otherwise than what sessions are to have.
const TABLE: &str = "
    create table products (id int primary key, span interval, at timestamptz);
    insert into products values (1, '1 day 2 hours', '2026-01-01 12:00:00Z');
    alter role postgres set intervalstyle = 'sql_standard';
    alter role postgres set datestyle = 'German';
    alter role postgres set timezone = 'Asia/Tokyo';";
const DATASET: &str = r#"
    [postgres]
    max_connections = 4
    [dataset.product]
    query = "select id, span::text as span, at::text as at from products"
    key = "product:{id}"
    format = "json"
    warm = {}
    watch = [{ table = "products", key = { id = "id" } }]
    write = { statement = "update products set span = :span where id = :id" }
"#;
const URL: &str = "CACHEKEEPER__POSTGRES__URL";

async fn value_has(rig: &Rig, part: &str) {
    let client = rig.client().await;
    wait_until(&format!("the entry has {part}"), || {
        let mut client = client.clone();
        async move {
            let value: Result<Option<String>, _> = client.get("product:1").await;
            match value {
                Ok(Some(value)) if value.contains(part) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_pooler_in_session_mode_loses_no_setting() {
    let rig = Rig::start(TABLE).await;
    for ignored in ["", "ignore_startup_parameters = options,extra_float_digits"] {
        let bouncer = PgBouncer::start(&rig.postgres, "session", &[ignored]).await.unwrap();
        let url = bouncer.url();
        let cli = Cli::new(&rig, DATASET).with(URL, &url);
        cli.says(&["check"], 0, &["configuration is right"]);
        let mut config = rig.config(DATASET);
        config.postgres.url = cachekeeper_config::Secret::new(url);
        let worker = Worker::start(config).await.unwrap();
        rig.postgres.execute("update products set span = '3 days 4 hours'").await.unwrap();
        value_has(&rig, "\"P3DT4H\"").await;
        value_has(&rig, "\"2026-01-01 12:00:00+00\"").await;
        cli.says(&["write", "product", "id=1", "span=5 hours"], 0, &[]);
        value_has(&rig, "\"PT5H\"").await;
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_pooler_that_shares_sessions_is_refused_with_the_reason() {
    let rig = Rig::start(TABLE).await;
    // Some versions keep prepared statements; then only settings and locks are lost, and nothing fails by itself.
    let modes: [(&str, &[&str]); 4] = [
        ("transaction", &[]),
        (
            "transaction",
            &["ignore_startup_parameters = options,extra_float_digits", "server_round_robin = 1"],
        ),
        ("transaction", &["default_pool_size = 1"]),
        ("statement", &[]),
    ];
    for (mode, settings) in modes {
        let bouncer = PgBouncer::start(&rig.postgres, mode, settings).await.unwrap();
        let url = bouncer.url();
        let says = ["a pooler in transaction or statement mode", "pool_mode = session"];
        let cli = Cli::new(&rig, DATASET).with(URL, &url);
        for verb in [&["check"][..], &["status"], &["migrate"], &["warm"], &["audit"], &["run"]] {
            cli.says(verb, 78, &says);
        }
        let mut config = rig.config(DATASET);
        config.postgres.url = cachekeeper_config::Secret::new(url);
        let refused = Worker::start(config).await.map(drop);
        assert!(matches!(refused, Err(StartError::Pooler(_))), "{mode}: {refused:?}");
    }
}

/// It has no codes of its own for a wrong password.
#[tokio::test]
async fn a_pooler_that_refuses_the_login_is_a_matter_of_configuration() {
    let rig = Rig::start(TABLE).await;
    rig.postgres.execute("create role shop login superuser password 'sesame'").await.unwrap();
    let rules = std::env::temp_dir().join(format!("cachekeeper-pooler-{:016x}", rand::random::<u64>()));
    for (way, name) in [("scram-sha-256", "scram"), ("md5", "md5")] {
        let text = format!("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 {way}\n");
        let rules = rules.with_extension(name);
        std::fs::write(&rules, text).unwrap();
        let settings = ["auth_type = hba", &format!("auth_hba_file = {}", rules.display())];
        let bouncer = PgBouncer::start(&rig.postgres, "session", &settings).await.unwrap();
        let url = bouncer.url();
        let as_shop =
            |password: &str| url.replace("postgres://postgres@", &format!("postgres://shop:{password}@"));
        let right = Cli::new(&rig, DATASET).with(URL, &as_shop("sesame"));
        right.says(&["check"], 0, &["configuration is right"]);
        let wrong = Cli::new(&rig, DATASET).with(URL, &as_shop("wrong"));
        for verb in [&["check"][..], &["status"], &["warm"]] {
            wrong.says(verb, 78, &["authentication failed", "correct the password"]);
        }
        std::fs::remove_file(rules).unwrap();
    }
}

/// Its administrator needs no restart of the worker.
#[tokio::test]
async fn a_pooler_that_is_set_up_otherwise_is_noticed() {
    let rig = Rig::start(TABLE).await;
    let shared = PgBouncer::start(&rig.postgres, "transaction", &[]).await.unwrap();
    let direct = PgBouncer::start(&rig.postgres, "session", &[]).await.unwrap();
    let proxy = cachekeeper_testkit::proxy::Proxy::start(direct.port()).await.unwrap();
    let mut config = rig.config(DATASET);
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", proxy.port());
    config.postgres.url = cachekeeper_config::Secret::new(url);
    let context = cachekeeper_engine::context::Context::new(&config).unwrap();
    context.postgres.ping().await.unwrap();
    proxy.lead_to(shared.port());
    // Sessions were looked at already, and clients of it may find what others have left behind.
    let (first, second) = tokio::join!(context.postgres.poll(), context.postgres.ping());
    drop((first, second));
    proxy.lead_to(direct.port());
    wait_until("it works again", || async {
        context.postgres.poll().await.map(drop).map_err(|error| error.told())
    })
    .await;
}
