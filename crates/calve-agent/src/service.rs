//! `calve-agent service`: a service of a full system that dials the server.

use std::io;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use calve_wire::agent::Remaining;
use calve_wire::frame::Token;
use calve_wire::machine::ExitCause;
use calve_wire::system::{SWITCH_DIR, SWITCH_PROGRAM};

use crate::agent::transport::Transport;
use crate::agent::transport::dial::Server;
use crate::agent::{self, Config};
use crate::enclosure::Enclosure;
use crate::plain;

/// Runs an agent that dials `server` to the end of the lease that it is told there, and then powers the system off.
pub fn run(server: Server, token_file: &Path) -> anyhow::Result<()> {
    let token = read_token(token_file)?;
    resume_switch();
    let init = plain::fork_init()?;
    agent::run(Config {
        token,
        // The server tells the lease; before it has spoken, there is none that could be kept.
        remaining: Remaining { until_deadline_ms: None, grace_ms: 0 },
        transport: Box::new(move || Ok(Transport::Dial(server))),
        init,
        enclosure: Box::new(FullSystem),
        announce: Box::new(|| Ok(())),
        run_dir: None,
        begun: None,
    })?;
    Ok(())
}

/// Goes on with a switch of the system that nobody carries out any more: its time to confirm may be over.
fn resume_switch() {
    let program = format!("{SWITCH_DIR}/{SWITCH_PROGRAM}");
    if Path::new(&program).exists() {
        // It leaves a process of its own behind where there is something to do.
        let _ = Command::new(program).arg("resume").status();
    }
}

fn read_token(path: &Path) -> anyhow::Result<Token> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    text.trim().parse().with_context(|| format!("{} holds no token", path.display()))
}

/// A system with its own init: it is asked to end, not killed.
struct FullSystem;

impl Enclosure for FullSystem {
    fn exit_cause(&self) -> ExitCause {
        ExitCause::Normal
    }

    fn kill_all(&self) {}

    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    fn shut_down(&self) -> bool {
        power_off().is_ok()
    }

    fn on_end(&self) {
        let _ = power_off();
    }

    /// The system restarts its service, or the agent is to blame: no reason to end the system.
    fn on_interrupt(&self) {}
}

/// Asks the system's init to power off; both names are systemd's (systemctl(1), poweroff(8)).
fn power_off() -> io::Result<()> {
    let path = format!("{}:/usr/sbin:/sbin", crate::init::PATH_DEFAULT);
    let attempts = [("systemctl", ["--no-block", "poweroff"].as_slice()), ("poweroff", &[])];
    for (name, arguments) in attempts {
        if Command::new(name).args(arguments).env("PATH", &path).status().is_ok_and(|status| status.success())
        {
            return Ok(());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
