//! What becomes of each parameter that libpq knows: nothing is ignored that could be missed.

use super::UrlProblem;

/// What becomes of a parameter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// The connections are made by it, under this name.
    Used(&'static str),
    /// It asks for what is so anyway.
    Idle,
}

/// Parameters that are used, with the names that other drivers have for them.
const USED: [(&str, &str); 22] = [
    ("host", "host"),
    ("hostaddr", "hostaddr"),
    ("port", "port"),
    ("dbname", "dbname"),
    ("user", "user"),
    ("password", "password"),
    ("sslmode", "sslmode"),
    ("ssl-mode", "sslmode"),
    ("sslrootcert", "sslrootcert"),
    ("ssl-root-cert", "sslrootcert"),
    ("ssl-ca", "sslrootcert"),
    ("sslcert", "sslcert"),
    ("ssl-cert", "sslcert"),
    ("sslkey", "sslkey"),
    ("ssl-key", "sslkey"),
    ("application_name", "application_name"),
    ("connect_timeout", "connect_timeout"),
    ("target_session_attrs", "target_session_attrs"),
    ("load_balance_hosts", "load_balance_hosts"),
    ("options", "options"),
    ("statement-cache-capacity", "statement-cache-capacity"),
    ("ssl", "ssl"),
];

/// Parameters of which these values ask for what is so anyway; other values are refused with the advice. No value at all: none
/// is taken.
const FIXED: [(&str, &[&str], &str); 22] = [
    ("channel_binding", &["disable", "prefer"], "the driver has no channel binding; use sslmode=verify-full"),
    ("client_encoding", &["auto", "utf8", "utf-8", "unicode"], "Cachekeeper speaks UTF-8; leave it out"),
    ("gssencmode", &["disable", "prefer"], "the driver has no GSS encryption; use TLS"),
    ("requirepeer", &[""], "the driver does not ask who owns a socket; leave it out"),
    (
        "require_auth",
        &[""],
        "the driver answers whatever way of logging in the server asks for; use sslmode=verify-full",
    ),
    (
        "sslcertmode",
        &["allow"],
        "a client certificate is sent where sslcert is given and the server asks; leave it out",
    ),
    ("sslcrl", &[""], "the driver reads no revocation lists; leave it out, and replace the CA instead"),
    ("sslcrldir", &[""], "the driver reads no revocation lists; leave it out, and replace the CA instead"),
    (
        "sslnegotiation",
        &["postgres"],
        "the driver asks for TLS first, as every server understands; leave it out",
    ),
    ("sslpassword", &[""], "give a key file that is not encrypted, which only this user may read"),
    ("sslsni", &["1"], "the driver always names the host; leave it out"),
    (
        "ssl_min_protocol_version",
        &["tlsv1", "tlsv1.1", "tlsv1.2"],
        "the lowest version is TLS 1.2; demand more at the server",
    ),
    ("ssl_max_protocol_version", &["", "tlsv1.3"], "leave it out, or limit it at the server"),
    ("passfile", &[], "give `password_file` in [postgres], or the variable PGPASSFILE"),
    ("service", &[], "write out in the URL what the service file says"),
    ("servicefile", &[], "write out in the URL what the service file says"),
    ("replication", &["false", "off", "no", "0"], "Cachekeeper runs statements; leave it out"),
    ("keepalives", &[], "leave it out: a silent server is noticed by limits of Cachekeeper's own"),
    ("keepalives_idle", &[], "leave it out: a silent server is noticed by limits of Cachekeeper's own"),
    ("keepalives_interval", &[], "leave it out: a silent server is noticed by limits of Cachekeeper's own"),
    ("keepalives_count", &[], "leave it out: a silent server is noticed by limits of Cachekeeper's own"),
    ("tcp_user_timeout", &[], "leave it out: a silent server is noticed by limits of Cachekeeper's own"),
];

/// Parameters that mean nothing here, whatever they are: a name for who gives none, and what concerns GSS, which is not there,
/// or compression, which libpq itself has no more.
const IDLE: [&str; 5] =
    ["fallback_application_name", "gsslib", "gssdelegation", "krbsrvname", "sslcompression"];

const SSL_MODES: [&str; 5] = ["disable", "prefer", "require", "verify-ca", "verify-full"];

/// Judges a parameter. A name that is not known is not repeated, and no value ever is: a password with a `?` or a `&` in it may
/// have become one of them.
pub(super) fn judge(name: &str, value: &str, offset: usize) -> Result<Fate, UrlProblem> {
    let problem = |message: String, help: &str| Err(UrlProblem::new(message, help).at(offset));
    if let Some((_, values, help)) = FIXED.iter().find(|(known, ..)| *known == name) {
        if values.contains(&&*value.to_lowercase()) {
            return Ok(Fate::Idle);
        }
        let which = if values.is_empty() { "" } else { ", or this value of it" };
        return problem(format!("the parameter {name} of this URL{which} is not supported"), help);
    }
    if IDLE.contains(&name) {
        return Ok(Fate::Idle);
    }
    if name.starts_with("options[") && name.ends_with(']') {
        return Ok(Fate::Used("options[]"));
    }
    let Some((_, name)) = USED.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> =
            USED.iter().filter(|(known, name)| known == name).map(|(known, _)| *known).collect();
        let help =
            format!("known here: {}; write special characters of user and password as %XX", known.join(", "));
        return problem("this URL has a parameter that is not known".to_owned(), &help);
    };
    match *name {
        "sslmode" if value.eq_ignore_ascii_case("allow") => problem(
            "the sslmode `allow` is not supported".to_owned(),
            "write prefer, which takes TLS where the server has it, or disable",
        ),
        "sslmode" if !SSL_MODES.contains(&&*value.to_lowercase()) => problem(
            "the sslmode of this URL is not known".to_owned(),
            &format!("write {}", SSL_MODES.join(", ")),
        ),
        "ssl" if value != "true" => {
            problem("the parameter ssl of this URL can only be true".to_owned(), "write sslmode instead")
        }
        "target_session_attrs" => match value {
            "any" | "read-write" | "primary" => Ok(Fate::Used(name)),
            "read-only" | "standby" | "prefer-standby" => problem(
                "target_session_attrs asks for a standby, and values come from the primary only".to_owned(),
                "write read-write, or leave it out",
            ),
            _ => problem(
                "the target_session_attrs of this URL is not known".to_owned(),
                "write any, read-write or primary",
            ),
        },
        "load_balance_hosts" => match value {
            "disable" => Ok(Fate::Idle),
            _ => problem(
                "the parameter load_balance_hosts of this URL, or this value of it, is not supported"
                    .to_owned(),
                "leave it out: there is one primary, and hosts are tried in their order",
            ),
        },
        "connect_timeout" if !value.trim().parse::<u32>().is_ok_and(|seconds| 0 < seconds) => problem(
            "the connect_timeout of this URL is no number of seconds from 1 on".to_owned(),
            "every attempt needs a limit; or leave it out, and set `connect_timeout` in [postgres]",
        ),
        "statement-cache-capacity" if value.parse::<usize>().is_err() => problem(
            "the statement-cache-capacity of this URL is not a number".to_owned(),
            "for example statement-cache-capacity=100",
        ),
        _ => Ok(Fate::Used(name)),
    }
}
