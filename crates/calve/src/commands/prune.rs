use calve_wire::api::Pruned;
use hyper::Method;

use crate::args::show_size;
use crate::client::Client;
use crate::failure::{ExitStatus, Outcome};
use crate::ui;

/// Removes the records and logs of ended machines, and images that no machine uses.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print an object.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let nothing = serde_json::json!({});
    if args.json {
        ui::json(&client.submit(Method::POST, "/v1/prune", &nothing).await?)?;
        return Ok(ExitStatus::Success);
    }
    let pruned: Pruned = client.post("/v1/prune", &nothing).await?;
    let names: String = pruned.machines.iter().map(|name| format!("{name}\n")).collect();
    ui::data(names.as_bytes())?;
    ui::note(&format!("{} machines removed, {} freed", pruned.machines.len(), show_size(pruned.freed_bytes)));
    Ok(ExitStatus::Success)
}
