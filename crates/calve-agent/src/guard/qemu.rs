//! QEMU as a child of the guard, within the limit of the processors, and what is written down of it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use calve_agent::cgroup::{Cgroup, Controller, Entrance, Hierarchies, Plan};
use calve_wire::agent::SandboxCgroups;
use calve_wire::guard::{CPUS_UNLIMITED, GuardProcesses, PROCESSES_FILE};
use calve_wire::machine::Limits;

use super::child::{Child, start_ticks};

/// The cgroups of QEMU; they are removed when this is dropped, after QEMU has ended.
#[derive(Debug)]
pub(super) struct Quota(Cgroup);

impl Quota {
    /// Makes the cgroups of the machine whose run directory this is. None where QEMU's time cannot be limited.
    pub(super) fn make(run_dir: &Path, cpus_milli: u32) -> anyhow::Result<Option<Self>> {
        let id = run_dir.file_name().and_then(|name| name.to_str()).context("a run directory has a name")?;
        let limits = Limits { cpus_milli: Some(cpus_milli), ..Limits::default() };
        let plan = Plan::new(&Hierarchies::of_host(), id, &limits);
        let dirs = plan.dirs().map(|dir| dir.to_string_lossy().into_owned()).collect();
        // Before they are made, so that whoever finds the directory can remove them.
        fs::write("cgroups.json", serde_json::to_vec(&SandboxCgroups { dirs })?)
            .context("the run directory cannot be written")?;
        let cgroup = plan.make();
        Ok(cgroup.enforces(Controller::Cpu).then_some(Self(cgroup)))
    }
}

/// Starts QEMU in the working directory.
pub(super) fn start(argv: &[OsString], quota: Option<&Quota>) -> anyhow::Result<Child> {
    let (program, arguments) = argv.split_first().context("no program is given")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    if let Some(quota) = quota {
        let entrances = quota.0.entrances().context("the machine's cgroup cannot be opened")?;
        // SAFETY: the closure makes system calls on open descriptors only and allocates nothing.
        unsafe { command.pre_exec(move || entrances.iter().try_for_each(Entrance::enter)) };
    }
    Child::start(command, "QEMU")
}

/// Tells the guest that its processors are not limited, at the end of the kernel's command line.
pub(super) fn tell_unlimited(argv: &mut [OsString]) {
    if let Some(at) = argv.iter().position(|word| word == "-append")
        && let Some(line) = argv.get_mut(at + 1)
    {
        line.push(" ");
        line.push(CPUS_UNLIMITED);
    }
}

/// Writes down who is who, before QEMU has done anything that matters.
pub(super) fn write_processes(qemu: &Child, store: Option<&Child>) -> anyhow::Result<()> {
    let guard_pid = i32::try_from(std::process::id()).context("a process id")?;
    let (qemu_pid, qemu_start_ticks) = qemu.identity()?;
    let processes = GuardProcesses {
        guard_pid,
        guard_start_ticks: start_ticks(guard_pid)?,
        qemu_pid,
        qemu_start_ticks,
        store: store.map(Child::identity).transpose()?,
    };
    let new = format!("{PROCESSES_FILE}.new");
    fs::write(&new, serde_json::to_vec(&processes)?)?;
    fs::rename(new, PROCESSES_FILE).context("the run directory cannot be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_its_limit_is_told_so() {
        let mut argv = ["qemu", "-append", "quiet", "-m", "1"].map(OsString::from);
        tell_unlimited(&mut argv);
        assert_eq!(argv[2], "quiet calve.cpus=unlimited");
    }
}
