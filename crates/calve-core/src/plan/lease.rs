//! Rule: a machine ends with its lease, and knows its lease.

use super::Action;
use super::draft::Draft;
use crate::{LeaseStage, State, StopReason};

/// Ends a machine whose deadline has passed. The grace counts from the deadline, however late this is.
pub(super) fn end(draft: &mut Draft<'_>) {
    let lease = draft.machine.lease;
    let Some(deadline) = lease.deadline else { return };
    match lease.stage(draft.now) {
        LeaseStage::Live => draft.wake_at(deadline),
        LeaseStage::Stop | LeaseStage::Destroy if draft.wanted() => {
            draft.end(deadline, lease.grace, StopReason::Expired);
        }
        LeaseStage::Stop | LeaseStage::Destroy => {}
    }
}

/// Tells a machine a lease that it does not know yet.
pub(super) fn tell(draft: &mut Draft<'_>) {
    let exists = matches!(draft.machine.state, State::Booting | State::Seeding | State::Running);
    if exists && draft.wanted() && !draft.acts() && draft.sight.lease_told != Some(draft.machine.lease) {
        draft.act(Action::SetLease { id: draft.id() });
    }
}
