//! What is seen at a provider: its list, renewed in the background, and what was made too lately to be on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use calve_core::MachineId;
use calve_node::{DriverError, DriverErrorKind};
use calve_provider::mark::{Owner, Until};
use calve_provider::reap::{self, Verdict, Whose};
use calve_provider::{Provider, ProviderError};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::driver_error;

/// Pause between two lists: a provider grants some 5,000 requests an hour.
const LIST_PAUSE: Duration = Duration::from_secs(5);
/// How long is waited for a list that is under way: the loop lists its other drivers at the same time.
const LIST_WAIT: Duration = Duration::from_secs(2);
/// How old a list may be where no newer one could be had.
const LIST_AGE_MAX: Duration = Duration::from_secs(60);
/// How long a list may show what was before.
const LAG_MAX: Duration = Duration::from_secs(60);

/// A machine of this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    pub id: MachineId,
    pub attempt: u32,
    /// Its name at the provider.
    pub name: String,
    pub provider_id: String,
    pub tags: Vec<String>,
    pub until: Until,
}

/// What is seen.
#[derive(Default)]
pub(super) struct Sight {
    shared: Arc<Shared>,
    /// What was made or changed by this process, and when; it counts more than a list that may lag.
    noted: Arc<Mutex<BTreeMap<MachineId, (Instant, Made)>>>,
}

#[derive(Clone, Default)]
struct Listed {
    /// When the last list was begun that succeeded, and what it showed.
    latest: Option<(Instant, Vec<Made>)>,
    /// Why the last one failed.
    failed: Option<ProviderError>,
    under_way: bool,
}

/// The list, and who waits for it: they go on in the order in which they came, so that a simulation is the same each time.
#[derive(Default)]
struct Shared {
    listed: Mutex<Listed>,
    ended: Notify,
}

impl Shared {
    fn listed(&self) -> MutexGuard<'_, Listed> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once no list is under way.
    async fn ended(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if !self.listed().under_way {
                return;
            }
            ended.await;
        }
    }
}

impl Sight {
    /// The machines of `owner`: from a list of the last seconds where one can be had, together with what was noted.
    pub async fn look(&self, provider: &Arc<dyn Provider>, owner: Owner) -> Result<Vec<Made>, DriverError> {
        let fresh = self.shared.listed().is_fresh();
        if !fresh {
            self.begin(provider, owner);
            // Where it takes longer, the next look finds what it brings.
            let _ = tokio::time::timeout(LIST_WAIT, self.shared.ended()).await;
        }
        let listed = self.shared.listed().clone();
        match (listed.latest, listed.failed) {
            (Some((at, machines)), _) if at.elapsed() <= LIST_AGE_MAX => Ok(self.with_noted(at, machines)),
            (_, Some(error)) => Err(driver_error(error)),
            (_, None) => {
                let message = format!("{} has not answered yet", provider.describe().name);
                Err(DriverError::new(DriverErrorKind::Failed, message))
            }
        }
    }

    /// A machine was made, or is otherwise than lists may say.
    pub fn note(&self, made: Made) {
        self.noted().insert(made.id, (Instant::now(), made));
    }

    /// The machine with this id at the provider was destroyed: only later lists count for it.
    pub fn gone(&self, provider_id: &str) {
        self.noted().retain(|_, (_, made)| made.provider_id != provider_id);
        if let Some((_, machines)) = &mut self.shared.listed().latest {
            machines.retain(|machine| machine.provider_id != provider_id);
        }
    }

    fn with_noted(&self, at: Instant, mut machines: Vec<Made>) -> Vec<Made> {
        let mut noted = self.noted();
        // A list that was begun so long after it was noted does not lag behind it.
        noted.retain(|_, (since, _)| at < *since + LAG_MAX);
        for (_, made) in noted.values() {
            machines.retain(|machine| machine.provider_id != made.provider_id);
            machines.push(made.clone());
        }
        machines
    }

    fn begin(&self, provider: &Arc<dyn Provider>, owner: Owner) {
        if std::mem::replace(&mut self.shared.listed().under_way, true) {
            return;
        }
        let (shared, provider) = (self.shared.clone(), provider.clone());
        tokio::spawn(async move {
            let at = Instant::now();
            let found = tokio::spawn(async move { list(&*provider, owner).await }).await;
            {
                let mut listed = shared.listed();
                listed.under_way = false;
                match found {
                    Ok(Ok(machines)) => (listed.latest, listed.failed) = (Some((at, machines)), None),
                    Ok(Err(error)) => listed.failed = Some(error),
                    Err(error) => tracing::error!(%error, "listing machines at a provider failed"),
                }
            }
            shared.ended.notify_waiters();
        });
    }

    fn noted(&self) -> MutexGuard<'_, BTreeMap<MachineId, (Instant, Made)>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listed {
    fn is_fresh(&self) -> bool {
        self.latest.as_ref().is_some_and(|(at, _)| at.elapsed() < LIST_PAUSE)
    }
}

/// The machines of `owner`. Of a machine that was made twice, the second is destroyed.
async fn list(provider: &dyn Provider, owner: Owner) -> Result<Vec<Made>, ProviderError> {
    let machines = provider.list(&owner.tag()).await?.machines;
    // At the first moment no lease has ended: the loop ends them, this only reads tags.
    let verdicts = reap::judge(&machines, Whose::Owner(owner), 0);
    let mut made = Vec::new();
    for (machine, verdict) in machines.into_iter().zip(verdicts) {
        let mark = match verdict {
            Verdict::Lives(mark) | Verdict::Expired(mark, _) => mark,
            Verdict::Doubled(..) => {
                provider.destroy(&machine.id).await?;
                continue;
            }
            Verdict::Another(_) | Verdict::Unmarked(_) => continue,
        };
        let (id, attempt) = (mark.subject.id, mark.subject.attempt);
        let (name, provider_id, tags) = (machine.name, machine.id, machine.tags);
        made.push(Made { id, attempt, name, provider_id, tags, until: mark.until });
    }
    Ok(made)
}
