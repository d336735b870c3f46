//! The guard of a guest: parent of QEMU on the host, so that QEMU cannot outlive its lease or its run directory.
//!
//! *Invariant*: one thread, blocking, no runtime. QEMU's parent-death signal is bound to the thread that forked it, and
//! this one thread lives exactly as long as the guard.

mod console;
mod end;
mod lease;
mod qemu;
mod ready;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use calve_wire::guard::{GO_BYTE, READY_LINE};

use console::{Console, Tail};
use end::End;
use lease::LeaseFile;
use qemu::Qemu;
use ready::Readiness;

/// QEMU opens its sockets within 0.1 s; a host that takes this long is not going to run the guest.
const START_MAX: Duration = Duration::from_secs(20);
/// How often QEMU's sockets are tried until they are there.
const START_INTERVAL: Duration = Duration::from_millis(5);
/// A descriptor that poll(2) passes over.
const ABSENT: i32 = -1;

/// Runs `guard --run-dir DIR -- PROGRAM ARGUMENT…`; returns when QEMU has ended.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let mut said = false;
    let result = guard(arguments, &mut said);
    if let (Err(error), false) = (&result, said) {
        // The driver waits for one line; that it may be gone changes nothing.
        let _ = writeln!(io::stdout(), "{error:#}");
    }
    result
}

fn guard(arguments: impl IntoIterator<Item = OsString>, said: &mut bool) -> anyhow::Result<()> {
    let Order { run_dir, argv } = Order::parse(arguments)?;
    std::env::set_current_dir(&run_dir)
        .with_context(|| format!("{} cannot be entered", run_dir.display()))?;
    // A leader of a process group cannot make a session; then it has its own group already.
    let _ = rustix::process::setsid();
    let mut lease = LeaseFile::open().context("the lease cannot be read")?;
    let qemu = Qemu::start(&argv)?;
    Watch { qemu, lease: &mut lease, console: Console::create()?, errors: Tail::default() }.run(said)
}

struct Order {
    run_dir: PathBuf,
    argv: Vec<OsString>,
}

impl Order {
    fn parse(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<Self> {
        let mut arguments = arguments.into_iter();
        match (arguments.next(), arguments.next(), arguments.next()) {
            (Some(option), Some(run_dir), Some(end)) if option == "--run-dir" && end == "--" => {
                let argv: Vec<_> = arguments.collect();
                if argv.is_empty() {
                    bail!("no program is given");
                }
                Ok(Self { run_dir: run_dir.into(), argv })
            }
            _ => bail!("usage: calve-agent guard --run-dir DIR -- PROGRAM [ARGUMENT]…"),
        }
    }
}

/// Everything that the guard looks after.
struct Watch<'a> {
    qemu: Qemu,
    lease: &'a mut LeaseFile,
    console: Console,
    errors: Tail,
}

/// What woke the guard.
struct Woken {
    console: bool,
    errors: bool,
    ended: bool,
    driver: bool,
}

impl Watch<'_> {
    fn run(mut self, said: &mut bool) -> anyhow::Result<()> {
        let end = match self.start(said)? {
            Some(end) => end,
            None => self.watch()?,
        };
        self.qemu.kill();
        let status = self.qemu.wait()?;
        self.read_the_rest();
        end::write(&end, status, &self.console, &self.errors)?;
        if !*said {
            *said = true;
            writeln!(io::stdout(), "{}", end::sentence(&end, status, &self.console, &self.errors))?;
        }
        Ok(())
    }

    /// Until the driver has said that the machine is written down; an end where it comes before.
    fn start(&mut self, said: &mut bool) -> anyhow::Result<Option<End>> {
        let give_up = Instant::now() + START_MAX;
        let mut readiness = Readiness::default();
        loop {
            let interval = if *said { None } else { Some(START_INTERVAL) };
            let woken = self.wait(interval, true)?;
            self.read(&woken);
            if woken.ended {
                return Ok(Some(End::ByItself));
            }
            if !*said && readiness.is_ready() {
                *said = true;
                // Where the driver has gone meanwhile, its end of the other pipe tells.
                let _ = writeln!(io::stdout(), "{READY_LINE}");
            }
            if woken.driver {
                let mut byte = [0];
                return Ok(match io::stdin().read(&mut byte) {
                    Ok(1) if byte[0] == GO_BYTE => {
                        release_standard_descriptors()?;
                        None
                    }
                    _ => Some(End::Abandoned),
                });
            }
            if let Some(end) = self.must_end()? {
                return Ok(Some(end));
            }
            if !*said && Instant::now() > give_up {
                return Ok(Some(End::NeverStarted));
            }
        }
    }

    fn watch(&mut self) -> anyhow::Result<End> {
        loop {
            let woken = self.wait(self.lease.interval(), false)?;
            self.read(&woken);
            if woken.ended {
                return Ok(End::ByItself);
            }
            if let Some(end) = self.must_end()? {
                return Ok(end);
            }
        }
    }

    fn must_end(&mut self) -> anyhow::Result<Option<End>> {
        if !self.lease.refresh()? {
            return Ok(Some(End::DirectoryGone));
        }
        Ok(self.lease.is_over().then_some(End::LeaseOver))
    }

    fn wait(&self, interval: Option<Duration>, with_driver: bool) -> io::Result<Woken> {
        let raw = |pipe: &Option<File>| pipe.as_ref().map_or(ABSENT, File::as_raw_fd);
        let (console, errors) = (raw(&self.qemu.console), raw(&self.qemu.errors));
        let driver = if with_driver { libc::STDIN_FILENO } else { ABSENT };
        let changes = self.lease.changes().map_or(ABSENT, |fd| fd.as_raw_fd());
        let all =
            [self.qemu.pidfd.as_raw_fd(), console, errors, driver, self.lease.timer().as_raw_fd(), changes];
        let mut polled = all.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        let timeout_ms = interval.map_or(-1, |time| i32::try_from(time.as_millis()).unwrap_or(i32::MAX));
        // SAFETY: the array is valid for its length, and every descriptor in it is open or negative (ignored).
        let count = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout_ms) };
        if count < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let [ended, console, errors, driver, ..] = polled.map(|fd| fd.revents != 0);
        Ok(Woken { console, errors, ended, driver })
    }

    fn read(&mut self, woken: &Woken) {
        if woken.console {
            pump(&mut self.qemu.console, |bytes| self.console.write(bytes));
        }
        if woken.errors {
            pump(&mut self.qemu.errors, |bytes| self.errors.push(bytes));
        }
    }

    /// QEMU is gone: what it wrote last is still in the pipes.
    fn read_the_rest(&mut self) {
        while self.qemu.console.is_some() {
            pump(&mut self.qemu.console, |bytes| self.console.write(bytes));
        }
        while self.qemu.errors.is_some() {
            pump(&mut self.qemu.errors, |bytes| self.errors.push(bytes));
        }
    }
}

/// Reads once from a pipe; at its end, or when it is broken, it is closed.
fn pump(pipe: &mut Option<File>, mut take: impl FnMut(&[u8])) {
    let mut bytes = [0; 64 * 1024];
    match pipe.as_mut().map(|pipe| pipe.read(&mut bytes)) {
        Some(Ok(count)) if count > 0 => take(&bytes[..count]),
        Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
        _ => *pipe = None,
    }
}

/// The driver may end now: nothing is read from or written to it any more.
fn release_standard_descriptors() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_a_run_directory_and_a_program() {
        let parse = |words: &[&str]| Order::parse(words.iter().map(OsString::from));
        let order = parse(&["--run-dir", "/r", "--", "qemu", "-x"]).unwrap();
        assert_eq!((order.run_dir, order.argv.len()), (PathBuf::from("/r"), 2));
        for bad in [&[][..], &["--run-dir", "/r"], &["--run-dir", "/r", "--"], &["-x", "/r", "--", "q"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
