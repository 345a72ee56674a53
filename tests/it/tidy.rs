//! The structure of the code, checked: who imports whom, how long files are, where SQL and Redis commands may stand.

use std::path::{Path, PathBuf};

/// From the top down. A module may import what stands below it, and its own kind.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["demo"],
    &["app"],
    &["supervisor"],
    &["actors", "client", "admin"],
    &["flows"],
    &["stores"],
    &["metrics"],
    &["telemetry"],
    &["schedule"],
    &["config"],
    &["domain"],
];

/// Imports sideways or up that are wanted, each with its reason in the code that has it.
const EXCEPTIONS: &[(&str, &str)] = &[("actors", "admin"), ("admin", "actors"), ("client", "actors")];

fn files(directory: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

#[test]
fn the_structure_is_as_drawn() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    files(&root.join("src"), "rs", &mut sources);
    assert!(sources.len() > 50);
    let mut findings = Vec::new();
    let mut all_code = String::new();
    for path in &sources {
        let name = path.strip_prefix(root.join("src")).unwrap();
        let module = name.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned();
        let text = std::fs::read_to_string(path).unwrap();
        all_code.push_str(&text);
        let mut report =
            |line: usize, what: String| findings.push(format!("src/{}:{}: {what}", name.display(), line + 1));
        if 500 < text.lines().count() {
            report(0, format!("{} lines, at most 500", text.lines().count()));
        }
        let mut in_tests = false;
        for (number, line) in text.lines().enumerate() {
            in_tests |= line.contains("#[cfg(test)]");
            let is_comment = line.trim_start().starts_with("//");
            for part in line.split("crate::").skip(1).filter(|_| !is_comment && module != "main") {
                let target: String =
                    part.chars().take_while(|one| one.is_alphanumeric() || *one == '_').collect();
                let (Some(own), Some(other)) = (layer(&module), layer(&target)) else { continue };
                let is_excepted = EXCEPTIONS.contains(&(module.as_str(), target.as_str()));
                if module != target && other <= own && !is_excepted {
                    report(number, format!("{module} imports {target}, which stands above or beside it"));
                }
            }
            if in_tests || is_comment {
                continue;
            }
            let speaks = ["sqlx::query", "redis::cmd(", "redis::pipe(", "AssertSqlSafe("]
                .iter()
                .any(|one| line.contains(one));
            if speaks && !matches!(module.as_str(), "stores" | "demo") {
                report(number, "SQL and Redis commands stand in stores".to_owned());
            }
            if module == "domain"
                && (line.contains("async fn") || line.contains("::now()") || line.contains("tokio"))
            {
                report(number, "domain does not wait and reads no clock".to_owned());
            }
            for level in ["error!(", "warn!(", "info!(", "debug!("] {
                let Some(message) = line.split(level).nth(1).and_then(|rest| rest.split('"').nth(1)) else {
                    continue;
                };
                let begins_upper = message.chars().next().is_some_and(char::is_uppercase);
                if begins_upper || message.ends_with('.') {
                    report(number, format!("log message {message:?}: no capital, no dot"));
                }
            }
        }
    }
    let mut scripts = Vec::new();
    files(&root.join("src"), "lua", &mut scripts);
    for script in scripts {
        let name = script.file_stem().unwrap().to_string_lossy().into_owned();
        if !all_code.contains(&format!("\"{name}\"")) && !all_code.contains(&format!("lua/{name}.lua")) {
            findings.push(format!("{}: no code uses it", script.display()));
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}
