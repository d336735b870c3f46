use std::time::Duration;

use calve_core::MachineName;
use calve_wire::api::StopMachine;
use clap_complete::ArgValueCompleter;
use hyper::Method;

use super::names;
use crate::args::{as_ms, parse_duration, parse_name};
use crate::client::Client;
use crate::failure::Outcome;

/// Stops machines: SIGTERM to the program's group, after a grace SIGKILL to everything. Returns once nothing is alive.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Time between SIGTERM and SIGKILL; the machine's own (10s unless said at `run`) where none is given.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    grace: Option<Duration>,
    /// The machines.
    #[arg(required = true, value_parser = parse_name, add = ArgValueCompleter::new(names::complete))]
    names: Vec<MachineName>,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let body = stop_body(args.grace);
    let stop = |name: MachineName| {
        let client = client.clone();
        async move {
            let stopping = client.submit(Method::POST, &names::path(&name, "/stop"), &body).await?;
            names::wait_for_end(&client, &stopping).await
        }
    };
    names::report(names::each(args.names, stop).await)
}

/// What a stop says.
pub fn stop_body(grace: Option<Duration>) -> StopMachine {
    StopMachine { grace_ms: grace.map(as_ms) }
}
