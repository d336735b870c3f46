//! One simulation of the upper layer: users and faults for a while, then quiet until everything has ended.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use calve_core::MachineId;
use calve_server::reconcile::records::View;
use calve_server::reconcile::run as run_loop;
use calve_server::state::memory::MemoryState;
use calve_server::state::{Entry, State};
use calve_server::systems::Systems;
use calve_wire::event::What;
use calve_wire::system::SystemRecord;
use tokio_util::sync::CancellationToken;

use crate::aim::Aim;
use crate::effects::SimEffects;
use crate::faults::{Chances, Fault, Without};
use crate::host::{Ms, PAUSE_MAX};
use crate::hosts::SimHosts;
use crate::store::SimFaults;
use crate::users::{self, Api};
use crate::world::World;

/// Steps of users in a world where nobody says otherwise.
pub const STEPS: u64 = 60;
/// How long things go wrong at most: users have taken their steps long before.
const CHAOS_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often something may happen to the host by itself.
const DISASTER_EVERY: Duration = Duration::from_secs(10);
/// How long everything may then take to end: the longest boot, and the longest lease.
const QUIET_MAX: Duration = Duration::from_secs(1800);
/// Longest time without a server.
const DOWN_MAX_MS: u64 = 90_000;
/// Longer than records of ended machines are kept.
const FORGETTING: Duration = Duration::from_secs(25 * 3600);

/// How to simulate.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// How many steps users take.
    pub steps: u64,
    /// A fault in the world that the checks must find.
    pub plant: Plant,
    /// Whether the trace's lines are kept.
    pub keep_trace: bool,
    /// How often what goes wrong; of each seed its own mixture where none is given.
    pub chances: Option<Chances>,
    /// What is left out, to find out what matters.
    pub without: Without,
    /// The server dies at this moment of all at which it can, counted from 1.
    pub dies_at: Option<u64>,
    /// What goes wrong on purpose.
    pub aim: Option<Aim>,
}

impl Options {
    /// Those of a seed.
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            steps: STEPS,
            plant: Plant::None,
            keep_trace: false,
            chances: None,
            without: Without::default(),
            dies_at: None,
            aim: None,
        }
    }
}

/// A fault that no chance makes; the checks must find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// None.
    None,
    /// A driver says that it destroyed what it left alive.
    DestroyHides,
    /// Lists do not show what is alive.
    ListHidesLiving,
    /// Ends that a crash left unannounced stay so.
    NothingUnannounced,
    /// `Stopped` is written twice.
    StoppedTwice,
    /// A second server starts while the first lives.
    NoLock,
    /// Pulls trust the keys of strangers.
    StrangersTrusted,
}

/// How it went.
#[derive(Debug)]
pub struct Report {
    /// What must not be, and was.
    pub violations: Vec<String>,
    /// What happened, if it was to be kept.
    pub trace: Vec<String>,
    /// A number that two runs share only if everything happened in the same way.
    pub trace_hash: u64,
    /// How many machines were declared, and have ended.
    pub machines: usize,
    /// How many servers there were.
    pub servers: u32,
    /// How many faults took place.
    pub faults: u64,
    /// At how many moments a server could have died.
    pub moments: u64,
    /// Whether what was to go wrong on purpose never came to pass.
    pub missed: bool,
}

/// Simulates.
pub fn run(options: Options) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing");
    runtime.block_on(simulate(options))
}

async fn simulate(options: Options) -> Report {
    let world = World::new(&options);
    let store = Arc::new(MemoryState::default());
    let api: Arc<Mutex<Option<Api>>> = Arc::default();
    let current = {
        let api = api.clone();
        move || api.lock().expect("no holder panics").clone()
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn({
        let world = world.clone();
        async move { world.drive().await }
    });
    // Two compete; a lock lets one serve.
    for _ in 0..2 {
        tasks.spawn(keep_serving(world.clone(), store.clone(), api.clone()));
    }
    let disasters = tasks.spawn(disasters(world.clone()));
    let mut users = tokio::task::JoinSet::new();
    for _ in 0..3 {
        users.spawn(users::live(world.clone(), current.clone()));
    }

    let observer = View::default();
    watch(&world, &store, &observer, CHAOS_MAX, || world.inner().steps_left == 0).await;
    drop(users);
    disasters.abort();
    world.say(|| "quiet".to_owned());
    world.inner().faults.calm();
    let served = || current().filter(|api| world.lives(api.generation));
    // A crash takes the request with it.
    loop {
        let Some(api) = served() else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        tokio::select! {
            biased;
            () = world.crashed.notified() => {}
            () = users::end_endless(&world, &api) => break,
        }
    }
    // A write that was slow before it was quiet is announced once its answer comes.
    let ended = || observer.living() == 0 && world.is_empty() && world.has_announced(&observer);
    let switched = || systems_in(&store).iter().all(|(_, system)| system.pending.is_none());
    watch(&world, &store, &observer, QUIET_MAX, || ended() && switched() && world.is_settled(&observer))
        .await;
    world.check_end(&observer);
    for pending in systems_in(&store).into_iter().filter_map(|(_, system)| system.pending) {
        world.violation(format!("switch {} is {} for ever", pending.view.id, pending.view.stage.as_str()));
    }
    check_left_alone(&world, &store).await;
    if options.seed.is_multiple_of(32) {
        check_forgotten(&world, &store).await;
    }
    drop(tasks);
    report(&world)
}

/// Keeps a server running, over the same state and host, whenever there is none.
async fn keep_serving(world: Arc<World>, store: Arc<MemoryState>, api: Arc<Mutex<Option<Api>>>) {
    loop {
        let crashed = world.crashed.notified();
        tokio::pin!(crashed);
        crashed.as_mut().enable();
        if let Some(generation) = world.new_server() {
            let faults = SimFaults { world: world.clone(), generation };
            let state: Arc<dyn State> = Arc::new(store.with_faults(Arc::new(faults)));
            let view = View::default();
            let shutdown = CancellationToken::new();
            let systems = world.inner().late.then(|| {
                let hosts = Arc::new(SimHosts { world: world.clone(), generation });
                Systems::start(state.clone(), hosts, shutdown.clone())
            });
            let effects = Arc::new(SimEffects::new(world.clone(), generation, systems.clone()));
            let server = Api { state: state.clone(), view: view.clone(), generation, systems };
            *api.lock().expect("no holder panics") = Some(server);
            run_loop(state, view, effects, crashed).await;
            shutdown.cancel();
            api.lock().expect("no holder panics").take_if(|server| server.generation == generation);
        }
        let pause = {
            let rng = &mut world.inner().rng;
            if rng.chance(500) { rng.range(1, 100) } else { rng.range(100, DOWN_MAX_MS) }
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// What happens to the host and its machines by itself.
async fn disasters(world: Arc<World>) {
    loop {
        tokio::time::sleep(DISASTER_EVERY).await;
        if world.happens(Fault::HostDies) {
            world.host_dies();
        }
        if world.inner().late && world.happens(Fault::HostRestarts) {
            world.restart_a_host();
            world.touched.notify_one();
        }
        if world.happens(Fault::AgentPauses) {
            let now = world.now();
            let until = now + world.inner().faults.range(500, PAUSE_MAX);
            pause_an_agent(&world, until);
            world.touched.notify_one();
        }
    }
}

fn pause_an_agent(world: &World, until: Ms) {
    let mut inner = world.inner();
    let count = inner.host.len() + inner.account.present().count();
    if count > 0 {
        let chosen = inner.faults.range(0, count as u64) as usize;
        let inner = &mut *inner;
        let vm = inner.host.values_mut().chain(inner.account.vms_mut()).nth(chosen);
        vm.into_iter().for_each(|vm| vm.pause(until));
    }
}

/// Lets time pass until `done`, at most `at_most`, and checks what must always be so.
async fn watch(world: &World, store: &MemoryState, view: &View, at_most: Duration, done: impl Fn() -> bool) {
    let end = world.now() + at_most.as_millis() as u64;
    while world.now() < end {
        tokio::time::sleep(Duration::from_millis(3_777)).await;
        view.refresh(store).await.expect("the store itself has no faults");
        world.check_now(view);
        world.check_given(view);
        world.check_switches(&systems_in(store));
        // What is found is enough: a world that is broken may never come to an end.
        if done() || !world.inner().violations.is_empty() {
            return;
        }
    }
}

/// What the state holds of systems.
fn systems_in(store: &MemoryState) -> Vec<(MachineId, SystemRecord)> {
    let system = |entry: Entry| {
        let id = entry.key.strip_prefix("system/")?.parse().ok()?;
        Some((id, serde_json::from_slice(&entry.value).expect("the server wrote it")))
    };
    store.snapshot().into_iter().filter_map(system).collect()
}

/// A satisfied world is left alone. That is not one in which something is under way that was begun before it was quiet: see
/// [`World::is_settled`].
async fn check_left_alone(world: &World, store: &MemoryState) {
    // Of a slow change the rest is done at once.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = (store.list("").await.expect("no faults").1, world.inner().effects);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let after = (store.list("").await.expect("no faults").1, world.inner().effects);
    if before != after {
        world.violation(format!("a satisfied world is not left alone: {before:?} became {after:?}"));
    }
}

/// In the end nothing is left in the state either.
async fn check_forgotten(world: &World, store: &MemoryState) {
    tokio::time::sleep(FORGETTING).await;
    world.kill("server is stopped");
    tokio::time::sleep(FORGETTING).await;
    world.kill("server is stopped");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    for entry in store.snapshot() {
        world.violation(format!("the state still holds {}", entry.key));
    }
}

fn report(world: &World) -> Report {
    let missed = world.still_aims();
    let mut inner = world.inner();
    let (trace_hash, trace) = inner.digest.take();
    Report {
        violations: std::mem::take(&mut inner.violations),
        trace,
        trace_hash,
        machines: inner.events.values().filter(|events| events.contains(&What::Stopped)).count(),
        servers: inner.generation,
        faults: inner.faults.count(),
        moments: inner.moments,
        missed,
    }
}
