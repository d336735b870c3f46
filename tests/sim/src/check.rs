//! What must always be so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use calve_core::{MachineId, MachineName, State};
use calve_server::reconcile::records::View;
use calve_wire::event::What;
use calve_wire::machine::Workload;
use calve_wire::record::MachineRecord;
use calve_wire::system::{SwitchAction, SwitchOutcome, SystemRecord, first_switch};

use crate::host::{Ms, OVERRUN_MAX, Vm};
use crate::world::{Inner, SKEW_MAX, World};

impl Inner {
    /// Every machine that there is, wherever.
    pub fn machines(&self) -> impl Iterator<Item = (MachineId, &Vm)> {
        self.host.iter().map(|((_, id), vm)| (*id, vm)).chain(self.account.present())
    }
}

impl World {
    /// A machine whose program runs may end only where somebody asked, or the deadline has passed.
    pub fn check_may_end(&self, id: MachineId, how: &str) {
        // By the server's clock the lease may be over a moment before it is.
        let now = self.now() + SKEW_MAX;
        let truth = self.inner().truth.get(&id).copied();
        if !truth.is_some_and(|truth| truth.may_end(now)) {
            self.violation(format!("{id} was {how} unasked, with a live lease"));
        }
    }

    /// Whether nothing is left of any machine, here and at the provider.
    pub fn is_empty(&self) -> bool {
        let inner = self.inner();
        let provider = &inner.account;
        inner.host.is_empty() && provider.present().next().is_none() && provider.adopted().next().is_none()
    }

    /// Whether everything that was begun has come to its end: no effect is under way, no change of the state that was slow
    /// before it was quiet, and no record is left that was asked to go. A removal takes half a minute where both of its
    /// changes are slow; until then the world is not satisfied, and that it goes on changing breaks nothing.
    pub fn is_settled(&self, view: &View) -> bool {
        let inner = self.inner();
        inner.under_way.is_empty() && inner.slow_changes == 0 && view.all().iter().all(|it| !it.remove)
    }

    /// `Stopped` comes once, and only when nothing is alive.
    pub fn check_event(&self, id: MachineId, what: &What) {
        if *what != What::Stopped {
            return;
        }
        let (alive, before) = {
            let inner = self.inner();
            let alive = inner.machines().any(|(vm_id, vm)| vm_id == id && vm.alive);
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
            let mut alive = BTreeSet::new();
            for ((_, id), _) in inner.host.iter().filter(|(_, vm)| vm.alive) {
                if !alive.insert(*id) {
                    violations.push(format!("{id} lives twice"));
                }
            }
            for (id, vm) in inner.machines().filter(|(_, vm)| vm.alive) {
                let Some(truth) = inner.truth.get(&id) else { continue };
                let end = truth.promised_end.unwrap_or(Ms::MAX);
                let watched_since = inner.server_since.unwrap_or(now);
                if watched_since.max(end).saturating_add(OVERRUN_MAX) < now {
                    violations.push(format!("{id} outlives a stop that was promised"));
                }
                let Some((_, deadline)) = truth.deadline else { continue };
                let end = deadline + truth.grace;
                let watched_since = if vm.enforces { Some(0) } else { inner.server_since };
                let watched = watched_since.is_some_and(|since| since.max(end) + OVERRUN_MAX < now);
                if watched {
                    violations.push(format!("{id} outlives its lease by {} ms", now - end));
                }
            }
            for id in inner.account.adopted() {
                let Some(truth) = inner.truth.get(&id) else { continue };
                let lease_end = truth.deadline.map(|(_, deadline)| deadline + truth.grace);
                // Nobody but a server ends it.
                let (end, since) =
                    (truth.promised_end.into_iter().chain(lease_end).min(), inner.server_since);
                if end.zip(since).is_some_and(|(end, since)| since.max(end) + OVERRUN_MAX < now) {
                    violations.push(format!("{id}, which was adopted, outlives its end"));
                }
            }
        }
        self.check_names(view);
        violations.into_iter().for_each(|violation| self.violation(violation));
    }

    /// No name is used twice at once. A machine keeps its name, so each record is read once.
    fn check_names(&self, view: &View) {
        let rows = view.rows(true);
        let mut doubled = Vec::new();
        {
            let known = &mut self.inner().names;
            let mut names: BTreeMap<&MachineName, MachineId> = BTreeMap::new();
            for row in &rows {
                known.entry(row.id).or_insert_with(|| row.record().name.clone());
            }
            for row in &rows {
                if let Some(other) = names.insert(&known[&row.id], row.id) {
                    doubled.push(format!("{other} and {} are both named {}", row.id, known[&row.id]));
                }
            }
        }
        doubled.into_iter().for_each(|violation| self.violation(violation));
    }

    /// What a server says of switches is so on their hosts.
    pub fn check_switches(&self, records: &[(MachineId, SystemRecord)]) {
        let mut violations = Vec::new();
        let now = self.now() + SKEW_MAX;
        {
            let inner = self.inner();
            // Of a machine that ends nobody may have heard the end of its switch.
            let lives = |id: &MachineId| {
                let goes_on = inner.truth.get(id).is_some_and(|truth| !truth.may_end(now));
                goes_on && inner.machines().any(|(there, vm)| there == *id && vm.alive)
            };
            let living = records.iter().filter(|(id, _)| lives(id));
            let ended = living.flat_map(|(id, record)| record.ended.iter().map(move |view| (*id, view)));
            for (id, view) in ended {
                let truth = inner.switches.get(&(id, view.id.clone())).copied().unwrap_or_default();
                let dry = view.action == SwitchAction::DryActivate;
                let belied = view.outcome.filter(|_| !dry).and_then(|said| Some((said, truth.belies(said)?)));
                if let Some((said, why)) = belied {
                    violations.push(format!(
                        "switch {} is said to be {said:?}, but {why}: {:?}",
                        view.id, view.message
                    ));
                }
            }
            let twice = inner.switches.iter().filter(|(_, truth)| truth.begun > 1);
            violations.extend(twice.map(|((_, switch), _)| format!("switch {switch} was begun twice")));
        }
        violations.into_iter().for_each(|violation| self.violation(violation));
    }

    /// A machine at a provider that was made for a system counts as running only with that.
    pub fn check_given(&self, view: &View) {
        let mut violations = Vec::new();
        {
            let inner = self.inner();
            let all = view.all();
            let given = |record: &&Arc<MachineRecord>| {
                let switch = (record.id, first_switch(record.attempt));
                inner.switches.get(&switch).is_some_and(|truth| truth.outcome == Some(SwitchOutcome::Applied))
            };
            let runs = all.iter().filter(|it| it.state == State::Running && is_given(it));
            for record in runs.filter(|record| !given(record)) {
                violations.push(format!("{} runs without the system that it was made for", record.name));
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
            for (id, _) in inner.account.present() {
                violations.push(format!("{id} is left at its provider"));
            }
            for id in inner.account.adopted() {
                violations.push(format!("{id}, which was adopted, is left at its provider"));
            }
            for (id, truth) in inner.truth.iter().filter(|(_, truth)| truth.acknowledged) {
                if !inner.events.contains_key(id) {
                    violations.push(format!("{id} was acknowledged and then lost: {truth:?}"));
                }
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

/// Whether it was made for a system that it is given once it is there.
pub fn is_given(record: &MachineRecord) -> bool {
    matches!(record.spec.workload, Workload::System { .. })
}
