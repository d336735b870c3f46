//! Writes down what the sandbox has on the host, before it has it. A file that was cut off stands for nothing: what it should
//! have named was not made yet.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use calve_wire::agent::{SandboxCgroups, SandboxInit};

/// Writes the cgroups that will be made.
pub fn write_cgroups<'a>(run_dir: &Path, dirs: impl Iterator<Item = &'a PathBuf>) -> io::Result<()> {
    let dirs = dirs.map(|dir| dir.to_string_lossy().into_owned()).collect();
    fs::write(run_dir.join("cgroups.json"), serde_json::to_vec(&SandboxCgroups { dirs }).expect("names"))
}

/// Writes the first process, which still waits for a word.
pub fn write_init(run_dir: &Path, pid: i32) -> io::Result<()> {
    let init = SandboxInit { pid, start_ticks: start_ticks(pid)? };
    fs::write(run_dir.join("init.json"), serde_json::to_vec(&init).expect("numbers"))
}

/// When the process began, in clock ticks since boot.
pub fn start_ticks(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name stands in parentheses and may itself hold spaces and parentheses; field 22 is the 20th behind.
    let behind = text.rfind(')').and_then(|end| text.get(end + 1..));
    let field = behind.and_then(|rest| rest.split_ascii_whitespace().nth(19));
    field
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| io::Error::other("/proc/<pid>/stat has no start time"))
}
