use std::time::{Duration, SystemTime, UNIX_EPOCH};

use calve_nix::StorePath;
use calve_server::cache::MACHINE_PINS;

use super::CacheArgs;
use crate::args::parse_duration;
use crate::caches;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui;

/// Keeps paths of a cache, with everything that they refer to, whatever `calve cache gc` is told.
///
/// A pin has a name, under which it may hold several paths; `calve cache info` lists them.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cache: CacheArgs,
    /// Keep them for so long only.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Name of the pin.
    #[arg(value_name = "NAME", value_parser = parse_pin)]
    name: String,
    /// What it keeps.
    #[arg(required = true, value_name = "PATH", value_parser = parse_path)]
    paths: Vec<StorePath>,
}

/// Removes a pin: what it kept goes with the next `calve cache gc` that finds it unused.
#[derive(Debug, clap::Args)]
pub struct UnpinArgs {
    #[command(flatten)]
    cache: CacheArgs,
    /// Name of the pin.
    #[arg(value_name = "NAME", value_parser = parse_pin)]
    name: String,
}

fn parse_path(text: &str) -> Result<StorePath, String> {
    StorePath::parse(text).map_err(|error| error.to_string())
}

/// The server keeps what its machines run under names of its own.
fn parse_pin(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('/') || text.starts_with(MACHINE_PINS) {
        return Err(format!(
            "a pin has a name of your own that begins neither with / nor with {MACHINE_PINS}"
        ));
    }
    Ok(text.to_owned())
}

pub async fn run(args: Args) -> Outcome {
    let cache = args.cache.open().await?;
    let until = args.duration.map(|duration| SystemTime::now() + duration);
    let expires_ms =
        until.map(|until| until.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64);
    for path in &args.paths {
        cache.pin(&args.name, path, expires_ms).await.map_err(caches::cache_failed)?;
    }
    ui::note(&format!("{} keeps {}", args.name, ui::count(args.paths.len() as u64, "path")));
    Ok(ExitStatus::Success)
}

pub async fn unpin(args: UnpinArgs) -> Outcome {
    let cache = args.cache.open().await?;
    if !cache.pin_names().await.map_err(caches::cache_failed)?.contains(&args.name) {
        return Err(Failure::not_found(format!("there is no pin {:?}", args.name))
            .hint("`calve cache info` lists them"));
    }
    cache.unpin(&args.name).await.map_err(caches::cache_failed)?;
    Ok(ExitStatus::Success)
}
