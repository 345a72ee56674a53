//! The parameters of a Postgres URL.

use super::{Postgres, Secret};

/// Parameters of a URL that the driver uses.
pub(crate) const DRIVER_PARAMETERS: [&str; 12] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
];
/// Those that other clients use; they change nothing here.
#[cfg(feature = "file")]
const OTHER_PARAMETERS: [&str; 21] = [
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "gssencmode",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "passfile",
    "require_auth",
    "service",
    "sslcompression",
    "sslcrl",
    "sslnegotiation",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
];

/// Whether some client knows a parameter of a Postgres URL.
#[cfg(feature = "file")]
pub(crate) fn is_known(name: &str) -> bool {
    is_of_driver(name) || OTHER_PARAMETERS.contains(&name)
}

/// Whether the driver knows a parameter of a Postgres URL. Of what it does not know it logs name and value.
pub(crate) fn is_of_driver(name: &str) -> bool {
    let alias = ["ssl-mode", "ssl-root-cert", "ssl-ca", "ssl-cert", "ssl-key", "options"];
    DRIVER_PARAMETERS.contains(&name) || alias.contains(&name) || name.starts_with("options[")
}

impl Postgres {
    /// The URL with those parameters alone that the driver knows: of others it logs the values.
    #[must_use]
    pub fn driver_url(&self) -> Secret {
        let Ok(mut url) = url::Url::parse(self.url.reveal()) else { return self.url.clone() };
        let kept: Vec<(String, String)> =
            url.query_pairs().into_owned().filter(|(name, _)| is_of_driver(name)).collect();
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(kept);
        }
        Secret::new(url.into())
    }
}
