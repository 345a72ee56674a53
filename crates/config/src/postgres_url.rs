//! A Postgres URL, as libpq reads it: several hosts, socket directories, and parameters of which none is silently ignored.

mod options;
mod parameters;
mod shareable;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::Duration;

use self::parameters::{Fate, judge};
use super::Secret;

/// What is wrong with a URL. It holds nothing of the URL but names that libpq has.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}; {help}")]
pub struct UrlProblem {
    /// At which byte of the URL, if at a certain one.
    pub offset: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
}

impl UrlProblem {
    pub(self) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { offset: None, message: message.into(), help: help.into() }
    }

    pub(self) fn at(self, offset: usize) -> Self {
        Self { offset: Some(offset), ..self }
    }
}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PostgresServer {
    /// A name, an address or a directory of sockets; none: `PGHOST`, or where servers of this machine listen.
    pub host: Option<String>,
    /// Its port; none: `PGPORT`, or 5432.
    pub port: Option<u16>,
}

impl PostgresServer {
    /// Whether it is reached through a socket of this machine.
    #[must_use]
    pub fn is_socket(&self) -> bool {
        self.host.as_ref().is_some_and(|host| host.starts_with('/'))
    }
}

/// Where one connects to, also where the URL leaves that to the environment.
impl std::fmt::Display for PostgresServer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        #[expect(clippy::disallowed_methods, reason = "of libpq's variables, which the driver reads itself")]
        let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        match self.host.clone().or_else(|| given("PGHOST")) {
            Some(host) if host.contains(':') => write!(formatter, "[{host}]")?,
            Some(host) => formatter.write_str(&host)?,
            None => formatter.write_str("localhost")?,
        }
        match self.port {
            Some(port) => write!(formatter, ":{port}"),
            None => write!(formatter, ":{}", given("PGPORT").as_deref().unwrap_or("5432")),
        }
    }
}

/// Which of several servers is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Target {
    /// The primary. Where the URL asks for any server, it is this one too: on a standby nothing can be done.
    #[default]
    Primary,
    /// A primary whose sessions may write unless they say otherwise (`target_session_attrs=read-write`).
    ReadWrite,
}

/// A URL that was read.
#[derive(Clone, Debug)]
pub struct PostgresUrl {
    /// Where servers may be, in the order in which they are tried; at least one.
    pub servers: Vec<PostgresServer>,
    /// Which of them is wanted.
    pub target: Target,
    /// The limit of an attempt, where the URL gives one.
    pub connect_timeout: Option<Duration>,
    /// What the sessions are called, where the URL says so.
    pub application_name: Option<String>,
    /// Settings of the sessions, from `options`.
    pub settings: Vec<(String, String)>,
    /// The files of TLS that are named: which parameter, and where.
    pub files: Vec<(&'static str, String)>,
    user: Option<String>,
    database: Option<String>,
    /// What the driver is told besides, by its own names.
    driver: Vec<(&'static str, Secret)>,
}

/// Parts of a URL before they are put together.
#[derive(Default)]
struct Parts {
    hosts: Vec<String>,
    addresses: Vec<String>,
    ports: Vec<String>,
    values: Vec<(&'static str, String)>,
    settings: Vec<(String, String)>,
}

impl PostgresUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`UrlProblem`]
    pub fn parse(text: &str) -> Result<Self, UrlProblem> {
        let scheme = ["postgres://", "postgresql://"].into_iter().find(|scheme| text.starts_with(scheme));
        let Some((scheme, rest)) = scheme.and_then(|scheme| Some((scheme, text.strip_prefix(scheme)?)))
        else {
            let help = "it begins with postgres:// or postgresql://";
            return Err(UrlProblem::new("this is not a postgres:// URL", help));
        };
        let (before, query) =
            rest.split_once('?').map_or((rest, None), |(before, query)| (before, Some(query)));
        let (authority, path) =
            before.split_once('/').map_or((before, ""), |(authority, path)| (authority, path));
        let mut parts = Parts::default();
        // A password with an `@` in it was always taken, so the last one divides.
        let (user, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(user, hosts)| (Some(user), hosts));
        if let Some(user) = user {
            let (user, password) =
                user.split_once(':').map_or((user, None), |(user, rest)| (user, Some(rest)));
            parts.set("user", decode(user)?);
            if let Some(password) = password {
                parts.set("password", decode(password)?);
            }
        }
        parts.read_hosts(hosts)?;
        parts.set("dbname", decode(path)?);
        let mut offset = scheme.len() + before.len() + 1;
        for pair in query.unwrap_or_default().split('&') {
            if !pair.is_empty() {
                parts.read_parameter(pair, offset)?;
            }
            offset += pair.len() + 1;
        }
        parts.url()
    }

    /// The URL of one of the servers, for the driver.
    #[must_use]
    pub fn driver_url(&self, server: &PostgresServer) -> Secret {
        let before = "postgres:///?";
        let mut pairs = url::form_urlencoded::Serializer::for_suffix(before.to_owned(), before.len());
        let port = server.port.map(|port| port.to_string());
        let fields =
            [("host", &server.host), ("port", &port), ("user", &self.user), ("dbname", &self.database)];
        for (name, value) in fields {
            if let Some(value) = value {
                pairs.append_pair(name, value);
            }
        }
        for (name, value) in &self.driver {
            // libpq does not ask for TLS on sockets either.
            let is_mode = *name == "sslmode" && server.is_socket();
            pairs.append_pair(name, if is_mode { "disable" } else { value.reveal() });
        }
        Secret::new(pairs.finish())
    }

    /// Whether it says who logs in; else it is `PGUSER`, or the system's user.
    #[must_use]
    pub fn has_user(&self) -> bool {
        self.user.is_some()
    }

    #[cfg(feature = "file")]
    pub(crate) fn has_password(&self) -> bool {
        self.driver.iter().any(|(name, _)| *name == "password")
    }

    /// The URL without its password and its parameters, for logs.
    #[must_use]
    pub fn shown(&self) -> String {
        let user = self.user.as_ref().map_or(String::new(), |user| format!("{user}@"));
        let servers: Vec<String> = self.servers.iter().map(ToString::to_string).collect();
        format!("postgres://{user}{}/{}", servers.join(","), self.database.as_deref().unwrap_or_default())
    }
}

fn unreadable() -> UrlProblem {
    UrlProblem::new("this URL cannot be read", "write special characters of user and password as %XX")
}

/// `%XX` as the byte that it stands for. A plus is a plus, as in libpq.
fn decode(text: &str) -> Result<String, UrlProblem> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next(), rest.next()].map(|digit| (digit? as char).to_digit(16));
        let [Some(high), Some(low)] = digits else { return Err(unreadable()) };
        bytes.extend(u8::try_from(high * 16 + low));
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or_else(unreadable)
}

impl Parts {
    fn set(&mut self, name: &'static str, value: String) {
        self.values.retain(|(known, _)| *known != name);
        if !value.is_empty() {
            self.values.push((name, value));
        }
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let place = self.values.iter().position(|(known, _)| *known == name)?;
        Some(self.values.swap_remove(place).1)
    }

    /// `a:5432,[::1]:5433,%2Frun%2Fpostgresql`
    fn read_hosts(&mut self, authority: &str) -> Result<(), UrlProblem> {
        if authority.is_empty() {
            return Ok(());
        }
        for one in authority.split(',') {
            let (host, port) = match one.strip_prefix('[') {
                Some(rest) => {
                    let (host, rest) = rest.split_once(']').ok_or_else(unreadable)?;
                    host.parse::<std::net::Ipv6Addr>().map_err(|_not_repeated| unreadable())?;
                    let port = rest.strip_prefix(':').or_else(|| rest.is_empty().then_some(""));
                    (host, port.ok_or_else(unreadable)?)
                }
                None if one.contains(['[', ']', ' ']) => return Err(unreadable()),
                None => one.split_once(':').unwrap_or((one, "")),
            };
            self.hosts.push(decode(host)?);
            self.ports.push(port.to_owned());
        }
        Ok(())
    }

    fn read_parameter(&mut self, pair: &str, offset: usize) -> Result<(), UrlProblem> {
        let (name, value) = pair.split_once('=').ok_or_else(|| unreadable().at(offset))?;
        let (name, value) = (decode(name)?, decode(value)?);
        let list = |value: &str| value.split(',').map(|one| one.trim().to_owned()).collect::<Vec<_>>();
        match judge(&name, &value, offset)? {
            Fate::Idle => {}
            Fate::Used("host") => self.hosts = list(&value),
            Fate::Used("hostaddr") => self.addresses = list(&value),
            Fate::Used("port") => self.ports = list(&value),
            Fate::Used("ssl") => self.set("sslmode", "require".to_owned()),
            Fate::Used("sslmode") => self.set("sslmode", value.to_lowercase()),
            Fate::Used("options[]") => {
                let setting = name.trim_start_matches("options[").trim_end_matches(']').to_owned();
                self.settings.push((setting, value));
            }
            Fate::Used("options") => {
                let settings = options::settings(&value).ok_or_else(|| {
                    let message = "the options of this URL hold something else than settings";
                    UrlProblem::new(message, "write -c name=value, with a backslash before blanks").at(offset)
                })?;
                self.settings.extend(settings);
            }
            Fate::Used(name) => self.set(name, value),
        }
        Ok(())
    }

    /// The servers, as libpq pairs hosts, addresses and ports.
    fn servers(&self) -> Result<Vec<PostgresServer>, UrlProblem> {
        let hosts = if self.addresses.is_empty() { &self.hosts } else { &self.addresses };
        let count = hosts.len().max(1);
        if !self.addresses.is_empty() && !self.hosts.is_empty() && self.hosts.len() != self.addresses.len() {
            let help = "give each host its address, or none";
            return Err(UrlProblem::new("this URL has not as many addresses (hostaddr) as hosts", help));
        }
        if self.addresses.iter().any(|address| address.parse::<IpAddr>().is_err()) {
            let help = "hostaddr holds IPv4 or IPv6 addresses; names belong into host";
            return Err(UrlProblem::new("a hostaddr of this URL is not an address", help));
        }
        if 1 < self.ports.len() && self.ports.len() != count {
            let help = "give one port for all hosts, or one for each";
            return Err(UrlProblem::new("this URL has not as many ports as hosts", help));
        }
        let port_at = |at: usize| {
            let text = self.ports.get(at).or_else(|| self.ports.first().filter(|_| self.ports.len() == 1));
            let text = text.map(String::as_str).filter(|text| !text.is_empty());
            text.map(|text| text.parse::<u16>().ok().filter(|port| 0 < *port).ok_or_else(unreadable))
                .transpose()
        };
        (0..count)
            .map(|at| {
                let host = hosts.get(at).filter(|host| !host.is_empty()).cloned();
                Ok(PostgresServer { host, port: port_at(at)? })
            })
            .collect()
    }

    fn url(mut self) -> Result<PostgresUrl, UrlProblem> {
        let servers = self.servers()?;
        self.settle_tls()?;
        let files = ["sslrootcert", "sslcert", "sslkey"].map(|name| {
            let value = self.values.iter().find(|(known, _)| *known == name);
            value.map(|(name, file)| (*name, file.clone()))
        });
        let seconds = self.take("connect_timeout").and_then(|text| text.trim().parse().ok());
        let target = self.take("target_session_attrs");
        Ok(PostgresUrl {
            servers,
            target: if target.as_deref() == Some("read-write") { Target::ReadWrite } else { Target::Primary },
            connect_timeout: seconds.map(Duration::from_secs),
            application_name: self.take("application_name"),
            files: files.into_iter().flatten().collect(),
            user: self.take("user"),
            database: self.take("dbname"),
            settings: self.settings,
            driver: self.values.into_iter().map(|(name, value)| (name, Secret::new(value))).collect(),
        })
    }

    /// What libpq concludes from several parameters of TLS, and the driver does not.
    fn settle_tls(&mut self) -> Result<(), UrlProblem> {
        let value =
            |name: &str| self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
        let (mode, root) = (value("sslmode"), value("sslrootcert"));
        if value("sslcert").is_some() != value("sslkey").is_some() {
            let message = "this URL has one of sslcert and sslkey, and a client certificate needs both";
            return Err(UrlProblem::new(message, "give the other one too"));
        }
        if mode.as_deref() == Some("verify-full") && !self.addresses.is_empty() && !self.hosts.is_empty() {
            let message = "hostaddr beside host cannot be used with sslmode=verify-full";
            return Err(UrlProblem::new(
                message,
                "leave hostaddr out: the certificate is compared with where one connects to",
            ));
        }
        match (mode.as_deref(), root.as_deref()) {
            // The system's roots are those that are looked at anyway.
            (None | Some("verify-full"), Some("system")) => {
                self.set("sslrootcert", String::new());
                self.set("sslmode", "verify-full".to_owned());
            }
            (Some(_), Some("system")) => {
                let message = "sslrootcert=system needs sslmode=verify-full";
                return Err(UrlProblem::new(message, "anybody can have a certificate of a public authority"));
            }
            // Whoever gives a root wants it to be looked at.
            (Some("require"), Some(_)) => self.set("sslmode", "verify-ca".to_owned()),
            _ => {}
        }
        Ok(())
    }
}
