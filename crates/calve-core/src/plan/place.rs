//! Rule: a declared machine gets a node and a driver.

use super::draft::Draft;
use super::{Change, On, World};
use crate::State;
use crate::placement::{Choice, choose};

pub(super) fn place(draft: &mut Draft<'_>, world: &World<'_>) {
    if draft.machine.state != State::Declared || !draft.wanted() {
        return;
    }
    match choose(&draft.machine, world.drivers) {
        Choice::Driver(driver) => draft.change(Change::Place { node: world.node.clone(), driver }),
        Choice::NotYet => draft.wait(On::Drivers, None),
        Choice::Nowhere(why) => draft.fail(why),
    }
}
