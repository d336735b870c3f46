use calve_core::MachineName;
use calve_wire::api::MachineView;
use clap_complete::ArgValueCompleter;

use super::names;
use crate::args::parse_name;
use crate::client::Client;
use crate::failure::{ExitStatus, Outcome};
use crate::ui;

/// Waits until machines have ended; ends with the exit code of the first program that did not succeed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machines.
    #[arg(required = true, value_parser = parse_name, add = ArgValueCompleter::new(names::complete))]
    names: Vec<MachineName>,
    /// Print an array of objects, one a machine.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let wait = |name: MachineName| {
        let client = client.clone();
        async move { client.get::<MachineView>(&names::path(&name, "/wait")).await }
    };
    let results = names::each(args.names, wait).await;
    let mut status = ExitStatus::Success;
    let mut views = Vec::new();
    for (_, result) in results {
        let ended = match result {
            Ok(view) => {
                let ended = end_status(&view);
                views.push(view);
                ended
            }
            Err(failure) => ui::failure(&failure),
        };
        if status.code() == 0 {
            status = ended;
        }
    }
    if args.json {
        ui::json(&serde_json::to_vec(&views).expect("what was parsed can be written"))?;
    }
    Ok(status)
}

/// The status of a machine that has ended: its program's code; without one, whether it was let go of as wished.
fn end_status(view: &MachineView) -> ExitStatus {
    match &view.summary.exit {
        Some(exit) => ExitStatus::Program(calve_core::Exit::from(*exit).shell_code()),
        None if view.summary.state == calve_core::State::Failed => {
            ui::note(&format!("{} failed: {}", view.summary.name, view.messages.join("; ")));
            ExitStatus::Failed
        }
        None => ExitStatus::Success,
    }
}
