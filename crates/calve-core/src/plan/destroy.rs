//! Rule: a draining machine is destroyed once its program has ended and its log is kept, or its time is up.

use super::draft::Draft;
use super::{Action, On, Phase, Seen};
use crate::limits::{LOG_WAIT_MAX, STOP_MARGIN};
use crate::{Goal, LeaseStage, State, StopReason, Timestamp};

/// What still speaks against the destruction, and until when.
type Because = (On, Timestamp);

pub(super) fn destroy(draft: &mut Draft<'_>) {
    if draft.machine.state != State::Draining {
        return;
    }
    let Some(driver) = draft.driver() else { return };
    if draft.sight.destroyed {
        // A list that still shows it: once more.
        if matches!(draft.seen, Seen::Listed(_)) {
            draft.act(Action::Destroy { id: draft.id(), driver });
        }
        return;
    }
    match not_yet(draft).filter(|(_, until)| draft.now < *until) {
        Some((_, until)) if draft.acts() => draft.wake_at(until),
        Some((on, until)) => draft.wait(on, Some(until)),
        None => draft.act(Action::Destroy { id: draft.id(), driver }),
    }
}

fn not_yet(draft: &Draft<'_>) -> Option<Because> {
    let Goal::Stop { since, grace, reason } = draft.machine.goal else { return None };
    let lease = draft.machine.lease;
    if reason == StopReason::Failed || lease.stage(draft.now) == LeaseStage::Destroy || draft.is_dead() {
        return None;
    }
    // What runs in it was there before, and is not ours to stop.
    if draft.is_adopted() {
        return None;
    }
    let lease_end = lease.deadline.map(|deadline| deadline.after(lease.grace));
    let by = |until: Timestamp| lease_end.map_or(until, |end| until.min(end));
    let time_up = by(since.after(grace).after(STOP_MARGIN));
    match draft.phase() {
        None if draft.never_heard() => None,
        None => Some((On::Agent, time_up)),
        Some(Phase::Waiting) if !draft.handed_over() => None,
        Some(Phase::Waiting | Phase::Running | Phase::BackingOff | Phase::Stopping) => {
            Some((On::ProgramEnd, time_up))
        }
        Some(Phase::Ended) if draft.sight.agent.is_some_and(|agent| agent.log_complete) => None,
        Some(Phase::Ended) => {
            let ended_at = draft.sight.ended_at.unwrap_or(draft.now);
            Some((On::Log, ended_at.after(LOG_WAIT_MAX)))
        }
    }
}
