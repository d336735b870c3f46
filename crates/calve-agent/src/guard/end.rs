//! What the guard writes down when QEMU has ended.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use calve_wire::guard::{END_CAUSE_FILE, END_FILE, EndCause};

use super::monitor::Shutdown;

/// Lines of the console that are kept with the sentence: a panic with its trace.
const LINES_MAX: usize = 40;
/// What a kernel says before it ends for a fault of its own.
const PANIC: &str = "Kernel panic - not syncing: ";

/// Why the guard stopped watching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// QEMU ended.
    ByItself,
    /// The daemon of the live store ended.
    StoreGone,
    /// The lease was over.
    LeaseOver,
    /// The run directory is being removed.
    DirectoryGone,
    /// The driver died before it had written the machine down.
    Abandoned,
    /// QEMU opened no sockets in time.
    NeverStarted,
}

/// Everything that tells why.
#[derive(Debug)]
pub(super) struct Ended {
    /// Why the guard stopped watching.
    pub(super) end: End,
    /// QEMU's exit status.
    pub(super) status: ExitStatus,
    /// Who wanted QEMU to end, where it said so.
    pub(super) shutdown: Option<Shutdown>,
    /// How the live store's daemon failed, where it did.
    pub(super) store: Option<ExitStatus>,
    /// The console's last lines.
    pub(super) console: Vec<String>,
    /// QEMU's.
    pub(super) errors: Vec<String>,
    /// The daemon's.
    pub(super) store_errors: Vec<String>,
}

impl Ended {
    /// What happened, in one sentence.
    pub(super) fn sentence(&self) -> String {
        match self.end {
            End::LeaseOver => "the guard ended QEMU, because the lease was over".into(),
            End::DirectoryGone => "the guard ended QEMU, because the run directory was removed".into(),
            End::Abandoned => "the guard ended QEMU, because its driver died while making the machine".into(),
            End::NeverStarted => "QEMU did not open its sockets in time".into(),
            End::StoreGone => self.store_failed(),
            // QEMU can only fail without its store.
            End::ByItself if self.store.is_some() && !self.status.success() => self.store_failed(),
            End::ByItself => self.by_itself(),
        }
    }

    /// The same for programs.
    pub(super) fn cause(&self) -> EndCause {
        if self.end != End::ByItself {
            return EndCause::Guard;
        }
        match (self.shutdown, self.status.code(), self.status.signal()) {
            (_, None, signal) => EndCause::Killed { signal },
            (_, Some(code), _) if code != 0 => EndCause::Failed { code },
            (Some(Shutdown::Host), ..) => EndCause::Killed { signal: None },
            (Some(Shutdown::Panic), ..) => EndCause::Panicked,
            (Some(Shutdown::Guest) | None, ..) if self.panic().is_some() => EndCause::Panicked,
            (Some(Shutdown::Guest) | None, ..) => EndCause::PoweredOff,
        }
    }

    fn panic(&self) -> Option<&str> {
        self.console.iter().rev().find_map(|line| Some(line.split_once(PANIC)?.1))
    }

    fn store_failed(&self) -> String {
        let reason = self.store_errors.last().map(|line| format!(": {line}")).unwrap_or_default();
        format!("the daemon of the live store ended{reason}")
    }

    fn by_itself(&self) -> String {
        if let Some(panic) = self.panic() {
            return format!("the guest's kernel panicked: {panic}");
        }
        // QEMU signs its errors; hints follow without a name.
        let is_error = |line: &&String| line.starts_with("qemu-system") && !line.contains(": warning: ");
        let reason = self.errors.iter().rfind(is_error).or(self.errors.last());
        let reason = reason.map(|line| format!(": {line}")).unwrap_or_default();
        match self.cause() {
            EndCause::PoweredOff => "the guest powered off".into(),
            EndCause::Panicked => "the guest's kernel panicked".into(),
            EndCause::Failed { code } => format!("QEMU ended with code {code}{reason}"),
            EndCause::Killed { signal: Some(signal) } => {
                format!("QEMU was killed by signal {signal}{reason}")
            }
            EndCause::Killed { signal: None } => "QEMU was told to end by somebody on the host".into(),
            EndCause::Guard => "the guard ended QEMU".into(),
        }
    }

    /// Writes both to the working directory; a directory that is gone needs nothing.
    pub(super) fn write(&self) -> io::Result<()> {
        if self.end == End::DirectoryGone {
            // A new file would be in the way of whoever removes the directory.
            return Ok(());
        }
        let last = &self.console[self.console.len().saturating_sub(LINES_MAX)..];
        let text = format!("{}\n{}\n", self.sentence(), last.join("\n"));
        write(END_CAUSE_FILE, &serde_json::to_vec(&self.cause()).expect("plain words"))?;
        write(END_FILE, text.as_bytes())
    }
}

fn write(name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = format!("{name}.new");
    match std::fs::write(&new, bytes).and_then(|()| std::fs::rename(new, name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(status: i32, shutdown: Option<Shutdown>, console: &[&str], errors: &[&str]) -> Ended {
        let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        Ended {
            end: End::ByItself,
            status: ExitStatus::from_raw(status),
            shutdown,
            store: None,
            console: owned(console),
            errors: owned(errors),
            store_errors: Vec::new(),
        }
    }

    #[test]
    fn a_panic_is_told_before_anything_else() {
        let console = ["x", "[ 1.0] Kernel panic - not syncing: Attempted to kill init!", "[ 1.0] ---[ end"];
        let panicked = ended(0, Some(Shutdown::Guest), &console, &[]);
        assert_eq!(panicked.sentence(), "the guest's kernel panicked: Attempted to kill init!");
        assert_eq!(panicked.cause(), EndCause::Panicked);
        let errors = ["qemu-system-x86_64: no such device", "Use -device help"];
        let failed = ended(1 << 8, None, &[], &errors);
        assert_eq!(failed.sentence(), "QEMU ended with code 1: qemu-system-x86_64: no such device");
        assert_eq!(failed.cause(), EndCause::Failed { code: 1 });
    }

    #[test]
    fn a_guest_that_powers_off_is_told_from_a_qemu_that_is_ended() {
        for (status, shutdown, cause) in [
            (0, Some(Shutdown::Guest), EndCause::PoweredOff),
            (0, Some(Shutdown::Host), EndCause::Killed { signal: None }),
            (0, Some(Shutdown::Panic), EndCause::Panicked),
            (libc::SIGKILL, None, EndCause::Killed { signal: Some(libc::SIGKILL) }),
            (0, None, EndCause::PoweredOff),
        ] {
            assert_eq!(ended(status, shutdown, &[], &[]).cause(), cause, "{status} {shutdown:?}");
        }
        let over = Ended { end: End::LeaseOver, ..ended(libc::SIGKILL, None, &[], &[]) };
        assert_eq!(over.cause(), EndCause::Guard);
    }

    #[test]
    fn what_qemu_says_of_a_store_that_failed_is_not_the_reason() {
        let failed = Ended {
            store: Some(ExitStatus::from_raw(1 << 8)),
            store_errors: vec!["no such path".into()],
            ..ended(1 << 8, None, &[], &["qemu-system-x86_64: Failed to connect"])
        };
        assert_eq!(failed.sentence(), "the daemon of the live store ended: no such path");
    }
}
