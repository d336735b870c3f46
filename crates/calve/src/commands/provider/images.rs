use serde_json::json;

use super::{ProviderArgs, open, refused};
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Cell, Table};

/// Lists what machines can be made from: the account's own images, then the provider's.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    of: ProviderArgs,
}

pub async fn run(args: Args) -> Outcome {
    let images = open(&args.of.provider)?.images().await.map_err(refused)?;
    if args.of.json {
        let object = |image: &calve_provider::Image| {
            json!({
                "id": image.id, "slug": image.slug, "name": image.name, "regions": image.regions,
                "status": image.status,
            })
        };
        let objects: Vec<_> = images.iter().map(object).collect();
        ui::json(serde_json::Value::from(objects).to_string().as_bytes())?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(["IMAGE", "ID", "NAME", "STATUS", "REGIONS"]);
    for image in &images {
        table.row([
            Cell::new(image.slug.as_deref().unwrap_or("-")),
            Cell::new(image.id.as_str()),
            Cell::new(image.name.as_str()),
            Cell::new(image.status.as_str()),
            Cell::new(image.regions.join(" ")),
        ]);
    }
    table.print()?;
    Ok(ExitStatus::Success)
}
