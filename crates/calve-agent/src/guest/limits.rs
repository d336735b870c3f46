//! Limits inside a guest. Its processors and memory are the machine's own size; processes are counted by a cgroup, where
//! their number is limited: without, none is made, as each thing that a program does is then charged to it.

use std::fs::{self, File};
use std::io::{self, Write as _};

use rustix::mount::MountFlags;

use super::mounts;

const ROOT: &str = "/sys/fs/cgroup";
const GROUP: &str = "/sys/fs/cgroup/programs";

/// The place of the cgroups, for programs that make some themselves.
pub(super) fn mount() -> anyhow::Result<()> {
    mounts::attach(
        "cgroup2",
        ROOT,
        "cgroup2",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        "",
    )
}

/// The cgroup of a guest's programs.
#[derive(Debug)]
pub(super) struct Programs {
    entrance: File,
}

impl Programs {
    /// Makes the cgroup, with `pids` processes in it at most.
    pub(super) fn create(pids: u32) -> io::Result<Self> {
        fs::write(format!("{ROOT}/cgroup.subtree_control"), "+pids")?;
        fs::create_dir(GROUP)?;
        fs::write(format!("{GROUP}/pids.max"), pids.to_string())?;
        Ok(Self { entrance: File::options().write(true).open(format!("{GROUP}/cgroup.procs"))? })
    }

    /// Moves the calling process in. One system call on memory that is there: fit for a fresh child before its `execve`.
    pub(super) fn enter(&self) -> io::Result<()> {
        (&self.entrance).write_all(b"0")
    }
}

/// What limits have done since the guest has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Events {
    /// Processes killed for want of memory, in a cgroup or in the whole guest (the kernel's `mm/oom_kill.c` counts both).
    pub(super) oom_kills: u64,
    /// Processes refused for their number.
    pub(super) pids_refused: u64,
}

impl Events {
    /// Those up to now.
    pub(super) fn now() -> Self {
        let count = |file: &str, key: &str| fs::read_to_string(file).map_or(0, |text| counter(&text, key));
        Self {
            oom_kills: count("/proc/vmstat", "oom_kill"),
            pids_refused: count(&format!("{GROUP}/pids.events"), "max"),
        }
    }
}

fn counter(text: &str, key: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let text = "low 0\noom 3\noom_kill 2\n";
        assert_eq!((counter(text, "oom_kill"), counter(text, "oom"), counter(text, "none")), (2, 3, 0));
    }
}
