//! Every metric that is registered is also changed somewhere.

use std::path::{Path, PathBuf};

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The field of `"name", "help", metrics.field;`, as the tables of `metrics.rs` have it.
fn registered(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim).filter(|line| line.starts_with('"') && line.ends_with(';'));
    let field = |line: &str| line.trim_end_matches(';').rsplit('.').next().map(str::to_owned);
    lines.filter_map(field).collect()
}

#[test]
fn every_registered_metric_is_counted_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    sources(&root.join("src"), &mut paths);
    sources(&root.join("crates"), &mut paths);
    let is_table = |path: &Path| {
        let name = path.to_string_lossy().replace('\\', "/");
        name.ends_with("/metrics.rs") || name.ends_with("/metrics/client.rs")
    };
    let (mut fields, mut code) = (Vec::new(), String::new());
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        if is_table(&path) {
            fields.extend(registered(&text));
        } else {
            code.push_str(&text);
        }
    }
    assert!(40 < fields.len(), "{fields:?}");
    // Chains of calls are broken over lines.
    let code: String = code.split_whitespace().collect();
    let never = fields.iter().filter(|field| {
        let uses = |ending: &str| code.contains(&format!(".{field}{ending}"));
        ![".inc", ".set(", ".observe(", ".get_or_create("].into_iter().any(uses)
            && !code.contains(&format!("&context.metrics.{field}"))
            && !code.contains(&format!("&self.context.metrics.{field}"))
    });
    assert_eq!(never.collect::<Vec<_>>(), Vec::<&String>::new(), "registered, and never counted");
}
