//! The agent: whether it is there, and what it finds with the code that it makes machines with.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use calve_wire::doctor::{Check, CheckStatus};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{bad, ok};

/// Longest wait for the agent's checks: one sandbox on an overloaded host.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);
const NAME: &str = "agent";
const COST: &str = "no machine can be made";
const MEND: &str = "put calve-agent beside calve, or name it by CALVE_AGENT";

/// Whether the agent can be started, and its own checks.
pub fn probe(agent_binary: &Path) -> (Check, Vec<Check>) {
    let shown = agent_binary.display();
    let missing =
        |found: String| (bad(CheckStatus::Missing, "sandbox", NAME, found, COST, Some(MEND)), Vec::new());
    match ask(agent_binary) {
        Err(error) => missing(format!("{shown} cannot be asked: {error}")),
        Ok(answer) => match serde_json::from_slice::<Vec<Check>>(&answer) {
            Ok(checks) => (ok("sandbox", NAME, shown.to_string()), checks),
            Err(_) => missing(format!("{shown} is another program, or of another version")),
        },
    }
}

fn ask(agent_binary: &Path) -> io::Result<Vec<u8>> {
    let mut command = Command::new(agent_binary);
    command
        .arg("probe")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn()?;
    let mut stdout = child.stdout.take().expect("it is piped");
    let mut answer = Vec::new();
    let deadline = Timespec { tv_sec: PROBE_DEADLINE.as_secs().cast_signed(), tv_nsec: 0 };
    // It says everything at once, at its end.
    let polled =
        rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&deadline)));
    let said = match polled {
        Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in 20 s")),
        Ok(_) => stdout.read_to_end(&mut answer).map(|_| answer),
        Err(error) => Err(error.into()),
    };
    if said.is_err() {
        let _ = child.kill();
    }
    child.wait()?;
    said
}
