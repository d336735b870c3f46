use std::time::Duration;

use calve_core::{DriverName, MachineId, MachineName, State};
use calve_provider::ssh::{HostKey, Target};
use calve_wire::api::{AdoptMachine, MachineView};

use super::{extend, ps};
use crate::args::{Ttl, as_ms, parse_grace, parse_name, parse_ttl};
use crate::client::Client;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui;

/// Longest wait for the machine to be ours: a provider that does not answer is asked again for as long as the lease lasts.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Makes a machine that is there already one of calve's: a provider's gets a lease, a host over SSH can be switched.
///
/// A machine at a provider gets calve's tags, and is listed, extended, stopped and removed as any other; it is destroyed when its
/// lease ends, by whichever sees to that first: the server or `calve reap`. Nothing is put into it: there is no agent in it, so
/// that exec, cp, logs and switch do not reach it.
///
/// A host is reached over SSH as root, or as a user for whom `sudo` asks for no password: exec, cp, forward, switch, rollback,
/// history and drift work on the host itself. It is never powered off: rm, stop and its lease's end only let go of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine, as PROVIDER/ID: the provider's own number of it. Or a host, as ssh://[USER@]HOST[:PORT].
    #[arg(value_name = "PROVIDER/ID|ssh://HOST", value_parser = parse_machine)]
    machine: (DriverName, String),
    /// How long it may live from now on, e.g. 90m, 2h, 1d; `none` for no end.
    #[arg(long, value_name = "DURATION", value_parser = parse_ttl, required = true)]
    ttl: Ttl,
    /// Its name here; run-<n> with the smallest free number where none is given.
    #[arg(long, value_parser = parse_name)]
    name: Option<MachineName>,
    /// How long after its lease's end others than the server leave it alone. [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_grace)]
    grace: Option<Duration>,
    /// The host's key, as `TYPE BASE64` or `SHA256:FINGERPRINT`: for a host that your known_hosts does not know, or whose key
    /// has changed.
    #[arg(long, value_name = "KEY")]
    host_key: Option<HostKey>,
    /// Print the machine as an object.
    #[arg(long)]
    json: bool,
}

fn parse_machine(text: &str) -> Result<(DriverName, String), String> {
    if text.starts_with("ssh://") {
        let host: Target = text.parse().map_err(|error| format!("{error}"))?;
        return Ok((DriverName::Ssh, host.to_string()));
    }
    let (provider, machine) = text
        .split_once('/')
        .ok_or("it is written as PROVIDER/ID, such as digitalocean/123456, or as ssh://root@HOST")?;
    let known = calve_provider::NAMES.contains(&provider).then(|| provider.parse().ok()).flatten();
    let provider = known.ok_or_else(|| {
        format!("there is no provider {provider:?}; providers: {}", calve_provider::NAMES.join(", "))
    })?;
    Ok((provider, machine.to_owned()))
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let (provider, machine) = args.machine;
    let request = AdoptMachine {
        id: Some(MachineId::new(ps::now(), calve_server::random::u128())),
        name: args.name,
        provider,
        machine,
        host_key: args.host_key.as_ref().map(ToString::to_string),
        ttl_ms: args.ttl.as_ms(),
        grace_ms: args.grace.map(as_ms),
    };
    let _progress = ui::Progress::new("adopting the machine");
    let answer = client.submit_again("/v1/adoptions", &request).await?;
    let machine = adopted(&client, client.parse(&answer)?).await?;
    if args.json {
        let json = serde_json::to_vec(&machine).expect("a machine holds nothing that JSON cannot say");
        ui::json(&json)?;
        return Ok(ExitStatus::Success);
    }
    ui::line(&extend::lease(&machine))?;
    Ok(ExitStatus::Success)
}

/// Waits until the machine has its tags, or the host its agent.
async fn adopted(client: &Client, mut machine: MachineView) -> Outcome<MachineView> {
    let deadline = tokio::time::Instant::now() + WAIT_MAX;
    loop {
        let name = &machine.summary.name;
        let told = || machine.messages.first().map(|message| format!(": {message}")).unwrap_or_default();
        match machine.summary.state {
            State::Running => return Ok(machine),
            State::Draining | State::Gone | State::Failed | State::Expired => {
                return Err(Failure::failed(format!("{name} was not adopted{}", told())));
            }
            _ if tokio::time::Instant::now() >= deadline => {
                return Err(Failure::failed(format!("{name} is still being adopted{}", told()))
                    .hint(format!("`calve status {name}` shows how it goes on")));
            }
            _ => {}
        }
        tokio::time::sleep(PAUSE).await;
        machine = client.get(&format!("/v1/machines/{}", machine.summary.id)).await?;
    }
}
