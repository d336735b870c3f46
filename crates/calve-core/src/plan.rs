//! What follows from what was observed: pure, so that a simulator drives exactly the code that runs in production.
//!
//! ```text
//!  World (records, lists, agents, drivers) ──▶ plan ──▶ Actions to execute as they are, Waits with their reason
//! ```
//! One rule a file. For each machine the rules run in the order of [`plan_machine`] on a draft of its record: first what
//! is so (`running`), then what should become of it (`exit`, `lease`, `lost`, `boot`), then the one effect that is next.
//! All changes of a machine in one round are one write, and its effect comes after that write.

mod action;
mod boot;
mod confirm;
mod create;
mod destroy;
mod draft;
mod exit;
mod lease;
mod lost;
mod place;
mod retention;
mod running;
mod start;
mod stop;
mod strays;
#[cfg(test)]
mod tests;
mod world;

pub use action::{Action, Change, On, Plan, Wait};
pub use world::{Agent, Created, Drivers, Ended, Fault, List, Listed, Phase, Seen, Sight, Tick, World};

use crate::Timestamp;
use draft::Draft;

/// The plan for `world` at `now`. A world where everything is as it should be has no actions; a world in which the
/// actions are under way (their machines busy) has none either.
pub fn plan(world: &World<'_>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    for machine in world.machines.values().filter(|machine| !machine.state.is_terminal()) {
        let mut draft = Draft::new(world, machine, now);
        if draft.sight.busy {
            draft.wait(On::Effect, None);
        } else {
            plan_machine(&mut draft, world);
        }
        draft.finish(&mut plan);
    }
    strays::plan(world, now, &mut plan);
    retention::plan(world, now, &mut plan);
    plan
}

fn plan_machine(draft: &mut Draft<'_>, world: &World<'_>) {
    running::advance(draft);

    exit::end(draft);
    lease::end(draft);
    lost::end(draft);
    boot::end(draft, world);

    place::place(draft, world);
    create::create(draft);
    start::start(draft);
    lease::tell(draft);
    stop::stop(draft);
    destroy::destroy(draft);
    confirm::confirm(draft);
}
