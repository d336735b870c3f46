use calve_core::MachineName;
use calve_wire::system::SystemView;
use clap_complete::ArgValueCompleter;

use super::names;
use crate::args::parse_name;
use crate::client::Client;
use crate::failure::{ExitStatus, Outcome};
use crate::ui;

/// Compares the system that a machine runs, was booted with and would boot, and its failed units, to what it shall have.
///
/// Ends with 0 where there is no difference and with 1 where there is one.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine.
    #[arg(value_parser = parse_name, add = ArgValueCompleter::new(names::complete))]
    name: MachineName,
    /// Print an object.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let answer = client.get_bytes(&names::path(&args.name, "/system")).await?;
    let view: SystemView = client.parse(&answer)?;
    if args.json {
        ui::json(&answer)?;
    } else if view.drift.is_empty() {
        ui::line(&format!("{} has {}", args.name, view.desired))?;
    } else {
        view.drift.iter().try_for_each(|line| ui::line(line))?;
    }
    Ok(if view.drift.is_empty() { ExitStatus::Success } else { ExitStatus::No })
}
