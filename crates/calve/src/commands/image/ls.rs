use serde_json::json;

use super::is_ours;
use crate::commands::provider::{open, parser, refused};
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Cell, Table};

/// Lists the images of calve's agent at a provider, the newest last.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The provider.
    #[arg(long, value_name = "PROVIDER", default_value = calve_provider::NAMES[0], value_parser = parser())]
    provider: String,
    /// Print an array of objects.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let mut images = open(&args.provider)?.images().await.map_err(refused)?;
    images.retain(is_ours);
    images.sort_by_key(|image| (image.id.len(), image.id.clone()));
    if args.json {
        let object = |image: &calve_provider::Image| json!({"id": image.id, "name": image.name, "regions": image.regions, "status": image.status});
        let objects: Vec<_> = images.iter().map(object).collect();
        ui::json(serde_json::Value::from(objects).to_string().as_bytes())?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(["ID", "NAME", "STATUS", "REGIONS"]);
    for image in &images {
        table.row([
            Cell::new(image.id.as_str()),
            Cell::new(image.name.as_str()),
            Cell::new(image.status.as_str()),
            Cell::new(image.regions.join(" ")),
        ]);
    }
    table.print()?;
    Ok(ExitStatus::Success)
}
