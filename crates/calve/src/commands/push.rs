use std::sync::Arc;

use calve_server::memory;
use calve_store::progress::Progress;
use calve_store::push::{PushOptions, push};

use crate::args::show_size;
use crate::caches::{self, Place, Purpose, TokenArgs, parse_place};
use crate::failure::{ExitStatus, Outcome};
use crate::resolve;
use crate::ui::{self, Transfer};

/// Pushes paths with everything that they refer to into a cache; only chunks that it lacks are sent.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is pushed: store paths, links to them, flake references, or files and directories, which are added to the store.
    #[arg(required = true, value_name = "X")]
    what: Vec<String>,
    /// The cache, as http://…, https://…, unix:/SOCKET or a directory; that of a server lies at http://SERVER/cache.
    #[arg(long, value_name = "CACHE", env = "CALVE_CACHE", hide_env_values = true, value_parser = parse_place)]
    to: Place,
    #[command(flatten)]
    token: TokenArgs,
    /// Print an object.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    memory::keep();
    let cache = caches::open(&args.to, &args.token, Purpose::Push).await?;
    let mut roots = Vec::with_capacity(args.what.len());
    for what in &args.what {
        roots.push(resolve::root(what)?);
    }
    let store = Arc::new(resolve::store()?);
    let index = caches::chunk_index()?;
    let progress = Arc::new(Progress::default());
    let options = PushOptions { index, ..PushOptions::default() };
    let pushing = push(store, &roots, cache.remote, options, progress.clone());
    let pushed = Transfer::show(&format!("pushing to {}", cache.name), &progress, pushing).await;
    let pushed = pushed.map_err(caches::transfer_failed)?;
    if args.json {
        let json = serde_json::json!({
            "roots": roots.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "pushed": pushed.iter().map(|manifest| manifest.info.path.to_string()).collect::<Vec<_>>(),
            "paths": progress.paths.get(),
            "bytes_moved": progress.bytes_moved.get(),
            "chunks_moved": progress.chunks_moved.get(),
            "archive_bytes": progress.archive_bytes.get(),
        });
        ui::json(json.to_string().as_bytes())?;
        return Ok(ExitStatus::Success);
    }
    for root in &roots {
        ui::line(&root.to_string())?;
    }
    ui::note(&format!(
        "{} of {} paths pushed, {} sent",
        pushed.len(),
        progress.paths.get(),
        show_size(progress.bytes_moved.get())
    ));
    Ok(ExitStatus::Success)
}
