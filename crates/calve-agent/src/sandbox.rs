//! The sandbox: a process that is the first one of its own namespaces, sees a closure and nothing else of the host, and
//! is counted by cgroups of its own.
//!
//! ```text
//!  agent                                         init (PID 1 of the sandbox)
//!    write traces, make cgroups, clone ─────────▶ enter the cgroups, open what will be mounted, as the host's user
//!    write the id maps, then "mapped" ──────────▶ become root of the user namespace, die with the agent from here on
//!                                                build the tree, enter it, raise the loopback
//!    hear the report ◀────────────────────────── report, then run what the caller wants to run as init;
//!                                                before the first program: drop the host's tree, filter system calls
//! ```
//! It must begin while the agent has one thread: the child is a plain copy of it, and dies with the thread that made it.

mod clone;
mod etc;
mod ids;
mod init;
pub mod mounts;
mod net;
pub mod probe;
pub mod ready;
pub mod standby;
mod talk;
mod task;
pub mod title;
pub mod traces;
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

use talk::Talk;

use crate::cgroup::{self, Cgroup, Controller};
use crate::confine::Confinement;

/// Why a sandbox could not be made; the driver gets it as it is.
pub type SandboxError = SandboxFailure;

/// A sandbox. When it is dropped, nothing of it is left.
#[derive(Debug)]
pub struct Sandbox {
    init: First,
    agent: Talk,
    mapped: io::Result<()>,
    cgroup: Cgroup,
    notes: Vec<String>,
}

/// Makes the sandbox and runs `init` in it as its first process, as root of its user namespace and with nothing of the
/// host in sight. Returns while init is still on its way: [`Sandbox::entered`] waits for it. What `init` needs of open
/// descriptors it takes along. Each program that it starts must go through [`Confinement::apply`].
pub fn launch(
    spec: &SandboxSpec,
    run_dir: &Path,
    init: impl FnOnce(Confinement) -> Infallible,
) -> Result<Sandbox, SandboxError> {
    check(spec)?;
    let plan = cgroup::Plan::new(&cgroup::Hierarchies::of_host(), &spec.machine_id, &spec.limits);
    let cgroup = make_cgroups(plan, run_dir)?;
    let mut confinement = confinement()?;
    confinement.go_first(&spec.limits);
    if let Some(most) = uncounted_processes(spec, &cgroup) {
        confinement.limit_processes(most);
    }
    let files = etc::Files::new(spec);
    let (ours, theirs) = talk()?;
    let into = cgroup.clone_into().transpose().map_err(unopened)?;
    let entrances = cgroup.entrances().map_err(unopened)?;
    let map = ids::Map::choose(&spec.machine_id);
    let (cloned, map) = clone::clone(map, into.as_ref().map(AsFd::as_fd)).map_err(unclonable)?;
    let first = match cloned {
        clone::Cloned::Child { in_cgroup } => {
            drop(ours);
            let entered = |entrance: &cgroup::Entrance| in_cgroup && entrance.is_v2();
            let entrances = entrances.into_iter().filter(|entrance| !entered(entrance)).collect();
            init::run(init::Job { spec, map, files: &files, agent: &theirs, entrances }, confinement, init)
        }
        clone::Cloned::Parent { pid, pidfd } => First { pid, pidfd },
    };
    drop(theirs);
    traces::write_init(run_dir, first.pid).map_err(unwritable)?;
    let mapped = let_go_on(&ours, map, first.pid);
    let notes = cgroup.notes().iter().cloned().chain(map.note()).collect();
    Ok(Sandbox { init: first, agent: ours, mapped, cgroup, notes })
}

/// Writes down the cgroups, then makes them.
fn make_cgroups(plan: cgroup::Plan, run_dir: &Path) -> Result<Cgroup, SandboxError> {
    traces::write_cgroups(run_dir, plan.dirs()).map_err(unwritable)?;
    Ok(plan.make())
}

fn talk() -> Result<(Talk, Talk), SandboxError> {
    Talk::pair().map_err(|e| failed("no socket pair for init", &e.into()))
}

fn confinement() -> Result<Confinement, SandboxError> {
    Confinement::new(tree::drop_host).map_err(|e| failed("the system call filter cannot be made", &e))
}

/// The limit of processes, where no cgroup counts them; another one for init itself, which is none of the user's.
fn uncounted_processes(spec: &SandboxSpec, cgroup: &Cgroup) -> Option<u32> {
    let counted = cgroup.enforces(Controller::Pids);
    spec.limits.pids.filter(|_| !counted).map(|n| n.saturating_add(1))
}

/// Lets init go on, as root of its namespace.
fn let_go_on(init: &Talk, map: ids::Map, pid: i32) -> io::Result<()> {
    let mapped = map.write(pid);
    match mapped {
        // An error means that init is gone: its report, or the lack of one, says why.
        Ok(()) => drop(init.say(&[init::MAPPED])),
        Err(_) => init.fall_silent(),
    }
    mapped
}

fn unwritable(error: io::Error) -> SandboxError {
    failed("the run directory cannot be written", &error)
}

fn unopened(error: io::Error) -> SandboxError {
    failed("the machine's cgroup cannot be opened", &error)
}

/// The first process of a sandbox; everything in there dies with it. Killed and waited for when it is dropped.
#[derive(Debug)]
struct First {
    pid: i32,
    pidfd: OwnedFd,
}

impl First {
    fn kill(&self) {
        // It can only fail because it is gone, and then so is everything.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

impl Drop for First {
    fn drop(&mut self) {
        self.kill();
        // It can only fail because it was waited for already.
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
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

impl Sandbox {
    /// Waits until init is about to run what it was given, or says why it never will. To be called once.
    pub fn entered(&mut self) -> Result<(), SandboxError> {
        match (init::read_report(&self.agent), &self.mapped) {
            (Some(report), _) => self.notes.extend(report?),
            (None, Err(error)) => return Err(failed("the user id map cannot be written", error)),
            (None, Ok(())) => {
                return Err(SandboxFailure {
                    kind: SandboxFailureKind::Failed,
                    message: "the sandbox's first process was killed before it could begin".to_owned(),
                    hint: Some("its memory limit may be too small, or the host is out of memory".to_owned()),
                });
            }
        }
        Ok(())
    }

    /// Init's process id on the host.
    pub fn pid(&self) -> i32 {
        self.init.pid
    }

    /// Becomes readable when init, and with it everything in the sandbox, has ended (`pidfd_open(2)`).
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.init.pidfd.as_fd()
    }

    /// Which limits are not enforced and why, and what else is less than it should be, for people; complete once init has
    /// entered.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// How often the kernel has killed something in the sandbox for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.cgroup.oom_kills()
    }

    /// Bytes of memory that its files hold, and its limit; none where that is not enforced.
    pub fn files_in_memory(&self) -> Option<(u64, u64)> {
        self.cgroup.shared_memory()
    }

    /// How often a process could not be started for the limit on them.
    pub fn pids_limit_hits(&self) -> u64 {
        self.cgroup.pids_limit_hits()
    }

    /// Kills init and with it everything in the sandbox. Returns at once; [`Sandbox::pidfd`] says when it is done.
    pub fn kill_all(&self) {
        self.init.kill();
    }

    /// Kills what is left, waits for its end, and removes the cgroups.
    pub fn remove(self) -> io::Result<()> {
        drop(self.init);
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
