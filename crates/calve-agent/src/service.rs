//! `calve-agent service`: a service of a full system that dials the server.

use std::io;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use calve_wire::agent::Remaining;
use calve_wire::frame::{TOKEN_BYTES, Token};
use calve_wire::join::UserData;
use calve_wire::machine::ExitCause;
use calve_wire::system::{SWITCH_DIR, SWITCH_PROGRAM};

use crate::agent::key::{self, AgentKey};
use crate::agent::transport::Transport;
use crate::agent::transport::dial::{Join, Server};
use crate::agent::{self, Config, unix_ms};
use crate::enclosure::Enclosure;
use crate::guest::sources;
use crate::plain;

/// Runs an agent that dials `server` to the end of the lease that it is told there, and then powers the system off.
pub fn run(server: Server, token_file: &Path) -> anyhow::Result<()> {
    let token = read_token(token_file)?;
    // The server tells the lease; before it has spoken, there is none that could be kept.
    serve(Entry { token, server, join: None, remaining: Remaining { until_deadline_ms: None, grace_ms: 0 } })
}

/// The same for a machine that joins by its user data: those in a file, or what the machine's provider says. The agent's
/// key is kept in `key_file`.
pub fn run_joined(user_data: &Path, key_file: &Path) -> anyhow::Result<()> {
    let text = match user_data.as_os_str() == FROM_PROVIDER {
        true => sources::find()?.user_data,
        false => std::fs::read_to_string(user_data)
            .with_context(|| format!("{} cannot be read", user_data.display()))?,
    };
    let data = UserData::parse(&text).context("the machine's user data")?;
    serve(Entry::of(&data, key_file)?)
}

/// In place of a file of user data: whatever source there is.
const FROM_PROVIDER: &str = "provider";

/// How a machine's agent comes to its server.
pub struct Entry {
    /// Of the link, or one that nobody knows until the server has told the link's.
    pub token: Token,
    /// Who is dialled.
    pub server: Server,
    /// By what it joins.
    pub join: Option<Join>,
    /// The lease as far as it is known.
    pub remaining: Remaining,
}

impl Entry {
    /// Out of user data; the key is kept in `key_file`.
    pub fn of(data: &UserData, key_file: &Path) -> anyhow::Result<Self> {
        let server = Server {
            address: data.server.clone(),
            fingerprint: data.fingerprint.parse().context("the fingerprint in the machine's user data")?,
        };
        let remaining = Remaining {
            until_deadline_ms: data.deadline_unix_ms.map(|deadline| deadline.saturating_sub(unix_ms())),
            grace_ms: data.grace_ms,
        };
        if let Some(token) = &data.token {
            return Ok(Self { token: token.parse()?, server, join: None, remaining });
        }
        let (machine, token) = (data.machine.as_ref(), data.join.clone());
        let machine = machine.context("the machine's user data do not say which machine it is")?.to_string();
        let token = token.context("the machine's user data hold no join token")?;
        let join = Join { machine, token, key: AgentKey::load_or_make(key_file)? };
        let token = key::hex(&key::random()?[..TOKEN_BYTES / 2]).parse()?;
        Ok(Self { token, server, join: Some(join), remaining })
    }
}

fn serve(Entry { token, server, join, remaining }: Entry) -> anyhow::Result<()> {
    resume_switch();
    let init = plain::fork_init()?;
    agent::run(Config {
        token,
        remaining,
        transport: Box::new(move || Ok(Transport::Dial(server, join))),
        init,
        enclosure: Box::new(FullSystem),
        announce: Box::new(|| Ok(())),
        run_dir: None,
        begun: None,
    })?;
    Ok(())
}

/// Goes on with a switch of the system that nobody carries out any more: its time to confirm may be over.
pub fn resume_switch() {
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
    fn outlives_agent(&self) -> bool {
        true
    }
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
