use calve_core::MachineName;
use calve_wire::system::SwitchAction;
use clap_complete::ArgValueCompleter;

use super::{names, switch};
use crate::args::parse_name;
use crate::client::Client;
use crate::failure::Outcome;

/// Switches a machine to the generation of its system before the current one; that has to be confirmed like any other.
///
/// Exit codes are those of `calve switch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine.
    #[arg(value_parser = parse_name, add = ArgValueCompleter::new(names::complete))]
    name: MachineName,
    #[command(flatten)]
    confirm: switch::ConfirmArgs,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let request = args.confirm.request(None, SwitchAction::Switch);
    let begun = switch::begin(&client, &args.name, &request).await?;
    switch::follow(client, &args.name, begun, args.confirm.json()).await
}
