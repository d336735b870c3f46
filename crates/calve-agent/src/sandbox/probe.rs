//! What this host allows, found out by making a sandbox; `calve-agent probe` says it for `calve doctor`.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::Path;

use calve_wire::agent::{AGENT_PROTOCOL_VERSION, Remaining, SandboxFailure, SandboxSpec};
use calve_wire::doctor::{Check, CheckStatus};
use calve_wire::machine::{Limits, Network};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::ids::Map;
use super::{clone, launch};
use crate::cgroup::{Hierarchies, Plan};
use crate::confine::Confinement;

const AREA: &str = "sandbox";
/// Limits of the probe's sandbox: each of a kind, large enough for an init that ends at once.
const LIMITS: Limits = Limits { cpus_milli: Some(1000), memory_bytes: Some(64 << 20), pids: Some(16) };
/// Settings that forbid user namespaces: the file, the value that does, and the command that mends it.
const FORBIDDING: [(&str, &str, &str); 3] = [
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=10000"),
];

/// Checks everything. `scratch_dir` is an empty directory. Call it while there is one thread.
pub fn probe(scratch_dir: &Path) -> Vec<Check> {
    let id = format!("probe-{}", std::process::id());
    let mut checks = vec![user_namespaces(&id)];
    checks.extend(sandbox(scratch_dir, &id));
    checks.push(cgroups(&id));
    checks
}

fn user_namespaces(id: &str) -> Check {
    let map = Map::choose(id);
    let made = clone::clone_as(map, Network::None, None);
    let mend = || FORBIDDING.iter().find(|(file, value, _)| reads(file, value)).map(|(_, _, mend)| *mend);
    let error = match made {
        // SAFETY: ends the child at once.
        Ok(clone::Cloned::Child { .. }) => unsafe { libc::_exit(0) },
        Ok(clone::Cloned::Parent { pidfd, .. }) => {
            let _ = waitid(WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)), WaitIdOptions::EXITED);
            let who = match map {
                Map::Subrange { .. } => "a machine's root is a user whom the host does not know",
                Map::Own | Map::Host => "a machine's root is this user",
            };
            return check("user namespaces", CheckStatus::Ok, who.to_owned(), "", None);
        }
        Err(error) => error,
    };
    let found = format!("the kernel refuses them: {error}");
    if map.is_optional() {
        let cost = "a machine's root is the host's root, without capabilities";
        return check("user namespaces", CheckStatus::Degraded, found, cost, mend());
    }
    check("user namespaces", CheckStatus::Missing, found, "no sandbox without root", mend())
}

fn reads(file: &str, value: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.trim() == value)
}

/// A real sandbox, whose init confines itself as a program would be, and ends.
fn sandbox(scratch_dir: &Path, id: &str) -> Vec<Check> {
    let spec = SandboxSpec {
        version: AGENT_PROTOCOL_VERSION,
        machine_id: id.to_owned(),
        hostname: "probe".to_owned(),
        token: String::new(),
        remaining: Remaining { until_deadline_ms: None, grace_ms: 0 },
        written_unix_ms: 0,
        store_paths: Vec::new(),
        limits: LIMITS,
        network: Network::None,
    };
    let sandbox = match launch(&spec, scratch_dir, confine_and_end) {
        Ok(sandbox) => sandbox,
        Err(SandboxFailure { message, hint, .. }) => {
            let restricted =
                FORBIDDING.iter().find(|(file, value, _)| reads(file, value)).map(|(_, _, mend)| *mend);
            let mend = restricted.or(hint.as_deref());
            return vec![check("mounts", CheckStatus::Missing, message, "no sandbox can be made", mend)];
        }
    };
    let ended = waitid(WaitId::PidFd(sandbox.pidfd()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    let confined = ended.ok().flatten().and_then(|status| status.exit_status()) == Some(0);
    let proc = sandbox.notes().iter().find(|note| note.contains("/proc")).cloned();
    let mounts = match proc {
        None => check("mounts", CheckStatus::Ok, "a tree of its own, with /proc".to_owned(), "", None),
        Some(note) => check("mounts", CheckStatus::Degraded, note, "programs that read /proc fail", None),
    };
    let seccomp = if confined {
        check("seccomp", CheckStatus::Ok, "system calls are filtered".to_owned(), "", None)
    } else {
        let found = "the kernel takes no system call filter".to_owned();
        check("seccomp", CheckStatus::Missing, found, "no program is started without it", None)
    };
    let _ = sandbox.remove();
    vec![mounts, seccomp]
}

fn confine_and_end(confinement: Confinement) -> Infallible {
    let code = i32::from(confinement.apply().is_err());
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(code) }
}

fn cgroups(id: &str) -> Check {
    let host = Hierarchies::of_host();
    let cgroup = Plan::new(&host, id, &LIMITS).make();
    let (dirs, notes) = (cgroup.dirs(), cgroup.notes().join("; "));
    let removed = cgroup.remove();
    let found = format!("limits are set in {}", dirs.join(", "));
    match (dirs.is_empty(), notes.is_empty(), removed) {
        (false, true, Ok(())) => check("cgroups", CheckStatus::Ok, found, "", None),
        (_, true, Err(error)) => check(
            "cgroups",
            CheckStatus::Degraded,
            format!("they cannot be removed: {error}"),
            "empty ones stay",
            None,
        ),
        _ => {
            let mend = if host.v2_delegates() {
                "systemd-run --user --scope calve server"
            } else {
                "sudo calve server"
            };
            check("cgroups", CheckStatus::Degraded, notes, "these limits are not enforced", Some(mend))
        }
    }
}

fn check(name: &str, status: CheckStatus, found: String, cost: &str, mend: Option<&str>) -> Check {
    let (area, name, cost) = (AREA.to_owned(), name.to_owned(), cost.to_owned());
    Check { area, name, status, found, cost, mend: mend.map(str::to_owned) }
}

/// A new empty directory for [`probe`], under the directory for temporary files.
pub fn scratch_dir() -> io::Result<std::path::PathBuf> {
    let dir = std::env::temp_dir().join(format!("calve-probe-{}", std::process::id()));
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(&dir)?;
    Ok(dir)
}
