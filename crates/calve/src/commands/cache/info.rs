use calve_nix::StorePath;
use calve_store::remote::Remote;

use super::CacheArgs;
use crate::args::show_size;
use crate::caches::{self, Place, Purpose, TokenArgs, parse_place};
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Cell, Colour, Table};

/// Shows a cache of this host, or one far away.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cache: CacheArgs,
    /// A cache behind HTTP, instead of one of this host.
    #[arg(value_name = "CACHE", value_parser = parse_place, conflicts_with_all = ["dir", "s3"])]
    place: Option<Place>,
    #[command(flatten)]
    token: TokenArgs,
    /// Print an object.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let mut lines: Vec<(&str, serde_json::Value)> = Vec::new();
    let info = match &args.place {
        Some(place) => {
            let opened = caches::open(place, &args.token, Purpose::Read).await?;
            lines.push(("cache", opened.name.into()));
            opened.remote.info().await.map_err(caches::refused)?
        }
        None => {
            let cache = args.cache.open().await?;
            let held = cache.stats().await.map_err(caches::cache_failed)?;
            lines.push(("directory", cache.dir().display().to_string().into()));
            lines.push(("storage", cache.storage().into()));
            lines.push(("paths", held.paths.into()));
            lines.push(("chunks", held.chunks.into()));
            lines.push(("chunk_bytes", held.chunk_bytes.into()));
            let pins = cache.pins().await.map_err(caches::cache_failed)?;
            let pin = |(name, path): (String, StorePath)| serde_json::json!({ "name": name, "path": path.to_string() });
            lines.push(("pins", pins.into_iter().map(pin).collect::<Vec<_>>().into()));
            cache.info().await.map_err(caches::refused)?
        }
    };
    lines.push(("keys", info.keys.into()));
    lines.push(("priority", info.priority.into()));
    if args.json {
        let object: serde_json::Map<_, _> =
            lines.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        ui::json(serde_json::Value::from(object).to_string().as_bytes())?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::without_headings();
    for (name, value) in &lines {
        let shown = match (*name, value) {
            ("chunk_bytes", value) => show_size(value.as_u64().unwrap_or_default()),
            ("pins", serde_json::Value::Array(pins)) => {
                let text = |pin: &serde_json::Value, key| pin[key].as_str().unwrap_or_default().to_owned();
                let shown = pins.iter().map(|pin| format!("{} {}", text(pin, "name"), text(pin, "path")));
                shown.collect::<Vec<_>>().join(", ")
            }
            (_, serde_json::Value::Array(values)) => {
                values.iter().filter_map(|value| value.as_str()).collect::<Vec<_>>().join(" ")
            }
            (_, value) => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
        };
        let label = if *name == "chunk_bytes" { "size" } else { name };
        table.row([Cell::new(label).colour(Colour::Bold), Cell::new(shown)]);
    }
    table.print()?;
    Ok(ExitStatus::Success)
}
