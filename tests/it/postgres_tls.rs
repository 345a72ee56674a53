//! TLS to Postgres: whom it trusts, who it says it is, and what is said where that does not fit.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cachekeeper_config::Secret;
use cachekeeper_engine::context::Context;
use cachekeeper_testkit::certificates::{Authority, Certificate};

use crate::support::{Cli, Rig, wait_until};

const DATASET: &str = "[dataset.p]\nquery = \"select 1 as id\"\nkey = \"p:{id}\"\n";
const URL: &str = "CACHEKEEPER__POSTGRES__URL";

struct TlsRig {
    rig: Rig,
    authority: Authority,
    server: Certificate,
}

impl TlsRig {
    /// `shop` comes by TLS with a certificate of its name, `open` by TLS, and `postgres` as it likes.
    async fn start() -> Self {
        let authority = Authority::new().unwrap();
        let server = authority.issue("server", "DNS:localhost,IP:127.0.0.1").unwrap().for_server().unwrap();
        let rules = authority.certificate().with_file_name("hba");
        let text = "host all,replication postgres 127.0.0.1/32 trust\nhostssl all open 127.0.0.1/32 trust\nhostssl all shop 127.0.0.1/32 cert\n";
        std::fs::write(&rules, text).unwrap();
        let settings = [
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", server.certificate.display()),
            format!("ssl_key_file={}", server.key.display()),
            format!("ssl_ca_file={}", authority.certificate().display()),
            format!("hba_file={}", rules.display()),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let rig = Rig::start_with(
            "create role open login superuser; create role shop login superuser",
            &settings,
            &[],
        )
        .await;
        Self { rig, authority, server }
    }

    fn url(&self, role: &str, host: &str, parameters: &str) -> String {
        format!("postgres://{role}@{host}:{}/postgres?{parameters}", self.rig.postgres.port())
    }

    fn root(&self) -> String {
        format!("sslrootcert={}", self.authority.certificate().display())
    }

    async fn ping(&self, url: &str) -> Result<(), String> {
        let mut config = self.rig.config(DATASET);
        config.postgres.url = Secret::new(url.to_owned());
        Context::new(&config).unwrap().postgres.ping().await.map_err(|error| error.told())
    }

    /// Puts another certificate in the place of the server's.
    async fn replace(&self, certificate: &Certificate) {
        for (from, to) in
            [(&certificate.certificate, &self.server.certificate), (&certificate.key, &self.server.key)]
        {
            std::fs::write(to, std::fs::read(from).unwrap()).unwrap();
        }
        self.rig.postgres.execute("select pg_reload_conf()").await.unwrap();
    }
}

fn parameters(certificate: &Certificate) -> String {
    format!("sslcert={}&sslkey={}", certificate.certificate.display(), certificate.key.display())
}

fn permit(file: &Path, mode: u32) {
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn the_server_and_the_client_prove_who_they_are() {
    let tls = TlsRig::start().await;
    let client = tls.authority.issue("shop", "DNS:shop").unwrap();
    permit(&client.key, 0o600);
    let (root, own) = (tls.root(), parameters(&client));
    for host in ["127.0.0.1", "localhost"] {
        tls.ping(&tls.url("open", host, &format!("sslmode=verify-full&{root}"))).await.unwrap();
        tls.ping(&tls.url("shop", host, &format!("sslmode=verify-full&{root}&{own}"))).await.unwrap();
    }
    // A root that is given is looked at, as libpq does.
    tls.ping(&tls.url("open", "127.0.0.1", &format!("sslmode=require&{root}"))).await.unwrap();
    tls.ping(&tls.url("open", "127.0.0.1", "sslmode=require")).await.unwrap();
    let cli = Cli::new(&tls.rig, DATASET)
        .with(URL, &tls.url("shop", "127.0.0.1", &format!("sslmode=verify-full&{root}&{own}")));
    cli.says(&["check"], 0, &["configuration is right"]);
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_told() {
    let tls = TlsRig::start().await;
    let other = Authority::new().unwrap();
    let client = tls.authority.issue("shop", "DNS:shop").unwrap();
    permit(&client.key, 0o600);
    let (root, own) = (tls.root(), parameters(&client));
    let stranger = parameters(&other.issue("shop", "DNS:shop").unwrap());
    let foreign = format!("sslrootcert={}", other.certificate().display());
    for (role, with, says) in [
        ("open", "sslmode=verify-full".to_owned(), "authority that is not known here"),
        ("open", format!("sslmode=verify-ca&{foreign}"), "not of the authority that is known here"),
        ("open", format!("sslmode=require&{foreign}"), "not of the authority that is known here"),
        (
            "open",
            "sslmode=verify-full&sslrootcert=/nowhere/ca.crt".to_owned(),
            "sslrootcert /nowhere/ca.crt cannot be read",
        ),
        ("shop", format!("sslmode=verify-full&{root}"), "client certificate"),
        ("shop", format!("sslmode=verify-full&{root}&{stranger}"), "client certificate"),
        (
            "shop",
            format!("sslmode=verify-full&{root}&sslcert=/nowhere/c&sslkey=/nowhere/k"),
            "sslcert /nowhere/c cannot be read",
        ),
        ("open", "sslmode=disable".to_owned(), "wants TLS"),
    ] {
        let url = tls.url(role, "127.0.0.1", &with);
        let cli = Cli::new(&tls.rig, DATASET).with(URL, &url);
        for verb in ["check", "status"] {
            let text = cli.says(&[verb], 78, &[says]);
            assert!(!text.contains("a role that may log in"), "{text}");
        }
    }
    permit(&client.key, 0o644);
    let told = tls
        .ping(&tls.url("shop", "127.0.0.1", &format!("sslmode=verify-full&{root}&{own}")))
        .await
        .unwrap_err();
    assert!(told.contains("may be read by others; chmod 06"), "{told}");
    // A server without TLS.
    let plain = Rig::start("").await;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=require", plain.postgres.port());
    Cli::new(&plain, DATASET).with(URL, &url).says(&["check"], 78, &["the server has no TLS"]);
}

/// Waiting for the standby to be promoted would not mend the certificate.
#[tokio::test]
async fn a_bad_certificate_of_the_primary_beside_a_healthy_standby_is_told_at_its_place() {
    let tls = TlsRig::start().await;
    let standby = tls.rig.postgres.standby(None).await.unwrap();
    tls.replace(&tls.authority.issue_expired("server", "IP:127.0.0.1").unwrap()).await;
    let (first, second) = (tls.rig.postgres.port(), standby.port());
    for (one, other) in [(first, second), (second, first)] {
        let root = tls.root();
        let url =
            format!("postgres://open@127.0.0.1:{one},127.0.0.1:{other}/postgres?sslmode=verify-full&{root}");
        let mut cli = Cli::new(&tls.rig, &format!("{DATASET}[postgres]\nurl = \"{url}\"\n"));
        cli.environment.retain(|(name, _)| name != URL);
        let said = [
            &format!("127.0.0.1:{first}: the server's certificate has expired") as &str,
            &format!("127.0.0.1:{second}: this server is a standby"),
        ];
        wait_until("the certificate is served", || async {
            let (code, text) = cli.run(&["check"]);
            if code == 78 && text.contains(said[0]) { Ok(()) } else { Err(format!("{code} {text}")) }
        })
        .await;
        cli.says(&["check"], 78, &[said[0], said[1], ":5:7\n", "url = …", "replaced at the server"]);
        cli.says(&["status"], 78, &said);
    }
}

#[tokio::test]
async fn certificates_are_replaced_without_a_restart() {
    let tls = TlsRig::start().await;
    let url = tls.url("open", "127.0.0.1", &format!("sslmode=verify-full&{}", tls.root()));
    let mut config = tls.rig.config(DATASET);
    config.postgres.url = Secret::new(url);
    let context = Context::new(&config).unwrap();
    context.postgres.ping().await.unwrap();
    let told = |says: &'static str| {
        let context = &context;
        async move {
            wait_until(says, || async {
                let told = context.postgres.ping().await.map_err(|error| error.told());
                match told {
                    Err(told) if told.contains(says) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
    };
    tls.replace(&tls.authority.issue("server", "DNS:elsewhere").unwrap()).await;
    told("for another host").await;
    tls.replace(&tls.authority.issue_expired("server", "IP:127.0.0.1").unwrap()).await;
    told("has expired").await;
    // Another authority, on both sides.
    let next = Authority::new().unwrap();
    tls.replace(&next.issue("server", "IP:127.0.0.1").unwrap()).await;
    told("not of the authority that is known here").await;
    std::fs::copy(next.certificate(), tls.authority.certificate()).unwrap();
    wait_until("the new authority is trusted", || async {
        context.postgres.poll().await.map(drop).map_err(|error| error.told())
    })
    .await;
}
