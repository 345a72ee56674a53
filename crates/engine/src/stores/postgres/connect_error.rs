//! Why no connection was made, as a person reads it, and what to do about it.

use std::io;
use std::time::Duration;

use super::error::{ConnectError, ErrorKind};
use super::pooler::SHARED;

/// How a message begins where no connection was made.
const CONNECTING: &str = "cannot connect to";

impl ConnectError {
    fn new(kind: ErrorKind, place: &str, reason: &str) -> Self {
        Self { kind, text: format!("{CONNECTING} {place}: {reason}"), help: None, may_pass: false }
    }

    fn with_help(self, help: impl Into<Option<&'static str>>) -> Self {
        Self { help: help.into(), ..self }
    }

    /// What keeps this side from trying.
    pub fn of_settings(place: &str, reason: &str) -> Self {
        Self::new(ErrorKind::Login, place, reason)
    }

    pub fn standby(place: &str) -> Self {
        let reason = "this server is a standby; values come from the primary only";
        Self::new(ErrorKind::Standby, place, reason)
            .with_help("give the address of the primary, or of all servers")
    }

    pub fn read_only(place: &str) -> Self {
        let reason =
            "its sessions may not write (default_transaction_read_only), and the URL asks for read-write";
        Self::new(ErrorKind::Unavailable, place, reason)
    }

    pub fn pooler(place: &str) -> Self {
        Self::new(ErrorKind::Pooler, place, SHARED)
    }

    pub fn slow(place: &str, limit: Duration) -> Self {
        let reason = format!("no answer within {} ms", limit.as_millis());
        Self::new(ErrorKind::Unavailable, place, &reason)
    }

    /// What the driver or the server says.
    pub fn of(place: &str, error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => {
                let code = error.code().unwrap_or_default();
                let message = error.message();
                match advice(&code, message) {
                    Some(advice) => Self::new(ErrorKind::Login, place, message).with_help(advice),
                    // It starts, stops or recovers, or has no connection to spare.
                    None => Self {
                        may_pass: matches!(&*code, "57P03" | "57P01" | "53300"),
                        ..Self::new(ErrorKind::Unavailable, place, message)
                            .with_help((&*code == "53300").then_some(FULL))
                    },
                }
            }
            sqlx::Error::Io(error) => Self::of_io(place, error),
            sqlx::Error::Tls(error) => Self::of_tls(place, &error.to_string()),
            sqlx::Error::Configuration(error) => Self::new(ErrorKind::Login, place, &error.to_string()),
            other => Self::new(ErrorKind::Unavailable, place, &other.to_string()),
        }
    }

    fn of_io(place: &str, error: &io::Error) -> Self {
        let text = error.to_string();
        if let Some(inner) = error.get_ref()
            && (text.contains("certificate") || text.contains("fatal alert") || text.contains("TLS"))
        {
            return Self::of_tls(place, &inner.to_string());
        }
        let (reason, may_pass) = match error.kind() {
            io::ErrorKind::ConnectionRefused => ("connection refused", true),
            io::ErrorKind::NotFound => ("there is no socket of a server", true),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                ("the connection was closed in the middle", true)
            }
            _ => (text.as_str(), false),
        };
        Self { may_pass, ..Self::new(ErrorKind::Unavailable, place, reason) }
    }

    /// What rustls says, with what to do.
    fn of_tls(place: &str, text: &str) -> Self {
        match OF_TLS.iter().find(|(part, ..)| text.contains(part)) {
            Some((_, told, help)) => {
                Self::new(ErrorKind::Login, place, &format!("{told} ({text})")).with_help(*help)
            }
            None => Self::new(ErrorKind::Login, place, &format!("no TLS connection was made: {text}"))
                .with_help("look at the server's log"),
        }
    }

    /// What all servers together mean: while one of several may become the primary, waiting helps. What is wrong with the
    /// configuration for one of them is not mended by that.
    pub fn of_all(mut failures: Vec<Self>) -> Self {
        if failures.len() == 1
            && let Some(only) = failures.pop()
        {
            return only;
        }
        let is_wrong = failures.iter().any(|failure| failure.kind == ErrorKind::Login);
        let reason =
            |failure: &Self| failure.to_string().trim_start_matches(CONNECTING).trim_start().to_owned();
        let reasons: Vec<String> = failures.iter().map(reason).collect();
        let may_pass = failures.iter().any(|failure| failure.may_pass || failure.kind == ErrorKind::Standby);
        let text = format!("{CONNECTING} a primary: {}", reasons.join("; "));
        let kind = if is_wrong { ErrorKind::Login } else { ErrorKind::Unavailable };
        Self { kind, text, help: None, may_pass }
    }
}

impl std::fmt::Display for ConnectError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.text)?;
        self.help.map_or(Ok(()), |help| write!(formatter, "; {help}"))
    }
}

impl std::error::Error for ConnectError {}

const FULL: &str = "raise the limit of the role, of the database, or max_connections of the server; pg_stat_activity says who has connections";

const PASSWORD: &str = "correct the password: in postgres.url, or in the file of postgres.password_file";

/// What helps where a server, or a pooler, refuses a login; none: it is something else.
fn advice(code: &str, message: &str) -> Option<&'static str> {
    let is_of = |parts: [&str; 2]| parts.iter().any(|part| message.contains(part));
    match code {
        "28P01" => Some(PASSWORD),
        "3D000" => Some("create the database, or correct its name in postgres.url"),
        "28000" if is_of(["client certificate", "certificate authentication"]) => {
            Some("give a client certificate that the server knows, by sslcert and sslkey in postgres.url")
        }
        "28000" if message.contains("no encryption") => {
            Some("the server wants TLS: write sslmode=verify-full or require")
        }
        "28000" => Some("create the role and let it log in, or correct the user in postgres.url"),
        // PgBouncer has no codes of its own for these.
        "08P01" | "08004" if is_of(["no such database", "no such user"]) => {
            Some("the pooler does not know it; correct postgres.url or the pooler's configuration")
        }
        "08P01" if message.contains("authentication failed") => Some(PASSWORD),
        "08P01" if message.contains("SSL required") => {
            Some("the pooler wants TLS: write sslmode=verify-full or require")
        }
        "42501" | "42704" | "22023" | "0LP01" => Some("correct the user or the options in postgres.url"),
        _ => None,
    }
}

/// What rustls says, in part; what it means, and what to do.
const OF_TLS: [(&str, &str, &str); 12] = [
    (
        "UnknownIssuer",
        "the server's certificate is of an authority that is not known here",
        "give it by sslrootcert",
    ),
    (
        "BadSignature",
        "the server's certificate is not of the authority that is known here",
        "give the right one by sslrootcert",
    ),
    ("not valid for name", "the server's certificate is for another host", "connect to a name that it has"),
    ("NotValidForName", "the server's certificate is for another host", "connect to a name that it has"),
    ("xpired", "the server's certificate has expired", "it has to be replaced at the server"),
    ("not valid yet", "the server's certificate is not valid yet", "look at both clocks"),
    ("NotValidYet", "the server's certificate is not valid yet", "look at both clocks"),
    (
        "CaUsedAsEndEntity",
        "the server's certificate is that of an authority, not of a server",
        "it has to be replaced",
    ),
    ("UnsupportedCertVersion", "the server's certificate is not of version 3", "it has to be replaced"),
    ("CertificateRequired", "the server wants a client certificate", "give it by sslcert and sslkey"),
    (
        "fatal alert",
        "the server does not accept the client certificate",
        "look at sslcert and sslkey, and at the server's log",
    ),
    ("does not support TLS", "the server has no TLS", "set ssl = on there, or write sslmode=disable"),
];
