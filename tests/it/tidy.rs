//! The structure of the code, checked: who imports whom, that no files import each other in a circle, how long files
//! are, where SQL and Redis commands may stand, and which words are not used.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Longest source file, in lines.
const LINES_MAX: usize = 450;

/// A crate, where its sources are, and the layers of its top modules from the top down: a module may import what
/// stands below it, and its own kind. One list holds modules that stand side by side.
struct Package {
    name: &'static str,
    sources: &'static str,
    layers: &'static [&'static [&'static str]],
}

/// From the top down: a crate may name only crates that stand below it.
const PACKAGES: &[Package] = &[
    Package {
        name: "cachekeeper",
        sources: "src",
        layers: &[
            &["main"],
            &["cli"],
            &["demo"],
            &["service"],
            &["app", "check"],
            &["supervisor"],
            &["actors", "admin"],
            &["telemetry", "schedule", "control"],
        ],
    },
    Package { name: "cachekeeper_client", sources: "crates/client/src", layers: &[] },
    Package { name: "cachekeeper_testkit", sources: "crates/testkit/src", layers: &[&["servers"]] },
    Package {
        name: "cachekeeper_engine",
        sources: "crates/engine/src",
        layers: &[&["stores"], &["metrics", "compress"]],
    },
    Package { name: "cachekeeper_config", sources: "crates/config/src", layers: &[] },
    Package { name: "cachekeeper_protocol", sources: "crates/protocol/src", layers: &[] },
];

/// Imports sideways that are wanted.
const EXCEPTIONS: &[(&str, &str)] = &[("actors", "admin"), ("admin", "actors")];

/// One source file.
struct Source {
    package: usize,
    /// Path from the repository's root.
    path: String,
    /// Path of the module within its crate: `change_feed::batch`; the crate's root is empty.
    module: String,
    text: String,
}

impl Source {
    fn top(&self) -> &str {
        self.module.split("::").next().unwrap_or_default()
    }

    /// The lines that are code outside of in-file tests, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let code = self.text.split("#[cfg(test)]").next().unwrap_or_default();
        code.lines()
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .map(|(at, line)| (at + 1, line))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

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

fn sources() -> Vec<Source> {
    let mut all = Vec::new();
    for (package, Package { sources, .. }) in PACKAGES.iter().enumerate() {
        let mut paths = Vec::new();
        files(&root().join(sources), "rs", &mut paths);
        for path in paths {
            let within = path.strip_prefix(root().join(sources)).unwrap().with_extension("");
            let module = within.to_string_lossy().replace('/', "::");
            let module = if matches!(&*module, "lib" | "main") { String::new() } else { module };
            let text = std::fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            all.push(Source { package, path, module, text });
        }
    }
    assert!(all.len() > 100, "the sources were not found");
    all
}

/// Every path that a `use` or an inline path of this text names, braces unfolded. `children` are the modules that the
/// file declares, which it may name without `self`.
fn named_paths(text: &str, children: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut starts: Vec<(usize, &str)> = Vec::new();
    let inner = children.iter().map(|child| format!("{child}::"));
    for head in ["crate::", "super::", "self::", "cachekeeper_"].map(str::to_owned).into_iter().chain(inner) {
        let is_child = children.contains(&head.trim_end_matches(':'));
        for (at, _) in text.match_indices(&head) {
            let before = text[..at].chars().next_back();
            if before.is_none_or(|one| !one.is_alphanumeric() && one != '_' && one != ':') {
                starts.push((at, if is_child { "self::" } else { "" }));
            }
        }
    }
    starts.sort_unstable();
    let mut end = 0;
    for (start, prefix) in starts {
        if start < end {
            continue;
        }
        let (paths, length) = unfold(&text[start..]);
        end = start + length;
        found.extend(paths.into_iter().map(|path| format!("{prefix}{path}")));
    }
    found
}

/// The paths of one `a::b::{c, d::e}`, and how long it is.
fn unfold(text: &str) -> (Vec<String>, usize) {
    let is_path = |one: char| one.is_alphanumeric() || one == '_' || one == ':';
    let stem: String = text.chars().take_while(|one| is_path(*one)).collect();
    let rest = &text[stem.len()..];
    if !stem.ends_with("::") || !rest.starts_with('{') {
        return (vec![stem.clone()], stem.len());
    }
    let mut at = 1;
    let mut paths = Vec::new();
    while at < rest.len() && !rest[at..].starts_with('}') {
        let one = rest[at..].chars().next().unwrap();
        if is_path(one) {
            let (inner, length) = unfold(&rest[at..]);
            paths.extend(inner.into_iter().map(|path| format!("{stem}{path}")));
            at += length.max(1);
        } else {
            at += one.len_utf8();
        }
    }
    (paths, stem.len() + at + 1)
}

/// The modules that a file declares.
fn children(code: &str) -> Vec<&str> {
    code.lines()
        .filter_map(|line| {
            let (before, rest) = line.trim().split_once("mod ")?;
            (before.is_empty() || before.starts_with("pub")).then(|| rest.strip_suffix(';')).flatten()
        })
        .collect()
}

/// The file that a path leads to, and the name that is looked for there.
fn resolve<'a>(all: &[Source], source: &Source, path: &'a str) -> Option<(usize, &'a str)> {
    let (head, rest) = path.split_once("::")?;
    let (package, full) = match head {
        "crate" => (source.package, rest.to_owned()),
        "self" => (source.package, format!("{}::{rest}", source.module)),
        "super" => {
            let mut base = source.module.as_str();
            let mut rest = path;
            while let Some(up) = rest.strip_prefix("super::") {
                base = base.rsplit_once("::").map_or("", |(parent, _)| parent);
                rest = up;
            }
            (source.package, format!("{base}::{rest}"))
        }
        other => (PACKAGES.iter().position(|package| package.name == other)?, rest.to_owned()),
    };
    // The longest part of the path that is a file.
    let full = full.trim_start_matches("::");
    let mut module = full;
    let found = loop {
        let found = all.iter().position(|one| one.package == package && one.module == module);
        match (found, module.rsplit_once("::")) {
            (Some(found), _) => break found,
            (None, Some((parent, _))) => module = parent,
            (None, None) => {
                break all.iter().position(|one| one.package == package && one.module.is_empty())?;
            }
        }
    };
    let left = full[all[found].module.len()..].trim_start_matches("::");
    Some((found, &path[path.len() - left.len()..]))
}

/// What a file publishes of others: names, each with the file that it leads to.
fn published(all: &[Source], source: &Source) -> BTreeMap<String, usize> {
    let code: String = source.code().map(|(_, line)| format!("{line}\n")).collect();
    let children = children(&code);
    let mut found = BTreeMap::new();
    for (at, _) in code.match_indices("use ") {
        let line = code[..at].rsplit('\n').next().unwrap_or_default();
        if !line.trim_start().starts_with("pub") {
            continue;
        }
        let statement = code[at..].split(';').next().unwrap_or_default();
        for path in named_paths(statement, &children) {
            let name = path.rsplit("::").next().unwrap_or_default().to_owned();
            if let Some((target, _)) = resolve(all, source, &path) {
                found.insert(name, target);
            }
        }
    }
    found
}

/// Which files a file imports from. What a file publishes of others is no use of them, and whoever names it there
/// imports from the file that it comes from.
fn imports(all: &[Source]) -> Vec<BTreeSet<usize>> {
    let published: Vec<_> = all.iter().map(|source| published(all, source)).collect();
    let of = |at: usize| -> BTreeSet<usize> {
        let source = &all[at];
        let code: String = source.code().map(|(_, line)| format!("{line}\n")).collect();
        let children = children(&code);
        let mut targets = BTreeSet::new();
        for path in named_paths(&code, &children) {
            let Some((mut target, name)) = resolve(all, source, &path) else { continue };
            let name = name.split("::").next().unwrap_or_default();
            if target == at && published[at].contains_key(name) {
                continue;
            }
            while let Some(next) = published[target].get(name).filter(|next| **next != target) {
                target = *next;
            }
            let is_published_here = published[at].iter().any(|(own, from)| {
                *from == target && path.ends_with(own.as_str()) && is_named_once(&code, own)
            });
            if !is_published_here {
                targets.insert(target);
            }
        }
        targets.into_iter().filter(|target| *target != at && !all[*target].module.is_empty()).collect()
    };
    (0..all.len()).map(of).collect()
}

/// Whether a name occurs nowhere but where it is published.
fn is_named_once(code: &str, name: &str) -> bool {
    code.split(|one: char| !one.is_alphanumeric() && one != '_').filter(|word| *word == name).count() == 1
}

/// Circles of files, each as the files that reach each other.
fn circles(graph: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
    let reach = |start: usize| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(at) = open.pop() {
            for next in &graph[at] {
                if seen.insert(*next) {
                    open.push(*next);
                }
            }
        }
        seen
    };
    let reached: Vec<BTreeSet<usize>> = (0..graph.len()).map(reach).collect();
    let mut found: Vec<Vec<usize>> = Vec::new();
    for at in 0..graph.len() {
        let together: Vec<usize> =
            reached[at].iter().copied().filter(|other| reached[*other].contains(&at)).collect();
        if together.first() == Some(&at) && 1 < together.len() {
            found.push(together);
        }
    }
    found
}

fn layer(package: usize, module: &str) -> Option<usize> {
    PACKAGES[package].layers.iter().position(|layer| layer.contains(&module))
}

#[test]
fn no_files_import_each_other_in_a_circle_and_no_arrow_goes_up() {
    let all = sources();
    let graph = imports(&all);
    let arrows: usize = graph.iter().map(BTreeSet::len).sum();
    assert!(all.len() < arrows, "imports were not read: {arrows}");
    let mut findings: Vec<String> = circles(&graph)
        .into_iter()
        .map(|circle| {
            format!("a circle: {}", circle.iter().map(|at| &*all[*at].path).collect::<Vec<_>>().join(", "))
        })
        .collect();
    for (at, targets) in graph.iter().enumerate() {
        let source = &all[at];
        for target in targets.iter().map(|target| &all[*target]) {
            let is_excepted = EXCEPTIONS.contains(&(source.top(), target.top()));
            let goes_up = if source.package == target.package {
                let layers = (layer(source.package, source.top()), layer(target.package, target.top()));
                source.top() != target.top() && matches!(layers, (Some(own), Some(other)) if other <= own)
            } else {
                target.package < source.package
            };
            if goes_up && !is_excepted {
                findings.push(format!(
                    "{} imports {}, which stands above or beside it",
                    source.path, target.path
                ));
            }
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn files_are_short_and_each_thing_is_in_its_place() {
    let mut findings = Vec::new();
    for source in sources() {
        let mut report = |line: usize, what: String| findings.push(format!("{}:{line}: {what}", source.path));
        let lines = source.text.lines().count();
        if LINES_MAX < lines {
            report(1, format!("{lines} lines, at most {LINES_MAX}"));
        }
        let package = PACKAGES[source.package].name;
        let may_speak =
            source.top() == "stores" || source.top() == "demo" || package == "cachekeeper_testkit";
        for (number, line) in source.code() {
            let speaks = ["sqlx::query", "redis::cmd(", "redis::pipe(", "AssertSqlSafe("]
                .iter()
                .any(|one| line.contains(one));
            if speaks && !may_speak {
                report(number, "SQL and Redis commands stand in the engine's stores".to_owned());
            }
            let waits = ["async fn", "::now()", "tokio"].iter().any(|one| line.contains(one));
            if waits && package == "cachekeeper_protocol" {
                report(number, "the protocol does not wait and reads no clock".to_owned());
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
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn every_script_is_used() {
    let code: String = sources().into_iter().map(|source| source.text).collect();
    let mut scripts = Vec::new();
    files(&root().join("crates/engine/src"), "lua", &mut scripts);
    assert!(10 < scripts.len());
    for script in scripts {
        let name = script.file_stem().unwrap().to_string_lossy().into_owned();
        let is_used = code.contains(&format!("\"{name}\"")) || code.contains(&format!("lua/{name}.lua"));
        assert!(is_used, "{}: no code uses it", script.display());
    }
}

/// Words that the project's texts do not use any more; docs/glossary.md says what is said instead.
const RETIRED: &[&str] = &[
    "owed",
    "owes",
    "debt",
    "debts",
    "obey",
    "obeys",
    "obeyed",
    "looked at again",
    "looking at every entry",
    "followed anew",
    "another life",
    "went back",
    "hurried",
    "relabel",
    "relabelled",
    "wish",
    "landing",
    "boarding",
    "departure",
    "fenced",
    "fences",
    "displaced",
    "the order of things",
];

/// Whether this text has a word or phrase, whatever its case, also as part of a name such as `LoadWish` or `wish_of`.
fn has_word(text: &str, word: &str) -> bool {
    let lower = text.to_lowercase();
    lower.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let first = text[at..].chars().next().unwrap();
        let after = text[at + word.len()..].chars().next();
        let begins =
            before.is_none_or(|one| !one.is_alphanumeric() || (one.is_lowercase() && first.is_uppercase()));
        let ends = after.is_none_or(|one| !one.is_lowercase() && !one.is_numeric());
        begins && ends
    })
}

#[test]
fn no_text_uses_a_retired_word() {
    assert!(
        has_word("a LoadWish", "wish") && has_word("what it owes", "owes") && !has_word("borrowed", "owed")
    );
    let mut paths = Vec::new();
    for (place, endings) in [
        ("src", &["rs"][..]),
        ("crates", &["rs", "lua", "sql", "toml", "md"]),
        ("tests", &["rs", "py", "mjs"]),
        ("benches", &["rs"]),
        ("examples", &["rs"]),
        ("migrations", &["sql"]),
        ("config", &["toml"]),
        ("docs", &["md"]),
        (".github", &["md"]),
    ] {
        for ending in endings {
            files(&root().join(place), ending, &mut paths);
        }
    }
    for name in
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "Makefile", "docker-compose.yml", "Cargo.toml"]
    {
        paths.push(root().join(name));
    }
    let mut findings = Vec::new();
    for path in paths {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        if matches!(&*name, "docs/glossary.md" | "tests/it/tidy.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            for word in RETIRED.iter().filter(|word| has_word(line, word)) {
                findings.push(format!("{name}:{}: {word:?} is retired: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(findings.is_empty(), "{} places\n{}", findings.len(), findings.join("\n"));
}
