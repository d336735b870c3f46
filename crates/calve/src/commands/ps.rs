use std::time::Duration;

use calve_core::{State, Timestamp};
use calve_wire::api::MachineSummary;
use calve_wire::machine::{Exit, PortMapping};

use crate::args::show_duration;
use crate::client::Client;
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Cell, Colour, Table};

/// Lists the machines.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also those that are gone, failed or expired.
    #[arg(short, long)]
    all: bool,
    /// Print an array of objects with name, kind, state, …
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let path = if args.all { "/v1/machines?all=true" } else { "/v1/machines" };
    // As the server said it: parsing and writing 10,000 machines again would only cost time.
    if args.json {
        ui::json(&client.get_bytes(path).await?)?;
        return Ok(ExitStatus::Success);
    }
    let machines: Vec<MachineSummary> = client.get(path).await?;
    let now = now();
    let mut table = Table::new(["NAME", "KIND", "STATE", "DRIVER", "AGE", "LEASE", "PORTS", "RUNS"]);
    for machine in &machines {
        table.row(row(machine, now));
    }
    table.print()?;
    Ok(ExitStatus::Success)
}

fn row(machine: &MachineSummary, now: Timestamp) -> [Cell; 8] {
    let age = show_duration(now.since(Timestamp(machine.created_unix_ms)));
    [
        Cell::new(machine.name.as_str()),
        Cell::new(machine.kind.as_str()),
        state(machine),
        Cell::new(machine.driver.map_or("-", |driver| driver.as_str())),
        Cell::new(age),
        lease(machine, now),
        Cell::new(match machine.state.is_terminal() {
            true => String::new(),
            false => machine.ports.iter().map(show_port).collect::<Vec<_>>().join(" "),
        }),
        Cell::new(machine.runs.as_str()),
    ]
}

/// The state, with readiness or the program's end where there is one.
fn state(machine: &MachineSummary) -> Cell {
    let word = machine.state.as_str();
    match (machine.ready, machine.exit) {
        (Some(true), _) if machine.state == State::Running => {
            Cell::new(format!("{word} (ready)")).colour(Colour::Green)
        }
        (Some(false), _) if machine.state == State::Running => {
            Cell::new(format!("{word} (not ready)")).colour(Colour::Yellow)
        }
        (_, Some(exit)) if machine.state.is_terminal() => {
            let colour = if exit.code == Some(0) { Colour::Dim } else { Colour::Red };
            Cell::new(format!("{word} ({})", show_exit(&exit))).colour(colour)
        }
        _ => ui::state(machine.state),
    }
}

fn lease(machine: &MachineSummary, now: Timestamp) -> Cell {
    match machine.deadline_unix_ms {
        _ if machine.state.is_terminal() => Cell::new("-"),
        None => Cell::new("none"),
        Some(deadline) => Cell::new(show_duration(Timestamp(deadline).since(now))),
    }
}

/// `127.0.0.1:8080→80`.
pub fn show_port(port: &PortMapping) -> String {
    format!("{}→{}", std::net::SocketAddr::new(port.host_addr, port.host_port), port.machine_port)
}

/// `exit 3`, `signal 9, out-of-memory`.
pub fn show_exit(exit: &Exit) -> String {
    let how = match (exit.code, exit.signal) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => return exit.cause.to_string(),
    };
    match exit.cause {
        calve_core::ExitCause::Normal => how,
        cause => format!("{how}, {cause}"),
    }
}

/// This moment.
pub fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(since_epoch.unwrap_or(Duration::ZERO).as_millis() as u64)
}
