//! The terminal: taken over at the start, and given back as it was, however the verb ends; and what is typed there.

use std::io;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

/// So often it is looked whether anybody listens for keys still.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Keys that wait.
const WAITING_MAX: usize = 64;

/// The terminal while it is ours.
pub(super) struct Screen {
    pub terminal: DefaultTerminal,
}

impl Screen {
    /// Takes the terminal over. After a panic it is given back before the panic is told.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { terminal: ratatui::try_init().inspect_err(|_failed| ratatui::restore())? })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What somebody does at the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    Key(Key),
    Resized,
}

/// A key that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Leave,
    Next,
    Before,
    /// The view of this number, from 1 on.
    View(usize),
    Sort,
    Up,
    Down,
    PageUp,
    PageDown,
    First,
}

/// What is typed, as it comes. The thread that waits for it ends with whoever listens.
pub(super) fn inputs() -> mpsc::Receiver<io::Result<Input>> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let read = match event::poll(LOOK_EVERY) {
                Ok(true) => event::read(),
                Ok(false) => continue,
                Err(error) => Err(error),
            };
            let is_over = read.is_err();
            let input = match read {
                Ok(event) => match input(&event) {
                    Some(input) => Ok(input),
                    None => continue,
                },
                Err(error) => Err(error),
            };
            if sender.blocking_send(input).is_err() || is_over {
                return;
            }
        }
    });
    receiver
}

fn input(event: &Event) -> Option<Input> {
    let key = match event {
        Event::Resize(..) => return Some(Input::Resized),
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    let has_control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(Input::Key(match key.code {
        KeyCode::Char('c' | 'd') if has_control => Key::Leave,
        KeyCode::Char('q') | KeyCode::Esc => Key::Leave,
        KeyCode::Tab | KeyCode::Right => Key::Next,
        KeyCode::BackTab | KeyCode::Left => Key::Before,
        KeyCode::Char('1') => Key::View(1),
        KeyCode::Char('2') => Key::View(2),
        KeyCode::Char('3') => Key::View(3),
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Up | KeyCode::Char('k') => Key::Up,
        KeyCode::Down | KeyCode::Char('j') => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown | KeyCode::Char(' ') => Key::PageDown,
        KeyCode::Home => Key::First,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    #[test]
    fn q_escape_and_control_c_leave() {
        let pressed = |code, modifiers| input(&Event::Key(KeyEvent::new(code, modifiers)));
        let plain = KeyModifiers::NONE;
        for (code, modifiers) in
            [(KeyCode::Char('q'), plain), (KeyCode::Esc, plain), (KeyCode::Char('c'), KeyModifiers::CONTROL)]
        {
            assert_eq!(pressed(code, modifiers), Some(Input::Key(Key::Leave)));
        }
        assert_eq!(pressed(KeyCode::Char('c'), plain), None);
        assert_eq!(input(&Event::Resize(80, 24)), Some(Input::Resized));
    }
}
