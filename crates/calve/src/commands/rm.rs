use std::time::Duration;

use calve_core::MachineName;
use calve_wire::api::MachineSummary;
use clap_complete::ArgValueCompleter;
use hyper::Method;

use super::{names, stop};
use crate::args::{parse_duration, parse_name};
use crate::client::Client;
use crate::failure::Outcome;

/// Stops machines, where they still run, and removes their records and logs.
#[derive(Debug, clap::Args)]
#[command(override_usage = "calve rm [OPTIONS] <NAMES>...\n       calve rm [OPTIONS] --all")]
pub struct Args {
    /// All machines, running or ended.
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Kill at once: the same as --grace 0s.
    #[arg(short, long, conflicts_with = "grace")]
    force: bool,
    /// Time between SIGTERM and SIGKILL; the machine's own where none is given.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    grace: Option<Duration>,
    /// The machines.
    #[arg(required_unless_present = "all", value_parser = parse_name, add = ArgValueCompleter::new(names::complete))]
    names: Vec<MachineName>,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let machines = if args.all {
        let all: Vec<MachineSummary> = client.get("/v1/machines?all=true").await?;
        all.into_iter().map(|machine| machine.name).collect()
    } else {
        args.names
    };
    let body = stop::stop_body(if args.force { Some(Duration::ZERO) } else { args.grace });
    let remove = |name: MachineName| {
        let client = client.clone();
        async move {
            let removing = client.submit(Method::DELETE, &names::path(&name, ""), &body).await?;
            names::wait_for_end(&client, &removing).await
        }
    };
    names::report(names::each(machines, remove).await)
}
