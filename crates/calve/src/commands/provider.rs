mod check;
pub mod everywhere;
mod images;
mod ls;
mod regions;
mod sizes;

use std::sync::Arc;

use calve_provider::{OpenError, Provider, ProviderError};
use clap::Subcommand;
use clap::builder::PossibleValuesParser;

use crate::failure::{Failure, Outcome};

/// Shows what providers of machines have, and what of it is calve's.
///
/// Credentials come from the environment: DIGITALOCEAN_TOKEN or PROXMOX_TOKEN (USER@REALM!ID=SECRET), or with _FILE behind it
/// the name of a file that nobody else can read. DIGITALOCEAN_API_URL names another address of that API.
///
/// PROXMOX_API_URL says where Proxmox VE is, PROXMOX_FINGERPRINT its certificate (`pvenode cert info`; else the system's
/// authorities count), PROXMOX_CLONE how templates are copied (linked or full), PROXMOX_STORAGE and PROXMOX_ISO_STORAGE where
/// disks and ISO images are put, PROXMOX_POOL the pool of new machines.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(ls::Args),
    Check(check::Args),
    Sizes(sizes::Args),
    Regions(regions::Args),
    Images(images::Args),
}

/// Which provider, and how it is shown.
#[derive(Debug, clap::Args)]
struct ProviderArgs {
    /// The provider.
    #[arg(value_name = "PROVIDER", default_value = calve_provider::NAMES[0], value_parser = parser())]
    provider: String,
    /// Print an array of objects.
    #[arg(long)]
    json: bool,
}

/// The names of providers, as an argument.
pub fn parser() -> PossibleValuesParser {
    PossibleValuesParser::new(calve_provider::NAMES)
}

pub async fn run(args: Args) -> Outcome {
    match args.command {
        Command::Ls(args) => ls::run(args).await,
        Command::Check(args) => check::run(args).await,
        Command::Sizes(args) => sizes::run(args).await,
        Command::Regions(args) => regions::run(args).await,
        Command::Images(args) => images::run(args).await,
    }
}

pub use ls::show_everywhere;

/// The provider of this name, with the credentials of the environment.
pub fn open(name: &str) -> Outcome<Arc<dyn Provider>> {
    calve_provider::open(name, &environment).map_err(|error| failure_of(name, error))
}

/// The providers that somebody has set up here, and why the others are not.
pub struct SetUp {
    /// Those that can be asked.
    pub providers: Vec<(&'static str, Arc<dyn Provider>)>,
    /// What the others lack.
    pub unset: Vec<(&'static str, OpenError)>,
}

/// Opens every provider that is set up; a mistake in how one is, is an error.
pub fn set_up() -> Outcome<SetUp> {
    let (mut providers, mut unset) = (Vec::new(), Vec::new());
    for name in calve_provider::NAMES {
        match calve_provider::open(name, &environment) {
            Ok(provider) => providers.push((name, provider)),
            Err(error) if error.is_unset() => unset.push((name, error)),
            Err(error) => return Err(failure_of(name, error)),
        }
    }
    Ok(SetUp { providers, unset })
}

fn environment(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

fn failure_of(name: &str, error: OpenError) -> Failure {
    match error {
        OpenError::Unknown { .. } => Failure::usage(error.to_string()),
        OpenError::Credentials(credentials) => {
            Failure::failed(format!("{name} cannot be used")).caused_by(credentials)
        }
        OpenError::Plugins(plugins) => Failure::failed(format!("{name} cannot be used")).caused_by(plugins),
        OpenError::Settings(settings) => Failure::failed(settings.to_string()),
    }
}

/// What a provider refused, for people.
pub fn refused(error: ProviderError) -> Failure {
    use calve_provider::ErrorKind::{Credentials, Denied, Quota};
    let hint = match error.kind {
        Credentials => Some("the provider does not know this token: is it complete, and not revoked?"),
        Denied => Some("the token needs the right to read and write machines and tags"),
        Quota => Some("let go of machines, or ask the provider for more"),
        _ => None,
    };
    let failure = Failure::failed(error.to_string());
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Dollars for an hour.
fn price(dollars_per_hour: f64) -> String {
    format!("{dollars_per_hour:.5}")
}
