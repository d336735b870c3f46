//! The system calls that a program in a sandbox may not make. Everything else is allowed: what is refused here either
//! undoes the sandbox, reaches things that no namespace divides, or is a part of the kernel with a history of holes
//! that programs out of a closure do not need.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

/// Namespaces that clone(2) and unshare(2) could make.
const NAMESPACE_FLAGS: [libc::c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];
/// In clone(2) this bit is a part of the exit signal, so it is refused to unshare(2) alone.
const CLONE_NEWTIME: libc::c_int = 0x80;

/// Refused whatever the arguments.
const REFUSED: &[c_long] = &[
    // Mounts.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    // Namespaces and other processes.
    libc::SYS_setns,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    // Files by handle go round every mount.
    libc::SYS_open_by_handle_at,
    // Parts of the kernel with a history.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_vhangup,
    // Keyrings are no part of any namespace.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // The host itself.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_nfsservctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
];

/// Execution domains that are harmless: Linux, 32-bit Linux, each with the old version number, and the query.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Terminal commands that put input into a terminal as if it had been typed, or set the console.
const TERMINAL_COMMANDS: [u64; 2] = [libc::TIOCSTI, libc::TIOCLINUX];
/// Sockets that no namespace divides (virtual machines), or that open the kernel's crypto code.
const SOCKET_FAMILIES: [u64; 2] = [libc::AF_VSOCK as u64, libc::AF_ALG as u64];

/// The program that every system call of a confined process goes through.
pub fn program() -> Result<BpfProgram, BackendError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let refuse =
        SeccompFilter::new(refused()?, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), arch)?;
    Ok(with_absent(refuse.try_into()?))
}

fn refused() -> Result<BTreeMap<c_long, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<_, _> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let has_bit = |flag: libc::c_int| any(0, Len::Qword, Op::MaskedEq(flag as u64), flag as u64);
    let namespaces = || NAMESPACE_FLAGS.into_iter().map(has_bit);
    rules.insert(libc::SYS_clone, namespaces().collect::<Result<_, _>>()?);
    rules.insert(libc::SYS_unshare, namespaces().chain([has_bit(CLONE_NEWTIME)]).collect::<Result<_, _>>()?);
    // The kernel looks at 32 bits of these arguments, and so must the filter.
    let equals = |argument, value| any(argument, Len::Dword, Op::Eq, value);
    let commands = TERMINAL_COMMANDS.map(|command| equals(1, command));
    rules.insert(libc::SYS_ioctl, commands.into_iter().collect::<Result<_, _>>()?);
    let families = SOCKET_FAMILIES.map(|family| equals(0, family));
    rules.insert(libc::SYS_socket, families.into_iter().collect::<Result<_, _>>()?);
    let others = PERSONALITIES.map(|domain| SeccompCondition::new(0, Len::Dword, Op::Ne, domain));
    let others = others.into_iter().collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_personality, vec![SeccompRule::new(others)?]);
    Ok(rules)
}

fn any(argument: u8, length: Len, operator: Op, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])
}

/// On x86-64 the same kernel entry serves x32 programs, whose call numbers have this bit: to a filter they would be
/// unknown calls and pass.
#[cfg(target_arch = "x86_64")]
const ABSENT_FROM: u32 = 0x4000_0000;
/// Elsewhere no call has such a number.
#[cfg(not(target_arch = "x86_64"))]
const ABSENT_FROM: u32 = u32::MAX;

/// The program behind a head that answers as a kernel without these calls would: all of x32, and clone3(2), whose flags lie
/// in memory, out of a filter's sight; programs then fall back to clone(2). A filter of its own for them would cost every
/// start of a program its translation by the kernel.
fn with_absent(program: BpfProgram) -> BpfProgram {
    let step = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    // offsetof(struct seccomp_data, nr) is 0.
    let load = step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0);
    let from = step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, 0, ABSENT_FROM);
    let clone3 = step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_clone3 as u32);
    let absent = step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    [load, from, clone3, absent].into_iter().chain(program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_and_fits_the_kernel() {
        assert!(program().unwrap().len() <= libc::BPF_MAXINSNS as usize);
    }
}
