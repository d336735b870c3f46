//! Rounds of the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use calve_core::plan::{Action, Change, Drivers, List, Listed, On, Plan, Tick, World, plan};
use calve_core::{DriverName, Goal, MachineId, NodeName, State as MachineState, Timestamp};
use calve_wire::event::What;
use tokio::task::{Id, JoinError, JoinSet};

use super::known::{Doing, Known, broken};
use super::records::{self, Row, View};
use super::step::{Effect, Outcome, Step};
use super::{DriverState, EffectError, Effects};
use crate::state::{Revision, State, StateError};

/// The node that this server's own drivers are.
const NODE: &str = "local";
/// Creations at once: each takes CPU and memory, and more of them only slow each other down.
const CREATES_MAX: usize = 32;
/// Other steps at once: they mostly wait for agents and processes.
const STEPS_MAX: usize = 512;
/// How many of them are kept for stops and destructions: a server that begins tells each machine its lease, and whose lease
/// ends meanwhile must not wait behind thousands of those.
const ENDS_RESERVED: usize = 128;
/// Pause between lists while all living machines are heard: finds what died without a word.
const LIST_EVERY: Duration = Duration::from_secs(10);
/// The same while some machine is not heard, and after a list that failed.
const LIST_SOON: Duration = Duration::from_secs(1);
/// Pause before drivers that are not known yet are asked for again.
const DRIVERS_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between rounds: heals a bell that was not rung.
const ROUND_EVERY: Duration = Duration::from_secs(60);
/// Longest rest after a round: beyond it the host is so busy that waiting would not help requests either.
const REST_MAX: Duration = Duration::from_millis(100);
/// A round of at least so long is felt by requests, and followed by a rest of [`LONG_REST`] times as long as it took.
const ROUND_SHORT: Duration = Duration::from_millis(4);
/// See [`ROUND_SHORT`].
const LONG_REST: u32 = 3;
/// Steps that are begun before requests and other steps have their turn: together they take a millisecond or so.
const BEGUN_AT_ONCE: usize = 32;
/// A list is followed by a pause of so many times as long as it took, up to [`LIST_EVERY`]: listing thousands of machines
/// means looking at thousands of processes.
const LIST_REST: u32 = 10;
/// Pause after the state could not be read.
const STATE_PAUSE: Duration = Duration::from_secs(1);

type Lists = BTreeMap<DriverName, List>;
type Rows = BTreeMap<MachineId, Row>;
type Found = BTreeMap<DriverName, Result<List, EffectError>>;

/// The loop's own state; all of it can be lost.
pub(super) struct Rounds {
    state: Arc<dyn State>,
    view: View,
    /// The moment that the last round planned for.
    planned: Revision,
    effects: Arc<dyn Effects>,
    node: NodeName,
    since: Timestamp,
    known: Known,
    /// How many changes the reports of agents had when they were last heard.
    heard: Option<u64>,
    drivers: Drivers,
    lists: Lists,
    tasks: JoinSet<Done>,
    /// The machines whose steps are under way.
    doing: BTreeMap<Id, Doing>,
    listing: Look,
    /// When the last list was asked for.
    listing_tick: Tick,
    asking: Look,
}

/// When something was last looked at, and whether it is just being.
#[derive(Default)]
struct Look {
    under_way: bool,
    began: Option<Timestamp>,
    failed: bool,
    /// How long the last one took.
    took: Duration,
}

/// What a task brought.
enum Done {
    Step(Doing, Outcome),
    Listed(Found),
    Drivers(Timestamp, Vec<DriverState>),
}

/// What woke a round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Woken {
    Task,
    Bell,
}

impl Rounds {
    pub fn new(state: Arc<dyn State>, view: View, effects: Arc<dyn Effects>) -> Self {
        Self {
            since: effects.now(),
            state,
            planned: view.seen(),
            view,
            effects,
            node: NODE.parse().expect("the node's name is a DNS label"),
            known: Known::default(),
            heard: None,
            drivers: Drivers::default(),
            lists: Lists::new(),
            tasks: JoinSet::new(),
            doing: BTreeMap::new(),
            listing: Look::default(),
            listing_tick: Tick::default(),
            asking: Look::default(),
        }
    }

    pub async fn run(&mut self) {
        while let Err(error) = self.mend().await {
            tracing::error!(error = &error as &dyn std::error::Error, "the state cannot be read");
            tokio::time::sleep(STATE_PAUSE).await;
        }
        let mut woken = Woken::Bell;
        loop {
            let began = self.effects.now();
            let wake = match self.round(woken).await {
                Ok(wake) => wake,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the state cannot be read");
                    self.effects.now().after(STATE_PAUSE)
                }
            };
            // A round over thousands of machines takes milliseconds, in which requests wait: it is followed by a rest at least
            // as long as itself, in which what happens gathers for the next.
            let took = self.effects.now().since(began);
            if !took.is_zero() {
                let rest = if took < ROUND_SHORT { took } else { took * LONG_REST };
                tokio::time::sleep(rest.min(REST_MAX)).await;
            }
            woken = self.wait(wake).await;
        }
    }

    /// Mends what a crash left behind: claimed names without machines, and ends that were not announced.
    async fn mend(&mut self) -> Result<(), records::RecordsError> {
        self.view.refresh(&*self.state).await?;
        records::sweep(&*self.state, &self.view, self.effects.now()).await?;
        let ended: Vec<_> = {
            let content = self.view.content();
            let ended = content.machines.values().filter(|machine| machine.state.is_terminal());
            ended.map(|machine| (machine.id, machine.state_since)).collect()
        };
        for id in self.effects.unannounced(&ended).await {
            if let Some((_, record)) = self.view.record(id) {
                self.effects.emit(id, &record.name, What::Stopped);
            }
        }
        Ok(())
    }

    /// Observes, plans, and sets everything going that the plan says. Gives when to look again at the latest.
    async fn round(&mut self, woken: Woken) -> Result<Timestamp, StateError> {
        self.view.refresh(&*self.state).await?;
        // Taken before the reports: what changes in between is heard again.
        let changes = self.effects.agents_changes();
        let news = changes.is_none() || changes != self.heard;
        let reports = news.then(|| self.effects.agents());
        self.heard = changes;
        let now = self.effects.now();
        let view = self.view.clone();
        let (mut plan, chosen, rows, lost, unheard, living) = {
            let content = view.content();
            // What came after it is for the next round, also where a request has read it since.
            let changed = std::mem::replace(&mut self.planned, content.seen) != content.seen;
            let machines = &content.machines;
            let lost =
                reports.is_some_and(|reports| self.known.hear(&reports, machines, &*self.effects, now));
            self.known.hurry(machines, changed);
            self.known.drop_ended(machines, self.listed_at(), now);
            let world = World {
                node: &self.node,
                since: self.since,
                machines,
                complete: content.complete(),
                sights: &self.known.sights,
                drivers: &self.drivers,
                lists: &self.lists,
            };
            let mut plan = plan(&world, now);
            let living = machines.values().filter(|machine| !machine.state.is_terminal());
            // Of those in which somebody should speak.
            let unheard = living.clone().any(|machine| {
                let speaks = machine.state >= MachineState::Booting && !machine.runs.is_adopted();
                speaks && !self.known.is_heard(machine.id)
            });
            let living = living.count() > 0;
            // The very records that were planned for: a newer one must lose its compare-and-set.
            let chosen = self.choose(std::mem::take(&mut plan.actions));
            let ids = chosen.iter().filter_map(|actions| actions.first()).map(Action::id);
            let rows: Rows = ids.filter_map(|id| Some((id, content.row(id)?))).collect();
            (plan, chosen, rows, lost, unheard, living)
        };
        let mut wake = now.after(ROUND_EVERY);
        wake = wake.min(plan.next_wake.unwrap_or(wake));
        wake = wake.min(self.look_at_machines(&plan, lost, unheard, living, now).unwrap_or(wake));
        wake = wake.min(self.look_at_drivers(&plan, woken, now).unwrap_or(wake));
        self.view.set_waits(std::mem::take(&mut plan.waits));
        self.execute(chosen, &rows, now).await;
        Ok(wake)
    }

    /// The actions for which there is room, by machine; those that end one come first. What finds no room is planned again
    /// when a step has ended.
    fn choose(&self, actions: Vec<Action>) -> Vec<Vec<Action>> {
        let creating = |doing: &&Doing| matches!(doing.effect, Some(Effect::Create { .. }));
        let mut creates = self.doing.values().filter(creating).count();
        let room = STEPS_MAX.saturating_sub(self.doing.len());
        let room_for_others = room.saturating_sub(ENDS_RESERVED);
        let (mut ends, mut others) = (Vec::new(), Vec::new());
        let mut actions = actions.into_iter().peekable();
        let mut of_one = Vec::new();
        while let Some(first) = actions.next() {
            let id = first.id();
            of_one.clear();
            of_one.push(first);
            while let Some(action) = actions.next_if(|action| action.id() == id) {
                of_one.push(action);
            }
            if of_one.iter().any(ends_a_machine) {
                if ends.len() < room {
                    ends.push(std::mem::take(&mut of_one));
                }
                continue;
            }
            let create = of_one.iter().any(|action| matches!(action, Action::Create { .. }));
            if others.len() < room_for_others && !(create && creates >= CREATES_MAX) {
                creates += usize::from(create);
                others.push(std::mem::take(&mut of_one));
            }
        }
        others.truncate(room.saturating_sub(ends.len()));
        ends.append(&mut others);
        ends
    }

    /// Sets the actions going, those of one machine as one step.
    async fn execute(&mut self, chosen: Vec<Vec<Action>>, rows: &Rows, now: Timestamp) {
        for (begun, actions) in chosen.into_iter().enumerate() {
            let Some(id) = actions.first().map(Action::id) else { continue };
            let mut step = self.step(id, rows, now);
            for action in actions {
                step.effect = step.effect.or(Effect::of(&action));
                match action {
                    Action::Write { changes, .. } => step.changes = changes,
                    Action::Link { .. } => step.link = true,
                    _ => {}
                }
            }
            self.begin(step);
            if (begun + 1) % BEGUN_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn step(&self, id: MachineId, rows: &Rows, now: Timestamp) -> Step {
        Step {
            state: self.state.clone(),
            view: self.view.clone(),
            effects: self.effects.clone(),
            id,
            record: rows.get(&id).map(|row| (row.revision, row.record())),
            changes: Vec::new(),
            link: false,
            effect: None,
            now,
        }
    }

    fn begin(&mut self, step: Step) {
        let doing = Doing {
            id: step.id,
            effect: step.effect,
            link: step.link,
            goal: goal_after(&step),
            fresh: step.changes.iter().any(|change| matches!(change, Change::Creating { .. })),
        };
        self.known.begin(&doing);
        let task = self.tasks.spawn(async move { Done::Step(doing, step.run().await) });
        self.doing.insert(task.id(), doing);
    }

    /// Lists all machines in a task, when that is due. Gives when it is due next.
    fn look_at_machines(
        &mut self,
        plan: &Plan,
        lost: bool,
        unheard: bool,
        living: bool,
        now: Timestamp,
    ) -> Option<Timestamp> {
        if self.listing.under_way {
            return None;
        }
        let mut waiting = plan.waits.iter().filter(|wait| wait.on == On::List);
        let wanted = lost || waiting.clone().any(|wait| self.known.settled(wait.id) > self.listing_tick);
        let unheard = unheard || waiting.next().is_some();
        let soon = self.listing.took + (self.listing.took * LIST_REST).clamp(LIST_SOON, LIST_EVERY);
        let due = match self.listing.began {
            None => now,
            Some(began) if self.listing.failed => began.after(soon),
            Some(began) if wanted => began.after((self.listing.took * LIST_REST).min(LIST_SOON)),
            Some(began) if unheard => began.after(soon),
            Some(began) if living => began.after(LIST_EVERY),
            Some(_) => return None,
        };
        if now < due {
            return Some(due);
        }
        self.listing = Look { under_way: true, began: Some(now), failed: false, took: Duration::ZERO };
        self.listing_tick = self.known.tick();
        let (tick, effects) = (self.listing_tick, self.effects.clone());
        let heard: BTreeSet<MachineId> = self.known.heard().collect();
        self.tasks.spawn(async move { Done::Listed(list(&*effects, tick, &heard).await) });
        None
    }

    /// Asks for the drivers in a task, when that is due. Gives when it is due next.
    fn look_at_drivers(&mut self, plan: &Plan, woken: Woken, now: Timestamp) -> Option<Timestamp> {
        if self.asking.under_way {
            return None;
        }
        let waiting: Vec<MachineId> =
            plan.waits.iter().filter(|wait| wait.on == On::Drivers).map(|wait| wait.id).collect();
        let due = match self.asking.began {
            None => now,
            Some(_) if waiting.is_empty() => return None,
            Some(_) if woken == Woken::Bell => now,
            Some(began) => began.after(DRIVERS_PAUSE),
        };
        if now < due {
            return Some(due);
        }
        self.asking = Look { under_way: true, began: Some(now), failed: false, took: Duration::ZERO };
        let effects = self.effects.clone();
        self.tasks.spawn(async move { Done::Drivers(now, effects.drivers().await) });
        None
    }

    async fn wait(&mut self, wake: Timestamp) -> Woken {
        let (state, effects) = (self.state.clone(), self.effects.clone());
        let seen = self.planned;
        let woken = tokio::select! {
            biased;
            Some(done) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => {
                self.take(done);
                Woken::Task
            }
            _ = state.changed(seen) => Woken::Bell,
            () = effects.changed(wake) => Woken::Bell,
        };
        while let Some(done) = self.tasks.try_join_next_with_id() {
            self.take(done);
        }
        woken
    }

    fn take(&mut self, done: Result<(Id, Done), JoinError>) {
        let now = self.effects.now();
        match done {
            Ok((task, Done::Step(doing, outcome))) => {
                self.doing.remove(&task);
                self.known.end(&doing, outcome, now);
            }
            Ok((_, Done::Listed(found))) => {
                self.listing.took = self.listing.began.map_or(Duration::ZERO, |began| now.since(began));
                self.take_lists(found);
            }
            Ok((_, Done::Drivers(as_of, drivers))) => {
                self.asking.under_way = false;
                let usable = |state: DriverState| (state.driver, state.unusable.map_or(Ok(()), Err));
                self.drivers =
                    Drivers { as_of: Some(as_of), usable: drivers.into_iter().map(usable).collect() };
            }
            Err(error) => {
                tracing::error!(%error, "a step of the loop broke down");
                match self.doing.remove(&error.id()) {
                    Some(doing) => self.known.end(&doing, broken(), now),
                    None => (self.listing, self.asking) = (failed(now), failed(now)),
                }
            }
        }
    }

    fn take_lists(&mut self, found: Found) {
        self.listing.under_way = false;
        for (driver, result) in found {
            match result {
                Ok(list) => drop(self.lists.insert(driver, list)),
                Err(error) => {
                    tracing::warn!(%driver, "its machines cannot be listed: {}", error.message);
                    self.listing.failed = true;
                    self.lists.remove(&driver);
                }
            }
        }
    }

    /// When the oldest list that is known was asked for.
    fn listed_at(&self) -> Option<Tick> {
        self.lists.values().map(|list| list.asked).min()
    }
}

fn ends_a_machine(action: &Action) -> bool {
    match action {
        Action::Stop { .. } | Action::Destroy { .. } => true,
        Action::Write { changes, .. } => changes.iter().any(|change| matches!(change, Change::End { .. })),
        _ => false,
    }
}

fn failed(now: Timestamp) -> Look {
    Look { under_way: false, began: Some(now), failed: true, took: Duration::ZERO }
}

/// The goal that the step's record has once it is written.
fn goal_after(step: &Step) -> Goal {
    let ends = step.changes.iter().rev().find_map(|change| match change {
        Change::End { since, grace, reason } => {
            Some(Goal::Stop { since: *since, grace: *grace, reason: *reason })
        }
        _ => None,
    });
    let stored = step.record.as_ref().map_or(Goal::Run, |(_, record)| record.to_machine().goal);
    ends.unwrap_or(stored)
}

/// Every driver's machines; those of agents that are heard live.
async fn list(effects: &dyn Effects, asked: Tick, heard: &BTreeSet<MachineId>) -> Found {
    // Asked before: what becomes true meanwhile may not be so of these lists.
    let whole: BTreeSet<DriverName> =
        DriverName::ALL.into_iter().filter(|driver| effects.lists_all(*driver)).collect();
    let listed = |driver, found: calve_node::Found| {
        let alive = heard.contains(&found.id) || effects.is_alive(driver, found);
        let ended = if alive { None } else { effects.ended(driver, found) };
        (found.id, Listed { attempt: found.attempt, alive, ended })
    };
    let lists = effects.list().await.into_iter();
    lists
        .map(|(driver, result)| {
            let list = |found: Vec<calve_node::Found>| {
                let machines = found.into_iter().map(|found| listed(driver, found)).collect();
                List { asked, whole: whole.contains(&driver), machines }
            };
            (driver, result.map(list))
        })
        .collect()
}

#[cfg(test)]
mod tests;
