//! QEMU as a child that cannot outlive the guard.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::Context as _;
use calve_wire::guard::{GuardProcesses, PROCESSES_FILE};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A running QEMU.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    /// Readable when it has ended.
    pub(super) pidfd: OwnedFd,
    /// The guest's serial console.
    pub(super) console: Option<File>,
    /// What QEMU says of itself.
    pub(super) errors: Option<File>,
}

impl Qemu {
    /// Starts it in the working directory and writes down who is who.
    pub(super) fn start(argv: &[OsString]) -> anyhow::Result<Self> {
        let (program, arguments) = argv.split_first().context("no program is given")?;
        let guard = std::process::id();
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: the closure makes system calls only and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                // Where the guard died before the call above, nobody would send the signal.
                let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_pid().unsigned_abs());
                if parent == guard { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
            });
        }
        let mut child =
            command.spawn().with_context(|| format!("{} cannot be started", program.to_string_lossy()))?;
        let console = child.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        let errors = child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        let pid = i32::try_from(child.id()).context("a process id")?;
        let pidfd = pidfd_open(Pid::from_raw(pid).context("a process id")?, PidfdFlags::empty());
        let mut qemu = match pidfd {
            Ok(pidfd) => Self { child, pidfd, console, errors },
            Err(error) => {
                child.kill()?;
                child.wait()?;
                return Err(error).context("QEMU cannot be watched");
            }
        };
        if let Err(error) = write_processes(pid) {
            qemu.kill();
            qemu.wait()?;
            return Err(error);
        }
        Ok(qemu)
    }

    /// Ends it; one that has ended already is fine.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

fn write_processes(qemu_pid: i32) -> anyhow::Result<()> {
    let guard_pid = i32::try_from(std::process::id()).context("a process id")?;
    let processes = GuardProcesses {
        guard_pid,
        guard_start_ticks: start_ticks(guard_pid)?,
        qemu_pid,
        qemu_start_ticks: start_ticks(qemu_pid)?,
    };
    let new = format!("{PROCESSES_FILE}.new");
    fs::write(&new, serde_json::to_vec(&processes)?)?;
    fs::rename(new, PROCESSES_FILE).context("the run directory cannot be written")
}

/// `proc_pid_stat(5)`, field 22; the command's name before it may hold spaces and parentheses.
fn start_ticks(pid: i32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let behind_name = text.rfind(')').map_or("", |at| &text[at + 1..]);
    behind_name
        .split_ascii_whitespace()
        .nth(19)
        .and_then(|ticks| ticks.parse().ok())
        .context("a start time in /proc")
}
