//! Rule: a workload that ended for good ends its machine. Restarts are the agent's business.

use std::time::Duration;

use super::draft::Draft;
use super::{Change, Phase};
use crate::StopReason;

pub(super) fn end(draft: &mut Draft<'_>) {
    // An agent that ends on an adopted host, as one does that restarts, ends nothing but itself.
    if draft.phase() != Some(Phase::Ended) || draft.is_adopted() {
        return;
    }
    let exit = draft.sight.agent.and_then(|agent| agent.last_exit);
    if let Some(exit) = exit
        && draft.machine.exit.is_none()
    {
        draft.change(Change::Exit(exit));
    }
    if draft.wanted() {
        let expired = draft.sight.agent.is_some_and(|agent| agent.expired);
        let reason = if expired { StopReason::Expired } else { StopReason::Exited };
        draft.end(draft.now, Duration::ZERO, reason);
    }
}
