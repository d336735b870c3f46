use calve_wire::api::ServerInfo;

use crate::client::{Client, VERSION};
use crate::failure::{ExitStatus, Outcome};
use crate::ui;

/// Shows the versions of this program and of the server, if one runs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print an object.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let server: Option<ServerInfo> = match Client::connect_running().await? {
        Some(client) => Some(client.get("/v1/server").await?),
        None => None,
    };
    let server = server.map(|server| server.version);
    if args.json {
        ui::line(&serde_json::json!({ "client": VERSION, "server": server }).to_string())?;
    } else {
        ui::line(&format!("calve {VERSION}"))?;
        ui::line(&format!("server {}", server.as_deref().unwrap_or("none runs")))?;
    }
    Ok(ExitStatus::Success)
}
