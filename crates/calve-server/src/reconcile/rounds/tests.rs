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
    rounds.mend().await.unwrap();
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

/// A server that begins tells every machine its lease.
#[tokio::test]
async fn what_ends_a_machine_does_not_wait_behind_thousands_that_are_told_their_lease() {
    let rounds = Rounds::new(Arc::new(MemoryState::default()), View::default(), Arc::new(Still));
    let id = |n: u64| MachineId::new(Timestamp(n), 0);
    let told = (0..10_000).map(|n| Action::SetLease { id: id(n) });
    let ends = (20_000..30_000).map(|n| Action::Destroy { id: id(n), driver: DriverName::Sandbox });
    let chosen = |actions: Vec<Action>| -> Vec<MachineId> {
        rounds.choose(actions).iter().map(|actions| actions[0].id()).collect()
    };
    let first: Vec<_> = (20_000..20_000 + STEPS_MAX as u64).map(id).collect();
    assert_eq!(chosen(told.clone().chain(ends.clone()).collect()), first);
    // Room is kept for those whose time comes in a moment.
    assert_eq!(chosen(told.clone().collect()).len(), STEPS_MAX - ENDS_RESERVED);
    // The actions of a machine stay together.
    let both = vec![Action::Link { id: id(1) }, Action::SetLease { id: id(1) }];
    assert_eq!(rounds.choose(both.clone()), [both]);
}
