//! The guard of a guest: parent of QEMU on the host, so that QEMU cannot outlive its lease or its run directory.
//!
//! *Invariant*: one thread, blocking, no runtime. QEMU's parent-death signal is bound to the thread that forked it, and
//! this one thread lives exactly as long as the guard.

mod child;
mod console;
mod end;
mod lease;
mod live_store;
mod monitor;
mod qemu;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use calve_wire::guard::{GO_BYTE, READY_LINE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use child::Child;
use console::{Console, Tail};
use end::{End, Ended};
use lease::LeaseFile;
use monitor::Monitor;
use qemu::Quota;

/// QEMU opens its sockets within 0.1 s; a host that takes this long is not going to run the guest.
const START_MAX: Duration = Duration::from_secs(20);
/// How often QEMU's sockets are tried until they are there.
const START_INTERVAL: Duration = Duration::from_millis(5);
/// Time that QEMU may take to be gone after its live store is: it ends the daemon's connection before it has ended itself.
const QEMU_FOLLOWS_MAX_MS: i64 = 2000;
/// A descriptor that poll(2) passes over.
const ABSENT: i32 = -1;

/// Runs `guard --run-dir DIR [--cpus-milli N] -- PROGRAM ARGUMENT…`; returns when QEMU has ended.
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
    let Order { run_dir, cpus_milli, mut argv } = Order::parse(arguments)?;
    std::env::set_current_dir(&run_dir)
        .with_context(|| format!("{} cannot be entered", run_dir.display()))?;
    // A leader of a process group cannot make a session; then it has its own group already.
    let _ = rustix::process::setsid();
    let mut lease = LeaseFile::open().context("the lease cannot be read")?;
    let quota = cpus_milli.map(|cpus| Quota::make(&run_dir, cpus)).transpose()?.flatten();
    if cpus_milli.is_some() && quota.is_none() {
        qemu::tell_unlimited(&mut argv);
    }
    let store = live_store::start()?;
    let qemu = qemu::start(&argv, quota.as_ref())?;
    qemu::write_processes(&qemu, store.as_ref())?;
    let (console, errors, store_errors) = (Console::create()?, Tail::default(), Tail::default());
    let monitor = Monitor::default();
    Watch { qemu, store, monitor, lease: &mut lease, console, errors, store_errors }.run(said)
}

/// Runs `live-store`: becomes the daemon that serves a closure to a guest.
pub fn serve_live_store() -> anyhow::Result<()> {
    live_store::run().map(|never| match never {})
}

struct Order {
    run_dir: PathBuf,
    cpus_milli: Option<u32>,
    argv: Vec<OsString>,
}

impl Order {
    fn parse(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<Self> {
        const USAGE: &str = "usage: calve-agent guard --run-dir DIR [--cpus-milli N] -- PROGRAM [ARGUMENT]…";
        let mut arguments = arguments.into_iter();
        let (mut run_dir, mut cpus_milli) = (None, None);
        loop {
            match (arguments.next().as_ref().and_then(|word| word.to_str()), &run_dir) {
                (Some("--run-dir"), None) => run_dir = Some(PathBuf::from(arguments.next().context(USAGE)?)),
                (Some("--cpus-milli"), _) => {
                    let number = arguments.next().and_then(|word| word.to_str()?.parse().ok());
                    cpus_milli = Some(number.context(USAGE)?);
                }
                (Some("--"), Some(_)) => break,
                _ => bail!(USAGE),
            }
        }
        let argv: Vec<_> = arguments.collect();
        if argv.is_empty() {
            bail!("no program is given");
        }
        Ok(Self { run_dir: run_dir.context(USAGE)?, cpus_milli, argv })
    }
}

/// Everything that the guard looks after.
struct Watch<'a> {
    qemu: Child,
    /// Serves its live store, where it has one.
    store: Option<Child>,
    monitor: Monitor,
    lease: &'a mut LeaseFile,
    console: Console,
    errors: Tail,
    store_errors: Tail,
}

/// What woke the guard.
struct Woken {
    console: bool,
    errors: bool,
    ended: bool,
    driver: bool,
    store_ended: bool,
    store_errors: bool,
}

impl Watch<'_> {
    fn run(mut self, said: &mut bool) -> anyhow::Result<()> {
        let end = match self.start(said)? {
            Some(end) => end,
            None => self.watch()?,
        };
        self.qemu.kill();
        let status = self.qemu.wait()?;
        let store = self.end_store()?;
        self.read_the_rest();
        let ended = Ended {
            end,
            status,
            shutdown: self.monitor.shutdown(),
            store,
            console: self.console.tail().lines(),
            errors: self.errors.lines(),
            store_errors: self.store_errors.lines(),
        };
        ended.write()?;
        if !*said {
            *said = true;
            writeln!(io::stdout(), "{}", ended.sentence())?;
        }
        Ok(())
    }

    /// Ends the live store's daemon: how it ended, where it had done so by itself.
    fn end_store(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(store) = &mut self.store else { return Ok(None) };
        store.kill();
        let status = store.wait()?;
        // A daemon whose guest hung up ends well; one that was killed just now did not end by itself.
        Ok((!status.success() && status.signal() != Some(libc::SIGKILL)).then_some(status))
    }

    /// Until the driver has said that the machine is written down; an end where it comes before.
    fn start(&mut self, said: &mut bool) -> anyhow::Result<Option<End>> {
        let give_up = Instant::now() + START_MAX;
        loop {
            let interval = if *said { None } else { Some(START_INTERVAL) };
            let woken = self.wait(interval, true)?;
            self.read(&woken);
            if let Some(end) = self.ended(&woken)? {
                return Ok(Some(end));
            }
            if !*said && self.monitor.is_ready() {
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
            if let Some(end) = self.ended(&woken)? {
                return Ok(end);
            }
            if let Some(end) = self.must_end()? {
                return Ok(end);
            }
        }
    }

    /// Whether QEMU has ended, or its live store without it.
    fn ended(&self, woken: &Woken) -> anyhow::Result<Option<End>> {
        if woken.store_ended && !woken.ended {
            let soon = Timespec {
                tv_sec: QEMU_FOLLOWS_MAX_MS / 1000,
                tv_nsec: QEMU_FOLLOWS_MAX_MS % 1000 * 1_000_000,
            };
            let mut follows = [PollFd::from_borrowed_fd(self.qemu.pidfd.as_fd(), PollFlags::IN)];
            if rustix::io::retry_on_intr(|| poll(&mut follows, Some(&soon)))? == 0 {
                return Ok(Some(End::StoreGone));
            }
            return Ok(Some(End::ByItself));
        }
        Ok(woken.ended.then_some(End::ByItself))
    }

    fn must_end(&mut self) -> anyhow::Result<Option<End>> {
        if !self.lease.refresh()? {
            return Ok(Some(End::DirectoryGone));
        }
        Ok(self.lease.is_over().then_some(End::LeaseOver))
    }

    fn wait(&self, interval: Option<Duration>, with_driver: bool) -> io::Result<Woken> {
        let raw = |pipe: &Option<File>| pipe.as_ref().map_or(ABSENT, File::as_raw_fd);
        let (console, errors) = (raw(&self.qemu.output), raw(&self.qemu.errors));
        let store = self.store.as_ref();
        let store_pidfd = store.map_or(ABSENT, |store| store.pidfd.as_raw_fd());
        let store_errors = store.map_or(ABSENT, |store| raw(&store.errors));
        let monitor = self.monitor.descriptor().unwrap_or(ABSENT);
        let driver = if with_driver { libc::STDIN_FILENO } else { ABSENT };
        let changes = self.lease.changes().map_or(ABSENT, |fd| fd.as_raw_fd());
        let (qemu, timer) = (self.qemu.pidfd.as_raw_fd(), self.lease.timer().as_raw_fd());
        let all = [qemu, console, errors, driver, store_pidfd, store_errors, monitor, timer, changes];
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
        let [ended, console, errors, driver, store_ended, store_errors, ..] =
            polled.map(|fd| fd.revents != 0);
        Ok(Woken { console, errors, ended, driver, store_ended, store_errors })
    }

    fn read(&mut self, woken: &Woken) {
        if woken.console {
            pump(&mut self.qemu.output, |bytes| self.console.write(bytes));
        }
        if woken.errors {
            pump(&mut self.qemu.errors, |bytes| self.errors.push(bytes));
        }
        if let Some(store) = self.store.as_mut().filter(|_| woken.store_errors) {
            pump(&mut store.errors, |bytes| self.store_errors.push(bytes));
        }
        self.monitor.read();
    }

    /// QEMU is gone: what it wrote last is still in the pipes.
    fn read_the_rest(&mut self) {
        self.monitor.read();
        if let Some(store) = &mut self.store {
            while store.errors.is_some() {
                pump(&mut store.errors, |bytes| self.store_errors.push(bytes));
            }
        }
        while self.qemu.output.is_some() {
            pump(&mut self.qemu.output, |bytes| self.console.write(bytes));
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
        let order = parse(&["--run-dir", "/r", "--cpus-milli", "250", "--", "qemu"]).unwrap();
        assert_eq!(order.cpus_milli, Some(250));
        let half = ["--run-dir", "/r", "--cpus-milli", "half", "--", "q"];
        for bad in
            [&[][..], &["--run-dir", "/r"], &["--run-dir", "/r", "--"], &["-x", "/r", "--", "q"], &half[..]]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
