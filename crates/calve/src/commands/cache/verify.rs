use super::CacheArgs;
use crate::caches::{self, Place, Purpose, TokenArgs, parse_place};
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Progress};

/// Reads everything in a cache and names what is damaged; ends with 1 where something still is.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cache: CacheArgs,
    /// Fetch damaged chunks from this cache.
    #[arg(long, value_name = "CACHE", value_parser = parse_place)]
    repair_from: Option<Place>,
    #[command(flatten)]
    token: TokenArgs,
    /// Print an object.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let cache = args.cache.open().await?;
    let other = match &args.repair_from {
        Some(place) => Some(caches::open(place, &args.token, Purpose::Read).await?),
        None => None,
    };
    let progress = Progress::new("verifying");
    let verified =
        cache.verify(other.as_ref().map(|other| &*other.remote)).await.map_err(caches::cache_failed)?;
    drop(progress);
    let whole = verified.paths_broken.is_empty() && verified.damage.iter().all(|damage| damage.repaired);
    if args.json {
        let damage = verified.damage.iter().map(|damage| {
            serde_json::json!({
                "what": damage.what,
                "object": damage.object,
                "message": damage.message,
                "repaired": damage.repaired,
            })
        });
        let json = serde_json::json!({
            "packs": verified.packs,
            "chunks": verified.chunks,
            "paths": verified.paths,
            "paths_restored": verified.paths_restored,
            "damage": damage.collect::<Vec<_>>(),
            "paths_broken": verified.paths_broken.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        ui::json(json.to_string().as_bytes())?;
    } else {
        super::note_restored(verified.paths_restored);
        for damage in &verified.damage {
            let fate = if damage.repaired { "repaired" } else { "damaged" };
            ui::line(&format!("{fate}: {} in {}: {}", damage.what, damage.object, damage.message))?;
        }
        for path in &verified.paths_broken {
            ui::line(&format!("broken: {path}"))?;
        }
        let (paths, chunks) = (ui::count(verified.paths, "path"), ui::count(verified.chunks, "chunk"));
        ui::note(&format!("{paths} and {chunks} verified"));
        if !whole {
            ui::note("push the broken paths again, or name a cache that has them with --repair-from");
        }
    }
    Ok(if whole { ExitStatus::Success } else { ExitStatus::No })
}
