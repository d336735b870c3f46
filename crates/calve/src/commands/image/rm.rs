use super::is_ours;
use crate::commands::provider::{open, parser, refused};
use crate::failure::{ExitStatus, Failure, Outcome};

/// Removes images of calve's agent from a provider; machines that were made from them go on.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Their numbers, as `calve image ls` shows them.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// The provider.
    #[arg(long, value_name = "PROVIDER", default_value = calve_provider::NAMES[0], value_parser = parser())]
    provider: String,
}

pub async fn run(args: Args) -> Outcome {
    let provider = open(&args.provider)?;
    let images = provider.images().await.map_err(refused)?;
    for id in &args.ids {
        // What is not ours is never touched.
        if !images.iter().any(|image| image.id == *id && is_ours(image)) {
            return Err(Failure::not_found(format!("{} has no image {id} of calve's agent", args.provider))
                .hint(format!("`calve image ls --provider {}` lists them", args.provider)));
        }
    }
    for id in &args.ids {
        provider.remove_image(id).await.map_err(refused)?;
    }
    Ok(ExitStatus::Success)
}
