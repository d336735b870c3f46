//! What must always be so.

use std::collections::BTreeMap;

use calve_core::{MachineId, MachineName};
use calve_server::reconcile::records::View;
use calve_wire::event::What;

use crate::host::Ms;
use crate::world::World;

/// How long a machine may outlive the end of its lease while a server lives: a slow creation or destruction (20 s in
/// each of three moments) and pauses after failures (5 s each).
const OVERRUN_MAX_MS: Ms = 150_000;

impl World {
    /// A machine whose program runs may end only where somebody asked, or the deadline has passed.
    pub fn check_may_end(&self, id: MachineId, how: &str) {
        let now = self.now();
        let truth = self.inner().truth.get(&id).copied();
        let expired = truth.and_then(|truth| truth.deadline).is_some_and(|(sure, _)| sure <= now);
        if !truth.is_some_and(|truth| truth.asked_to_end) && !expired {
            self.violation(format!("{id} was {how} unasked, with a live lease"));
        }
    }

    /// `Stopped` comes once, and only when nothing is alive.
    pub fn check_event(&self, id: MachineId, what: &What) {
        if *what != What::Stopped {
            return;
        }
        let (alive, before) = {
            let inner = self.inner();
            let alive = inner.host.iter().any(|((_, vm_id), vm)| *vm_id == id && vm.alive);
            (alive, inner.events.get(&id).is_some_and(|events| events.contains(what)))
        };
        if alive {
            self.violation(format!("{id} is said to be stopped, but lives"));
        }
        if before {
            self.violation(format!("{id} is said to be stopped twice"));
        }
    }

    /// No machine outlives its lease; no machine lives in two places; no name is used twice.
    pub fn check_now(&self, view: &View) {
        let mut violations = Vec::new();
        let now = self.now();
        {
            let inner = self.inner();
            let mut alive = BTreeMap::new();
            for ((driver, id), vm) in inner.host.iter().filter(|(_, vm)| vm.alive) {
                if alive.insert(id, driver).is_some() {
                    violations.push(format!("{id} lives twice"));
                }
                let Some(truth) = inner.truth.get(id) else { continue };
                let end = truth.promised_end.unwrap_or(Ms::MAX);
                let watched_since = inner.server_since.unwrap_or(now);
                if watched_since.max(end).saturating_add(OVERRUN_MAX_MS) < now {
                    violations.push(format!("{id} outlives a stop that was promised"));
                }
                let Some((_, deadline)) = truth.deadline else { continue };
                let end = deadline + truth.grace;
                let watched_since = if vm.enforces { Some(0) } else { inner.server_since };
                let watched = watched_since.is_some_and(|since| since.max(end) + OVERRUN_MAX_MS < now);
                if watched {
                    violations.push(format!("{id} outlives its lease by {} ms", now - end));
                }
            }
        }
        let mut names: BTreeMap<MachineName, MachineId> = BTreeMap::new();
        for record in view.all() {
            if let Some(other) = names.insert(record.name.clone(), record.id) {
                violations.push(format!("{other} and {} are both named {}", record.id, record.name));
            }
        }
        violations.into_iter().for_each(|violation| self.violation(violation));
    }

    /// Whether the end of every machine that has ended was said.
    pub fn has_announced(&self, view: &View) -> bool {
        let inner = self.inner();
        let stopped = |id| inner.events.get(&id).is_some_and(|events| events.contains(&What::Stopped));
        view.all().iter().all(|record| !record.state.is_terminal() || stopped(record.id))
    }

    /// At the end every machine is closed, announced, and nothing is left of it.
    pub fn check_end(&self, view: &View) {
        let mut violations = Vec::new();
        {
            let inner = self.inner();
            for (driver, id) in inner.host.keys() {
                violations.push(format!("{id} is left in {driver}"));
            }
            for record in view.all() {
                if !record.state.is_terminal() {
                    violations.push(format!("{} is {} for ever", record.name, record.state));
                }
                let stopped = inner.events.get(&record.id).into_iter().flatten();
                let stopped = stopped.filter(|what| **what == What::Stopped).count();
                if stopped != 1 {
                    violations.push(format!("{} is said to be stopped {stopped} times", record.name));
                }
            }
        }
        violations.into_iter().for_each(|violation| self.violation(violation));
    }
}
