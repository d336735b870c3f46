//! Writes down what the sandbox has on the host, before it has it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use calve_wire::agent::{InitProcess, SandboxTraces};

/// The file of one sandbox.
pub struct Traces {
    file: PathBuf,
    cgroups: Vec<String>,
}

impl Traces {
    /// Of the sandbox with this run directory and these cgroups.
    pub fn new<'a>(run_dir: &Path, cgroups: impl Iterator<Item = &'a PathBuf>) -> Self {
        let cgroups = cgroups.map(|dir| dir.to_string_lossy().into_owned()).collect();
        Self { file: run_dir.join("traces.json"), cgroups }
    }

    /// Writes the file, at once or not at all.
    pub fn write(&self, init: Option<i32>) -> io::Result<()> {
        let init = init
            .map(|pid| start_ticks(pid).map(|start_ticks| InitProcess { pid, start_ticks }))
            .transpose()?;
        let traces = SandboxTraces { cgroups: self.cgroups.clone(), init };
        let new = self.file.with_extension("new");
        fs::write(&new, serde_json::to_vec(&traces).expect("names and numbers"))?;
        fs::rename(new, &self.file)
    }
}

/// When the process began, in clock ticks since boot.
fn start_ticks(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name stands in parentheses and may itself hold spaces and parentheses; field 22 is the 20th behind.
    let behind = text.rfind(')').and_then(|end| text.get(end + 1..));
    let field = behind.and_then(|rest| rest.split_ascii_whitespace().nth(19));
    field
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| io::Error::other("/proc/<pid>/stat has no start time"))
}
