//! Where a machine shall be: what a user writes, and what a provider is asked for.
//!
//! ```text
//!  PROVIDER/REGION            digitalocean/ams3      made there, of a size
//!  exec/PLUGIN[/REGION]       exec/lab               made by a plugin
//!  ssh://[USER@]HOST[:PORT]   ssh://root@pi          a host that is there, borrowed
//! ```

use std::str::FromStr;

use calve_core::DriverName;
use calve_node::{DriverError, DriverErrorKind};
use calve_provider::Provider;
use calve_provider::ssh::Target;
use calve_wire::machine::Place;

use super::driver_error;

/// How the account's own image is called that boots the agent.
pub const BASE_IMAGE: &str = "calve-base";

/// Where a user wants a machine, as `--on` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct On {
    /// Who makes it.
    pub driver: DriverName,
    /// A region of the provider, or the host.
    pub region: String,
}

/// A text that is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OnError(String);

impl On {
    /// The size of a machine where none is said. None where one must be; empty for a plugin, which may have but one, and for a
    /// host, which is as large as it is.
    pub fn default_size(&self) -> Option<&'static str> {
        match self.driver {
            DriverName::Proxmox => Some(calve_provider::proxmox::AS_TEMPLATE),
            DriverName::Ssh | DriverName::Exec => Some(""),
            DriverName::Sandbox | DriverName::Qemu | DriverName::DigitalOcean => None,
        }
    }

    /// Whether the machine is made, of a size and with limits that go with it; otherwise a host that is there is borrowed.
    pub fn is_made(&self) -> bool {
        self.driver != DriverName::Ssh
    }
}

impl FromStr for On {
    type Err = OnError;
    fn from_str(text: &str) -> Result<Self, OnError> {
        if text.starts_with("ssh:") {
            let target: Target = text.parse().map_err(|error| OnError(format!("{error}")))?;
            return Ok(Self { driver: DriverName::Ssh, region: target.to_string() });
        }
        let (provider, region) =
            text.split_once('/').filter(|(_, region)| !region.is_empty()).ok_or_else(|| {
                OnError(
                    "it is written as PROVIDER/REGION, such as digitalocean/ams3, or as ssh://root@HOST"
                        .to_owned(),
                )
            })?;
        let known = calve_provider::NAMES.iter().find(|name| **name == provider);
        let driver = known.and_then(|name| name.parse().ok()).ok_or_else(|| {
            let names = calve_provider::NAMES.join(", ");
            OnError(format!("there is no provider {provider:?}; providers: {names}, or ssh://root@HOST"))
        })?;
        Ok(Self { driver, region: region.to_owned() })
    }
}

/// The image of a machine: the one that was asked for, else the account's newest of the base image in that region.
///
/// # Errors
/// Where the provider cannot be asked or has none, one sentence.
pub async fn image(provider: &dyn Provider, place: &Place) -> Result<String, DriverError> {
    if let Some(image) = &place.image {
        return Ok(image.clone());
    }
    if provider.describe().name == calve_provider::exec::NAME {
        // What its machines boot is a plugin's own choice.
        return Ok(String::new());
    }
    let images = provider.images().await.map_err(driver_error)?;
    let ours = |image: &&calve_provider::Image| {
        image.slug.is_none()
            && image.name.split(' ').next_back() == Some(BASE_IMAGE)
            && image.regions.contains(&place.region)
    };
    // Numbers grow: of several the last is the newest.
    let newest = images.iter().filter(ours).max_by_key(|image| (image.id.len(), image.id.clone()));
    newest.map(|image| image.id.clone()).ok_or_else(|| {
        let name = provider.describe().name;
        let message = format!("the account at {name} has no image called {BASE_IMAGE} in {}", place.region);
        DriverError::new(DriverErrorKind::Unusable, message).hint(format!(
            "import one, name another with --image, or choose a region of `calve provider images {name}`"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_mistakes_named() {
        let on = |text: &str| {
            text.parse::<On>().map(|on| (on.driver, on.region)).map_err(|error| error.to_string())
        };
        assert_eq!(on("digitalocean/ams3"), Ok((DriverName::DigitalOcean, "ams3".to_owned())));
        assert_eq!(on("exec/lab/r7"), Ok((DriverName::Exec, "lab/r7".to_owned())));
        assert_eq!(on("ssh://root@pi:22/"), Ok((DriverName::Ssh, "ssh://root@pi:22".to_owned())));
        for (bad, word) in [
            ("digitalocean", "PROVIDER/REGION"),
            ("digitalocean/", "PROVIDER/REGION"),
            ("none/x", "providers: digitalocean"),
            ("sandbox/x", "no provider"),
            ("ssh://", "names no host"),
        ] {
            assert!(on(bad).unwrap_err().contains(word), "{bad}");
        }
    }
}
