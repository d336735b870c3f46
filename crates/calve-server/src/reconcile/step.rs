//! One machine's actions of one round: the write, then its events, then the link, then the effect.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use calve_core::plan::{Action, Change, Fault};
use calve_core::{DriverName, Exit, ExitCause, Lease, MachineId, State as MachineState, Timestamp};
use calve_wire::event::What;
use calve_wire::machine::Workload;
use calve_wire::record::MachineRecord;

use super::records::{self, View, machine_key};
use super::{EffectError, Effects};
use crate::state::{Durability, Expect, Revision, State, StateError};

/// Time that talking to an agent may take: it is on this host, or its link is broken.
const AGENT_EFFECT_MAX: Duration = Duration::from_secs(10);
/// Pause between looks at a record whose write had no answer.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// Everything that a step needs.
pub(super) struct Step {
    pub state: Arc<dyn State>,
    pub view: View,
    pub effects: Arc<dyn Effects>,
    pub id: MachineId,
    /// The record as it was planned for; none of a stray.
    pub record: Option<(Revision, Arc<MachineRecord>)>,
    pub changes: Vec<Change>,
    pub link: bool,
    pub effect: Option<Effect>,
    /// When it was planned.
    pub now: Timestamp,
}

/// The effect of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the actions of the same names")]
pub enum Effect {
    Create { attempt: u32 },
    Start,
    SetLease,
    Stop { grace: Duration },
    Destroy { driver: DriverName },
    Forget,
}

/// What became of a step.
#[derive(Debug)]
pub enum Outcome {
    /// Somebody else changed the record: the next round plans anew.
    Conflict,
    /// The state failed: nothing was done.
    NotWritten(StateError),
    /// Written; and the effect, where there was one, ended so, under this lease.
    #[expect(missing_docs, reason = "said above")]
    Done { lease: Option<Lease>, result: Result<(), Fault> },
}

impl Effect {
    /// The effect that an action asks for, if it asks for one.
    pub fn of(action: &Action) -> Option<Self> {
        match *action {
            Action::Write { .. } | Action::Link { .. } => None,
            Action::Create { attempt, .. } => Some(Self::Create { attempt }),
            Action::Start { .. } => Some(Self::Start),
            Action::SetLease { .. } => Some(Self::SetLease),
            Action::Stop { grace, .. } => Some(Self::Stop { grace }),
            Action::Destroy { driver, .. } => Some(Self::Destroy { driver }),
            Action::Forget { .. } => Some(Self::Forget),
        }
    }
}

impl Step {
    pub async fn run(mut self) -> Outcome {
        match self.write().await {
            Ok(()) => {}
            Err(StateError::Conflict { .. }) => return Outcome::Conflict,
            Err(error) => return Outcome::NotWritten(error),
        }
        if self.link
            && let Some((_, record)) = &self.record
        {
            self.effects.link(record);
        }
        let lease = self.record.as_ref().map(|(_, record)| record.to_machine().lease);
        let result = match self.effect {
            Some(effect) => self.act(effect).await,
            None => Ok(()),
        };
        let result = result.map_err(|error| Fault { message: error.message, retry: error.retry });
        Outcome::Done { lease, result }
    }

    async fn write(&mut self) -> Result<(), StateError> {
        let Some((revision, old)) = self.record.as_ref().filter(|_| !self.changes.is_empty()) else {
            return Ok(());
        };
        let mut new = MachineRecord::clone(old);
        self.changes.iter().for_each(|change| new.apply(change, self.now));
        if let Some(exit) = self.changes.iter().find_map(exit_of)
            && let Some(reason) = self.reason(exit, &new)
        {
            new.message = Some(reason);
        }
        let expired = self.changes.contains(&Change::State(MachineState::Expired));
        let programs = matches!(new.spec.workload, Workload::Program(_));
        if expired && programs && new.attempt > 0 && new.exit.is_none() && new.message.is_none() {
            new.message = Some("its lease ended, and no server heard how its program did".to_owned());
        }
        let value = records::stored(&new);
        let revision = self.put(value.clone(), *revision).await?;
        self.view.note(revision, &new, value);
        let new = Arc::new(new);
        // No await lies between the write and its events, so that only a killed process can lose them.
        self.announce(&new);
        self.record = Some((revision, new));
        Ok(())
    }

    /// What the agent or the driver knows of such an end. Kept, as neither can be asked any more once the machine is gone.
    fn reason(&self, exit: Exit, record: &MachineRecord) -> Option<String> {
        match exit.cause {
            ExitCause::NotStarted | ExitCause::OutOfMemory => {
                self.effects.agents().remove(&self.id)?.status?.why_ended()
            }
            ExitCause::MachineLost => {
                let note = self.effects.end_note(record)?;
                Some(format!("{note}; `calve logs --console {}` shows its console", record.name))
            }
            ExitCause::Normal | ExitCause::Limit => None,
        }
    }

    /// Writes the record. Where the answer is lost, waits until the state says what became of it: the events of a change
    /// that was made must be written.
    async fn put(&self, value: Bytes, revision: Revision) -> Result<Revision, StateError> {
        let key = machine_key(self.id);
        let expect = Expect::Revision(revision);
        match records::put(&*self.state, &key, value.clone(), expect, Durability::Soon).await {
            Err(error @ (StateError::Failed(_) | StateError::Full)) => loop {
                match self.state.get(&key).await {
                    Ok(Some(entry)) if entry.value == value => return Ok(entry.revision),
                    Ok(_) => return Err(error),
                    Err(_) => tokio::time::sleep(LOOK_PAUSE).await,
                }
            },
            result => result,
        }
    }

    fn announce(&self, record: &MachineRecord) {
        let emit = |what| self.effects.emit(self.id, &record.name, what);
        for change in &self.changes {
            let state = match change {
                Change::Place { .. } => MachineState::Placed,
                Change::Creating { .. } => MachineState::Creating,
                Change::State(state) => *state,
                Change::Exit(exit) => {
                    emit(What::Exited { exit: (*exit).into() });
                    continue;
                }
                Change::End { .. } | Change::Message(_) => continue,
            };
            let telling =
                matches!(state, MachineState::Creating | MachineState::Draining | MachineState::Gone)
                    || matches!(state, MachineState::Failed | MachineState::Expired);
            emit(What::State { state, message: record.message.clone().filter(|_| telling) });
            if state.is_terminal() {
                emit(What::Stopped);
            }
        }
    }

    async fn act(&self, effect: Effect) -> Result<(), EffectError> {
        let effects = &*self.effects;
        match (effect, &self.record) {
            (Effect::Destroy { driver }, _) => effects.destroy(self.id, driver).await,
            (Effect::Stop { grace }, _) => in_time(effects.stop(self.id, grace)).await,
            (Effect::Create { .. }, Some((_, record))) => effects.create(record).await,
            (Effect::Start, Some((_, record))) => in_time(effects.start(record)).await,
            (Effect::SetLease, Some((_, record))) => in_time(effects.set_lease(record)).await,
            (Effect::Forget, Some((_, record))) => self.forget(record).await,
            (Effect::Create { .. } | Effect::Start | Effect::SetLease | Effect::Forget, None) => Ok(()),
        }
    }

    async fn forget(&self, record: &MachineRecord) -> Result<(), EffectError> {
        self.effects.forget(self.id).await;
        let removed = records::remove(&*self.state, &self.view, self.id).await;
        removed.map_err(|error| EffectError { message: error.to_string(), retry: true })?;
        self.effects.emit(self.id, &record.name, What::Removed);
        Ok(())
    }
}

fn exit_of(change: &Change) -> Option<Exit> {
    match change {
        Change::Exit(exit) => Some(*exit),
        Change::Place { .. } | Change::Creating { .. } | Change::State(_) | Change::End { .. } => None,
        Change::Message(_) => None,
    }
}

async fn in_time(effect: impl Future<Output = Result<(), EffectError>>) -> Result<(), EffectError> {
    tokio::time::timeout(AGENT_EFFECT_MAX, effect).await.unwrap_or_else(|_| {
        let seconds = AGENT_EFFECT_MAX.as_secs();
        Err(EffectError { message: format!("the agent did not answer within {seconds} s"), retry: true })
    })
}
