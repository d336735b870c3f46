//! The world around the loop: host, provider, links, events, users' truth, and the trace of everything that happened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use calve_core::{DriverName, MachineId, MachineName, Timestamp};
use calve_wire::event::What;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::aim::{Aim, How, When, Which};
use crate::digest::Digest;
use crate::faults::{Chances, Fault, Faults};
use crate::host::{Ms, PAUSE_MAX, Vm};
use crate::link::Link;
use crate::provider::Account;
use crate::rng::{Rng, mix};
use crate::simulation::{Options, Plant};
use crate::systems::{Due, HostSystem};
use crate::truth::{SwitchTruth, Truth};

/// The moment at which every simulation begins.
const BEGIN: Ms = 1_700_000_000_000;
/// Machines that somebody else made, in worlds that have any.
const STRANGERS: u64 = 5;
/// How far a server's clock may be ahead of the world's.
pub const SKEW_MAX: Ms = 1_500;

/// Shared by everything in a simulation.
pub struct World {
    pub inner: Mutex<Inner>,
    began: Instant,
    /// Rung when something on the host or of a link changed.
    pub bell: Notify,
    /// Rung when the host has something new to do.
    pub touched: Notify,
    /// Rung when the server has crashed.
    pub crashed: Notify,
}

/// A change of the state that takes its time; dropped, with its server too, it has ended.
pub struct SlowChange<'a>(&'a World);

impl Drop for SlowChange<'_> {
    fn drop(&mut self) {
        self.0.inner().slow_changes -= 1;
    }
}

pub struct Inner {
    pub rng: Rng,
    pub faults: Faults,
    pub plant: Plant,
    /// Seeds the steps of users, each by its number.
    pub users_seed: u64,
    pub steps_left: u64,
    /// Counts servers; operations of an earlier one than this never return.
    pub generation: u32,
    /// When the living server started; none while none lives.
    pub server_since: Option<Ms>,
    /// How far the living server's clock is ahead.
    skew: Ms,
    /// The server stands still until then.
    paused_until: Ms,
    /// Moments at which a server might have died so far, and the one at which it does.
    pub moments: u64,
    dies_at: Option<u64>,
    /// What goes wrong on purpose; none once it has.
    aim: Option<Aim>,
    pub host: BTreeMap<(DriverName, MachineId), Vm>,
    pub account: Account,
    /// Of machines that live, what system they have, once it was switched.
    pub systems: BTreeMap<MachineId, HostSystem>,
    /// What became of switches on their hosts.
    pub switches: BTreeMap<(MachineId, String), SwitchTruth>,
    /// Whether users do what the simulator learnt late; see [`Self::new`].
    pub late: bool,
    /// Whether users have machines at the provider made for systems.
    pub gives: bool,
    /// Whether users adopt hosts that are reached over SSH.
    pub adopts_hosts: bool,
    /// Effects under way, by the server's generation.
    pub under_way: BTreeMap<MachineId, u32>,
    pub links: BTreeMap<MachineId, Link>,
    pub events: BTreeMap<MachineId, Vec<What>>,
    pub truth: BTreeMap<MachineId, Truth>,
    /// Changes of the state that take their time just now.
    pub slow_changes: u32,
    /// Names of records that were seen.
    pub names: BTreeMap<MachineId, MachineName>,
    /// Effects other than lists, for the check that a satisfied world is left alone.
    pub effects: u64,
    pub digest: Digest,
    pub violations: Vec<String>,
}

impl World {
    pub fn new(options: &Options) -> Arc<Self> {
        let mut rng = Rng::new(mix(options.seed, 1));
        let chances = options.chances.unwrap_or_else(|| Chances::seeded(&mut rng));
        // The other worlds are what they were when seeds failed that are tried each time.
        let late = options.seed % 3 == 1;
        let gives = late && options.seed.is_multiple_of(2);
        let adopts_hosts = gives && options.seed % 4 == 2;
        let strangers = if late { STRANGERS } else { 0 };
        let inner = Inner {
            faults: Faults::new(options.seed, chances, options.without.clone()),
            plant: options.plant,
            users_seed: rng.next(),
            steps_left: options.steps,
            rng,
            generation: 0,
            server_since: None,
            skew: 0,
            paused_until: 0,
            moments: 0,
            dies_at: options.dies_at,
            aim: options.aim,
            host: BTreeMap::new(),
            account: Account::with_strangers(strangers),
            systems: BTreeMap::new(),
            switches: BTreeMap::new(),
            late,
            gives,
            adopts_hosts,
            under_way: BTreeMap::new(),
            links: BTreeMap::new(),
            events: BTreeMap::new(),
            truth: BTreeMap::new(),
            slow_changes: 0,
            names: BTreeMap::new(),
            effects: 0,
            digest: Digest::new(options.keep_trace),
            violations: Vec::new(),
        };
        let (bell, touched, crashed) = (Notify::new(), Notify::new(), Notify::new());
        Arc::new(Self { inner: Mutex::new(inner), began: Instant::now(), bell, touched, crashed })
    }

    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of the world's lock panics")
    }

    /// The world's time.
    pub fn now(&self) -> Ms {
        BEGIN + self.began.elapsed().as_millis() as Ms
    }

    /// The living server's time.
    pub fn timestamp(&self) -> Timestamp {
        Timestamp(self.now() + self.inner().skew)
    }

    /// A moment of the server's clock, in the world's time.
    pub fn in_world_time(&self, server_ms: Option<Ms>) -> Option<Ms> {
        let skew = self.inner().skew;
        server_ms.map(|ms| ms.saturating_sub(skew))
    }

    /// Writes a line of the trace.
    pub fn say(&self, line: impl FnOnce() -> String) {
        let now = self.now();
        let line = line();
        self.inner().digest.line(now - BEGIN, &line);
    }

    pub fn violation(&self, what: String) {
        self.say(|| format!("VIOLATION {what}"));
        let violations = &mut self.inner().violations;
        if !violations.contains(&what) {
            violations.push(what);
        }
    }

    /// Whether it is now that this goes wrong on purpose.
    pub fn hits(&self, which: Which, when: When, how: How) -> bool {
        let mut inner = self.inner();
        let Some(aim) = &mut inner.aim else { return false };
        if (aim.which, aim.when, aim.how) != (which, when, how) {
            return false;
        }
        let hits = aim.skip == 0;
        match hits {
            true => inner.aim = None,
            false => aim.skip -= 1,
        }
        hits
    }

    /// Whether what was to go wrong on purpose has not yet.
    pub fn still_aims(&self) -> bool {
        self.inner().aim.is_some()
    }

    pub fn happens(&self, fault: Fault) -> bool {
        self.inner().faults.happens(fault)
    }

    /// A moment at which the server of this generation may die or stand still; does not return if it dies, or has.
    pub async fn point(&self, generation: u32) {
        let dies = {
            let mut inner = self.inner();
            let lives = inner.generation == generation && inner.server_since.is_some();
            inner.moments += u64::from(lives);
            lives && (inner.faults.happens(Fault::Crash) || inner.dies_at == Some(inner.moments))
        };
        if dies {
            self.kill("server crashes");
        }
        if !self.lives(generation) {
            std::future::pending::<()>().await;
        }
        self.stand_still().await;
    }

    async fn stand_still(&self) {
        let now = self.now();
        let until = {
            let mut inner = self.inner();
            if inner.paused_until <= now && inner.faults.happens(Fault::ServerPauses) {
                inner.paused_until = now + inner.faults.range(500, PAUSE_MAX);
            }
            inner.paused_until
        };
        if until > now {
            tokio::time::sleep(Duration::from_millis(until - now)).await;
        }
    }

    /// A change of the state begins that takes its time.
    pub fn slow_change(&self) -> SlowChange<'_> {
        self.inner().slow_changes += 1;
        SlowChange(self)
    }

    pub fn lives(&self, generation: u32) -> bool {
        let inner = self.inner();
        inner.generation == generation && inner.server_since.is_some()
    }

    /// Kills the server.
    pub fn kill(&self, how: &str) {
        self.say(|| how.to_owned());
        self.inner().server_since = None;
        self.crashed.notify_waiters();
    }

    /// The host goes down: the server dies, and every machine on it, and what it had of them in memory.
    pub fn host_dies(&self) {
        self.kill("host goes down");
        // What was adopted over SSH is another host.
        self.inner().host.retain(|_, vm| vm.adopted.is_some());
    }

    /// One of the hosts that were switched is restarted.
    pub fn restart_a_host(&self) {
        let now = self.now();
        let mut inner = self.inner();
        let Inner { host, account, systems, rng, faults, .. } = &mut *inner;
        if systems.is_empty() {
            return;
        }
        let chosen = faults.range(0, systems.len() as u64) as usize;
        let (id, system) = systems.iter_mut().nth(chosen).expect("there are so many");
        restart(host, account, *id, system, now, rng);
    }

    /// Starts a server where none lives, as the lock on its data directory lets only one; gives its generation.
    pub fn new_server(&self) -> Option<u32> {
        let now = self.now();
        let (generation, lived) = {
            let mut inner = self.inner();
            let lived = inner.server_since.is_some();
            if lived && inner.plant != Plant::NoLock {
                return None;
            }
            inner.generation += 1;
            inner.server_since = Some(now);
            inner.skew = inner.rng.pick(&[0, 0, 300, SKEW_MAX]);
            if !lived {
                inner.links.clear();
                inner.under_way.clear();
            }
            (inner.generation, lived)
        };
        self.say(|| format!("server {generation} starts"));
        if lived {
            self.violation(format!("server {generation} starts while another lives"));
        }
        Some(generation)
    }

    /// Lets the host and the links live, for ever.
    pub async fn drive(&self) {
        loop {
            let next = self.step();
            let pause = next
                .map_or(Duration::from_secs(3600), |at| Duration::from_millis(at.saturating_sub(self.now())));
            tokio::select! {
                biased;
                () = self.touched.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Does what is due; gives when something is due next.
    fn step(&self) -> Option<Ms> {
        let now = self.now();
        let mut inner = self.inner();
        let breaks = inner.faults.chance(Fault::LinkBreaks);
        let Inner { host, account, links, rng, systems, switches, faults, .. } = &mut *inner;
        let mut next: Option<Ms> = None;
        let mut due = |at: Option<Ms>| next = [next, at].into_iter().flatten().min();
        for vm in host.values_mut().chain(account.vms_mut()) {
            due(vm.step(now, rng));
        }
        let (mut faulty, mut said) = (Vec::new(), Vec::new());
        systems.retain(|id, _| is_there(host, account, *id));
        for (id, system) in systems.iter_mut() {
            loop {
                match system.step(now, rng, faults) {
                    Due::Never => break,
                    Due::At(at) => {
                        due(Some(at));
                        break;
                    }
                    Due::Restarts => restart(host, account, *id, system, now, rng),
                    Due::Ended => {
                        let (switch, outcome) = system.ended().expect("it has ended");
                        switches.entry((*id, switch.to_owned())).or_default().outcome = Some(outcome);
                        said.push(format!("switch {switch} of {id} ends on its host: {outcome:?}"));
                        faulty.extend(system.wrong_end());
                    }
                }
            }
            faulty.extend(system.overdue(now));
            faulty.extend(system.runs_forged());
        }
        let mut rings = false;
        for (id, link) in links.iter_mut() {
            let vm = speaking(host, account, *id, now)
                .filter(|_| !systems.get(id).is_some_and(HostSystem::is_deaf));
            let before = (link.linked, link.heard.clone(), link.log_complete);
            due(link.step(vm, now, rng, breaks));
            rings |= before != (link.linked, link.heard.clone(), link.log_complete);
        }
        drop(inner);
        said.into_iter().for_each(|line| self.say(|| line));
        faulty.into_iter().for_each(|what| self.violation(format!("switch {what}")));
        if rings {
            self.bell.notify_one();
        }
        next
    }
}

/// Whether a machine with this id lives somewhere.
fn is_there(host: &BTreeMap<(DriverName, MachineId), Vm>, account: &Account, id: MachineId) -> bool {
    let here = host.iter().any(|((_, of), vm)| *of == id && vm.alive);
    here || account.present().any(|(of, vm)| of == id && vm.alive)
}

/// Restarts a host: nobody hears it until it is up.
fn restart(
    host: &mut BTreeMap<(DriverName, MachineId), Vm>,
    account: &mut Account,
    id: MachineId,
    system: &mut HostSystem,
    now: Ms,
    rng: &mut Rng,
) {
    let up_at = system.restart(now, rng);
    if let Some(vm) = speaking(host, account, id, now) {
        match up_at {
            Some(up_at) => vm.pause(up_at),
            None => vm.alive = false,
        }
    }
}

/// The machine with this id whose agent is heard, or any of them.
pub fn speaking<'a>(
    host: &'a mut BTreeMap<(DriverName, MachineId), Vm>,
    account: &'a mut Account,
    id: MachineId,
    now: Ms,
) -> Option<&'a mut Vm> {
    let local = [DriverName::Sandbox, DriverName::Qemu, DriverName::Ssh].into_iter();
    let local = local.map(|driver| (driver, id)).find(|key| host.get(key).is_some_and(|vm| vm.speaks(now)));
    match local {
        Some(key) => host.get_mut(&key),
        None => account.speaking(id, now),
    }
}
