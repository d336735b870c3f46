//! Declares machines.

use std::sync::Arc;
use std::time::Duration;

use calve_core::limits::MACHINES_MAX;
use calve_core::{MachineId, MachineName, State as MachineState, Timestamp};
use calve_wire::machine::MachineSpec;
use calve_wire::record::{MachineRecord, RECORD_VERSION};

use super::{RecordsError, View, machine_key, names, put, stored, to_ms};
use crate::state::{Durability, Expect, State, StateError};

/// A machine that somebody wants; everything in it was checked.
#[derive(Debug, Clone)]
pub struct NewMachine {
    /// Its id, never used before.
    pub id: MachineId,
    /// What its agent asks of who speaks to it: 32 random hexadecimal digits.
    pub agent_token: String,
    /// Its name; the smallest free `run-<n>` where none is given.
    pub name: Option<MachineName>,
    /// What it shall be.
    pub spec: MachineSpec,
    /// Length of its lease; none for one without an end.
    pub ttl: Option<Duration>,
    /// Time between its stop and its destruction.
    pub grace: Duration,
    /// Whether it ends when its client is gone.
    pub held: bool,
}

#[cfg(test)]
impl NewMachine {
    /// A base guest without a lease, for tests.
    pub fn bare(id: MachineId) -> Self {
        use calve_wire::machine::Workload;
        let spec = MachineSpec::new(calve_core::Kind::System, Workload::Base);
        Self {
            id,
            agent_token: String::new(),
            name: None,
            spec,
            ttl: None,
            grace: Duration::ZERO,
            held: false,
        }
    }
}

/// Takes the name and writes the record, which then survives a power failure; the loop does the rest.
///
/// Errors: `NameTaken`, `TooMany`, and those of the state; where the state failed, the machine may all the same exist.
pub async fn create(
    state: &dyn State,
    view: &View,
    new: NewMachine,
    now: Timestamp,
) -> Result<Arc<MachineRecord>, RecordsError> {
    create_announced(state, view, new, now, |_| ()).await
}

/// [`create`], with `announce` called on the record right before it is written: what it tells comes before anything that
/// the loop tells of the machine, and is told also where the writing then fails.
pub async fn create_announced(
    state: &dyn State,
    view: &View,
    new: NewMachine,
    now: Timestamp,
    announce: impl FnOnce(&MachineRecord) + Send,
) -> Result<Arc<MachineRecord>, RecordsError> {
    view.refresh(state).await?;
    // Asked for again, as the answer was lost.
    if let Some((_, record)) = view.record(new.id) {
        return Ok(record);
    }
    if view.living() >= MACHINES_MAX {
        return Err(RecordsError::TooMany);
    }
    // The reservation lasts until the view shows the record.
    let (name, _reserved) = match &new.name {
        Some(name) => {
            names::claim(state, name, new.id, now).await?;
            (name.clone(), None)
        }
        None => {
            let (name, reserved) = names::claim_number(state, view, new.id, now).await?;
            (name, Some(reserved))
        }
    };
    let record = declared(new, name, now);
    announce(&record);
    let key = machine_key(record.id);
    let value = stored(&record);
    match put(state, &key, value.clone(), Expect::Absent, Durability::Now).await {
        Ok(revision) => {
            view.note(revision, &record, value);
            Ok(Arc::new(record))
        }
        // This took longer than a claim lasts, and somebody else has the name now.
        Err(StateError::Conflict { .. }) => Err(RecordsError::NameTaken(record.name.to_string())),
        Err(error @ StateError::Invalid(_)) => {
            names::release(state, &record.name, record.id).await?;
            Err(error.into())
        }
        // The answer may have been lost, and the loop at work on the record already.
        Err(error) => match view.refresh(state).await {
            Ok(()) => view.record(record.id).map(|(_, record)| record).ok_or(error.into()),
            Err(_) => Err(error.into()),
        },
    }
}

fn declared(new: NewMachine, name: MachineName, now: Timestamp) -> MachineRecord {
    MachineRecord {
        version: RECORD_VERSION,
        id: new.id,
        name,
        spec: new.spec,
        state: MachineState::Declared,
        stop: None,
        deadline_unix_ms: new.ttl.map(|ttl| now.after(ttl).0),
        grace_ms: to_ms(new.grace),
        node: None,
        driver: None,
        attempt: 0,
        agent_token: new.agent_token,
        joined: None,
        exit: None,
        message: None,
        created_unix_ms: now.0,
        state_since_unix_ms: now.0,
        remove: false,
        held: new.held,
    }
}
