//! Ends and removes everything of one machine, from what its run directory says alone.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use calve_core::MachineId;
use calve_wire::agent::{SandboxCgroups, SandboxInit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::de::DeserializeOwned;

use super::failed;
use crate::driver::DriverError;
use crate::run_dir::{Process, RunDirs};

/// Longest wait for killed processes and their cgroups: only a process that waits for a dead disk takes so long.
const END_DEADLINE: Duration = Duration::from_secs(20);
/// Pause between two tries where the kernel gives nothing to wait on.
const PAUSE: Duration = Duration::from_millis(1);

/// Ends the machine; absence is success.
pub fn end(dirs: &RunDirs, id: MachineId) -> Result<(), DriverError> {
    let path = dirs.path(id);
    let dir = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        dir => dir.map_err(|e| failed("the machine's run directory cannot be opened").caused_by(e))?,
    };
    let deadline = Instant::now() + END_DEADLINE;
    if let Some(meta) = dirs.meta(id) {
        kill(meta.process, deadline)
            .map_err(|e| failed("the machine's supervisor cannot be ended").caused_by(e))?;
    }
    // A supervisor that is not written down lost its driver, and ends by itself; its lock goes with it.
    let locked = retry(deadline, || flock(&dir, FlockOperation::NonBlockingLockExclusive));
    locked.map_err(|e| failed("the machine's supervisor does not end").caused_by(e))?;
    if let Some(init) = read::<SandboxInit>(&path, "init.json") {
        // It dies with its supervisor. The kernel tells its end only once everything in the sandbox has ended.
        let init = Process { pid: init.pid, start_ticks: init.start_ticks };
        kill(init, deadline).map_err(|e| failed("the machine's processes cannot be ended").caused_by(e))?;
    }
    let ours = |dir: &PathBuf| dir.ends_with(id.to_string());
    let cgroups: SandboxCgroups = read(&path, "cgroups.json").unwrap_or_default();
    for cgroup in cgroups.dirs.into_iter().map(PathBuf::from).filter(ours) {
        remove_cgroup(&cgroup, deadline)?;
    }
    dirs.remove(id).map_err(|e| failed("the machine's run directory cannot be removed").caused_by(e))
}

/// What the agent has written; none where it was cut off, and what the file should name was not made.
fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(dir.join(name)).ok()?).ok()
}

/// Kills the process and waits for its end; absence is success.
fn kill(process: Process, deadline: Instant) -> io::Result<()> {
    let Some(pidfd) = open(process)? else { return Ok(()) };
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Err(Errno::SRCH) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    loop {
        let rest = deadline.saturating_duration_since(Instant::now());
        let rest = Timespec { tv_sec: rest.as_secs().cast_signed(), tv_nsec: rest.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&rest)) {
            // Ends of other machines' supervisors are signals to this process.
            Err(Errno::INTR) => {}
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            polled => return polled.map(drop).map_err(io::Error::from),
        }
    }
}

/// The process and no later one with its number: what is open is looked at again.
fn open(process: Process) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(None) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(None),
        pidfd => pidfd?,
    };
    Ok(process.is_alive().then_some(pidfd))
}

fn remove_cgroup(dir: &Path, deadline: Instant) -> Result<(), DriverError> {
    let removed = retry(deadline, || match rustix::fs::rmdir(dir) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::BUSY) => Err(Errno::AGAIN),
        result => result,
    });
    removed.map_err(|e| failed(&format!("the cgroup {} cannot be removed", dir.display())).caused_by(e))?;
    // The directory that all machines share goes with the last; until then it is not empty, which is as well.
    let _ = dir.parent().map(fs::remove_dir);
    Ok(())
}

/// Tries again as long as the answer is "not now".
fn retry(deadline: Instant, mut work: impl FnMut() -> Result<(), Errno>) -> io::Result<()> {
    loop {
        match work() {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if Instant::now() < deadline => thread::sleep(PAUSE),
            result => return result.map_err(io::Error::from),
        }
    }
}
