//! Which right was missing, as the server's refusal says.

use redis::RedisError;

/// Why a command is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// The user may not run it.
    Command,
    /// The server does not know it: it is renamed, or left out.
    Unknown,
    /// The user may not touch the key.
    Key,
    /// Nor the channel.
    Channel,
}

impl Denied {
    /// Why this error was a refusal for want of rights; none: it was another one.
    #[must_use]
    pub fn of(error: &RedisError) -> Option<Self> {
        let text = error.to_string().to_lowercase();
        if text.contains("unknown command") || text.contains("unknown subcommand") {
            return Some(Self::Unknown);
        }
        let is_of_rights =
            error.code() == Some("NOPERM") || text.contains("noperm") || text.contains("acl failure");
        if !is_of_rights {
            return None;
        }
        Some(match () {
            () if text.contains("command") && !text.contains("mentioned in the command") => Self::Command,
            () if text.contains("channel") => Self::Channel,
            () => Self::Key,
        })
    }

    /// The missing right, as it is granted.
    #[must_use]
    pub fn told(&self, command: &str, rule: &str) -> String {
        match self {
            Self::Command => format!("the command {command} (+{command})"),
            Self::Unknown => format!("the command {command}, which this server does not know or has renamed"),
            Self::Key => format!("keys {rule}, for {command}"),
            Self::Channel => format!("the channel {rule}, for {command}"),
        }
    }
}
