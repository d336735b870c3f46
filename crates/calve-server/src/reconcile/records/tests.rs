//! Names and records on a state in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use calve_core::{Kind, MachineId, StopReason, Timestamp};
use calve_wire::machine::{MachineSpec, Workload};
use futures_util::future::join_all;

use super::*;
use crate::state::memory::{Faults, MemoryState, Operation};

const NOW: Timestamp = Timestamp(1_000_000);

fn new(n: u128, name: Option<&str>) -> NewMachine {
    NewMachine {
        held: false,
        id: MachineId::new(NOW, n),
        agent_token: "00".repeat(16),
        name: name.map(|name| name.parse().unwrap()),
        spec: MachineSpec::new(Kind::System, Workload::Base),
        ttl: Some(Duration::from_secs(60)),
        grace: Duration::from_secs(10),
    }
}

fn later(after: Duration) -> Timestamp {
    NOW.after(after)
}

/// Counts changes, and lets others run before each, as a real store does.
#[derive(Default)]
struct Counting(AtomicU32);

#[async_trait]
impl Faults for Counting {
    async fn before(&self, operation: Operation) -> Result<(), StateError> {
        if operation == Operation::Change {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn after(&self, _operation: Operation) -> Result<(), StateError> {
        Ok(())
    }
}

#[tokio::test]
async fn fifty_at_once_get_fifty_numbers_in_a_hundred_writes() {
    let counting = Arc::new(Counting::default());
    let state = MemoryState::default().with_faults(counting.clone());
    let view = View::default();
    let created = join_all((0..50).map(|n| create(&state, &view, new(n, None), NOW))).await;
    let mut numbers: Vec<_> =
        created.into_iter().map(|record| record.unwrap().name.number().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
    assert_eq!(counting.0.load(Ordering::Relaxed), 100, "one name and one record each");
}

#[tokio::test]
async fn the_smallest_free_number_is_given_again() {
    let (state, view) = (MemoryState::default(), View::default());
    for n in 0..3 {
        create(&state, &view, new(n, None), NOW).await.unwrap();
    }
    let second = get(&state, &view, "run-2").await.unwrap();
    remove(&state, &view, second.id).await.unwrap();
    assert!(matches!(get(&state, &view, "run-2").await, Err(RecordsError::NotFound(_))));
    let names: Vec<String> = [
        create(&state, &view, new(10, None), NOW).await.unwrap().name.to_string(),
        create(&state, &view, new(11, None), NOW).await.unwrap().name.to_string(),
    ]
    .into();
    assert_eq!(names, ["run-2", "run-4"]);
}

#[tokio::test]
async fn a_name_is_held_until_its_record_is_removed() {
    let (state, view) = (MemoryState::default(), View::default());
    let web = create(&state, &view, new(1, Some("web")), NOW).await.unwrap();
    let taken = create(&state, &view, new(2, Some("web")), later(Duration::from_secs(3600))).await;
    assert!(matches!(taken, Err(RecordsError::NameTaken(_))));
    remove(&state, &view, web.id).await.unwrap();
    create(&state, &view, new(3, Some("web")), NOW).await.unwrap();
}

#[tokio::test]
async fn a_claim_whose_machine_never_came_is_free_after_a_while_and_its_creator_held_off() {
    let (state, view) = (MemoryState::default(), View::default());
    let slow = new(1, Some("web"));
    names::claim(&state, slow.name.as_ref().unwrap(), slow.id, NOW).await.unwrap();

    let too_soon = create(&state, &view, new(2, Some("web")), later(NAME_CLAIM_MAX)).await;
    assert!(matches!(too_soon, Err(RecordsError::NameTaken(_))));
    let after = later(NAME_CLAIM_MAX + Duration::from_millis(1));
    create(&state, &view, new(3, Some("web")), after).await.unwrap();

    let late =
        state.put(&machine_key(slow.id), Bytes::from_static(b"{}"), Expect::Absent, Durability::Now).await;
    assert!(matches!(late, Err(StateError::Conflict { .. })), "the slow creator must not have the name too");
    let fresh = View::default();
    assert_eq!(list(&state, &fresh).await.unwrap().len(), 1);
    assert!(fresh.unreadable().is_empty());
}

#[tokio::test]
async fn a_sweep_removes_old_claims_and_leaves_held_names() {
    let (state, view) = (MemoryState::default(), View::default());
    create(&state, &view, new(1, Some("web")), NOW).await.unwrap();
    names::claim(&state, &"db".parse().unwrap(), MachineId::new(NOW, 2), NOW).await.unwrap();
    sweep(&state, &view, later(NAME_CLAIM_MAX + Duration::from_secs(1))).await.unwrap();
    let names: Vec<String> = state.list(NAMES).await.unwrap().0.into_iter().map(|entry| entry.key).collect();
    assert_eq!(names, ["name/web"]);
}

#[tokio::test]
async fn a_second_stop_may_only_shorten_the_grace() {
    let (state, view) = (MemoryState::default(), View::default());
    let id = create(&state, &view, new(1, None), NOW).await.unwrap().id;
    let stop = async |grace: u64, after: u64| {
        let (grace, now) = (Some(Duration::from_secs(grace)), later(Duration::from_secs(after)));
        let record = request_stop(&state, &view, id, grace, StopReason::Requested, now).await.unwrap();
        record.stop.unwrap().grace_ms
    };
    assert_eq!(stop(30, 0).await, 30_000);
    assert_eq!(stop(60, 1).await, 30_000);
    assert_eq!(stop(1, 2).await, 3_000);
}

#[tokio::test]
async fn a_lease_is_extended_only_while_it_lives() {
    let (state, view) = (MemoryState::default(), View::default());
    let id = create(&state, &view, new(1, None), NOW).await.unwrap().id;
    let by = Duration::from_secs(30);
    let record = extend(&state, &view, id, by, later(Duration::from_secs(59))).await.unwrap();
    assert_eq!(record.deadline_unix_ms, Some(NOW.0 + 90_000));
    let too_long = extend(&state, &view, id, limits::TTL_MAX, NOW).await;
    assert!(matches!(too_long, Err(RecordsError::LeaseTooLong)));
    // However often it is renewed, the longest life counts from when the machine was made.
    let half = limits::TTL_MAX / 2;
    let id_of_old = create(&state, &view, new(2, None), NOW).await.unwrap().id;
    extend(&state, &view, id_of_old, half, later(by)).await.unwrap();
    let again = extend(&state, &view, id_of_old, half, later(half)).await;
    assert!(matches!(again, Err(RecordsError::LeaseTooLong)));
    let over = extend(&state, &view, id, by, later(Duration::from_secs(90))).await;
    assert!(matches!(over, Err(RecordsError::Ended(_))));
    request_stop(&state, &view, id, None, StopReason::Requested, NOW).await.unwrap();
    assert!(matches!(extend(&state, &view, id, by, NOW).await, Err(RecordsError::Ended(_))));
}

#[tokio::test]
async fn a_record_of_a_newer_version_makes_the_view_incomplete() {
    let (state, view) = (MemoryState::default(), View::default());
    let record = create(&state, &view, new(1, None), NOW).await.unwrap();
    let newer = String::from_utf8(record.to_json()).unwrap().replace("\"version\":1", "\"version\":99");
    state.put(&machine_key(record.id), newer.into(), Expect::Any, Durability::Now).await.unwrap();
    let fresh = View::default();
    fresh.refresh(&state).await.unwrap();
    assert_eq!(fresh.unreadable(), [machine_key(record.id)]);
    assert!(!fresh.content().complete());
}
