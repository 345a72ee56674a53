//! `[admin]`: nobody beyond this machine without a token.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::reader::Reader;
use crate::{Admin, TlsIdentity};

pub(super) fn read(reader: &mut Reader<'_>) -> Admin {
    let file = |reader: &mut Reader<'_>, name: &str| {
        reader.optional_text(&format!("admin.{name}")).map(PathBuf::from)
    };
    let (cert_file, key_file) = (file(reader, "cert_file"), file(reader, "key_file"));
    for (one, other) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
        let path = format!("admin.{one}");
        if reader.has(&path) && !reader.has(&format!("admin.{other}")) {
            reader.error(&path, format!("`{one}` without `{other}`"), "give both");
        }
    }
    let admin = Admin {
        listen: reader.text_unless_empty("admin.listen"),
        hosts: reader.texts("admin.hosts"),
        token_file: file(reader, "token_file"),
        read_token_file: file(reader, "read_token_file"),
        is_read_only: reader.boolean("admin.read_only"),
        hides_values: reader.boolean("admin.hide_values"),
        tls: cert_file.zip(key_file).map(|(cert_file, key_file)| TlsIdentity { cert_file, key_file }),
        max_connections: reader.number("admin.max_connections"),
    };
    for name in ["token_file", "read_token_file", "key_file"].map(|name| format!("admin.{name}")) {
        if let Some(file) = reader.optional_text(&name) {
            reader.warn_of_readers(&name, &file);
        }
    }
    if let Some(file) = reader.optional_text("admin.cert_file") {
        reader.warn_of_certificate("admin.cert_file", &file, false);
    }
    let address = admin.listen.as_deref().and_then(|listen| listen.parse::<SocketAddr>().ok());
    let beyond = address.filter(|address| !address.ip().to_canonical().is_loopback());
    // A wrong file is said already, and was meant.
    let has_token = reader.has("admin.token_file") || reader.has("admin.read_token_file");
    if let Some(address) = beyond
        && !has_token
    {
        let message = format!("whoever reaches {address} could read the state of this worker, and act on it");
        let help = format!(
            "give `token_file` or `read_token_file`, or listen on this machine only: \"127.0.0.1:{}\"",
            address.port()
        );
        reader.error("admin.listen", message, &help);
    }
    admin
}
