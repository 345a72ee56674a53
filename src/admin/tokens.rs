//! Who asks: the tokens of requests, and what each may.

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use subtle::ConstantTimeEq;

use cachekeeper_config::Secret;

/// What a token may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Read,
    Act,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Act => "act",
        }
    }
}

/// The tokens as their files have them now; none: there is no such file, or it could not be read yet.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Tokens {
    pub act: Option<Secret>,
    pub read: Option<Secret>,
}

impl Tokens {
    /// What this token may. How long the comparison takes tells nothing of where a wrong one differs.
    pub(super) fn role(&self, token: &str) -> Option<Role> {
        let is = |known: &Option<Secret>| {
            known.as_ref().is_some_and(|known| bool::from(known.reveal().as_bytes().ct_eq(token.as_bytes())))
        };
        let (may_act, may_read) = (is(&self.act), is(&self.read));
        match (may_act, may_read) {
            (true, _) => Some(Role::Act),
            (false, true) => Some(Role::Read),
            (false, false) => None,
        }
    }
}

/// What a request shows.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Presented {
    /// The user's name, which nothing is decided by; only browsers and their like give one.
    pub user: Option<String>,
    pub token: String,
}

impl Presented {
    /// From `Authorization: Bearer …`, or `Basic` with the token as the password.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let (scheme, given) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
        let given = given.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Self { user: None, token: given.to_owned() });
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = String::from_utf8(BASE64_STANDARD.decode(given).ok()?).ok()?;
        let (user, token) = decoded.split_once(':')?;
        let user = Some(user.to_owned()).filter(|user| !user.is_empty());
        Some(Self { user, token: token.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presented(value: &str) -> Option<Presented> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        Presented::of(&headers)
    }

    #[test]
    fn a_token_comes_as_bearer_or_as_the_password_of_anybody() {
        let of = |user: Option<&str>, token: &str| {
            Some(Presented { user: user.map(str::to_owned), token: token.to_owned() })
        };
        assert_eq!(presented("Bearer abc"), of(None, "abc"));
        assert_eq!(presented("bearer  abc "), of(None, "abc"));
        assert_eq!(presented("Basic YW5uYTphOmI="), of(Some("anna"), "a:b"));
        assert_eq!(presented("basic OmFiYw=="), of(None, "abc"));
        for wrong in ["abc", "Basic ***", "Basic YWJj", "Digest abc", "Bearer"] {
            assert_eq!(presented(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn each_token_has_its_role_and_nothing_else_has_one() {
        let secret = |text: &str| Some(Secret::new(text.to_owned()));
        let tokens = Tokens { act: secret("one"), read: secret("other") };
        assert_eq!(tokens.role("one"), Some(Role::Act));
        assert_eq!(tokens.role("other"), Some(Role::Read));
        for wrong in ["", "on", "onee", "One"] {
            assert_eq!(tokens.role(wrong), None);
        }
        assert_eq!(Tokens::default().role(""), None);
    }
}
