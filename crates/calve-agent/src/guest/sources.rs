//! Where a machine elsewhere finds what it shall be: a volume that its maker attached, or the provider's metadata service.
//!
//! ```text
//!  volume labelled cidata     user-data, network-config                      NoCloud (cloud-init's name), ISO 9660 or FAT
//!  volume labelled config-2   openstack/latest/{user_data,network_data.json}  ConfigDrive
//!  169.254.169.254            /metadata/v1.json                              DigitalOcean
//! ```
//! Whichever has user data first: a disk may come up, and a service answer, some seconds after the machine.

mod plan;
mod volume;

use std::time::{Duration, Instant};

use anyhow::Context as _;

pub use plan::Plan;

use super::metadata;

/// How long is looked: a machine may be up before its metadata are.
const PATIENCE: Duration = Duration::from_secs(300);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// What a source says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What the creator of the machine wrote.
    pub user_data: String,
    /// How its network is to be set up; none: by DHCP.
    pub plan: Option<Plan>,
    /// The provider's clock, in milliseconds since the epoch.
    pub unix_ms: Option<u64>,
}

/// Looks until there is something.
pub fn find() -> anyhow::Result<Found> {
    let until = Instant::now() + PATIENCE;
    loop {
        let why = match volume::look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => match metadata::ask() {
                Ok(said) => return Ok(said),
                Err(error) => error,
            },
            Err(error) => error,
        };
        if Instant::now() >= until {
            return Err(why).context("there are no user data: no volume labelled cidata or config-2 is attached, and no metadata service answers");
        }
        std::thread::sleep(PAUSE);
    }
}
