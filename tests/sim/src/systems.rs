//! The systems of hosts: the course that `calve-switch` takes, on hosts whose steps take their time, fail, and end half way.
//!
//! ```text
//!  Hosts (what the server asks) ─▶ HostSystem ─▶ Course (the very decisions) ─▶ what runs, is booted, boots next
//! ```

use std::io;

use calve_agent::course::{Course, Event, Found, Step};
use calve_wire::system::{HostAnswer, HostOrder, HostSwitch, SwitchAction, SwitchOutcome};

use crate::closure::{self, HostStore};
use crate::faults::{Fault, Faults};
use crate::host::Ms;
use crate::rng::Rng;

/// How long a switch may take on its host behind the time to confirm, of each boot: steps and programs that are slow or killed,
/// and the restarts of the way back.
const OVERDUE_MAX: Ms = 400_000;

/// A system, by its number.
pub type System = u64;

/// Systems that users switch to.
pub const SYSTEMS: System = 12;

/// The store path of a system.
pub fn toplevel(system: System) -> String {
    format!("/nix/store/{}", base_name(system))
}

/// The name of that in the store.
pub fn base_name(system: System) -> String {
    format!("{system:0>32}-system")
}

/// The system at a store path.
pub fn system_at(toplevel: &str) -> System {
    toplevel.get(11..43).and_then(|digits| digits.parse().ok()).expect("a path of the simulator's")
}

/// Never healthy.
fn is_ill(system: System) -> bool {
    system % 6 == 1
}

/// Nobody hears the host while it runs.
fn is_deaf(system: System) -> bool {
    system % 6 == 2
}

/// It does not come up.
fn is_dead(system: System) -> bool {
    system % 6 == 3
}

/// What a host is like.
#[derive(Debug)]
pub struct HostSystem {
    current: System,
    booted: System,
    profile: System,
    boots_next: System,
    boots_once: Option<System>,
    /// Counts starts of the host.
    boot: u32,
    store: HostStore,
    /// A system that ran, and was not what it was made as.
    forged: Option<System>,
    switch: Option<Switch>,
    /// Those before it.
    past: Vec<HostSwitch>,
}

/// The record of a switch.
#[derive(Debug)]
struct Switch {
    order: HostOrder,
    former: System,
    /// Where the profile led, and what booted by default, which a test before it may have left apart.
    former_links: (System, System),
    course: Course,
    /// Its time is that of this start of the host.
    boot: u32,
    deadline: Ms,
    healthy: bool,
    /// Whether a server has given its word.
    word: bool,
    carried: Carried,
}

/// Who carries a switch out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carried {
    /// Somebody does what is next, until then and so far.
    Doing { ends: Ms, how: How },
    /// Somebody waits for health and the server's word.
    Waiting { healthy_at: Option<Ms> },
    /// Nobody does until then.
    Nobody { until: Ms },
    /// Nobody needs to.
    Over,
}

/// How a step ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Done,
    Fails,
    /// Whoever did it was killed.
    Killed,
}

impl Default for HostSystem {
    fn default() -> Self {
        let first = 0;
        Self {
            current: first,
            booted: first,
            profile: first,
            boots_next: first,
            boots_once: None,
            boot: 0,
            store: HostStore::with(first),
            forged: None,
            switch: None,
            past: Vec::new(),
        }
    }
}

impl HostSystem {
    /// Whether nobody can hear it.
    pub fn is_deaf(&self) -> bool {
        is_deaf(self.current)
    }

    /// A system is brought; whether it was not there. Its bytes may be `spoilt`.
    pub fn bring(&mut self, system: System, spoilt: Option<&mut Faults>) -> io::Result<bool> {
        if self.store.has(system) {
            return Ok(false);
        }
        let sent = spoilt.map_or_else(|| closure::sent(system), |faults| closure::spoilt(system, faults));
        self.store.take(&sent)?;
        Ok(true)
    }

    /// The switch under way, or the last one. One that nobody carries out is gone on with.
    pub fn status(&mut self, now: Ms) -> Option<HostSwitch> {
        let switch = self.switch.as_mut()?;
        if let Carried::Nobody { until } = &mut switch.carried {
            *until = now.min(*until);
        }
        Some(switch.shown())
    }

    /// Whether a switch was begun.
    pub fn knows(&self, id: &str) -> bool {
        let last = self.switch.as_ref().is_some_and(|switch| switch.order.id == id);
        last || self.past.iter().any(|switch| switch.id == id)
    }

    /// As `calve-switch begin`.
    pub fn begin(&mut self, order: &HostOrder, now: Ms, rng: &mut Rng, faults: &mut Faults) -> HostAnswer {
        if let Some(switch) = self.status(now) {
            if switch.id == order.id {
                return HostAnswer::Done { switch };
            }
            if switch.outcome.is_none() {
                return HostAnswer::Busy { switch };
            }
        }
        if let Some(switch) = self.past.iter().find(|switch| switch.id == order.id) {
            return HostAnswer::Done { switch: switch.clone() };
        }
        let system = system_at(&order.toplevel);
        if !self.store.has(system) {
            return HostAnswer::Refused { message: "the system is not on the host".to_owned() };
        }
        if order.action == SwitchAction::DryActivate {
            return HostAnswer::Dry { output: String::new(), code: i32::from(is_ill(system)) };
        }
        let mut switch = Switch {
            order: order.clone(),
            former: self.current,
            former_links: (self.profile, self.boots_next),
            course: Course::new(order.action, self.current == system),
            boot: self.boot,
            deadline: now + order.confirm_ms,
            healthy: false,
            word: false,
            carried: Carried::Over,
        };
        switch.go_on(now, rng, faults);
        let shown = switch.shown();
        self.past.extend(self.switch.replace(switch).map(|switch| switch.shown()));
        HostAnswer::Done { switch: shown }
    }

    /// As `calve-switch confirm`, without waiting for the end.
    pub fn confirm(&mut self, id: &str, now: Ms, rng: &mut Rng, faults: &mut Faults) -> HostAnswer {
        let Some(switch) = self.switch.as_mut().filter(|switch| switch.order.id == id) else {
            return HostAnswer::Refused { message: "the host knows of no such switch".to_owned() };
        };
        if matches!(switch.carried, Carried::Waiting { .. }) && switch.healthy {
            switch.word = true;
            switch.course.take(Event::Done);
            switch.go_on(now, rng, faults);
        }
        HostAnswer::Done { switch: switch.shown() }
    }

    /// The host is restarted: gives when it is up, or none where it never is.
    pub fn restart(&mut self, now: Ms, rng: &mut Rng) -> Option<Ms> {
        self.boot += 1;
        let mut up_at = now + rng.range(5_000, 30_000);
        let once = self.boots_once.take();
        // One that does not come up makes the kernel restart the host, which then boots what it boots by default.
        if once.is_some_and(is_dead) {
            up_at += rng.range(5_000, 30_000);
        }
        self.booted = once.filter(|system| !is_dead(*system)).unwrap_or(self.boots_next);
        self.current = self.booted;
        let dead = is_dead(self.booted);
        if let Some(switch) = self.switch.as_mut().filter(|switch| switch.course.outcome().is_none()) {
            // Where it does not come up, nobody goes on with it ever.
            let until = if dead { Ms::MAX } else { up_at + rng.range(0, 5_000) };
            switch.carried = Carried::Nobody { until };
        }
        (!dead).then_some(up_at)
    }

    /// Does what is due; says what comes of it.
    pub fn step(&mut self, now: Ms, rng: &mut Rng, faults: &mut Faults) -> Due {
        loop {
            let Some(switch) = &mut self.switch else { return Due::Never };
            let due = match switch.carried {
                Carried::Doing { ends, .. } => ends,
                Carried::Nobody { until } => until,
                Carried::Waiting { healthy_at } => {
                    let healthy_at = healthy_at.filter(|_| !switch.healthy);
                    healthy_at.map_or(switch.deadline, |at| at.min(switch.deadline))
                }
                Carried::Over => return Due::Never,
            };
            if now < due {
                return Due::At(due);
            }
            let event = match switch.carried {
                Carried::Waiting { .. } if now < switch.deadline => {
                    switch.healthy = true;
                    continue;
                }
                Carried::Waiting { .. } => Event::Late("not confirmed in time".to_owned()),
                Carried::Nobody { .. } => Event::Resumed(self.found(now)),
                Carried::Doing { how, .. } => match self.does(how, rng) {
                    Some(event) => event,
                    None => {
                        let until = now + rng.range(100, 20_000);
                        self.switch.as_mut().expect("it is there").carried = Carried::Nobody { until };
                        continue;
                    }
                },
                Carried::Over => return Due::Never,
            };
            let switch = self.switch.as_mut().expect("it is there");
            switch.course.take(event);
            switch.go_on(now, rng, faults);
            match switch.course.step {
                Step::Restart => return Due::Restarts,
                Step::Ended(_) => return Due::Ended,
                _ => {}
            }
        }
    }

    /// What the host was found to be like.
    fn found(&mut self, now: Ms) -> Found {
        let switch = self.switch.as_mut().expect("there is one");
        if switch.boot == self.boot {
            return Found::SameBoot;
        }
        (switch.boot, switch.deadline, switch.healthy) = (self.boot, now + switch.order.confirm_ms, false);
        match self.booted {
            booted if booted == switch.former => Found::BootedFormer,
            booted if booted == system_at(&switch.order.toplevel) => Found::BootedNew,
            _ => Found::BootedOther,
        }
    }

    /// Does what is next, or half of it; none where whoever did it was killed.
    fn does(&mut self, how: How, rng: &mut Rng) -> Option<Event> {
        let switch = self.switch.as_mut().expect("there is one");
        let (former, new) = (switch.former, system_at(&switch.order.toplevel));
        if how == How::Done || rng.chance(500) {
            match switch.course.step {
                Step::Profile => self.profile = new,
                Step::Install => self.boots_next = new,
                Step::Guard => {
                    self.boots_next = former;
                    switch.course.guarded = how == How::Done;
                }
                Step::Activate => {
                    self.current = new;
                    self.forged = Some(new).filter(|system| !self.store.is_genuine(*system)).or(self.forged);
                }
                Step::Arm => self.boots_once = Some(new),
                Step::Keep => self.boots_next = new,
                Step::BackProfile => self.profile = switch.former_links.0,
                Step::BackInstall => {
                    (self.boots_next, self.boots_once) = (former, None);
                    if how == How::Fails {
                        // What the installation did not, the guard did.
                        switch.course.guarded = true;
                        return Some(Event::Done);
                    }
                }
                Step::BackActivate => self.current = former,
                Step::Begun | Step::Confirm | Step::AwaitBoot | Step::Restart | Step::Ended(_) => {}
            }
        }
        match how {
            How::Done => Some(Event::Done),
            How::Fails => Some(Event::Failed("seeded".to_owned())),
            How::Killed => None,
        }
    }

    /// Which switch was the last, and how it ended.
    pub fn ended(&self) -> Option<(&str, SwitchOutcome)> {
        let switch = self.switch.as_ref()?;
        Some((&switch.order.id, switch.course.outcome()?))
    }

    /// What is wrong with how the switch has ended just now.
    pub fn wrong_end(&self) -> Option<String> {
        let switch = self.switch.as_ref()?;
        let (id, former, new) = (&switch.order.id, switch.former, system_at(&switch.order.toplevel));
        let lasts = switch.order.action != SwitchAction::Test;
        let (profile, booted) = switch.former_links;
        let is_new = self.current == new && (!lasts || (self.profile == new && self.boots_next == new));
        let is_former = self.current == former && self.profile == profile;
        let is_former = is_former && (self.boots_next == former || self.boots_next == booted);
        match switch.course.outcome() {
            Some(SwitchOutcome::Applied) if !is_new => Some(format!("{id} counts as applied: {self:?}")),
            Some(SwitchOutcome::Applied) if !switch.word => {
                Some(format!("{id} is applied without a server's word"))
            }
            Some(SwitchOutcome::RolledBack) if !is_former => {
                Some(format!("{id} counts as rolled back: {self:?}"))
            }
            _ => None,
        }
    }

    /// What is wrong with what ran on it.
    pub fn runs_forged(&self) -> Option<String> {
        let system = self.forged?;
        Some(format!("to system {system} was carried out with bytes that are not its own"))
    }

    /// What is wrong with how long the switch takes.
    pub fn overdue(&self, now: Ms) -> Option<String> {
        let switch = self.switch.as_ref().filter(|switch| switch.course.outcome().is_none())?;
        let waits = switch.course.step == Step::AwaitBoot || now <= switch.deadline + OVERDUE_MAX;
        (!waits).then(|| format!("{} neither ends nor goes back: {self:?}", switch.order.id))
    }
}

/// What comes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing by itself.
    Never,
    /// Something at this moment.
    At(Ms),
    /// The host is to be restarted.
    Restarts,
    /// The switch has ended.
    Ended,
}

impl Switch {
    fn shown(&self) -> HostSwitch {
        HostSwitch {
            id: self.order.id.clone(),
            toplevel: self.order.toplevel.clone(),
            former: toplevel(self.former),
            action: self.order.action,
            generation: None,
            by: self.order.by.clone(),
            begun_unix_ms: 0,
            ended_unix_ms: None,
            stage: self.course.stage(),
            healthy: self.healthy,
            outcome: self.course.outcome(),
            message: self.course.notes.last().cloned(),
        }
    }

    /// Begins what is next.
    fn go_on(&mut self, now: Ms, rng: &mut Rng, faults: &mut Faults) {
        self.carried = match self.course.step {
            Step::AwaitBoot | Step::Restart | Step::Ended(_) => Carried::Over,
            Step::Confirm => {
                self.healthy = false;
                let healthy = !is_ill(system_at(&self.order.toplevel));
                Carried::Waiting { healthy_at: healthy.then(|| now + rng.range(0, 10_000)) }
            }
            _ => {
                let ends = now
                    + if faults.happens(Fault::Slow) {
                        rng.range(1_000, 20_000)
                    } else {
                        rng.range(10, 2_000)
                    };
                let late = self.course.is_forward() && self.course.step != Step::Keep && ends > self.deadline;
                let how = match () {
                    () if faults.happens(Fault::SwitchEnds) => How::Killed,
                    () if late || faults.happens(Fault::SwitchFails) => How::Fails,
                    () => How::Done,
                };
                Carried::Doing { ends, how }
            }
        };
    }
}
