use serde_json::json;

use super::{ProviderArgs, open, price, refused};
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Cell, Table};

/// Lists the sizes of machines with their prices, the cheapest first.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    of: ProviderArgs,
    /// Only what can be had in this region.
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
}

pub async fn run(args: Args) -> Outcome {
    let mut sizes = open(&args.of.provider)?.sizes().await.map_err(refused)?;
    sizes.retain(|size| {
        args.region.as_ref().is_none_or(|region| size.available && size.regions.contains(region))
    });
    sizes.sort_by(|a, b| a.dollars_per_hour.total_cmp(&b.dollars_per_hour));
    if args.of.json {
        let objects: Vec<_> = sizes
            .iter()
            .map(|size| {
                json!({
                    "slug": size.slug, "cpus": size.cpus, "memory_mib": size.memory_mib, "disk_gib": size.disk_gib,
                    "dollars_per_hour": size.dollars_per_hour, "regions": size.regions, "available": size.available,
                })
            })
            .collect();
        ui::json(serde_json::Value::from(objects).to_string().as_bytes())?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(["SIZE", "CPUS", "MEMORY MiB", "DISK GiB", "$/HOUR", "REGIONS"]);
    for size in &sizes {
        let regions = if size.available { size.regions.join(" ") } else { "none now".to_owned() };
        table.row([
            Cell::new(size.slug.as_str()),
            Cell::new(size.cpus.to_string()),
            Cell::new(size.memory_mib.to_string()),
            Cell::new(size.disk_gib.to_string()),
            Cell::new(price(size.dollars_per_hour)),
            Cell::new(regions),
        ]);
    }
    table.print()?;
    Ok(ExitStatus::Success)
}
