//! The lease as the guard sees it: a file in the working directory that others replace, and a timer.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use calve_wire::guard::{GuardLease, LEASE_FILE};
use rustix::fs::inotify;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

/// How often the file is looked at where the kernel gives no more inotify instances (`inotify(7)`, 128 a user).
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The lease's file with what it says.
#[derive(Debug)]
pub(super) struct LeaseFile {
    lease: GuardLease,
    timer: OwnedFd,
    changes: Option<OwnedFd>,
}

impl LeaseFile {
    /// Reads the file in the working directory.
    pub(super) fn open() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?;
        // Watched before it is read: a change in between is not missed.
        let mut file = Self { lease: read()?, timer, changes: watch().ok() };
        file.lease = read()?;
        file.set_timer()?;
        Ok(file)
    }

    /// Reads it again; false when it is gone, and with it the run directory.
    pub(super) fn refresh(&mut self) -> io::Result<bool> {
        if let Some(changes) = &self.changes {
            let mut events = [0; 4096];
            while matches!(rustix::io::read(changes, &mut events), Ok(count) if count > 0) {}
        }
        match read() {
            Ok(lease) => self.lease = lease,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            // What cannot be read or understood changes nothing: the lease that was known still ends.
            Err(_) => {}
        }
        self.set_timer()?;
        Ok(true)
    }

    /// Whether deadline, grace and slack have passed.
    pub(super) fn is_over(&self) -> bool {
        self.lease.kill_at_boottime_ms().is_some_and(|end| now_boottime_ms() >= end)
    }

    /// Readable when the lease is over.
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Readable when something changed in the directory, where the kernel tells.
    pub(super) fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.changes.as_ref().map(OwnedFd::as_fd)
    }

    /// How often to look, where the kernel does not tell.
    pub(super) fn interval(&self) -> Option<Duration> {
        self.changes.is_none().then_some(LOOK_INTERVAL)
    }

    fn set_timer(&self) -> io::Result<()> {
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let end = self.lease.kill_at_boottime_ms().map_or(none, |ms| Timespec {
            tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
            // A time of zero would stop the timer.
            tv_nsec: i64::try_from(ms % 1000 * 1_000_000 + 1).unwrap_or(1),
        });
        let timer = Itimerspec { it_interval: none, it_value: end };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &timer)?;
        Ok(())
    }
}

fn read() -> io::Result<GuardLease> {
    serde_json::from_slice(&fs::read(LEASE_FILE)?).map_err(io::Error::from)
}

/// Only what happens to a lease: renamed into place, or removed with the directory.
fn watch() -> io::Result<OwnedFd> {
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let events =
        inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::MOVED_FROM | inotify::WatchFlags::DELETE;
    inotify::add_watch(&changes, ".", events)?;
    Ok(changes)
}

fn now_boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}
