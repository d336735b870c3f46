//! Names: keys of their own, claimed before the record is written and given back after it is removed.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use calve_core::{MachineId, MachineName, Timestamp};
use calve_wire::record::{NameRecord, RECORD_VERSION, VoidRecord};

use super::view::Reserved;
use super::{NAMES, RecordsError, TRIES_MAX, View, machine_key, put};
use crate::state::{Durability, Entry, Expect, Revision, State, StateError};

/// How long a claimed name waits for its machine's record: writing that takes milliseconds, so a claim that is older was
/// cut off by a crash.
pub const NAME_CLAIM_MAX: Duration = Duration::from_secs(10);

/// How long a void record holds off the creator that was too slow; nobody is slower than a day.
const VOID_KEEP: Duration = Duration::from_secs(24 * 3600);

/// Claims `name` for the machine `id`.
pub(super) async fn claim(
    state: &dyn State,
    name: &MachineName,
    id: MachineId,
    now: Timestamp,
) -> Result<(), RecordsError> {
    let key = name_key(name);
    let ours = NameRecord { version: RECORD_VERSION, id, claimed_unix_ms: now.0 };
    let ours = Bytes::from(serde_json::to_vec(&ours).expect("plain words").into_boxed_slice());
    let mut expect = Expect::Absent;
    for _ in 0..TRIES_MAX {
        // The record, which follows, is written through to the disk, and this with it.
        match put(state, &key, ours.clone(), expect, Durability::Soon).await {
            Err(StateError::Conflict { .. }) => {}
            result => return Ok(result.map(drop)?),
        }
        expect = match holder(state, name).await? {
            None => Expect::Absent,
            Some((_, holder)) if holder.id == id => return Ok(()),
            Some((revision, holder)) if is_abandoned(state, &holder, now).await? => {
                Expect::Revision(revision)
            }
            Some(_) => return Err(RecordsError::NameTaken(name.to_string())),
        };
    }
    Err(RecordsError::Busy)
}

/// Claims the smallest free number. The reservation keeps others in this process, who would lose the compare-and-set, from
/// even trying it: a thousand at once claim a thousand numbers in a thousand writes.
pub(super) async fn claim_number(
    state: &dyn State,
    view: &View,
    id: MachineId,
    now: Timestamp,
) -> Result<(MachineName, Reserved), RecordsError> {
    let mut taken = BTreeSet::new();
    loop {
        let reserved = view.reserve_number(&taken);
        let name = MachineName::numbered(reserved.number);
        match claim(state, &name, id, now).await {
            Ok(()) => return Ok((name, reserved)),
            Err(RecordsError::NameTaken(_)) => taken.insert(reserved.number),
            Err(error) => return Err(error),
        };
    }
}

/// Gives a name back, if the machine `id` holds it.
pub(super) async fn release(
    state: &dyn State,
    name: &MachineName,
    id: MachineId,
) -> Result<(), RecordsError> {
    let Some((revision, holder)) = holder(state, name).await? else { return Ok(()) };
    if holder.id == id {
        state.delete(&name_key(name), Expect::Revision(revision), Durability::Soon).await?;
    }
    Ok(())
}

/// Returns once the machine `id` no longer holds the name: a removed record gives its name back a moment later.
pub async fn released(state: &dyn State, name: &MachineName, id: MachineId) -> Result<(), RecordsError> {
    let mut seen = 0;
    loop {
        match holder(state, name).await? {
            Some((_, holder)) if holder.id == id => {}
            _ => return Ok(()),
        }
        seen = state.changed(seen).await;
    }
}

/// Removes what crashes left behind: claims without a record, and voids that have held long enough.
pub(in crate::reconcile) async fn sweep(
    state: &dyn State,
    view: &View,
    now: Timestamp,
) -> Result<(), RecordsError> {
    let (names, _) = state.list(NAMES).await?;
    for entry in names {
        let Ok(holder) = serde_json::from_slice::<NameRecord>(&entry.value) else { continue };
        let abandoned = match view.record(holder.id) {
            // Its machine was asked for twice, and has another name.
            Some((_, record)) => entry.key != name_key(&record.name),
            None => is_abandoned(state, &holder, now).await?,
        };
        if abandoned {
            forgive_conflict(
                state.delete(&entry.key, Expect::Revision(entry.revision), Durability::Soon).await,
            )?;
        }
    }
    for (id, revision, at) in view.voids() {
        if now.since(at) > VOID_KEEP {
            let key = machine_key(id);
            forgive_conflict(state.delete(&key, Expect::Revision(revision), Durability::Soon).await)?;
        }
    }
    Ok(())
}

fn forgive_conflict(result: Result<Revision, StateError>) -> Result<(), StateError> {
    match result {
        Ok(_) | Err(StateError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn name_key(name: &MachineName) -> String {
    format!("{NAMES}{name}")
}

async fn holder(
    state: &dyn State,
    name: &MachineName,
) -> Result<Option<(Revision, NameRecord)>, RecordsError> {
    let Some(entry) = state.get(&name_key(name)).await? else { return Ok(None) };
    let holder = serde_json::from_slice(&entry.value).map_err(calve_wire::record::RecordError::from)?;
    Ok(Some((entry.revision, holder)))
}

/// Whether this stands in the place of a record that can no longer come.
pub(super) fn is_void(entry: &Entry) -> bool {
    serde_json::from_slice::<VoidRecord>(&entry.value).is_ok()
}

/// Whether no record came to an old claim; from then on none can come, as a void stands in its place.
async fn is_abandoned(state: &dyn State, claim: &NameRecord, now: Timestamp) -> Result<bool, RecordsError> {
    let key = machine_key(claim.id);
    match state.get(&key).await? {
        Some(entry) => Ok(is_void(&entry)),
        None if now.since(Timestamp(claim.claimed_unix_ms)) <= NAME_CLAIM_MAX => Ok(false),
        None => {
            let void = VoidRecord { version: RECORD_VERSION, void_unix_ms: now.0 };
            let void = serde_json::to_vec(&void).expect("plain words").into_boxed_slice().into();
            match put(state, &key, void, Expect::Absent, Durability::Soon).await {
                Ok(_) => Ok(true),
                Err(StateError::Conflict { .. }) => Ok(false),
                Err(error) => Err(error.into()),
            }
        }
    }
}
