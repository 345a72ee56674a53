//! `cachekeeper top` at a terminal, beside a real worker.

use std::future::ready;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::wait_until;
use crate::tap::Shop;

/// A verb at a terminal of 80 columns and 24 rows.
struct AtTerminal {
    child: Child,
    shown: Arc<Mutex<String>>,
}

impl AtTerminal {
    fn start(verb: &Command) -> Self {
        let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_string_lossy());
        let words: Vec<String> =
            std::iter::once(verb.get_program()).chain(verb.get_args()).map(quoted).collect();
        let line = format!("stty rows 24 cols 80; exec {}", words.join(" "));
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm-256color").env("SHELL", "/bin/sh");
        command.envs(verb.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let shown = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(length @ 1..) = out.read(&mut part) {
                kept.lock().unwrap().push_str(&String::from_utf8_lossy(&part[..length]));
            }
        });
        Self { child, shown }
    }

    fn types(&mut self, keys: &str) {
        let keyboard = self.child.stdin.as_mut().unwrap();
        keyboard.write_all(keys.as_bytes()).unwrap();
        keyboard.flush().unwrap();
    }

    /// What stands on the screen now.
    fn text(&self) -> String {
        screen(&self.shown.lock().unwrap())
    }

    async fn shows(&self, what: &str) {
        wait_until(&format!("the screen shows {what:?}"), async || {
            let text = self.text();
            if text.contains(what) { Ok(()) } else { Err(text) }
        })
        .await;
    }

    async fn ends(&mut self) -> Option<i32> {
        wait_until("it has ended", || {
            let status = self.child.try_wait().unwrap();
            ready(status.map(|status| status.code()).ok_or("it runs".to_owned()))
        })
        .await
    }
}

impl Drop for AtTerminal {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// As a terminal of 24 rows would show it: it knows how the cursor is set, and that the screen is emptied.
fn screen(sent: &str) -> String {
    let mut rows = vec![vec![' '; 80]; 24];
    let (mut row, mut column) = (0_usize, 0_usize);
    let mut rest = sent.chars();
    while let Some(one) = rest.next() {
        if one != '\u{1b}' {
            if let Some(cell) =
                rows.get_mut(row).and_then(|row| row.get_mut(column)).filter(|_| !one.is_control())
            {
                *cell = one;
                column += 1;
            }
            continue;
        }
        if rest.next() != Some('[') {
            continue;
        }
        let mut words = String::new();
        let end = rest.by_ref().find(|one| {
            words.push(*one);
            one.is_ascii_alphabetic()
        });
        match end {
            Some('H') => {
                let place =
                    |word: Option<&str>| word.and_then(|word| word.parse::<usize>().ok()).unwrap_or(1) - 1;
                let mut words = words.trim_end_matches('H').split(';');
                (row, column) = (place(words.next()), place(words.next()));
            }
            Some('J') => rows.iter_mut().for_each(|row| row.fill(' ')),
            _ => {}
        }
    }
    let rows = rows.into_iter().map(|row| row.into_iter().collect::<String>().trim_end().to_owned());
    rows.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_person_sees_the_worker_turns_to_its_parts_and_leaves() {
    let mut shop = Shop::start("").await;
    let mut top = AtTerminal::start(&shop.cli.command(&["top"]));
    top.shows("The dataset is at least as fresh as").await;
    top.shows("Nothing needs you").await;
    top.types("2");
    top.shows("[2 Datasets]").await;
    top.shows("product        fresh                  2").await;
    top.types("\t");
    top.shows("[3 Machine room]").await;
    top.shows("change feed             up           0").await;
    shop.kill();
    top.shows("No answer since").await;
    shop.worker = shop.cli.command(&["run"]).stdout(Stdio::null()).spawn().unwrap();
    top.types("1");
    wait_until("it is found again", async || {
        let text = top.text();
        let is_found = !text.contains("No answer") && text.contains("The dataset is at least as fresh as");
        if is_found { Ok(()) } else { Err(text) }
    })
    .await;
    shop.kill();
    top.types("q");
    assert_eq!(top.ends().await, Some(0));
    let screen = top.shown.lock().unwrap().clone();
    assert!(screen.contains("\u{1b}[?1049l") && screen.contains("\u{1b}[?25h"), "not given back: {screen:?}");
    // Another one begins where no worker is.
    let mut top = AtTerminal::start(&shop.cli.command(&["top"]));
    top.shows("no worker answers on").await;
    assert_eq!(top.ends().await, Some(69));
}

#[tokio::test]
async fn a_signal_gives_the_terminal_back() {
    let shop = Shop::start("").await;
    let mut top = AtTerminal::start(&shop.cli.command(&["top"]));
    top.shows("The dataset is at least as fresh as").await;
    let terminal = top.child.id().to_string();
    let ended = Command::new("pkill").args(["-TERM", "-P", &terminal]).status().unwrap();
    assert!(ended.success());
    assert_eq!(top.ends().await, Some(0));
    assert!(top.shown.lock().unwrap().contains("\u{1b}[?1049l"));
}

#[tokio::test]
async fn without_a_terminal_others_are_named() {
    let shop = Shop::start("").await;
    shop.cli.says(&["top"], 2, &["needs a terminal", "status --watch", "tap"]);
}
