//! The keys of `[admin]`.

use crate::forms::Form;
use crate::key::{Key, Kind};

pub(super) const ADMIN: &[Key] = &[
    Key::new(
        "listen",
        Kind::Text(Form::Listen),
        "Address of /livez, /readyz, /metrics and /api/v1; \"\" turns it off. Beyond this machine (0.0.0.0, an address of a network) \
         it needs a token. A busy port is a warning, and retried.",
    )
    .default("127.0.0.1:9464"),
    Key::new(
        "hosts",
        Kind::Texts(Form::HostName),
        "Names by which programs reach it, such as that of a service. Requests for other names are refused, so that no page of the web \
         can read what this listener says; addresses and localhost are always right.",
    )
    .default(""),
    Key::new(
        "token_file",
        Kind::Text(Form::Filled),
        "A file with a token that may read and act, in one line of 16 characters or more. Then everything but /livez and the bare \
         answer of /readyz asks for a token: `Authorization: Bearer …`, or any user with it as the password. It is read again when it \
         changes.",
    )
    .example("\"/run/secrets/admin_token\""),
    Key::new(
        "read_token_file",
        Kind::Text(Form::Filled),
        "A file with another token that may only read, for Prometheus and dashboards.",
    )
    .example("\"/run/secrets/admin_read_token\""),
    Key::new(
        "read_only",
        Kind::Boolean,
        "Refuses every action, whoever asks: nothing but reading goes over this listener.",
    )
    .default("false"),
    Key::new(
        "hide_values",
        Kind::Boolean,
        "Shows no values of entries, rows and write commands, for who may read this worker but not its data. Keys, tags and the reasons \
         that Postgres gives are shown all the same.",
    )
    .default("false"),
    Key::new(
        "cert_file",
        Kind::Text(Form::Filled),
        "For TLS: the listener's certificate, and behind it those that lead to its authority (PEM); it needs `key_file`. Read again \
         when it changes.",
    )
    .example("\"/etc/cachekeeper/admin.pem\""),
    Key::new("key_file", Kind::Text(Form::Filled), "The key of `cert_file` (PEM, not encrypted).")
        .example("\"/etc/cachekeeper/admin.key\""),
    Key::new(
        "max_connections",
        Kind::Integer(32, 100_000),
        "Most connections at a time, at most half of the files that the process may open. Beyond it the one that has been silent for \
         longest is closed for a new one.",
    )
    .default("512"),
];
