//! Changes of records that people ask for.

use std::sync::Arc;
use std::time::Duration;

use calve_core::limits::TTL_MAX;
use calve_core::{MachineId, StopReason, Timestamp};
use calve_wire::record::{MachineRecord, Stop};

use super::{RecordsError, TRIES_MAX, View, machine_key, names, put, stored, to_ms};
use crate::state::{Durability, Expect, State, StateError};

/// Tells a machine to end, with its own grace where none is given. Repeated, it may shorten the grace; an ended machine
/// stays as it is.
pub async fn request_stop(
    state: &dyn State,
    view: &View,
    id: MachineId,
    grace: Option<Duration>,
    reason: StopReason,
    now: Timestamp,
) -> Result<Arc<MachineRecord>, RecordsError> {
    update(state, view, id, |record| Ok(stop(record, grace, reason, now))).await
}

/// Moves a machine's deadline back by `by`, up to the longest life that a machine may have; a lease without an end stays so.
pub async fn extend(
    state: &dyn State,
    view: &View,
    id: MachineId,
    by: Duration,
    now: Timestamp,
) -> Result<Arc<MachineRecord>, RecordsError> {
    update(state, view, id, |record| {
        let over = record.deadline_unix_ms.is_some_and(|deadline| deadline <= now.0);
        if record.stop.is_some() || record.state.is_terminal() || over {
            return Err(RecordsError::Ended(record.name.to_string()));
        }
        let Some(deadline) = record.deadline_unix_ms else { return Ok(false) };
        let deadline = Timestamp(deadline).after(by);
        // From when it was made: a lease that is renewed again and again has an end too.
        if deadline > Timestamp(record.created_unix_ms).after(TTL_MAX) {
            return Err(RecordsError::LeaseTooLong);
        }
        record.deadline_unix_ms = Some(deadline.0);
        Ok(true)
    })
    .await
}

/// Tells a machine to end, and its record, log and name to go then.
pub async fn request_remove(
    state: &dyn State,
    view: &View,
    id: MachineId,
    grace: Option<Duration>,
    now: Timestamp,
) -> Result<Arc<MachineRecord>, RecordsError> {
    update(state, view, id, |record| {
        let stopped = stop(record, grace, StopReason::Requested, now);
        Ok(!std::mem::replace(&mut record.remove, true) || stopped)
    })
    .await
}

/// Removes an ended machine's record, then its name. Cut off in between, the name is free all the same, as no record
/// stands behind it.
pub(in crate::reconcile) async fn remove(
    state: &dyn State,
    view: &View,
    id: MachineId,
) -> Result<(), RecordsError> {
    let Some((revision, record)) = view.record(id) else { return Ok(()) };
    match state.delete(&machine_key(id), Expect::Revision(revision), Durability::Soon).await {
        // Somebody else removed it, or an answer was lost.
        Err(StateError::Conflict { .. }) if state.get(&machine_key(id)).await?.is_none() => {}
        result => drop(result?),
    }
    match names::release(state, &record.name, id).await {
        Err(RecordsError::State(StateError::Conflict { .. })) => Ok(()),
        result => result,
    }
}

fn stop(record: &mut MachineRecord, grace: Option<Duration>, reason: StopReason, now: Timestamp) -> bool {
    if record.state.is_terminal() {
        return false;
    }
    let grace_ms = grace.map_or(record.grace_ms, to_ms);
    match &mut record.stop {
        None => {
            record.stop = Some(Stop { since_unix_ms: now.0, grace_ms, reason });
            true
        }
        Some(stop) => {
            let end = now.0.saturating_add(grace_ms);
            let sooner = end < stop.since_unix_ms.saturating_add(stop.grace_ms);
            if sooner {
                stop.grace_ms = end.saturating_sub(stop.since_unix_ms);
            }
            sooner
        }
    }
}

/// Changes a record by compare-and-set; `change` says whether it changed anything.
async fn update(
    state: &dyn State,
    view: &View,
    id: MachineId,
    change: impl Fn(&mut MachineRecord) -> Result<bool, RecordsError> + Send + Sync,
) -> Result<Arc<MachineRecord>, RecordsError> {
    update_with(Durability::Soon, state, view, id, change).await
}

/// The same, for what a power failure must not undo.
pub(crate) async fn update_now(
    state: &dyn State,
    view: &View,
    id: MachineId,
    change: impl Fn(&mut MachineRecord) -> Result<bool, RecordsError> + Send + Sync,
) -> Result<Arc<MachineRecord>, RecordsError> {
    update_with(Durability::Now, state, view, id, change).await
}

async fn update_with(
    durability: Durability,
    state: &dyn State,
    view: &View,
    id: MachineId,
    change: impl Fn(&mut MachineRecord) -> Result<bool, RecordsError> + Send + Sync,
) -> Result<Arc<MachineRecord>, RecordsError> {
    let key = machine_key(id);
    for _ in 0..TRIES_MAX {
        let entry = state.get(&key).await?.ok_or_else(|| RecordsError::NotFound(id.to_string()))?;
        let mut record = match MachineRecord::from_json(&entry.value) {
            Ok(record) => record,
            // Its name was claimed, and nothing came of it.
            Err(_) if names::is_void(&entry) => return Err(RecordsError::NotFound(id.to_string())),
            Err(error) => return Err(error.into()),
        };
        if !change(&mut record)? {
            return Ok(Arc::new(record));
        }
        let value = stored(&record);
        match put(state, &key, value.clone(), Expect::Revision(entry.revision), durability).await {
            Ok(revision) => {
                view.note(revision, &record, value);
                return Ok(Arc::new(record));
            }
            Err(StateError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(RecordsError::Busy)
}
