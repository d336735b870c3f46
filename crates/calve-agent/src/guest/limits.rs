//! Limits inside a guest. Its processors and memory are the machine's own size; processes are counted by a cgroup.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};

use rustix::mount::MountFlags;

use super::mounts;

const ROOT: &str = "/sys/fs/cgroup";
const GROUP: &str = "/sys/fs/cgroup/program";

/// The cgroup of a guest's programs.
#[derive(Debug)]
pub struct PidLimit {
    entrance: File,
}

impl PidLimit {
    /// Makes the cgroup; `pids` limits the processes in it.
    pub fn create(pids: Option<u32>) -> anyhow::Result<Self> {
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
    pub fn enter(&self) -> io::Result<()> {
        (&self.entrance).write_all(b"0")
    }

    /// How many processes the kernel has killed for want of memory, and how often a new one was refused.
    pub fn events() -> Events {
        let count = |file: &str, key: &str| {
            let mut text = String::new();
            let read =
                File::open(format!("{GROUP}/{file}")).and_then(|mut file| file.read_to_string(&mut text));
            read.map_or(0, |_| counter(&text, key))
        };
        Events { oom_kills: count("memory.events", "oom_kill"), pids_refused: count("pids.events", "max") }
    }
}

/// What the cgroup has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Events {
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Processes refused for their number.
    pub pids_refused: u64,
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
