//! Records of machines and their names in the state: what the HTTP API and the simulator's users do to them.
//!
//! ```text
//!  name/<name>    → id     claimed first, under Absent; removed last
//!  machine/<id>   → record
//! ```

mod change;
mod create;
mod names;
#[cfg(test)]
mod tests;
mod view;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use calve_core::{MachineId, limits};
use calve_wire::api::{Problem, ProblemKind};
use calve_wire::record::MachineRecord;

use crate::state::{Durability, Expect, Revision, State, StateError};
pub(super) use change::remove;
pub(crate) use change::update_now;
pub use change::{extend, request_remove, request_stop};
pub use create::{NewMachine, create, create_announced};
pub(super) use names::sweep;
pub use names::{NAME_CLAIM_MAX, released};
pub use view::{Newer, Row, View};

/// Key prefix of the records of machines.
pub const MACHINES: &str = "machine/";
/// Key prefix of the names of machines.
pub const NAMES: &str = "name/";

/// Tries of a compare-and-set before the caller is told that somebody else keeps changing the record: each lost try
/// means that another writer made progress, and a record has few writers.
const TRIES_MAX: u32 = 32;

/// Why a record was not made or changed.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// No machine has this name or id.
    #[error("there is no machine {0:?}")]
    NotFound(String),
    /// Another machine has the name.
    #[error("the name {0:?} is taken")]
    NameTaken(String),
    /// The machine is ending or has ended.
    #[error("the machine {0:?} is ending or has ended")]
    Ended(String),
    /// The lease would be longer than allowed.
    #[error("the lease would end more than {} days after the machine was made", limits::TTL_MAX.as_secs() / 86_400)]
    LeaseTooLong,
    /// Too many machines.
    #[error("there are {} machines that have not ended, which is the most", limits::MACHINES_MAX)]
    TooMany,
    /// Somebody else kept changing the same record.
    #[error("the record was changed by others too often at once")]
    Busy,
    /// The record was written by a newer calve, or is damaged.
    #[error("the record cannot be read")]
    Unreadable(#[from] calve_wire::record::RecordError),
    /// The state is at fault.
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<RecordsError> for Problem {
    fn from(error: RecordsError) -> Self {
        let title = error.to_string();
        match error {
            RecordsError::NotFound(_) => {
                Self::new(ProblemKind::NotFound, title).hint("`calve ps` lists machines")
            }
            RecordsError::NameTaken(name) => Self::new(ProblemKind::Conflict, title)
                .hint(format!("choose another --name, or free it with `calve rm {name}`")),
            RecordsError::Ended(_) => Self::new(ProblemKind::Conflict, title).hint("run it again"),
            RecordsError::LeaseTooLong => {
                Self::new(ProblemKind::BadRequest, title).hint("`--ttl none` makes a lease without an end")
            }
            RecordsError::TooMany => {
                Self::new(ProblemKind::LimitReached, title).hint("remove some with `calve rm`")
            }
            RecordsError::Busy => Self::new(ProblemKind::Conflict, title).hint("try again"),
            RecordsError::Unreadable(_) => {
                Self::new(ProblemKind::Internal, title).hint("use the newer calve that wrote it")
            }
            RecordsError::State(StateError::Full) => {
                Self::new(ProblemKind::DiskFull, title).hint("make space, e.g. with `calve prune`")
            }
            RecordsError::State(_) => Self::new(ProblemKind::Internal, title).hint("see the server's log"),
        }
    }
}

/// The key of a machine's record.
pub fn machine_key(id: MachineId) -> String {
    format!("{MACHINES}{id}")
}

/// The record of the machine with this name or id.
pub async fn get(
    state: &dyn State,
    view: &View,
    name_or_id: &str,
) -> Result<Arc<MachineRecord>, RecordsError> {
    view.refresh(state).await?;
    view.find(name_or_id).ok_or_else(|| RecordsError::NotFound(name_or_id.to_owned()))
}

/// Every machine's record, the oldest first.
pub async fn list(state: &dyn State, view: &View) -> Result<Vec<Arc<MachineRecord>>, RecordsError> {
    view.refresh(state).await?;
    Ok(view.all())
}

/// Puts a value whose answer may get lost: where the key then holds exactly this value, it counts as done.
pub(crate) async fn put(
    state: &dyn State,
    key: &str,
    value: Bytes,
    expect: Expect,
    durability: Durability,
) -> Result<Revision, StateError> {
    match state.put(key, value.clone(), expect, durability).await {
        Err(error @ (StateError::Failed(_) | StateError::Full)) => match state.get(key).await {
            Ok(Some(entry)) if entry.value == value => Ok(entry.revision),
            _ => Err(error),
        },
        result => result,
    }
}

/// A record as it is stored, without room to spare: state and view keep it.
pub(super) fn stored(record: &MachineRecord) -> Bytes {
    record.to_json().into_boxed_slice().into()
}

fn to_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
