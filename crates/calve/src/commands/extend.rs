use std::time::Duration;

use calve_core::MachineName;
use calve_wire::api::{ExtendLease, MachineView};
use clap_complete::ArgValueCompleter;

use super::{logs, names};
use crate::args::{as_ms, parse_duration, parse_name};
use crate::client::Client;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui;

/// Moves the end of a machine's lease back.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine.
    #[arg(value_parser = parse_name, add = ArgValueCompleter::new(names::complete))]
    name: MachineName,
    /// How much longer it may live, e.g. 30m.
    #[arg(value_name = "DURATION", value_parser = parse_duration)]
    by: Duration,
    /// Print the machine as an object.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    if args.by.is_zero() {
        return Err(Failure::usage("a lease cannot be extended by nothing"));
    }
    let client = Client::connect().await?;
    let by_ms = as_ms(args.by);
    let path = names::path(&args.name, "/extend");
    if args.json {
        ui::json(&client.submit(hyper::Method::POST, &path, &ExtendLease { by_ms }).await?)?;
        return Ok(ExitStatus::Success);
    }
    let machine: MachineView = client.post(&path, &ExtendLease { by_ms }).await?;
    ui::line(&lease(&machine))?;
    Ok(ExitStatus::Success)
}

/// Until when a machine may live, for people.
pub fn lease(machine: &MachineView) -> String {
    let name = &machine.summary.name;
    match machine.summary.deadline_unix_ms {
        Some(deadline) => format!("{name} until {}", logs::show_time(deadline)),
        None => format!("{name} has a lease without an end"),
    }
}
