//! `[redis]`: which settings fit together, and whether the files can be read.

use std::path::PathBuf;

use super::reader::Reader;
use super::url;
use crate::{Redis, Tls, TlsIdentity};

/// How the heading of a key in PEM form ends.
const KEY: &str = "PRIVATE KEY";

pub(super) fn read(reader: &mut Reader<'_>) -> Redis {
    let url = url(reader, "redis");
    let is_right = url.is_ok();
    let redis = Redis {
        url: url.unwrap_or_else(|wrong| wrong),
        password: reader.password_file("redis.password_file"),
        sentinel_username: reader.optional_text("redis.sentinel_username"),
        sentinel_password: reader.password_file("redis.sentinel_password_file"),
        tls: tls(reader),
        connect_timeout: reader.duration("redis.connect_timeout"),
        response_timeout: reader.duration("redis.response_timeout"),
    };
    // What follows from a wrong URL is not said beside it.
    if !is_right {
        return redis;
    }
    let url = redis.url.reveal();
    let without_use = [
        (!url.starts_with("rediss"), ["ca_file", "cert_file", "key_file"].as_slice(), "TLS", "rediss://"),
        (
            !url.contains("+sentinel://"),
            &["sentinel_username", "sentinel_password_file"],
            "sentinels",
            "redis+sentinel://",
        ),
    ];
    for (is_unused, keys, what, scheme) in without_use {
        for path in keys.iter().map(|key| format!("redis.{key}")) {
            if is_unused && reader.has(&path) {
                let help = format!("begin the URL with {scheme}, or remove this");
                reader.error(&path, format!("the URL of Redis asks for no {what}"), &help);
            }
        }
    }
    if redis.sentinel_username.is_some() && redis.sentinel_password.is_none() {
        let help = "add `sentinel_password_file`";
        reader.error("redis.sentinel_username", "a user of the sentinels without a password", help);
    }
    redis
}

fn tls(reader: &mut Reader<'_>) -> Tls {
    let ca_file = pem(reader, "redis.ca_file", "CERTIFICATE");
    let cert_file = pem(reader, "redis.cert_file", "CERTIFICATE");
    let key_file = pem(reader, "redis.key_file", KEY);
    for (one, other) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
        let path = format!("redis.{one}");
        if reader.has(&path) && !reader.has(&format!("redis.{other}")) {
            reader.error(&path, format!("`{one}` without `{other}`"), "give both");
        }
    }
    let identity = cert_file.zip(key_file).map(|(cert_file, key_file)| TlsIdentity { cert_file, key_file });
    Tls { ca_file, identity }
}

/// A file that holds what it should, as far as its headings tell.
fn pem(reader: &mut Reader<'_>, path: &str, what: &str) -> Option<PathBuf> {
    let file = reader.optional_text(path)?;
    let content = reader.file(path)?;
    let content = String::from_utf8_lossy(&content);
    let mut headings = content
        .lines()
        .filter_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----").map(str::to_owned));
    let Some(heading) = headings.find(|heading| heading.ends_with(what)) else {
        let help = format!("give a file in PEM form, with -----BEGIN {what}-----");
        reader.error(path, format!("{file} holds no {}", what.to_lowercase()), &help);
        return None;
    };
    if heading.starts_with("ENCRYPTED") {
        let help = "decrypt it, for example with `openssl pkey`, and let only this user read it";
        reader.error(path, format!("the key in {file} is encrypted"), help);
        return None;
    }
    if what == KEY {
        reader.warn_of_readers(path, &file);
    } else {
        reader.warn_of_certificate(path, &file, path.ends_with("ca_file"));
    }
    Some(file.into())
}
