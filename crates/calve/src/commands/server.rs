use calve_wire::api::ServerInfo;

use crate::client::Client;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui;

/// Runs the server, or asks about the one that runs.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(_args: Args) -> Outcome {
    Ok(ExitStatus::No)
}
