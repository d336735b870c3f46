use async_trait::async_trait;
use bytes::Bytes;
use calve_core::MachineName;
use calve_node::Found as Seen;
use calve_wire::record::MachineRecord;

use super::super::effects::AgentReport;
use super::*;
use crate::state::memory::MemoryState;
use crate::state::{Durability, Expect};

/// A world in which nothing is and nothing happens.
struct Still;

#[async_trait]
impl Effects for Still {
    fn now(&self) -> Timestamp {
        Timestamp(1_000_000)
    }

    async fn changed(&self, _: Timestamp) {
        std::future::pending().await
    }

    async fn drivers(&self) -> Vec<DriverState> {
        Vec::new()
    }

    async fn list(&self) -> BTreeMap<DriverName, Result<Vec<Seen>, EffectError>> {
        BTreeMap::new()
    }

    fn agents(&self) -> BTreeMap<MachineId, AgentReport> {
        BTreeMap::new()
    }

    async fn create(&self, _: &MachineRecord) -> Result<(), EffectError> {
        unreachable!("there are no machines")
    }

    fn link(&self, _: &MachineRecord) {}

    async fn start(&self, _: &MachineRecord) -> Result<(), EffectError> {
        unreachable!("there are no machines")
    }

    async fn set_lease(&self, _: &MachineRecord) -> Result<(), EffectError> {
        unreachable!("there are no machines")
    }

    async fn stop(&self, _: MachineId, _: Duration) -> Result<(), EffectError> {
        unreachable!("there are no machines")
    }

    async fn destroy(&self, _: MachineId, _: DriverName) -> Result<(), EffectError> {
        unreachable!("there are no machines")
    }

    async fn forget(&self, _: MachineId) {}

    fn emit(&self, _: MachineId, _: &MachineName, _: What) {}
}

/// A request that reads the records while the loop rests must not make it sleep over what changed.
#[tokio::test(start_paused = true)]
async fn what_a_request_has_read_since_the_plan_still_wakes_the_loop() {
    let (state, view) = (Arc::new(MemoryState::default()), View::default());
    let mut rounds = Rounds::new(state.clone(), view.clone(), Arc::new(Still));
    rounds.adopt().await.unwrap();
    let wake = rounds.round(Woken::Bell).await.unwrap();
    while !rounds.tasks.is_empty() {
        rounds.wait(wake).await;
    }
    // Nothing happened yet, so that the loop sleeps.
    assert!(tokio::time::timeout(ROUND_EVERY, rounds.wait(wake)).await.is_err());
    let key = format!("{}new", records::MACHINES);
    state.put(&key, Bytes::from_static(b"{}"), Expect::Absent, Durability::Now).await.unwrap();
    view.refresh(&*state).await.unwrap();
    let woken = tokio::time::timeout(ROUND_EVERY, rounds.wait(wake)).await;
    assert!(matches!(woken, Ok(Woken::Bell)), "the loop slept over a change");
}
