use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use calve_core::plan::Change;
use calve_core::{MachineName, State as MachineState};
use calve_node::Found as Seen;
use calve_wire::record::MachineRecord;

use super::super::effects::AgentReport;
use super::super::records::NewMachine;
use super::*;
use crate::state::memory::{Faults, MemoryState, Operation};
use crate::state::{Durability, Expect, StateError};

/// A world in which nothing is and nothing happens; it remembers what it was told.
#[derive(Default)]
struct Still(Mutex<Vec<What>>);

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

    fn emit(&self, _: MachineId, _: &MachineName, what: What) {
        self.0.lock().unwrap().push(what);
    }
}

/// A request that reads the records while the loop rests must not make it sleep over what changed.
#[tokio::test(start_paused = true)]
async fn what_a_request_has_read_since_the_plan_still_wakes_the_loop() {
    let (state, view) = (Arc::new(MemoryState::default()), View::default());
    let mut rounds = Rounds::new(state.clone(), view.clone(), Arc::new(Still::default()));
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
    let rounds = Rounds::new(Arc::new(MemoryState::default()), View::default(), Arc::new(Still::default()));
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

/// A state of which one change fails, and the first look behind it too.
struct Failing {
    made: bool,
    faults: Mutex<Vec<Operation>>,
}

impl Failing {
    fn fails(&self, operation: Operation) -> Result<(), StateError> {
        let mut faults = self.faults.lock().unwrap();
        match faults.iter().position(|fault| *fault == operation) {
            Some(at) => {
                faults.remove(at);
                Err(StateError::Failed("no answer".into()))
            }
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Faults for Failing {
    async fn before(&self, operation: Operation) -> Result<(), StateError> {
        if self.made && operation == Operation::Change { Ok(()) } else { self.fails(operation) }
    }

    async fn after(&self, operation: Operation) -> Result<(), StateError> {
        if self.made && operation == Operation::Change { self.fails(operation) } else { Ok(()) }
    }
}

/// What is written has happened, whether or not the answer came: its events are told, once; and of what was not written none.
#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_was_lost_is_told() {
    for made in [true, false] {
        let (state, view, world) = (MemoryState::default(), View::default(), Arc::new(Still::default()));
        let id = MachineId::new(Timestamp(1), 1);
        records::create(&state, &view, NewMachine::bare(id), Timestamp(1)).await.unwrap();
        let entry = state.get(&records::machine_key(id)).await.unwrap().expect("just made");
        let record = Arc::new(MachineRecord::from_json(&entry.value).unwrap());
        let faults = Mutex::new(vec![Operation::Change, Operation::Read]);
        let step = Step {
            state: Arc::new(state.with_faults(Arc::new(Failing { made, faults }))),
            view,
            effects: world.clone(),
            id,
            record: Some((entry.revision, record)),
            changes: vec![Change::State(MachineState::Draining)],
            link: false,
            effect: None,
            now: Timestamp(2),
        };
        let outcome = step.run().await;
        let told = std::mem::take(&mut *world.0.lock().unwrap());
        if made {
            assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
            let draining = |what: &What| matches!(what, What::State { state: MachineState::Draining, .. });
            assert!(told.len() == 1 && draining(&told[0]), "{told:?}");
        } else {
            assert!(matches!(outcome, Outcome::NotWritten(_)), "{outcome:?}");
            assert!(told.is_empty(), "{told:?}");
        }
    }
}
