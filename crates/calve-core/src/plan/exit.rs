//! Rule: a workload that ended for good ends its machine. Restarts are the agent's business.

use std::time::Duration;

use super::draft::Draft;
use super::{Change, Phase};
use crate::limits::LEASE_SKEW;
use crate::{Exit, LeaseStage, StopReason};

pub(super) fn end(draft: &mut Draft<'_>) {
    if draft.phase() != Some(Phase::Ended) {
        return;
    }
    let exit = draft.sight.agent.and_then(|agent| agent.last_exit);
    if let Some(exit) = exit
        && draft.machine.exit.is_none()
    {
        draft.change(Change::Exit(exit));
    }
    if draft.wanted() {
        let reason = if ended_by_lease(draft, exit) { StopReason::Expired } else { StopReason::Exited };
        draft.end(draft.now, Duration::ZERO, reason);
    }
}

/// Whether the agent ended the program at the deadline before this loop did: its clock was ahead, or the server away.
fn ended_by_lease(draft: &Draft<'_>, exit: Option<Exit>) -> bool {
    let soon = draft.now.after(LEASE_SKEW);
    draft.machine.lease.stage(soon) != LeaseStage::Live && exit.is_none_or(|exit| exit.code.is_none())
}
