//! Driving one machine's switch to its end. Every step looks at the host first and may be repeated; a server that dies
//! leaves it to the next.

use std::sync::Arc;
use std::time::Duration;

use calve_core::MachineId;
use calve_nix::StorePath;
use calve_wire::record::MachineRecord;
use calve_wire::system::{
    HostAnswer, HostOrder, HostSwitch, PendingSwitch, SWITCH_VERSION, SwitchOutcome, SwitchStage, SwitchView,
};
use tokio::time::{Instant, sleep};

use super::host::HostError;
use super::records::{self, SystemsError};
use super::{STATE_PAUSE, Systems};
use crate::agents::LinkError;
use crate::chain;
use crate::reconcile::records::machine_key;
use crate::world::seed::SeedError;

/// Pause between two looks at a host that is being switched.
const LOOK: Duration = Duration::from_millis(400);
/// Pause between two looks at a host of which the next boot is waited for.
const LOOK_FOR_BOOT: Duration = Duration::from_secs(3);
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
            Err(error @ SystemsError::State(_)) => {
                tracing::error!(machine = %id, error = chain(&error), "a switch cannot be driven yet");
                sleep(STATE_PAUSE).await;
                continue;
            }
            Err(error) => {
                tracing::error!(machine = %id, error = chain(&error), "a switch cannot be driven");
                None
            }
        };
        let Some(pending) = pending else { return };
        let mut drive = Drive { systems, id, pending, known: false };
        let ended = drive.until_ended().await;
        let view = SwitchView { stage: SwitchStage::Ended, ..ended };
        tracing::info!(machine = %id, switch = view.id, outcome = ?view.outcome, message = ?view.message, "switched");
        while let Err(error) = records::end(&*systems.state, id, &view).await {
            tracing::error!(machine = %id, error = chain(&error), "the end of a switch cannot be kept");
            sleep(STATE_PAUSE).await;
        }
        systems.changed();
    }
}

struct Drive<'a> {
    systems: &'a Arc<Systems>,
    id: MachineId,
    pending: PendingSwitch,
    /// Whether the host was seen to know of it.
    known: bool,
}

impl Drive<'_> {
    async fn until_ended(&mut self) -> SwitchView {
        let mut heard_at = Instant::now();
        loop {
            match self.go_on().await {
                Ok(Some(ended)) => return ended,
                Ok(None) => heard_at = Instant::now(),
                Err(error) => {
                    let passes = self.may_pass(&error).await;
                    if !passes || heard_at.elapsed() > self.patience() {
                        return self.given_up(&error, passes);
                    }
                }
            }
            sleep(match self.pending.view.stage {
                SwitchStage::AwaitingBoot => LOOK_FOR_BOOT,
                _ => LOOK,
            })
            .await;
        }
    }

    /// How long a host that is not heard is waited for.
    fn patience(&self) -> Duration {
        let awaits_boot = self.pending.view.stage == SwitchStage::AwaitingBoot;
        match self.pending.ordered {
            // With the server's word it may have stayed where it was: it says so once it is heard.
            true if self.pending.confirmed || awaits_boot => Duration::MAX,
            true => Duration::from_millis(self.pending.confirm_ms) + BACK_MAX,
            false => BRING_MAX,
        }
    }

    fn given_up(&self, error: &HostError, passes: bool) -> SwitchView {
        let message = match self.pending.ordered {
            true if passes => format!(
                "the host is not heard any more ({error}): without the server's word it has gone back by itself"
            ),
            _ => chain(error),
        };
        // What the host was told to begin, it may have begun.
        let outcome = if self.pending.ordered { SwitchOutcome::Failed } else { SwitchOutcome::Refused };
        self.ended(outcome, Some(message))
    }

    /// Does what is next: looks at the switch on the host, or has it begin. An end where there is one.
    async fn go_on(&mut self) -> Result<Option<SwitchView>, HostError> {
        if !self.pending.ordered {
            return self.begin().await;
        }
        let found = self.systems.hosts.status(self.id).await?;
        match found.filter(|switch| switch.id == self.pending.view.id) {
            Some(switch) => {
                self.known = true;
                self.attend(switch).await
            }
            // It never heard the order.
            None if !self.known => self.begin().await,
            None => {
                let message = "the host does not know of the switch any more".to_owned();
                Ok(Some(self.ended(SwitchOutcome::Failed, Some(message))))
            }
        }
    }

    /// Whether waiting helps: a machine that is over is not heard again. Right behind the server's start no machine is linked yet.
    async fn may_pass(&self, error: &HostError) -> bool {
        if !matches!(
            error,
            HostError::Link(LinkError::Unknown) | HostError::Send(SeedError::Link(LinkError::Unknown))
        ) {
            return error.may_pass();
        }
        match self.systems.state.get(&machine_key(self.id)).await {
            Ok(Some(entry)) => {
                MachineRecord::from_json(&entry.value).is_ok_and(|record| !record.state.is_terminal())
            }
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Brings everything to the host and has it begin; an end where it does not.
    async fn begin(&mut self) -> Result<Option<SwitchView>, HostError> {
        let view = self.pending.view.clone();
        let hosts = self.systems.hosts.clone();
        let toplevel: StorePath = view
            .toplevel
            .parse()
            .map_err(|_| HostError::Said("the record names no store path".to_owned()))?;
        let incoming = hosts.bring(self.id, &toplevel, &view.id).await?;
        let order = HostOrder {
            version: SWITCH_VERSION,
            id: view.id.clone(),
            toplevel: view.toplevel.clone(),
            action: view.action,
            health: self.pending.health.clone(),
            confirm_ms: self.pending.confirm_ms,
            generation: self.pending.generation,
            by: view.by.clone(),
            incoming,
        };
        self.keep(|pending| pending.ordered = true).await?;
        match hosts.begin(self.id, &order).await? {
            HostAnswer::Done { switch } => {
                self.known = true;
                self.show(SwitchStage::Applying).await;
                Ok(self.outcome(&switch))
            }
            HostAnswer::Dry { output, code } => {
                let outcome = if code == 0 { SwitchOutcome::Applied } else { SwitchOutcome::Failed };
                Ok(Some(self.ended(outcome, Some(output))))
            }
            HostAnswer::Busy { switch } if switch.id == view.id => Ok(None),
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

    /// Takes in how the switch stands, and gives the server's word.
    async fn attend(&mut self, switch: HostSwitch) -> Result<Option<SwitchView>, HostError> {
        if let Some(ended) = self.outcome(&switch) {
            return Ok(Some(ended));
        }
        self.show(switch.stage).await;
        if switch.stage == SwitchStage::Confirming && switch.healthy {
            let hosts = self.systems.hosts.clone();
            hosts.hear_anew(self.id, Duration::from_millis(self.pending.confirm_ms)).await?;
            self.keep(|pending| pending.confirmed = true).await?;
            if let HostAnswer::Done { switch } = hosts.confirm(self.id, &switch.id).await? {
                return Ok(self.outcome(&switch));
            }
        }
        Ok(None)
    }

    fn outcome(&self, switch: &HostSwitch) -> Option<SwitchView> {
        Some(self.ended(switch.outcome?, switch.message.clone()))
    }

    fn ended(&self, outcome: SwitchOutcome, message: Option<String>) -> SwitchView {
        SwitchView { outcome: Some(outcome), message, ..self.pending.view.clone() }
    }

    /// Shows where the switch stands; that it could not be kept is no reason to end.
    async fn show(&mut self, stage: SwitchStage) {
        if let Err(error) = self.keep(|pending| pending.view.stage = stage).await {
            tracing::warn!(machine = %self.id, error = chain(&error), "the stage of a switch cannot be kept");
        }
    }

    /// Writes down what the next server has to know.
    async fn keep(&mut self, change: impl FnOnce(&mut PendingSwitch)) -> Result<(), HostError> {
        let mut changed = self.pending.clone();
        change(&mut changed);
        if changed == self.pending {
            return Ok(());
        }
        let kept = records::update(&*self.systems.state, self.id, &changed.view.id, |known| {
            *known = changed.clone();
        });
        kept.await.map_err(HostError::Unkept)?;
        self.pending = changed;
        self.systems.changed();
        Ok(())
    }
}
