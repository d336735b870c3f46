//! One machine's actions of one round: the write, the link, the effect in its stages; between any two of them the server may
//! die, time passes, and what is done may fail.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use calve_core::plan::{Action, Change, Fault as Failure, Plan};
use calve_core::{DriverName, Goal, Kind, Lease, MachineId, MachineName, Timestamp};
use calve_node::Found;
use calve_server::reconcile::{AgentReport, Doing, DriverState, Effect, EffectError, Effects, Outcome};
use calve_server::state::StateError;
use calve_wire::event::What;
use calve_wire::record::MachineRecord;

use super::{Event, Sim};
use crate::faults::Fault;
use crate::host::{Ms, Vm};
use crate::link::Link;
use crate::simulation::Plant;

/// A step under way.
pub(super) struct Step {
    doing: Doing,
    changes: Vec<Change>,
    /// The record's revision that it was planned for.
    revision: u64,
    planned_at: Timestamp,
    stage: Stage,
}

/// What of a step comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Write,
    /// The effect has begun and done nothing.
    Before,
    /// It has done half of it.
    Within,
    /// It has done all of it, and its answer is on the way.
    After,
}

impl Sim {
    /// Sets the plan's actions going, those of one machine as one step.
    pub(super) fn execute(&mut self, plan: Plan) {
        let mut actions = plan.actions.into_iter().peekable();
        while let Some(first) = actions.next() {
            let id = first.id();
            let mut step = self.step(id);
            let mut next = Some(first);
            while let Some(action) = next {
                step.doing.effect = step.doing.effect.or(Effect::of(&action));
                match action {
                    Action::Write { changes, .. } => step.changes = changes,
                    Action::Link { .. } => step.doing.link = true,
                    Action::Create { .. }
                    | Action::Start { .. }
                    | Action::SetLease { .. }
                    | Action::Stop { .. }
                    | Action::Destroy { .. }
                    | Action::Forget { .. } => {}
                }
                next = actions.next_if(|action| action.id() == id);
            }
            step.doing.fresh = step.changes.iter().any(|change| matches!(change, Change::Creating { .. }));
            step.doing.goal = goal_after(&step.changes, step.doing.goal);
            self.known.begin(&step.doing);
            if self.steps.insert(id, step).is_some() {
                self.violation(format!("two steps of {id} at once"));
            }
            self.go_on(id);
            if self.up_since.is_none() {
                return;
            }
        }
    }

    fn step(&self, id: MachineId) -> Step {
        let goal = self.machines.get(&id).map_or(Goal::Run, |machine| machine.goal);
        Step {
            doing: Doing { id, effect: None, link: false, goal, fresh: false },
            changes: Vec::new(),
            revision: self.revisions.get(&id).copied().unwrap_or(0),
            planned_at: Timestamp(self.now),
            stage: Stage::Write,
        }
    }

    /// Goes on with a machine's step, now or after a while.
    fn go_on(&mut self, id: MachineId) {
        if self.dies() {
            return;
        }
        match self.latency() {
            0 | 1 => self.step_on(id),
            pause => self.at(self.now + pause, Event::Step(self.generation, id)),
        }
    }

    /// The next stage of a machine's step.
    pub(super) fn step_on(&mut self, id: MachineId) {
        if self.dies() {
            return;
        }
        let Some(step) = self.steps.get_mut(&id) else { return };
        let (stage, effect) = (step.stage, step.doing.effect);
        step.stage = match stage {
            Stage::Write => Stage::Before,
            Stage::Before => Stage::Within,
            Stage::Within | Stage::After => Stage::After,
        };
        let ended = match (stage, effect) {
            (Stage::Write, _) => self.write(id),
            (_, None) => Some(Ok(())),
            (_, Some(effect)) => self.act(id, effect, stage),
        };
        match ended {
            Some(result) => self.end(id, result),
            None if self.steps.contains_key(&id) => self.go_on(id),
            None => {}
        }
    }

    /// The write of a step, where it has one. Gives nothing: a step that is not written has ended.
    fn write(&mut self, id: MachineId) -> Option<Result<(), Failure>> {
        let step = self.steps.get(&id).expect("the step is under way");
        let (planned_at, link) = (step.planned_at, step.doing.link);
        if !step.changes.is_empty() {
            if self.revisions.get(&id) != Some(&step.revision) {
                self.over(id, Outcome::Conflict);
                return None;
            }
            if self.faults.happens(Fault::State) {
                self.over(id, Outcome::NotWritten(StateError::Full));
                return None;
            }
            let changes = std::mem::take(&mut self.steps.get_mut(&id).expect("as above").changes);
            let machine = self.machines.get_mut(&id).expect("its revision was compared");
            for change in &changes {
                change.apply(machine, planned_at);
            }
            let state = machine.state;
            self.changed_record(id);
            self.digest.say(self.now, state.as_str(), id);
            if state.is_terminal() {
                self.check_closed(id);
            }
        }
        if link {
            self.link(id);
        }
        None
    }

    /// Takes note that a record is another.
    pub(super) fn changed_record(&mut self, id: MachineId) {
        *self.revisions.entry(id).or_default() += 1;
        (self.changed, self.dirty) = (true, true);
    }

    fn link(&mut self, id: MachineId) {
        let lease = self.lease_of(id);
        let up_at = self.now + self.rng.range(0, 50);
        self.links.entry(id).or_insert(Link { up_at, lease, ..Link::default() });
        self.touch_link(id);
    }

    fn lease_of(&self, id: MachineId) -> (Option<Ms>, u64) {
        let lease = self.machines.get(&id).map(|machine| machine.lease);
        lease.map_or((Some(0), 0), |Lease { deadline, grace }| {
            (deadline.map(|at| at.0), grace.as_millis() as u64)
        })
    }

    /// A stage of an effect; gives its end where it has ended.
    fn act(&mut self, id: MachineId, effect: Effect, stage: Stage) -> Option<Result<(), Failure>> {
        if self.faults.happens(Fault::Effect) {
            if let (Effect::Create { .. }, Some(driver)) = (effect, self.driver_of(id)) {
                // A driver whose creation fails leaves nothing; whoever fails after it has answered leaves it all.
                if stage != Stage::After {
                    self.host.remove(&(driver, id));
                }
            }
            let retry = !matches!(effect, Effect::Create { .. }) || !self.faults.happens(Fault::ForGood);
            return Some(Err(Failure { message: "seeded".to_owned(), retry }));
        }
        if stage == Stage::After {
            return Some(Ok(()));
        }
        match effect {
            Effect::Create { attempt } => self.create(id, attempt, stage),
            Effect::Destroy { driver } => self.destroy(id, driver, stage),
            Effect::Start => return self.talk(id, stage, |vm, now, rng| vm.start(now, rng)),
            Effect::SetLease => {
                let lease = self.lease_of(id);
                if let Some(link) = self.links.get_mut(&id) {
                    link.lease = lease;
                }
                return self.talk(id, stage, |vm, now, _| vm.tell_lease(lease, now));
            }
            Effect::Stop { grace } => {
                if stage == Stage::Before {
                    self.check_may_end(id, "told to stop");
                }
                return self.talk(id, stage, |vm, now, rng| vm.stop(grace.as_millis() as u64, now, rng));
            }
            Effect::Forget => {
                if stage == Stage::Within {
                    self.forget(id);
                }
            }
        }
        None
    }

    fn driver_of(&self, id: MachineId) -> Option<DriverName> {
        self.machines.get(&id)?.placement.as_ref().map(|(_, driver)| *driver)
    }

    fn create(&mut self, id: MachineId, attempt: u32, stage: Stage) {
        let Some(driver) = self.driver_of(id) else { return };
        let key = (driver, id);
        if self.host.get(&key).is_some_and(|vm| vm.complete && vm.attempt == attempt) {
            return;
        }
        self.digest.say(self.now, if stage == Stage::Before { "make" } else { "made" }, id);
        let vm = match stage {
            Stage::Before => Vm::partial(attempt, self.now, &mut self.rng),
            _ => {
                let restarts = self.machines.get(&id).is_some_and(|machine| machine.kind == Kind::Service);
                Vm::new(attempt, restarts, self.lease_of(id), self.now, &mut self.rng)
            }
        };
        self.host.insert(key, vm);
        self.check_made(id);
        self.touch(key);
    }

    fn destroy(&mut self, id: MachineId, driver: DriverName, stage: Stage) {
        let key = (driver, id);
        self.digest.say(self.now, "destroy", id);
        let hides = self.plant == Plant::DestroyHides;
        match stage {
            Stage::Before => {
                if self.host.get(&key).is_some_and(Vm::works) {
                    self.check_may_end(id, "destroyed");
                }
                if let Some(vm) = self.host.get_mut(&key).filter(|vm| vm.alive && !hides) {
                    vm.alive = false;
                    self.check_died(id, key);
                }
                self.links.remove(&id);
                if self.reports.remove(&id).is_some() {
                    self.heard_anew = true;
                }
            }
            _ if !hides => drop(self.host.remove(&key)),
            _ => {}
        }
    }

    /// Does something with a machine that can be talked to.
    fn talk(
        &mut self,
        id: MachineId,
        stage: Stage,
        what: impl FnOnce(&mut Vm, Ms, &mut crate::rng::Rng),
    ) -> Option<Result<(), Failure>> {
        if stage != Stage::Before {
            return None;
        }
        let now = self.now;
        let linked = self.links.get(&id).is_some_and(|link| link.linked);
        let key = self.driver_of(id).map(|driver| (driver, id));
        let vm = key.and_then(|key| self.host.get_mut(&key)).filter(|vm| linked && vm.speaks(now));
        let Some(vm) = vm else {
            return Some(Err(Failure { message: "not linked".to_owned(), retry: true }));
        };
        what(vm, now, &mut self.rng);
        self.digest.say(now, "told", id);
        self.touch(key.expect("it was looked up by it"));
        None
    }

    fn forget(&mut self, id: MachineId) {
        self.check_forgotten(id);
        if let Some(machine) = self.machines.remove(&id) {
            self.names.remove(&machine.name.number().expect("all have numbers"));
        }
        self.revisions.remove(&id);
        self.truth.remove(&id);
        (self.changed, self.dirty) = (true, true);
        self.lives.lifecycles += 1;
    }

    fn end(&mut self, id: MachineId, result: Result<(), Failure>) {
        let lease = self.machines.get(&id).map(|machine| machine.lease);
        self.over(id, Outcome::Done { lease, result });
    }

    fn over(&mut self, id: MachineId, outcome: Outcome) {
        let Some(step) = self.steps.remove(&id) else { return };
        self.known.end(&step.doing, outcome, Timestamp(self.now));
        self.dirty = true;
    }
}

/// The goal that a record has once these changes are written.
fn goal_after(changes: &[Change], stored: Goal) -> Goal {
    let ends = changes.iter().rev().find_map(|change| match change {
        Change::End { since, grace, reason } => {
            Some(Goal::Stop { since: *since, grace: *grace, reason: *reason })
        }
        _ => None,
    });
    ends.unwrap_or(stored)
}

/// Events of a layer that has no event log: [`calve_server::reconcile::Known::hear`] tells them to nobody.
pub(super) struct Quiet;

const NEVER: &str = "effects are simulated as events, not called";

#[async_trait]
impl Effects for Quiet {
    fn now(&self) -> Timestamp {
        unreachable!("{NEVER}")
    }
    async fn changed(&self, _: Timestamp) {
        unreachable!("{NEVER}")
    }
    async fn drivers(&self) -> Vec<DriverState> {
        unreachable!("{NEVER}")
    }
    async fn list(&self) -> BTreeMap<DriverName, Result<Vec<Found>, EffectError>> {
        unreachable!("{NEVER}")
    }
    fn agents(&self) -> BTreeMap<MachineId, AgentReport> {
        unreachable!("{NEVER}")
    }
    async fn create(&self, _: &MachineRecord) -> Result<(), EffectError> {
        unreachable!("{NEVER}")
    }
    fn link(&self, _: &MachineRecord) {
        unreachable!("{NEVER}")
    }
    async fn start(&self, _: &MachineRecord) -> Result<(), EffectError> {
        unreachable!("{NEVER}")
    }
    async fn set_lease(&self, _: &MachineRecord) -> Result<(), EffectError> {
        unreachable!("{NEVER}")
    }
    async fn stop(&self, _: MachineId, _: Duration) -> Result<(), EffectError> {
        unreachable!("{NEVER}")
    }
    async fn destroy(&self, _: MachineId, _: DriverName) -> Result<(), EffectError> {
        unreachable!("{NEVER}")
    }
    async fn forget(&self, _: MachineId) {
        unreachable!("{NEVER}")
    }
    fn emit(&self, _: MachineId, _: &MachineName, _: What) {}
}
