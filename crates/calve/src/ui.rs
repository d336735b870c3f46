//! The only file (with its two parts) that prints. Standard output is data, standard error is talk; meaning never hangs
//! on colour, and colour is used only on a terminal and where `NO_COLOR` is not set.

mod lines;
mod stream;
mod table;
mod transfer;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use calve_core::State;
use calve_wire::doctor::CheckStatus;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::{ExitStatus, Failure, Outcome};
pub use lines::Lines;
pub use stream::{Output, OutputStream};
pub use table::{Cell, Table};
pub use transfer::Transfer;

/// Time between two pictures of a spinner.
const SPINNER_TICK: Duration = Duration::from_millis(100);

/// Colours of the terminal's own palette.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// As the text around it.
    Plain,
    /// Well.
    Green,
    /// Under way, or with less than all.
    Yellow,
    /// Failed.
    Red,
    /// Past.
    Dim,
    /// Headings.
    Bold,
}

impl Colour {
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Green => Some("32"),
            Self::Yellow => Some("33"),
            Self::Red => Some("31"),
            Self::Dim => Some("2"),
            Self::Bold => Some("1"),
        }
    }
}

fn colours(terminal: bool) -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    let allowed = ALLOWED.get_or_init(|| {
        let unset = |name| std::env::var_os(name).is_none_or(|value| value.is_empty());
        unset("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
    });
    terminal && *allowed
}

fn paint(text: &str, colour: Colour, terminal: bool) -> Cow<'_, str> {
    match colour.code() {
        Some(code) if colours(terminal) => format!("\x1b[{code}m{text}\x1b[0m").into(),
        _ => text.into(),
    }
}

/// Text for standard output in a colour, where colours are used there.
pub fn painted(text: &str, colour: Colour) -> Cow<'_, str> {
    // Asked once: a table paints thousands of cells, and each question is a system call.
    static TERMINAL: OnceLock<bool> = OnceLock::new();
    paint(text, colour, *TERMINAL.get_or_init(|| io::stdout().is_terminal()))
}

/// Whether standard error is a terminal: only then talk that no script wants is worth its lines.
pub fn talks_to_people() -> bool {
    io::stderr().is_terminal()
}

/// Bytes to standard output as they are.
pub fn data(bytes: &[u8]) -> Outcome<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Failure::output)
}

/// A line to standard output.
pub fn line(text: &str) -> Outcome<()> {
    data(format!("{text}\n").as_bytes())
}

/// JSON to standard output, as the server said it, in one line.
pub fn json(bytes: &[u8]) -> Outcome<()> {
    data(bytes)?;
    if bytes.ends_with(b"\n") { Ok(()) } else { data(b"\n") }
}

/// A line to standard error. Its errors are nobody's to hear.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints a failure; gives the status to end with. Nobody is told that nobody listens.
pub fn failure(failure: &Failure) -> ExitStatus {
    if failure.status != ExitStatus::OutputClosed {
        note(&describe(failure, io::stderr().is_terminal()));
    }
    failure.status
}

fn describe(failure: &Failure, terminal: bool) -> String {
    let mut text = format!("{} {}", paint("error:", Colour::Red, terminal), failure.sentence);
    let mut source = failure.source.as_deref().map(|source| source as &dyn std::error::Error);
    while let Some(error) = source {
        let said = error.to_string();
        // Some libraries repeat their source's text in their own.
        if !text.ends_with(&said) {
            let _ = write!(text, ": {said}");
        }
        source = error.source();
    }
    if let Some(hint) = &failure.hint {
        let _ = write!(text, "\n{} {hint}", paint("hint:", Colour::Bold, terminal));
    }
    text
}

/// A number of things, as people say it.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Prints what clap says of the arguments: help to standard output, errors to standard error.
pub fn usage(mut error: clap::Error) -> ExitStatus {
    use clap::error::{ContextKind, ContextValue};
    let said: Vec<_> = error.context().map(|(kind, value)| (kind, value.clone())).collect();
    for (kind, value) in said {
        // The token of a cache may stand in its address.
        if let ContextValue::String(text) = value {
            error.insert(kind, ContextValue::String(calve_store::http::redacted(&text)));
        }
    }
    let printed = error.print();
    // What follows a program belongs to it, as with `nix run`.
    let takes_more = |usage: String| usage.contains("[-- <");
    if error.kind() == clap::error::ErrorKind::UnknownArgument
        && error.get(ContextKind::Usage).is_some_and(|usage| takes_more(usage.to_string()))
        && let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg)
    {
        note(&format!(
            "{} arguments of the program follow `--`: … -- {argument}",
            paint("hint:", Colour::Bold, talks_to_people())
        ));
    }
    match printed {
        _ if error.use_stderr() => ExitStatus::Usage,
        Ok(()) => ExitStatus::Success,
        Err(_) => ExitStatus::OutputClosed,
    }
}

/// A state's word in its colour.
pub fn state(state: State) -> Cell<'static> {
    let colour = match state {
        State::Running => Colour::Green,
        State::Failed => Colour::Red,
        State::Gone | State::Expired => Colour::Dim,
        State::Declared
        | State::Placed
        | State::Creating
        | State::Booting
        | State::Seeding
        | State::Draining => Colour::Yellow,
    };
    Cell::new(state.as_str()).colour(colour)
}

/// A check's result as a symbol and a word in its colour.
pub fn check(status: CheckStatus) -> Cell<'static> {
    match status {
        CheckStatus::Ok => Cell::new("✓ ok").colour(Colour::Green),
        CheckStatus::Degraded => Cell::new("! degraded").colour(Colour::Yellow),
        CheckStatus::Missing => Cell::new("✗ missing").colour(Colour::Red),
        CheckStatus::Unset => Cell::new("- not set up").colour(Colour::Dim),
    }
}

/// Something that takes a while: a spinner on standard error if that is a terminal, else nothing. Gone when dropped.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Shows what is under way.
    pub fn new(what: &str) -> Self {
        if !talks_to_people() {
            return Self { bar: ProgressBar::hidden() };
        }
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}").expect("a valid template");
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style);
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(SPINNER_TICK);
        Self { bar }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_a_sentence_with_its_sources_and_a_hint() {
        let failure = Failure::not_found("there is no ./x").hint("build it first").caused_by("gone");
        assert_eq!(describe(&failure, false), "error: there is no ./x: gone\nhint: build it first");
        let twice = Failure::failed("it broke").caused_by("it broke");
        assert_eq!(describe(&twice, false), "error: it broke");
    }
}
