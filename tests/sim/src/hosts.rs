//! Hosts as the drive of a switch reaches them: by links that break, with answers that are lost.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use calve_core::MachineId;
use calve_nix::StorePath;
use calve_server::agents::LinkError;
use calve_server::systems::{HostError, Hosts};
use calve_wire::system::{HostAnswer, HostFacts, HostOrder, HostSwitch, SwitchStage};
use tokio::time::Instant;

use crate::faults::Fault;
use crate::host::Ms;
use crate::systems::{HostSystem, system_at};
use crate::truth::SwitchTruth;
use crate::world::{Inner, World, speaking};

/// Longest wait for the end of a switch that was confirmed, as `calve-switch` waits.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Hosts as one server reaches them.
pub struct SimHosts {
    pub world: Arc<World>,
    pub generation: u32,
}

impl Inner {
    /// The system of a machine that is heard now.
    fn heard_system(&mut self, id: MachineId, now: Ms) -> Option<&mut HostSystem> {
        self.links.get(&id).filter(|link| link.linked)?;
        speaking(&mut self.host, &mut self.account, id, now)?;
        Some(self.systems.entry(id).or_default()).filter(|system| !system.is_deaf())
    }
}

impl SimHosts {
    /// A question on its way, what the host does, and the answer on its way.
    async fn ask<T>(
        &self,
        id: MachineId,
        what: &str,
        does: impl FnOnce(&mut HostSystem, &mut Asked<'_>) -> T,
    ) -> Result<T, HostError> {
        self.world.point(self.generation).await;
        let pause = {
            let mut inner = self.world.inner();
            let slow = inner.faults.happens(Fault::Slow);
            if slow { inner.rng.range(100, 10_000) } else { inner.rng.range(1, 50) }
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        self.world.point(self.generation).await;
        let now = self.world.now();
        let answer = {
            let mut inner = self.world.inner();
            if !inner.links.contains_key(&id) {
                return Err(LinkError::Unknown.into());
            }
            if inner.heard_system(id, now).is_none() {
                return Err(LinkError::NotLinked.into());
            }
            let Inner { systems, switches, rng, faults, .. } = &mut *inner;
            let system = systems.get_mut(&id).expect("it was heard");
            let answer = does(system, &mut Asked { now, rng, faults, switches });
            if let Some((switch, outcome)) = system.ended() {
                switches.entry((id, switch.to_owned())).or_default().outcome = Some(outcome);
            }
            answer
        };
        self.world.say(|| format!("host of {id}: {what}"));
        self.world.touched.notify_one();
        self.world.point(self.generation).await;
        match self.world.happens(Fault::AnswerLost) {
            true => Err(LinkError::Broken.into()),
            false => Ok(answer),
        }
    }
}

/// What a host may need to do what it is asked.
struct Asked<'a> {
    now: Ms,
    rng: &'a mut crate::rng::Rng,
    faults: &'a mut crate::faults::Faults,
    switches: &'a mut std::collections::BTreeMap<(MachineId, String), SwitchTruth>,
}

#[async_trait]
impl Hosts for SimHosts {
    async fn bring(&self, id: MachineId, toplevel: &StorePath, _: &str) -> Result<Option<String>, HostError> {
        let system = system_at(&toplevel.to_string());
        // Worlds without machines that are made for systems are what they were when seeds failed that are tried each time.
        let spoils = self.world.inner().gives;
        let brought = self.ask(id, "takes a closure", |host, asked| {
            let spoilt = spoils && asked.faults.happens(Fault::Spoilt);
            host.bring(system, spoilt.then_some(&mut *asked.faults))
        });
        let brought = brought.await?.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => LinkError::Broken.into(),
            _ => HostError::Said(error.to_string()),
        })?;
        Ok(brought.then(|| "/nix/incoming".to_owned()))
    }

    async fn begin(&self, id: MachineId, order: &HostOrder) -> Result<HostAnswer, HostError> {
        let what = format!("is to begin {}", order.id);
        self.ask(id, &what, |host, asked| {
            let known = host.knows(&order.id);
            let answer = host.begin(order, asked.now, asked.rng, asked.faults);
            if !known && host.knows(&order.id) {
                asked.switches.entry((id, order.id.clone())).or_default().begun += 1;
            }
            answer
        })
        .await
    }

    async fn status(&self, id: MachineId) -> Result<Option<HostSwitch>, HostError> {
        self.ask(id, "is looked at", |host, asked| host.status(asked.now)).await
    }

    async fn hear_anew(&self, id: MachineId, patience: Duration) -> Result<(), HostError> {
        let now = self.world.now();
        {
            let mut inner = self.world.inner();
            let up_at = now + inner.rng.range(10, 500);
            let link = inner.links.get_mut(&id).ok_or(LinkError::Unknown)?;
            (link.linked, link.up_at) = (false, up_at);
        }
        self.world.touched.notify_one();
        let until = Instant::now() + patience;
        loop {
            tokio::time::sleep(PAUSE).await;
            self.world.point(self.generation).await;
            if self.world.inner().links.get(&id).is_some_and(|link| link.linked) {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(HostError::Silent);
            }
        }
    }

    async fn confirm(&self, id: MachineId, switch: &str) -> Result<HostAnswer, HostError> {
        let what = format!("hears the word for {switch}");
        let until = Instant::now() + ANSWER_MAX;
        let mut answer = self
            .ask(id, &what, |host, asked| host.confirm(switch, asked.now, asked.rng, asked.faults))
            .await?;
        while let HostAnswer::Done { switch } = &answer
            && switch.stage == SwitchStage::Keeping
            && Instant::now() < until
        {
            tokio::time::sleep(PAUSE).await;
            let shown = self.ask(id, "ends what was confirmed", |host, asked| host.status(asked.now)).await?;
            let Some(switch) = shown else { break };
            answer = HostAnswer::Done { switch };
        }
        Ok(answer)
    }

    async fn facts(&self, _: MachineId) -> Result<HostFacts, HostError> {
        unreachable!("no user asks for these")
    }
}
