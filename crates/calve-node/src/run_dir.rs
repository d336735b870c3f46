//! Run directories: `<runtime>/m/<driver>/<id>/`, the only memory of a driver.
//!
//! ```text
//!  meta.json     attempt and the supervisor's process (pid and start time); written atomically, last
//!  agent.sock    where the agent listens
//!  sandbox.json, cgroups.json, init.json, agent.log    what the supervisor of a sandbox is told, has, and says
//!  last-words    what no server has heard of a sandbox whose supervisor has ended it by itself
//! ```
//! A directory without `meta.json` is a creation that was cut off: there is no process behind it that it does not name,
//! because a supervisor ends when the directory that it was given is gone or unnamed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use calve_core::{DriverName, MachineId, Timestamp};
use serde::{Deserialize, Serialize};

/// The run directories of one driver.
#[derive(Debug, Clone)]
pub struct RunDirs {
    root: PathBuf,
}

/// What a run directory says of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Which creation of the machine this is.
    pub attempt: u32,
    /// The supervisor's process.
    pub process: Process,
}

/// A process that cannot be mistaken for a later one with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot (`proc_pid_stat(5)`, field 22).
    pub start_ticks: u64,
}

impl Process {
    /// The process with this id as it is now; none where there is none.
    pub fn of(pid: i32) -> Option<Self> {
        let (state, start_ticks) = stat(pid)?;
        (state != 'Z' && state != 'X').then_some(Self { pid, start_ticks })
    }

    /// Whether it is alive (a zombie is not).
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }
}

fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in parentheses and may itself hold spaces and parentheses.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

impl RunDirs {
    /// The run directories of `driver` under `runtime_dir`.
    pub fn new(runtime_dir: &Path, driver: DriverName) -> Self {
        Self { root: runtime_dir.join("m").join(driver.as_str()) }
    }

    /// Where the machine's directory is or would be.
    pub fn path(&self, id: MachineId) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// Bytes of the path of any machine's directory.
    pub fn path_bytes(&self) -> usize {
        let any = MachineId::new(Timestamp(0), 0);
        self.path(any).as_os_str().len()
    }

    /// Makes an empty directory for the machine, for its owner alone.
    pub fn create(&self, id: MachineId) -> io::Result<PathBuf> {
        use std::os::unix::fs::DirBuilderExt;
        let path = self.path(id);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(path)
    }

    /// Every machine that has a directory.
    pub fn list(&self) -> io::Result<Vec<MachineId>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// What the machine's directory says; none where it says nothing (a creation that was cut off, or no directory).
    pub fn meta(&self, id: MachineId) -> Option<Meta> {
        serde_json::from_slice(&fs::read(self.path(id).join("meta.json")).ok()?).ok()
    }

    /// Writes what the directory says, at once or not at all.
    pub fn write_meta(&self, id: MachineId, meta: Meta) -> io::Result<()> {
        self.stage_meta(id, meta)?;
        self.commit_meta(id)
    }

    /// Gets ready what the directory will say, while there is time.
    pub fn stage_meta(&self, id: MachineId, meta: Meta) -> io::Result<()> {
        fs::write(self.path(id).join("meta.json.new"), serde_json::to_vec(&meta).expect("plain numbers"))
    }

    /// From here on the directory says what was staged.
    pub fn commit_meta(&self, id: MachineId) -> io::Result<()> {
        let dir = self.path(id);
        fs::rename(dir.join("meta.json.new"), dir.join("meta.json"))
    }

    /// Removes the machine's directory; absence is success.
    pub fn remove(&self, id: MachineId) -> io::Result<()> {
        match fs::remove_dir_all(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let me = Process::of(std::process::id() as i32).expect("this process lives");
        assert!(me.is_alive());
        assert!(!Process { start_ticks: me.start_ticks + 1, ..me }.is_alive());
    }
}
