//! Making init in namespaces of its own (`clone(2)`, `namespaces(7)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use calve_wire::machine::Network;

use super::ids::Map;

/// Says where the caller finds itself.
pub enum Cloned {
    /// In init.
    Child {
        /// Whether it began in the given cgroup.
        in_cgroup: bool,
    },
    /// In the agent.
    Parent {
        /// Init's process id.
        pid: i32,
        /// Init itself.
        pidfd: OwnedFd,
    },
}

/// `struct clone_args` of clone3(2) with its last field of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Makes init: a copy of this process, which must have one thread, in new namespaces. Gives the id map that it needs:
/// where root may not make user namespaces, it is made without one.
pub fn clone(map: Map, network: Network, cgroup: Option<BorrowedFd>) -> io::Result<(Cloned, Map)> {
    match clone_as(map, network, cgroup) {
        Err(error)
            if map.is_optional()
                && matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSPC | libc::EINVAL)) =>
        {
            Ok((clone_as(Map::Host, network, cgroup)?, Map::Host))
        }
        result => Ok((result?, map)),
    }
}

/// As [`clone`], with this map or not at all.
pub fn clone_as(map: Map, network: Network, cgroup: Option<BorrowedFd>) -> io::Result<Cloned> {
    // The cgroup namespace comes later: it begins where the process stands when it is made.
    let mut flags =
        libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_PIDFD;
    if super::own_network(network) {
        flags |= libc::CLONE_NEWNET;
    }
    if map != Map::Host {
        flags |= libc::CLONE_NEWUSER;
    }
    if let Some(cgroup) = cgroup {
        match clone3(flags as u64, cgroup) {
            // Older than 5.7, refused by a filter, or a cgroup that does not take processes this way.
            Err(_) => {}
            cloned => return cloned,
        }
    }
    let mut pidfd = -1;
    // SAFETY: without CLONE_VM and with no stack given this is fork(2): the child goes on with a copy of everything.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags as libc::c_ulong | libc::SIGCHLD as libc::c_ulong,
            0,
            &raw mut pidfd,
            0,
            0,
        )
    };
    // SAFETY: the kernel has just put a new descriptor there, which nothing else owns.
    cloned(pid, || unsafe { OwnedFd::from_raw_fd(pidfd) }, false)
}

fn clone3(flags: u64, cgroup: BorrowedFd) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    let args = CloneArgs {
        flags: flags | CLONE_INTO_CGROUP,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: as in `clone_as`; `args` has the size that is told.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    // SAFETY: the kernel has just put a new descriptor there, which nothing else owns.
    cloned(pid, || unsafe { OwnedFd::from_raw_fd(pidfd) }, true)
}

fn cloned(pid: libc::c_long, pidfd: impl FnOnce() -> OwnedFd, in_cgroup: bool) -> io::Result<Cloned> {
    match pid {
        0 => Ok(Cloned::Child { in_cgroup }),
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Cloned::Parent { pid: pid as i32, pidfd: pidfd() }),
    }
}
