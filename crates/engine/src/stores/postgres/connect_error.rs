//! Why no connection was made, as a person reads it, and what to do about it.

use std::io;
use std::time::Duration;

use super::error::{ConnectError, ErrorKind};
use super::pooler::SHARED;

/// How a message begins where no connection was made.
const CONNECTING: &str = "cannot connect to";

impl ConnectError {
    /// What keeps this side from trying.
    pub fn of_settings(place: &str, reason: &str) -> Self {
        Self { kind: ErrorKind::Login, text: format!("{CONNECTING} {place}: {reason}"), may_pass: false }
    }

    pub fn standby(place: &str) -> Self {
        let text =
            format!("{CONNECTING} {place}: this server is a standby; values come from the primary only");
        Self { kind: ErrorKind::Standby, text, may_pass: false }
    }

    pub fn read_only(place: &str) -> Self {
        let reason =
            "its sessions may not write (default_transaction_read_only), and the URL asks for read-write";
        Self {
            kind: ErrorKind::Unavailable,
            text: format!("{CONNECTING} {place}: {reason}"),
            may_pass: false,
        }
    }

    pub fn pooler(place: &str) -> Self {
        Self { kind: ErrorKind::Pooler, text: format!("{CONNECTING} {place}: {SHARED}"), may_pass: false }
    }

    pub fn slow(place: &str, limit: Duration) -> Self {
        let text = format!("{CONNECTING} {place}: no answer within {} ms", limit.as_millis());
        Self { kind: ErrorKind::Unavailable, text, may_pass: false }
    }

    /// What the driver or the server says.
    pub fn of(place: &str, error: &sqlx::Error) -> Self {
        let (kind, reason, may_pass) = match error {
            sqlx::Error::Database(error) => {
                let code = error.code().unwrap_or_default();
                let message = error.message();
                match advice(&code, message) {
                    Some(advice) => (ErrorKind::Login, format!("{message}; {advice}"), false),
                    // It starts, stops or recovers, or has no connection to spare.
                    None if matches!(&*code, "57P03" | "57P01" | "53300") => {
                        (ErrorKind::Unavailable, message.to_owned(), true)
                    }
                    None => (ErrorKind::Unavailable, message.to_owned(), false),
                }
            }
            sqlx::Error::Io(error) => of_io(error),
            sqlx::Error::Tls(error) => (ErrorKind::Login, of_tls(&error.to_string()), false),
            sqlx::Error::Configuration(error) => (ErrorKind::Login, error.to_string(), false),
            other => (ErrorKind::Unavailable, other.to_string(), false),
        };
        Self { kind, text: format!("{CONNECTING} {place}: {reason}"), may_pass }
    }

    /// What all servers together mean: while one of several may become the primary, waiting helps.
    pub fn of_all(mut failures: Vec<Self>) -> Self {
        if failures.len() == 1
            && let Some(only) = failures.pop()
        {
            return only;
        }
        let is_one = |kind: &ErrorKind| failures.iter().all(|failure| failure.kind == *kind);
        let same = failures.first().map(|failure| failure.kind.clone());
        let kind = same.filter(|kind| *kind != ErrorKind::Standby && is_one(kind));
        let reason = |failure: &Self| failure.text.trim_start_matches(CONNECTING).trim_start().to_owned();
        let reasons: Vec<String> = failures.iter().map(reason).collect();
        let may_pass = failures.iter().any(|failure| failure.may_pass || failure.kind == ErrorKind::Standby);
        let text = format!("{CONNECTING} a primary: {}", reasons.join("; "));
        Self { kind: kind.unwrap_or(ErrorKind::Unavailable), text, may_pass }
    }
}

/// What helps where a server, or a pooler, refuses a login; none: it is something else.
fn advice(code: &str, message: &str) -> Option<&'static str> {
    let is_of = |parts: [&str; 2]| parts.iter().any(|part| message.contains(part));
    match code {
        "28P01" => Some("correct the password: in postgres.url, or in the file of postgres.password_file"),
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
        "42501" | "42704" | "22023" | "0LP01" => Some("correct the user or the options in postgres.url"),
        _ => None,
    }
}

fn of_io(error: &io::Error) -> (ErrorKind, String, bool) {
    let text = error.to_string();
    if let Some(inner) = error.get_ref()
        && (text.contains("certificate") || text.contains("fatal alert") || text.contains("TLS"))
    {
        return (ErrorKind::Login, of_tls(&inner.to_string()), false);
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => (ErrorKind::Unavailable, "connection refused".to_owned(), true),
        io::ErrorKind::NotFound => {
            (ErrorKind::Unavailable, "there is no socket of a server".to_owned(), true)
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            (ErrorKind::Unavailable, "the connection was closed in the middle".to_owned(), true)
        }
        _ => (ErrorKind::Unavailable, text, false),
    }
}

/// What rustls says, with what to do.
fn of_tls(text: &str) -> String {
    let told = [
        (
            "UnknownIssuer",
            "the server's certificate is of an authority that is not known here; give it by sslrootcert",
        ),
        (
            "BadSignature",
            "the server's certificate is not of the authority that is known here; give the right one by sslrootcert",
        ),
        ("not valid for name", "the server's certificate is for another host; connect to a name that it has"),
        ("NotValidForName", "the server's certificate is for another host; connect to a name that it has"),
        ("xpired", "the server's certificate has expired; it has to be replaced at the server"),
        ("not valid yet", "the server's certificate is not valid yet; look at both clocks"),
        ("NotValidYet", "the server's certificate is not valid yet; look at both clocks"),
        (
            "CaUsedAsEndEntity",
            "the server's certificate is that of an authority, not of a server; it has to be replaced",
        ),
        ("UnsupportedCertVersion", "the server's certificate is not of version 3; it has to be replaced"),
        ("CertificateRequired", "the server wants a client certificate; give it by sslcert and sslkey"),
        (
            "fatal alert",
            "the server does not accept the client certificate; look at sslcert and sslkey, and at the server's log",
        ),
        ("does not support TLS", "the server has no TLS; set ssl = on there, or write sslmode=disable"),
    ];
    match told.iter().find(|(part, _)| text.contains(part)) {
        Some((_, told)) => format!("{told} ({text})"),
        None => format!("no TLS connection was made: {text}"),
    }
}
