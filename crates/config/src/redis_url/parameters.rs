//! The parameters of a Redis URL: a socket takes some, nothing else takes any, and none is silently ignored.

use super::flaw::AddressFlaw;

const BEFORE_HOST: &str = "write user and password before the host, as redis://user:password@host";
const BEHIND_HOST: &str = "write the number of the database behind the host, as redis://host:6379/3";
const BY_TLS: &str = "begin the URL with rediss://, and give `ca_file`, `cert_file` and `key_file` in [redis] where they are needed";
const LIMITS: &str = "set `connect_timeout` and `response_timeout` in [redis]";

/// What sockets take.
const OF_SOCKETS: [&str; 3] = ["db", "user", "pass"];

/// What other clients have parameters for, and where it stands here.
const ELSEWHERE: [(&str, &str); 15] = [
    ("db", BEHIND_HOST),
    ("database", BEHIND_HOST),
    ("user", BEFORE_HOST),
    ("username", BEFORE_HOST),
    ("pass", BEFORE_HOST),
    ("password", BEFORE_HOST),
    ("protocol", "leave it out: which protocol is spoken is chosen for each connection"),
    ("ssl", BY_TLS),
    ("tls", BY_TLS),
    ("ssl_ca_certs", BY_TLS),
    ("ssl_certfile", BY_TLS),
    ("ssl_cert_reqs", "leave it out: certificates are always checked"),
    ("timeout", LIMITS),
    ("socket_timeout", LIMITS),
    ("connect_timeout", LIMITS),
];

/// Judges all parameters of a URL. A name that is not known is repeated only where the URL can hold no password.
pub(super) fn check(url: &str) -> Result<(), AddressFlaw> {
    let without_fragment = url.split_once('#').map_or(url, |(before, _)| before);
    let Some((before, query)) = without_fragment.split_once('?') else { return Ok(()) };
    let is_socket = before.split_once("://").is_some_and(|(scheme, _)| scheme.ends_with("unix"));
    let mut at = before.len() + 1;
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // What stands before it may be a password, and its place would tell how long that is.
        let may_tell = !url.contains('@') && !url.get(..at).is_some_and(|before| before.contains("pass="));
        let flaw = |message: String, help| Err(AddressFlaw { message, help, offset: may_tell.then_some(at) });
        let is_used = name.is_empty() || is_socket && OF_SOCKETS.contains(&name);
        if !is_used {
            let known = ELSEWHERE.iter().find(|(known, _)| *known == name);
            return match (known, is_socket) {
                (Some((name, help)), false) => {
                    flaw(format!("the parameter {name} of this URL is not supported"), help)
                }
                _ => flaw(unknown(name, may_tell), help_with(is_socket)),
            };
        }
        if name == "db" && value.parse::<u32>().is_err() {
            let help = "write it as unix:///run/redis.sock?db=3";
            return flaw("the parameter db of this URL is not the number of a database".to_owned(), help);
        }
        at += pair.len() + 1;
    }
    Ok(())
}

fn unknown(name: &str, may_tell: bool) -> String {
    if may_tell {
        format!("the parameter {name} of this URL is not known")
    } else {
        "this URL has a parameter that is not known".to_owned()
    }
}

fn help_with(is_socket: bool) -> &'static str {
    if is_socket {
        "sockets take db, user and pass, as unix:///run/redis.sock?db=3"
    } else {
        "leave it out: only sockets take parameters; write special characters of user and password as %XX"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_is_used_or_refused() {
        for url in ["redis://h/0", "redis://h/0?", "unix:///s?db=3&user=u&pass=p", "redis+unix:///s?db=0"] {
            assert_eq!(check(url), Ok(()), "{url}");
        }
        for (url, at, message) in [
            ("redis://h/0?db=3", Some(12), "the parameter db of this URL is not supported"),
            ("rediss://u:sesame@h/0?db=3", None, "the parameter db of this URL is not supported"),
            ("redis://h?dbb=3", Some(10), "the parameter dbb of this URL is not known"),
            ("redis://u:p?sesame@h", None, "this URL has a parameter that is not known"),
            (
                "redis+sentinel://h/s/0?protocol=resp3",
                Some(23),
                "the parameter protocol of this URL is not supported",
            ),
            ("unix:///s?pass=sesame&bd=3", None, "this URL has a parameter that is not known"),
            ("unix:///s?db=x", Some(10), "the parameter db of this URL is not the number of a database"),
            ("unix:///s?protocol=resp3", Some(10), "the parameter protocol of this URL is not known"),
        ] {
            let found = check(url).unwrap_err();
            assert_eq!((found.offset, found.message.as_str()), (at, message), "{url}");
        }
    }
}
