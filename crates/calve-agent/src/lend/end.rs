//! The end of a lent machine, from what its directory says alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use calve_agent::sandbox::traces::start_ticks;
use calve_agent::seed;
use calve_wire::agent::{SandboxCgroups, SandboxFailure, SandboxInit};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::de::DeserializeOwned;

use super::base::{Base, Machine};
use super::failed;

/// Time for a supervisor to end the machine by itself.
const GENTLE_MAX: Duration = Duration::from_secs(10);
/// Longest wait for killed processes and their cgroups: only a process that waits for a dead disk takes so long.
const END_MAX: Duration = Duration::from_secs(20);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Ends the machine with this id; absence is success.
pub fn give_back(base: &Base, id: &str) -> Result<(), SandboxFailure> {
    end(base, &base.machine(id)?)?;
    base.vacate(base.count()?);
    Ok(())
}

/// Ends the machine and waits until nothing of it is left.
pub fn end(base: &Base, machine: &Machine) -> Result<(), SandboxFailure> {
    let supervisor: Option<SandboxInit> = read(&machine.dir, "supervisor.json");
    let keeper: Option<SandboxInit> = read(&machine.dir, "keeper.json");
    match supervisor {
        // Its keeper sees its end and removes what is left.
        Some(supervisor) => {
            signal(supervisor, Signal::TERM);
            if !wait(GENTLE_MAX, || is_free(machine)) {
                signal(supervisor, Signal::KILL);
            }
        }
        None => keeper.into_iter().for_each(|keeper| signal(keeper, Signal::KILL)),
    }
    if !wait(END_MAX, || is_free(machine)) {
        keeper.into_iter().for_each(|keeper| signal(keeper, Signal::KILL));
        if !wait(END_MAX, || is_free(machine)) {
            return Err(failed("the machine's keeper does not end")(io::ErrorKind::TimedOut.into()));
        }
    }
    let counting = base.count()?;
    if machine.dir.exists() {
        clear(machine)?;
    }
    drop(counting);
    Ok(())
}

/// Whether there is no keeper.
fn is_free(machine: &Machine) -> bool {
    !machine.dir.exists() || matches!(machine.take(), Ok(Some(_)))
}

/// Removes what a machine without a keeper has; its processes are killed.
pub fn clear(machine: &Machine) -> Result<(), SandboxFailure> {
    for name in ["supervisor.json", "init.json"] {
        if let Some(process) = read::<SandboxInit>(&machine.dir, name) {
            signal(process, Signal::KILL);
            if !wait(END_MAX, || !is_alive(process)) {
                return Err(failed("the machine's processes do not end")(io::ErrorKind::TimedOut.into()));
            }
        }
    }
    let ours = |dir: &PathBuf| dir.ends_with(&machine.id);
    let cgroups: SandboxCgroups = read(&machine.dir, "cgroups.json").unwrap_or_default();
    for cgroup in cgroups.dirs.into_iter().map(PathBuf::from).filter(ours) {
        let gone = || matches!(rustix::fs::rmdir(&cgroup), Ok(()) | Err(Errno::NOENT));
        if !wait(END_MAX, gone) {
            return Err(failed(format!("the cgroup {} cannot be removed", cgroup.display()))(
                io::ErrorKind::ResourceBusy.into(),
            ));
        }
        // The directory that all machines share goes with the last; until then it is not empty, which is as well.
        let _ = cgroup.parent().map(fs::remove_dir);
    }
    seed::remove(&machine.dir).map_err(failed("the machine's directory cannot be removed"))
}

fn wait(longest: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + longest;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        thread::sleep(PAUSE);
    }
}

/// What was written; none where that was cut off.
fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(dir.join(name)).ok()?).ok()
}

fn is_alive(process: SandboxInit) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{}/stat", process.pid)) else { return false };
    let state = text.rfind(')').and_then(|end| text[end + 1..].trim_start().chars().next());
    !matches!(state, Some('Z' | 'X'))
        && start_ticks(process.pid).is_ok_and(|ticks| ticks == process.start_ticks)
}

/// Signals the process and no later one with its number: what is open is looked at again.
fn signal(process: SandboxInit, signal: Signal) {
    let Some(pidfd) = Pid::from_raw(process.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
    else {
        return;
    };
    if is_alive(process) {
        let _ = pidfd_send_signal(&pidfd, signal);
    }
}
