//! `cachekeeper top`: what the running worker does, on the whole terminal. What is shown is a function of a [`Snapshot`] and of what a
//! person chose; what is asked for, and the terminal, have files of their own.

mod datasets;
mod machine;
mod now;
mod paint;
mod poll;
mod snapshot;
mod terminal;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};

use ratatui::DefaultTerminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use self::paint::Paint;
use self::snapshot::Snapshot;
use self::terminal::{Input, Screen};
use self::view::{Choice, render};
use super::output::{Exit, Output};
use super::worker_asked::found;
use cachekeeper_config::Config;

/// Shows the worker until somebody leaves.
pub async fn top(config: &Config, environment: &BTreeMap<String, String>, out: &Output) -> Exit {
    let is_dumb = environment.get("TERM").is_some_and(|name| name == "dumb");
    if out.json || is_dumb || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        out.failure(
            "top needs a terminal; `cachekeeper status --watch` and `cachekeeper tap` print lines, and JSON with --json",
        );
        return Exit::Usage;
    }
    if let Err(refused) = found(config).await {
        out.failure(&refused.error);
        return refused.exit;
    }
    let has_color = environment.get("NO_COLOR").is_none_or(String::is_empty);
    let (sender, mut snapshots) = watch::channel(Snapshot::new(config));
    let polling = tokio::spawn(poll::poll(config.clone(), sender));
    let ended = match Screen::open() {
        Ok(mut screen) => {
            let mut inputs = terminal::inputs();
            show(&mut screen.terminal, Paint { has_color }, &mut snapshots, &mut inputs).await
        }
        Err(error) => Err(error),
    };
    polling.abort();
    match ended {
        Ok(()) => Exit::Ok,
        Err(error) => {
            out.failure(&format!("the terminal cannot be used: {error}"));
            Exit::Failed
        }
    }
}

/// Draws what is new, and does what is asked for, until somebody leaves.
async fn show(
    terminal: &mut DefaultTerminal,
    paint: Paint,
    snapshots: &mut watch::Receiver<Snapshot>,
    inputs: &mut mpsc::Receiver<io::Result<Input>>,
) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut choice = Choice::default();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        terminal.draw(|frame| render(frame, &snapshot, &mut choice, paint))?;
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return Ok(()) },
            input = inputs.recv() => match input {
                Some(Ok(Input::Resized)) => {}
                Some(Ok(Input::Key(key))) => if choice.press(key) { return Ok(()) },
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}
