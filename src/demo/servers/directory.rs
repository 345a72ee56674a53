//! A server's own directory, removed with it.

use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::thread;

use super::programs::User;
use super::{ServerError, system};

/// A new directory under the system's temporary one; removed when dropped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) fn create(kind: &str, owner: Option<User>) -> Result<Self, ServerError> {
        let name = format!("cachekeeper-{kind}-{:016x}", rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        let what = format!("create {}", path.display());
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(system(&what))?;
        let directory = Self { path };
        if let Some(User { uid, gid }) = owner {
            chown(directory.path(), Some(uid), Some(gid)).map_err(system(&what))?;
        }
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Everything the server has said.
    pub(super) fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log()).unwrap_or_default()).into_owned()
    }

    /// The last lines of it.
    pub(super) fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(12)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // A killed server's last write may still put a file there.
        for _ in 0..100 {
            match std::fs::remove_dir_all(&self.path) {
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => thread::yield_now(),
                Ok(()) | Err(_) => return,
            }
        }
    }
}
