//! Why an attempt to connect has failed, in words, where that is certain.

use std::io;

use redis::{ErrorKind, RedisError};

use super::error::is_of_login;
use super::tls;
use super::trouble::Trouble;
use cachekeeper_config::{self as config, Password};

/// What was tried.
pub(super) struct Attempt {
    /// Host and port, or a socket.
    pub address: String,
    pub is_tls: bool,
    /// The database that was chosen.
    pub database: i64,
    pub login: Login,
}

/// Where user and password come from.
#[derive(Debug, Clone)]
pub(super) struct Login {
    setting: &'static str,
    /// How they are called in a sentence.
    which: String,
    help: &'static str,
}

impl Login {
    /// Those of a server.
    pub fn of_server(settings: &config::Redis) -> Self {
        if let Some(password) = &settings.password {
            return Self::by_password(
                password,
                "redis.password_file",
                "correct what this file holds, or the user in redis.url",
            );
        }
        Self {
            setting: "redis.url",
            which: "the user and the password of redis.url".to_owned(),
            help: "give the user and the password in the address, redis://user:password@host, or the password in `password_file`",
        }
    }

    /// Those of the sentinels, which are not the server's.
    pub fn of_sentinels(settings: &config::Redis) -> Self {
        let setting = "redis.sentinel_password_file";
        if let Some(password) = &settings.sentinel_password {
            return Self::by_password(
                password,
                setting,
                "correct what this file holds, or `sentinel_username`",
            );
        }
        Self {
            setting,
            which: "that no password is given".to_owned(),
            help: "give the sentinels' password in `sentinel_password_file`; that of redis.url is the server's",
        }
    }

    fn by_password(password: &Password, setting: &'static str, help: &'static str) -> Self {
        let which = match password {
            Password::InFile(file) => format!("the password in {}", file.display()),
            Password::Given(_) => "the password that is given".to_owned(),
        };
        Self { setting, which, help }
    }

    pub fn refused(&self, address: &str) -> Trouble {
        let text = format!("{address} does not accept {}", self.which);
        Trouble::new(self.setting, text, self.help).of_login()
    }
}

impl Attempt {
    /// What the error means. What is not certain stays as it is.
    pub fn in_words(&self, error: RedisError, tls: &config::Tls) -> RedisError {
        let address = &self.address;
        if Trouble::of(&error).is_some() {
            return error;
        }
        if let Some(trouble) = tls::explain(&error, address) {
            return trouble.into();
        }
        if is_of_login(&error) {
            return self.login.refused(address).into();
        }
        if error.kind() == ErrorKind::InvalidClientConfig {
            let help = "give a key that belongs to the certificate";
            return Trouble::new(tls::setting(tls), error.to_string(), help).into();
        }
        if let Some(trouble) = self.of_database(&error) {
            return trouble.into();
        }
        // Redis waits for more of what it does not understand.
        if self.is_tls && error.is_timeout() {
            let text = format!("no answer in TLS from {address}: is this the port for TLS?");
            return io::Error::new(io::ErrorKind::TimedOut, text).into();
        }
        if self.is_tls || error.is_connection_refusal() {
            return error;
        }
        let reason = match error.kind() {
            ErrorKind::Parse => "says what is not the protocol of Redis".to_owned(),
            _ if error.is_connection_dropped() => {
                format!("ends the connection before it has answered ({error})")
            }
            _ => return error,
        };
        let text = format!("{address} {reason}: where this is a port for TLS, begin the URL with rediss");
        io::Error::new(io::ErrorKind::ConnectionReset, text).into()
    }

    fn of_database(&self, error: &RedisError) -> Option<Trouble> {
        let (address, number) = (&self.address, self.database);
        let text = error.to_string();
        text.contains("refused to switch database").then(|| {
            if text.contains("out of range") {
                let help = "end the URL in the number of a database that is there; `databases` in the server's configuration says how many";
                return Trouble::new("redis.url", format!("{address} has no database {number}"), help);
            }
            let text = format!("{address} does not let this user choose database {number}: {text}");
            Trouble::new("redis.url", text, "`cachekeeper acl --for worker` prints all that the worker's user needs")
        })
    }
}
