//! Rule: what a driver has and no record wants is destroyed; only where every record could be read.

use super::draft::UNSEEN;
use super::{Action, Plan, Seen, World};
use crate::Timestamp;

pub(super) fn plan(world: &World<'_>, now: Timestamp, plan: &mut Plan) {
    if !world.complete {
        return;
    }
    for (&driver, list) in world.lists {
        for &id in list.machines.keys() {
            let wanted = world.machines.get(&id).is_some_and(|machine| {
                !machine.state.is_terminal() && machine.placement.as_ref().is_none_or(|(_, d)| *d == driver)
            });
            if wanted {
                continue;
            }
            let sight = world.sights.get(&id);
            // Nobody wants any of its creations.
            let fresh = world.seen(id, driver, sight.unwrap_or(&UNSEEN), 0) != Seen::Unknown;
            let pause = sight.and_then(|sight| sight.pause_until).filter(|until| now < *until);
            plan.wake_at(pause);
            if fresh && pause.is_none() && !sight.is_some_and(|sight| sight.busy) {
                plan.actions.push(Action::Destroy { id, driver });
            }
        }
    }
}
