//! What a program is stripped of right before it is executed: capabilities, system calls, resources, and whatever the
//! process that made it had open, blocked or ignored.

mod filter;

use std::cell::Cell;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities,
    set_capabilities_secure_bits, set_no_new_privs,
};
use seccompiler::BpfProgram;

/// Highest capability number that is tried; the kernel has 41 and refuses numbers beyond its own last.
const CAPABILITIES_MAX: u32 = 63;
/// Largest core dump. 0 would still run the host's core dump handler, whose limit it is not; 1 keeps the kernel from
/// doing so (core(5), and `do_coredump` in the kernel's fs/coredump.c).
const CORE_MAX_BYTES: u64 = 1;
/// Highest signal number.
const SIGNAL_MAX: i32 = 64;
/// Permissions that new files lack.
const UMASK: u32 = 0o022;

/// Everything that [`Confinement::apply`] does, prepared before the fork, so that applying it allocates nothing.
#[derive(Debug)]
pub struct Confinement {
    filter: BpfProgram,
    settled: Cell<bool>,
    leave_host: fn() -> io::Result<()>,
    limits: Vec<(Resource, Rlimit)>,
}

impl Confinement {
    /// Compiles the filter. `leave_host` takes away what is still there of the host's tree; repeated, it changes nothing.
    pub fn new(leave_host: fn() -> io::Result<()>) -> io::Result<Self> {
        let filter = filter::program().map_err(io::Error::other)?;
        // The files that the agent itself was allowed when it began, before it raised that for its own use.
        let limits =
            vec![(Resource::Core, exactly(CORE_MAX_BYTES)), (Resource::Nofile, getrlimit(Resource::Nofile))];
        Ok(Self { filter, settled: Cell::new(false), leave_host, limits })
    }

    /// Limits the processes of the program's user, where no cgroup does.
    pub fn limit_processes(&mut self, most: u32) {
        self.limits.push((Resource::Nproc, exactly(u64::from(most))));
    }

    /// Confines the calling process for good. Call it in each child, right before execve(2): descriptors above 2 are
    /// closed by that call, signals are as at the start of a program.
    pub fn apply(&self) -> io::Result<()> {
        self.settle()?;
        close_on_exec()?;
        reset_signals()?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(UMASK));
        for (resource, limit) in &self.limits {
            setrlimit(*resource, *limit)?;
        }
        drop_capabilities()
    }

    /// What is done once for all programs: drops the host's tree, and filters the system calls of the calling process and
    /// all that it will make, for good. In both the kernel waits for its other processors, as long as all the rest of
    /// starting a program takes: an init that does it while nobody waits spares each program that. Init itself needs none of
    /// the refused calls any more.
    pub fn settle(&self) -> io::Result<()> {
        if self.settled.get() {
            return Ok(());
        }
        (self.leave_host)()?;
        set_no_new_privs(true)?;
        seccompiler::apply_filter(&self.filter).map_err(io::Error::other)?;
        self.settled.set(true);
        Ok(())
    }
}

fn exactly(limit: u64) -> Rlimit {
    Rlimit { current: Some(limit), maximum: Some(limit) }
}

/// The caller may still need its descriptors to report a failed execve.
fn close_on_exec() -> io::Result<()> {
    // SAFETY: marks descriptors only; none is closed before the process image goes.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    match done {
        0 => Ok(()),
        // Kernels before 5.11 know no such flag; Rust opens everything close-on-exec anyway.
        _ if matches!(io::Error::last_os_error().raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn reset_signals() -> io::Result<()> {
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: a default disposition runs no code of ours. Signals that may not be changed are refused, which is well.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero sigset_t is a valid value, and sigemptyset fills it; both pointers are to it or null.
    let done = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Empties every set; the locked secure bits keep an executed file from filling one for user 0 (`capabilities(7)`).
fn drop_capabilities() -> io::Result<()> {
    use CapabilitiesSecureBits as Bits;
    clear_ambient_capability_set()?;
    for capability in 0..=CAPABILITIES_MAX {
        // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
        let error = io::Error::last_os_error().raw_os_error();
        match (done, error) {
            (0, _) => {}
            // Beyond the kernel's last capability.
            (_, Some(libc::EINVAL)) => break,
            (_, error) => return Err(io::Error::from_raw_os_error(error.unwrap_or(0))),
        }
    }
    set_capabilities_secure_bits(
        Bits::NO_ROOT
            | Bits::NO_ROOT_LOCKED
            | Bits::NO_SETUID_FIXUP
            | Bits::NO_SETUID_FIXUP_LOCKED
            | Bits::KEEP_CAPS_LOCKED
            | Bits::NO_CAP_AMBIENT_RAISE
            | Bits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}
