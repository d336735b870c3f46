//! Programs of the host that are run for a switch: with a time limit, and with nothing left of them where they exceed it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::host::Host;

/// Bytes of a program's output that are kept, its last ones.
const OUTPUT_MAX_BYTES: usize = 64 * 1024;
/// Time between a polite end and a certain one.
const TERM_GRACE: Duration = Duration::from_secs(1);
/// Pause between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(10);
/// Most rounds of killing what a program left: each finds what the last one made an orphan.
const SWEEPS_MAX: u32 = 1000;

/// A program that runs.
pub struct Program {
    child: Child,
    output: Option<File>,
    said: Vec<u8>,
}

/// The command that activates a system, or does another verb of its `switch-to-configuration`.
pub fn switch_command(host: &Host, toplevel: &str, verb: &str) -> Command {
    let mut command = Command::new(crate::profile::switch_program(host, toplevel));
    command.arg(verb);
    environment(host, &[toplevel], &mut command);
    command
}

/// A line for the host's shell.
pub fn shell_command(host: &Host, toplevel: &str, line: &str) -> Command {
    let shell = match host.is_real() {
        true => host.program(&[toplevel], "sh").unwrap_or_else(|| Path::new("/bin/sh").to_owned()),
        false => Path::new("/bin/sh").to_owned(),
    };
    let mut command = Command::new(shell);
    command.args(["-c", line]);
    environment(host, &[toplevel], &mut command);
    command
}

/// What programs of a host find around them.
pub fn environment(host: &Host, systems: &[&str], command: &mut Command) {
    let own = systems.iter().map(|system| format!("{}/sw/bin", host.path(system).display()));
    let usual = "/run/current-system/sw/bin:/run/wrappers/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let path: Vec<String> = own.chain([usual.to_owned()]).collect();
    command.env_clear().env("PATH", path.join(":")).env("HOME", "/root").env("LC_ALL", "C");
    if !host.is_real() {
        command.env("CALVE_SWITCH_ROOT", host.root());
    }
    command.current_dir("/").stdin(Stdio::null());
}

impl Program {
    /// Starts it, in a group of its own.
    pub fn start(mut command: Command) -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&read, true)?;
        command.stdout(write.try_clone()?).stderr(write).process_group(0);
        // What must not fall victim to a want of memory is this program, not what it runs.
        // SAFETY: between fork and exec of a program with one thread; it opens and writes a file.
        unsafe {
            command.pre_exec(|| {
                let _ = std::fs::write("/proc/self/oom_score_adj", "0");
                Ok(())
            });
        }
        let child = command.spawn()?;
        Ok(Self { child, output: Some(read.into()), said: Vec::new() })
    }

    /// How it ended, where it has.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.read();
        let ended = self.child.try_wait()?;
        if ended.is_some() {
            self.read();
        }
        Ok(ended)
    }

    /// Waits for its end, and ends it behind this time: how it ended, none where that was it, and what it wrote.
    pub fn finish(mut self, longest: Duration) -> io::Result<(Option<ExitStatus>, String)> {
        let until = Instant::now() + longest;
        loop {
            let ended = self.ended()?;
            if ended.is_some() {
                return Ok((ended, self.said()));
            }
            if Instant::now() >= until {
                self.end();
                return Ok((None, self.said()));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Where it writes.
    pub fn output(&self) -> Option<impl AsFd + '_> {
        self.output.as_ref()
    }

    /// The end of what it wrote.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.said).trim().to_owned()
    }

    /// Ends it and everything that came from it.
    pub fn end(&mut self) {
        let group = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::TERM);
        let until = Instant::now() + TERM_GRACE;
        while Instant::now() < until && !matches!(self.child.try_wait(), Ok(Some(_))) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.child.kill();
        kill_children();
    }

    fn read(&mut self) {
        let Some(output) = &mut self.output else { return };
        let mut bytes = [0; 8192];
        loop {
            match output.read(&mut bytes) {
                Ok(0) => {
                    self.output = None;
                    return;
                }
                Ok(count) => {
                    self.said.extend_from_slice(&bytes[..count]);
                    let excess = self.said.len().saturating_sub(OUTPUT_MAX_BYTES);
                    self.said.drain(..excess);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

/// Kills every child of this process until none comes any more: orphans of killed ones come to it (`PR_SET_CHILD_SUBREAPER`).
pub fn kill_children() {
    for _ in 0..SWEEPS_MAX {
        let children = children();
        if children.is_empty() {
            return;
        }
        for pid in &children {
            // SAFETY: plain system calls; a child that was not reaped keeps its number.
            unsafe {
                libc::kill(*pid, libc::SIGKILL);
                // A process that a disk holds does not die at once, and must not hold up the rest.
                libc::waitpid(*pid, std::ptr::null_mut(), libc::WNOHANG);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The children of this process (proc_pid_stat(5), field 4).
fn children() -> Vec<i32> {
    let own = std::process::id().to_string();
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        behind.split_whitespace().nth(1) == Some(own.as_str())
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(is_child).collect()
}
