//! The terminal in raw mode, and its size.

use std::io::IsTerminal;

use calve_wire::agent::WindowSize;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The size that a terminal has where none can be asked.
const SIZE_DEFAULT: WindowSize = WindowSize { rows: 24, columns: 80 };

/// Raw mode: every key goes to the program in the machine. The former mode comes back when this is dropped, on every way
/// out of a command.
pub struct RawMode {
    before: Option<Termios>,
}

impl RawMode {
    /// Turns it on where standard input is a terminal.
    pub fn enter() -> Self {
        let before = std::io::stdin().is_terminal().then(|| tcgetattr(stdin()).ok()).flatten();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            let _ = tcsetattr(stdin(), OptionalActions::Flush, &raw);
        }
        Self { before }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(stdin(), OptionalActions::Drain, before);
        }
    }
}

/// The terminal's size.
pub fn size() -> WindowSize {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            WindowSize { rows: size.ws_row, columns: size.ws_col }
        }
        _ => SIZE_DEFAULT,
    }
}
