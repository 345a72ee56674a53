//! What `check` warns of: nothing of it keeps a worker from running, and each of it would be met in operation.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use cachekeeper::app::Worker;
use cachekeeper_testkit::certificates::Authority;

use crate::support::{Cli, Rig, wait_until};

const TABLES: &str = "
    create table products (id int primary key, name text, category_id int);
    insert into products select n, 'n' || n, n / 2 from generate_series(1, 200) n;
    create table prices (product_id int primary key, price int);
    create table log (id int, note text);";
const PRODUCT: &str = "[dataset.product]\nquery = \"select id, name from products\"\nkey = \"product:{id}\"\n\
    watch = [{ table = \"products\", key = { id = \"id\" } }]\n";
const LISTEN: &str = "CACHEKEEPER__ADMIN__LISTEN";

/// The warnings of one run, each with its setting. No error may be among them.
#[track_caller]
fn warnings(cli: &Cli) -> Vec<(String, String)> {
    let found = cli.json(&["check"]);
    assert_eq!(found["ok"], true, "{found:#}");
    let text =
        |problem: &serde_json::Value, name: &str| problem[name].as_str().unwrap_or_default().to_owned();
    let problems = found["problems"].as_array().unwrap();
    problems
        .iter()
        .map(|problem| {
            let told = format!("{}; {}", text(problem, "message"), text(problem, "help"));
            (text(problem, "path"), told)
        })
        .collect()
}

#[track_caller]
fn warns(cli: &Cli, setting: &str, parts: &[&str]) {
    let found = warnings(cli);
    let is_told =
        |(path, told): &(String, String)| path == setting && parts.iter().all(|part| told.contains(part));
    assert!(found.len() == 1 && found.iter().all(is_told), "{setting} {parts:?}: {found:#?}");
}

fn as_role(rig: &Rig, toml: &str, role: &str) -> Cli {
    let url = rig.postgres.url();
    let (_, place) = url.split_once('@').unwrap();
    Cli::new(rig, toml).with("CACHEKEEPER__POSTGRES__URL", &format!("postgres://{role}@{place}"))
}

#[tokio::test]
async fn a_role_database_or_server_without_room_for_a_worker_is_told() {
    let settings = ["max_connections=40", "superuser_reserved_connections=3"];
    let rig = Rig::start_with(TABLES, &settings, &[]).await;
    let sql = "create role few login connection limit 12; create role many login;
        grant select on products to few, many";
    rig.postgres.execute(sql).await.unwrap();
    for role in ["few", "many"] {
        Cli::new(&rig, PRODUCT).says(&["migrate", "--grant", role], 0, &[]);
    }
    let setting = "postgres.max_connections";
    // 8 of the pool, 6 for short loads, 7 of the feed, one for a backfill.
    let says =
        ["up to 22 connections", "has room for 12: the limit of the role few is 12", "connection limit 22"];
    warns(&as_role(&rig, PRODUCT, "few"), setting, &says);
    assert_eq!(warnings(&as_role(&rig, PRODUCT, "many")), []);
    let modest = format!("[postgres]\nmax_connections = 2\n{PRODUCT}");
    assert_eq!(warnings(&as_role(&rig, &modest, "few")), []);

    // Without any it cannot be asked.
    rig.postgres.execute("alter role few connection limit 0").await.unwrap();
    let says = ["too many connections for role \"few\"; raise the limit of the role"];
    as_role(&rig, PRODUCT, "few").says(&["check"], 69, &says);

    rig.postgres.execute("alter database postgres connection limit 20").await.unwrap();
    warns(&as_role(&rig, PRODUCT, "many"), setting, &["the limit of the database postgres is 20"]);
    // No limit holds for a superuser but that of the server.
    assert_eq!(warnings(&Cli::new(&rig, PRODUCT)), []);
    rig.postgres.execute("alter database postgres connection limit -1").await.unwrap();
    let mut others = Vec::new();
    for _ in 0..20 {
        others.push(rig.postgres.session().await.unwrap());
    }
    let says = ["has room for 17: max_connections of the server leaves 37 to such roles, 20 are in use"];
    warns(&as_role(&rig, PRODUCT, "many"), setting, &says);
    drop(others);
}

/// Answers every connection with these bytes.
fn stranger(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            drop(stream.read(&mut [0; 4_096]));
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_on_which_no_worker_could_listen_is_told() {
    let rig = Rig::start(TABLES).await;
    Cli::new(&rig, PRODUCT).says(&["migrate"], 0, &[]);
    let at = |address: &str| Cli::new(&rig, PRODUCT).with(LISTEN, address);
    for answer in ["HTTP/1.1 200 OK\r\n\r\nhello", "HTTP/1.1 404 Not Found\r\n\r\n{\"no\": 1}"] {
        let address = stranger(answer);
        let says = format!("could not open on {address}: another program listens there");
        warns(&at(&address), "admin.listen", &[&says, "choose another"]);
    }
    warns(&at(&stranger("SSH-2.0-other\r\n")), "admin.listen", &["does not answer as a worker does"]);

    // One of a network for examples, so of no machine.
    let token = std::env::temp_dir().join(format!("cachekeeper-token-{:016x}", rand::random::<u64>()));
    std::fs::write(&token, "0123456789abcdef0123456789abcdef").unwrap();
    restrict(&token);
    let toml = format!("[admin]\ntoken_file = \"{}\"\n{PRODUCT}", token.display());
    let elsewhere = Cli::new(&rig, &toml).with(LISTEN, "192.0.2.1:9464");
    warns(&elsewhere, "admin.listen", &["192.0.2.1 is no address of this machine", "127.0.0.1:9464"]);
    std::fs::remove_file(&token).unwrap();

    // A worker that runs is no reason against its own configuration.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    assert_eq!(warnings(&at(&address)), []);
    let mut config = rig.config(PRODUCT);
    config.admin.listen = Some(address.clone());
    let worker = Worker::start(config).await.unwrap();
    wait_until("it listens", || async {
        let (code, text) = at(&address).run(&["healthcheck"]);
        if code == 0 { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(warnings(&at(&address)), []);
    let other = at(&address).with("CACHEKEEPER__SERVICE__NAMESPACE", "other");
    // The two could not share a Redis either, which is told first.
    other.says(&["check"], 78, &["could not open on", "a worker of the namespace test listens there"]);
    worker.stop().await;
}

fn restrict(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn a_write_that_no_dataset_can_show_is_told() {
    let rig = Rig::start(TABLES).await;
    let with = |statement: &str, rest: &str| {
        let cli = Cli::new(&rig, &format!("{PRODUCT}write = {{ statement = \"{statement}\" }}\n{rest}"));
        cli.says(&["migrate"], 0, &[]);
        cli
    };
    let of_prices = "update prices set price = :price where product_id = :id";
    let setting = "dataset.product.write.statement";
    let says = [
        "changes public.prices, which no dataset reads or watches",
        "write the tables that the dataset reads",
    ];
    warns(&with(of_prices, ""), setting, &says);
    let price = "[dataset.price]\nquery = \"select product_id, price from prices\"\nkey = \"price:{product_id}\"\n\
        watch = [{ table = \"prices\", key = { product_id = \"product_id\" } }]\n";
    for (statement, rest) in [
        ("update products set name = :name where id = :id", ""),
        (of_prices, price),
        // Beside what is read, something may be noted that nobody reads.
        (
            "with p as (update products set name = :name where id = :id returning id) insert into log select id from p",
            "",
        ),
    ] {
        assert_eq!(warnings(&with(statement, rest)), [], "{statement}");
    }
    // What is read and not watched is told of the dataset that reads it, once.
    let unwatched = price.lines().filter(|line| !line.starts_with("watch")).collect::<Vec<_>>().join("\n");
    warns(
        &with(of_prices, &unwatched),
        "dataset.price.watch",
        &["its query reads prices, but no watch rule of it names"],
    );
}

#[tokio::test]
async fn a_key_of_several_rows_and_a_load_without_an_index_are_told() {
    let rig = Rig::start(TABLES).await;
    let with = |query: &str, key: &str, rest: &str| {
        let watch = "watch = [{ table = \"products\", dataset = true }]";
        let toml = format!("[dataset.product]\nquery = \"{query}\"\nkey = \"{key}\"\n{watch}\n{rest}");
        Cli::new(&rig, &toml)
    };
    with("select id from products", "product:{id}", "").says(&["migrate"], 0, &[]);
    let setting = "dataset.product.key";
    let by_category =
        |rest: &str| with("select category_id, name from products", "category:{category_id}", rest);
    let found = warnings(&by_category(""));
    let [(_, path), (_, rows)] = found.as_slice() else { panic!("{found:#?}") };
    assert!(
        path.contains("each load by key reads the whole of public.products: no index finds its rows"),
        "{path}"
    );
    assert!(path.contains("create index concurrently on public.products (category_id);"), "{path}");
    assert!(rows.contains("2 rows have the key category:"), "{rows}");
    assert!(
        rows.contains("as the first 10000 rows of the query show") && rows.contains("rows = \"many\""),
        "{rows}"
    );
    warns(&by_category("rows = \"many\"\n"), setting, &["reads the whole of public.products"]);

    rig.postgres.execute("create index on products (category_id)").await.unwrap();
    assert_eq!(warnings(&by_category("rows = \"many\"\n")), []);
    warns(&by_category(""), setting, &["2 rows have the key category:"]);
    let grouped = "select category_id, count(*) as products from products group by category_id";
    assert_eq!(warnings(&with(grouped, "category:{category_id}", "")), []);
    assert_eq!(warnings(&with("select id, name from products", "product:{id}", "")), []);
    // An index that is there does not help such a query, and another one would not either.
    let cut = with("select id, name from products order by name limit 10", "product:{id}", "");
    warns(
        &cut,
        setting,
        &["the query keeps its condition from the table", "`limit`, `distinct` and windows"],
    );
    // Rows that cannot be read as a whole in time are no reason to fail.
    let slow = with("select id, (select pg_sleep(1)::text) as slept from products", "product:{id}", "");
    let (code, text) = slow.run(&["check"]);
    assert!(code == 78 && text.contains("volatile") && !text.contains("rows have the key"), "{text}");
}

/// No problem, where somebody fills it from outside.
#[tokio::test]
async fn a_dataset_that_only_events_fill_is_noted() {
    let rig = Rig::start(TABLES).await;
    let unwatched = PRODUCT.lines().filter(|line| !line.starts_with("watch")).collect::<Vec<_>>().join("\n");
    let says = ["dataset product: no backfill begins by itself", "so only events and `cachekeeper warm`"];
    Cli::new(&rig, &format!("{unwatched}\nwarm = {{ on_start = false }}\n")).says(&["check"], 0, &says);
    for warm in ["warm = {}", "warm = { on_start = false, schedule = \"0 0 * * *\" }", ""] {
        let text = Cli::new(&rig, &format!("{unwatched}\n{warm}\n")).says(&["check"], 0, &[]);
        assert!(!text.contains("begins by itself"), "{text}");
    }
}

/// An authority where a server belongs, and the reverse: the connection would fail, in words that help less.
#[test]
fn certificates_that_were_exchanged_are_told() {
    let authority = Authority::new().unwrap();
    let own = authority.issue("localhost", "DNS:localhost,IP:127.0.0.1").unwrap();
    let (trusted, issued, key) = (
        authority.certificate().display().to_string(),
        own.certificate.display().to_string(),
        own.key.display().to_string(),
    );
    let load = |toml: &str| {
        let toml = format!("{PRODUCT}{toml}");
        let loaded =
            cachekeeper_config::Config::load(Path::new("f.toml"), toml, &std::collections::BTreeMap::new());
        match loaded {
            Ok((_, warnings)) => cachekeeper_config::diagnostic::render(&warnings),
            Err(problems) => panic!("{}", cachekeeper_config::diagnostic::render(&problems)),
        }
    };
    let of_server = "holds the certificate of a server or client, and not that of the authority";
    let redis = |ca: &str, own: &str| {
        load(&format!(
            "[redis]\nurl = \"rediss://localhost\"\nca_file = \"{ca}\"\ncert_file = \"{own}\"\nkey_file = \"{key}\"\n"
        ))
    };
    assert_eq!(redis(&trusted, &issued), "");
    let told = redis(&issued, &issued);
    assert!(told.contains(&format!("{issued} {of_server}")) && told.contains(":7:11"), "{told}");
    let postgres = |root: &str| {
        load(&format!(
            "[postgres]\nurl = \"postgres://a@localhost/b?sslmode=verify-full&sslrootcert={root}\"\n"
        ))
    };
    assert_eq!(postgres(&trusted), "");
    assert!(postgres(&issued).contains(of_server));
    // The listener's own certificate, with the key of another one.
    let admin = cachekeeper_config::Admin {
        tls: Some(cachekeeper_config::TlsIdentity {
            cert_file: trusted.clone().into(),
            key_file: key.clone().into(),
        }),
        ..empty_admin()
    };
    let problems = cachekeeper::admin::problems(&admin);
    assert!(
        problems
            .iter()
            .any(|problem| problem.message.contains("begins with the certificate of an authority")),
        "{problems:?}"
    );
}

fn empty_admin() -> cachekeeper_config::Admin {
    let toml = "[dataset.p]\nquery = \"select 1 as id\"\nkey = \"p:{id}\"\n".to_owned();
    let loaded =
        cachekeeper_config::Config::load(Path::new("f.toml"), toml, &std::collections::BTreeMap::new());
    loaded.unwrap().0.admin
}

/// A key that is computed may not be the text of the column that a rule takes it from; with a limit one row moves others.
#[tokio::test]
async fn what_a_change_may_touch_beyond_its_rules_is_told() {
    let rig = Rig::start(TABLES).await;
    Cli::new(&rig, PRODUCT).says(&["migrate"], 0, &[]);
    let with = |query: &str| PRODUCT.replace("select id, name from products", query);
    let is_told = |query: &str, setting: &str, part: &str| {
        let found = warnings(&Cli::new(&rig, &with(query)));
        let is_it = |(path, told): &(String, String)| path == setting && told.contains(part);
        assert!(found.iter().any(is_it), "{query}: {found:#?}");
    };
    let key = "dataset.product.watch.0.key.id";
    is_told("select id + 1000 as id, name from products", key, "the query computes id");
    let query = "dataset.product.query";
    is_told("select id, name from products order by id limit 10", query, "`limit`, `offset` or `fetch`");
    is_told("select id, rank() over (order by name) as place from products", query, "a window (`over`)");
    for fine in [
        "select id, (select note from log l where l.id = p.id limit 1) as note from products p",
        "select id::bigint as id, name as \\\"limit\\\" from products",
    ] {
        let found = warnings(&Cli::new(&rig, &with(fine)));
        assert!(!found.iter().any(|(_, told)| told.starts_with("the query ")), "{found:#?}");
    }
}
