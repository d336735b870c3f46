use calve_core::MachineName;
use calve_wire::system::{HostSwitch, SwitchOutcome, SystemView};
use clap_complete::ArgValueCompleter;

use super::{logs, names};
use crate::args::parse_name;
use crate::client::Client;
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Cell, Table};

/// Lists the generations of a machine's system, and the switches that led to them: when, who, and how they ended.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine.
    #[arg(value_parser = parse_name, add = ArgValueCompleter::new(names::complete))]
    name: MachineName,
    /// Print an object with the generations and switches as the host keeps them.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let path = names::path(&args.name, "/system");
    if args.json {
        ui::json(&client.get_bytes(&path).await?)?;
        return Ok(ExitStatus::Success);
    }
    let view: SystemView = client.get(&path).await?;
    let facts = view.facts;
    let mut table = Table::new(["GENERATION", "TIME", "BY", "ACTION", "OUTCOME", "SYSTEM"]);
    let is_told = |number: u64| facts.history.iter().any(|switch| switch.generation == Some(number));
    // What was there before calve, or came by another way.
    for generation in facts.generations.iter().filter(|generation| !is_told(generation.number)) {
        table.row([
            Cell::new(number(generation.number, generation.current)),
            Cell::new(logs::show_time(generation.made_unix_ms)),
            Cell::new("-"),
            Cell::new("-"),
            Cell::new("-"),
            Cell::new(generation.toplevel.as_str()),
        ]);
    }
    let current =
        facts.generations.iter().find(|generation| generation.current).map(|current| current.number);
    for switch in &facts.history {
        let shown = switch.generation.map_or("-".to_owned(), |own| number(own, Some(own) == current));
        table.row([
            Cell::new(shown),
            Cell::new(logs::show_time(switch.begun_unix_ms)),
            Cell::new(switch.by.as_str()),
            Cell::new(switch.action.as_str()),
            Cell::new(outcome(switch)),
            Cell::new(switch.toplevel.as_str()),
        ]);
    }
    table.print()?;
    Ok(ExitStatus::Success)
}

fn number(number: u64, current: bool) -> String {
    if current { format!("{number} (current)") } else { number.to_string() }
}

fn outcome(switch: &HostSwitch) -> String {
    let word = match switch.outcome {
        Some(SwitchOutcome::Applied) => "applied",
        Some(SwitchOutcome::RolledBack) => "rolled back",
        Some(SwitchOutcome::Failed) => "failed",
        Some(SwitchOutcome::Refused) => "refused",
        None => switch.stage.as_str(),
    };
    word.to_owned()
}
