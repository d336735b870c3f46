//! The leases of linked machines as of now: a link asks for what remains each time it connects again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use calve_core::{MachineId, Timestamp};
use calve_wire::agent::Remaining;
use calve_wire::record::MachineRecord;

use super::now;

/// Deadlines and graces by machine. Cloning gives another handle.
#[derive(Clone, Default)]
pub(super) struct Leases {
    machines: Arc<Mutex<BTreeMap<MachineId, Lease>>>,
}

#[derive(Clone, Copy)]
struct Lease {
    deadline_unix_ms: Option<u64>,
    grace_ms: u64,
}

impl Leases {
    /// Notes the record's lease.
    pub(super) fn set(&self, record: &MachineRecord) {
        let lease = Lease { deadline_unix_ms: record.deadline_unix_ms, grace_ms: record.grace_ms };
        self.lock().insert(record.id, lease);
    }

    /// What remains now; nothing for a machine without one.
    pub(super) fn remaining(&self, id: MachineId) -> Remaining {
        let ended = Lease { deadline_unix_ms: Some(0), grace_ms: 0 };
        self.lock().get(&id).copied().unwrap_or(ended).remaining(now())
    }

    pub(super) fn forget(&self, id: MachineId) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MachineId, Lease>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    fn remaining(self, now: Timestamp) -> Remaining {
        Remaining {
            until_deadline_ms: self.deadline_unix_ms.map(|deadline| deadline.saturating_sub(now.0)),
            grace_ms: self.grace_ms,
        }
    }
}
