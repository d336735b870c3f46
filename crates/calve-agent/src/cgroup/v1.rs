//! Cgroups of version 1: one hierarchy a controller (`cgroups(7)`; the kernel's `cgroup-v1/memory.rst`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use calve_wire::machine::Limits;
use rustix::fs::{Access, access};

use super::{CPU_PERIOD_US, Controller, Hierarchies, PARENT, flat_keyed};

/// The directory for the machines' cgroups with this controller, made where it is not there yet; or why there is none.
pub fn parent(host: &Hierarchies, controller: Controller) -> Result<PathBuf, String> {
    let Some(mounted) = host.v1(controller) else {
        return Err(format!("this host has no cgroup hierarchy with the {} controller", controller.as_str()));
    };
    for base in mounted.candidates() {
        let parent = base.join(PARENT);
        if fs::create_dir_all(&parent).is_ok() && access(&parent, Access::WRITE_OK).is_ok() {
            return Ok(parent);
        }
    }
    Err(format!("no directory of {} may be written by this user", mounted.mount_point.display()))
}

/// Sets the limit of one controller.
pub fn set_limit(dir: &Path, controller: Controller, limits: &Limits) -> io::Result<()> {
    match controller {
        Controller::Memory => {
            let bytes = limits.memory_bytes.unwrap_or(u64::MAX).to_string();
            fs::write(dir.join("memory.limit_in_bytes"), &bytes)?;
            // Absent where the kernel does not account for swap; then the limit above holds for what is not swapped out.
            match fs::write(dir.join("memory.memsw.limit_in_bytes"), &bytes) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            }
        }
        Controller::Cpu => {
            fs::write(dir.join("cpu.cfs_period_us"), CPU_PERIOD_US.to_string())?;
            fs::write(dir.join("cpu.cfs_quota_us"), super::cpu_quota_us(limits).to_string())
        }
        Controller::Pids => fs::write(dir.join("pids.max"), super::pids_max(limits)),
    }
}

/// How often something in the cgroup was killed for want of memory.
pub fn oom_kills(dir: &Path) -> u64 {
    flat_keyed(&dir.join("memory.oom_control"), "oom_kill")
}
