//! Where the server programs are, and as whom they run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::ServerError;

const POSTGRES_BIN: &str = "CACHEKEEPER_POSTGRES_BIN";
const REDIS_SERVER: &str = "CACHEKEEPER_REDIS_SERVER";
/// Where Debian and its kin keep what is not on the path.
const POSTGRES_VERSIONS: &str = "/usr/lib/postgresql";
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where to look for programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The directory that holds `postgres` and `initdb`; found if absent.
    pub postgres_bin: Option<PathBuf>,
    /// `redis-server` or `valkey-server`; found if absent.
    pub redis_server: Option<PathBuf>,
    /// Directories to search, separated by colons.
    pub path: String,
}

impl Default for Programs {
    fn default() -> Self {
        Self { postgres_bin: None, redis_server: None, path: USUAL_PATH.to_owned() }
    }
}

impl Programs {
    /// Obeys `CACHEKEEPER_POSTGRES_BIN` (a directory), `CACHEKEEPER_REDIS_SERVER` (a program) and `PATH`.
    #[must_use]
    pub fn from_environment(environment: &BTreeMap<String, String>) -> Self {
        let set = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        Self {
            postgres_bin: set(POSTGRES_BIN).map(PathBuf::from),
            redis_server: set(REDIS_SERVER).map(PathBuf::from),
            path: set("PATH").cloned().unwrap_or_else(|| USUAL_PATH.to_owned()),
        }
    }

    /// The directory of Postgres's programs: as set, else on the path, else the highest version installed.
    pub(super) fn postgres(&self) -> Result<PathBuf, ServerError> {
        let is_whole = |bin: &Path| bin.join("postgres").is_file() && bin.join("initdb").is_file();
        if let Some(bin) = &self.postgres_bin {
            if is_whole(bin) {
                return Ok(bin.clone());
            }
            let path = bin.display().to_string();
            return Err(ServerError::Misplaced {
                variable: POSTGRES_BIN,
                path,
                program: "postgres and initdb",
            });
        }
        if let Some(bin) = self.directories().find(|bin| is_whole(bin)) {
            return Ok(bin);
        }
        let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(POSTGRES_VERSIONS)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
            .filter(|(_, bin)| is_whole(bin))
            .collect();
        versions.sort();
        versions.pop().map(|(_, bin)| bin).ok_or(ServerError::Missing { program: "postgres" })
    }

    /// The Redis program: as set, else `redis-server` or `valkey-server` on the path.
    pub(super) fn redis(&self) -> Result<PathBuf, ServerError> {
        if let Some(program) = &self.redis_server {
            if program.is_file() {
                return Ok(program.clone());
            }
            let path = program.display().to_string();
            return Err(ServerError::Misplaced { variable: REDIS_SERVER, path, program: "server" });
        }
        self.find("redis-server")
            .or_else(|| self.find("valkey-server"))
            .ok_or(ServerError::Missing { program: "redis-server" })
    }

    pub(super) fn setpriv(&self) -> Result<PathBuf, ServerError> {
        self.find("setpriv").ok_or(ServerError::Missing { program: "setpriv (of util-linux)" })
    }

    fn find(&self, program: &str) -> Option<PathBuf> {
        self.directories().map(|directory| directory.join(program)).find(|path| path.is_file())
    }

    fn directories(&self) -> impl Iterator<Item = PathBuf> {
        self.path.split(':').filter(|directory| directory.starts_with('/')).map(PathBuf::from)
    }
}

/// A user of this machine, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl User {
    /// Whom Postgres runs as: root must not, so `postgres` or `nobody` does it then. None: whoever we are.
    pub(super) fn for_postgres() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let found = Self::named(&users, "postgres").or_else(|| Self::named(&users, "nobody"));
        Some(found.unwrap_or(Self { uid: 65534, gid: 65534 }))
    }

    fn named(users: &str, name: &str) -> Option<Self> {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some(Self { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_by_name() {
        let users =
            "root:x:0:0::/root:/bin/sh\npostgresql:x:1:1::/:\npostgres:x:107:115:PostgreSQL:/var:/bin/bash\n";
        assert_eq!(User::named(users, "postgres"), Some(User { uid: 107, gid: 115 }));
        assert_eq!(User::named(users, "nobody"), None);
    }

    #[test]
    fn missing_programs_are_told_with_one_line_to_copy() {
        let programs = Programs { path: "/nowhere".to_owned(), ..Programs::default() };
        let said = programs.redis().unwrap_err().to_string();
        assert_eq!(
            said,
            "redis-server is not installed; as root: apt-get install -y postgresql redis-server"
        );
    }

    #[test]
    fn a_wrong_setting_is_not_passed_over() {
        let environment = [
            (POSTGRES_BIN.to_owned(), "/nowhere/bin".to_owned()),
            (REDIS_SERVER.to_owned(), "/nowhere/redis".to_owned()),
        ];
        let programs = Programs::from_environment(&BTreeMap::from(environment));
        let said = programs.postgres().unwrap_err().to_string();
        assert_eq!(
            said,
            "CACHEKEEPER_POSTGRES_BIN names /nowhere/bin, where there is no postgres and initdb"
        );
        assert!(programs.redis().unwrap_err().to_string().starts_with("CACHEKEEPER_REDIS_SERVER names"));
    }
}
