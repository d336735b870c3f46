//! The records of machines' systems in the state.

use bytes::Bytes;
use calve_core::MachineId;
use calve_wire::system::{
    PendingSwitch, SWITCH_VERSION, SwitchAction, SwitchOutcome, SwitchView, SystemRecord,
};

use crate::reconcile::records::{machine_key, put};
use crate::state::{Durability, Expect, State, StateError};

/// Key prefix.
const SYSTEMS: &str = "system/";
/// Ends of switches that are kept for each machine.
const ENDED_MAX: usize = 50;
/// Tries of a compare-and-set: a record has one driver, and few who begin.
const TRIES_MAX: u32 = 16;

/// Why a record was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum SystemsError {
    /// Another switch is under way.
    #[error("{} switches the machine to {} since {} (switch {}): {}", .0.by, .0.toplevel, .0.begun_unix_ms, .0.id, .0.stage.as_str())]
    Held(Box<SwitchView>),
    /// It is not what any version wrote, or a newer one did.
    #[error("the record of the machine's system cannot be read")]
    Unreadable(#[source] serde_json::Error),
    /// The state is at fault.
    #[error(transparent)]
    State(#[from] StateError),
}

fn key(id: MachineId) -> String {
    format!("{SYSTEMS}{id}")
}

fn none() -> SystemRecord {
    SystemRecord { version: SWITCH_VERSION, desired: None, pending: None, ended: Vec::new() }
}

/// What is known of a machine's system.
pub async fn get(state: &dyn State, id: MachineId) -> Result<SystemRecord, SystemsError> {
    match state.get(&key(id)).await? {
        Some(entry) => serde_json::from_slice(&entry.value).map_err(SystemsError::Unreadable),
        None => Ok(none()),
    }
}

/// Machines with a switch under way.
pub async fn pending(state: &dyn State) -> Result<Vec<MachineId>, SystemsError> {
    let (entries, _) = state.list(SYSTEMS).await?;
    let is_pending = |value: &[u8]| {
        serde_json::from_slice::<SystemRecord>(value).is_ok_and(|record| record.pending.is_some())
    };
    let pending = entries.iter().filter(|entry| is_pending(&entry.value));
    Ok(pending.filter_map(|entry| entry.key.strip_prefix(SYSTEMS)?.parse().ok()).collect())
}

/// Changes a record; `change` says whether it did.
async fn change(
    state: &dyn State,
    id: MachineId,
    mut change: impl FnMut(&mut SystemRecord) -> Result<(), SystemsError>,
) -> Result<(), SystemsError> {
    let key = key(id);
    let mut tries = 0;
    loop {
        let entry = state.get(&key).await?;
        let (mut record, expect) = match &entry {
            Some(entry) => (
                serde_json::from_slice(&entry.value).map_err(SystemsError::Unreadable)?,
                Expect::Revision(entry.revision),
            ),
            None => (none(), Expect::Absent),
        };
        change(&mut record)?;
        let value = Bytes::from(serde_json::to_vec(&record).expect("plain data"));
        match put(state, &key, value, expect, Durability::Now).await {
            Err(StateError::Conflict { .. }) if tries < TRIES_MAX => tries += 1,
            result => return Ok(result.map(drop)?),
        }
    }
}

/// Notes a switch as under way.
pub async fn begin(state: &dyn State, id: MachineId, pending: PendingSwitch) -> Result<(), SystemsError> {
    change(state, id, |record| match &record.pending {
        Some(held) => Err(SystemsError::Held(Box::new(held.view.clone()))),
        None => {
            record.pending = Some(pending.clone());
            Ok(())
        }
    })
    .await
}

/// Changes the switch under way, if it is still this one.
pub async fn update(
    state: &dyn State,
    id: MachineId,
    switch: &str,
    update: impl Fn(&mut PendingSwitch),
) -> Result<(), SystemsError> {
    change(state, id, |record| {
        if let Some(pending) = record.pending.as_mut().filter(|pending| pending.view.id == switch) {
            update(pending);
        }
        Ok(())
    })
    .await
}

/// Notes how a switch ended.
pub async fn end(state: &dyn State, id: MachineId, view: &SwitchView) -> Result<(), SystemsError> {
    change(state, id, |record| {
        record.pending.take_if(|pending| pending.view.id == view.id);
        let lasting = matches!(view.action, SwitchAction::Switch | SwitchAction::Boot);
        if view.outcome == Some(SwitchOutcome::Applied) && lasting {
            record.desired = Some(view.toplevel.clone());
        }
        record.ended.retain(|ended| ended.id != view.id);
        record.ended.push(view.clone());
        let excess = record.ended.len().saturating_sub(ENDED_MAX);
        record.ended.drain(..excess);
        Ok(())
    })
    .await
}

/// Forgets the systems of machines that are not there any more.
pub async fn sweep(state: &dyn State) -> Result<(), SystemsError> {
    let (entries, _) = state.list(SYSTEMS).await?;
    for entry in entries {
        let Some(id) = entry.key.strip_prefix(SYSTEMS).and_then(|id| id.parse::<MachineId>().ok()) else {
            continue;
        };
        if state.get(&machine_key(id)).await?.is_none() {
            state.delete(&entry.key, Expect::Revision(entry.revision), Durability::Soon).await?;
        }
    }
    Ok(())
}
