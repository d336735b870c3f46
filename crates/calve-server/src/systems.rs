//! Hosts whose system is switched: brings the new system and `calve-switch` to the host, has it begin, and gives the
//! server's word once the host is healthy and was heard anew. What makes it safe is on the host
//! (`calve_wire::system`): without that word it goes back by itself, so everything here may end at any moment.
//!
//! ```text
//!  system/<machine id> ─▶ SystemRecord { desired, pending, ended }     one writer: the task that drives the machine's switch
//!
//!  bring calve-switch, closure ─▶ begin ─▶ status … confirming, healthy ─▶ hear the agent anew ─▶ confirm ─▶ outcome
//! ```

mod drift;
mod drive;
mod host;
mod records;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use calve_core::{MachineId, Timestamp};
use calve_nix::StorePath;
use calve_wire::record::MachineRecord;
use calve_wire::system::{
    HostFacts, PendingSwitch, SwitchAction, SwitchOutcome, SwitchStage, SwitchView, SystemRecord,
    first_switch,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::chain;
use crate::reconcile::EffectError;
use crate::state::State;

pub use drift::drift;
pub use host::{HostError, Hosts};
pub use records::SystemsError;

/// Pause after the state could not be read or written.
const STATE_PAUSE: Duration = Duration::from_secs(3);

/// Who switches machines that were made for a system.
const GIVER: &str = "server";

/// How long the loop waits for a machine's system at a time; it does nothing else with that machine meanwhile.
const GIVE_MAX: Duration = Duration::from_secs(4);

/// Whether a machine has the system that it was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Given {
    /// It runs it.
    Yes,
    /// It is being switched.
    UnderWay,
    /// It does not, for this reason, and nobody tries again.
    No(String),
}

/// The switches of all machines. Cloning the `Arc` gives another handle.
pub struct Systems {
    state: Arc<dyn State>,
    hosts: Arc<dyn Hosts>,
    shutdown: CancellationToken,
    driving: Mutex<BTreeMap<MachineId, AbortOnDropHandle<()>>>,
    /// Counts changes of the records.
    changes: watch::Sender<u64>,
}

impl Systems {
    /// Goes on with what a former server began. To be called within a tokio runtime.
    pub fn start(state: Arc<dyn State>, hosts: Arc<dyn Hosts>, shutdown: CancellationToken) -> Arc<Self> {
        let changes = watch::Sender::new(0);
        let systems = Arc::new(Self { state, hosts, shutdown, driving: Mutex::default(), changes });
        let going_on = systems.clone();
        tokio::spawn(async move {
            if let Err(error) = records::sweep(&*going_on.state).await {
                tracing::warn!(%error, "systems of machines that are gone are kept");
            }
            let pending = loop {
                match records::pending(&*going_on.state).await {
                    Ok(pending) => break pending,
                    Err(error) => {
                        tracing::error!(%error, "switches of a former server are not known yet");
                        tokio::time::sleep(STATE_PAUSE).await;
                    }
                }
            };
            pending.into_iter().for_each(|id| going_on.drive(id));
        });
        systems
    }

    /// What is known of a machine's system.
    pub async fn get(&self, id: MachineId) -> Result<SystemRecord, SystemsError> {
        records::get(&*self.state, id).await
    }

    /// Begins a switch.
    ///
    /// # Errors
    /// [`SystemsError::Held`] where another one is under way.
    pub async fn begin(
        self: &Arc<Self>,
        id: MachineId,
        pending: PendingSwitch,
    ) -> Result<SwitchView, SystemsError> {
        let view = pending.view.clone();
        let systems = self.clone();
        // Who asked may be gone in between; the record would then stand there with nobody who drives it.
        let beginning = tokio::spawn(async move {
            let begun = records::begin(&*systems.state, id, pending).await;
            systems.changed();
            // Also where it is not known whether that was written.
            systems.drive(id);
            begun
        });
        let begun = beginning.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        begun.map(|()| view)
    }

    /// Has a machine that was made of an image get the system that it is for, for the loop, which asks again while that is under
    /// way. A machine that is made anew is switched anew.
    pub async fn give(
        self: &Arc<Self>,
        record: &MachineRecord,
        toplevel: &StorePath,
        now: Timestamp,
    ) -> Result<(), EffectError> {
        let (message, retry) = match self.given(record, toplevel, now, GIVE_MAX).await {
            Ok(Given::Yes) => return Ok(()),
            Ok(Given::UnderWay) => ("it is being switched to its system".to_owned(), true),
            Ok(Given::No(why)) => (format!("it could not be switched to its system: {why}"), false),
            Err(error) => (chain(&error), true),
        };
        Err(EffectError { message, retry })
    }

    /// Begins the first switch of a machine where nobody has, and waits a while for its end.
    async fn given(
        self: &Arc<Self>,
        record: &MachineRecord,
        toplevel: &StorePath,
        now: Timestamp,
        patience: Duration,
    ) -> Result<Given, SystemsError> {
        let switch = first_switch(record.attempt);
        let until = Instant::now() + patience;
        let mut known = None;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(view) = self.follow(record.id, &switch, known, left).await? else {
                let pending = PendingSwitch::new(
                    switch.clone(),
                    record.name.to_string(),
                    toplevel.to_string(),
                    SwitchAction::Switch,
                    GIVER.to_owned(),
                    now.0,
                );
                match self.begin(record.id, pending).await {
                    Ok(_) => continue,
                    // Somebody was faster, whose switch ends first.
                    Err(SystemsError::Held(_)) => return Ok(Given::UnderWay),
                    Err(error) => return Err(error),
                }
            };
            match view.outcome {
                Some(SwitchOutcome::Applied) => return Ok(Given::Yes),
                Some(outcome) => {
                    let why = view.message.unwrap_or_else(|| format!("the switch ended as {outcome:?}"));
                    return Ok(Given::No(why));
                }
                None if Instant::now() >= until => return Ok(Given::UnderWay),
                None => known = Some(view.stage),
            }
        }
    }

    /// A switch as it stands, once that is not `known` any more, or after a while.
    pub async fn follow(
        &self,
        id: MachineId,
        switch: &str,
        known: Option<SwitchStage>,
        patience: Duration,
    ) -> Result<Option<SwitchView>, SystemsError> {
        let mut changes = self.changes.subscribe();
        let until = Instant::now() + patience;
        loop {
            changes.mark_unchanged();
            let record = self.get(id).await?;
            let pending = record.pending.map(|pending| pending.view);
            let found = record.ended.into_iter().rev().chain(pending).find(|view| view.id == switch);
            let Some(view) = found else { return Ok(None) };
            if Some(view.stage) != known || view.outcome.is_some() {
                return Ok(Some(view));
            }
            if !matches!(tokio::time::timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
                return Ok(Some(view));
            }
        }
    }

    /// What the machine's system is like, asked now.
    pub async fn facts(&self, id: MachineId) -> Result<HostFacts, HostError> {
        self.hosts.facts(id).await
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn drive(self: &Arc<Self>, id: MachineId) {
        let mut driving = self.driving.lock().unwrap_or_else(PoisonError::into_inner);
        if driving.get(&id).is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (systems, shutdown) = (self.clone(), self.shutdown.clone());
        let task = tokio::spawn(async move {
            // The next server goes on with it.
            shutdown.run_until_cancelled(drive::drive(&systems, id)).await;
        });
        driving.insert(id, AbortOnDropHandle::new(task));
    }
}

/// The system that a machine shall have: of the last switch that was applied, or the one that it was made with.
pub fn desired(record: &SystemRecord, machine: &MachineRecord) -> Option<String> {
    record.desired.clone().or_else(|| match &machine.spec.workload {
        calve_wire::machine::Workload::System { toplevel } => Some(toplevel.to_string()),
        calve_wire::machine::Workload::Program(_)
        | calve_wire::machine::Workload::Base
        | calve_wire::machine::Workload::Adopted { .. } => None,
    })
}

#[cfg(test)]
mod tests;
