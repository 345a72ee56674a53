//! What a server says of itself when it is greeted: whether it is a master, and which of its connections this is.
//!
//! `HELLO` without arguments may be sent by every user, changes nothing, and is answered on a connection with subscriptions too. Two
//! servers may number their connections alike, so a connection is given a name of its own where the user may do that.

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value};

use super::error::is_of_login;

/// What the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub is_master: bool,
    /// Whether it is no server of data, but a sentinel.
    pub is_sentinel: bool,
    /// The server's number of this connection.
    client: i64,
    /// What was agreed on this connection: a server that was put behind it since knows nothing of that.
    protocol: i64,
}

impl Hello {
    /// Whether the same server is at the other end, and has been.
    pub(super) fn is_of_same_session(&self, later: &Self) -> bool {
        (self.client, self.protocol) == (later.client, later.protocol)
    }

    fn read(reply: Value) -> Option<Self> {
        let pairs: Vec<(Value, Value)> = match reply {
            Value::Map(pairs) => pairs,
            Value::Array(values) => {
                let mut values = values.into_iter();
                std::iter::from_fn(|| Some((values.next()?, values.next()?))).collect()
            }
            _ => return None,
        };
        let value = |name: &str| {
            let is_it = |key: &Value| redis::from_redis_value_ref::<String>(key).is_ok_and(|key| key == name);
            pairs.iter().find(|(key, _)| is_it(key)).map(|(_, value)| value)
        };
        let number = |name: &str| redis::from_redis_value_ref(value(name)?).ok();
        let text = |name: &str| redis::from_redis_value_ref::<String>(value(name)?).ok();
        let is_sentinel = text("mode").is_some_and(|mode| mode == "sentinel");
        // Sentinels have no role.
        let role = if is_sentinel { String::new() } else { text("role")? };
        let (client, protocol) = (number("id")?, number("proto")?);
        Some(Self { is_master: role == "master", is_sentinel, client, protocol })
    }
}

/// Gives the connection a name that no other one has; none: the user may not.
pub(super) async fn name(connection: &mut MultiplexedConnection) -> RedisResult<Option<String>> {
    let name = format!("cachekeeper-{:016x}", rand::random::<u64>());
    let command = redis::cmd("CLIENT").arg("SETNAME").arg(&name).to_owned();
    let named = told(connection.send_packed_command(&command).await)?;
    Ok(named.map(|_ok| name))
}

/// The name of the connection, as the server knows it; none: it does not tell.
pub(super) async fn name_of(connection: &mut MultiplexedConnection) -> RedisResult<Option<Value>> {
    told(connection.send_packed_command(redis::cmd("CLIENT").arg("GETNAME")).await)
}

/// What the server answers; none: it refuses.
fn told(reply: RedisResult<Value>) -> RedisResult<Option<Value>> {
    let reply = match reply {
        Ok(Value::ServerError(error)) => Err(error.into()),
        reply => reply,
    };
    match reply {
        Ok(reply) => Ok(Some(reply)),
        // A server that wants a password says so to everything.
        Err(error) if !is_of_login(&error) && error.clone().into_server_errors().is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Greets the server; none: it does not tell, as some proxies do not. Then what is written tells whether it is a master.
pub(super) async fn greet(connection: &mut MultiplexedConnection) -> RedisResult<Option<Hello>> {
    Ok(told(connection.send_packed_command(&redis::cmd("HELLO")).await)?.and_then(Hello::read))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_reply_are_read() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let pairs = [
            (text("server"), text("redis")),
            (text("proto"), Value::Int(3)),
            (text("id"), Value::Int(7)),
            (text("role"), text("replica")),
        ];
        let expected = Some(Hello { is_master: false, is_sentinel: false, client: 7, protocol: 3 });
        assert_eq!(Hello::read(Value::Map(pairs.to_vec())), expected);
        let flat = pairs.into_iter().flat_map(|(key, value)| [key, value]).collect();
        assert_eq!(Hello::read(Value::Array(flat)), expected);
        assert_eq!(Hello::read(Value::Okay), None);
        let sentinel = ["mode", "sentinel", "proto", "2", "id", "7"].map(text).to_vec();
        assert!(Hello::read(Value::Array(sentinel)).is_some_and(|hello| hello.is_sentinel));
    }
}
