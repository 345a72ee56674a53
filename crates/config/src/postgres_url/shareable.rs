//! A URL that may be written into a file which others read.

use super::PostgresUrl;

impl PostgresUrl {
    /// The text of a URL without what is secret in it, and whether there was anything. The rest stays as it was written.
    #[must_use]
    pub fn without_password(text: &str) -> (String, bool) {
        let (before, query) =
            text.split_once('?').map_or((text, None), |(before, query)| (before, Some(query)));
        let (scheme, rest) = before.split_once("://").unwrap_or(("", before));
        let (authority, path) =
            rest.split_once('/').map_or((rest, None), |(authority, path)| (authority, Some(path)));
        let (user, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(user, hosts)| (Some(user), hosts));
        let name = user.map(|user| user.split_once(':').map_or(user, |(name, _)| name));
        let mut had_secret = name != user;
        let mut shown = format!("{scheme}://");
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            shown.push_str(&format!("{name}@"));
        }
        shown.push_str(hosts);
        if let Some(path) = path {
            shown.push_str(&format!("/{path}"));
        }
        let pairs: Vec<&str> = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).collect();
        let is_secret = |pair: &&str| {
            let name = pair.split('=').next().unwrap_or_default();
            // A name may be written with %XX, and then it is not looked through.
            name.to_ascii_lowercase().contains("pass") || name.contains('%')
        };
        had_secret |= pairs.iter().any(is_secret);
        let rest: Vec<&str> = pairs.into_iter().filter(|pair| !is_secret(pair)).collect();
        if !rest.is_empty() {
            shown.push_str(&format!("?{}", rest.join("&")));
        }
        (shown, had_secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_go_and_the_rest_stays() {
        for (text, shown, had_secret) in [
            ("postgres://u@h:1/d?sslmode=require", "postgres://u@h:1/d?sslmode=require", false),
            ("postgres://u:p@h/d", "postgres://u@h/d", true),
            ("postgres://u:p@ss@a:1,b:2/d?x=1", "postgres://u@a:1,b:2/d?x=1", true),
            ("postgresql:///d?host=/run&user=u&password=p", "postgresql:///d?host=/run&user=u", true),
            ("postgres://h/d?%70assword=p", "postgres://h/d", true),
            ("postgres://:p@h/d", "postgres://h/d", true),
            ("postgres://h", "postgres://h", false),
        ] {
            assert_eq!(PostgresUrl::without_password(text), (shown.to_owned(), had_secret), "{text}");
        }
    }
}
