use serde_json::json;

use super::{ProviderArgs, open, refused};
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Cell, Table};

/// Lists the regions in which machines can be made.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    of: ProviderArgs,
}

pub async fn run(args: Args) -> Outcome {
    let regions = open(&args.of.provider)?.regions().await.map_err(refused)?;
    if args.of.json {
        let object = |region: &calve_provider::Region| json!({"slug": region.slug, "name": region.name, "available": region.available});
        let objects: Vec<_> = regions.iter().map(object).collect();
        ui::json(serde_json::Value::from(objects).to_string().as_bytes())?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(["REGION", "NAME", "AVAILABLE"]);
    for region in &regions {
        table.row([
            Cell::new(region.slug.as_str()),
            Cell::new(region.name.as_str()),
            Cell::new(if region.available { "yes" } else { "no" }),
        ]);
    }
    table.print()?;
    Ok(ExitStatus::Success)
}
