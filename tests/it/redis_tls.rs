//! Redis over TLS: authorities, client certificates, their replacement while everything runs, and what is said of the wrong ones.

use std::path::Path;
use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_client::Cache;
use cachekeeper_config::{Secret, Tls, TlsIdentity};
use cachekeeper_testkit::certificates::{Authority, Certificate};
use cachekeeper_testkit::servers::{Redis, SERVICE, Sentinels, free_port};

use crate::feed::{DATASETS, TABLES, agrees, caught_up, ready};
use crate::support::{Cli, Rig, wait_until};

const HOSTS: &str = "DNS:localhost,IP:127.0.0.1";

/// A server that speaks TLS at a port of its own, and plainly at the usual one.
async fn server(authority: &Path, own: &Certificate, asks: &str) -> (Redis, u16) {
    let port = free_port().unwrap();
    let (cert, key, ca) = (
        own.certificate.display().to_string(),
        own.key.display().to_string(),
        authority.display().to_string(),
    );
    let arguments = [
        ["--tls-port", &port.to_string()],
        ["--tls-cert-file", &cert],
        ["--tls-key-file", &key],
        ["--tls-ca-cert-file", &ca],
        ["--tls-auth-clients", asks],
    ];
    (Redis::start(arguments.as_flattened()).await.unwrap(), port)
}

#[tokio::test]
async fn worker_and_library_speak_tls_and_take_replaced_certificates() {
    let authority = Authority::new().unwrap();
    let own = authority.issue("server", HOSTS).unwrap();
    let client = authority.issue("client", "DNS:client").unwrap();
    let (redis, port) = server(&authority.certificate(), &own, "yes").await;
    let rig = Rig::start(TABLES).await;
    // What the settings name, and what is replaced.
    let files = Authority::new().unwrap();
    let at = |name: &str| files.certificate().with_file_name(name);
    let put = |authority: &Authority, client: &Certificate| {
        std::fs::copy(authority.certificate(), at("trusted.pem")).unwrap();
        std::fs::copy(&client.certificate, at("own.pem")).unwrap();
        std::fs::copy(&client.key, at("own.key")).unwrap();
    };
    put(&authority, &client);
    let mut config = rig.config(DATASETS);
    config.redis.url = Secret::new(format!("rediss://localhost:{port}/0"));
    config.redis.tls = Tls {
        ca_file: Some(at("trusted.pem")),
        identity: Some(TlsIdentity { cert_file: at("own.pem"), key_file: at("own.key") }),
    };
    let cache = Cache::connect_with(&config.redis, "test").unwrap().build();
    let worker = Worker::start(config).await.unwrap();
    ready(&worker).await;
    agrees(&worker).await;
    cache.set("page:1", &1, Duration::from_secs(600)).await.unwrap();

    // Another authority: new certificates for the server and for its clients.
    let next = Authority::new().unwrap();
    let own = next.issue("server", HOSTS).unwrap();
    put(&next, &next.issue("client", "DNS:client").unwrap());
    let plain = redis::Client::open(redis.url()).unwrap();
    let mut plain = plain.get_multiplexed_async_connection().await.unwrap();
    let mut command = redis::cmd("CONFIG");
    command.arg("SET").arg("tls-cert-file").arg(own.certificate.display().to_string());
    command.arg("tls-key-file").arg(own.key.display().to_string());
    command.arg("tls-ca-cert-file").arg(next.certificate().display().to_string());
    let _: () = command.query_async(&mut plain).await.unwrap();
    for kind in ["normal", "pubsub"] {
        let mut command = redis::cmd("CLIENT");
        command.arg("KILL").arg("TYPE").arg(kind).arg("SKIPME").arg("yes");
        let _: u64 = command.query_async(&mut plain).await.unwrap();
    }
    rig.postgres.execute("update products set price = 4711 where id = 5").await.unwrap();
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    wait_until("the library writes", async || {
        cache.set("page:1", &2, Duration::from_secs(600)).await.map_err(|error| error.to_string())
    })
    .await;
    worker.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_told_where_it_is_mended() {
    let authority = Authority::new().unwrap();
    let other = Authority::new().unwrap();
    let rig = Rig::start(TABLES).await;
    let right = authority.issue("server", HOSTS).unwrap();
    let client = authority.issue("client", "DNS:client").unwrap();
    let stranger = other.issue("client", "DNS:client").unwrap();
    let (_plain, port) = server(&authority.certificate(), &right, "no").await;
    let (_asking, asking) = server(&authority.certificate(), &right, "yes").await;
    let expired = authority.issue_expired("expired", HOSTS).unwrap();
    let (_expired, expired) = server(&authority.certificate(), &expired, "no").await;
    let elsewhere = authority.issue("elsewhere", "DNS:elsewhere.example").unwrap();
    let (_elsewhere, elsewhere) = server(&authority.certificate(), &elsewhere, "no").await;
    // Nothing is installed, which is not what is looked at here.
    let datasets = DATASETS.replace("feed = \"required\"", "");
    let ca = |certificates: &Authority| format!("ca_file = \"{}\"\n", certificates.certificate().display());
    let identity = |own: &Certificate| {
        format!("cert_file = \"{}\"\nkey_file = \"{}\"\n", own.certificate.display(), own.key.display())
    };
    let check = |port: u16, lines: &str, code: i32, parts: &[&str]| {
        let toml = format!("{datasets}\n[redis]\nurl = \"rediss://localhost:{port}/0\"\n{lines}");
        let mut cli = Cli::new(&rig, &toml);
        cli.environment.retain(|(name, _)| !name.ends_with("REDIS__URL"));
        cli.says(&["check"], code, parts);
    };
    let trusted = ca(&authority);
    check(port, &trusted, 0, &["configuration is right"]);
    check(port, "", 78, &["comes from an authority that is not trusted here", "ca_file"]);
    check(port, &ca(&other), 78, &["comes from an authority that is not trusted here", "ca_file ="]);
    check(expired, &trusted, 78, &["the server's certificate has expired"]);
    check(elsewhere, &trusted, 78, &["the server's certificate is for another host"]);
    check(asking, &trusted, 78, &["cert_file"]);
    check(
        asking,
        &format!("{trusted}{}", identity(&stranger)),
        78,
        &["the server breaks off", "cert_file ="],
    );
    check(asking, &format!("{trusted}{}", identity(&client)), 0, &["configuration is right"]);
    check(rig.redis.port(), &trusted, 69, &["no answer in TLS", "is this the port for TLS?"]);
    let plainly = |port: u16| {
        let mut cli = Cli::new(&rig, &datasets);
        cli.environment.iter_mut().find(|(name, _)| name.ends_with("REDIS__URL")).unwrap().1 =
            format!("redis://localhost:{port}/0");
        cli
    };
    for verb in ["check", "status"] {
        plainly(port).says(&[verb], 69, &["where this is a port for TLS, begin the URL with rediss"]);
    }
    let mixed = Certificate { certificate: client.certificate.clone(), key: stranger.key.clone() };
    check(
        asking,
        &format!("{trusted}{}", identity(&mixed)),
        78,
        &["a key that belongs to the certificate", "cert_file ="],
    );

    // The system's authorities, as the system is told to find them.
    let toml = format!("{datasets}\n[redis]\nurl = \"rediss://localhost:{port}/0\"\n");
    let mut cli = Cli::new(&rig, &toml);
    cli.environment.retain(|(name, _)| !name.ends_with("REDIS__URL"));
    cli.environment.push(("SSL_CERT_FILE".to_owned(), authority.certificate().display().to_string()));
    cli.says(&["check"], 0, &["configuration is right"]);
}

/// Sentinels and servers that speak TLS, also among themselves.
#[tokio::test]
async fn sentinels_and_their_master_are_spoken_to_over_tls() {
    let authority = Authority::new().unwrap();
    let own = authority.issue("server", HOSTS).unwrap();
    let files = [
        ("tls-cert-file", own.certificate.display().to_string()),
        ("tls-key-file", own.key.display().to_string()),
        ("tls-ca-cert-file", authority.certificate().display().to_string()),
        ("tls-auth-clients", "no".to_owned()),
        ("tls-replication", "yes".to_owned()),
    ];
    let start = async |port: u16, further: &[&str]| {
        let mut arguments = vec!["--tls-port".to_owned(), port.to_string()];
        for (name, value) in &files {
            arguments.extend([format!("--{name}"), value.clone()]);
        }
        arguments.extend(further.iter().map(ToString::to_string));
        Redis::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap()
    };
    let (first, second) = (free_port().unwrap(), free_port().unwrap());
    let mut master = start(first, &[]).await;
    let _replica = start(second, &["--replicaof", &format!("127.0.0.1 {first}")]).await;
    let lines: Vec<String> = files.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let sentinels = Sentinels::start_with_tls(first, &lines).await.unwrap();
    let nodes: Vec<String> = sentinels.tls_ports().iter().map(|port| format!("localhost:{port}")).collect();

    let rig = Rig::start(TABLES).await;
    let other = Authority::new().unwrap();
    let url = format!("rediss+sentinel://{}/{SERVICE}/0", nodes.join(","));
    let ca = other.certificate();
    let mut cli =
        Cli::new(&rig, &format!("{DATASETS}\n[redis]\nurl = \"{url}\"\nca_file = \"{}\"\n", ca.display()));
    cli.environment.retain(|(name, _)| !name.ends_with("REDIS__URL"));
    let said = ["comes from an authority that is not trusted here", "ca_file =", "name a file with that"];
    let text = cli.says(&["check"], 78, &said);
    assert!(!text.contains("name sentinels that run"), "{text}");
    assert_eq!(text.matches(&nodes[0]).count(), 1, "{text}");
    let mut config = rig.config(DATASETS);
    config.redis.url = Secret::new(url);
    config.redis.tls.ca_file = Some(authority.certificate());
    let worker = Worker::start(config).await.unwrap();
    ready(&worker).await;
    master.kill();
    rig.postgres.execute("update products set price = 4711 where id = 5").await.unwrap();
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    worker.stop().await;
}
