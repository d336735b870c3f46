//! Providers by name.

use std::sync::Arc;

use crate::digitalocean::{self, DigitalOcean};
use crate::exec::{self, Exec};
use crate::proxmox::{self, Proxmox};
use crate::{CredentialsError, Pace, Provider, ProviderError};

/// Every provider, as users type it.
pub const NAMES: [&str; 3] = [digitalocean::NAME, proxmox::NAME, exec::NAME];

/// Why a provider cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none of this name.
    #[error("there is no provider {name:?}; providers: {}", NAMES.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// It has no credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// There are no plugins.
    #[error(transparent)]
    Plugins(#[from] exec::ConfigError),
    /// Its settings make no sense.
    #[error(transparent)]
    Settings(#[from] ProviderError),
}

impl OpenError {
    /// Whether nobody has set the provider up, as opposed to a mistake in how it is.
    pub fn is_unset(&self) -> bool {
        use exec::ConfigError::{Homeless, Missing};
        matches!(
            self,
            Self::Credentials(CredentialsError::Missing { .. }) | Self::Plugins(Missing { .. } | Homeless)
        )
    }
}

/// The provider called `name`, with the credentials and settings that stand in the environment `variables`.
pub fn open(name: &str, variables: &dyn Fn(&str) -> Option<String>) -> Result<Arc<dyn Provider>, OpenError> {
    match name {
        proxmox::NAME => {
            let settings = proxmox::Settings::from_environment(variables)?;
            Ok(Arc::new(Proxmox::new(settings, Pace::default())?))
        }
        digitalocean::NAME => {
            let settings = digitalocean::Settings::from_environment(variables)?;
            Ok(Arc::new(DigitalOcean::new(settings, Pace::default())?))
        }
        exec::NAME => Ok(Arc::new(Exec::new(exec::Settings::from_environment(variables)?, Pace::default()))),
        other => Err(OpenError::Unknown { name: other.to_owned() }),
    }
}
