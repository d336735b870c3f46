//! Rule: a machine's state follows what is known of it: created, heard, running.

use super::Phase;
use super::draft::Draft;
use crate::State;

pub(super) fn advance(draft: &mut Draft<'_>) {
    if !draft.wanted() {
        return;
    }
    let attempt = draft.machine.attempt;
    let made = draft.sight.created.as_ref().is_some_and(|c| c.attempt == attempt && c.result.is_ok());
    if draft.machine.state == State::Creating && made {
        draft.state(State::Booting);
    }
    // It ran before, whoever speaks in it.
    if draft.machine.state == State::Booting && draft.is_adopted() {
        draft.state(State::Running);
    }
    let Some(phase) = draft.phase() else { return };
    if draft.machine.state == State::Booting {
        draft.state(State::Seeding);
    }
    if draft.machine.state == State::Seeding && phase != Phase::Waiting {
        draft.state(State::Running);
    }
}
