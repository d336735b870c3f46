//! A child that cannot outlive the guard.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child as Process, Command, ExitStatus, Stdio};

use anyhow::Context as _;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal};

/// A running child with what it says.
#[derive(Debug)]
pub(super) struct Child {
    process: Process,
    /// Readable when it has ended.
    pub(super) pidfd: OwnedFd,
    /// Its standard output.
    pub(super) output: Option<File>,
    /// Its standard error.
    pub(super) errors: Option<File>,
}

impl Child {
    /// Starts it in the working directory. `name` is for people.
    pub(super) fn start(mut command: Command, name: &'static str) -> anyhow::Result<Self> {
        let guard = std::process::id();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: the closure makes system calls only and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // Where the guard died before the call above, nobody would send the signal.
                let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_pid().unsigned_abs());
                if parent == guard { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
            });
        }
        let started = command.spawn();
        let program = || command.get_program().to_string_lossy().into_owned();
        let mut process = started.with_context(|| format!("{} cannot be started", program()))?;
        let output = process.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        let errors = process.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { process, pidfd, output, errors }),
            Err(error) => {
                process.kill()?;
                process.wait()?;
                Err(error).with_context(|| format!("{name} cannot be watched"))
            }
        }
    }

    /// Its process id and start time (`proc_pid_stat(5)`, field 22).
    pub(super) fn identity(&self) -> anyhow::Result<(i32, u64)> {
        let pid = i32::try_from(self.process.id()).context("a process id")?;
        Ok((pid, start_ticks(pid)?))
    }

    /// Ends it; one that has ended already is fine.
    pub(super) fn kill(&mut self) {
        let _ = self.process.kill();
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.process.wait()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        // It was waited for already, or its end is all that is wanted.
        let _ = self.wait();
    }
}

/// `proc_pid_stat(5)`, field 22; the command's name before it may hold spaces and parentheses.
pub(super) fn start_ticks(pid: i32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let behind_name = text.rfind(')').map_or("", |at| &text[at + 1..]);
    behind_name
        .split_ascii_whitespace()
        .nth(19)
        .and_then(|ticks| ticks.parse().ok())
        .context("a start time in /proc")
}
