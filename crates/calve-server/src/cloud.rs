//! Machines at a provider, as a driver of this server.
//!
//! ```text
//!  create ─▶ owner key, tags, user data ─▶ Provider::create ─▶ machine boots, its agent dials the door for agents
//!  adopt  ─▶ the same tags for a machine that is there
//!  list   ─▶ what was seen last, renewed in the background ─▶ marks ─▶ machines; twins are destroyed
//! ```
//! Its memory is the provider's list. What it holds besides bridges the time in which that list lags.

pub mod place;
mod sight;
mod ssh;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use calve_core::{DriverName, MachineId, Timestamp};
use calve_node::{Driver, DriverError, DriverErrorKind, Found, Order};
use calve_provider::adopt::{self, AdoptError};
use calve_provider::mark::{ADOPTED, OwnerKey, Subject, UNTILS, Until};
use calve_provider::{ErrorKind, Listed, Provider, ProviderError, reap};
use calve_wire::agent::Remaining;
use calve_wire::doctor::{Check, CheckStatus};
use calve_wire::join::{USER_DATA_VERSION, UserData};
use calve_wire::machine::{Place, Workload};
use tokio::sync::Mutex;

use crate::joins::{self, JOIN_MAX};
use crate::world::now;
use sight::{LIST_WAIT, Made, Retag, Sight};
pub use ssh::SshDriver;

/// A lease that ends less than this from what the tags say is not written anew.
const LEASE_SLACK: Duration = Duration::from_secs(5);

/// Where agents dial, and what they expect there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// `host:port` as machines elsewhere reach it.
    pub address: String,
    /// SHA-256 of the certificate, in hexadecimal digits.
    pub fingerprint: String,
}

/// The driver; see [`Driver`].
pub struct CloudDriver {
    name: DriverName,
    /// The provider, or in a sentence why there is none.
    provider: Result<Arc<dyn Provider>, String>,
    key_file: PathBuf,
    key: OnceLock<OwnerKey>,
    door: Arc<OnceLock<Door>>,
    sight: Sight,
    adopting: Mutex<()>,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl CloudDriver {
    /// The driver for a provider, or for none, and why. The server's key is kept in `key_file`, and made with the first
    /// machine; `door` is filled once the server listens for agents.
    pub fn new(
        name: DriverName,
        provider: Result<Arc<dyn Provider>, String>,
        key_file: PathBuf,
        door: Arc<OnceLock<Door>>,
    ) -> Self {
        let (key, sight, clock) = (OnceLock::new(), Sight::new(), Arc::new(now));
        Self { name, provider, key_file, key, door, sight, adopting: Mutex::default(), clock }
    }

    /// The same with another clock than the host's: a simulator's.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Self {
        Self { clock, ..self }
    }

    /// Until when a machine may live at all.
    fn until(&self, remaining: Remaining) -> Until {
        let left = remaining.until_deadline_ms;
        let end = left.map(|left| (self.clock)().0.saturating_add(left).saturating_add(remaining.grace_ms));
        end.map_or(Until::Never, |ms| Until::Unix(ms.div_ceil(1000)))
    }

    fn provider(&self) -> Result<&Arc<dyn Provider>, DriverError> {
        self.provider.as_ref().map_err(|why| DriverError::new(DriverErrorKind::Unusable, why.clone()))
    }

    fn key(&self) -> Result<&OwnerKey, DriverError> {
        if let Some(key) = self.key.get() {
            return Ok(key);
        }
        let made = OwnerKey::load_or_make(&self.key_file).map_err(|error| {
            let message = format!("the key that signs machines, {}, cannot be used", self.key_file.display());
            DriverError::new(DriverErrorKind::Failed, message).caused_by(error)
        })?;
        Ok(self.key.get_or_init(|| made))
    }

    fn door(&self) -> Result<&Door, DriverError> {
        self.door.get().ok_or_else(|| {
            DriverError::new(
                DriverErrorKind::Unusable,
                "this server has no door for agents of machines elsewhere",
            )
            .hint("start it with `calve server --agents ADDR:PORT`")
        })
    }

    /// The machines of this server; none where it never made one.
    async fn look(&self) -> Result<Vec<Made>, DriverError> {
        if !self.key_file.exists() {
            return Ok(Vec::new());
        }
        self.sight.look(self.provider()?, self.key()?.owner()).await
    }

    async fn end(&self, machine: &Made) -> Result<(), DriverError> {
        let provider = self.provider()?;
        // Somebody else made it, and a list may show an adoption that is just being taken back.
        let ours = match machine.tags.iter().any(|tag| tag == ADOPTED) {
            true => adopt::is_ours(&**provider, &machine.provider_id, self.key()?.owner(), machine.id).await,
            false => Ok(true),
        };
        if ours.map_err(driver_error)? {
            provider.destroy(&machine.provider_id).await.map_err(driver_error)?;
        }
        self.sight.gone(machine);
        self.retag(provider).await;
        Ok(())
    }

    /// Makes a machine that is there this server's.
    async fn adopt(&self, order: &Order, machine: &str) -> Result<(), DriverError> {
        let (provider, key) = (self.provider()?, self.key()?);
        // Of two that want the same machine the second sees that it is taken.
        let _turn = self.adopting.lock().await;
        let until = self.until(order.remaining);
        let adopted = adopt::adopt(&**provider, machine, key, (order.id, order.attempt), until).await;
        let found = adopted.map_err(|error| {
            if matches!(&error, AdoptError::Provider(error) if error.is_uncertain()) {
                self.sight.in_doubt(order.id, order.attempt);
            }
            adopt_error(error)
        })?;
        let Listed { id: provider_id, name, tags, .. } = found;
        self.sight.adopted(Made { id: order.id, attempt: order.attempt, name, provider_id, tags, until });
        Ok(())
    }

    async fn retag(&self, provider: &Arc<dyn Provider>) {
        retag(&**provider, self.sight.retag(provider.describe().lists_lag)).await;
    }

    fn check(&self, name: &str, status: CheckStatus, found: String, mend: Option<&str>) -> Check {
        let cost = match status {
            CheckStatus::Missing | CheckStatus::Unset => format!("no machines at {}", self.name),
            CheckStatus::Ok | CheckStatus::Degraded => String::new(),
        };
        let mend = mend.map(str::to_owned);
        Check { area: self.name.to_string(), name: name.to_owned(), status, found, cost, mend }
    }
}

#[async_trait]
impl Driver for CloudDriver {
    fn name(&self) -> DriverName {
        self.name
    }

    async fn preflight(&self) -> Vec<Check> {
        let (ok, missing) = (CheckStatus::Ok, CheckStatus::Missing);
        let provider = match &self.provider {
            Ok(provider) => provider,
            Err(why) => return vec![self.check("credentials", CheckStatus::Unset, why.clone(), None)],
        };
        let account = match provider.check().await {
            Ok(account) => self.check("credentials", ok, format!("of the account {}", account.name), None),
            Err(error) => self.check("credentials", missing, error.to_string(), None),
        };
        let door = match self.door.get() {
            Some(door) => self.check("door for agents", ok, format!("agents dial {}", door.address), None),
            None => {
                let found = "this server listens for none".to_owned();
                self.check("door for agents", missing, found, Some("calve server --agents ADDR:PORT"))
            }
        };
        vec![account, door]
    }

    async fn create(&self, order: &Order) -> Result<(), DriverError> {
        if let Workload::Adopted { machine } = &order.spec.workload {
            return self.adopt(order, machine).await;
        }
        let (provider, key, door) = (self.provider()?, self.key()?, self.door()?);
        let wish = order.spec.place.as_ref().ok_or_else(|| {
            DriverError::new(DriverErrorKind::Unusable, "the order does not say where and how large")
        })?;
        let image = place::image(&**provider, wish).await?;
        for older in self.look().await?.iter().filter(|it| it.id == order.id && it.attempt < order.attempt) {
            self.end(older).await?;
        }
        let subject = Subject { id: order.id, attempt: order.attempt, name: order.name.to_string() };
        let until = self.until(order.remaining);
        let user_data = UserData {
            calve: USER_DATA_VERSION,
            name: order.name.to_string(),
            server: door.address.clone(),
            fingerprint: door.fingerprint.clone(),
            machine: Some(order.id),
            join: Some(joins::token(&order.token, order.id, order.attempt, (self.clock)().after(JOIN_MAX))),
            token: None,
            deadline_unix_ms: order.remaining.until_deadline_ms.map(|left| (self.clock)().0 + left),
            grace_ms: order.remaining.grace_ms,
        };
        let asked = calve_provider::Order {
            name: subject.name.clone(),
            key: subject.key(),
            tags: key.tags(&subject, until),
            region: wish.region.clone(),
            size: wish.size.clone(),
            image,
            user_data: user_data.to_text(),
        };
        let made = provider.create(&asked).await.map_err(|error| {
            if error.is_uncertain() {
                self.sight.in_doubt(order.id, order.attempt);
            }
            driver_error(error)
        })?;
        self.sight.made(Made {
            id: order.id,
            attempt: order.attempt,
            name: subject.name,
            provider_id: made.id,
            tags: asked.tags,
            until,
        });
        Ok(())
    }

    async fn adoptable(&self, machine: &str, _: Option<&str>) -> Result<Place, DriverError> {
        let provider = self.provider()?;
        let found = adopt::look(&**provider, machine, self.key()?.owner(), None).await;
        let Listed { region, size, .. } = found.map_err(adopt_error)?;
        Ok(Place { region, size, image: None, host_key: None })
    }

    async fn list(&self) -> Result<Vec<Found>, DriverError> {
        if !self.key_file.exists() {
            return Ok(Vec::new());
        }
        let provider = self.provider()?;
        let found = self.sight.found(provider, self.key()?.owner()).await?;
        let tags = self.sight.retag(provider.describe().lists_lag);
        if !tags.unused.is_empty() || !tags.missing.is_empty() {
            let provider = provider.clone();
            let retagged = tokio::spawn(async move { retag(&*provider, tags).await });
            // A slow provider does not hold up the loop.
            let _ = tokio::time::timeout(LIST_WAIT, retagged).await;
        }
        Ok(found)
    }

    fn lists_all(&self) -> bool {
        let Ok(provider) = &self.provider else { return true };
        !self.key_file.exists() || self.sight.shows_all(provider.describe().lists_lag)
    }

    async fn set_lease(&self, id: MachineId, remaining: Remaining) -> Result<(), DriverError> {
        let until = self.until(remaining);
        let seen = self.look().await?;
        // A list that lags may still show what was made of it before.
        let newest = seen.iter().filter(|machine| machine.id == id).max_by_key(|machine| machine.attempt);
        let Some(machine) = newest else { return Ok(()) };
        if close(machine.until, until) {
            return Ok(());
        }
        let provider = self.provider()?;
        let subject = Subject { id, attempt: machine.attempt, name: machine.name.clone() };
        let tag = self.key()?.until_tag(&subject, until);
        // The new one first: at every moment there is one, and the longer one counts.
        provider.add_tag(&machine.provider_id, &tag).await.map_err(driver_error)?;
        let (old, mut tags): (Vec<_>, Vec<_>) =
            machine.tags.iter().cloned().partition(|it| it != &tag && it.starts_with(UNTILS));
        tags.push(tag.clone());
        self.sight.renewed(Made { until, tags, ..machine.clone() }, tag, old);
        self.retag(provider).await;
        Ok(())
    }

    async fn destroy(&self, id: MachineId) -> Result<(), DriverError> {
        for machine in self.look().await?.iter().filter(|machine| machine.id == id) {
            self.end(machine).await?;
        }
        Ok(())
    }

    fn agent_socket(&self, _: MachineId) -> PathBuf {
        unreachable!("agents of machines at a provider dial")
    }

    fn agents_dial(&self) -> bool {
        true
    }

    fn takes_closure_by_link(&self) -> bool {
        true
    }

    fn console_log(&self, _: MachineId) -> Option<PathBuf> {
        None
    }
}

/// Gives machines the tags that they lack, and removes those that nothing needs any more. They go from the whole account, so
/// that a twin which is not listed yet would lose what it is known by: nobody would ever destroy it. What fails here is seen
/// again in a later list, or costs nothing.
async fn retag(provider: &dyn Provider, tags: Retag) {
    for (machine, tag) in &tags.missing {
        if let Err(error) = provider.add_tag(machine, tag).await {
            tracing::debug!(%error, machine, "a tag was not added");
        }
    }
    reap::forget_tags(provider, &tags.unused).await;
}

fn adopt_error(error: AdoptError) -> DriverError {
    match error {
        AdoptError::Provider(error) => driver_error(error),
        AdoptError::Ours { id, .. } => DriverError::new(DriverErrorKind::Unusable, error.to_string())
            .hint(format!("see `calve status {id}`")),
        AdoptError::Another { .. } => DriverError::new(DriverErrorKind::Unusable, error.to_string())
            .hint("it is let go of there, or ends with its lease there"),
        AdoptError::Odd { .. } => DriverError::new(DriverErrorKind::Unusable, error.to_string())
            .hint("take its tags that begin with `calve` away at the provider, if it is nobody's"),
    }
}

fn close(a: Until, b: Until) -> bool {
    match (a, b) {
        (Until::Unix(a), Until::Unix(b)) => a.abs_diff(b) <= LEASE_SLACK.as_secs(),
        (a, b) => a == b,
    }
}

fn driver_error(error: ProviderError) -> DriverError {
    let kind = match error.kind {
        ErrorKind::Quota => DriverErrorKind::NoSpace,
        _ if error.may_pass() => DriverErrorKind::Failed,
        _ => DriverErrorKind::Unusable,
    };
    DriverError::new(kind, error.to_string())
}
