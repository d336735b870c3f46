//! Cgroups of version 2: one hierarchy, whose controllers are handed down level by level
//! (the kernel's `admin-guide/cgroup-v2.rst`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use calve_wire::machine::Limits;
use rustix::fs::{Access, access};

use super::{CPU_PERIOD_US, Controller, Hierarchies, PARENT, flat_keyed};

/// The directory for the machines' cgroups and which of the wanted controllers they get there; or why there is none.
pub fn parent(host: &Hierarchies, wanted: &[Controller]) -> Result<(PathBuf, Vec<Controller>), String> {
    let Some(mounted) = host.v2() else {
        return Err("this host has no cgroup2 hierarchy".to_owned());
    };
    for base in mounted.candidates() {
        let parent = base.join(PARENT);
        // A process is moved by whoever may write in the directory that its old and its new place have in common.
        let allowed = access(base.join("cgroup.procs"), Access::WRITE_OK).is_ok();
        if !allowed || fs::create_dir_all(&parent).is_err() {
            continue;
        }
        let got: Vec<_> =
            wanted.iter().copied().filter(|c| hand_down(&base, *c) && hand_down(&parent, *c)).collect();
        if !got.is_empty() {
            return Ok((parent, got));
        }
        let _ = fs::remove_dir(&parent);
    }
    Err(format!(
        "no cgroup of {} is delegated to this user (systemd-run --user --scope -p Delegate=yes gives one)",
        mounted.mount_point.display()
    ))
}

/// Whether the children of `dir` have the controller, once asked for.
pub(super) fn hand_down(dir: &Path, controller: Controller) -> bool {
    let file = dir.join("cgroup.subtree_control");
    let has = |text: &str| text.split_ascii_whitespace().any(|name| name == controller.as_str());
    fs::read_to_string(&file).is_ok_and(|text| has(&text))
        || fs::write(&file, format!("+{}", controller.as_str())).is_ok()
}

/// Sets the limit of one controller.
pub fn set_limit(dir: &Path, controller: Controller, limits: &Limits) -> io::Result<()> {
    match controller {
        Controller::Memory => {
            fs::write(dir.join("memory.max"), limits.memory_bytes.unwrap_or(u64::MAX).to_string())?;
            // Absent where the kernel has no swap.
            match fs::write(dir.join("memory.swap.max"), "0") {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            }
        }
        Controller::Cpu => {
            fs::write(dir.join("cpu.max"), format!("{} {CPU_PERIOD_US}", super::cpu_quota_us(limits)))
        }
        Controller::Pids => fs::write(dir.join("pids.max"), super::pids_max(limits)),
    }
}

/// How often something in the cgroup was killed for want of memory.
pub fn oom_kills(dir: &Path) -> u64 {
    flat_keyed(&dir.join("memory.events"), "oom_kill")
}
