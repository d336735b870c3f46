//! Limits inside a guest. Its processors and memory are the machine's own size; processes are counted by a cgroup.

use std::fs::{self, File};
use std::io::{self, Write as _};

use rustix::mount::MountFlags;

use super::mounts;

const ROOT: &str = "/sys/fs/cgroup";
const GROUP: &str = "/sys/fs/cgroup/programs";

/// The cgroup of a guest's programs.
#[derive(Debug)]
pub(super) struct Programs {
    entrance: File,
}

impl Programs {
    /// Makes the cgroup; `pids` limits the processes in it.
    pub(super) fn create(pids: Option<u32>) -> anyhow::Result<Self> {
        let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mounts::attach("cgroup2", ROOT, "cgroup2", safe, "")?;
        // Each by itself: a kernel without one of them still has the other.
        for controller in ["+pids", "+memory"] {
            let _ = fs::write(format!("{ROOT}/cgroup.subtree_control"), controller);
        }
        fs::create_dir(GROUP)?;
        if let Some(pids) = pids {
            fs::write(format!("{GROUP}/pids.max"), pids.to_string())?;
        }
        Ok(Self { entrance: File::options().write(true).open(format!("{GROUP}/cgroup.procs"))? })
    }

    /// Moves the calling process in. One system call on memory that is there: fit for a fresh child before its `execve`.
    pub(super) fn enter(&self) -> io::Result<()> {
        (&self.entrance).write_all(b"0")
    }

    /// What the cgroup has seen.
    pub(super) fn events() -> Events {
        let count = |file: &str, key: &str| {
            fs::read_to_string(format!("{GROUP}/{file}")).map_or(0, |text| counter(&text, key))
        };
        Events { oom_kills: count("memory.events", "oom_kill"), pids_refused: count("pids.events", "max") }
    }
}

/// What the cgroup has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Events {
    /// Processes killed for want of memory.
    pub(super) oom_kills: u64,
    /// Processes refused for their number.
    pub(super) pids_refused: u64,
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
