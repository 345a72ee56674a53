//! Read-your-writes tokens: which snapshot a reader must be able to see (R18).

use std::fmt;
use std::str::FromStr;

use super::stamp::Snapshot;

/// A snapshot taken after a commit, and the life of the database that it belongs to. As text: what
/// `select cachekeeper.token()` returns, `<incarnation>/<snapshot>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The life of the database.
    pub incarnation: String,
    /// The snapshot.
    pub snapshot: Snapshot,
}

/// The text is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a token is what `select cachekeeper.token()` returns: an incarnation, a slash, a snapshot")]
pub struct InvalidToken;

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let (incarnation, snapshot) = text.trim().split_once('/').ok_or(InvalidToken)?;
        let snapshot = snapshot.parse().map_err(|_stamp| InvalidToken)?;
        if incarnation.is_empty() {
            return Err(InvalidToken);
        }
        Ok(Self { incarnation: incarnation.to_owned(), snapshot })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.incarnation, self.snapshot.as_str())
    }
}

impl Token {
    /// Whether everything that this token sees is also seen at `snapshot` of `incarnation`. Stamps of one incarnation
    /// stand in the order of their snapshots.
    #[must_use]
    pub fn is_seen_at(&self, incarnation: &str, snapshot: &Snapshot) -> bool {
        self.incarnation == incarnation && self.snapshot.stamp() <= snapshot.stamp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_seen_by_later_snapshots_of_its_own_life_only() {
        let token: Token = "life/100:105:102".parse().unwrap();
        assert_eq!(token.to_string(), "life/100:105:102");
        for (incarnation, snapshot, expected) in [
            ("life", "100:105:102", true),
            ("life", "105:105:", true),
            ("life", "100:105:101,102", false),
            ("life", "100:104:", false),
            ("other", "200:200:", false),
        ] {
            assert_eq!(token.is_seen_at(incarnation, &snapshot.parse().unwrap()), expected, "{snapshot}");
        }
        for garbage in ["", "life", "life/", "/1:1:", "life/1:2", "life/x:y:z"] {
            assert!(garbage.parse::<Token>().is_err(), "{garbage}");
        }
    }
}
