use std::time::{Duration, Instant};

use super::BASE_IMAGE;
use crate::commands::provider::{open, parser, refused};
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui;

/// How often the provider is asked whether an image has come.
const LOOK_PAUSE: Duration = Duration::from_secs(5);
/// How long an import may take: providers fetch and check an image of some 65 MiB within minutes.
const IMPORT_MAX: Duration = Duration::from_secs(30 * 60);

/// Has a provider fetch an image from an address, for each region where machines shall be.
///
/// Put what `calve image build` made where the provider reaches it by HTTP. Machines are made from the newest image of that
/// name in their region. Prints the numbers of the images once they can be used.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the provider fetches it.
    #[arg(value_name = "URL")]
    url: String,
    /// The provider.
    #[arg(long, value_name = "PROVIDER", default_value = calve_provider::NAMES[0], value_parser = parser())]
    provider: String,
    /// A region; given several times for several. [default: every region that takes machines]
    #[arg(long, value_name = "REGION")]
    region: Vec<String>,
    /// Do not wait until it can be used.
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(args: Args) -> Outcome {
    let provider = open(&args.provider)?;
    let known = provider.regions().await.map_err(refused)?;
    let mut regions = args.region;
    if let Some(unknown) = regions.iter().find(|slug| !known.iter().any(|region| region.slug == **slug)) {
        return Err(Failure::not_found(format!("{} has no region {unknown}", args.provider))
            .hint(format!("`calve provider regions {}` lists them", args.provider)));
    }
    if regions.is_empty() {
        regions = known.into_iter().filter(|region| region.available).map(|region| region.slug).collect();
    }
    let mut pending = Vec::new();
    for region in &regions {
        pending.push(provider.import_image(BASE_IMAGE, &args.url, region).await.map_err(refused)?.id);
    }
    let asked = pending.clone();
    let until = Instant::now() + IMPORT_MAX;
    while !args.no_wait && !pending.is_empty() {
        let images = provider.images().await.map_err(refused)?;
        for id in &pending {
            let image = images.iter().find(|image| image.id == *id);
            let status = image.map_or("deleted", |image| image.status.as_str());
            if matches!(status, "deleted" | "error") {
                return Err(Failure::failed(format!(
                    "{} could not use the image {id}: it is {status}",
                    args.provider
                ))
                .hint(
                    "does the address answer to the provider, with an image as `calve image build` makes it?",
                ));
            }
        }
        pending.retain(|id| !images.iter().any(|image| image.id == *id && image.status == "available"));
        if pending.is_empty() {
            break;
        }
        if Instant::now() >= until {
            let minutes = IMPORT_MAX.as_secs() / 60;
            return Err(Failure::failed(format!(
                "the images {} did not come in {minutes} minutes",
                pending.join(" ")
            )));
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    for id in asked {
        ui::line(&id)?;
    }
    Ok(ExitStatus::Success)
}
