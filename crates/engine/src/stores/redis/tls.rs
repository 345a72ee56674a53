//! Certificates: read from their files for each connection, and what is wrong with them in words.

use std::path::Path;
use std::sync::Once;

use redis::{ClientTlsConfig, RedisError, TlsCertificates};
use rustls::{AlertDescription, CertificateError};

use super::trouble::{Trouble, innermost};
use cachekeeper_config::Tls;

/// The certificates as they are now; none: those of the system, and no client's.
pub(super) fn certificates(tls: &Tls) -> Result<Option<TlsCertificates>, Trouble> {
    static PROVIDER: Once = Once::new();
    // An application may have chosen another provider, or compiled two, between which rustls does not choose by itself.
    PROVIDER.call_once(|| {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Somebody else was faster: then there is one.
            drop(rustls::crypto::ring::default_provider().install_default());
        }
    });
    let root_cert = tls.ca_file.as_deref().map(|file| read("redis.ca_file", file)).transpose()?;
    let client_tls = match &tls.identity {
        None => None,
        Some(identity) => Some(ClientTlsConfig {
            client_cert: read("redis.cert_file", &identity.cert_file)?,
            client_key: read("redis.key_file", &identity.key_file)?,
        }),
    };
    let is_default = root_cert.is_none() && client_tls.is_none();
    Ok((!is_default).then_some(TlsCertificates { client_tls, root_cert }))
}

/// The setting by which certificates are given.
pub(super) fn setting(tls: &Tls) -> &'static str {
    if tls.identity.is_some() { "redis.cert_file" } else { "redis.ca_file" }
}

fn read(setting: &'static str, file: &Path) -> Result<Vec<u8>, Trouble> {
    std::fs::read(file).map_err(|error| {
        let text = format!("{} cannot be read: {error}", file.display());
        Trouble::new(setting, text, "give a file that this user may read")
    })
}

/// What a failed connection says of certificates; none: it failed for another reason.
pub(super) fn explain(error: &RedisError, address: &str) -> Option<Trouble> {
    let found: &rustls::Error = innermost(error)?;
    let trouble = |setting, text: &str, help| Some(Trouble::new(setting, format!("{address}: {text}"), help));
    match found {
        rustls::Error::InvalidCertificate(problem) => match problem {
            // A signature that does not fit: another authority of the same name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => trouble(
                "redis.ca_file",
                "the server's certificate comes from an authority that is not trusted here",
                "name a file with that authority's certificate in ca_file",
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                trouble("redis.url", "the server's certificate has expired", "renew it, or set the clock")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                trouble("redis.url", "the server's certificate is not valid yet", "set the clock")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => trouble(
                "redis.url",
                "the server's certificate is for another host",
                "give the host by a name of its certificate; sentinels tell names where they have `announce-hostnames yes`",
            ),
            other => {
                trouble("redis.url", &format!("the server's certificate is refused: {other}"), "replace it")
            }
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => trouble(
                "redis.cert_file",
                "the server wants a certificate of its clients",
                "give cert_file and key_file",
            ),
            other => trouble(
                "redis.cert_file",
                &format!("the server breaks off ({other:?})"),
                "give a certificate that the server's authority has signed, in cert_file and key_file",
            ),
        },
        rustls::Error::InvalidMessage(_) => {
            trouble("redis.url", "no TLS is spoken at this port", "give the port for TLS, or write redis://")
        }
        other => trouble("redis.url", &format!("TLS failed: {other}"), "look at the server's log"),
    }
}
