//! Users of the lower layer: they change records at once, and have every answer.

use std::time::Duration;

use calve_core::{
    DriverName, Goal, Kind, Lease, Machine, MachineId, MachineName, Runs, State, StopReason, Timestamp,
};

use super::{Event, Sim};
use crate::rng::{Rng, mix};
use crate::truth::Truth;

/// Machines at once: more would be planned in each round, and meet no others.
const LIVING_MAX: usize = 8;
/// Of how many of the last machines one is chosen.
const RECENT: usize = 8;

impl Sim {
    /// A user's next step, and when the one after it comes.
    pub(super) fn user(&mut self) {
        if self.users_left == 0 {
            return;
        }
        if self.up_since.is_none() {
            return self.at(self.now + 1_000, Event::User);
        }
        self.users_left -= 1;
        let mut rng = Rng::new(mix(self.users_seed, self.users_left));
        if !self.faults.without.steps.contains(&self.users_left) {
            self.wish(&mut rng);
        }
        self.remove_ended();
        let pause = if rng.chance(300) { 0 } else { rng.range(1, 6_000) };
        self.at(self.now + pause, Event::User);
    }

    fn wish(&mut self, rng: &mut Rng) {
        let kind = rng.range(0, 10);
        if (kind < 7 && self.machines.len() < LIVING_MAX) || self.recent.is_empty() {
            return self.declare(rng);
        }
        let id = self.recent[rng.range(0, self.recent.len() as u64) as usize];
        let grace = rng.chance(500).then(|| Duration::from_millis(rng.range(0, 8_000)));
        match kind {
            0..=5 => self.ask_to_stop(id, grace, false),
            6..=7 => self.extend(id, rng.range(1, 60_000)),
            _ => self.ask_to_stop(id, grace, true),
        }
    }

    fn declare(&mut self, rng: &mut Rng) {
        let number = (1..).find(|n| !self.names.contains(n)).expect("there are fewer machines than numbers");
        let id = MachineId::new(Timestamp(self.now), u128::from(rng.next()));
        let kind = rng.pick(&[Kind::Job, Kind::Job, Kind::Service, Kind::System]);
        let deadline = (!rng.chance(100)).then(|| Timestamp(self.now + rng.range(1_000, 120_000)));
        let grace = rng.range(0, 10_000);
        let lease = Lease { deadline, grace: Duration::from_millis(grace) };
        let machine = Machine {
            id,
            name: MachineName::numbered(number),
            kind,
            runs: if kind == Kind::System { Runs::Base } else { Runs::Program },
            state: State::Declared,
            goal: Goal::Run,
            lease,
            wanted_driver: rng.chance(200).then(|| rng.pick(&DriverName::ALL)),
            placement: None,
            attempt: 0,
            exit: None,
            created_at: Timestamp(self.now),
            state_since: Timestamp(self.now),
            remove: false,
        };
        let deadline = deadline.map(|at| (at.0, at.0));
        let truth = Truth { asked_to_end: false, promised_end: None, deadline, grace, acknowledged: true };
        self.digest.say(self.now, "declared", id);
        self.names.insert(number);
        self.machines.insert(id, machine);
        self.truth.insert(id, truth);
        self.changed_record(id);
        self.recent.push(id);
        if self.recent.len() > RECENT {
            self.recent.remove(0);
        }
    }

    fn ask_to_stop(&mut self, id: MachineId, grace: Option<Duration>, remove: bool) {
        let now = Timestamp(self.now);
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let truth = self.truth.get_mut(&id).expect("known since it was declared");
        truth.asked_to_end = true;
        let grace = grace.unwrap_or(machine.lease.grace);
        machine.remove |= remove;
        if !machine.state.is_terminal() {
            machine.goal = match machine.goal {
                Goal::Run => Goal::Stop { since: now, grace, reason: StopReason::Requested },
                Goal::Stop { since, grace: known, reason } => {
                    let sooner = now.after(grace) < since.after(known);
                    Goal::Stop {
                        since,
                        grace: if sooner { now.after(grace).since(since) } else { known },
                        reason,
                    }
                }
            };
        }
        if let Goal::Stop { since, grace, .. } = machine.goal {
            truth.promised_end = Some(since.after(grace).0);
        }
        self.digest.say(self.now, "asked to stop", id);
        self.changed_record(id);
    }

    fn extend(&mut self, id: MachineId, by: u64) {
        let now = Timestamp(self.now);
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let Some(deadline) = machine.lease.deadline.filter(|at| *at > now) else { return };
        if machine.goal != Goal::Run || machine.state.is_terminal() {
            return;
        }
        let later = deadline.after(Duration::from_millis(by));
        machine.lease.deadline = Some(later);
        if let Some(truth) = self.truth.get_mut(&id) {
            truth.deadline = Some((later.0, later.0));
        }
        self.digest.say(self.now, "extended", id);
        self.changed_record(id);
    }

    /// Asks for the records of ended machines to go, so that planning is for those that live.
    pub(super) fn remove_ended(&mut self) {
        if self.up_since.is_none() {
            return;
        }
        let ended = |machine: &&mut Machine| machine.state.is_terminal() && !machine.remove;
        let mut changed = Vec::new();
        for machine in self.machines.values_mut().filter(ended) {
            machine.remove = true;
            changed.push(machine.id);
        }
        changed.into_iter().for_each(|id| self.changed_record(id));
    }

    /// Ends every machine whose lease has no end.
    pub(super) fn end_endless(&mut self) {
        let endless = self.machines.values().filter(|machine| machine.lease.deadline.is_none());
        let endless: Vec<MachineId> = endless.map(|machine| machine.id).collect();
        endless.into_iter().for_each(|id| self.ask_to_stop(id, None, true));
    }
}
