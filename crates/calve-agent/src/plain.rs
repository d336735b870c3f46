//! `calve-agent plain`: no walls. Init is an ordinary child and the programs are ordinary processes; for tests, and where
//! the machine is whatever the agent was started in.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use calve_wire::agent::{AGENT_PROTOCOL_VERSION, READY_BYTE, Remaining, SandboxSpec};

use crate::agent::transport::{Transport, listen};
use crate::agent::{self, Config};
use crate::confine_api::Unconfined;
use crate::enclosure::Open;
use crate::init::{self, packet};

/// Runs an agent on `DIR/sandbox.json` that listens at `DIR/agent.sock`, or at a device, to the end of its lease.
pub fn run(run_dir: PathBuf, device: Option<PathBuf>, ready: Option<OwnedFd>) -> anyhow::Result<()> {
    let spec = read_spec(&run_dir)?;
    let init = fork_init()?;
    let socket = run_dir.join("agent.sock");
    agent::run(Config {
        token: spec.token.parse()?,
        remaining: remaining_now(&spec),
        transport: Box::new(move || {
            Ok(match device {
                Some(path) => Transport::Device { path, opened: None },
                None => Transport::Listen(listen::bind(&socket)?),
            })
        }),
        init,
        enclosure: Box::new(Open),
        announce: Box::new(move || match ready {
            Some(ready) => File::from(ready).write_all(&[READY_BYTE]),
            None => Ok(()),
        }),
        run_dir: Some(run_dir),
        begun: None,
    })?;
    Ok(())
}

/// Forks an init without walls: the agent's end of its link. Call before there is a second thread or a runtime.
pub fn fork_init() -> io::Result<OwnedFd> {
    let (here, there) = packet::pair()?;
    // SAFETY: the program has one thread, so the child has all of its memory in a consistent state.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(here);
            let served = init::adopt_orphans().and_then(|()| {
                init::run(there, &init::Options { confine: &Unconfined, spare: None, first: None })
            });
            // SAFETY: ends the child at once, without running what the parent has registered.
            unsafe { libc::_exit(i32::from(served.is_err())) }
        }
        _ => Ok(here),
    }
}

/// Reads what a driver has left for the agent in the run directory.
pub fn read_spec(run_dir: &std::path::Path) -> anyhow::Result<SandboxSpec> {
    use anyhow::Context;
    let path = run_dir.join("sandbox.json");
    let bytes = std::fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let spec: SandboxSpec =
        serde_json::from_slice(&bytes).with_context(|| format!("{} does not parse", path.display()))?;
    anyhow::ensure!(
        spec.version == AGENT_PROTOCOL_VERSION,
        "{} has version {}, this agent reads {AGENT_PROTOCOL_VERSION}: use the calve-agent that belongs to the node",
        path.display(),
        spec.version
    );
    Ok(spec)
}

/// What remains of the lease now: time has passed since the specification was written.
pub fn remaining_now(spec: &SandboxSpec) -> Remaining {
    let passed_ms = agent::unix_ms().saturating_sub(spec.written_unix_ms);
    let until_deadline_ms = spec.remaining.until_deadline_ms.map(|until| until.saturating_sub(passed_ms));
    Remaining { until_deadline_ms, ..spec.remaining }
}
