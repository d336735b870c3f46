mod serve;

pub use serve::agent_binary;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use calve_core::Timestamp;
use calve_wire::api::ServerInfo;
use clap::Subcommand;
use hyper::Method;

use super::ps;
use crate::args::{parse_duration, show_duration};
use crate::client::Client;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui;

/// How long a server may take to end: it lets requests under way finish first.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// Pause between two looks at whether it has ended.
const STOP_PAUSE: Duration = Duration::from_millis(10);

/// Runs the server, or asks about the one that runs.
///
/// Other commands start one on demand, which ends when it is idle and has nothing to look after. Ending a server leaves its
/// machines running: the next one takes them over.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Also listen on this address, for clients that have the token (CALVE_SERVER and CALVE_TOKEN).
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// File of the token for --listen; made where it does not exist. [default: token in the data directory]
    #[arg(long, value_name = "FILE", requires = "listen")]
    token_file: Option<PathBuf>,
    /// Also listen on this address for agents of machines elsewhere, which dial in over TLS.
    ///
    /// They know the server by its certificate's fingerprint, which `calve server status` shows; key and certificate are
    /// made once and kept in the data directory.
    #[arg(long, value_name = "ADDR:PORT")]
    agents: Option<SocketAddr>,
    /// What agents dial, where that is not the address of --agents: that of a gateway, or of a host with many.
    #[arg(long, value_name = "HOST:PORT", requires = "agents", value_parser = parse_dialled)]
    agents_address: Option<String>,
    /// End after this time without a client and without a machine. [default: never]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    idle_exit: Option<Duration>,
    /// Started by another command: ends when idle, and lets another server have its place.
    #[arg(long, hide = true)]
    on_demand: bool,
}

fn parse_dialled(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(port)) if port > 0 => Ok(text.to_owned()),
        _ => Err("it is written as HOST:PORT".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ends the server; its machines go on.
    Stop,
    /// Shows the server that runs; ends with 1 where none does.
    Status {
        /// Print an object.
        #[arg(long)]
        json: bool,
    },
}

pub async fn run(args: Args) -> Outcome {
    match args.command {
        None => serve::run(args).await,
        Some(Command::Stop) => stop().await,
        Some(Command::Status { json }) => status(json).await,
    }
}

async fn stop() -> Outcome {
    let Some(client) = Client::connect_running().await? else {
        ui::note("no server runs");
        return Ok(ExitStatus::Success);
    };
    client.submit(Method::POST, "/v1/server/stop", &serde_json::json!({})).await?;
    let deadline = Instant::now() + STOP_DEADLINE;
    while Client::connect_running().await?.is_some() {
        if Instant::now() > deadline {
            return Err(Failure::failed(format!(
                "the server still listens after {} s",
                STOP_DEADLINE.as_secs()
            ))
            .hint("`calve server status` names its process"));
        }
        tokio::time::sleep(STOP_PAUSE).await;
    }
    Ok(ExitStatus::Success)
}

async fn status(json: bool) -> Outcome {
    let Some(client) = Client::connect_running().await? else {
        ui::note("no server runs; the next command starts one");
        return Ok(ExitStatus::No);
    };
    let bytes = client.get_bytes("/v1/server").await?;
    if json {
        ui::json(&bytes)?;
        return Ok(ExitStatus::Success);
    }
    let info: ServerInfo = serde_json::from_slice(&bytes)
        .map_err(|error| Failure::failed("the server's answer does not parse").caused_by(error))?;
    let mut table = ui::Table::without_headings();
    let mut line = |label: &str, value: String| {
        table.row([ui::Cell::new(label).colour(ui::Colour::Bold), ui::Cell::new(value)]);
    };
    line("version", info.version);
    line("process", info.pid.to_string());
    line("up for", show_duration(ps::now().since(Timestamp(info.started_unix_ms))));
    line("machines", info.machines.to_string());
    line("data", info.data_dir);
    for listens in info.listens {
        line("listens", listens);
    }
    if let Some(door) = info.agents {
        line("agents dial", door.listens);
        line("fingerprint", door.fingerprint);
    }
    table.print()?;
    Ok(ExitStatus::Success)
}
