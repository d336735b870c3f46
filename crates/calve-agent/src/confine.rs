//! What a program is stripped of right before it is executed: capabilities, system calls, resources, and whatever the
//! process that made it had open, blocked or ignored.

mod filter;

use std::cell::Cell;
use std::io;

use calve_wire::machine::Limits;
use rustix::fs::{Mode, OFlags};
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
pub const CORE_MAX_BYTES: u64 = 1;
/// Highest signal number.
const SIGNAL_MAX: i32 = 64;
/// Memory by which the kernel takes a program for larger than it is when the machine's limit is reached: more than the
/// machine's first process has, which must outlive the program to say how that ended.
const OOM_LEAD_BYTES: u64 = 16 << 20;
/// The kernel's scale: a thousandth of the limit each (proc_pid_oom_score_adj(5)).
const OOM_SCORE_ADJ_MAX: u64 = 1000;
/// Permissions that new files lack.
const UMASK: u32 = 0o022;

/// Everything that [`Confinement::apply`] does, prepared before the fork, so that applying it allocates nothing.
#[derive(Debug)]
pub struct Confinement {
    filter: BpfProgram,
    settled: Cell<bool>,
    leave_host: fn() -> io::Result<()>,
    limits: Vec<(Resource, Rlimit)>,
    /// What goes into `oom_score_adj`, as text.
    oom_score_adj: Option<String>,
}

impl Confinement {
    /// Compiles the filter. `leave_host` takes away what is still there of the host's tree; repeated, it changes nothing.
    pub fn new(leave_host: fn() -> io::Result<()>) -> io::Result<Self> {
        let filter = filter::program().map_err(io::Error::other)?;
        // The files that the agent itself was allowed when it began, before it raised that for its own use.
        let limits = vec![
            (Resource::Core, at_most(Resource::Core, CORE_MAX_BYTES)),
            (Resource::Nofile, getrlimit(Resource::Nofile)),
        ];
        Ok(Self { filter, settled: Cell::new(false), leave_host, limits, oom_score_adj: None })
    }

    /// Limits the processes of the program's user, where no cgroup does.
    pub fn limit_processes(&mut self, most: u32) {
        self.limits.push((Resource::Nproc, at_most(Resource::Nproc, u64::from(most))));
    }

    /// Lets the kernel kill programs before the machine's first process where the machine's memory is limited. Without a limit
    /// of its own nothing changes: it must not go before the host's other programs.
    pub fn go_first(&mut self, limits: &Limits) {
        let lead =
            |limit: u64| (OOM_LEAD_BYTES * OOM_SCORE_ADJ_MAX).div_ceil(limit.max(1)).min(OOM_SCORE_ADJ_MAX);
        self.oom_score_adj = limits.memory_bytes.map(|limit| lead(limit).to_string());
    }

    /// Confines the calling process for good. Call it in each child, right before execve(2): descriptors above 2 are
    /// closed by that call, signals are as at the start of a program.
    pub fn apply(&self) -> io::Result<()> {
        self.settle()?;
        close_on_exec()?;
        reset_signals()?;
        rustix::process::umask(Mode::from_raw_mode(UMASK));
        for (resource, limit) in &self.limits {
            setrlimit(*resource, *limit)?;
        }
        if let Some(adjustment) = &self.oom_score_adj {
            // A machine without `/proc` does without.
            let _ = write_oom_score_adj(adjustment.as_bytes());
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

/// Raises the calling process's own, which needs no right. Its files under `/proc` are its own only while it is dumpable
/// (proc(5)); nobody else in the machine has the capabilities that it still has, so nobody can trace it meanwhile.
fn write_oom_score_adj(adjustment: &[u8]) -> io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let written = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty())
        .and_then(|file| rustix::io::write(file, adjustment));
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(written.map(drop)?)
}

/// This limit, or what the agent itself is held to, which nobody without the host's rights can raise: `sudo` allows no core dumps.
fn at_most(resource: Resource, limit: u64) -> Rlimit {
    let limit = getrlimit(resource).maximum.map_or(limit, |own| own.min(limit));
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
