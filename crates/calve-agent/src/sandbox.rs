//! The sandbox: a process that is the first one of its own namespaces, sees a closure and nothing else of the host, and
//! is counted by cgroups of its own.
//!
//! ```text
//!  agent                                         init (PID 1 of the sandbox)
//!    write traces, make cgroups, clone ─────────▶ enter the cgroups, open what will be mounted, as the host's user
//!    write the id maps, then "mapped" ──────────▶ become root of the user namespace, die with the agent from here on
//!                                                build the tree, enter it, raise the loopback
//!    read the report ◀────────────────────────── report, then run what the caller wants to run as init
//! ```
//! It must begin while the agent has one thread: the child is a plain copy of it, and dies with the thread that made it.

mod clone;
mod etc;
mod ids;
mod init;
mod mounts;
mod net;
pub mod probe;
pub mod ready;
mod talk;
mod traces;
mod tree;

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use calve_wire::agent::{SandboxFailure, SandboxFailureKind, SandboxSpec};
use calve_wire::machine::Network;
use rustix::process::{
    Resource, Rlimit, Signal, WaitId, WaitIdOptions, getrlimit, pidfd_send_signal, setrlimit, waitid,
};

use crate::cgroup::{self, Cgroup, Controller};
use crate::confine::Confinement;

/// Why a sandbox could not be made; the driver gets it as it is.
pub type SandboxError = SandboxFailure;

/// A sandbox whose init runs.
#[derive(Debug)]
pub struct Sandbox {
    init: OwnedFd,
    pid: i32,
    cgroup: Cgroup,
    notes: Vec<String>,
}

/// Makes the sandbox and runs `init` in it as its first process, as root of its user namespace and with nothing of the
/// host in sight; gives the agent's hold on it once init is about to run. What `init` needs of open descriptors it takes
/// along. Each program that it starts must go through [`Confinement::apply`].
pub fn launch(
    spec: &SandboxSpec,
    run_dir: &Path,
    init: impl FnOnce(Confinement) -> Infallible,
) -> Result<Sandbox, SandboxError> {
    check(spec)?;
    let host = cgroup::Hierarchies::of_host();
    let plan = cgroup::Plan::new(&host, &spec.machine_id, &spec.limits);
    traces::write_cgroups(run_dir, plan.dirs())
        .map_err(|e| failed("the run directory cannot be written", &e))?;
    let cgroup = plan.make();
    launch_in(spec, run_dir, &cgroup, init)
        .map(|(pid, pidfd, notes)| {
            let notes = cgroup.notes().iter().cloned().chain(notes).collect();
            (pid, pidfd, notes)
        })
        .inspect_err(|_| drop(cgroup.remove()))
        .map(|(pid, init, notes)| Sandbox { init, pid, cgroup, notes })
}

type Launched = (i32, OwnedFd, Vec<String>);

fn launch_in(
    spec: &SandboxSpec,
    run_dir: &Path,
    cgroup: &Cgroup,
    init: impl FnOnce(Confinement) -> Infallible,
) -> Result<Launched, SandboxError> {
    // Another process for init itself, which is none of the user's.
    let processes =
        spec.limits.pids.filter(|_| !cgroup.enforces(Controller::Pids)).map(|n| n.saturating_add(1));
    let confinement =
        Confinement::new(processes).map_err(|e| failed("the system call filter cannot be made", &e))?;
    let files = etc::Files::new(spec);
    let (ours, theirs) = talk::Talk::pair().map_err(|e| failed("no socket pair for init", &e.into()))?;
    let map = ids::Map::choose(&spec.machine_id);
    let into =
        cgroup.clone_into().transpose().map_err(|e| failed("the machine's cgroup cannot be opened", &e))?;
    let entrances = cgroup.entrances().map_err(|e| failed("the machine's cgroup cannot be opened", &e))?;
    let (cloned, map) =
        clone::clone(map, spec.network, into.as_ref().map(AsFd::as_fd)).map_err(unclonable)?;
    let child = match cloned {
        clone::Cloned::Child { in_cgroup } => {
            drop(ours);
            let entrances =
                entrances.into_iter().filter(|entrance| !(in_cgroup && entrance.is_v2())).collect();
            init::run(init::Job { spec, map, files: &files, agent: &theirs, entrances }, confinement, init)
        }
        clone::Cloned::Parent { pid, pidfd } => Child { pid, pidfd },
    };
    drop((theirs, entrances));
    let notes = child.bring_up(&ours, map, run_dir)?;
    let notes = map.note().into_iter().chain(notes).collect();
    let (pid, pidfd) = child.keep();
    Ok((pid, pidfd, notes))
}

/// What the driver wrote is right by itself; this guards the two things that would let a mistake out of the sandbox.
fn check(spec: &SandboxSpec) -> Result<(), SandboxError> {
    if spec.version != calve_wire::agent::AGENT_PROTOCOL_VERSION {
        return Err(SandboxFailure {
            kind: SandboxFailureKind::Unusable,
            message: format!("sandbox.json is of version {}, this agent knows version 1", spec.version),
            hint: Some("install calve and calve-agent from the same release".to_owned()),
        });
    }
    let plain = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    let bad = spec.store_paths.iter().map(|path| path.base_name.as_str()).chain([spec.machine_id.as_str()]);
    match bad.into_iter().find(|name| !plain(name)) {
        Some(name) => Err(SandboxFailure {
            kind: SandboxFailureKind::Unusable,
            message: format!("{name:?} in sandbox.json is no name for a directory entry"),
            hint: None,
        }),
        None => Ok(()),
    }
}

/// A cloned init that is killed unless it is kept.
struct Child {
    pid: i32,
    pidfd: OwnedFd,
}

impl Child {
    fn bring_up(
        &self,
        socket: &talk::Talk,
        map: ids::Map,
        run_dir: &Path,
    ) -> Result<Vec<String>, SandboxError> {
        traces::write_init(run_dir, self.pid)
            .map_err(|e| failed("the run directory cannot be written", &e))?;
        let mapped = map.write(self.pid);
        match &mapped {
            // An error here means that init is gone: its report, or the lack of one, says why.
            Ok(()) => drop(socket.say(&[init::MAPPED])),
            Err(_) => socket.fall_silent(),
        }
        match (init::read_report(socket), mapped) {
            (Some(report), _) => report,
            (None, Err(error)) => Err(failed("the user id map cannot be written", &error)),
            (None, Ok(())) => Err(SandboxFailure {
                kind: SandboxFailureKind::Failed,
                message: "the sandbox's first process was killed before it could begin".to_owned(),
                hint: Some("its memory limit may be too small, or the host is out of memory".to_owned()),
            }),
        }
    }

    fn keep(self) -> (i32, OwnedFd) {
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: the wrapper keeps `this` from being dropped, so the descriptor is moved out exactly once.
        (this.pid, unsafe { std::ptr::read(&this.pidfd) })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

impl Sandbox {
    /// Init's process id on the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Becomes readable when init, and with it everything in the sandbox, has ended (`pidfd_open(2)`).
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.init.as_fd()
    }

    /// Which limits are not enforced and why, and what else is less than it should be: for people.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// How often the kernel has killed something in the sandbox for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.cgroup.oom_kills()
    }

    /// How often a process could not be started for the limit on them.
    pub fn pids_limit_hits(&self) -> u64 {
        self.cgroup.pids_limit_hits()
    }

    /// Kills init and with it everything in the sandbox. Returns at once; [`Sandbox::pidfd`] says when it is done.
    pub fn kill_all(&self) {
        // It can only fail because init is gone, and then so is everything.
        let _ = pidfd_send_signal(&self.init, Signal::KILL);
    }

    /// Kills what is left, waits for its end, and removes the cgroups.
    pub fn remove(self) -> io::Result<()> {
        self.kill_all();
        let _ = waitid(WaitId::PidFd(self.init.as_fd()), WaitIdOptions::EXITED);
        self.cgroup.remove()
    }
}

/// Lets this process open as many files as it may: each store path is held open once while the tree is built.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn failed(what: &str, error: &io::Error) -> SandboxError {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let kind = if full { SandboxFailureKind::NoSpace } else { SandboxFailureKind::Failed };
    SandboxFailure { kind, message: format!("{what}: {error}"), hint: None }
}

fn unclonable(error: io::Error) -> SandboxError {
    let (kind, hint) = match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOMEM) => {
            (SandboxFailureKind::NoSpace, "too many processes or too little memory")
        }
        Some(libc::ENOSPC) => (SandboxFailureKind::Unusable, "raise the limits under /proc/sys/user"),
        _ => (SandboxFailureKind::Unusable, "`calve doctor` says what this host lacks"),
    };
    SandboxFailure {
        kind,
        message: format!("no namespaces for the sandbox: {error}"),
        hint: Some(hint.to_owned()),
    }
}

/// Whether the machine's network is its own.
fn own_network(network: Network) -> bool {
    match network {
        Network::None => true,
        Network::Host => false,
    }
}
