//! Rule: a machine is closed only once a list, taken after its destruction, no longer shows it.

use super::draft::Draft;
use super::{On, Seen};
use crate::{Goal, State, StopReason};

pub(super) fn confirm(draft: &mut Draft<'_>) {
    let Goal::Stop { reason, .. } = draft.machine.goal else { return };
    let closed = match reason {
        StopReason::Exited | StopReason::Requested => State::Gone,
        StopReason::Expired => State::Expired,
        StopReason::Failed => State::Failed,
    };
    if draft.machine.attempt == 0 {
        return draft.state(closed);
    }
    if !draft.sight.destroyed || draft.acts() {
        return;
    }
    match draft.seen {
        Seen::Absent => draft.state(closed),
        Seen::Unknown => draft.wait(On::List, None),
        Seen::Listed(_) => {}
    }
}
