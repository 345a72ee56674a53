//! Why no connection can be had, where that is more than a server that does not answer.

use redis::RedisError;

/// What is wrong, and where a user mends it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Trouble {
    /// What is wrong, in one sentence.
    pub text: String,
    /// The setting that it concerns, such as `redis.ca_file`.
    pub setting: &'static str,
    /// What to do.
    pub help: &'static str,
    /// What kind of trouble it is.
    pub kind: TroubleKind,
}

/// What kind of trouble it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleKind {
    /// The configuration, here or at the server: waiting alone does not help.
    Configuration,
    /// The user or the password.
    Login,
    /// No server, or another one than a moment ago: waiting helps.
    Server,
}

impl Trouble {
    /// A matter of the configuration.
    pub(super) fn new(setting: &'static str, text: impl Into<String>, help: &'static str) -> Self {
        Self { text: text.into(), setting, help, kind: TroubleKind::Configuration }
    }

    pub(super) fn of_login(self) -> Self {
        Self { kind: TroubleKind::Login, ..self }
    }

    pub(super) fn of_server(self) -> Self {
        Self { kind: TroubleKind::Server, ..self }
    }

    /// Whether waiting alone does not help.
    #[must_use]
    pub fn is_of_configuration(&self) -> bool {
        match self.kind {
            TroubleKind::Configuration | TroubleKind::Login => true,
            TroubleKind::Server => false,
        }
    }

    /// What it keeps one from.
    #[must_use]
    pub fn told(&self) -> String {
        format!("cannot connect to Redis: {self}")
    }

    /// What stands behind an error of the driver.
    pub(super) fn of(error: &RedisError) -> Option<&Self> {
        innermost(error)
    }
}

/// The error of this type that the driver carries within one of the operating system.
pub(super) fn innermost<E: std::error::Error + 'static>(error: &RedisError) -> Option<&E> {
    let source = std::error::Error::source(error)?;
    // The driver holds errors behind a pointer of its own, which is not the error that it points to.
    let held = source.downcast_ref::<std::sync::Arc<dyn std::error::Error + Send + Sync>>();
    let source = held.map_or(source, |held| held.as_ref() as &(dyn std::error::Error + 'static));
    source.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref()
}

impl From<Trouble> for RedisError {
    fn from(trouble: Trouble) -> Self {
        std::io::Error::new(std::io::ErrorKind::NotConnected, trouble).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_found_behind_an_error_of_the_driver() {
        let trouble = Trouble::new("redis.url", "it is a replica", "give its master");
        let error = RedisError::from(trouble.clone());
        assert_eq!(Trouble::of(&error), Some(&trouble));
        assert_eq!(error.to_string(), trouble.text);
        assert_eq!(Trouble::of(&std::io::Error::other("else").into()), None);
    }
}
