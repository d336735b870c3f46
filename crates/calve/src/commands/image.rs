mod build;
mod import;
mod ls;
mod rm;

use clap::Subcommand;

use crate::failure::Outcome;

/// Makes the image that machines at providers boot, and keeps it there.
///
/// It holds a kernel and calve's agent: no user, no password, no SSH server. What a machine shall be stands in its user data.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(build::Args),
    Import(import::Args),
    Ls(ls::Args),
    Rm(rm::Args),
}

pub async fn run(args: Args) -> Outcome {
    match args.command {
        Command::Build(args) => build::run(&args),
        Command::Import(args) => import::run(args).await,
        Command::Ls(args) => ls::run(args).await,
        Command::Rm(args) => rm::run(args).await,
    }
}

/// The name under which machines look for it, where a provider shows nothing else of it.
const BASE_IMAGE: &str = "calve-base";

/// Whether an image is one of ours: its provider may have put its own word before the name.
fn is_ours(image: &calve_provider::Image) -> bool {
    image.slug.is_none() && image.name.split(' ').next_back() == Some(BASE_IMAGE)
}
