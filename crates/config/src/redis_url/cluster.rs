//! The addresses of a Redis Cluster: `redis+cluster://user:password@host:port,host:port`.

use std::fmt;

use super::flaw::AddressFlaw;
use super::hosts::{authority, hosts};
use super::parameters;

/// Nodes of a cluster, which know all others.
#[derive(Clone)]
pub struct ClusterNodes {
    /// Host and port of each that the URL names.
    pub nodes: Vec<(String, u16)>,
    /// Whether all nodes are spoken to over TLS.
    pub is_tls: bool,
    /// User and password for every node, as the URL writes them.
    user: String,
}

impl fmt::Debug for ClusterNodes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ClusterNodes").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

const SCHEMES: [(&str, bool); 2] = [("redis+cluster://", false), ("rediss+cluster://", true)];
const PORT: u16 = 6_379;
const FORM: &str = "write redis+cluster://host:port,host:port";

impl ClusterNodes {
    /// None: the URL names no cluster.
    pub(crate) fn parse(url: &str) -> Result<Option<Self>, AddressFlaw> {
        let scheme = SCHEMES.iter().find(|(scheme, _)| url.starts_with(scheme));
        let Some((rest, is_tls)) =
            scheme.and_then(|(scheme, is_tls)| Some((url.strip_prefix(scheme)?, *is_tls)))
        else {
            return Ok(None);
        };
        parameters::check(url)?;
        let before = url.len() - rest.len();
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
        let flaw = |at: usize, message: String, help| AddressFlaw {
            message,
            help,
            offset: user.is_empty().then_some(before + at),
        };
        let nodes = hosts(authority, PORT).map_err(|(position, at)| {
            flaw(at, format!("node {position} of this URL is not a host and a port"), FORM)
        })?;
        if !matches!(path, "" | "0") {
            let help = "end the URL behind the hosts: a cluster has database 0 alone";
            let message = "this URL names a database, which a cluster has not".to_owned();
            return Err(flaw(authority.len() + 1, message, help));
        }
        let found = Self { nodes, is_tls, user: user.to_owned() };
        if url::Url::parse(&found.server("localhost", 1)).is_err() {
            let help = "write special characters of user and password as %XX";
            return Err(flaw(0, "user and password of this URL cannot be read".to_owned(), help));
        }
        Ok(Some(found))
    }

    /// The URL of the server at this address, with the user and the password of this one. It is not to be printed.
    #[must_use]
    pub fn server(&self, host: &str, port: u16) -> String {
        let at = if self.user.is_empty() { "" } else { "@" };
        let scheme = if self.is_tls { "rediss://" } else { "redis://" };
        format!("{scheme}{}{at}{}/0", self.user, authority(host, port))
    }

    #[cfg(feature = "file")]
    pub(crate) fn has_password(&self) -> bool {
        self.user.contains(':')
    }

    /// The URL without user and password, for logs.
    pub(super) fn redacted(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|(host, port)| authority(host, *port)).collect();
        let scheme = if self.is_tls { "rediss+cluster://" } else { "redis+cluster://" };
        format!("{scheme}{}", nodes.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_address_is_read() {
        let found = ClusterNodes::parse("rediss+cluster://us:p%40ss@one:1,two,[::1]:3/").unwrap().unwrap();
        let nodes = [("one", 1), ("two", 6_379), ("::1", 3)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!((found.nodes.as_slice(), found.is_tls), (nodes.as_slice(), true));
        assert_eq!(found.server("::2", 6), "rediss://us:p%40ss@[::2]:6/0");
        assert!(ClusterNodes::parse("redis://one:1/0").unwrap().is_none());
        let other = ClusterNodes::parse("redis+cluster://u:sesame@a,b:2/0").unwrap().unwrap();
        assert_eq!(other.redacted(), "redis+cluster://a:6379,b:2");
        assert!(!format!("{found:?}").contains("p%40ss"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_without_secrets() {
        let flaw = |url: &str| ClusterNodes::parse(url).unwrap_err();
        for (url, at, message) in [
            ("redis+cluster://a:1,b:x", 20, "node 2 of this URL is not a host and a port"),
            ("redis+cluster://", 16, "node 1 of this URL is not a host and a port"),
            ("redis+cluster://a:1/3", 20, "this URL names a database, which a cluster has not"),
            ("redis+cluster://a:1?db=0", 20, "the parameter db of this URL is not supported"),
        ] {
            let found = flaw(url);
            assert_eq!((found.offset, found.message.as_str()), (Some(at), message), "{url}");
        }
        let found = flaw("redis+cluster://u:sesame@a:x");
        assert_eq!(found.offset, None);
        assert!(!found.to_string().contains("sesame"));
    }
}
