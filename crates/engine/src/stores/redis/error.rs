//! What a failed command means: whether it was applied, and what to do.

use redis::{ErrorKind, RedisError};

use super::Denied;
use super::trouble::{Trouble, TroubleKind};
use cachekeeper_config::AddressFlaw;

/// A command or script that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("redis: failed to {what}: {refusal}")]
pub struct CacheError {
    /// What was attempted.
    pub what: &'static str,
    /// What the failure means.
    pub refusal: Refusal,
    /// The driver's error.
    #[source]
    pub source: RedisError,
}

/// What a failure means. All but [`Refusal::Unknown`] mean *not applied*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No reply: the command may or may not have been applied.
    Unknown,
    /// Memory is full (OOM).
    Full,
    /// The server takes no writes now: a replica, a failed snapshot, loading, a cluster that is down.
    NotWritable,
    /// A key is at another node of the cluster, or is moving.
    Elsewhere,
    /// Wrong user, password or rights.
    Forbidden,
    /// The key holds another type.
    WrongType,
    /// Anything else; a bug, or a server that is not Redis.
    Other,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Unknown => "no reply, so it is not known whether it was applied",
            Self::Full => "memory is full; raise maxmemory, or set an eviction policy",
            Self::NotWritable => "the server takes no writes at the moment",
            Self::Elsewhere => "a key is at another node of the cluster",
            Self::Forbidden => "the user, the password or the user's rights are wrong",
            Self::WrongType => "a key holds another type than it must have; delete it",
            Self::Other => "the server refused it",
        })
    }
}

impl CacheError {
    pub(super) fn new(what: &'static str, source: RedisError) -> Self {
        Self { what, refusal: refusal(&source), source }
    }

    /// An address of the configuration that cannot be used.
    pub(super) fn of_address(flaw: &AddressFlaw) -> Self {
        Self::new("read the URL", Trouble::new("redis.url", flaw.message.clone(), flaw.help).into())
    }

    /// A reply that does not have the agreed form.
    pub(super) fn unexpected(what: &'static str, reply: &str) -> Self {
        let detail = reply.chars().take(200).collect::<String>();
        let source = RedisError::from((ErrorKind::UnexpectedReturnType, "unexpected reply", detail));
        Self { what, refusal: Refusal::Other, source }
    }

    /// A failure on purpose, for tests of what applications do then: the reply is lost.
    #[must_use]
    pub fn injected(what: &'static str) -> Self {
        Self::new(what, std::io::Error::new(std::io::ErrorKind::TimedOut, "a fault on purpose").into())
    }

    /// Commands go to another server now.
    pub(super) fn moved(what: &'static str) -> Self {
        let kind = std::io::ErrorKind::ConnectionReset;
        Self::new(what, std::io::Error::new(kind, "commands go to another server now").into())
    }

    /// No answer within a limit.
    #[must_use]
    pub fn timed_out(what: &'static str) -> Self {
        Self::new(what, std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer").into())
    }

    /// The whole in one sentence, for people: what was attempted, and why it failed or what to do.
    #[must_use]
    pub fn told(&self) -> String {
        let (what, source) = (self.what, &self.source);
        if let Some(trouble) = self.trouble() {
            return format!("{}; {}", trouble.told(), trouble.help);
        }
        match self.refusal {
            Refusal::Unknown if source.is_connection_refusal() => {
                "cannot connect to Redis: connection refused".to_owned()
            }
            Refusal::Unknown => format!("failed to {what}: no reply from Redis ({source})"),
            Refusal::Full | Refusal::NotWritable | Refusal::Elsewhere | Refusal::WrongType => {
                format!("failed to {what}: {}", self.refusal)
            }
            Refusal::Forbidden => format!("Redis: {} ({source})", self.refusal),
            Refusal::Other => format!("failed to {what}: {source}"),
        }
    }

    /// Why no connection can be had, where that is more than a server that does not answer.
    #[must_use]
    pub fn trouble(&self) -> Option<&Trouble> {
        Trouble::of(&self.source)
    }

    /// Whether it is a matter of the configuration, here or at the server: waiting alone does not help.
    #[must_use]
    pub fn is_of_configuration(&self) -> bool {
        match self.trouble() {
            Some(trouble) => trouble.is_of_configuration(),
            None => self.refusal == Refusal::Forbidden,
        }
    }

    /// Whether the user or the password was not accepted, or one is needed.
    #[must_use]
    pub fn is_of_login(&self) -> bool {
        self.trouble().map_or_else(|| is_of_login(&self.source), |trouble| trouble.kind == TroubleKind::Login)
    }

    /// Whether the command itself is not to be had: the user may not run it, or the server has renamed it or does not know it.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        matches!(Denied::of(&self.source), Some(Denied::Command | Denied::Unknown))
    }

    /// Whether Redis was not reached, or broke off.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.refusal == Refusal::Unknown
    }
}

impl Refusal {
    /// A label for metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unknown => "no_reply",
            Self::Full => "full",
            Self::NotWritable => "not_writable",
            Self::Elsewhere => "elsewhere",
            Self::Forbidden => "forbidden",
            Self::WrongType => "wrong_type",
            Self::Other => "other",
        }
    }
}

/// Whether a server refused this because it is a replica.
pub(super) fn is_of_replica(error: &RedisError) -> bool {
    let errors = error.clone().into_server_errors();
    errors.iter().flat_map(|errors| errors.iter()).any(|(_, error)| {
        matches!(error.code(), "READONLY" | "MASTERDOWN")
            || error.details().is_some_and(|detail| detail.contains("READONLY"))
    })
}

/// Whether a server has not accepted the user or the password, or wants one.
pub(super) fn is_of_login(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
}

fn refusal(error: &RedisError) -> Refusal {
    if Trouble::of(error).is_some_and(|trouble| trouble.kind == TroubleKind::Login) {
        return Refusal::Forbidden;
    }
    if error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
    {
        return Refusal::Unknown;
    }
    if error.kind() == ErrorKind::AuthenticationFailed {
        return Refusal::Forbidden;
    }
    // A pipeline fails for what its commands answered, a transaction for what was not queued: the first of them tells.
    let errors = error.clone().into_server_errors();
    let own = errors.iter().flat_map(|errors| errors.iter()).find(|(_, error)| error.code() != "EXECABORT");
    own.map_or(Refusal::Other, |(_, error)| meaning(error.code(), error.details().unwrap_or_default()))
}

fn meaning(code: &str, detail: &str) -> Refusal {
    match code {
        "OOM" => Refusal::Full,
        "MISCONF" | "NOREPLICAS" | "READONLY" | "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN"
        | "TRYAGAIN" => Refusal::NotWritable,
        "MOVED" | "ASK" => Refusal::Elsewhere,
        "NOAUTH" | "WRONGPASS" | "NOPERM" => Refusal::Forbidden,
        "WRONGTYPE" => Refusal::WrongType,
        // Some servers put the code of an error inside a script behind ERR.
        _ if detail.contains("OOM command not allowed") => Refusal::Full,
        _ if ["READONLY", "MISCONF", "NOREPLICAS"].iter().any(|code| detail.contains(code)) => {
            Refusal::NotWritable
        }
        _ if detail.contains("WRONGTYPE") => Refusal::WrongType,
        _ => Refusal::Other,
    }
}
