//! The files of TLS, looked at before the driver reads them: it names neither the file nor what is wrong with it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// Says what is wrong with one of the files, of which each comes with its parameter of the URL.
pub(super) async fn check(files: &[(&'static str, String)]) -> Result<(), String> {
    if files.is_empty() {
        return Ok(());
    }
    let files = files.to_vec();
    let checked =
        tokio::task::spawn_blocking(move || files.iter().try_for_each(|(name, file)| check_one(name, file)));
    checked.await.unwrap_or_else(|error| Err(error.to_string()))
}

fn check_one(name: &str, file: &str) -> Result<(), String> {
    let content = fs::read(file).map_err(|error| format!("{name} {file} cannot be read: {error}"))?;
    let wanted = if name == "sslkey" { "PRIVATE KEY-----" } else { "-----BEGIN CERTIFICATE-----" };
    let text = String::from_utf8_lossy(&content);
    if text.contains("ENCRYPTED") {
        return Err(format!(
            "{name} {file} is encrypted; give a key that is not, which only this user may read"
        ));
    }
    if !text.contains(wanted) {
        let kind = if name == "sslkey" { "key" } else { "certificate" };
        return Err(format!("{name} {file} holds no {kind} in PEM form"));
    }
    if name == "sslkey" {
        let about = fs::metadata(file).map_err(|error| format!("{name} {file} cannot be read: {error}"))?;
        // As libpq: a key of root's may be readable by a group.
        let (most, advice) = if about.uid() == 0 { (0o640, "0640") } else { (0o600, "0600") };
        if about.permissions().mode() & 0o777 & !most != 0 {
            return Err(format!("{name} {file} may be read by others; chmod {advice} {file}"));
        }
    }
    Ok(())
}
