mod row;

use std::fmt::Write as _;
use std::time::Duration;

use calve_core::{State, Timestamp};
use calve_wire::api::Condition;
use calve_wire::machine::{Exit, PortMapping};

use super::provider;
use crate::args::show_duration_behind;
use crate::client::Client;
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Cell, Colour, Table};
use row::{Reader, Row};

/// Lists the machines.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also those that are gone, failed or expired.
    #[arg(short, long)]
    all: bool,
    /// Instead, what carries calve's tag at every provider whose credentials are there, whoever made it; asks no server.
    #[arg(long, conflicts_with = "all")]
    all_providers: bool,
    /// Print an array of objects with name, kind, state, …
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    if args.all_providers {
        return provider::show_everywhere(args.json).await;
    }
    let client = Client::connect().await?;
    let path = if args.all { "/v1/machines?all=true" } else { "/v1/machines" };
    // As the server said it: parsing and writing 10,000 machines again would only cost time.
    if args.json {
        ui::json(&client.get_bytes(path).await?)?;
        return Ok(ExitStatus::Success);
    }
    let now = now();
    let mut reader = Reader::default();
    let mut table = Table::new(["NAME", "KIND", "STATE", "DRIVER", "AGE", "LEASE", "PORTS", "RUNS"]);
    client
        .get_each(path, |text| {
            let (machine, length) = reader.read(text)?;
            show(&machine, now, &mut table);
            Ok(length)
        })
        .await?;
    table.print()?;
    Ok(ExitStatus::Success)
}

/// Writes a machine into the table, without a text in between but for what is rare.
fn show(machine: &Row<'_>, now: Timestamp, table: &mut Table<8>) {
    let ended = machine.state.is_terminal();
    let mut row = table.begin_row();
    row.cell(Colour::Plain, |text| text.push_str(&machine.name));
    row.cell(Colour::Plain, |text| text.push_str(&machine.kind));
    match &machine.exit {
        Some(exit) if ended => {
            let colour = if exit.code == Some(0) { Colour::Dim } else { Colour::Red };
            row.cell(colour, |text| show_end(machine.state, exit, text));
        }
        _ => {
            let state = state(machine.state, machine.ready, machine.condition, machine.restarts);
            row.cell(state.colour, |text| text.push_str(&state.text));
        }
    }
    row.cell(Colour::Plain, |text| text.push_str(machine.driver.map_or("-", |driver| driver.as_str())));
    let age = now.since(Timestamp(machine.created_unix_ms));
    row.cell(Colour::Plain, |text| show_duration_behind(age, text));
    row.cell(Colour::Plain, |text| match machine.deadline_unix_ms {
        _ if ended => text.push('-'),
        None => text.push_str("none"),
        Some(deadline) => show_duration_behind(Timestamp(deadline).since(now), text),
    });
    row.cell(Colour::Plain, |text| {
        for (index, port) in machine.ports.iter().filter(|_| !ended).enumerate() {
            text.push_str(if index == 0 { "" } else { " " });
            text.push_str(&show_port(port));
        }
    });
    row.cell(Colour::Plain, |text| text.push_str(without_hash(&machine.runs)));
}

/// What runs, as people call it: `hello-2.12/bin/hello`. `status` and `--json` have the whole path.
fn without_hash(runs: &str) -> &str {
    let behind = runs.strip_prefix("/nix/store/").and_then(|path| path.split_once('-'));
    behind.map_or(runs, |(_hash, name)| name)
}

fn show_end(state: State, exit: &Exit, text: &mut String) {
    text.push_str(state.as_str());
    match exit {
        // The most frequent one.
        Exit { code: Some(0), cause: calve_core::ExitCause::Normal, .. } => text.push_str(" (exit 0)"),
        exit => drop(write!(text, " ({})", show_exit(exit))),
    }
}

/// The state with what it does not tell: `running (ready)`, `running (backing off, 4 restarts)`.
pub fn state(
    state: State,
    ready: Option<bool>,
    condition: Option<Condition>,
    restarts: u32,
) -> Cell<'static> {
    let health = match (condition, ready) {
        (Some(Condition::BackingOff), _) => Some(("backing off", Colour::Yellow)),
        (None, Some(true)) => Some(("ready", Colour::Green)),
        (None, Some(false)) => Some(("not ready", Colour::Yellow)),
        (None, None) => None,
    };
    let restarts = match restarts {
        _ if state != State::Running => None,
        0 => None,
        1 => Some("1 restart".to_owned()),
        count => Some(format!("{count} restarts")),
    };
    let colour = health.map(|(_, colour)| colour);
    let notes: Vec<&str> = health.map(|(text, _)| text).into_iter().chain(restarts.as_deref()).collect();
    if notes.is_empty() {
        return ui::state(state);
    }
    let text = format!("{} ({})", state.as_str(), notes.join(", "));
    Cell::new(text).colour(colour.unwrap_or(Colour::Green))
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

#[cfg(test)]
mod tests {
    use super::*;
    use calve_core::DriverName;
    use calve_wire::api::MachineSummary;

    /// A row is read from what the server writes.
    #[test]
    fn a_row_is_part_of_a_summary() {
        let summary = MachineSummary {
            id: "0".repeat(32).parse().unwrap(),
            name: "web".parse().unwrap(),
            kind: "service".to_owned(),
            state: State::Running,
            ready: None,
            condition: Some(Condition::BackingOff),
            restarts: 4,
            driver: Some(DriverName::Sandbox),
            node: None,
            runs: "/nix/store/\"x\"".to_owned(),
            created_unix_ms: 1000,
            deadline_unix_ms: None,
            exit: None,
            ports: Vec::new(),
        };
        let json = serde_json::to_string(&summary).unwrap();
        let read: Row<'_> = serde_json::from_str(&json).unwrap();
        let mut table = Table::without_headings();
        show(&read, Timestamp(61_000), &mut table);
        let line = "web  service  running (backing off, 4 restarts)  sandbox  1m  none    /nix/store/\"x\"\n";
        assert_eq!(table.shown(), line);
    }

    #[test]
    fn a_restarted_program_does_not_look_like_one_that_never_fell() {
        let text = |ready, condition, restarts| {
            let mut table = Table::without_headings();
            table.row([state(State::Running, ready, condition, restarts)]);
            table.shown().trim_end().to_owned()
        };
        assert_eq!(text(None, None, 0), "running");
        assert_eq!(text(None, None, 1), "running (1 restart)");
        assert_eq!(text(Some(true), None, 2), "running (ready, 2 restarts)");
        assert_eq!(text(Some(false), Some(Condition::BackingOff), 0), "running (backing off)");
    }
}
