//! What the guard writes down when QEMU has ended.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use calve_wire::guard::END_FILE;

use super::console::{Console, Tail};

/// Lines of the console that are kept with the sentence: a panic with its trace.
const LINES_MAX: usize = 40;

/// Why the guard stopped watching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// QEMU ended.
    ByItself,
    /// The lease was over.
    LeaseOver,
    /// The run directory is being removed.
    DirectoryGone,
    /// The driver died before it had written the machine down.
    Abandoned,
    /// QEMU opened no sockets in time.
    NeverStarted,
}

/// What happened, in one sentence.
pub(super) fn sentence(end: &End, status: ExitStatus, console: &Console, errors: &Tail) -> String {
    match end {
        End::LeaseOver => "the guard ended QEMU, because the lease was over".into(),
        End::DirectoryGone => "the guard ended QEMU, because the run directory was removed".into(),
        End::Abandoned => "the guard ended QEMU, because its driver died while making the machine".into(),
        End::NeverStarted => "QEMU did not open its sockets in time".into(),
        End::ByItself => by_itself(status, &console.tail().lines(), &errors.lines()),
    }
}

fn by_itself(status: ExitStatus, console: &[String], errors: &[String]) -> String {
    const PANIC: &str = "Kernel panic - not syncing: ";
    if let Some(panic) = console.iter().rev().find_map(|line| Some(line.split_once(PANIC)?.1)) {
        return format!("the guest's kernel panicked: {panic}");
    }
    // QEMU signs its errors; hints follow without a name.
    let is_error = |line: &&String| line.starts_with("qemu-system") && !line.contains(": warning: ");
    let reason = errors.iter().rfind(is_error).or(errors.last());
    let reason = reason.map(|line| format!(": {line}")).unwrap_or_default();
    match (status.code(), status.signal()) {
        (Some(0), _) => "the guest powered off".into(),
        (Some(code), _) => format!("QEMU ended with code {code}{reason}"),
        (None, Some(signal)) => format!("QEMU was killed by signal {signal}{reason}"),
        (None, None) => format!("QEMU ended{reason}"),
    }
}

/// Writes it to the working directory; a directory that is gone needs nothing.
pub(super) fn write(end: &End, status: ExitStatus, console: &Console, errors: &Tail) -> io::Result<()> {
    if *end == End::DirectoryGone {
        // A new file would be in the way of whoever removes the directory.
        return Ok(());
    }
    let lines = console.tail().lines();
    let last = &lines[lines.len().saturating_sub(LINES_MAX)..];
    let text = format!("{}\n{}\n", sentence(end, status, console, errors), last.join("\n"));
    let new = format!("{END_FILE}.new");
    match std::fs::write(&new, text).and_then(|()| std::fs::rename(new, END_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_before_anything_else() {
        let console = ["x", "[ 1.0] Kernel panic - not syncing: Attempted to kill init!", "[ 1.0] ---[ end"];
        let text = by_itself(ExitStatus::from_raw(0), &console.map(str::to_owned), &[]);
        assert_eq!(text, "the guest's kernel panicked: Attempted to kill init!");
        assert_eq!(by_itself(ExitStatus::from_raw(0), &[], &[]), "the guest powered off");
        let errors = ["qemu-system-x86_64: no such device", "Use -device help"].map(str::to_owned);
        let text = by_itself(ExitStatus::from_raw(1 << 8), &[], &errors);
        assert_eq!(text, "QEMU ended with code 1: qemu-system-x86_64: no such device");
    }
}
