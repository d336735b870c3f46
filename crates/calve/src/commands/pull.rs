use std::sync::Arc;

use calve_nix::StorePath;
use calve_server::memory;
use calve_store::Destination;
use calve_store::progress::Progress;
use calve_store::pull::{PullOptions, pull};

use crate::args::show_size;
use crate::caches::{self, Place, Purpose, TrustArgs, parse_place};
use crate::failure::{ExitStatus, Outcome};
use crate::resolve;
use crate::ui::{self, Transfer};

/// Pulls store paths with everything that they refer to out of caches, into the Nix store where this user may write to it,
/// else into calve's own.
///
/// A path counts only if a trusted key signed it: those given, those in CALVE_TRUSTED_KEYS, and those that Nix on this host
/// trusts.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is pulled: /nix/store/…
    #[arg(required = true, value_name = "PATH", value_parser = parse_path)]
    paths: Vec<StorePath>,
    /// A cache, as http://…, https://…, unix:/SOCKET or a directory; may be repeated, all are used at once.
    #[arg(long, value_name = "CACHE", env = "CALVE_CACHE", hide_env_values = true, value_parser = parse_place, required = true)]
    from: Vec<Place>,
    #[command(flatten)]
    trust: TrustArgs,
    /// Pull into calve's own store, also where the Nix store could be written to.
    #[arg(long)]
    private: bool,
    /// Print an object.
    #[arg(long)]
    json: bool,
}

/// Parses a store path; what lies inside of it is not asked for.
pub fn parse_path(text: &str) -> Result<StorePath, String> {
    StorePath::split(text).map(|(path, _)| path).map_err(|error| error.to_string())
}

pub async fn run(args: Args) -> Outcome {
    memory::keep();
    let (sources, trusted) = args.trust.open(&args.from, Purpose::Pull).await?;
    let store = Arc::new(resolve::store()?);
    let index = caches::chunk_index()?;
    let progress = Arc::new(Progress::default());
    let destination = args.private.then_some(Destination::Private);
    let options = PullOptions { trusted, index, destination, ..PullOptions::default() };
    let pulling = pull(store, &sources, &args.paths, options, progress.clone());
    let pulled = Transfer::show("pulling", &progress, pulling).await.map_err(caches::transfer_failed)?;
    if args.json {
        let json = serde_json::json!({
            "pulled": pulled.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "paths": progress.paths.get(),
            "bytes_moved": progress.bytes_moved.get(),
            "chunks_moved": progress.chunks_moved.get(),
            "chunks_present": progress.chunks_present.get(),
            "archive_bytes": progress.archive_bytes.get(),
        });
        ui::json(json.to_string().as_bytes())?;
        return Ok(ExitStatus::Success);
    }
    for path in &args.paths {
        ui::line(&path.to_string())?;
    }
    ui::note(&format!(
        "{} of {} paths pulled, {} received",
        pulled.len(),
        progress.paths.get(),
        show_size(progress.bytes_moved.get())
    ));
    Ok(ExitStatus::Success)
}
