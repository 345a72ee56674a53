use super::*;

fn servers(url: &str) -> Vec<String> {
    let url = PostgresUrl::parse(url).unwrap_or_else(|problem| panic!("{url}: {problem}"));
    url.servers.iter().map(ToString::to_string).collect()
}

#[test]
fn hosts_are_read_as_libpq_reads_them() {
    for (url, wanted) in [
        ("postgres://h/d", vec!["h:5432"]),
        ("postgresql://u:p@h:6000/d", vec!["h:6000"]),
        ("postgres://a:5432,b:5433/db?target_session_attrs=read-write", vec!["a:5432", "b:5433"]),
        ("postgres://a,b:5433,c/db", vec!["a:5432", "b:5433", "c:5432"]),
        ("postgres:///db?host=a,b&port=1,2", vec!["a:1", "b:2"]),
        ("postgres:///db?host=a,b&port=7", vec!["a:7", "b:7"]),
        ("postgres://x/db?host=a", vec!["a:5432"]),
        ("postgres://[::1]:5433,[fe80::2]/db", vec!["[::1]:5433", "[fe80::2]:5432"]),
        ("postgres:///db?host=::1", vec!["[::1]:5432"]),
        ("postgres:///db?host=/run/postgresql", vec!["/run/postgresql:5432"]),
        ("postgres://%2Frun%2Fpostgresql/db", vec!["/run/postgresql:5432"]),
        ("postgres://%2Frun%2Fpostgresql:5433,b/db", vec!["/run/postgresql:5433", "b:5432"]),
        ("postgres:///db?hostaddr=10.0.0.1,10.0.0.2&host=a,b", vec!["10.0.0.1:5432", "10.0.0.2:5432"]),
        ("postgres:///db", vec!["localhost:5432"]),
        ("postgres://", vec!["localhost:5432"]),
    ] {
        assert_eq!(servers(url), wanted, "{url}");
    }
}

#[test]
fn the_driver_is_given_one_server_at_a_time() {
    let url =
        "postgres://u%40x:p%26q@a:1,%2Frun/d%20b?sslmode=require&sslrootcert=/ca.pem&application_name=x";
    let url = PostgresUrl::parse(url).unwrap();
    let urls: Vec<String> = url.servers.iter().map(|one| url.driver_url(one).reveal().to_owned()).collect();
    assert_eq!(
        urls,
        [
            "postgres:///?host=a&port=1&user=u%40x&dbname=d+b&sslmode=verify-ca&password=p%26q&sslrootcert=%2Fca.pem",
            "postgres:///?host=%2Frun&user=u%40x&dbname=d+b&sslmode=disable&password=p%26q&sslrootcert=%2Fca.pem",
        ]
    );
    assert_eq!(url.shown(), "postgres://u@x@a:1,/run:5432/d b");
    assert!(!format!("{url:?}").contains("p&q"));
}

#[test]
fn no_parameter_is_silently_ignored() {
    for refused in [
        "channel_binding=require",
        "client_encoding=latin1",
        "gssencmode=require",
        "require_auth=scram-sha-256",
        "requirepeer=postgres",
        "sslcrl=/x",
        "sslcrldir=/x",
        "sslnegotiation=direct",
        "sslpassword=x",
        "sslsni=0",
        "sslcertmode=require",
        "ssl_min_protocol_version=TLSv1.3",
        "ssl_max_protocol_version=TLSv1.2",
        "passfile=/x",
        "service=x",
        "replication=database",
        "keepalives=1",
        "keepalives_idle=1",
        "keepalives_interval=1",
        "keepalives_count=1",
        "tcp_user_timeout=1",
        "load_balance_hosts=random",
        "target_session_attrs=standby",
        "target_session_attrs=prefer-standby",
        "target_session_attrs=read-only",
        "connect_timeout=0",
        "sslmode=allow",
    ] {
        let url = format!("postgres://h/d?application_name=x&{refused}");
        let problem = PostgresUrl::parse(&url).expect_err(refused);
        let name = refused.split_once('=').unwrap().0;
        assert!(problem.message.contains(name), "{refused}: {problem}");
        assert_eq!(problem.offset, Some(url.find(refused).unwrap()), "{refused}");
        assert!(!problem.help.is_empty(), "{refused}");
    }
    for taken in [
        "channel_binding=prefer",
        "gssencmode=disable",
        "gssencmode=prefer",
        "fallback_application_name=x",
        "krbsrvname=postgres",
        "sslcompression=0",
        "sslsni=1",
        "ssl_min_protocol_version=TLSv1.2",
        "load_balance_hosts=disable",
        "target_session_attrs=any",
        "target_session_attrs=primary",
        "client_encoding=UTF8",
        "options=-c%20search_path%3Dshop",
        "options[geqo]=off",
        "connect_timeout=10",
        "ssl=true",
    ] {
        PostgresUrl::parse(&format!("postgres://h/d?{taken}")).expect(taken);
    }
}

#[test]
fn settings_of_sessions_come_from_options() {
    let url = "postgres://h/d?options=-c%20search_path%3Da%5C%20b%20--work-mem%3D1MB%20-cgeqo%3Doff&options[jit]=on";
    let wanted = [("search_path", "a b"), ("work_mem", "1MB"), ("geqo", "off"), ("jit", "on")];
    let wanted = wanted.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(PostgresUrl::parse(url).unwrap().settings, wanted);
    assert!(PostgresUrl::parse("postgres://h/d?options=-B%20100").is_err());
}

#[test]
fn what_is_wrong_is_told_without_the_url() {
    for wrong in [
        "postgres://u:sesame/sesame@h/d",
        "postgres://u:sesame%zz@h/d",
        "postgres://u:ses?ame=x@h/d",
        "postgres://h:sesame/d",
        "postgres://[sesame/d",
        "postgres://a,b/d?port=1,2,3",
        "postgres://a/d?hostaddr=sesame",
        "postgres://a,b/d?hostaddr=10.0.0.1",
        "postgres://a/d?sslcert=/sesame",
        "postgres://a/d?sslrootcert=system&sslmode=require",
        "postgres://a/d?hostaddr=10.0.0.1&sslmode=verify-full",
        "host=a password=sesame",
    ] {
        let problem = PostgresUrl::parse(wrong).expect_err(wrong);
        assert!(!problem.to_string().contains("sesame"), "{wrong}: {problem}");
    }
}
