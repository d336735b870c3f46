//! One machine while its rules run: the record with the changes so far, and at most one effect.

use std::borrow::Cow;
use std::time::Duration;

use super::{Action, Change, Ended, On, Plan, Seen, Sight, Wait, World};
use crate::plan::Phase;
use crate::{DriverName, Goal, Machine, MachineId, State, StopReason, Timestamp};

/// A machine of which nothing is known beyond its record.
pub(super) static UNSEEN: Sight = Sight {
    busy: false,
    settled: super::Tick(0),
    pause_until: None,
    unwritten_until: None,
    ours: false,
    created: None,
    link_asked: false,
    agent: None,
    ended_at: None,
    started: None,
    lease_told: None,
    stop_told: None,
    destroyed: false,
};

pub(super) struct Draft<'a> {
    pub now: Timestamp,
    /// The record with the changes so far; cloned by the first of them.
    pub machine: Cow<'a, Machine>,
    pub sight: &'a Sight,
    pub seen: Seen,
    /// The state before this round.
    stored: State,
    changes: Vec<Change>,
    link: bool,
    effect: Option<Action>,
    waits: Option<Wait>,
    wake: Option<Timestamp>,
}

impl<'a> Draft<'a> {
    pub fn new(world: &World<'a>, machine: &'a Machine, now: Timestamp) -> Self {
        let sight = world.sights.get(&machine.id).unwrap_or(&UNSEEN);
        let seen = match &machine.placement {
            Some((_, driver)) => world.seen(machine.id, *driver, sight, machine.attempt),
            None => Seen::Unknown,
        };
        Self {
            now,
            sight,
            seen,
            stored: machine.state,
            machine: Cow::Borrowed(machine),
            changes: Vec::new(),
            link: false,
            effect: None,
            waits: None,
            wake: None,
        }
    }

    pub fn id(&self) -> MachineId {
        self.machine.id
    }

    pub fn driver(&self) -> Option<DriverName> {
        self.machine.placement.as_ref().map(|(_, driver)| *driver)
    }

    /// Where the workload stands, as far as it was heard.
    pub fn phase(&self) -> Option<Phase> {
        self.sight.agent.and_then(|agent| agent.phase)
    }

    pub fn linked(&self) -> bool {
        self.sight.agent.is_some_and(|agent| agent.linked)
    }

    /// Whether an earlier server may have begun the creation that its record speaks of, and nobody knows how far it came.
    pub fn creation_is_in_doubt(&self) -> bool {
        self.stored == State::Creating && self.sight.created.is_none() && self.seen == Seen::Unknown
    }

    /// Whether it was adopted: nothing of it is ours to start or to stop.
    pub fn is_adopted(&self) -> bool {
        self.machine.runs.is_adopted()
    }

    /// Whether its agent never spoke, so that nothing can have been started.
    pub fn never_heard(&self) -> bool {
        !matches!(self.stored, State::Seeding | State::Running | State::Draining) && self.phase().is_none()
    }

    /// Whether the workload was handed to the agent: then it may run already, whatever was heard of it last. Its output comes
    /// before the word that it runs.
    pub fn handed_over(&self) -> bool {
        matches!(self.sight.started, Some(Ok(()))) || self.sight.agent.is_some_and(|agent| agent.starts > 0)
    }

    /// Whether the machine may run on, as far as has been decided.
    pub fn wanted(&self) -> bool {
        self.machine.goal == Goal::Run
    }

    /// Whether its driver says that nothing of it lives.
    pub fn is_dead(&self) -> bool {
        match self.seen {
            Seen::Unknown => false,
            Seen::Absent => true,
            Seen::Listed(listed) => !listed.alive || listed.attempt != self.machine.attempt,
        }
    }

    /// How it ended by itself, where its driver has it and knows.
    pub fn ended(&self) -> Option<Ended> {
        match self.seen {
            Seen::Listed(listed) if listed.attempt == self.machine.attempt => listed.ended,
            Seen::Listed(_) | Seen::Unknown | Seen::Absent => None,
        }
    }

    pub fn change(&mut self, change: Change) {
        change.apply(self.machine.to_mut(), self.now);
        self.changes.push(change);
    }

    pub fn state(&mut self, state: State) {
        self.change(Change::State(state));
    }

    pub fn end(&mut self, since: Timestamp, grace: Duration, reason: StopReason) {
        self.change(Change::End { since, grace, reason });
    }

    /// Ends the machine because it could not be made or kept.
    pub fn fail(&mut self, message: String) {
        self.end(self.now, Duration::ZERO, StopReason::Failed);
        self.change(Change::Message(message));
    }

    pub fn link(&mut self) {
        self.link = true;
    }

    /// Whether the machine's effect of this round is chosen already.
    pub fn acts(&self) -> bool {
        self.effect.is_some()
    }

    /// Chooses the effect, unless the last one failed a moment ago.
    pub fn act(&mut self, action: Action) {
        match self.sight.pause_until {
            Some(until) if self.now < until => self.wait(On::Retry, Some(until)),
            _ => self.effect = Some(action),
        }
    }

    /// Says what is waited for; the last word of a round counts.
    pub fn wait(&mut self, on: On, until: Option<Timestamp>) {
        self.waits = Some(Wait { id: self.id(), on, until });
        if let Some(until) = until {
            self.wake_at(until);
        }
    }

    /// Looks again at this moment.
    pub fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    pub fn finish(mut self, plan: &mut Plan) {
        let id = self.machine.id;
        if !self.changes.is_empty() {
            if let Some(until) = self.sight.unwritten_until.filter(|until| self.now < *until) {
                // What the changes lead to must not come before them.
                self.wait(On::Retry, Some(until));
                plan.waits.extend(self.waits);
                plan.wake_at(self.wake);
                return;
            }
            plan.actions.push(Action::Write { id, changes: self.changes });
        }
        if self.link {
            plan.actions.push(Action::Link { id });
        }
        match self.effect {
            Some(action) => plan.actions.push(action),
            None => plan.waits.extend(self.waits),
        }
        plan.wake_at(self.wake);
    }
}

impl Plan {
    pub(super) fn wake_at(&mut self, at: Option<Timestamp>) {
        self.next_wake = match (self.next_wake, at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}
