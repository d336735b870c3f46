//! Rule: a machine that its driver no longer has, though it should run, is lost.

use std::time::Duration;

use super::Change;
use super::draft::Draft;
use crate::limits::LEASE_SKEW;
use crate::{Exit, ExitCause, Kind, LeaseStage, State, StopReason};

pub(super) fn end(draft: &mut Draft<'_>) {
    let exists = matches!(draft.machine.state, State::Booting | State::Seeding | State::Running);
    if !exists || !draft.wanted() || !draft.is_dead() {
        return;
    }
    if draft.machine.lease.stage(draft.now.after(LEASE_SKEW)) != LeaseStage::Live {
        draft.end(draft.now, Duration::ZERO, StopReason::Expired);
        return;
    }
    match draft.machine.kind {
        // A system that was up ends with its own machine: by its own hand, as a rule.
        Kind::System if draft.machine.state == State::Running => {
            draft.end(draft.now, Duration::ZERO, StopReason::Exited);
            draft.change(Change::Message(
                "the system is no longer up: it was powered off, or its machine was killed".to_owned(),
            ));
        }
        Kind::System | Kind::Service | Kind::Job => {
            let cause = ExitCause::MachineLost;
            draft.change(Change::Exit(Exit { code: None, signal: None, cause }));
            draft.fail("the machine went away under its program: its processes were killed or its host was restarted".to_owned());
        }
    }
}
