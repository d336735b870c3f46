//! Rule: what exists is linked; once its agent speaks, the workload is handed over.

use super::draft::Draft;
use super::{Action, On, Phase};
use crate::State;

pub(super) fn start(draft: &mut Draft<'_>) {
    let exists =
        matches!(draft.machine.state, State::Booting | State::Seeding | State::Running | State::Draining);
    if exists && draft.machine.runs.has_agent() && !draft.sight.link_asked && !draft.sight.destroyed {
        draft.link();
    }
    if draft.machine.state != State::Seeding || !draft.wanted() || draft.phase() != Some(Phase::Waiting) {
        return;
    }
    match &draft.sight.started {
        Some(Err(fault)) if !fault.retry => draft.fail(fault.message.clone()),
        Some(Ok(())) => draft.wait(On::Start, None),
        _ if !draft.linked() => draft.wait(On::Agent, None),
        _ => draft.act(Action::Start { id: draft.id() }),
    }
}
