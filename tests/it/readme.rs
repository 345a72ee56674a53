//! The commands of the README and of `docs/getting-started.md` are run as a reader runs them, and what they print is compared.
//!
//! A block whose first line is `# NAME` is the file NAME. In a `console` block a line that begins with `$ ` is a command, and the
//! lines below it are what it prints on standard output, with `…` for whatever varies. A command that ends with `&` goes on
//! until `kill %N`, or until the page ends. Addresses are replaced by those of the test's own servers.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cachekeeper_testkit::servers::{Postgres, free_port};

use crate::client_programs::install;
use crate::support::{Rig, wait_until};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Commands that change nothing: they are run until they print what the page shows.
const LOOKS: [&str; 6] = [
    "redis-cli ",
    "curl ",
    "cachekeeper healthcheck ",
    "cachekeeper explain ",
    "cachekeeper audit",
    "cachekeeper status",
];

#[tokio::test]
async fn the_readme_is_followed_word_by_word() {
    let followed = follow("README.md").await;
    assert!(10 < followed, "{followed} commands were found");
}

#[tokio::test]
async fn getting_started_is_followed_word_by_word() {
    let followed = follow("docs/getting-started.md").await;
    assert!(25 < followed, "{followed} commands were found");
}

/// A reader's machine: a folder of its own, programs that reach the test's servers, and what runs in the background.
struct Reader {
    folder: PathBuf,
    postgres: u16,
    admin: u16,
    jobs: Vec<Option<Child>>,
}

impl Reader {
    fn new(rig: &Rig, admin: u16) -> Self {
        let folder = std::env::temp_dir().join(format!("cachekeeper-readme-{:016x}", rand::random::<u64>()));
        let programs = folder.join("bin");
        std::fs::create_dir_all(&programs).unwrap();
        symlink(env!("CARGO_BIN_EXE_cachekeeper"), programs.join("cachekeeper")).unwrap();
        for name in ["psql", "createdb", "dropdb"] {
            symlink(Postgres::program(name).unwrap(), programs.join(name)).unwrap();
        }
        let python = format!("exec {ROOT}/target/readers/python/bin/python");
        // The real one, behind this folder.
        let redis = format!("PATH=${{PATH#*:}}\nexec redis-cli -p {}", rig.redis.port());
        for (name, lines) in [("python3", python), ("redis-cli", redis)] {
            let script = programs.join(name);
            std::fs::write(&script, format!("#!/bin/sh\n{lines} \"$@\"\n")).unwrap();
            std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { folder, postgres: rig.postgres.port(), admin, jobs: Vec::new() }
    }

    fn shell(&self, line: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(line).current_dir(&self.folder).stdin(Stdio::null());
        let path = std::env::var("PATH").unwrap();
        shell.env("PATH", format!("{}:{path}", self.folder.join("bin").display()));
        shell.env("PGHOST", "127.0.0.1").env("PGPORT", self.postgres.to_string()).env("PGUSER", "postgres");
        shell.env("CACHEKEEPER__ADMIN__LISTEN", format!("127.0.0.1:{}", self.admin));
        shell.env("PYTHONDONTWRITEBYTECODE", "1");
        shell
    }

    /// Why the command does not do what the page shows; nothing where it does.
    fn run(&self, line: &str, shown: &str) -> Result<(), String> {
        let output = self.shell(line).output().unwrap();
        let (said, complaint) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() && fits(said.trim_end(), shown.trim_end()) {
            return Ok(());
        }
        Err(format!("{}, prints\n{said}{complaint}\nand the page shows\n{shown}", output.status))
    }

    /// Carries out one command of a page.
    async fn follow(&mut self, line: &str, shown: &str) {
        if let Some(line) = line.strip_suffix(" &") {
            // In place of the shell, so that a signal reaches it.
            self.jobs.push(Some(self.shell(&format!("exec env {line}")).spawn().unwrap()));
        } else if let Some(number) = line.strip_prefix("kill %") {
            let number: usize = number.parse().unwrap();
            end(&mut self.jobs[number - 1].take().unwrap());
        } else if LOOKS.iter().any(|look| without_settings(line).starts_with(look)) {
            let what = format!("`{line}` prints what the page shows");
            wait_until(&what, || std::future::ready(self.run(line, shown))).await;
        } else if let Err(difference) = self.run(line, shown) {
            panic!("`{line}`: {difference}");
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.jobs.iter_mut().flatten().for_each(end);
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// Tells a job to end, and waits until it has.
fn end(job: &mut Child) {
    drop(Command::new("kill").arg("-TERM").arg(job.id().to_string()).status());
    drop(job.wait());
}

/// The command without the `NAME=value` in front of it.
fn without_settings(line: &str) -> &str {
    match line.split_once(' ') {
        Some((first, rest)) if first.contains('=') => without_settings(rest),
        _ => line,
    }
}

/// Whether a text is what a page shows, where `…` stands for anything.
fn fits(said: &str, shown: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = said.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

/// The blocks of a page: the language, and the text.
pub fn blocks(page: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut is_within = false;
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(language) if !is_within => found.push((language.to_owned(), String::new())),
            None if is_within => {
                let text = &mut found.last_mut().unwrap().1;
                text.push_str(line);
                text.push('\n');
            }
            Some(_) | None => {}
        }
        is_within ^= line.starts_with("```");
    }
    found
}

/// Follows a page from its first to its last line, and answers how many commands it has.
async fn follow(page: &str) -> usize {
    install();
    let rig = Rig::start("").await;
    let (admin, second) = (free_port().unwrap(), free_port().unwrap());
    let text = std::fs::read_to_string(Path::new(ROOT).join(page)).unwrap();
    let text = text
        .replace("postgres://you@localhost/shop", &rig.postgres.url_of("shop"))
        .replace("redis://localhost:6379/0", &rig.redis.url())
        .replace("127.0.0.1:9464", &format!("127.0.0.1:{admin}"))
        .replace("127.0.0.1:9465", &format!("127.0.0.1:{second}"));
    let mut reader = Reader::new(&rig, admin);
    let mut followed = 0;
    for (language, block) in blocks(&text) {
        if language != "console" {
            let named = block.lines().next().and_then(|first| first.strip_prefix("# "));
            if let Some(name) = named.filter(|_| matches!(&*language, "toml" | "python")) {
                std::fs::write(reader.folder.join(name), &block).unwrap();
            }
            continue;
        }
        for step in format!("\n{block}").split("\n$ ").skip(1) {
            let (line, shown) = step.split_once('\n').unwrap_or((step, ""));
            reader.follow(line, shown).await;
            followed += 1;
        }
    }
    followed
}

/// The files that a page's links name.
fn links(page: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(page).unwrap();
    let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    let files = links.filter(|link| !link.is_empty() && !link.contains(':'));
    files.map(|link| page.parent().unwrap().join(link)).collect()
}

#[test]
fn the_readme_is_short_and_no_link_leads_nowhere() {
    let root = Path::new(ROOT);
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    assert!(readme.lines().count() <= 200, "{} lines", readme.lines().count());
    let long: Vec<&str> = readme.lines().filter(|line| 160 < line.chars().count()).collect();
    assert!(long.is_empty(), "{long:?}");
    let found = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let documents: Vec<PathBuf> =
        found.filter(|path| path.extension().is_some_and(|ending| ending == "md")).collect();
    for page in documents.iter().chain(&[root.join("README.md"), root.join("CONTRIBUTING.md")]) {
        for link in links(page) {
            assert!(link.exists(), "{}: {}", page.display(), link.display());
        }
    }
    let index = root.join("docs/README.md");
    let listed = links(&index);
    for document in documents.iter().filter(|document| **document != index) {
        assert!(listed.contains(document), "docs/README.md does not name {}", document.display());
    }
}

/// The names of the functions of each module of these tests, and of the modules within it.
fn tests_by_module() -> BTreeMap<String, Vec<String>> {
    fn add(folder: &Path, module: Option<&str>, found: &mut BTreeMap<String, Vec<String>>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let module = module.unwrap_or(&name);
            if path.is_dir() {
                add(&path, Some(module), found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let words: Vec<&str> = text.split(|one: char| !one.is_alphanumeric() && one != '_').collect();
                let named = words.windows(2).filter(|pair| ["fn", "mod"].contains(&pair[0]));
                let names = named.map(|pair| pair[1].to_owned());
                found.entry(module.to_owned()).or_default().extend(names);
            }
        }
    }
    let mut found = BTreeMap::new();
    add(&Path::new(ROOT).join("tests/it"), None, &mut found);
    found
}

/// The documents say which test shows what they say: `module::test`, or its beginning with `…`.
#[test]
fn every_test_that_a_document_names_is_there() {
    let tests = tests_by_module();
    let mut named = 0;
    for entry in std::fs::read_dir(Path::new(ROOT).join("docs")).unwrap() {
        let page = entry.unwrap().path();
        if page.extension().is_none_or(|ending| ending != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&page).unwrap();
        for name in text.split('`').filter(|part| part.contains("::") && !part.contains(' ')) {
            let (module, rest) = name.split_once("::").unwrap();
            let (Some(known), Some(test)) = (tests.get(module), rest.split("::").last()) else { continue };
            let is_there = match test.strip_suffix('…') {
                Some(begins) => known.iter().any(|name| name.starts_with(begins)),
                None => known.iter().any(|name| name == test),
            };
            assert!(is_there, "{}: there is no test {name}", page.display());
            named += 1;
        }
    }
    assert!(50 < named, "{named}");
}

#[test]
fn every_verb_is_in_the_list_of_verbs() {
    let output = Command::new(env!("CARGO_BIN_EXE_cachekeeper")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let list = std::fs::read_to_string(Path::new(ROOT).join("docs/verbs.md")).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let lines = commands.lines().take_while(|line| !line.is_empty());
    let verbs: Vec<&str> = lines.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(verbs.contains(&"run"), "{help}");
    for verb in verbs.into_iter().filter(|verb| *verb != "help") {
        assert!(list.contains(&format!("`{verb}")), "docs/verbs.md does not name {verb}");
    }
}

#[test]
fn three_dots_stand_for_anything() {
    for (said, shown, is_right) in [
        ("OK", "OK", true),
        ("OK!", "OK", false),
        ("not OK", "OK", false),
        ("a\nb\nc", "a\n…\nc", true),
        ("a\nb\nc", "a\n…\nd", false),
        ("1 s left", "… left", true),
        ("left", "left…", true),
        ("12 and 34, 56", "…and…, 5…", true),
        ("12 and 34", "…, …", false),
        ("anything", "…", true),
        ("ab", "ab…b", false),
    ] {
        assert_eq!(fits(said, shown), is_right, "{said:?}, {shown:?}");
    }
}
