//! The lower layer: the real plan ([`calve_core::plan`]) and what the loop remembers ([`Known`]), without the loop's tasks,
//! the state's store and tokio. Effects, crashes and time are events in one queue, so that a machine's life takes
//! microseconds and tens of millions of them a run.
//!
//! What it leaves out (compare-and-set over a store, requests, tasks, providers) is the upper layer's: [`crate::simulation`].

mod checks;
mod effects;
mod users;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::hash::Hasher;

use calve_core::plan::{Drivers, List, Listed, On, Plan, Tick, World, plan};
use calve_core::{DriverName, Machine, MachineId, NodeName, State, Timestamp};
use calve_server::reconcile::{AgentReport, Known};

use crate::digest::Digest;
use crate::faults::{Chances, Fault, Faults, Without};
use crate::host::{Ms, Vm};
use crate::link::Link;
use crate::rng::{Rng, mix};
use crate::simulation::Plant;
use crate::truth::Truth;
use effects::{Quiet, Step};

/// The moment at which every simulation begins.
const BEGIN: Ms = 1_700_000_000_000;
/// Pause between lists while every machine is heard, as the loop has it.
const LIST_EVERY: Ms = 10_000;
/// The same while some machine is not heard.
const LIST_SOON: Ms = 1_000;
/// Longest pause between rounds, as the loop has it.
const ROUND_EVERY: Ms = 60_000;
/// How long everything may take to end once nothing goes wrong any more.
const QUIET_MAX: Ms = 3_600_000;
/// Longest time without a server.
const DOWN_MAX: Ms = 90_000;
/// One round of so many is planned twice, to see that the second plan is empty.
const PLANNED_TWICE: u64 = 32;

/// How one such simulation went.
#[derive(Debug, Default)]
pub struct Lives {
    /// What must not be, and was.
    pub violations: Vec<String>,
    /// Machines that were declared, ended, and of which nothing was left.
    pub lifecycles: u64,
    /// Plans that were made.
    pub plans: u64,
    /// Servers that crashed.
    pub crashes: u64,
    /// Faults that took place.
    pub faults: u64,
    /// Stands for everything that happened.
    pub digest: u64,
    /// What happened, where it was to be kept.
    pub trace: Vec<String>,
}

/// What happens at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    User,
    /// The next stage of a machine's step, of this server.
    Step(u32, MachineId),
    Vm(DriverName, MachineId),
    Link(MachineId),
    Wake,
    /// A list that was asked for by this server sees the host.
    ListSees(u32),
    /// Its answer comes.
    ListCame(u32),
    Restart,
}

type Lists = BTreeMap<DriverName, List>;

pub(crate) struct Sim {
    now: Ms,
    rng: Rng,
    faults: Faults,
    plant: Plant,
    digest: Digest,
    queue: BinaryHeap<Reverse<(Ms, u64, Event)>>,
    events: u64,
    violations: Vec<String>,
    node: NodeName,

    // What survives a server.
    machines: BTreeMap<MachineId, Machine>,
    revisions: BTreeMap<MachineId, u64>,
    names: BTreeSet<u32>,
    host: BTreeMap<(DriverName, MachineId), Vm>,
    truth: BTreeMap<MachineId, Truth>,
    recent: Vec<MachineId>,
    users_left: u64,
    users_seed: u64,

    // What one server has.
    generation: u32,
    up_since: Option<Ms>,
    known: Known,
    drivers: Drivers,
    lists: Lists,
    links: BTreeMap<MachineId, Link>,
    reports: BTreeMap<MachineId, AgentReport>,
    steps: BTreeMap<MachineId, Step>,
    listing: Option<(Tick, Lists)>,
    listing_tick: Tick,
    listed_at: Option<Ms>,
    wake_at: Ms,
    heard_anew: bool,
    changed: bool,
    dirty: bool,

    lives: Lives,
}

/// Simulates one world: users take so many steps, then everything ends.
pub fn run(seed: u64, steps: u64, plant: Plant, without: &Without, keep_trace: bool) -> Lives {
    let mut sim = Sim::new(seed, steps, plant, without.clone(), keep_trace);
    sim.chaos();
    sim.quiet();
    let Sim { mut lives, mut digest, violations, faults, .. } = sim;
    (lives.digest, lives.trace) = digest.take();
    (lives.violations, lives.faults) = (violations, faults.count());
    lives
}

impl Sim {
    fn new(seed: u64, steps: u64, plant: Plant, without: Without, keep_trace: bool) -> Self {
        let mut rng = Rng::new(mix(seed, 0));
        let chances = Chances::seeded(&mut rng);
        Self {
            now: BEGIN,
            faults: Faults::new(seed, chances, without),
            plant,
            digest: Digest::new(keep_trace),
            queue: BinaryHeap::new(),
            events: 0,
            violations: Vec::new(),
            node: "local".parse().expect("a name"),
            machines: BTreeMap::new(),
            revisions: BTreeMap::new(),
            names: BTreeSet::new(),
            host: BTreeMap::new(),
            truth: BTreeMap::new(),
            recent: Vec::new(),
            users_left: steps,
            users_seed: rng.next(),
            generation: 1,
            up_since: Some(BEGIN),
            known: Known::default(),
            drivers: every_driver(BEGIN),
            lists: Lists::new(),
            links: BTreeMap::new(),
            reports: BTreeMap::new(),
            steps: BTreeMap::new(),
            listing: None,
            listing_tick: Tick::default(),
            listed_at: None,
            wake_at: Ms::MAX,
            heard_anew: false,
            changed: true,
            dirty: true,
            lives: Lives::default(),
            rng,
        }
    }

    /// Users live, and things go wrong.
    fn chaos(&mut self) {
        self.at(self.now, Event::User);
        // What is found is enough: a world that is broken may never come to an end.
        while self.users_left > 0 && self.violations.is_empty() {
            self.advance();
        }
    }

    /// Nothing goes wrong any more: everything ends by itself, but for leases without an end.
    fn quiet(&mut self) {
        self.faults.calm();
        if self.up_since.is_none() {
            self.restart();
        }
        self.end_endless();
        let end = self.now + QUIET_MAX;
        while self.now < end && !(self.machines.is_empty() && self.host.is_empty() && self.steps.is_empty()) {
            if !self.violations.is_empty() || !self.advance() {
                break;
            }
            self.remove_ended();
        }
        self.check_end();
    }

    fn at(&mut self, when: Ms, event: Event) {
        self.events += 1;
        self.queue.push(Reverse((when, self.events, event)));
    }

    /// Does everything that happens at the next moment, and then a round where there is reason for one.
    fn advance(&mut self) -> bool {
        let Some(Reverse((now, ..))) = self.queue.peek() else { return false };
        self.now = *now;
        while let Some(Reverse((when, ..))) = self.queue.peek()
            && *when <= self.now
        {
            let Reverse((_, _, event)) = self.queue.pop().expect("it was peeked at");
            self.happen(event);
        }
        if self.dirty && self.up_since.is_some() {
            self.round();
        }
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::User => self.user(),
            Event::Step(generation, id) if generation == self.generation => self.step_on(id),
            Event::Vm(driver, id) => self.touch((driver, id)),
            Event::Link(id) => self.touch_link(id),
            Event::Wake => {
                self.dirty |= self.wake_at <= self.now;
            }
            Event::ListSees(generation) if generation == self.generation => self.list_sees(),
            Event::ListCame(generation) if generation == self.generation => self.list_came(),
            Event::Restart => self.restart(),
            Event::Step(..) | Event::ListSees(_) | Event::ListCame(_) => {}
        }
    }

    /// A moment at which the server may die; gives whether it did.
    fn dies(&mut self) -> bool {
        let dies = self.faults.happens(Fault::Crash);
        if dies {
            self.crash();
        }
        dies
    }

    fn crash(&mut self) {
        self.digest.line(self.now, "crash");
        self.lives.crashes += 1;
        self.generation += 1;
        self.up_since = None;
        self.known = Known::default();
        (self.lists, self.listing, self.listed_at) = (Lists::new(), None, None);
        self.links.clear();
        self.reports.clear();
        self.steps.clear();
        let down = if self.rng.chance(500) { self.rng.range(1, 100) } else { self.rng.range(100, DOWN_MAX) };
        self.at(self.now + down, Event::Restart);
    }

    fn restart(&mut self) {
        if self.up_since.is_none() {
            self.up_since = Some(self.now);
            self.drivers = every_driver(self.now);
            (self.dirty, self.changed, self.wake_at) = (true, true, Ms::MAX);
        }
    }

    /// One round of the loop: observe, plan, set going.
    fn round(&mut self) {
        (self.dirty, self.wake_at) = (false, Ms::MAX);
        let now = Timestamp(self.now);
        let lost = std::mem::take(&mut self.heard_anew)
            && self.known.hear(&self.reports, &self.machines, &Quiet, now);
        self.known.hurry(&self.machines, std::mem::take(&mut self.changed));
        let listed_at = self.lists.values().map(|list| list.asked).min();
        self.known.drop_ended(&self.machines, listed_at, now);
        let made = self.plan(now);
        self.digest.write_u64(made.actions.len() as u64);
        let wake = self.look_at_machines(&made, lost).unwrap_or(Ms::MAX);
        let wake = wake.min(made.next_wake.map_or(Ms::MAX, |at| at.0)).min(self.now + ROUND_EVERY);
        self.execute(made);
        if self.up_since.is_some() {
            if self.lives.plans.is_multiple_of(PLANNED_TWICE) {
                self.check_planned_twice(now);
            }
            self.wake_at = wake.max(self.now + 1);
            self.at(self.wake_at, Event::Wake);
        }
    }

    fn plan(&mut self, now: Timestamp) -> Plan {
        self.lives.plans += 1;
        let world = World {
            node: &self.node,
            since: Timestamp(self.up_since.unwrap_or(self.now)),
            machines: &self.machines,
            complete: true,
            sights: &self.known.sights,
            drivers: &self.drivers,
            lists: &self.lists,
        };
        plan(&world, now)
    }

    /// Asks for lists where that is due; gives when it is due next.
    fn look_at_machines(&mut self, plan: &Plan, lost: bool) -> Option<Ms> {
        if self.listing.is_some() {
            return None;
        }
        let mut waiting = plan.waits.iter().filter(|wait| wait.on == On::List);
        let wanted = lost || waiting.clone().any(|wait| self.known.settled(wait.id) > self.listing_tick);
        let mut living = self.machines.values().filter(|machine| !machine.state.is_terminal()).peekable();
        let lives = living.peek().is_some();
        let unheard = waiting.next().is_some()
            || living.any(|machine| machine.state >= State::Booting && !self.known.is_heard(machine.id));
        let due = match self.listed_at {
            None => self.now,
            Some(_) if wanted => self.now,
            Some(at) if unheard => at + LIST_SOON,
            Some(at) if lives => at + LIST_EVERY,
            Some(_) => return None,
        };
        if self.now < due {
            return Some(due);
        }
        self.listed_at = Some(self.now);
        self.listing_tick = self.known.tick();
        self.listing = Some((self.listing_tick, Lists::new()));
        let (sees, came) = (self.latency(), self.latency());
        self.at(self.now + sees, Event::ListSees(self.generation));
        self.at(self.now + sees + came, Event::ListCame(self.generation));
        None
    }

    /// The list is what the host has at some moment between the question and the answer.
    fn list_sees(&mut self) {
        let tick = self.listing_tick;
        let mut lists: Lists = DriverName::ALL.into_iter().map(|driver| (driver, empty(tick))).collect();
        let hides = self.plant == Plant::ListHidesLiving;
        for (&(driver, id), vm) in self.host.iter().filter(|(_, vm)| !(hides && vm.alive)) {
            let machines = &mut lists.get_mut(&driver).expect("every driver has a list").machines;
            let alive = vm.alive || self.known.is_heard(id);
            machines.insert(id, Listed { attempt: vm.attempt, alive, ended: None });
        }
        for driver in DriverName::ALL {
            if self.faults.happens(Fault::List) {
                lists.remove(&driver);
            }
        }
        self.listing = Some((tick, lists));
    }

    fn list_came(&mut self) {
        if let Some((_, lists)) = self.listing.take() {
            if lists.len() < DriverName::ALL.len() {
                self.listed_at = Some(self.now);
            }
            self.lists = lists;
            self.dirty = true;
        }
    }

    /// How long something takes: mostly nothing.
    fn latency(&mut self) -> Ms {
        if self.faults.happens(Fault::Slow) { self.rng.range(100, 20_000) } else { self.rng.range(0, 4) }
    }

    /// Lets a machine on a host do what is due, and whoever is linked to it hear of it.
    fn touch(&mut self, key: (DriverName, MachineId)) {
        if let Some(vm) = self.host.get_mut(&key) {
            let (alive, now) = (vm.alive, self.now);
            let due = vm.step(now, &mut self.rng);
            if alive && !vm.alive {
                self.check_died(key.1, key);
            }
            if let Some(due) = due {
                self.at(due, Event::Vm(key.0, key.1));
            }
        }
        self.touch_link(key.1);
    }

    fn touch_link(&mut self, id: MachineId) {
        let (now, breaks) = (self.now, self.faults.chance(Fault::LinkBreaks));
        let Some(link) = self.links.get_mut(&id) else { return };
        let vm = DriverName::ALL.into_iter().find(|driver| {
            let vm = self.host.get(&(*driver, id));
            vm.is_some_and(|vm| vm.speaks(now))
        });
        let vm = vm.and_then(|driver| self.host.get_mut(&(driver, id)));
        let due = link.step(vm, now, &mut self.rng, breaks);
        let report = link.report();
        if self.reports.get(&id) != Some(&report) {
            self.reports.insert(id, report);
            (self.heard_anew, self.dirty) = (true, true);
        }
        if let Some(due) = due {
            self.at(due.max(now + 1), Event::Link(id));
        }
    }

    fn violation(&mut self, what: String) {
        self.digest.note(self.now, || format!("VIOLATION {what}"));
        if !self.violations.contains(&what) {
            self.violations.push(what);
        }
    }
}

fn empty(asked: Tick) -> List {
    List { asked, whole: true, machines: BTreeMap::new() }
}

fn every_driver(now: Ms) -> Drivers {
    let usable = DriverName::ALL.into_iter().map(|driver| (driver, Ok(()))).collect();
    Drivers { as_of: Some(Timestamp(now)), usable }
}
