//! Driving one machine's switch to its end. Every step looks at the host first and may be repeated; a server that dies
//! leaves it to the next.

use std::sync::Arc;
use std::time::Duration;

use calve_core::MachineId;
use calve_nix::StorePath;
use calve_wire::system::{
    HostAnswer, HostOrder, HostSwitch, PendingSwitch, SWITCH_VERSION, SwitchOutcome, SwitchStage, SwitchView,
};
use tokio::time::{Instant, sleep};

use super::Systems;
use super::host::{Host, HostError};
use super::records;
use crate::chain;

/// Pause between two looks at a host that is being switched.
const LOOK: Duration = Duration::from_millis(400);
/// Pause between two looks at a host of which the next boot is waited for.
const LOOK_FOR_BOOT: Duration = Duration::from_secs(3);
/// Where a closure comes to, followed by the switch's id: within the host's store, as it is moved into it. Nothing else there begins so.
const INCOMING: &str = "/nix/store/.switch-";
/// How long a host that is not heard is waited for before anything was begun.
const BRING_MAX: Duration = Duration::from_secs(600);
/// How long behind the time to confirm a host that is not heard is waited for: it goes back within half a minute, and may
/// have to restart for that.
const BACK_MAX: Duration = Duration::from_secs(180);

/// Drives the switch that is under way, if one is.
pub async fn drive(systems: &Arc<Systems>, id: MachineId) {
    loop {
        let pending = match records::get(&*systems.state, id).await {
            Ok(record) => record.pending,
            Err(error) => {
                tracing::error!(machine = %id, error = chain(&error), "a switch cannot be driven");
                None
            }
        };
        let Some(pending) = pending else { return };
        let mut drive = Drive { systems, id, pending, heard_at: Instant::now() };
        let ended = drive.until_ended().await;
        let view = SwitchView { stage: SwitchStage::Ended, ..ended };
        tracing::info!(machine = %id, switch = view.id, outcome = ?view.outcome, message = ?view.message, "switched");
        while let Err(error) = records::end(&*systems.state, id, &view).await {
            tracing::error!(machine = %id, error = chain(&error), "the end of a switch cannot be kept");
            sleep(LOOK_FOR_BOOT).await;
        }
        systems.changed();
    }
}

struct Drive<'a> {
    systems: &'a Arc<Systems>,
    id: MachineId,
    pending: PendingSwitch,
    /// When the host was heard last.
    heard_at: Instant,
}

impl Drive<'_> {
    fn host(&self) -> Host<'_> {
        Host::new(self.systems.world.agents(), self.id)
    }

    async fn until_ended(&mut self) -> SwitchView {
        if !self.pending.ordered {
            let begun = Instant::now();
            loop {
                match self.begin().await {
                    Ok(None) => break,
                    Ok(Some(ended)) => return ended,
                    Err(error) if error.may_pass() && begun.elapsed() < BRING_MAX => sleep(LOOK).await,
                    Err(error) => return self.ended(SwitchOutcome::Refused, Some(chain(&error))),
                }
            }
        }
        self.follow().await
    }

    /// Brings everything to the host and has it begin; an end where it does not.
    async fn begin(&mut self) -> Result<Option<SwitchView>, HostError> {
        let view = self.pending.view.clone();
        self.host().equip().await?;
        let path: StorePath = view
            .toplevel
            .parse()
            .map_err(|_| HostError::Said("the record names no store path".to_owned()))?;
        let store = self.systems.world.store().clone();
        let reading = store.clone();
        let closure = tokio::task::spawn_blocking(move || reading.closure(&[path])).await;
        let closure = closure.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        let incoming = format!("{INCOMING}{}", view.id);
        let brought = match closure {
            Ok(closure) => self.host().bring(&store, &closure, &incoming).await?,
            // A former generation may be on the host alone; the host says where it is not.
            Err(error) => {
                tracing::debug!(error = chain(&error), "a system is not here, so the host has to have it");
                false
            }
        };
        // Where the answer is lost, the host's status tells whether it began.
        if let Ok(Some(switch)) = self.host().status().await
            && switch.id == view.id
        {
            return self.ordered().await.map(|()| None);
        }
        let order = HostOrder {
            version: SWITCH_VERSION,
            id: view.id.clone(),
            toplevel: view.toplevel.clone(),
            action: view.action,
            health: self.pending.health.clone(),
            confirm_ms: self.pending.confirm_ms,
            generation: self.pending.generation,
            by: view.by.clone(),
            incoming: brought.then_some(incoming),
        };
        match self.host().begin(&order).await? {
            HostAnswer::Done { .. } => self.ordered().await.map(|()| None),
            HostAnswer::Dry { output, code } => {
                let outcome = if code == 0 { SwitchOutcome::Applied } else { SwitchOutcome::Failed };
                Ok(Some(self.ended(outcome, Some(output))))
            }
            HostAnswer::Busy { switch } => {
                let message = format!(
                    "{} switches the host to {} already (switch {})",
                    switch.by, switch.toplevel, switch.id
                );
                Ok(Some(self.ended(SwitchOutcome::Refused, Some(message))))
            }
            HostAnswer::Refused { message } => Ok(Some(self.ended(SwitchOutcome::Refused, Some(message)))),
        }
    }

    async fn ordered(&mut self) -> Result<(), HostError> {
        self.pending.ordered = true;
        self.show(SwitchStage::Applying).await;
        Ok(())
    }

    /// Follows the switch on the host, and gives the server's word.
    async fn follow(&mut self) -> SwitchView {
        let patience = Duration::from_millis(self.pending.confirm_ms) + BACK_MAX;
        self.heard_at = Instant::now();
        loop {
            match self.look().await {
                Ok(Some(ended)) => return ended,
                Ok(None) => self.heard_at = Instant::now(),
                Err(error) if error.may_pass() => {
                    let waits_for_boot = self.pending.view.stage == SwitchStage::AwaitingBoot;
                    if !waits_for_boot && self.heard_at.elapsed() > patience {
                        let message = format!(
                            "the host is not heard any more ({error}): without the server's word it has gone back by itself"
                        );
                        return self.ended(SwitchOutcome::Failed, Some(message));
                    }
                }
                Err(error) => return self.ended(SwitchOutcome::Failed, Some(chain(&error))),
            }
            sleep(match self.pending.view.stage {
                SwitchStage::AwaitingBoot => LOOK_FOR_BOOT,
                _ => LOOK,
            })
            .await;
        }
    }

    async fn look(&mut self) -> Result<Option<SwitchView>, HostError> {
        let Some(switch) = self.host().status().await?.filter(|switch| switch.id == self.pending.view.id)
        else {
            let message = "the host does not know of the switch any more".to_owned();
            return Ok(Some(self.ended(SwitchOutcome::Failed, Some(message))));
        };
        if let Some(ended) = self.outcome(&switch) {
            return Ok(Some(ended));
        }
        self.show(switch.stage).await;
        if switch.stage == SwitchStage::Confirming && switch.healthy {
            self.hear_anew().await?;
            if let HostAnswer::Done { switch } = self.host().confirm(&switch.id).await? {
                return Ok(self.outcome(&switch));
            }
        }
        Ok(None)
    }

    /// Waits for a connection that was made behind the activation: that the old one stands says nothing.
    async fn hear_anew(&self) -> Result<(), HostError> {
        let agents = self.systems.world.agents();
        let before = agents.heard(self.id);
        agents.hear_anew(self.id)?;
        let until = Instant::now() + Duration::from_millis(self.pending.confirm_ms);
        while agents.heard(self.id).is_none_or(|heard| Some(heard) == before) {
            if Instant::now() > until {
                return Err(HostError::Silent);
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn outcome(&self, switch: &HostSwitch) -> Option<SwitchView> {
        Some(self.ended(switch.outcome?, switch.message.clone()))
    }

    fn ended(&self, outcome: SwitchOutcome, message: Option<String>) -> SwitchView {
        SwitchView { outcome: Some(outcome), message, ..self.pending.view.clone() }
    }

    async fn show(&mut self, stage: SwitchStage) {
        if self.pending.view.stage == stage {
            return;
        }
        self.pending.view.stage = stage;
        let pending = self.pending.clone();
        let updated = records::update(&*self.systems.state, self.id, &pending.view.id, |known| {
            *known = pending.clone()
        });
        if let Err(error) = updated.await {
            tracing::warn!(machine = %self.id, error = chain(&error), "the stage of a switch cannot be kept");
        }
        self.systems.changed();
    }
}
