//! Rule: a machine that is to end is draining, and its agent is told to end the program.

use super::draft::Draft;
use super::{Action, Phase};
use crate::{Goal, State};

pub(super) fn stop(draft: &mut Draft<'_>) {
    let Goal::Stop { since, grace, .. } = draft.machine.goal else { return };
    // Nothing was made of it: there is nothing to drain.
    if draft.machine.attempt == 0 {
        return;
    }
    if draft.machine.state != State::Draining {
        draft.state(State::Draining);
    }
    let runs = match draft.phase() {
        Some(Phase::Running | Phase::BackingOff | Phase::Stopping) => true,
        Some(Phase::Waiting) => draft.handed_over(),
        Some(Phase::Ended) | None => false,
    };
    if runs
        && !draft.is_adopted()
        && draft.linked()
        && draft.sight.stop_told != Some((since, grace))
        && !draft.is_dead()
    {
        let remaining = since.after(grace).since(draft.now);
        draft.act(Action::Stop { id: draft.id(), grace: remaining });
    }
}
