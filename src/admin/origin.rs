//! Where a request comes from and which name it was sent to: a page of the web must neither read what this listener says, by a
//! name of its own that leads here (DNS rebinding), nor act through somebody's browser (CSRF).

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};

/// Whether this is a name that no stranger's page can have: an address, `localhost`, or one of the configuration.
pub(super) fn is_own_host(uri: &Uri, headers: &HeaderMap, hosts: &[String]) -> bool {
    let mut named = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else { return false };
    let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    let is_own = |authority: &Authority| is_own_name(authority.host(), hosts);
    // A request to a proxy names the host in its first line, too.
    host.as_ref().is_some_and(is_own) && uri.authority().is_none_or(is_own)
}

fn is_own_name(host: &str, hosts: &[String]) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if bare.parse::<IpAddr>().is_ok() {
        return true;
    }
    let without_dot = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let host = without_dot(host);
    host == "localhost" || hosts.iter().any(|known| without_dot(known) == host)
}

/// Whether a browser sent this for a page of this listener itself. Programs that are no browsers say nothing of it.
pub(super) fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(site) = text("sec-fetch-site") {
        return matches!(site, "same-origin" | "none");
    }
    let Some(origin) = text("origin") else { return true };
    // Not the scheme: where something before this listener speaks TLS, this one does not know.
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    authority.is_some_and(|authority| text("host").is_some_and(|host| host.eq_ignore_ascii_case(authority)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn addresses_localhost_and_configured_names_are_own_hosts() {
        let hosts = ["Worker.internal".to_owned()];
        let is_own = |host: &str| is_own_host(&"/x".parse().unwrap(), &headers(&[("host", host)]), &hosts);
        for right in [
            "127.0.0.1",
            "10.0.0.7:9464",
            "[::1]:9464",
            "[fe80::1]",
            "localhost:1",
            "LocalHost.",
            "worker.internal:80",
        ] {
            assert!(is_own(right), "{right}");
        }
        for wrong in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "worker", "", "a b", "[::1"]
        {
            assert!(!is_own(wrong), "{wrong}");
        }
        let uri: Uri = "http://evil.example/x".parse().unwrap();
        assert!(!is_own_host(&uri, &headers(&[("host", "localhost")]), &hosts));
        let here: Uri = "/x".parse().unwrap();
        assert!(!is_own_host(&here, &headers(&[]), &hosts));
        assert!(!is_own_host(&here, &headers(&[("host", "localhost"), ("host", "evil.example")]), &hosts));
    }

    #[test]
    fn only_pages_of_this_listener_and_programs_are_of_the_same_origin() {
        let host = ("host", "localhost:9464");
        let is_same = |name: &'static str, value: &str| is_same_origin(&headers(&[host, (name, value)]));
        assert!(is_same_origin(&headers(&[host])));
        assert!(is_same("sec-fetch-site", "same-origin") && is_same("sec-fetch-site", "none"));
        assert!(!is_same("sec-fetch-site", "same-site") && !is_same("sec-fetch-site", "cross-site"));
        assert!(is_same("origin", "http://localhost:9464") && is_same("origin", "https://LOCALHOST:9464"));
        for wrong in
            ["null", "http://localhost:80", "http://localhost", "https://evil.example", "localhost:9464"]
        {
            assert!(!is_same("origin", wrong), "{wrong}");
        }
        let both = [host, ("sec-fetch-site", "cross-site"), ("origin", "http://localhost:9464")];
        assert!(!is_same_origin(&headers(&both)));
    }
}
