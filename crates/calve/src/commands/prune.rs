use std::time::Duration;

use calve_wire::api::{Prune, Pruned};
use hyper::Method;

use crate::args::{parse_duration, show_size};
use crate::client::Client;
use crate::failure::{ExitStatus, Outcome};
use crate::ui;

/// Removes the records and logs of ended machines, and images and store paths that no machine uses.
///
/// Store paths are those of calve's own store, which `calve run` fills with files and a server with what was sent to it; Nix's
/// are left to `nix-collect-garbage`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Spare store paths that were used within this time, at least 1h. [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    unused_for: Option<Duration>,
    /// Print an object.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let unused_ms = args.unused_for.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let request = Prune { unused_ms };
    if args.json {
        ui::json(&client.submit(Method::POST, "/v1/prune", &request).await?)?;
        return Ok(ExitStatus::Success);
    }
    let pruned: Pruned = client.post("/v1/prune", &request).await?;
    let names: String = pruned.machines.iter().map(|name| format!("{name}\n")).collect();
    ui::data(names.as_bytes())?;
    ui::note(&format!(
        "{} and {} removed, {} freed",
        ui::count(pruned.machines.len() as u64, "machine"),
        ui::count(pruned.store_paths.len() as u64, "store path"),
        show_size(pruned.freed_bytes)
    ));
    Ok(ExitStatus::Success)
}
