//! Rule: a machine that its driver no longer has, though it should run, is lost.

use std::time::Duration;

use super::draft::Draft;
use super::{Change, Ended};
use crate::limits::LEASE_SKEW;
use crate::{Exit, ExitCause, Kind, LeaseStage, Runs, State, StopReason};

pub(super) fn end(draft: &mut Draft<'_>) {
    let exists = matches!(draft.machine.state, State::Booting | State::Seeding | State::Running);
    if !exists || !draft.wanted() || !draft.is_dead() {
        return;
    }
    if draft.machine.lease.stage(draft.now.after(LEASE_SKEW)) != LeaseStage::Live {
        draft.end(draft.now, Duration::ZERO, StopReason::Expired);
        return;
    }
    let up = draft.machine.kind == Kind::System && draft.machine.state == State::Running;
    let powered_off = match draft.ended() {
        Some(Ended::ByItself) => Some("the system powered itself off"),
        // Whoever removed its traces did so on purpose.
        None => Some("the system is no longer up: it was powered off, or its machine was killed"),
        Some(Ended::Killed) => None,
    };
    let powered_off = match draft.machine.runs {
        Runs::Adopted => Some("the machine is gone from its provider, or somebody took its tags away"),
        Runs::Host => Some("this server's book of borrowed hosts does not have it any more"),
        Runs::Program | Runs::System | Runs::Base => powered_off,
    };
    match powered_off {
        Some(sentence) if up => {
            draft.end(draft.now, Duration::ZERO, StopReason::Exited);
            draft.change(Change::Message(sentence.to_owned()));
        }
        Some(_) | None => {
            let cause = ExitCause::MachineLost;
            draft.change(Change::Exit(Exit { code: None, signal: None, cause }));
            draft.fail("the machine went away under its program: its processes were killed or its host was restarted".to_owned());
        }
    }
}
