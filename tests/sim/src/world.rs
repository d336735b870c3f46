//! The world around the loop: host, links, events, users' truth, and the trace of everything that happened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use calve_core::{DriverName, MachineId, Timestamp};
use calve_wire::agent::Status;
use calve_wire::event::What;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::host::{Ms, Vm};
use crate::rng::Rng;
use crate::simulation::Plant;

/// The moment at which every simulation begins.
const BEGIN: Ms = 1_700_000_000_000;

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

pub struct Inner {
    pub rng: Rng,
    pub plant: Plant,
    /// What may go wrong, in thousandths.
    pub chances: Chances,
    /// Counts servers; operations of an earlier one than this never return.
    pub generation: u32,
    /// When the living server started; none while none lives.
    pub server_since: Option<Ms>,
    pub host: BTreeMap<(DriverName, MachineId), Vm>,
    /// Creations and destructions under way, by the server's generation.
    pub under_way: BTreeMap<MachineId, u32>,
    pub links: BTreeMap<MachineId, Link>,
    pub events: BTreeMap<MachineId, Vec<What>>,
    pub truth: BTreeMap<MachineId, Truth>,
    /// Effects other than lists, for the check that a satisfied world is left alone.
    pub effects: u64,
    pub trace: Vec<String>,
    pub keep_trace: bool,
    pub trace_hash: u64,
    pub violations: Vec<String>,
}

/// What may go wrong, in thousandths of its occasions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chances {
    pub crash: u64,
    pub effect_fails: u64,
    pub list_fails: u64,
    pub state_fails: u64,
    pub slow: u64,
    pub state_slow: u64,
    pub link_breaks: u64,
}

/// A server's link to an agent.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// When it is up (again).
    pub up_at: Ms,
    /// When it breaks.
    pub breaks_at: Option<Ms>,
    pub linked: bool,
    pub heard: Option<Status>,
    pub log_complete: bool,
    /// What a new connection begins with.
    pub lease: (Option<Ms>, u64),
}

/// What users asked of a machine, whether or not they had an answer.
#[derive(Debug, Clone, Copy)]
pub struct Truth {
    pub asked_to_end: bool,
    /// When it is to be over, as a server has promised.
    pub promised_end: Option<Ms>,
    /// The deadline that the user is sure of, and the latest that may have been written.
    pub deadline: Option<(Ms, Ms)>,
    pub grace: u64,
}

impl World {
    pub fn new(seed: u64, plant: Plant, keep_trace: bool) -> Arc<Self> {
        let mut rng = Rng::new(seed);
        let chances = Chances {
            crash: rng.pick(&[0, 1, 3, 20]),
            effect_fails: rng.pick(&[0, 20, 150]),
            list_fails: rng.pick(&[0, 50, 300]),
            state_fails: rng.pick(&[0, 0, 10, 50]),
            slow: rng.pick(&[0, 50, 200]),
            state_slow: rng.pick(&[0, 50, 300]),
            link_breaks: rng.pick(&[0, 100, 500]),
        };
        let inner = Inner {
            rng,
            plant,
            chances,
            generation: 0,
            server_since: None,
            host: BTreeMap::new(),
            under_way: BTreeMap::new(),
            links: BTreeMap::new(),
            events: BTreeMap::new(),
            truth: BTreeMap::new(),
            effects: 0,
            trace: Vec::new(),
            keep_trace,
            trace_hash: 0xcbf2_9ce4_8422_2325,
            violations: Vec::new(),
        };
        let (bell, touched, crashed) = (Notify::new(), Notify::new(), Notify::new());
        Arc::new(Self { inner: Mutex::new(inner), began: Instant::now(), bell, touched, crashed })
    }

    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of the world's lock panics")
    }

    pub fn now(&self) -> Ms {
        BEGIN + self.began.elapsed().as_millis() as Ms
    }

    pub fn timestamp(&self) -> Timestamp {
        Timestamp(self.now())
    }

    /// Writes a line of the trace.
    pub fn say(&self, line: impl FnOnce() -> String) {
        let now = self.now();
        let mut inner = self.inner();
        let line = format!("{:>9} {}", now - BEGIN, line());
        inner.trace_hash = line
            .bytes()
            .fold(inner.trace_hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        if inner.keep_trace {
            inner.trace.push(line);
        }
    }

    pub fn violation(&self, what: String) {
        self.say(|| format!("VIOLATION {what}"));
        let violations = &mut self.inner().violations;
        if !violations.contains(&what) {
            violations.push(what);
        }
    }

    /// A moment at which the server of this generation may die; does not return if it does, or has.
    pub async fn point(&self, generation: u32) {
        let dies = {
            let mut inner = self.inner();
            let crash = inner.chances.crash;
            inner.generation == generation && inner.server_since.is_some() && inner.rng.chance(crash)
        };
        if dies {
            self.kill();
        }
        if !self.lives(generation) {
            std::future::pending::<()>().await;
        }
    }

    pub fn lives(&self, generation: u32) -> bool {
        let inner = self.inner();
        inner.generation == generation && inner.server_since.is_some()
    }

    /// Kills the server.
    pub fn kill(&self) {
        self.say(|| "server crashes".to_owned());
        self.inner().server_since = None;
        self.crashed.notify_waiters();
    }

    /// Starts a server; gives its generation.
    pub fn new_server(&self) -> u32 {
        let now = self.now();
        let generation = {
            let mut inner = self.inner();
            inner.generation += 1;
            inner.server_since = Some(now);
            inner.links.clear();
            inner.under_way.clear();
            inner.generation
        };
        self.say(|| format!("server {generation} starts"));
        generation
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
        let Inner { host, links, rng, chances, .. } = &mut *inner;
        let mut next: Option<Ms> = None;
        let mut due = |at: Option<Ms>| next = [next, at].into_iter().flatten().min();
        for vm in host.values_mut() {
            due(vm.step(now, rng));
        }
        let mut rings = false;
        for (id, link) in links.iter_mut() {
            let vm = host.iter_mut().find(|((_, vm_id), _)| vm_id == id).map(|(_, vm)| vm);
            let before = (link.linked, link.heard.clone(), link.log_complete);
            due(link.step(vm, now, rng, chances.link_breaks));
            rings |= before != (link.linked, link.heard.clone(), link.log_complete);
        }
        drop(inner);
        if rings {
            self.bell.notify_one();
        }
        next
    }
}

impl Link {
    fn step(&mut self, vm: Option<&mut Vm>, now: Ms, rng: &mut Rng, breaks: u64) -> Option<Ms> {
        let Some(vm) = vm.filter(|vm| vm.speaks(now)) else {
            self.linked = false;
            return None;
        };
        if self.breaks_at.is_some_and(|at| at <= now) {
            (self.linked, self.breaks_at) = (false, None);
            self.up_at = now + rng.range(10, 20_000);
        }
        if self.up_at > now {
            return Some(self.up_at);
        }
        if !self.linked {
            self.linked = true;
            self.breaks_at = rng.chance(breaks).then(|| now + rng.range(1, 30_000));
            vm.lease = self.lease;
        }
        self.heard = Some(vm.status());
        self.log_complete = vm.log_complete(now);
        self.breaks_at
    }
}
