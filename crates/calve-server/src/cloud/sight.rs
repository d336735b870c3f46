//! What is seen at a provider: its list, renewed in the background, and what was made too lately to be on it.
//!
//! ```text
//!   server starts ──── lag ────▶ a list shows what earlier servers made: what it does not show is gone
//!   asked to make ──── lag ────▶ a list shows all that came of it, a twin too: until then the machine counts as there
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use calve_core::MachineId;
use calve_node::{DriverError, DriverErrorKind, Found};
use calve_provider::mark::{Owner, Until};
use calve_provider::reap::{self, Verdict, Whose};
use calve_provider::{Provider, ProviderError};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::driver_error;

/// Pause between two lists: a provider grants some 5,000 requests an hour.
const LIST_PAUSE: Duration = Duration::from_secs(5);
/// How long is waited for a list that is under way: the loop lists its other drivers at the same time.
pub(super) const LIST_WAIT: Duration = Duration::from_secs(2);
/// How old a list may be where no newer one could be had.
const LIST_AGE_MAX: Duration = Duration::from_secs(60);
/// How long what was done counts more than a list, at the least: the lag that a provider owns to is seldom its longest.
const NOTED_MIN: Duration = Duration::from_secs(60);

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

/// What this process did to a machine; it counts more than a list that may lag.
#[derive(Debug, Default)]
struct Noted {
    attempt: u32,
    /// The machine as it was made or changed, and when; none once it was destroyed, or where the creation's answer was lost.
    made: Option<(Instant, Made)>,
    /// When the provider was last asked to make it. The request may have come there twice, or come only after nobody waited for
    /// its answer any more.
    asked: Option<Instant>,
    /// Tags of what was destroyed of it. Twins carry the same, and are known by them alone: they are removed once a list shows
    /// that there is no other.
    tags: Vec<String>,
    /// The tag that says its lease now, and those that said it before. These go once it carries that one, also where it is the
    /// twin of the machine that was given it: a machine that says no lease is no longer known as ours.
    lease_tag: Option<String>,
    old_tags: Vec<String>,
}

/// What shall become of tags.
#[derive(Default)]
pub(super) struct Retag {
    /// Nothing needs these any more.
    pub unused: Vec<String>,
    /// The machines with these numbers at the provider lack these.
    pub missing: Vec<(String, String)>,
}

impl Noted {
    /// It is otherwise than lists may say.
    fn is_now(&mut self, made: Made) {
        (self.attempt, self.made) = (made.attempt, Some((Instant::now(), made)));
    }

    /// Whether more of it may be there than a list shows that was begun at `at`.
    fn may_hide(&self, at: Instant, lag: Duration) -> bool {
        self.asked.is_some_and(|asked| at < asked + lag)
    }
}

/// What is seen.
pub(super) struct Sight {
    shared: Arc<Shared>,
    /// When this process began to look.
    since: Instant,
    noted: Arc<Mutex<BTreeMap<MachineId, Noted>>>,
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
    /// Nothing yet.
    pub fn new() -> Self {
        Self { shared: Arc::default(), since: Instant::now(), noted: Arc::default() }
    }

    /// Whether the lists that are had from now on show what earlier processes made, with this lag.
    pub fn shows_all(&self, lag: Duration) -> bool {
        self.shared.listed().latest.as_ref().is_some_and(|(at, _)| *at >= self.since + lag)
    }

    /// The machines of `owner`: from a list of the last seconds where one can be had, together with what was noted.
    pub async fn look(&self, provider: &Arc<dyn Provider>, owner: Owner) -> Result<Vec<Made>, DriverError> {
        Ok(self.look_at(provider, owner).await?.1)
    }

    /// What there is: the same, and machines of which a list may not show yet what came of their creations.
    pub async fn found(&self, provider: &Arc<dyn Provider>, owner: Owner) -> Result<Vec<Found>, DriverError> {
        let (at, machines) = self.look_at(provider, owner).await?;
        let lag = provider.describe().lists_lag;
        let shown = |id| machines.iter().any(|machine| machine.id == id);
        let mut found: Vec<Found> =
            machines.iter().map(|machine| Found { id: machine.id, attempt: machine.attempt }).collect();
        let noted = self.noted();
        let hidden = noted.iter().filter(|(id, noted)| noted.may_hide(at, lag) && !shown(**id));
        found.extend(hidden.map(|(id, noted)| Found { id: *id, attempt: noted.attempt }));
        // Of one machine the last counts: of several attempts the newest.
        found.sort_by_key(|found| found.attempt);
        Ok(found)
    }

    async fn look_at(
        &self,
        provider: &Arc<dyn Provider>,
        owner: Owner,
    ) -> Result<(Instant, Vec<Made>), DriverError> {
        let fresh = self.shared.listed().is_fresh();
        if !fresh {
            self.begin(provider, owner);
            // Where it takes longer, the next look finds what it brings.
            let _ = tokio::time::timeout(LIST_WAIT, self.shared.ended()).await;
        }
        let listed = self.shared.listed().clone();
        match (listed.latest, listed.failed) {
            (Some((at, machines)), _) if at.elapsed() <= LIST_AGE_MAX => {
                Ok((at, self.with_noted(at, machines, provider.describe().lists_lag)))
            }
            (_, Some(error)) => Err(driver_error(error)),
            (_, None) => {
                let message = format!("{} has not answered yet", provider.describe().name);
                Err(DriverError::new(DriverErrorKind::Failed, message))
            }
        }
    }

    /// A machine was made.
    pub fn made(&self, made: Made) {
        self.in_doubt(made.id, made.attempt);
        self.noted().entry(made.id).or_default().is_now(made);
    }

    /// A machine that was there was adopted: the provider was not asked to make any.
    pub fn adopted(&self, made: Made) {
        self.noted().entry(made.id).or_default().is_now(made);
    }

    /// The provider was asked for a machine, and nobody knows what came of it.
    pub fn in_doubt(&self, id: MachineId, attempt: u32) {
        let mut noted = self.noted();
        let noted = noted.entry(id).or_default();
        (noted.attempt, noted.made, noted.asked) = (attempt, None, Some(Instant::now()));
    }

    /// A machine's lease is said by this tag now, among its others, and no longer by the old ones.
    pub fn renewed(&self, made: Made, lease_tag: String, old_tags: Vec<String>) {
        let mut noted = self.noted();
        let noted = noted.entry(made.id).or_default();
        noted.old_tags.extend(old_tags);
        noted.old_tags.retain(|old| *old != lease_tag);
        noted.lease_tag = Some(lease_tag);
        noted.is_now(made);
    }

    /// This machine at the provider was destroyed: only later lists count for it.
    pub fn gone(&self, machine: &Made) {
        {
            let mut noted = self.noted();
            let noted =
                noted.entry(machine.id).or_insert(Noted { attempt: machine.attempt, ..Noted::default() });
            noted.made.take_if(|(_, made)| made.provider_id == machine.provider_id);
            noted.tags.extend(machine.tags.iter().cloned());
        }
        if let Some((_, machines)) = &mut self.shared.listed().latest {
            machines.retain(|known| known.provider_id != machine.provider_id);
        }
    }

    /// What shall become of tags, with this lag; each that is unused is told once.
    pub fn retag(&self, lag: Duration) -> Retag {
        let mut retag = Retag::default();
        let latest = self.shared.listed().latest.clone();
        let Some((at, machines)) = latest else { return retag };
        for (id, noted) in self.noted().iter_mut() {
            if at < noted.asked.unwrap_or(self.since) + lag {
                continue;
            }
            let mut listed = machines.iter().filter(|machine| machine.id == *id);
            match (listed.next(), listed.next(), &noted.lease_tag) {
                (None, _, _) if noted.made.is_none() => {
                    retag.unused.append(&mut noted.tags);
                    retag.unused.append(&mut noted.old_tags);
                }
                (Some(machine), None, Some(tag)) if !noted.old_tags.is_empty() => {
                    if machine.tags.contains(tag) {
                        retag.unused.append(&mut noted.old_tags);
                    } else {
                        retag.missing.push((machine.provider_id.clone(), tag.clone()));
                    }
                }
                _ => {}
            }
        }
        retag
    }

    fn with_noted(&self, at: Instant, mut machines: Vec<Made>, lag: Duration) -> Vec<Made> {
        let mut noted = self.noted();
        // A list that was begun so long after it was noted does not lag behind it.
        noted.retain(|_, noted| {
            noted.made.take_if(|(since, _)| at >= *since + lag.max(NOTED_MIN));
            let tags = noted.tags.len() + noted.old_tags.len();
            noted.made.is_some() || noted.may_hide(at, lag) || tags > 0
        });
        for (_, made) in noted.values().filter_map(|noted| noted.made.as_ref()) {
            machines.retain(|machine| machine.provider_id != made.provider_id);
            machines.push(made.clone());
        }
        machines
    }

    fn begin(&self, provider: &Arc<dyn Provider>, owner: Owner) {
        if std::mem::replace(&mut self.shared.listed().under_way, true) {
            return;
        }
        let (shared, provider, noted) = (self.shared.clone(), provider.clone(), self.noted.clone());
        tokio::spawn(async move {
            let at = Instant::now();
            let found = tokio::spawn(async move { list(&*provider, owner).await }).await;
            {
                let mut listed = shared.listed();
                listed.under_way = false;
                match found {
                    Ok(Ok((machines, destroyed))) => {
                        for noted in noted.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
                            noted.made.take_if(|(_, made)| destroyed.contains(&made.provider_id));
                        }
                        (listed.latest, listed.failed) = (Some((at, machines)), None);
                    }
                    Ok(Err(error)) => listed.failed = Some(error),
                    Err(error) => tracing::error!(%error, "listing machines at a provider failed"),
                }
            }
            shared.ended.notify_waiters();
        });
    }

    fn noted(&self) -> MutexGuard<'_, BTreeMap<MachineId, Noted>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listed {
    fn is_fresh(&self) -> bool {
        self.latest.as_ref().is_some_and(|(at, _)| at.elapsed() < LIST_PAUSE)
    }
}

/// The machines of `owner`, and the numbers of those that were made twice: the second is destroyed.
async fn list(provider: &dyn Provider, owner: Owner) -> Result<(Vec<Made>, Vec<String>), ProviderError> {
    let machines = provider.list(&owner.tag()).await?.machines;
    // At the first moment no lease has ended: the loop ends them, this only reads tags.
    let verdicts = reap::judge(&machines, Whose::Owner(owner), 0);
    let (mut made, mut destroyed) = (Vec::new(), Vec::new());
    for (machine, verdict) in machines.into_iter().zip(verdicts) {
        let mark = match verdict {
            Verdict::Lives(mark) | Verdict::Expired(mark, _) => mark,
            Verdict::Doubled(..) => {
                provider.destroy(&machine.id).await?;
                destroyed.push(machine.id);
                continue;
            }
            Verdict::Another(_) | Verdict::Unmarked(_) => continue,
        };
        let (id, attempt) = (mark.subject.id, mark.subject.attempt);
        let (name, provider_id, tags) = (machine.name, machine.id, machine.tags);
        made.push(Made { id, attempt, name, provider_id, tags, until: mark.until });
    }
    Ok((made, destroyed))
}
