//! The addresses of Redis: their parameters, those that name the nodes of a cluster, and those that name sentinels:
//! `redis+sentinel://user:password@host:port,host:port/service/database`.

mod cluster;
mod flaw;
mod hosts;
mod parameters;

use std::fmt;

pub use self::cluster::ClusterNodes;
pub use self::flaw::AddressFlaw;
use self::hosts::{authority, hosts};

/// Sentinels, and which master they are asked for.
#[derive(Clone)]
pub struct Sentinels {
    /// Host and port of each.
    pub nodes: Vec<(String, u16)>,
    /// The name under which they know the master.
    pub service: String,
    /// Whether sentinels and master are spoken to over TLS.
    pub is_tls: bool,
    /// User and password for the master, as the URL writes them.
    user: String,
    database: u32,
}

impl fmt::Debug for Sentinels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sentinels").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

const SCHEMES: [(&str, bool); 2] = [("redis+sentinel://", false), ("rediss+sentinel://", true)];
const PORT: u16 = 26_379;
const FORM: &str = "write redis+sentinel://host:port,host:port/service/database";

impl Sentinels {
    /// None: the URL names a server, and its parameters are right.
    pub(crate) fn parse(url: &str) -> Result<Option<Self>, AddressFlaw> {
        parameters::check(url)?;
        let scheme = SCHEMES.iter().find(|(scheme, _)| url.starts_with(scheme));
        let Some((rest, is_tls)) =
            scheme.and_then(|(scheme, is_tls)| Some((url.strip_prefix(scheme)?, *is_tls)))
        else {
            return Ok(None);
        };
        let before = url.len() - rest.len();
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
        let flaw = |at: usize, message: String, help| AddressFlaw {
            message,
            help,
            offset: user.is_empty().then_some(before + at),
        };
        let nodes = hosts(authority, PORT).map_err(|(position, at)| {
            flaw(at, format!("sentinel {position} of this URL is not a host and a port"), FORM)
        })?;
        let path = path.strip_suffix('/').unwrap_or(path);
        let (service, database) = path.split_once('/').unwrap_or((path, "0"));
        let at = authority.len() + 1;
        let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
        if service.is_empty() || !service.chars().all(is_plain) {
            let help =
                "behind the hosts write the name under which the sentinels know the master, as /mymaster/0";
            return Err(flaw(at, "this URL names no service".to_owned(), help));
        }
        let Ok(database) = database.parse() else {
            let help = "behind the service write the number of the database, as /mymaster/0";
            let message = "this URL does not end in the number of a database".to_owned();
            return Err(flaw(at + service.len() + 1, message, help));
        };
        let found = Self { nodes, service: service.to_owned(), is_tls, user: user.to_owned(), database };
        if url::Url::parse(&found.server("localhost", 1)).is_err() {
            let help = "write special characters of user and password as %XX";
            return Err(flaw(0, "user and password of this URL cannot be read".to_owned(), help));
        }
        Ok(Some(found))
    }

    /// The URL of a server at this address, with the user, the password and the database of this one. It is not to be printed.
    #[must_use]
    pub fn server(&self, host: &str, port: u16) -> String {
        let at = if self.user.is_empty() { "" } else { "@" };
        format!("{}{}{at}{}/{}", self.scheme(), self.user, authority(host, port), self.database)
    }

    /// The URL of a sentinel, without user and password: those of the master are not its own.
    #[must_use]
    pub fn sentinel(&self, host: &str, port: u16) -> String {
        format!("{}{}", self.scheme(), authority(host, port))
    }

    #[cfg(feature = "file")]
    pub(crate) fn has_password(&self) -> bool {
        self.user.contains(':')
    }

    fn scheme(&self) -> &'static str {
        if self.is_tls { "rediss://" } else { "redis://" }
    }
}

/// The URL without user and password, for logs; none: it names neither sentinels nor a cluster.
pub(crate) fn redacted(url: &str) -> Option<String> {
    if let Some(cluster) = ClusterNodes::parse(url).ok()? {
        return Some(cluster.redacted());
    }
    let sentinels = Sentinels::parse(url).ok()??;
    let nodes: Vec<String> = sentinels.nodes.iter().map(|(host, port)| authority(host, *port)).collect();
    let scheme = SCHEMES.iter().find(|(_, is_tls)| *is_tls == sentinels.is_tls)?.0;
    Some(format!("{scheme}{}/{}/{}", nodes.join(","), sentinels.service, sentinels.database))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Sentinels {
        Sentinels::parse(url).unwrap().unwrap()
    }

    #[test]
    fn every_part_of_the_address_is_read() {
        let found = parse("rediss+sentinel://us:p%40ss@one:1,two,[::1]:3/my.master/7");
        let nodes = [("one", 1), ("two", 26_379), ("::1", 3)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!(found.nodes, nodes);
        assert_eq!((found.service.as_str(), found.is_tls), ("my.master", true));
        assert_eq!(found.server("::2", 6), "rediss://us:p%40ss@[::2]:6/7");
        assert_eq!(found.sentinel("one", 1), "rediss://one:1");
        assert_eq!(parse("redis+sentinel://a/s").server("h", 1), "redis://h:1/0");
        assert!(Sentinels::parse("redis://one:1/0").unwrap().is_none());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_without_secrets() {
        let flaw = |url: &str| Sentinels::parse(url).unwrap_err();
        for (url, at, message) in [
            ("redis+sentinel://a:1,b:x/s/0", 21, "sentinel 2 of this URL is not a host and a port"),
            ("redis+sentinel://a:0/s", 17, "sentinel 1 of this URL is not a host and a port"),
            ("redis+sentinel:///s", 17, "sentinel 1 of this URL is not a host and a port"),
            ("redis+sentinel://a:1", 21, "this URL names no service"),
            ("redis+sentinel://a:1/se rvice/0", 21, "this URL names no service"),
            ("redis+sentinel://a:1/s/x", 23, "this URL does not end in the number of a database"),
        ] {
            let found = flaw(url);
            assert_eq!((found.offset, found.message.as_str()), (Some(at), message), "{url}");
        }
        let found = flaw("redis+sentinel://u:sesame@a:x/s");
        assert_eq!(found.offset, None);
        assert!(!found.to_string().contains("sesame"));
    }

    #[test]
    fn logs_show_the_sentinels_and_no_password() {
        let shown = redacted("redis+sentinel://u:sesame@a,b:2/s");
        assert_eq!(shown.as_deref(), Some("redis+sentinel://a:26379,b:2/s/0"));
        assert!(!format!("{:?}", parse("redis+sentinel://u:sesame@a,b:2/s")).contains("sesame"));
    }
}
