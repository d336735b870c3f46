//! Hosts that are machines themselves: an agent of the host runs for as long as somebody speaks with it, and its program lies there
//! for the next time. It may go at any moment, with the last sandbox of somebody else: who comes brings it.
//!
//! Each talk has a connection of its own: that a host is heard anew says that another one could be made.

use calve_core::MachineId;
use calve_node::{DriverError, DriverErrorKind};
use calve_provider::ssh::{Host, HostKey, Session, Target};
use calve_provider::{ErrorKind, ProviderError};
use calve_wire::lend::Lent;

use super::super::driver_error;
use super::lend::{self, FACTS_MAX, Facts, Lender};

impl Lender {
    /// Whether the host can be adopted: it is who it should be, lets us in, and its user is root or becomes it unasked.
    pub async fn visit(&self, target: &Target, key: Option<&HostKey>) -> Result<(), DriverError> {
        let host = self.client.connect(target, key).await.map_err(driver_error)?;
        self.rooted(&host).await.map(drop)
    }

    /// Brings the agent to a host that is adopted.
    pub async fn move_in(&self, target: &Target, key: Option<&HostKey>) -> Result<(), DriverError> {
        let host = self.client.connect(target, key).await.map_err(driver_error)?;
        self.equipped(&host).await.map(drop)
    }

    /// A session that passes on to an agent of the host itself, and the connection that it is alone on.
    pub async fn speak(&self, target: &Target) -> Result<(Session, Host), DriverError> {
        let host = self.client.connect(target, None).await.map_err(driver_error)?;
        let facts = self.equipped(&host).await?;
        let mut session = host.session(&facts.words(&["--host", "yes"])).map_err(driver_error)?;
        let hearing = async {
            while let Ok(Some(line)) = session.line().await {
                if Lent::parse_line(&line) == Some(Lent::Connected) {
                    return true;
                }
            }
            false
        };
        match tokio::time::timeout(FACTS_MAX, hearing).await {
            Ok(true) => Ok((session, host)),
            Ok(false) => {
                let ended = session.end().await;
                Err(driver_error(host.failure(&ended)))
            }
            Err(_) => {
                let message = format!("{target} did not start the agent within {} s", FACTS_MAX.as_secs());
                Err(driver_error(lend::ssh_error(ErrorKind::NoAnswer, message)))
            }
        }
    }

    /// Has the agent go, where nobody else uses it; absence is success.
    pub async fn move_out(&self, target: &Target, id: MachineId) -> Result<(), ProviderError> {
        let host = self.client.connect(target, None).await?;
        let facts = self.ask(&host).await?;
        lend::end(&host, &facts, id).await
    }

    async fn equipped(&self, host: &Host) -> Result<Facts, DriverError> {
        let facts = self.rooted(host).await?;
        if !facts.has_agent {
            self.bring(host, &facts).await?;
        }
        Ok(facts)
    }

    async fn rooted(&self, host: &Host) -> Result<Facts, DriverError> {
        let facts = self.ask(host).await.map_err(driver_error)?;
        if facts.rooted {
            return Ok(facts);
        }
        let message =
            format!("{}: only root switches systems, and this user is not root there", host.target());
        Err(DriverError::new(DriverErrorKind::Unusable, message)
            .hint("name root, or a user for whom `sudo` asks for no password"))
    }
}
