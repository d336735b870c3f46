//! Rule: records of ended machines are forgotten on request, by age, or when there are too many.

use super::{Action, Plan, World};
use crate::Timestamp;
use crate::limits::{RECORD_KEEP, RECORDS_KEEP_MAX};

pub(super) fn plan(world: &World<'_>, now: Timestamp, plan: &mut Plan) {
    let ended = || world.machines.values().filter(|machine| machine.state.is_terminal());
    let surplus = ended().count().saturating_sub(RECORDS_KEEP_MAX);
    let cut = if surplus == 0 { None } else { nth_oldest(ended().map(|m| m.state_since).collect(), surplus) };
    for machine in ended() {
        let until = machine.state_since.after(RECORD_KEEP);
        let over = machine.remove || now >= until || cut.is_some_and(|cut| machine.state_since <= cut);
        let sight = world.sights.get(&machine.id);
        if !over {
            plan.wake_at(Some(until));
        } else if sight.is_none_or(|sight| !sight.busy && sight.pause_until.is_none_or(|pause| now >= pause))
        {
            plan.actions.push(Action::Forget { id: machine.id });
        } else {
            plan.wake_at(sight.and_then(|sight| sight.pause_until).filter(|pause| now < *pause));
        }
    }
}

/// The moment of the `n`th oldest, counted from 1.
fn nth_oldest(mut times: Vec<Timestamp>, n: usize) -> Option<Timestamp> {
    let (_, cut, _) = times.select_nth_unstable(n - 1);
    Some(*cut)
}
