//! The driver's side of the guard: starts it, tells it the lease, and ends it with everything that it looks after.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use calve_core::MachineId;
use calve_wire::agent::{Remaining, SandboxCgroups};
use calve_wire::guard::{GO_BYTE, GuardLease, GuardProcesses, LEASE_FILE, PROCESSES_FILE, READY_LINE};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStdin, Command};

use super::command::{GuestPlan, QMP_SOCKET};
use super::qmp::Qmp;
use crate::driver::{DriverError, DriverErrorKind};
use crate::run_dir::{Process, RunDirs};

/// Time for the guard to say that QEMU runs, or why not: it gives up by itself before that.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest line of a guard.
const LINE_MAX_BYTES: u64 = 16 * 1024;
/// Time that a process has to be gone after SIGKILL: a guest's memory is given back meanwhile.
const GONE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a cgroup is tried whose last process has only just ended: the kernel gives nothing to wait on.
const CGROUP_INTERVAL: Duration = Duration::from_millis(1);
/// A guard may write its last words while its directory is removed.
const REMOVALS_MAX: u32 = 5;

/// A guard whose machine is not written down yet: dropped, it ends QEMU and itself.
pub(crate) struct Guard {
    process: Option<Process>,
    go: ChildStdin,
}

impl Guard {
    /// Starts a guard with QEMU and waits until that accepts connections.
    pub(crate) async fn start(agent: &Path, dir: &Path, plan: &GuestPlan) -> Result<Self, DriverError> {
        let failed = |what: &str| DriverError::new(DriverErrorKind::Failed, what);
        let cpus = plan.cpus_milli.map(|cpus| ["--cpus-milli".to_owned(), cpus.to_string()]);
        let mut child = Command::new(agent)
            .arg("guard")
            .arg("--run-dir")
            .arg(dir)
            .args(cpus.into_iter().flatten())
            .arg("--")
            .args(plan.argv())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed("the guard of the guest cannot be started").caused_by(error))?;
        let (go, said) = child.stdin.take().zip(child.stdout.take()).expect("both are piped");
        let process = child.id().and_then(|pid| Process::of(i32::try_from(pid).ok()?));
        let mut line = String::new();
        let mut said = BufReader::new(said.take(LINE_MAX_BYTES));
        let read = tokio::time::timeout(READY_TIMEOUT, said.read_line(&mut line)).await;
        match read {
            Ok(Ok(_)) if line.trim_end() == READY_LINE => Ok(Self { process, go }),
            Ok(Ok(0)) => Err(failed("the guard of the guest ended without a word")),
            Ok(Ok(_)) => Err(failed(line.trim_end())),
            Ok(Err(error)) => Err(failed("the guard of the guest cannot be read").caused_by(error)),
            Err(_) => Err(failed("QEMU did not start in time")),
        }
    }

    /// Its process.
    pub(crate) fn process(&self) -> Option<Process> {
        self.process
    }

    /// Lets it go: from here on it lives by itself.
    pub(crate) async fn release(mut self) -> io::Result<()> {
        self.go.write_all(&[GO_BYTE]).await?;
        self.go.flush().await
    }
}

/// Writes what remains of a lease for the guard, at once or not at all.
pub(crate) fn write_lease(dir: &Path, remaining: Remaining) -> io::Result<()> {
    let now = clock_gettime(ClockId::Boottime);
    let now_ms = now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000;
    let deadline_boottime_ms = remaining.until_deadline_ms.map(|until| now_ms.saturating_add(until));
    let lease = GuardLease { deadline_boottime_ms, grace_ms: remaining.grace_ms };
    let new = dir.join(format!("{LEASE_FILE}.new"));
    fs::write(&new, serde_json::to_vec(&lease).expect("plain numbers"))?;
    fs::rename(new, dir.join(LEASE_FILE))
}

/// Ends everything of a machine and removes its run directory; absence is success.
pub(crate) async fn end(dirs: &RunDirs, id: MachineId) -> io::Result<()> {
    let dir = dirs.path(id);
    if !dir.exists() {
        return Ok(());
    }
    let mut processes = processes(&dir);
    processes.extend(dirs.meta(id).map(|meta| meta.process));
    if processes.iter().any(Process::is_alive) {
        // Asked, QEMU is gone within milliseconds and the guard writes down why; otherwise both are killed.
        let asked = async { Qmp::connect(&dir.join(QMP_SOCKET)).await?.quit().await };
        if asked.await.is_err() {
            for process in &processes {
                kill(*process);
            }
        }
    } else {
        // A guard that has only just started ends with its lease.
        let _ = fs::remove_file(dir.join(LEASE_FILE));
    }
    for process in processes {
        if !gone(process, GONE_TIMEOUT).await? {
            kill(process);
            if !gone(process, GONE_TIMEOUT).await? {
                return Err(io::Error::other(format!("process {} does not end", process.pid)));
            }
        }
    }
    remove_cgroups(&dir, id).await?;
    remove(dirs, id)
}

/// What is left of the cgroups where the guard did not remove them itself: it was killed.
async fn remove_cgroups(dir: &Path, id: MachineId) -> io::Result<()> {
    let read = || serde_json::from_slice(&fs::read(dir.join("cgroups.json")).ok()?).ok();
    let cgroups: SandboxCgroups = read().unwrap_or_default();
    let ours = |dir: &PathBuf| dir.ends_with(id.to_string());
    for cgroup in cgroups.dirs.into_iter().map(PathBuf::from).filter(ours) {
        let give_up = Instant::now() + GONE_TIMEOUT;
        loop {
            match fs::remove_dir(&cgroup) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < give_up => {
                    tokio::time::sleep(CGROUP_INTERVAL).await;
                }
                removed => break removed?,
            }
        }
        // The directory that all machines share goes with the last; until then it is not empty, which is as well.
        let _ = cgroup.parent().map(fs::remove_dir);
    }
    Ok(())
}

/// QEMU first: the guard ends after it.
fn processes(dir: &Path) -> Vec<Process> {
    let read = || -> Option<GuardProcesses> {
        serde_json::from_slice(&fs::read(dir.join(PROCESSES_FILE)).ok()?).ok()
    };
    let all = |processes: GuardProcesses| {
        let qemu = Process { pid: processes.qemu_pid, start_ticks: processes.qemu_start_ticks };
        let store = processes.store.map(|(pid, start_ticks)| Process { pid, start_ticks });
        let guard = Process { pid: processes.guard_pid, start_ticks: processes.guard_start_ticks };
        [Some(qemu), store, Some(guard)]
    };
    read().map(all).into_iter().flatten().flatten().collect()
}

fn remove(dirs: &RunDirs, id: MachineId) -> io::Result<()> {
    let mut removed = dirs.remove(id);
    for _ in 1..REMOVALS_MAX {
        if !matches!(&removed, Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty) {
            break;
        }
        removed = dirs.remove(id);
    }
    removed
}

/// A descriptor of just this process; none where it is gone.
fn descriptor(process: Process) -> Option<OwnedFd> {
    let fd = pidfd_open(Pid::from_raw(process.pid)?, PidfdFlags::NONBLOCK).ok()?;
    // Between reading the number and opening it, another process may have got it.
    process.is_alive().then_some(fd)
}

fn kill(process: Process) {
    if let Some(fd) = descriptor(process) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&fd, Signal::KILL);
    }
}

/// Waits for the end of a process; false where it takes too long.
pub(crate) async fn gone(process: Process, timeout: Duration) -> io::Result<bool> {
    let Some(fd) = descriptor(process) else { return Ok(true) };
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and the runtime owns it from here on.
    let fd = unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE)? };
    Ok(tokio::time::timeout(timeout, fd.readable()).await.is_ok())
}
