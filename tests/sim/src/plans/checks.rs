//! What must always be so, in the lower layer.

use calve_core::{DriverName, MachineId, Timestamp};

use super::Sim;
use crate::host::{Ms, OVERRUN_MAX, Vm};

impl Sim {
    /// A machine whose program runs may end only where somebody asked, or the deadline has passed.
    pub(super) fn check_may_end(&mut self, id: MachineId, how: &str) {
        if !self.truth.get(&id).is_some_and(|truth| truth.may_end(self.now)) {
            self.violation(format!("{id} was {how} unasked, with a live lease"));
        }
    }

    /// A machine lives in one place, and nobody made it whose record has ended.
    pub(super) fn check_made(&mut self, id: MachineId) {
        let places = DriverName::ALL.into_iter();
        if places.filter(|driver| self.host.get(&(*driver, id)).is_some_and(|vm| vm.alive)).count() > 1 {
            self.violation(format!("{id} lives twice"));
        }
        if self.machines.get(&id).is_none_or(|machine| machine.state.is_terminal()) {
            self.violation(format!("{id} is made, whose record has ended"));
        }
    }

    /// A machine that died now did not outlive its lease, nor a stop that was promised.
    pub(super) fn check_died(&mut self, id: MachineId, key: (DriverName, MachineId)) {
        let (Some(truth), Some(vm)) = (self.truth.get(&id).copied(), self.host.get(&key)) else { return };
        let since = |watched: Option<Ms>, end: Ms| watched.map_or(Ms::MAX, |since| since.max(end));
        let enforced = if vm.enforces { Some(0) } else { self.up_since };
        if let Some((_, deadline)) = truth.deadline {
            let latest = since(enforced, deadline + truth.grace).saturating_add(OVERRUN_MAX);
            if latest < self.now {
                self.violation(format!(
                    "{id} outlived its lease by {} ms",
                    self.now - deadline - truth.grace
                ));
            }
        }
        if let Some(end) = truth.promised_end
            && since(self.up_since, end).saturating_add(OVERRUN_MAX) < self.now
        {
            self.violation(format!("{id} outlived a stop that was promised by {} ms", self.now - end));
        }
    }

    /// A record is closed only once nothing of the machine is alive.
    pub(super) fn check_closed(&mut self, id: MachineId) {
        let alive = |driver| self.host.get(&(driver, id)).is_some_and(|vm: &Vm| vm.alive);
        if DriverName::ALL.into_iter().any(alive) {
            self.violation(format!("{id} is said to have ended, but lives"));
        }
    }

    /// Only the record of a machine that has ended may go, and only on request or by age.
    pub(super) fn check_forgotten(&mut self, id: MachineId) {
        if self.machines.get(&id).is_some_and(|machine| !machine.state.is_terminal() || !machine.remove) {
            self.violation(format!("the record of {id} went, and nobody had asked for that"));
        }
    }

    /// With everything under way that a plan asks for, there is nothing more to do.
    pub(super) fn check_planned_twice(&mut self, now: Timestamp) {
        let steps: Vec<MachineId> = self.steps.keys().copied().collect();
        // Steps that have ended at once are another reason to act.
        if self.dirty {
            return;
        }
        let again = self.plan(now);
        for action in again.actions {
            let id = action.id();
            self.violation(format!("{action} of {id} is planned twice; under way are {}", steps.len()));
        }
    }

    /// At the end every machine is closed and nothing is left of it.
    pub(super) fn check_end(&mut self) {
        let left: Vec<String> =
            self.host.keys().map(|(driver, id)| format!("{id} is left in {driver}")).collect();
        let open =
            self.machines.values().map(|machine| format!("{} is {} for ever", machine.name, machine.state));
        let open: Vec<String> = open.collect();
        left.into_iter().chain(open).for_each(|what| self.violation(what));
        if !self.names.is_empty() {
            self.violation(format!("numbers are still taken: {:?}", self.names));
        }
        let satisfied = self.plan(Timestamp(self.now));
        if !satisfied.actions.is_empty() {
            self.violation(format!("a satisfied world plans {:?}", satisfied.actions));
        }
    }
}
