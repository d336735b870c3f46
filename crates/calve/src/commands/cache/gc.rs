use std::time::Duration;

use calve_server::cache::{KEPT_GRACE, collect_kept};
use calve_store::cache::GcPolicy;

use super::CacheArgs;
use crate::args::{parse_duration, parse_size, show_size};
use crate::caches;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui::{self, Progress};

/// Removes from a cache what nothing needs any more; safe while it is being used.
///
/// Without --max-age and --max-size only chunks go that belong to no path, and realisations whose path is gone; build logs go
/// with --max-age.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cache: CacheArgs,
    /// Remove paths that nobody used for so long.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    max_age: Option<Duration>,
    /// Remove paths, the least recently used first, until chunks take at most this much.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_size: Option<u64>,
    /// Spare what was uploaded or used within this time. [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    grace: Option<Duration>,
    /// Only say what would go.
    #[arg(long)]
    dry_run: bool,
    /// Print an object.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    if !args.dry_run {
        // A full disk has no room to open the index either.
        calve_store::cache::release_reserve(&args.cache.dir()?);
    }
    let cache = args.cache.open().await?;
    let policy = GcPolicy {
        max_age: args.max_age,
        max_bytes: args.max_size,
        dry_run: args.dry_run,
        grace: args.grace,
    };
    let progress = Progress::new("collecting garbage");
    let collected = cache.collect(&policy).await.map_err(caches::cache_failed)?;
    let grace = args.grace.unwrap_or(KEPT_GRACE);
    let kept = collect_kept(&cache, args.max_age, grace, args.dry_run).await.map_err(|error| {
        Failure::failed("build logs and realisations cannot be collected").caused_by(error)
    })?;
    drop(progress);
    if args.json {
        let json = serde_json::json!({
            "paths_kept": collected.paths_kept,
            "paths_restored": collected.paths_restored,
            "paths_removed": collected.paths_removed,
            "chunks_removed": collected.chunks_removed,
            "chunk_bytes_removed": collected.chunk_bytes_removed,
            "packs_removed": collected.packs_removed,
            "abandoned_removed": collected.abandoned_removed,
            "files_removed": kept.0,
            "file_bytes_removed": kept.1,
            "dry_run": args.dry_run,
        });
        ui::json(json.to_string().as_bytes())?;
        return Ok(ExitStatus::Success);
    }
    let done = if args.dry_run { "would go" } else { "removed" };
    super::note_restored(collected.paths_restored);
    ui::line(&format!(
        "{}, {} and {} {done} ({}), {}",
        ui::count(collected.paths_removed, "path"),
        ui::count(collected.chunks_removed, "chunk"),
        ui::count(kept.0, "log or realisation").replace("log or realisations", "logs or realisations"),
        show_size(collected.chunk_bytes_removed + kept.1),
        if collected.paths_kept == 1 {
            "1 path stays".to_owned()
        } else {
            format!("{} paths stay", collected.paths_kept)
        },
    ))?;
    Ok(ExitStatus::Success)
}
