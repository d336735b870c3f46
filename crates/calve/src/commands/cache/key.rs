use super::CacheArgs;
use crate::failure::{ExitStatus, Outcome};
use crate::ui;

/// Prints the public key that a cache signs with, as `trusted-public-keys` of nix.conf takes it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cache: CacheArgs,
}

pub async fn run(args: Args) -> Outcome {
    for key in args.cache.open().await?.public_keys() {
        ui::line(&key)?;
    }
    Ok(ExitStatus::Success)
}
