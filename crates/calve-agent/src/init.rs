//! Init: makes and reaps every process of a machine, and hands out sockets and terminals of it.
//!
//! *Invariant*: one thread, no runtime, one blocking poll loop; so it can fork at any time, and there is nothing that it
//! could wait for but its two descriptors. It knows nothing of workloads, leases or the server: the agent decides.

pub mod begin;
mod execute;
pub mod packet;
mod spawn;
mod sweep;
mod tree;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::confine_api::Confine;
use packet::{End, Packet, Report, Request};

pub use execute::PATH_DEFAULT;

/// Time between two looks for what is left while everything is being killed: the last ones may be nobody's children yet.
const SWEEP_INTERVAL: Duration = Duration::from_millis(5);
/// Tries of a report while a machine is at its memory limit: the kernel's kill of what took it all frees some in a moment.
const REPORT_TRIES_MAX: u32 = 200;
/// Pause between two of them.
const REPORT_PAUSE: Duration = Duration::from_millis(10);
/// Time that killed processes have to vanish after the agent is gone: more than a flush to a slow disk takes.
const LAST_SWEEP_MAX: Duration = Duration::from_secs(10);

/// How init works in this machine.
pub struct Options<'a> {
    /// What every process gives up before it becomes a program.
    pub confine: &'a dyn Confine,
    /// The agent, where it is a child of init.
    pub spare: Option<i32>,
    /// A process that was made before, which is the agent's number [`FIRST_ID`]; the rest of its group dies with it.
    pub first: Option<i32>,
}

/// The agent's number for a process that was made before it.
pub const FIRST_ID: u64 = 1;

/// Makes an ordinary process the init of everything that it will start: orphans come to it instead of the host's init.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Serves the agent at the other end of `link` until that is closed; then kills everything and returns.
pub fn run(link: OwnedFd, options: &Options<'_>) -> io::Result<()> {
    keep_standard_descriptors()?;
    let children = child_signals()?;
    let first = options.first.map(|pid| (pid, Process { id: FIRST_ID, sweep_group: true }));
    let mut init = Init { link, options, processes: first.into_iter().collect(), emptying: false };
    init.report(&Report::Ready, Vec::new())?;
    options.confine.prepare()?;
    // Of a process that ended before now, no signal tells.
    let served = init.reap().and_then(|()| init.serve(&children));
    init.kill_the_rest(&children);
    served
}

struct Init<'a> {
    link: OwnedFd,
    options: &'a Options<'a>,
    /// By process id.
    processes: HashMap<i32, Process>,
    /// Whether everything is being killed; nothing is started meanwhile.
    emptying: bool,
}

struct Process {
    id: u64,
    sweep_group: bool,
}

impl Init<'_> {
    fn serve(&mut self, children: &File) -> io::Result<()> {
        loop {
            let (asked, died) = wait(&self.link, children, self.emptying.then_some(SWEEP_INTERVAL))?;
            if died {
                drain(children);
            }
            self.reap()?;
            if self.emptying {
                self.look_whether_empty()?;
            }
            if asked && !self.answer()? {
                return Ok(());
            }
        }
    }

    /// Does what one packet asks; false where the agent is gone.
    fn answer(&mut self) -> io::Result<bool> {
        let Some((request, descriptors)) = packet::receive::<Request>(self.link.as_fd())? else {
            return Ok(false);
        };
        match request {
            Request::Spawn { id, work, tty, sweep_group } => {
                let spawned = if self.emptying {
                    Err("the machine is ending".into())
                } else {
                    spawn::spawn(work, tty, descriptors, self.options.confine)
                };
                match spawned {
                    Ok(spawned) => {
                        self.processes.insert(spawned.pid, Process { id, sweep_group });
                        self.report(&Report::Spawned { id }, spawned.terminal.into_iter().collect())?;
                    }
                    Err(why) => self.report(&Report::NotSpawned { id, why }, Vec::new())?,
                }
            }
            Request::Signal { id, signal } => self.signal(id, signal),
            Request::KillAll => {
                self.emptying = true;
                sweep::kill_everything(self.options.spare)?;
                self.look_whether_empty()?;
            }
            Request::Socket { id } => match machine_socket() {
                Ok(socket) => self.report(&Report::Socket { id }, vec![socket])?,
                Err(error) => {
                    self.report(&Report::NoSocket { id, message: error.to_string() }, Vec::new())?
                }
            },
        }
        Ok(true)
    }

    /// A process stays listed until it is reaped, so its group's number cannot be anybody else's.
    fn signal(&self, id: u64, signal: i32) {
        if let Some((pid, _)) = self.processes.iter().find(|(_, process)| process.id == id) {
            kill_group(*pid, signal);
        }
    }

    fn reap(&mut self) -> io::Result<()> {
        while let Some(pid) = next_dead()? {
            let process = self.processes.remove(&pid);
            if process.as_ref().is_some_and(|process| process.sweep_group) {
                kill_group(pid, libc::SIGKILL);
            }
            let end = take_dead(pid)?;
            if let Some(Process { id, .. }) = process {
                self.report(&Report::Exited { id, end }, Vec::new())?;
            }
        }
        Ok(())
    }

    fn look_whether_empty(&mut self) -> io::Result<()> {
        if sweep::anything_left(self.options.spare)? {
            sweep::kill_everything(self.options.spare)?;
            return Ok(());
        }
        self.emptying = false;
        self.report(&Report::Empty, Vec::new())
    }

    fn kill_the_rest(&mut self, children: &File) {
        let end = Instant::now() + LAST_SWEEP_MAX;
        // The spared agent is gone already: it closed its end.
        while Instant::now() < end && sweep::anything_left(None).unwrap_or(false) {
            let _ = sweep::kill_everything(None);
            let _ = wait_readable(children, SWEEP_INTERVAL);
            drain(children);
            while let Ok(Some(pid)) = next_dead() {
                let _ = take_dead(pid);
            }
        }
    }

    /// A report that nobody reads any more is no error: the closed link ends the loop.
    fn report(&self, report: &Report, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let packet = Packet::new(report, descriptors)?;
        let mut tries = 1;
        loop {
            match packet.send(self.link.as_fd()) {
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
                {
                    return Ok(());
                }
                // Init is in the machine's cgroup: the kernel's memory for a packet counts against the machine's limit.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS))
                        && tries < REPORT_TRIES_MAX =>
                {
                    tries += 1;
                    std::thread::sleep(REPORT_PAUSE);
                }
                sent => return sent,
            }
        }
    }
}

/// Descriptors 0 to 2 must be taken, or a received one could get such a number and be overwritten in a child.
fn keep_standard_descriptors() -> io::Result<()> {
    // SAFETY: a system call that only looks whether a descriptor is open (fcntl(2)).
    let is_open = |descriptor| unsafe { libc::fcntl(descriptor, libc::F_GETFD) } >= 0;
    // Where they are, nothing is opened: a guest's program runs already, and may have taken `/dev` elsewhere.
    while !(0..=2).all(is_open) {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        std::mem::forget(null);
    }
    Ok(())
}

/// A descriptor that is readable when a child has ended (signalfd(2)); reading from it does not block.
fn child_signals() -> io::Result<File> {
    // SAFETY: system calls on a local signal set; the descriptor is new and owned by nobody else.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        let descriptor = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(File::from_raw_fd(descriptor))
    }
}

fn drain(mut children: &File) {
    let mut signals = [0; 1024];
    while matches!(children.read(&mut signals), Ok(count) if count > 0) {}
}

/// Waits for the link or a dead child, at most `time`: whether there is the one, the other.
fn wait(link: &OwnedFd, children: &File, time: Option<Duration>) -> io::Result<(bool, bool)> {
    let time = time.map(timespec);
    let mut descriptors = [PollFd::new(link, PollFlags::IN), PollFd::new(children, PollFlags::IN)];
    match rustix::event::poll(&mut descriptors, time.as_ref()) {
        Err(rustix::io::Errno::INTR) => Ok((false, false)),
        polled => {
            polled?;
            Ok((!descriptors[0].revents().is_empty(), !descriptors[1].revents().is_empty()))
        }
    }
}

fn wait_readable(children: &File, time: Duration) -> io::Result<()> {
    rustix::event::poll(&mut [PollFd::new(children, PollFlags::IN)], Some(&timespec(time)))?;
    Ok(())
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() }
}

/// The next child that has ended; it stays a zombie, so that its numbers stay its own.
fn next_dead() -> io::Result<Option<i32>> {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: a zeroed siginfo is valid to be written to, and `si_pid` is set (or still zero) after success.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        if libc::waitid(libc::P_ALL, 0, &raw mut info, options) < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error) };
        }
        Ok(Some(info.si_pid()).filter(|pid| *pid != 0))
    }
}

/// Reaps a child that has ended.
fn take_dead(pid: i32) -> io::Result<End> {
    let mut status = 0;
    // SAFETY: `status` is valid to be written to.
    if unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(if libc::WIFSIGNALED(status) {
        End::Signal(libc::WTERMSIG(status))
    } else {
        End::Code(libc::WEXITSTATUS(status))
    })
}

fn kill_group(pid: i32, signal: i32) {
    // SAFETY: a plain system call; the leader is not reaped yet, so the group is still its own.
    unsafe { libc::kill(-pid, signal) };
}

/// A TCP socket of init's network.
fn machine_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?)
}
