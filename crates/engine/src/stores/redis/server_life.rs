//! Whether it is still the same server: cursors of `SCAN` mean nothing to another one, also where that has lost nothing.

use std::sync::LazyLock;

use super::{CacheError, Redis};

/// Makes this process's mark another than that of each other one.
static PROCESS: LazyLock<u64> = LazyLock::new(rand::random);

/// One life of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerLife {
    /// Its run id.
    Run(String),
    /// Where `INFO` is hidden: the hash of a script of this process that it knows. A server keeps scripts in memory only and sends
    /// them to no replica, so another one does not know it, unless this process has marked that one as well meanwhile. They are as many as
    /// processes of the worker have started since the server did, of some 30 bytes each.
    Mark(String),
}

impl Redis {
    /// The life that the server has now. One process asks for one at a time.
    ///
    /// # Errors
    /// [`CacheError`] where the server neither says who it is nor keeps scripts.
    pub async fn server_life(&self) -> Result<ServerLife, CacheError> {
        if let Some(run_id) = self.facts().await?.run_id {
            return Ok(ServerLife::Run(run_id));
        }
        let text = format!("return '{:016x}'", *PROCESS);
        let load = redis::cmd("SCRIPT").arg("LOAD").arg(text).to_owned();
        Ok(ServerLife::Mark(self.command("mark the server", &load).await?))
    }

    /// Whether it still has this life.
    ///
    /// # Errors
    /// [`CacheError`] where it does not answer.
    pub async fn is_in(&self, life: &ServerLife) -> Result<bool, CacheError> {
        match life {
            ServerLife::Run(run_id) => Ok(self.facts().await?.run_id.as_ref() == Some(run_id)),
            ServerLife::Mark(hash) => {
                let exists = redis::cmd("SCRIPT").arg("EXISTS").arg(hash).to_owned();
                let known: Vec<bool> = self.command("look for the server's mark", &exists).await?;
                Ok(known == [true])
            }
        }
    }
}
